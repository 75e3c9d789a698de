"""The command line: a thin door. Each command parses, calls one function of the library, and prints what came back."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from sea_bake.cli.options import STYLE
from sea_bake.errors import SeaBakeError
from sea_bake.io import interrupts, leases
from sea_bake.io.garbage import collect_seldom
from sea_bake.pages.text import harmless

_PLACES = {  # in the order of the help: module, and the function where that has another name
    "init": "run", "run": "run", "fit": "fit", "plan": "bake", "bake": "bake", "verify": "verify", "ask": "try_it",
    "chat": "try_it", "serve": "try_it", "eval": "eval:evaluate", "tune": "tune", "unbake": "bake",
    "serve-web": "serve_web", "report": "inspect", "publish": "publish", "reproduce": "run", "inspect": "inspect",
    "demo": "demo", "import": "fit:import_edit", "doctor": "try_it", "export": "export:app",
}  # fmt: skip


class _Group(TyperGroup):
    """A command is made when it is asked for, since its options are read from the library's source.

    Errors in a command line quote it, and with it the names of strangers' files: they are shown, and not obeyed.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = dict.fromkeys(_PLACES)  # type: ignore[assignment]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _PLACES and self.commands[cmd_name] is None:
            module, _, attribute = _PLACES[cmd_name].partition(":")
            found = getattr(importlib.import_module(f"sea_bake.cli.{module}"), attribute or cmd_name.replace("-", "_"))
            if not isinstance(found, typer.Typer):
                body, found = found, typer.Typer(add_completion=False, **STYLE)
                found.command(cmd_name)(body)
            self.commands[cmd_name] = typer.main.get_command(found)
        return self.commands.get(cmd_name)

    def make_context(self, *given: Any, **options: Any) -> Any:
        return _quoting(super().make_context, *given, **options)

    def invoke(self, ctx: Any) -> Any:
        return _quoting(super().invoke, ctx)


def _quoting(act: Callable[..., Any], *given: Any, **options: Any) -> Any:
    try:
        return act(*given, **options)
    except Exception as error:
        if isinstance(getattr(error, "message", None), str):  # click's own
            error.message = harmless(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="sea-bake",
    cls=_Group,
    help="Turn an activation edit (SEA, arXiv 2405.09719) into an ordinary model: fit it, bake it into a checkpoint, "
    "prove that the checkpoint answers like the edit and unlike its base.",
    epilog="Start with: sea-bake demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    **STYLE,
)


def _version(value: bool) -> None:
    if value:
        from sea_bake import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Entry point ``sea-bake``. Exit codes: 0 done, 1 a verification failed, 2 wrong input, 130 interrupted, 141 nobody
    read on (``sea-bake inspect ... | head -1``).
    """
    collect_seldom()
    try:
        _run()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # click and rich make a SystemExit of code 1 of it, which is that of a failed verification
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _run() -> None:
    with interrupts.heeded():
        try:
            app()
        except BaseException as error:
            left = "".join(f"{path} could not be removed\n" for path in leases.left_behind()).strip()
            late = isinstance(error, SystemExit) and not error.code  # it came to nothing, and the work is whole
            if interrupts.interrupted() and not late:  # also where a library has made another error of it
                print(f"interrupted: {left or 'nothing half-written was left behind'}", file=sys.stderr)
                sys.exit(130)
            if left and left.split()[0] not in str(error):
                print(left, file=sys.stderr)
            broken = isinstance(error, BrokenPipeError)
            if broken or not isinstance(error, SeaBakeError | OSError):  # an OSError says which file
                raise
            if "--json" in sys.argv:
                print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
            else:
                from sea_bake.cli.printing import complain

                complain(type(error).__name__, str(error))
            sys.exit(2)
