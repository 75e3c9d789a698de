"""One page per edit, for who has to decide about it: what it does to activations, gains, costs (extra ``report``)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sea_bake.activations import Activations
from sea_bake.artefact import Artefact, is_artefact
from sea_bake.artefact.output import check_folder, staged
from sea_bake.artefact.page import PageRecord, write_page
from sea_bake.artefact.trusted import evaluation_digest
from sea_bake.demonstrations import Loaded
from sea_bake.edit import Edit
from sea_bake.errors import DemonstrationError, OutputError, SettingError, need
from sea_bake.evaluation import figures as evaluation_figures
from sea_bake.io.addresses import https_address
from sea_bake.io.apart import check_apart
from sea_bake.methods.layers import select_layers
from sea_bake.model.source import ModelSource
from sea_bake.pages.pictures import Picture
from sea_bake.reporting import figures
from sea_bake.reporting.findings import Findings
from sea_bake.reporting.living import Living, demonstrations_of
from sea_bake.reporting.movement import belonging
from sea_bake.reporting.page import page
from sea_bake.reporting.projection import check_method
from sea_bake.reporting.subject import Subject

__all__ = ["ReportPage", "report"]

_HTML = "report.html"


@dataclass(frozen=True)
class ReportPage:
    """What a report shows.

    Attributes:
        name: of the edit file or artefact.
        html: the page.
        pictures: its figures.
        numbers: what is behind it, as ``sea/report.json`` holds it.
        written: the files and folders that it was written to.
    """

    name: str
    html: str
    pictures: list[Picture]
    numbers: PageRecord
    written: list[Path]

    def to_json(self) -> dict[str, Any]:
        return {**self.numbers.to_json(), "written": [str(path) for path in self.written]}


def report(
    subject: str | Path | Artefact,
    *,
    activations: Activations | str | Path | Sequence[Activations | str | Path] = (),
    evaluation: str | Path | None = None,
    demonstrations: str | Path | None = None,
    model: str | Path | ModelSource | None = None,
    layers: str | Sequence[int] | None = None,
    projection: str = "pca",
    dtype: str = "auto",
    device: str | None = None,
    web: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    write: bool = False,
) -> ReportPage:
    """One self-contained HTML page about an edit, or about an artefact and every edit in it.

    Everything is read, and nothing is run, unless a ``model`` is given: a section whose data is not there says what
    would supply it.

    Args:
        subject: an edit file, or a folder written by sea-bake bake or sea-bake export.
        activations: what sea-bake fit --save-activations wrote, of the edit's base and site.
        evaluation: what sea-bake eval -o wrote (folder or JSON). Default: the one inside the artefact.
        demonstrations: what the edit was fitted on, for use with ``model``. Default: built-in.
        model: the base: run it for what is missing (activations of the demonstrations, answers).
        layers: edited layers to show in the plane: 3,5,7 or 10-12. Default: first, middle and last.
        projection: "pca", or "tsne" (needs scikit-learn).
        dtype, device: see :func:`sea_bake.model.loading.load_model`.
        web: https address of a page by sea-bake serve-web, for a link to it: there readers ask both models themselves.
        output: folder for report.html, figures/*.png and the numbers as JSON.
        overwrite: replace an earlier output.
        write: write sea/report.html into the artefact: sea-bake publish links it from the model card.

    Raises:
        MissingExtraError: matplotlib, or scikit-learn for t-SNE, is not installed.
        EditError, CheckpointError: no edit and no artefact of ours, or a damaged one.
        ActivationError: activations of another base or site, or that lack an edited layer.
        DemonstrationError: demonstrations that cannot be read, or that no edit was fitted on.
        EvaluationError: an evaluation that is garbled, or of something else.
        SettingError: an unknown projection, layers that are not edited, nowhere to write to, no https address.
        OutputError: the output exists.
    """
    need("report", "A report", "matplotlib.figure")
    check_method(projection)
    found = Subject.open(subject)
    folder = None if output is None else _check_output(output, overwrite=overwrite)
    site = None if web is None else https_address(web, "--web", host=True)
    given = [activations] if isinstance(activations, Activations | str | Path) else list(activations)
    if folder is not None:
        check_apart(folder, [subject, evaluation, demonstrations, model, *given])
    if folder is None and not write:
        raise SettingError("a report needs somewhere to go: name a folder (-o REPORT), or --write it into the artefact")
    if write and found.artefact is None:
        raise SettingError(
            f"{subject} is an edit and no artefact: a report cannot be written into it, so use -o REPORT"
        )
    told = found.evaluation(evaluation)
    vectors = belonging(found.edits, given)
    chosen = [_chosen(edit, layers) for edit in found.edits]
    if layers is not None and not any(chosen):
        raise SettingError(f"layers {layers!r} are not among those edited, so there is nothing to show of them")
    samples = told.samples if told else []
    lacking = _lacking(found.edits, vectors, demonstrations, model)
    if model is not None and (lacking or not samples):
        living = Living(model, found.edits, dtype=dtype, device=device)
        for i, known in lacking.items():
            vectors[i] = living.activations(found.edits[i], known)
        samples = samples or living.samples()
    findings = [
        Findings.of(edit, a, some, projection) for edit, a, some in zip(found.edits, vectors, chosen, strict=True)
    ]
    pictures = [_pictures(one, f"edit-{i + 1}-" if len(findings) > 1 else "") for i, one in enumerate(findings)]
    effects = evaluation_figures.draw(told) if told else []
    html = page(found, findings, pictures, told, effects, samples, site)
    sealed = found.artefact.seal() if found.artefact and write else None
    numbers = PageRecord(
        sea_bake=version("sea-bake"),
        name=found.name,
        verdict=found.verdict,
        edits=[one.to_json() for one in findings],
        evaluation=None if told is None else [row.to_json() for row in told.headlines],
        samples=samples,
        page_sha256=hashlib.sha256(html.encode()).hexdigest(),
    )
    made = ReportPage(found.name, html, [*effects, *itertools.chain(*pictures)], numbers, [])
    return replace(made, written=_written(made, found, folder, overwrite=overwrite, sealed=sealed))


def _check_output(output: str | Path, *, overwrite: bool) -> Path:
    path = check_folder(output, overwrite=overwrite)
    if is_artefact(path):
        raise OutputError(f"{path} is an artefact: choose another output, or --write the report into it")
    return path


def _lacking(
    edits: list[Edit],
    vectors: list[Activations | None],
    source: str | Path | None,
    model: str | Path | ModelSource | None,
) -> dict[int, Loaded]:
    """Which edits have no activations yet, and the demonstrations to collect them with, where these are known."""
    if source is not None and model is None:
        raise SettingError("demonstrations are collected on the base: name it (--model), or give saved activations")
    found = {i: demonstrations_of(edit, source) for i, edit in enumerate(edits)}
    if source is not None and not any(found.values()):
        names = {str((edit.recipe.get("demonstrations_from") or {}).get("source")) for edit in edits}
        raise DemonstrationError(
            f"{source}: no edit here was fitted on these (but on {', '.join(sorted(names))}): give the very file"
        )
    return {i: known for i, known in found.items() if known is not None and vectors[i] is None}


def _chosen(edit: Edit, layers: str | Sequence[int] | None) -> list[int]:
    """The edited layers to show in the plane."""
    if layers is None:
        return sorted({edit.layers[0], edit.layers[len(edit.layers) // 2], edit.layers[-1]})
    signatures = {int(layer): value for layer, value in edit.recipe.get("signatures", {}).items()}
    wanted = select_layers(layers, edit.base.num_layers, signatures)
    return [layer for layer in wanted if layer in edit.maps]


def _pictures(found: Findings, stem: str) -> list[Picture]:
    drawn = [figures.spectra(found.edit)] if found.explained else []
    drawn.append(figures.layers(found.edit))
    drawn += [figures.moves(found.edit, found.moved)] if found.moved else []
    drawn += [figures.plane(found.projected)] if found.projected else []
    return [replace(picture, name=stem + picture.name) for picture in drawn]


def _written(
    made: ReportPage, subject: Subject, output: Path | None, *, overwrite: bool, sealed: dict[str, str] | None
) -> list[Path]:
    """The folder whole or not at all; inside an artefact, the page and what speaks for it."""
    found: list[Path] = []
    if output is not None:
        with staged(output, overwrite=overwrite) as stage:
            (stage / _HTML).write_text(made.html, "utf-8")
            (stage / "figures").mkdir()
            for picture in made.pictures:
                (stage / "figures" / f"{picture.name}.png").write_bytes(picture.png())
            made.numbers.write(stage)
        found.append(output)
    if sealed is not None and subject.artefact is not None:
        digest = evaluation_digest(subject.artefact.folder)
        numbers = replace(made.numbers, files=sealed, evaluation_sha256=digest)
        found.append(write_page(subject.artefact.own_folder, made.html, numbers))
    return found
