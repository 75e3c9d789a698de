"""sea-bake inspect, sea-bake report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import Overwrite, table


@command()
def inspect(
    call: Call,
    path: Annotated[Path, typer.Argument(help="An edit, or a folder that sea-bake bake wrote; here or on the Hub.")],
    plot: Annotated[
        Path | None, typer.Option(help="Draw explained variance and signature per layer into this PNG or PDF.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Show an edit, or a baked folder: layers, ranks, spectra, provenance, size, verification."""
    from sea_bake.artefact.opened import Artefact, may_be_artefact
    from sea_bake.edit import Edit
    from sea_bake.io.edits import edit_file
    from sea_bake.pages.artefacts import facts, sentences
    from sea_bake.pages.edits import in_words
    from sea_bake.pages.layers import by_layer

    console = call.console
    known: dict[str, Any] = {}
    closing: list[str] = []
    if not may_be_artefact(path):
        file = edit_file(path).path
        files, edits = [file], [Edit.load(file)]
    else:
        artefact = Artefact.open(path)
        files, edits, closing = artefact.edit_files, artefact.edits, sentences(artefact)
        known = facts(artefact)
    known["edits"] = [edit.describe() | {"bytes": file.stat().st_size} for edit, file in zip(edits, files)]
    if plot is not None:
        from sea_bake.pages.pictures import plot_edit

        for i, edit in enumerate(edits):
            plot_edit(edit, plot.with_stem(f"{plot.stem}-{i}") if i else plot, overwrite=overwrite)
    call.emit(known)
    for edit in edits:
        console.print("\n".join(in_words(edit)), markup=False)
        console.print(table(*by_layer(edit)))
        for key, value in edit.recipe.items():
            if key != "signatures":
                console.print(f"  {key}: {value}", style="dim", markup=False)
    for line in closing:
        console.print(line, markup=False)
    if plot is not None:
        console.print(f"drew {plot}", markup=False)


@command("sea_bake.reporting:report", layers=spelt("--layers"), activations=spelt("--activations", "-a"))
def report(call: Call) -> None:
    """Draw one HTML page about an edit: spectra, movement, gain and cost, verdict, answers.

    Without --model nothing is run, and it takes seconds: what is there is read, and a section whose data is not there
    says which command would supply it. With --model the base is loaded for what is lacking (about as long as the fit
    took). The page needs no network and no JavaScript. Examples:

      sea-bake report truthful.safetensors -a activations.safetensors -o truthful-report

      sea-bake report smollm2-truthful --model HuggingFaceTB/SmolLM2-135M-Instruct --write
    """
    console, output = call.console, call["output"]
    made = call.run()
    for path in made.written:
        console.print(f"wrote {path}", markup=False)
    if output is not None:
        console.print(f"look at it: {output / 'report.html'}", markup=False)
