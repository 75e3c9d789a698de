"""sea-bake export"""

from __future__ import annotations

import typer
from rich.markup import escape

from sea_bake.cli.options import STYLE, Call, command, spelt
from sea_bake.pages.text import size

_ABOUT = "Write a baked artefact in the formats of runtimes without hooks: ONNX, GGUF, MLX."
app = typer.Typer(name="export", add_completion=False, no_args_is_help=True, help=_ABOUT, **STYLE)


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
    report = call.run()
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
        from sea_bake.artefact import Artefact

        call.go_on(*Artefact.open(output).verifying)


@app.command("gguf")
@command("sea_bake.exporting.gguf:export_gguf", base=spelt("-b"))
def gguf(call: Call) -> None:
    """Export a folded edit as GGUF for llama.cpp, Ollama, LM Studio and their like; or an adapter for --lora.

    Three routes: rewrite the edited tensors inside the base's own GGUF (every key and the tokenizer stay byte for
    byte); write the edit as a LoRA, which leaves a quantised base as it is; or let llama.cpp's own converter turn the
    folder into GGUF. Needs the extra gguf. Examples:

      sea-bake export gguf smollm2-truthful --base SmolLM2-135M-Instruct.Q4_1.gguf -o truthful.gguf

      sea-bake export gguf truthful.safetensors --base SmolLM2-135M-Instruct.Q4_1.gguf --lora -o truthful-lora.gguf

      sea-bake export gguf smollm2-truthful --converter llama.cpp -o truthful.gguf
    """
    console, output = call.console, call["output"]
    report = call.run()
    types = ", ".join(f"{count} {name}" for name, count in report.types.items())
    what = {
        "rewritten": f"{report.gguf} with {len(report.changed)} tensors rewritten",
        "adapter": f"LoRA of rank {report.rank} on {len(report.changed)} tensors",
        "converted": "converted by llama.cpp",
    }[report.route]
    console.print(
        f"[bold]{escape(str(output))}[/]: {escape(what)}; {report.architecture}, {size(report.bytes_written)} ({types})"
    )
    if report.route == "rewritten" and report.changed:
        changes = [entry["change"] for entry in report.changed.values()]
        lost = max(entry["rounding"] for entry in report.changed.values())
        written = ", ".join(dict.fromkeys(entry["type"] for entry in report.changed.values()))
        console.print(
            f"edited tensors written as {written}: the edit moves them by {min(changes):.2%} to {max(changes):.2%} of "
            f"their size, the type rounds them by up to {lost:.2%}"
        )
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    call.go_on("llama-cli", "-m", *([call["base"] or "BASE.gguf", "--lora"] * (report.route == "adapter")), output)


@app.command("control-vector")
@command("sea_bake.exporting.gguf.control_vector:export_control_vector", edit=spelt(positional=True))
def control_vector(call: Call) -> None:
    """Export an edit that adds one vector behind each layer as a control vector for llama.cpp, for every quantisation
    of its base; --control-vector-scaled FILE:0.5 then applies half of it. Needs the extra gguf.
    """
    report = call.run()
    call.console.print(f"{call['output']}: {len(report.changed)} layers, {size(report.bytes_written)}", markup=False)
    call.go_on("llama-cli", "-m", "BASE.gguf", "--control-vector", call["output"])


@app.command("mlx")
@command("sea_bake.exporting.mlx:export_mlx")
def mlx(call: Call) -> None:
    """Export an adapter as mlx-lm reads adapters (--adapter-path). A fold needs no export: mlx-lm reads it as it is.

    Example:

      sea-bake export mlx smollm2-adapter -o smollm2-mlx
    """
    found = call.run()
    lines = f"{call['output']}: LoRA of rank {found.rank} on {len(found.modules)} modules"
    call.console.print(f"{lines}, {size(sum(found.files.values()))}", markup=False)
