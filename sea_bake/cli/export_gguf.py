"""sea-bake export gguf"""

from __future__ import annotations

from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import size


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
    report = call()
    call.emit(report.to_json())
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
    if report.route == "adapter":
        console.print(f"Next: llama-cli -m {report.gguf or 'BASE.gguf'} --lora {output}", markup=False)
    else:
        console.print(f"Next: llama-cli -m {output}", markup=False)
