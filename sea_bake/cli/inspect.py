"""sea-bake inspect"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sea_bake.cli.printing import Json, Overwrite, Quiet, emit, prepare, size

if TYPE_CHECKING:
    from rich.table import Table

    from sea_bake.artefact import Artefact
    from sea_bake.edit import Edit


def inspect(
    path: Annotated[Path, typer.Argument(help="An edit file, or a folder written by sea-bake bake.")],
    plot: Annotated[
        Path | None, typer.Option(help="Draw explained variance and signature per layer into this PNG or PDF.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show an edit, or a baked folder: layers, ranks, spectra, provenance, size, verification."""
    console = prepare(as_json=as_json, quiet=quiet)
    import os

    from sea_bake.artefact.opened import Artefact, may_be_artefact
    from sea_bake.edit import Edit
    from sea_bake.pages.edits import sentence

    facts: dict[str, Any] = {}
    closing: list[str] = []
    if not may_be_artefact(path):
        files, edits = [Path(os.path.expanduser(path))], [Edit.load(path)]
    else:
        artefact = Artefact.open(path)
        files, edits, closing = artefact.edit_files, artefact.edits, _verdict(artefact)
        facts = _facts(artefact)
    facts["edits"] = [describe_edit(edit) | {"bytes": file.stat().st_size} for edit, file in zip(edits, files)]
    if plot is not None:
        from sea_bake.pages.pictures import plot_edit

        for i, edit in enumerate(edits):
            plot_edit(edit, plot.with_stem(f"{plot.stem}-{i}") if i else plot, overwrite=overwrite)
    emit(facts, as_json=as_json)
    for edit in edits:
        console.print(sentence(edit), markup=False)
        console.print(layer_table(edit))
        for key, value in edit.recipe.items():
            if key != "signatures":
                console.print(f"  {key}: {value}", style="dim", markup=False)
    for line in closing:
        console.print(line, markup=False)
    if plot is not None:
        console.print(f"drew {plot}", markup=False)


def _facts(artefact: Artefact) -> dict[str, Any]:
    """Its record, size and verification as plain data."""
    from sea_bake.artefact.record import portable

    found = artefact.last_verification
    record = portable(artefact.record.to_json())
    verification = None if found is None else found.to_json()
    kind = "export" if artefact.kind == "onnx" else "bake"
    return {kind: record, "bytes": artefact.size, "verification": verification, "verdict": artefact.verdict}


def _verdict(artefact: Artefact) -> list[str]:
    """What an artefact is, and whether it has been verified."""
    bake, found = artefact.bake, artefact.last_verification
    approximation = bake.approximation if bake else None
    good = "verified" if approximation is None else "approximate, as promised"
    verdict = "not verified yet" if found is None else "NOT verified" if not found.passed else good
    changed = f", but {artefact.doubt}" if found is not None and found.passed and artefact.doubt else ""
    shown = [] if approximation is None else [approximation_summary(approximation)]
    return [*shown, f"{artefact.folder}: {artefact.record.architecture}, {size(artefact.size)}, {verdict}{changed}"]


def describe_edit(edit: Edit) -> dict[str, Any]:
    """An edit as plain data: everything but the factors themselves."""
    return {
        "base": edit.base.name,
        "revision": edit.base.revision,
        "family": edit.base.model_type,
        "site": edit.site.value,
        "merge": edit.merge,
        "feature": edit.feature,
        "parts": edit.parts,
        "alpha": edit.alpha,
        "layers": list(edit.layers),
        "ranks": {str(layer): list(ranks) for layer, ranks in edit.ranks.items()},
        "spectra": {
            str(layer): {
                "positive": edit.projectors[layer].positive_spectrum.tolist(),
                "negative": edit.projectors[layer].negative_spectrum.tolist(),
            }
            for layer in edit.layers
        },
        "recipe": edit.recipe,
    }


def approximation_summary(approximation: dict[str, Any]) -> str:
    """The error of an approximate fold, on texts held out from it."""
    shares, end = [layer["share"] for layer in approximation["layers"]], approximation["end_to_end"]
    return (
        f"approximate: a linear stand-in for the edit, not the edit. On held-out texts it explains "
        f"{min(shares):.1%} to {max(shares):.1%} of the edit's change per layer; mean KL from the edit {end['kl']:.2e} "
        f"per token (the base: {end['base_kl']:.2e}), the same most likely token at {end['top1']:.1%} "
        f"(the base: {end['base_top1']:.1%})"
    )


def layer_table(edit: Edit) -> Table:
    """Ranks, leading singular values, explained variance and signature of each layer."""
    from rich.table import Table

    table = Table()
    for name in ("layer", "k+", "k-", "σ+ (leading)", "σ- (leading)", "signature"):
        table.add_column(name, justify="right")
    signatures = edit.recipe.get("signatures", {})
    for layer in edit.layers:
        p = edit.projectors[layer]
        leading = (" ".join(f"{x:.3g}" for x in s[:3].tolist()) for s in (p.positive_spectrum, p.negative_spectrum))
        mark = signatures.get(str(layer))
        table.add_row(str(layer), *map(str, p.ranks), *leading, "" if mark is None else f"{mark:.4g}")
    return table
