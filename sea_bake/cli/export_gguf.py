"""sea-bake export gguf"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sea_bake.cli.printing import Json, Overwrite, Quiet, emit, prepare, size


def gguf(
    artefact: Annotated[
        list[Path],
        typer.Argument(help="Folder written by sea-bake bake (a fold or an adapter), or edit files that fold exactly."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, such as model.gguf.")],
    base: Annotated[
        Path | None,
        typer.Option("--base", "-b", help="The base's own GGUF: its edited tensors are rewritten, all else is kept."),
    ] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Write a LoRA adapter for llama-cli --lora. An adapter artefact always is.")
    ] = False,
    edited_type: Annotated[
        str,
        typer.Option(
            help="Of rewritten weights: keep (the tensor's own where gguf can quantise it, else q8_0 or f16), f32, "
            "f16, q8_0. Of an adapter: f32 or f16."
        ),
    ] = "keep",
    converter: Annotated[
        Path | None,
        typer.Option(
            help="Without --base: llama.cpp's convert_hf_to_gguf.py, or the folder it is in. Default: the folder in "
            "LLAMA_CPP, else the script on PATH."
        ),
    ] = None,
    outtype: Annotated[str, typer.Option(help="Of a converted file: auto, f32, f16, bf16, q8_0.")] = "auto",
    unedited: Annotated[
        bool, typer.Option("--unedited", help="Convert a plain checkpoint: the base, to compare with.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a folded edit as GGUF for llama.cpp, Ollama, LM Studio and their like; or an adapter for --lora.

    Three routes: rewrite the edited tensors inside the base's own GGUF (every key and the tokenizer stay byte for
    byte); write the edit as a LoRA, which leaves a quantised base as it is; or let llama.cpp's own converter turn the
    folder into GGUF. Needs the extra gguf. Examples:

      sea-bake export gguf smollm2-truthful --base SmolLM2-135M-Instruct.Q4_1.gguf -o truthful.gguf

      sea-bake export gguf truthful.safetensors --base SmolLM2-135M-Instruct.Q4_1.gguf --lora -o truthful-lora.gguf

      sea-bake export gguf smollm2-truthful --converter llama.cpp -o truthful.gguf
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake.exporting.gguf import export_gguf

    report = export_gguf(
        artefact,
        output,
        base=base,
        lora=lora,
        edited_type=edited_type,
        converter=converter,
        outtype=outtype,
        unedited=unedited,
        overwrite=overwrite,
    )
    emit(report.to_json(), as_json=as_json)
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
