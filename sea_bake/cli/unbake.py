"""sea-bake unbake"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sea_bake.cli.printing import Json, Overwrite, Quiet, Revision, emit, prepare, size


def unbake(
    artefact: Annotated[Path, typer.Argument(help="Folder written by sea-bake bake.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the base to.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="The base as it was given to bake: folder, .gguf file, adapter or Hub id. Of an insert, every file is "
            "then compared with it (SHA-256). Of a fold, it is needed. Default for a fold: what the artefact records "
            "(Hub id, or the folder beside it)."
        ),
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy weight files instead of hard-linking them.")] = False,
    revision: Revision = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give back the base of an artefact.

    insert: the edit stands beside the base's own files, so the base is rebuilt from the artefact alone, bit for bit.
    fold: the edit is in the weights and cannot be taken out of them; the base itself is proven to be the right one (the
    tensors that differ are those that the fold lists, and no others) and given back. adapter: nothing to undo.

    Example:

      sea-bake unbake smollm2-truthful --base HuggingFaceTB/SmolLM2-135M-Instruct -o smollm2
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake.baking import unbake as run

    report = run(artefact, output, base=base, revision=revision, overwrite=overwrite, copy=copy)
    emit(report.to_json(), as_json=as_json)
    console.print(
        f"[bold]{escape(str(output))}[/]: the base '{escape(report.base)}' of the {report.how}; "
        f"{escape(report.proof)}; {size(report.bytes_linked)} linked, {size(report.bytes_written)} written"
    )
    if report.left_out:
        console.print(
            f"not there, since the artefact never held them (--base brings them back): {', '.join(report.left_out)}",
            markup=False,
        )
