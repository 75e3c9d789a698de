"""Commands out of library functions: their options are its arguments, with its types, defaults and help."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape

from sea_bake import errors
from sea_bake.cli.printing import Json, Quiet, prepare
from sea_bake.io.signatures import REQUIRED, Argument, arguments, parse_share
from sea_bake.pages.text import harmless
from sea_bake.recipes.settings import call

STYLE: dict[str, Any] = {"rich_markup_mode": "rich", "context_settings": {"help_option_names": ["-h", "--help"]}}
_SHORT = {"output": "-o", "edit": "-e", "demonstrations": "-d", "activations": "-a"}
SOURCE = arguments("sea_bake.demonstrations:load")["source"].help
_LAST = ("revision", "dtype", "device", "overwrite", "as_json", "quiet")  # of every command, behind its own
_TEXT = ("model", "base", "demonstrations", "calibration", "published", "primer")  # a name or a Hub id too: no path
FORMAT = "sea_bake.activations.prompt_format:prompt_format"
_ARGS = "sea_bake.activations.prompt_format:parse_args"
PROMPTS = "system chat_template template_args response_prefix primer close_reasoning date"


@dataclass(frozen=True)
class Spelling:
    """How an option differs from what its argument says; None: it does not."""

    flags: tuple[str, ...] = ()
    positional: bool | None = None
    hint: Any = None
    default: Any = REQUIRED
    help: str | None = None
    metavar: str | None = None
    parse: Callable[[Any], Any] | None = None


def spelt(*flags: str, **changes: Any) -> Spelling:
    return Spelling(flags, **changes)


@dataclass
class Call:
    """A command line, read.

    Attributes:
        verb: the function of the library; "" of a command that calls several.
        values: argument of the library -> value.
        as_json: whether one JSON object is wanted.
        console: for people; silent with ``--json`` and ``--quiet``.
    """

    verb: str
    values: dict[str, Any]
    as_json: bool
    console: Console

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __call__(self, *positional: Any, verb: str | None = None, **changes: Any) -> Any:
        """Call the library's function with what the command line says, but for ``changes``."""
        return call(verb or self.verb, self.values | changes, *positional)

    def run(self, *positional: Any, **changes: Any) -> Any:
        """Call it, and print the result with ``--json``."""
        made = self(*positional, **changes)
        self.emit(made.to_json())
        return made

    def go_on(self, *words: object, done: str = "", unless: str = "") -> None:
        """Print what was done, and the command that goes on: one line, that can be copied and run; or why none does."""
        ours = words[0] == "sea-bake"
        again = ["--revision", self["revision"]] if ours and self.values.get("revision") else []  # of the same model
        then = unless or f"Next: {errors.command(*words, *again)}"
        self.console.print(f"{done}{then}", markup=False, soft_wrap=True)

    def load(self) -> Any:
        """The demonstrations that the command line names."""
        verb = "sea_bake.demonstrations:load"  # whose own ``seed`` is another than that of a fit
        return self(self["demonstrations"], verb=verb, seed=arguments(verb)["seed"].default)

    def emit(self, data: dict[str, Any]) -> None:
        """Print it with ``--json``."""
        if self.as_json:
            print(harmless(json.dumps(data, indent=2, ensure_ascii=False)))


