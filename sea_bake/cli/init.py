"""sea-bake init"""

from __future__ import annotations

from pathlib import Path

from sea_bake.cli.options import Call, command, spelt


@command(
    "sea_bake.recipes.starter:write_starter",
    path=spelt(positional=True, hint=Path, metavar="[FILE]"),
    model=spelt("-m"),
)
def init(call: Call) -> None:
    """Write a commented starter recipe: every key, its default and what it is for. It runs as it is.

    sea-bake init

    sea-bake init fair.yaml --model ./my-model --output my-model-fair
    """
    written = call()
    call.emit({"recipe": str(written)})
    call.go_on("sea-bake", "run", written, "--dry-run", done=f"wrote {written}. ")
