"""The steps of a recipe in their order: what each reads, where it writes to, and the one function that does it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sea_bake.activations import Activations
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.demonstrations import Demonstration, digest
from sea_bake.demonstrations.holding import hold_back
from sea_bake.errors import RecipeError
from sea_bake.fitting import fit, gather
from sea_bake.io.edits import edit_file
from sea_bake.io.signatures import arguments
from sea_bake.io.staging import check_output
from sea_bake.methods.layers import check_layers
from sea_bake.methods.table import check_count, gathered, resolved
from sea_bake.model.source import ModelSource
from sea_bake.recipes.schema import ONLY_EDIT, Recipe
from sea_bake.recipes.sections import FIT, FORMAT, GATHER, LOAD, SECTIONS
from sea_bake.recipes.settings import call, function, is_path
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
    pairs = [_fit_steps(recipe, name, settings, source, base) for name, settings in recipe.fits.items()]
    found = [step for pair in pairs for step in pair]
    found += [_section_step(recipe, section, source, base, pairs) for section in recipe.sections]
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


def _fit_steps(
    recipe: Recipe, name: str, settings: dict[str, Any], source: ModelSource, base: Any
) -> tuple[Step, Step]:
    """Activations of all layers, which take the time, and the edit, which is refitted from them in seconds."""
    suffix = "" if name == ONLY_EDIT else f".{name}"
    activations = recipe.work / f"{name}.activations.safetensors"
    edit = recipe.work / f"{name}.safetensors"
    triples = load_demonstrations(settings)
    share = settings["held_back"]
    apart = hold_back(triples, share, settings["seed"])
    check_count(settings["method"], len(apart.fit))
    reading, alpha = gathered(settings), settings["alpha"]
    settings = settings | resolved(settings) | {"alpha": alpha}  # None: it is found on the model
    check_layers(source, settings["layers"], settings["site"])
    gathering, fitting = (settings_for(verb, settings) for verb in (GATHER, FIT))
    gathering |= {"site": reading["site"].value, "neutral": reading["neutral"]}
    gathering.pop("layers")
    fitting["site"] = settings["site"].value
    form = prompt_format_of(settings)

    def collected(overwrite: bool) -> Any:
        place = check_output(activations, overwrite=overwrite, folder=False)
        found = gather(source, apart.fit, **gathering, prompt_format=form)
        return replace(found, recipe=found.recipe | apart.record).save(place, overwrite=overwrite)

    def fitted(overwrite: bool) -> Any:
        made = fit(source, triples, activations=Activations.load(activations), **fitting)
        made.save(edit, overwrite=overwrite)
        measured = made.measured.to_json() if made.measured else None
        return {"ranks": made.ranks, "alpha": made.alpha, "measured": measured}

    reads = {"model": base, "demonstrations": digest(triples)}
    first = Step(
        f"collect{suffix}", gathering | {"held_back": share} | form.to_json(), reads, (), activations, collected
    )
    own = {key: value for key, value in fitting.items() if key not in gathering or gathering[key] != value}
    return first, Step(f"fit{suffix}", own, {}, (first.name,), edit, fitted)


def _paths(value: Any) -> list[Path]:
    """Files and folders that a setting names."""
    values = value if isinstance(value, list) else [value]
    return [Path(v) for v in values if isinstance(v, str) and os.path.exists(v)]


def load_demonstrations(settings: dict[str, Any]) -> list[Demonstration]:
    """The demonstrations that the settings of a fit name."""
    own = {key: value for key, value in settings.items() if key != "seed"}  # which is that of the fit
    return call(LOAD, own, settings["demonstrations"])


def prompt_format_of(settings: dict[str, Any]) -> PromptFormat:
    """How the settings of a fit say that prompts are rendered."""
    found: PromptFormat = call(FORMAT, settings)
    return found


def settings_for(verb: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that a function has arguments for."""
    known = set(arguments(verb)) - {"demonstrations"}
    return {key: value for key, value in settings.items() if key in known}


def _section_step(recipe: Recipe, section: str, source: ModelSource, base: Any, pairs: list[tuple[Step, Step]]) -> Step:
    """The step of a section behind the ``pairs`` of steps that fit the edits."""
    row, settings, output = SECTIONS[section], dict(recipe.sections[section]), recipe.output
    if row.suffix is not None:
        output = Path(settings.pop("output", None) or recipe.output.with_name(recipe.output.name + row.suffix))
    elif row.inside is not None:
        output = recipe.output / row.inside
    parameters = arguments(row.verb)
    replaces = "overwrite" in parameters
    files = [path for key, one in row.settings.items() if is_path(one.hint) for path in _paths(settings.get(key))]
    reads = {"model": base} | {path.name: footprint(path, content=False) for path in files}
    after = [s for s in row.after if s in recipe.sections]
    # What is found goes into the artefact too, for its model card.
    own: dict[str, Any] = {"base": source.path or source.name, "revision": source.revision, "output": output}
    own["write"] = True
    if section == "bake":
        after = [second.name for _, second in pairs]
        ready = [edit_file(name) for name in recipe.edits]  # one on the Hub at its commit, which is part of the state
        reads |= {f"edit {edit.origin or edit.path.name}": edit.origin or footprint(edit.path) for edit in ready}
        given = [second.output for _, second in pairs] or [edit.path for edit in ready]
        own = {"model": source, "edit": given, "output": output}
    elif "bake" not in recipe.sections:
        reads["artefact"] = footprint(recipe.output)
    if section == "report":
        own = {"model": source, "activations": [first.output for first, _ in pairs], "write": True}
    chosen = {key: value for key, value in own.items() if key in parameters and key not in settings}

    def work(overwrite: bool) -> Any:
        more = {"overwrite": overwrite} if replaces else {}
        artefact = () if section == "bake" else (recipe.output,)
        return function(row.verb)(*artefact, **chosen, **settings, **more)

    return Step(section, settings, reads, tuple(after), output, work, replaces)
