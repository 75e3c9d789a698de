"""YAML into plain data, and nothing else: no tags, no aliases, no key twice, no large file; with the keys' lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sea_bake.errors import RecipeError, command
from sea_bake.io.regular import read_text

MAX_BYTES = 256 << 10  # a recipe with all its comments and the ranks of a hundred layers has a tenth of that
MAX_DEPTH = 16

Place = tuple[str | int, ...]  # ("fit", 0, "K"): keys and list indices from the top


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """The mapping in a YAML file, and the line (from 1) of every key in it.

    Raises:
        RecipeError: no such file, too large, not UTF-8, not YAML, or YAML that is more than plain data.
    """
    try:
        text = read_text(path, limit=MAX_BYTES)
    except FileNotFoundError:
        cure = command("sea-bake", "init", path)
        raise RecipeError(f"no such recipe: {path}. Write a starter with: {cure}") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.object[error.start]:#04x})") from error
    try:
        _refuse_more_than_data(text, path)
        lines = _lines(yaml.compose(text, yaml.SafeLoader), path)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except (ValueError, OverflowError, RecursionError) as error:  # a date of month 13, an endless number
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} is no recipe: keys with values are wanted (model: ..., output: ...)")
    return data, lines


def _refuse_more_than_data(text: str, path: Path) -> None:
    """Tags ask for objects, aliases grow without bound when they are written out; no recipe needs either."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        where = f"{path}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise RecipeError(f"{where}: a recipe is plain data, so anchors (&) and aliases (*) are refused")
        if getattr(event, "tag", None):
            raise RecipeError(f"{where}: a recipe is plain data, so the tag {str(event.tag)[:80]!r} is refused")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecipeError(f"{where}: more than {MAX_DEPTH} levels deep, which no recipe is")


def _lines(node: yaml.Node | None, path: Path, place: Place = ()) -> dict[Place, int]:
    found: dict[Place, int] = {}
    if isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            found |= {(*place, i): value.start_mark.line + 1} | _lines(value, path, (*place, i))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if (*place, name) in found:
                raise RecipeError(f"{path}:{line}: the key '{name}' stands there twice. Remove one.")
            found |= {(*place, name): line} | _lines(value, path, (*place, name))
    return found
