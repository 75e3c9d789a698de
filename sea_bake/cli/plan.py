"""sea-bake plan"""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import MoreEdits, table


@command(
    "sea_bake.baking:plan",
    edits=spelt(positional=True, hint=list[Path], default=None, help="Edit files; without any, every site and merge."),
)
def plan(call: Call, more: MoreEdits = None) -> None:
    """Say what can be done with an edit, and why: fold, adapter, or insert only. Reads headers, no weights.

    fold: the edit disappears into the output projections, and a plain checkpoint comes out. adapter: the same as a
    LoRA. insert: an SEALayer behind each edited module, exact for every edit, loaded with custom code. Example:

      sea-bake plan HuggingFaceTB/SmolLM2-135M-Instruct truthful.safetensors
    """
    from sea_bake.edit import Edit

    console = call.console
    found = call.run(edits=[Edit.load(path) for path in [*call["edits"], *(more or [])]])
    console.print(f"[bold]{escape(found.base)}[/] ({found.family})")
    for kind in found.kinds:
        places = ", ".join(f"{site} is {module or 'not there'}" for site, module in kind.items() if site != "layers")
        console.print(f"layers {kind['layers']}: {places}", markup=False)
    rank = f" (rank {found.rank})" if found.rank else ""
    rows = []
    for row in found.rows:
        ways = ["exact" if row["fold"] else "no", f"exact{rank}" if row["adapter"] else "no", "exact"]
        rows.append([row["site"], row["map"], row["feature"], *ways, row["why"]])
    head = ["site", "map", "feature", "fold", "adapter", "insert", "why"]
    console.print(table(head, rows, left=head))
    lines = [[row["site"], row["layers"] or "no", row["why"]] for row in found.constants]
    if lines:
        console.print(table(["site", "a constant folds in layers", "why"], lines, left=["site", "why"]))
    if found.how is not None:
        console.print(f"bake --how auto: [bold]{found.how}[/], since: {escape(found.why)}")
