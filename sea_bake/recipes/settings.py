"""What a section of a recipe may say: the keyword arguments of the library's own functions, with their types.

There is no second list of them to keep: a new argument of ``fit`` is a key of ``fit:``.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from sea_bake.errors import RecipeError
from sea_bake.io.signatures import Argument, arguments


def function(verb: str) -> Callable[..., Any]:
    """ "sea_bake.baking:bake" -> the function."""
    module, _, name = verb.partition(":")
    return attrgetter(name)(importlib.import_module(module))


def settings_of(verb: str, without: Collection[str] = ()) -> dict[str, Argument]:
    """Name -> Argument, of the arguments of a function that text can express, but those in ``without``."""
    return {name: one for name, one in arguments(verb).items() if one.is_setting and name not in without}


def call(verb: str, values: Mapping[str, Any], *positional: Any) -> Any:
    """Call a function with those of the values that it has arguments for."""
    known = list(arguments(verb))[len(positional) :]
    return function(verb)(*positional, **{name: value for name, value in values.items() if name in known})


def unknown(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: the nearest known one, and all of them."""
    spelt = {one.lower(): one for one in sorted(known)}
    near = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.6)
    return f"{f'Did you mean {spelt[near[0]]!r}? ' if near else ''}Known are: {', '.join(spelt.values())}"


def check_value(where: str, value: Any, hint: Any) -> None:
    """Raise RecipeError unless a YAML value is of a setting's type."""
    if fits(value, hint):
        return
    message = f"{where}: {wording(hint)} is wanted here, not {_shown(value)}"
    if isinstance(value, str) and {int, float} & _leaves(hint):
        with contextlib.suppress(ValueError):
            float(value)
            message += " (YAML reads this as text: drop the quotes, and write 1.0e-3 for 1e-3)"
    raise RecipeError(message)


def is_path(hint: Any) -> bool:
    """Whether a setting of this type can be a path."""
    return Path in _leaves(hint)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that YAML can express is of a type; classes of ours are not expressible, so nothing fits them."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, Path):
        return isinstance(value, str) and value != "" and "\0" not in value
    return hint is bool and isinstance(value, bool)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def wording(hint: Any) -> str:
    """A type in words: ``float | int | None`` -> "a number, a whole number or null"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        found = list(dict.fromkeys(filter(None, map(wording, inner))))
        return " or ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (list, tuple, Sequence):
        words = wording(inner[0])
        return f"a list (each {words})" if words else ""
    if origin in (dict, Mapping):
        return "a mapping"
    if hint in (None, type(None)):
        return "null"
    return _WORDS.get(hint, "")


def _leaves(hint: Any) -> set[Any]:
    inner = get_args(hint)
    return {hint} if not inner else set().union(*(_leaves(one) for one in inner))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    words = "text " if isinstance(value, str) else "a list " if isinstance(value, list) else ""
    text = repr(value)
    return words + (text if len(text) <= 80 else text[:77] + "...")
