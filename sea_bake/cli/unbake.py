"""sea-bake unbake"""

from __future__ import annotations

from rich.markup import escape

from sea_bake.cli.options import Call, command
from sea_bake.pages.text import size


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
