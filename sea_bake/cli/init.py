"""sea-bake init"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sea_bake.cli.printing import Json, Overwrite, Quiet, emit, prepare


def init(
    file: Annotated[Path, typer.Argument(help="Recipe to write.")] = Path("sea_bake.yaml"),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="The base: folder, .gguf file or Hub id. Default: HuggingFaceTB/SmolLM2-135M-Instruct.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Folder of the edited model. Default: the base's name and -sea."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a commented starter recipe: every key, its default and what it is for. It runs as it is.

    sea-bake init

    sea-bake init fair.yaml --model ./my-model --output my-model-fair
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake.recipes.starter import MODEL, write_starter

    written = write_starter(file, model=model or MODEL, output=output, overwrite=overwrite)
    emit({"recipe": str(written)}, as_json=as_json)
    console.print(f"wrote {written}. Next: sea-bake run {written} --dry-run", markup=False, soft_wrap=True)
