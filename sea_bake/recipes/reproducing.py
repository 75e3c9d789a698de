"""Fit a published model's edits again, from its recipe, and hold them against the published ones."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact.names import EDIT, EXPORT, RECIPE, RECORD
from sea_bake.demonstrations import Demonstration, digest
from sea_bake.demonstrations.holding import hold_back
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, DemonstrationError, EditError, RecipeError, WrongModelError
from sea_bake.fitting import fit
from sea_bake.io.edits import EDIT_FILE
from sea_bake.io.files import file_digest
from sea_bake.io.hub import snapshot
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.model.source import ModelSource
from sea_bake.publishing.recipe import describe
from sea_bake.publishing.tolerance import Tolerance
from sea_bake.recipes.comparing import LayerComparison, compare
from sea_bake.recipes.reading import read_yaml
from sea_bake.recipes.schema import read
from sea_bake.recipes.sections import FIT
from sea_bake.recipes.steps import load_demonstrations, prompt_format_of, settings_for

_FILES = [RECIPE, RECORD, EXPORT, EDIT.format("*"), EDIT_FILE]  # nothing else is fetched: no weights, no code


@dataclass(frozen=True)
class EditReproduction:
    """One edit, fitted again.

    Attributes:
        name: as the recipe calls it.
        tolerance: what the recipe states.
        layers: every projection, or part of a map, of every layer, compared.
        differences: settings that the published edit and the recipe do not share: it cannot be its recipe then.
        versions: package -> (of the published fit, here), of those that differ.
        same_texts: whether the model's own (greedy) neutral texts came out the same; None when that is not recorded.
    """

    name: str
    tolerance: Tolerance
    layers: list[LayerComparison]
    differences: list[str] = field(default_factory=list)
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    same_texts: bool | None = None

    @property
    def reproduced(self) -> bool:
        return not self.differences and all(layer.same for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reproduced": self.reproduced, "layers": [layer.to_json() for layer in self.layers]}


@dataclass(frozen=True)
class Reproduction:
    """What ``reproduce`` found. ``reproduced`` is the verdict, over all edits."""

    source: str
    base: str
    edits: list[EditReproduction]

    @property
    def reproduced(self) -> bool:
        return all(edit.reproduced for edit in self.edits)

    def to_json(self) -> dict[str, Any]:
        edits = [edit.to_json() for edit in self.edits]
        return {"source": self.source, "base": self.base, "reproduced": self.reproduced, "edits": edits}


def reproduce(
    published: str | Path,
    *,
    revision: str | None = None,
    model: str | Path | None = None,
    demonstrations: str | Path | Sequence[str | Path] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
) -> Reproduction:
    """Refit the edits of a published model from its recipe, and compare them by the tolerance it states.

    The base and the demonstrations are checked against the recipe's digests before anything is run on them.

    Args:
        published: Hub id of a published model, or a folder with sea_bake.yaml or an artefact of ours. From the Hub,
            only the recipe and the edits are fetched.
        revision: branch, tag or commit of the published model.
        model: where the base is. Default: beside the folder, or on the Hub, as recorded.
        demonstrations: where the demonstrations are; of several edits one for each. Default: as recorded.
        batch_size: another than the recipe's, where that does not fit this machine: changes roundings only.
        device: another than the recipe's (cpu, cuda, cuda:1): changes roundings only.

    Raises:
        RecipeError: no recipe there, a damaged one, or one of edits that were imported and cannot be refitted.
        EditError: an edit is not the file that the recipe names by its digest.
        WrongModelError: another base; the message says where it differs.
        DemonstrationError: other demonstrations, with both digests.
    """
    folder, recipe = _published(published, revision)
    provenance = recipe.pop("provenance", None)
    records = provenance.get("edits") if isinstance(provenance, dict) else None
    fits = recipe.get("fit")
    if not isinstance(records, list) or not records or not all(isinstance(r, dict) for r in records):
        raise RecipeError(f"{published}: its recipe has no provenance of edits, so there is nothing to compare with")
    if not isinstance(fits, list) or len(fits) != len(records) or not all(isinstance(f, dict) for f in fits):
        raise RecipeError(f"{published}: its edits were not fitted by its recipe (imported ones), so not again either")
    edits = [_edit(folder, record) for record in records]
    stated = provenance.get("tolerance")
    tolerances = [
        Tolerance.from_json(stated if isinstance(stated, dict) else {}, str(edit.recipe.get("dtype"))) for edit in edits
    ]
    _place(fits, demonstrations, {"batch_size": batch_size, "device": device})
    checked = read({"model": recipe.get("model"), "output": folder.name, "fit": fits}, folder=folder).fits
    triples = [_demonstrations(settings, record) for settings, record in zip(checked.values(), records)]
    base = _base(folder, recipe, model)
    found = [
        _compared(name, edit, _refit(edit, base, texts, settings), tolerance)
        for (name, settings), edit, texts, tolerance in zip(checked.items(), edits, triples, tolerances)
    ]
    return Reproduction(str(published) if not Path(published).exists() else folder.name, base.name, found)


def _place(fits: list[dict[str, Any]], demonstrations: Any, changes: dict[str, Any]) -> None:
    """Write into the fits where things are on this machine."""
    several = isinstance(demonstrations, Sequence) and not isinstance(demonstrations, str)
    sources = list(demonstrations) if several else [demonstrations] * len(fits)
    if len(sources) != len(fits):
        raise RecipeError(f"{len(sources)} sources of demonstrations for {len(fits)} edits: give one, or one for each")
    for i, (entry, source) in enumerate(zip(fits, sources)):
        if source is not None:
            entry["demonstrations"] = str(Path(source).absolute()) if Path(source).exists() else str(source)
        elif entry.get("demonstrations") is None:
            raise RecipeError(
                f"the recipe does not say where the demonstrations of edit {i} are from (they were given in Python): "
                "say where they are with --demonstrations"
            )
        entry |= {key: value for key, value in changes.items() if value is not None}


def _published(published: str | Path, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """The folder with recipe and edits, and the recipe."""
    folder = Path(os.path.expanduser(published)).absolute()
    if not os.path.exists(folder):
        try:
            folder = snapshot(str(published), revision, only=_FILES)
        except CheckpointError as error:
            raise RecipeError(str(error)) from error
    if (folder / RECIPE).is_file():
        return folder, read_yaml(folder / RECIPE)[0]
    try:
        return folder, describe(folder)
    except CheckpointError as error:
        raise RecipeError(f"{published} has no {RECIPE}, and is no artefact of sea_bake either ({error})") from error


def _edit(folder: Path, record: dict[str, Any]) -> Edit:
    """A published edit, which has to lie in the folder and to be the one of the recipe."""
    name, wanted = record.get("file"), record.get("sha256")
    path = folder / str(name)
    if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute() or "\0" in name:
        raise RecipeError(f"the recipe names an edit outside of its folder: {name!r}")
    if not path.is_file():
        raise EditError(f"the recipe names an edit that is not there: {path}")
    found = file_digest(path)
    if found != wanted:
        raise EditError(f"{path} is not the edit that the recipe was written for: SHA-256 {found}, not {wanted}")
    return Edit.load(path)


def _demonstrations(settings: dict[str, Any], record: dict[str, Any]) -> list[Demonstration]:
    try:
        found = load_demonstrations(settings)
    except DemonstrationError as error:
        raise DemonstrationError(f"{error} If they are elsewhere, say where with --demonstrations") from error
    told = record.get("demonstrations")
    told = told if isinstance(told, dict) else {}
    wanted = told.get("sha256")
    fitted_on = hold_back(found, settings["held_back"], settings["seed"]).fit
    if digest(fitted_on) != wanted:
        raise DemonstrationError(
            f"{settings['demonstrations']} holds other demonstrations than the edit was fitted on: SHA-256 of the "
            f"texts is {digest(fitted_on)} ({len(fitted_on)} triples), and the recipe's is {wanted} "
            f"({told.get('count')} triples). Say where they are with --demonstrations"
        )
    return found


def _base(folder: Path, recipe: dict[str, Any], model: str | Path | None) -> ModelSource:
    name = str(recipe.get("model"))
    if model is not None:
        return ModelSource.parse(model)
    beside = folder.parent / name
    if Path(name).name == name and beside.exists():
        return ModelSource.parse(beside)
    try:
        return ModelSource.parse(name, recipe.get("revision")).on_disk()
    except CheckpointError as error:
        raise CheckpointError(
            f"the base '{name}' is neither beside the artefact nor on the Hub: say where it is with --model ({error})"
        ) from error


def _refit(edit: Edit, source: ModelSource, triples: list[Demonstration], settings: dict[str, Any]) -> Edit:
    living = load_model(source, dtype=settings["dtype"], device=settings["device"])
    try:
        edit.check(living)
    except WrongModelError as error:
        raise WrongModelError(f"{source.name} is not the base of the recipe: {error}") from error
    given: dict[str, Any] = {"tokenizer": load_tokenizer(source), "source": source}
    own = settings_for(FIT, settings) | {"budget": None, "measure": False}
    return fit(living, triples, prompt_format=_prompt_format(edit, settings), **given, **own)


def _prompt_format(edit: Edit, settings: dict[str, Any]) -> PromptFormat:
    """As the recipe says; what an edit of older versions does not record was not done then."""
    form = prompt_format_of(settings)
    recorded = PromptFormat.from_json(edit.recipe)
    return form if "close_reasoning" in edit.recipe else replace(form, close_reasoning=recorded.close_reasoning)


def _compared(name: str, edit: Edit, again: Edit, tolerance: Tolerance) -> EditReproduction:
    texts = [e.recipe.get("neutral_sha256") for e in (edit, again)]
    return EditReproduction(
        name,
        tolerance,
        compare(edit, again, tolerance),
        [
            key
            for key in ("method", "site", "merge", "feature", "parts", "alpha")
            if getattr(edit, key) != getattr(again, key)
        ],
        _version_changes(edit.recipe.get("versions")),
        None if texts[0] is None else texts[0] == texts[1],
    )


def _version_changes(recorded: Any) -> dict[str, tuple[str, str]]:
    changes = {}
    for package, was in (recorded if isinstance(recorded, dict) else {}).items():
        try:
            here = platform.python_version() if package == "python" else version(package.replace("_", "-"))
        except PackageNotFoundError:
            here = "not installed"
        if str(was) != here:
            changes[str(package)] = (str(was), here)
    return changes
