"""sea-bake plan"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt

if TYPE_CHECKING:
    from rich.table import Table

    from sea_bake.baking import Plan


@command(
    "sea_bake.baking:plan",
    edits=spelt(positional=True, hint=list[Path], default=None, help="Edit files; without any, every site and merge."),
)
def plan(
    call: Call,
    more: Annotated[list[Path] | None, typer.Option("--edit", "-e", help="The same, as an option.")] = None,
) -> None:
    """Say what can be done with an edit, and why: fold, adapter, or insert only. Reads headers, no weights.

    fold: the edit disappears into the output projections, and a plain checkpoint comes out. adapter: the same as a
    LoRA. insert: an SEALayer behind each edited module, exact for every edit, loaded with custom code. Example:

      sea-bake plan HuggingFaceTB/SmolLM2-135M-Instruct truthful.safetensors
    """
    from sea_bake.edit import Edit

    console = call.console
    found = call(edits=[Edit.load(path) for path in [*call["edits"], *(more or [])]])
    call.emit(found.to_json())
    console.print(f"[bold]{escape(found.base)}[/] ({found.family})")
    console.print(_table(found))
    if found.how is not None:
        console.print(f"bake --how auto: [bold]{found.how}[/], since: {escape(found.why)}")


def _table(found: Plan) -> Table:
    from rich.table import Table

    table = Table()
    for name in ("site", "merge", "feature", "fold", "adapter", "insert", "why"):
        table.add_column(name)
    for row in found.rows:
        fold = "exact" if row["fold"] else "no"
        rank = f" (rank {found.rank})" if found.rank else ""
        adapter = f"exact{rank}" if row["adapter"] else "no"
        table.add_row(row["site"], row["merge"], row["feature"], fold, adapter, "exact", row["why"])
    return table
