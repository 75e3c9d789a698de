"""sea-bake plan, sea-bake bake, sea-bake unbake"""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import MoreEdits, table
from sea_bake.pages.text import size

_EDITS = spelt(positional=True, hint=list[Path], default=None, metavar="[EDITS]...")


@command("sea_bake.baking:bake", edit=_EDITS, architecture=spelt("--as"))
def bake(call: Call, more: MoreEdits = None) -> None:
    """Bake an edit into a checkpoint, without loading the model (but for --approximate).

    Unedited shards are hard-linked where base and output lie on one file system (do not write into them: they are the
    base's own files), and copied elsewhere. Example:

      sea-bake bake HuggingFaceTB/SmolLM2-135M-Instruct truthful.safetensors -o smollm2-truthful
    """
    console, output = call.console, call["output"]
    report = call.run(edit=[*call["edit"], *(more or [])])
    sites = " and ".join(dict.fromkeys(report.sites))
    console.print(
        f"[bold]{escape(str(output))}[/]: {report.how} ({escape(report.why)}); {report.architecture}, "
        f"{sites} of {len(report.layers)} layers edited; "
        f"{size(report.bytes_linked)} linked, {size(report.bytes_written)} written"
    )
    if "flags" in report.details:
        flags = ", ".join(f"{server} {line}" for server, line in report.details["flags"].items())
        console.print(f"LoRA of rank {report.details['rank']}; serve it with: {flags}", markup=False)
    if not report.exact:
        from sea_bake.pages.edits import stand_in

        console.print(stand_in(report.details["approximation"]), markup=False)
    if report.left_out:
        console.print(f"left out (weights in other forms, or code): {', '.join(report.left_out)}", markup=False)
    call.go_on("sea-bake", "verify", output, "--base", call["model"])


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


@command("sea_bake.baking.unbake:unbake")
def unbake(call: Call) -> None:
    """Give back the base of an artefact.

    insert: the edit stands beside the base's own files, so the base is rebuilt from the artefact alone, bit for bit.
    fold: the edit is in the weights and cannot be taken out of them; the base itself is proven to be the right one (the
    tensors that differ are those that the fold lists, and no others) and given back. adapter: nothing to undo.

    Example:

      sea-bake unbake smollm2-truthful --base HuggingFaceTB/SmolLM2-135M-Instruct -o smollm2
    """
    console, output = call.console, call["output"]
    report = call.run()
    console.print(
        f"[bold]{escape(str(output))}[/]: the base '{escape(report.base)}' of the {report.how}; "
        f"{escape(report.proof)}; {size(report.bytes_linked)} linked, {size(report.bytes_written)} written"
    )
    if report.left_out:
        console.print(
            f"not there, since the artefact never held them (--base brings them back): {', '.join(report.left_out)}",
            markup=False,
        )
