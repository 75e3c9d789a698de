"""sea-bake bake"""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import MoreEdits
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
