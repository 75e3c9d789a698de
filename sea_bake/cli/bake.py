"""sea-bake bake"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sea_bake.cli.printing import Json, Overwrite, Quiet, Revision, emit, prepare, size


def bake(
    model: Annotated[str, typer.Argument(help="The base: folder (or PEFT adapter that names it), .gguf file, Hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    edits: Annotated[
        list[Path] | None, typer.Argument(help="Edit file from sea-bake fit; several act in the order given.")
    ] = None,
    more: Annotated[list[Path] | None, typer.Option("--edit", "-e", help="The same, as an option.")] = None,
    how: Annotated[
        str,
        typer.Option(
            help="auto: fold where that is exact, else insert. fold: into the output projections, a plain checkpoint. "
            "adapter: the fold as a PEFT LoRA. insert: an SEALayer behind each edited module; exact for every edit, "
            "loads with custom code. (sea-bake plan says which are exact, and why.)"
        ),
    ] = "auto",
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy unedited shards instead of hard-linking them to the base's files.")
    ] = False,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Fold also where that is not exact, as the best linear stand-in. Loads the model, runs calibration "
            "texts, and states the error; verify then says approximate, never equal.",
        ),
    ] = False,
    calibration: Annotated[
        str | None, typer.Option(help="For --approximate: demonstrations to run. Default: the built-in ones.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="For --approximate: rank per layer. Default: twice the edit's own, at least 8.")
    ] = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bake an edit into a checkpoint, without loading the model (but for --approximate).

    Unedited shards are hard-linked where base and output lie on one file system (do not write into them: they are the
    base's own files), and copied elsewhere. Example:

      sea-bake bake HuggingFaceTB/SmolLM2-135M-Instruct truthful.safetensors -o smollm2-truthful
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake.baking import bake as run

    given = [*(edits or []), *(more or [])]
    report = run(
        model,
        given,
        output,
        how=how,
        revision=revision,
        overwrite=overwrite,
        copy=copy,
        approximate=approximate,
        calibration=calibration,
        rank=rank,
    )
    sites = " and ".join(dict.fromkeys(report.sites))
    emit(report.to_json(), as_json=as_json)
    console.print(
        f"[bold]{escape(str(output))}[/]: {report.how} ({escape(report.why)}); {report.architecture}, "
        f"{sites} of {len(report.layers)} layers edited; "
        f"{size(report.bytes_linked)} linked, {size(report.bytes_written)} written"
    )
    if "flags" in report.details:
        flags = ", ".join(f"{server} {line}" for server, line in report.details["flags"].items())
        console.print(f"LoRA of rank {report.details['rank']}; serve it with: {flags}", markup=False)
    if not report.exact:
        from sea_bake.cli.inspect import approximation_summary

        console.print(approximation_summary(report.details["approximation"]), markup=False)
    if report.left_out:
        console.print(
            f"left out (unedited weights in other forms, or code): {', '.join(report.left_out)}", markup=False
        )
    console.print(f"Next: sea-bake verify {output} --base {model}", markup=False)
