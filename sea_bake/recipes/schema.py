"""A recipe: one YAML file that says all from fit to publish; checked before anything runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_bake.demonstrations import is_builtin
from sea_bake.errors import RecipeError, SeaBakeError
from sea_bake.recipes.reading import Place, read_yaml
from sea_bake.recipes.sections import SECTIONS
from sea_bake.recipes.settings import call, check_value, is_path, unknown

KEYS = ("model", "revision", "output", "work", "fit", "edits", "bake", "verify", "eval", "report", "export", "publish")
ONLY_EDIT = "edit"  # what a single, unnamed edit is called
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_FILES = (".jsonl", ".json", ".csv", ".tsv", ".gguf", ".safetensors")


@dataclass(frozen=True)
class Recipe:
    """A recipe whose keys and types are right; paths are absolute.

    Attributes:
        model, revision: the base: a path, or a Hub id.
        output: the artefact's folder.
        work: the folder of edits, activations and the state of runs.
        fits: name of an edit -> its settings, in the order in which they act.
        edits: names of edits that are there already, in place of ``fits``: files, or "USER/REPO[@REVISION]".
        sections: "bake", "verify", "export.onnx", ... -> its settings; those that are asked for.
        where: the file, for messages.
    """

    model: str
    revision: str | None
    output: Path
    work: Path
    fits: dict[str, dict[str, Any]]
    edits: tuple[str, ...]
    sections: dict[str, dict[str, Any]]
    where: str


def read(recipe: str | Path | Mapping[str, Any], *, folder: str | Path | None = None) -> Recipe:
    """Read a recipe and check its keys, types and settings.

    Args:
        recipe: a YAML file, or the same as a mapping.
        folder: where relative paths start. None: the file's own folder; for a mapping, the current one.

    Raises:
        RecipeError: not plain YAML, an unknown key (with the nearest known one), a value of another type, a missing
            key, or a step that this version does not have; with the line.
        SeaBakeError: another child of it, for a setting that no run could make right, or a missing extra.
    """
    if isinstance(recipe, Mapping):
        return _Reader("recipe", dict(recipe), {}, Path(folder or ".").absolute()).recipe()
    path = Path(os.path.expanduser(recipe)).absolute()
    data, lines = read_yaml(path)
    return _Reader(str(recipe), data, lines, Path(folder).absolute() if folder else path.parent).recipe()


@dataclass(frozen=True)
class _Reader:
    name: str
    data: dict[str, Any]
    lines: dict[Place, int]
    folder: Path

    def recipe(self) -> Recipe:
        self._keys((), self.data, [*KEYS, "provenance"])  # what a published recipe records: no setting
        output = self._path("output")
        if output is None:
            raise RecipeError(f"{self.name}: 'output' is missing: say which folder the edited model goes to")
        if output.name in ("", ".."):
            raise RecipeError(f"{self._at(('output',))}: 'output' has to name a folder, and {output} does not")
        fits = self._fits()
        edits = self.data.get("edits") or []
        if not isinstance(edits, list) or not all(isinstance(e, str) and e for e in edits):
            raise RecipeError(f"{self._at(('edits',))}: a list of edit files (or USER/REPO) is wanted here")
        if fits and edits:
            raise RecipeError(f"{self._at(('edits',))}: give either 'fit' or the files of ready 'edits', and not both")
        sections = self._sections()
        if "bake" in sections and not fits and not edits:
            raise RecipeError(f"{self._at(('bake',))}: there is no edit to bake: add 'fit', or name ready 'edits'")
        unseen = "bake" in sections and "verify" not in sections
        if unseen and "publish" in sections and not sections["publish"].get("unverified"):
            raise RecipeError(f"{self._at(('publish',))}: only what is verified is published: add 'verify'")
        if not fits and not sections:
            raise RecipeError(f"{self.name} asks for no step at all: add {', '.join(SECTIONS)}")
        model = self._text("model")
        if model is None:
            raise RecipeError(f"{self.name}: 'model' is missing: name the base: a folder, a .gguf file or a Hub id")
        return Recipe(
            model=str(self._input(model)),
            revision=self._text("revision"),
            output=output,
            work=self._path("work") or output.with_name(f"{output.name}-work"),
            fits=fits,
            edits=tuple(map(self._input, edits)),
            sections=sections,
            where=self.name,
        )

    def _fits(self) -> dict[str, dict[str, Any]]:
        given = self.data.get("fit", False)
        if not isinstance(given, list):
            settings = self._settings("fit", ("fit",), given)
            return {} if settings is None else {ONLY_EDIT: settings}
        found: dict[str, dict[str, Any]] = {}
        for i, entry in enumerate(given):
            place = ("fit", i)
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise RecipeError(f"{self._at(place)}: each edit of a list has a name of letters, digits, '-' and '_'")
            if name in found:
                raise RecipeError(f"{self._at(place)}: two edits are called '{name}'")
            settings = self._settings("fit", place, {k: v for k, v in entry.items() if k != "name"}, extra=("name",))
            found[name] = settings or {}
        return found

    def _sections(self) -> dict[str, dict[str, Any]]:
        found = {}
        exports = self.data.get("export") or {}
        self._mapping(("export",), exports)
        self._keys(("export",), exports, [s.partition(".")[2] for s in SECTIONS if s.startswith("export.")])
        for name in [s for s in SECTIONS if s != "fit"]:
            place = tuple(name.split("."))
            holder = exports if place[0] == "export" else self.data
            settings = self._settings(name, place, holder.get(place[-1], False))
            if settings is not None:
                found[name] = settings
        return found

    def _settings(self, name: str, place: Place, given: Any, extra: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """All settings of a section, defaults included; None when it is switched off. ``true`` means the defaults."""
        if given is False:
            return None
        section = SECTIONS[name]
        section.require(name, self._at(place))
        given = {} if given in (None, True) else given
        self._mapping(place, given)
        self._keys(place, given, [*section.settings, *extra])
        values = {}
        for key, setting in section.settings.items():
            where = self._at((*place, key))
            if key in given:
                check_value(where, given[key], setting.hint)
                values[key] = self._located(key, given[key]) if is_path(setting.hint) else given[key]
            elif key == "output":  # of an export
                continue
            elif setting.required:
                raise RecipeError(f"{self._at(place)}: '{key}' is missing")
            else:
                values[key] = setting.default
        try:
            for check in section.checks:
                call(check, values)
        except SeaBakeError as error:
            raise type(error)(f"{self._at(place)}: {error}") from error
        return values

    def _located(self, key: str, value: Any) -> Any:
        if key == "output":
            return str(self.folder / value)
        return [self._input(v) for v in value] if isinstance(value, list) else self._input(value)

    def _input(self, value: Any) -> Any:
        """A path beside the recipe, where there is one of that name or only a path can be meant; else as it stands."""
        if not isinstance(value, str) or is_builtin(value):
            return value
        path = self.folder / os.path.expanduser(value)
        meant = value.startswith((".", "/", "~")) or value.lower().endswith(_FILES)
        return str(path) if meant or os.path.exists(path) else value

    def _text(self, key: str) -> str | None:
        value = self.data.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip() or "\0" in value):
            raise RecipeError(f"{self._at((key,))}: text is wanted here, not {value!r}")
        return value

    def _path(self, key: str) -> Path | None:
        value = self._text(key)
        return None if value is None else self.folder / os.path.expanduser(value)

    def _mapping(self, place: Place, value: Any) -> None:
        if not isinstance(value, dict):
            raise RecipeError(f"{self._at(place)}: settings (key: value) are wanted here, or true or false")

    def _keys(self, place: Place, given: dict[Any, Any], known: list[str]) -> None:
        for key in given:
            if key not in known:
                raise RecipeError(f"{self._at((*place, str(key)))}: unknown key. {unknown(str(key), known)}")

    def _at(self, place: Place) -> str:
        """ "sea_bake.yaml:12: fit.K"."""
        line = self.lines.get(place)
        return f"{self.name}{f':{line}' if line else ''}: {'.'.join(map(str, place))}"
