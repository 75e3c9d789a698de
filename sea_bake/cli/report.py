"""sea-bake report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sea_bake.cli.printing import Device, Dtype, Json, Overwrite, Quiet, emit, prepare


def report(
    subject: Annotated[
        Path, typer.Argument(help="An edit file, or a folder written by sea-bake bake or sea-bake export.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for report.html, figures/*.png and the numbers as JSON."),
    ] = None,
    activations: Annotated[
        list[Path] | None,
        typer.Option(
            "--activations", "-a", help="What fit --save-activations wrote, of the edit's base and site (repeatable)."
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="What sea-bake eval -o wrote (folder or JSON). Default: the one inside the artefact."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The base: run it for what is lacking (activations of the demonstrations, answers)."),
    ] = None,
    demonstrations: Annotated[
        str | None,
        typer.Option("--demonstrations", "-d", help="With --model: what the edit was fitted on. Default: built-in."),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Edited layers to show in the plane: 3,5,7 or 10-12. Default: first, middle and last."),
    ] = None,
    projection: Annotated[str, typer.Option(help="pca, or tsne (needs scikit-learn).")] = "pca",
    write: Annotated[
        bool, typer.Option("--write", help="Leave sea/report.html in the artefact: publish links it from the card.")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw one HTML page about an edit: spectra, movement, gain and cost, verdict, answers.

    Without --model nothing is run, and it takes seconds: what is there is read, and a section whose data is not there
    says which command would supply it. With --model the base is loaded for what is lacking (about as long as the fit
    took). The page needs no network and no JavaScript. Examples:

      sea-bake report truthful.safetensors -a activations.safetensors -o truthful-report

      sea-bake report smollm2-truthful --model HuggingFaceTB/SmolLM2-135M-Instruct --write
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake import reporting

    made = reporting.report(
        subject,
        activations=activations or (),
        evaluation=evaluation,
        demonstrations=demonstrations,
        model=model,
        layers=layer,
        projection=projection,
        dtype=dtype,
        device=device,
        output=output,
        overwrite=overwrite,
        write=write,
    )
    emit(made.to_json(), as_json=as_json)
    for path in made.written:
        console.print(f"wrote {path}", markup=False)
    if output is not None:
        console.print(f"look at it: {output / 'report.html'}", markup=False)