def command(
    *verbs: str, without: str = "", panels: dict[str, str] | None = None, **spellings: Spelling
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A Typer command whose options are the arguments of library functions.

    Args:
        verbs: "module:function"; where two have an argument of one name, the later one's counts. None where the body
            calls several functions by itself.
        without: arguments that are no options.
        panels: panel of the help -> names of its arguments.
        spellings: argument -> what is spelt otherwise on the command line.
    """
    found = {a.name: a for verb in verbs for a in arguments(verb).values()}
    panel = {name: title for title, names in (panels or {}).items() for name in names.split()}
    kept = {
        name: argument
        for name, argument in found.items()
        if name not in without.split() and (argument.is_setting or name in spellings)
    }

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        readers: dict[str, Callable[[Any], Any]] = {}
        options = []
        for name, argument in kept.items():
            parameter, readers[name] = _option(argument, spellings.get(name, Spelling()), panel.get(name))
            options.append(parameter)
        hints = get_type_hints(body, include_extras=True)
        own = list(inspect.signature(body).parameters.values())[1:]
        options += [_keyword(p.name, hints[p.name], p.default) for p in own]
        options += [_keyword("as_json", Json, False), _keyword("quiet", Quiet, False)]
        parameters = sorted(options, key=lambda p: _LAST.index(p.name) if p.name in _LAST else -1)

        def wrapped(**given: Any) -> None:
            values = {name: readers[name](given[name]) for name in kept}
            console = prepare(quiet=given["as_json"] or given["quiet"])
            line = Call(verbs[-1] if verbs else "", values, given["as_json"], console)
            body(line, **{p.name: given[p.name] for p in own})

        wrapped.__name__, wrapped.__doc__, wrapped.__module__ = body.__name__, body.__doc__, body.__module__
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        wrapped.__verbs__, wrapped.__arguments__ = verbs, tuple(kept)  # type: ignore[attr-defined]
        return wrapped

    return decorate


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(
    argument: Argument, spelling: Spelling, panel: str | None
) -> tuple[inspect.Parameter, Callable[[Any], Any]]:
    """A parameter as Typer reads it, and what makes the library's value of its value."""
    name = argument.name
    default = argument.default if spelling.default is REQUIRED else spelling.default
    hint, parse = (spelling.hint, None) if spelling.hint else _plain(name, argument.hint)
    parse = spelling.parse or parse
    if parse is not None and isinstance(default, int | float):
        shown: Any = str(default)
    elif isinstance(default, tuple):
        shown = ",".join(default) if hint is str else None
    else:
        shown = default
    repeatable = get_origin(hint) is list
    positional = default is REQUIRED and name != "output" if spelling.positional is None else spelling.positional
    more = " (Repeatable.)" if repeatable and not positional else ""
    made: dict[str, Any] = {"help": wording(spelling.help or argument.help) + more, "metavar": spelling.metavar}
    made["rich_help_panel"] = panel
    if positional:
        info = typer.Argument(**made)
    else:
        own = repeatable and name not in ("demonstrations", "template_args")  # an option's own plural
        flag = f"--{(name.removesuffix('s') if own else name).replace('_', '-')}"
        if hint is bool and default is True:
            flag = f"{flag}/--no-{flag[2:]}"
        short = [_SHORT[name]] if name in _SHORT else []
        flags = spelling.flags if any(f.startswith("--") for f in spelling.flags) else (flag, *short, *spelling.flags)
        info = typer.Option(*flags, **made)
    if shown is None:
        hint = Optional[hint]  # noqa: UP045

    def value(given: Any) -> Any:
        if repeatable and not given:
            return argument.default if argument.default is not REQUIRED else []
        return parse(given) if parse is not None and given is not None else given

    return _keyword(name, Annotated[hint, info], shown), value


def _plain(name: str, hint: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """The type of an option, and what reads it where that is text for something else."""
    if hint is Any or get_origin(hint) is Literal:  # the library says what it knows
        return str, None
    members = get_args(hint) if get_origin(hint) is Union else (hint,)
    inner = [one for one in members if one is not type(None)]
    lists = [one for one in inner if get_origin(one) is Sequence and get_origin(get_args(one)[0]) is not Mapping]
    if any(get_origin(one) is Mapping for one in inner):
        return list[str], lambda texts: call(_ARGS, {}, texts)
    if lists and (lists == inner or Path in inner):
        return list[str if get_args(lists[0]) == (str,) or name in _TEXT else Path], None  # type: ignore[misc]
    if float in inner and int in inner:

        def share(text: str) -> float | int | None:
            return parse_share(text, name.replace("_", "-"))

        return str, share
    if Path in inner:
        return (str if name in _TEXT else Path), None
    return next(one for one in (str, float, int, bool) if one in inner), None


def wording(text: str) -> str:
    """A docstring's entry as help: without its marks, and with a capital where no value comes first."""
    text = text if text.startswith('"') else text[:1].upper() + text[1:]
    text = re.sub(r"``(\w+)``", lambda m: f"--{m[1].replace('_', '-')}", text)
    return escape(re.sub(r"(?<![\w=])\"([\w.:/*-]+)\"", r"\1", text))
