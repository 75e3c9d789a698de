"""sea-bake export"""

from __future__ import annotations

import typer
from rich.markup import escape

from sea_bake.cli import export_gguf
from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import size

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Write a baked artefact in the formats of runtimes without hooks: ONNX, GGUF.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("onnx")
@command("sea_bake.exporting.onnx:export_onnx", strength=spelt(hint=bool))
def onnx(call: Call) -> None:
    """Export an artefact as one ONNX decoder with KV cache, in a folder that its runtimes read as it is.

    ONNX Runtime (onnx/model.onnx), onnxruntime-genai (og.Model(folder)), optimum's ORTModelForCausalLM, and
    transformers.js under Node and in the browser (give it the dtype of the file: fp32, fp16, q8, q4). Needs the extra
    onnx. Example:

      sea-bake export onnx smollm2-truthful -o smollm2-truthful-onnx --quantize int8
    """
    console, output = call.console, call["output"]
    report = call()
    call.emit(report.to_json())
    console.print(
        f"[bold]{escape(str(output))}[/]: {report.architecture} in ONNX (opset {report.opset}, {report.dtype}), "
        f"{len(report.sea_nodes)} of {report.nodes} nodes are the edit's, {sum(report.seconds.values()):.0f} s"
    )
    for name, count in report.files.items():
        console.print(f"  {name}: {size(count)}", markup=False)
    for kind, variant in report.variants.items():
        distance = variant["distance"]
        weights = ", ".join(f"{count} weights in {bits} bits" for bits, count in sorted(variant["weights"].items()))
        console.print(
            f"  {kind}: {weights}, {size(variant['bytes'])}; from fp32 "
            f"at {distance['tokens']} tokens: mean KL {distance['mean_kl']:.2e}, top-1 {100 * distance['top1']:.1f} %",
            markup=False,
        )
    if not call["unedited"]:
        console.print(f"Next: sea-bake verify {output}", markup=False)


app.command("gguf")(export_gguf.gguf)
