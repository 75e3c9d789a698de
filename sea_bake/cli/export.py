"""sea-bake export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sea_bake.cli import export_gguf
from sea_bake.cli.printing import Json, Overwrite, Quiet, emit, prepare, size

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Write a baked artefact in the formats of runtimes without hooks: ONNX, GGUF.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("onnx")
def onnx(
    artefact: Annotated[Path, typer.Argument(help="Folder written by sea-bake bake: inserted or folded.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    dtype: Annotated[
        str, typer.Option(help="fp32, or fp16 (half the size; the edit's own arithmetic stays float32).")
    ] = "fp32",
    quantize: Annotated[
        list[str] | None,
        typer.Option(
            "--quantize", help="Also write a variant: int8 or int4 (repeatable). The edit's own nodes stay float."
        ),
    ] = None,
    opset: Annotated[int, typer.Option(help="18 to 21 run everywhere; 23 uses native attention operators.")] = 18,
    strength: Annotated[
        bool,
        typer.Option(
            "--strength",
            help="Give the graph one more input, sea_strength (float32, [1]): 1, its default, is the edit, 0 the base.",
        ),
    ] = False,
    unedited: Annotated[
        bool, typer.Option("--unedited", help="Export a plain checkpoint: the base, to compare with.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export an artefact as one ONNX decoder with KV cache, in a folder that its runtimes read as it is.

    ONNX Runtime (onnx/model.onnx), onnxruntime-genai (og.Model(folder)), optimum's ORTModelForCausalLM, and
    transformers.js under Node and in the browser (give it the dtype of the file: fp32, fp16, q8, q4). Needs the extra
    onnx. Example:

      sea-bake export onnx smollm2-truthful -o smollm2-truthful-onnx --quantize int8
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake.exporting.onnx import export_onnx

    report = export_onnx(
        artefact,
        output,
        dtype=dtype,
        quantize=quantize or (),
        opset=opset,
        strength=strength,
        unedited=unedited,
        overwrite=overwrite,
    )
    emit(report.to_json(), as_json=as_json)
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
    if not unedited:
        console.print(f"Next: sea-bake verify {output}", markup=False)


app.command("gguf")(export_gguf.gguf)
