"""The steps of a recipe in their order: what each reads, where it writes to, and the one function that does it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sea_bake.activations import Activations
from sea_bake.demonstrations import Demonstration, digest
from sea_bake.errors import RecipeError
from sea_bake.fitting import check_layers, fit, gather
from sea_bake.io.signatures import arguments
from sea_bake.model.source import ModelSource
from sea_bake.recipes.schema import ONLY_EDIT, Recipe
from sea_bake.recipes.sections import FIT, GATHER, LOAD, SECTIONS
from sea_bake.recipes.settings import call, function
from sea_bake.recipes.state import footprint


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: as in the recipe: "bake", "export.onnx"; of a fit "collect" and "fit", of a named one "fit.fair".
        settings: what changes its result.
        reads: what it reads beside other steps' outputs: name -> what that is known by.
        after: steps whose outputs it reads.
        output: the file or folder it writes.
        work: does it; is told whether it may replace its output, and returns what came of it.
        replaces: whether it writes to a place that may hold something else already.
    """

    name: str
    settings: dict[str, Any]
    reads: dict[str, Any]
    after: tuple[str, ...]
    output: Path
    work: Callable[[bool], Any] = field(repr=False)
    replaces: bool = True


def steps_of(recipe: Recipe) -> list[Step]:
    """The steps that a recipe asks for, after every check that needs neither a model nor a finished step.

    Raises:
        SeaBakeError: a child of it: no such model, unreadable demonstrations, a layer that the model does not have.
    """
    source = ModelSource.parse(recipe.model, recipe.revision)
    base = footprint(source.path, content=False) if source.path is not None else [source.name, source.revision]
    found: list[Step] = []
    for name, settings in recipe.fits.items():
        found += _fit_steps(recipe, name, settings, source, base)
    fitted = [step for step in found if step.name.startswith("fit")]
    edits = [step.output for step in fitted] or list(recipe.edits)
    activations = [step.output for step in found if step not in fitted]
    for section, settings in recipe.sections.items():
        after = [s for s in SECTIONS[section].after if s in recipe.sections]
        reads: dict[str, Any] = {"model": base}
        if section == "bake":
            after = [step.name for step in fitted]
            reads |= {f"edit {path.name}": footprint(path) for path in recipe.edits}
        elif "bake" not in recipe.sections:
            reads["artefact"] = footprint(recipe.output)
        found.append(_step(recipe, section, settings, source, reads, after, edits, activations))
    _check_places(recipe, found)
    return found


def _check_places(recipe: Recipe, steps: list[Step]) -> None:
    """Raises RecipeError where two steps would write to one place, or the work folder lies where one writes."""
    seen: dict[Path, str] = {}
    for step in steps:
        place = Path(os.path.normpath(step.output))
        if place in seen:
            raise RecipeError(f"{recipe.where}: {seen[place]} and {step.name} would both write to {place}")
        if Path(os.path.normpath(recipe.work)).is_relative_to(place):
            raise RecipeError(f"{recipe.where}: 'work' ({recipe.work}) lies where {step.name} writes its output")
        seen[place] = step.name


def _fit_steps(recipe: Recipe, name: str, settings: dict[str, Any], source: ModelSource, base: Any) -> list[Step]:
    """Activations of all layers, which take the time, and the edit, which is refitted from them in seconds."""
    suffix = "" if name == ONLY_EDIT else f".{name}"
    activations = recipe.work / f"{name}.activations.safetensors"
    edit = recipe.work / f"{name}.safetensors"
    triples = load_demonstrations(settings)
    check_layers(source, settings["layers"])
    gathering, fitting = (settings_for(verb, settings) for verb in (GATHER, FIT))
    gathering.pop("layers")

    def collected(overwrite: bool) -> Any:
        return gather(source, triples, **gathering).save(activations, overwrite=overwrite)

    def fitted(overwrite: bool) -> Any:
        made = fit(None, activations=Activations.load(activations), **fitting)
        made.save(edit, overwrite=overwrite)
        return {"ranks": made.ranks}

    reads = {"model": base, "demonstrations": digest(triples)}
    first = Step(f"collect{suffix}", gathering, reads, (), activations, collected)
    own = {key: value for key, value in fitting.items() if key not in gathering}
    return [first, Step(f"fit{suffix}", own, {}, (first.name,), edit, fitted)]


def _paths(value: Any) -> list[Path]:
    """Files and folders that a setting names."""
    values = value if isinstance(value, list) else [value]
    return [Path(v) for v in values if isinstance(v, str) and os.path.exists(v)]


def load_demonstrations(settings: dict[str, Any]) -> list[Demonstration]:
    """The demonstrations that the settings of a fit name."""
    found: list[Demonstration] = call(LOAD, settings_for(LOAD, settings, "seed"), settings["demonstrations"])
    return found


def settings_for(verb: str, settings: dict[str, Any], *without: str) -> dict[str, Any]:
    """Those of the settings that a function has arguments for."""
    known = set(arguments(verb)) - {"demonstrations", *without}
    return {key: value for key, value in settings.items() if key in known}


def _step(
    recipe: Recipe,
    section: str,
    settings: dict[str, Any],
    source: ModelSource,
    reads: dict[str, Any],
    after: list[str],
    edits: list[Path],
    activations: list[Path],
) -> Step:
    row = SECTIONS[section]
    settings = dict(settings)
    output = recipe.output
    if row.suffix is not None:
        output = Path(settings.pop("output", None) or recipe.output.with_name(recipe.output.name + row.suffix))
    elif row.inside is not None:
        output = recipe.output / row.inside
    parameters = arguments(row.verb)
    replaces = "overwrite" in parameters
    own: dict[str, Any] = {"model": source, "edit": edits, "output": output}
    read = [*_paths(settings.get("calibration"))]
    read += [path for key, setting in row.settings.items() if setting.is_path for path in _paths(settings.get(key))]
    reads = reads | {path.name: footprint(path, content=False) for path in read}
    if section == "report":
        own = {"model": source, "activations": activations, "write": True}
    elif section != "bake":  # what is found goes into the artefact too, for its model card
        own = {"base": source.path or source.name, "revision": source.revision, "output": output, "write": True}
    given = {key: value for key, value in own.items() if key in parameters and key not in settings}

    def work(overwrite: bool) -> Any:
        more = {"overwrite": overwrite} if replaces else {}
        artefact = () if section == "bake" else (recipe.output,)
        return function(row.verb)(*artefact, **given, **settings, **more)

    return Step(section, settings, reads, tuple(after), output, work, replaces)
