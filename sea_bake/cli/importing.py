"""sea-bake import"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import Overwrite


@command(
    "sea_bake.exporting.edits:import_edit",
    base=spelt("-b", positional=False),
    files=spelt(hint=list[Path], metavar="FILE [MORE]"),
)
def import_edit(
    call: Call,
    output: Annotated[Path, typer.Option("--output", "-o", help="Edit file to write.")] = Path("edit.safetensors"),
    overwrite: Overwrite = False,
) -> None:
    """Import an edit that another tool fitted: a control vector, a steering vector, an eraser, a LoRA. Examples:

    sea-bake import happy.gguf --base HuggingFaceTB/SmolLM2-135M-Instruct -o happy.safetensors

    sea-bake import evil_response_avg_diff.pt -b Qwen/Qwen2.5-7B-Instruct --layers 19 --alpha 2
    """
    from sea_bake.io.apart import check_apart
    from sea_bake.io.staging import check_output

    place = check_output(output, overwrite=overwrite, folder=False)  # no refusal waits for torch
    check_apart(place, [*call["files"], call["base"]], folder=False)
    from sea_bake.pages.edits import sentence

    edit = call()
    edit.save(place, overwrite=overwrite)
    call.emit({"output": str(output), **edit.describe()})
    call.console.print(sentence(edit), markup=False)
    call.go_on("sea-bake", "bake", call["base"], output, "-o", "OUT", done=f"wrote {output}. ")
