"""A function's arguments, read from its source: types, defaults and help, without importing what it stands on."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

from sea_bake.errors import SettingError

REQUIRED = inspect.Parameter.empty
_PLAIN: dict[str, Any] = {t.__name__: t for t in (str, int, float, bool, Path, object)} | {"Any": Any}
_GENERIC: dict[str, Any] = {"Sequence": Sequence, "list": list, "tuple": tuple, "dict": dict, "Mapping": Mapping}
_ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")
_ELSEWHERE = re.compile(r"see :func:`([\w.]+)\.(\w+)`\.?")


@dataclass(frozen=True)
class Argument:
    """One argument of a function.

    Attributes:
        name: as the function spells it.
        hint: its type, without what text cannot express (classes of ours); ``NoReturn`` where nothing is left.
        default: ``REQUIRED`` where it has none; ``NotImplemented`` where it is no plain value (a lambda).
        help: its entry in the docstring's ``Args``, as one line; "" where there is none.
    """

    name: str
    hint: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def is_setting(self) -> bool:
        """Whether text can express it."""
        return self.hint is not NoReturn


@cache
def arguments(verb: str) -> dict[str, Argument]:
    """Name -> Argument of a function such as ``"sea_bake.baking:bake"``, or of a class method (``"module:Edit.read"``),
    in its order; ``cls`` and ``**options`` are left out.

    Raises:
        LookupError: no such module or function, or a default or a type that this reader does not understand.
    """
    module, node = _function(verb)
    spec = node.args
    positional = [a for a in (*spec.posonlyargs, *spec.args) if a.arg != "cls"]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults))
    pairs = [*zip(positional, [*missing, *spec.defaults]), *zip(spec.kwonlyargs, spec.kw_defaults)]
    helps = _helps(ast.get_docstring(node) or "")
    found = {}
    for argument, default in pairs:
        hint = NoReturn if argument.annotation is None else _union(_types(argument.annotation, module))
        value = REQUIRED if default is None else _value(default, module)
        if value is NotImplemented and hint is not NoReturn:
            raise LookupError(f"{verb}: the default of {argument.arg} is no plain value")
        found[argument.arg] = Argument(argument.arg, hint, value, _help(helps, argument.arg))
    return found


def exists(verb: str) -> bool:
    """Whether this version of sea_bake has a function such as ``"sea_bake.baking:bake"``."""
    try:
        _function(verb)
    except LookupError:
        return False
    return True


def parse_share(text: str | None, name: str) -> float | int | None:
    """ "0.998" -> a share, "8" -> a rank.

    Raises:
        SettingError: neither.
    """
    if text is None:
        return None
    try:
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise SettingError(f"{name} must be a share such as 0.998 or a rank such as 8, not {text!r}") from None


@cache
def _module(name: str) -> dict[str, Any]:
    """What a module defines or imports, by name: functions, classes, the right sides of assignments, (module, name)."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)  # of a package inside, this would import what is around it
    if spec is None or spec.origin is None:
        raise LookupError(f"no module {name}")
    path = Path(spec.origin).parent.joinpath(*rest)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        raise LookupError(f"no module {name}")
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node.value
    return found


def _followed(name: str, module: str) -> tuple[str, Any]:
    """Where a name of a module is defined, and the node; None where that is outside of the module's own package."""
    found = _module(module).get(name)
    if isinstance(found, tuple):
        inside = found[0].split(".")[0] == module.split(".")[0]
        return _followed(found[1], found[0]) if inside else (found[0], None)
    return module, found


def _function(verb: str) -> tuple[str, ast.FunctionDef]:
    module, _, name = verb.partition(":")
    owner, _, method = name.partition(".")
    where, node = _followed(owner, module)
    if method and isinstance(node, ast.ClassDef):
        node = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == method), None)
    if not isinstance(node, ast.FunctionDef):
        raise LookupError(f"no function {verb}")
    return where, node


def _types(node: ast.expr, module: str) -> list[Any]:
    """The members of a type that text can express."""
    if isinstance(node, ast.BinOp):
        return _types(node.left, module) + _types(node.right, module)
    if isinstance(node, ast.Constant):
        return [type(None)] if node.value is None else []
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            return [Literal[tuple(_value(one, module) for one in inner)]]
        if node.value.id not in _GENERIC:
            return []
        held = [... if isinstance(i, ast.Constant) else _union(_types(i, module)) for i in inner]
        return [] if NoReturn in held else [_GENERIC[node.value.id][tuple(held) if len(held) > 1 else held[0]]]
    if isinstance(node, ast.Name) and node.id in _PLAIN:
        return [_PLAIN[node.id]]
    if isinstance(node, ast.Name):
        where, alias = _followed(node.id, module)
        return _types(alias, where) if isinstance(alias, ast.expr) else []
    return []


def _union(types: list[Any]) -> Any:
    return Union[tuple(types)] if set(types) - {type(None)} else NoReturn  # noqa: UP007  (None alone says nothing)


def _value(node: ast.expr, module: str) -> Any:
    """A literal, or a constant or the member of an enumeration that leads to one; else NotImplemented."""
    if isinstance(node, ast.Name):
        where, found = _followed(node.id, module)
        return _value(found, where) if isinstance(found, ast.expr) else NotImplemented
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):  # Site.ATTN
        where, found = _followed(node.value.id, module)
        members = found.body if isinstance(found, ast.ClassDef) else []
        named = [m.value for m in members if isinstance(m, ast.Assign) and ast.unparse(m.targets[0]) == node.attr]
        return _value(named[0], where) if named else NotImplemented
    try:
        return ast.literal_eval(node)
    except ValueError:
        return NotImplemented


def _helps(docstring: str) -> dict[str, str]:
    """Name -> entry of the section ``Args``."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in docstring.partition("\nArgs:\n")[2].split("\n"):
        if line and not line.startswith(" "):
            break
        entry = _ENTRY.fullmatch(line)
        if entry:
            names = entry[1].split(", ")
        for name in names if line.strip() else ():
            found.setdefault(name, []).append(entry[2] if entry else line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}


def _help(helps: dict[str, str], name: str) -> str:
    text = helps.get(name, "")
    elsewhere = _ELSEWHERE.fullmatch(text)
    return arguments(f"{elsewhere[1]}:{elsewhere[2]}")[name].help if elsewhere else text
