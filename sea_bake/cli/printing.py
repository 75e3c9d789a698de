"""What all commands share: the console for people, tables, and errors in one paragraph."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sea_bake.io import progress
from sea_bake.pages.text import harmless

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no chatter.")]
_MORE = "An edit file too: it acts after those that stand behind the model. (Repeatable.)"
MoreEdits = Annotated[list[Path] | None, typer.Option("--edit", "-e", help=_MORE)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")]


def prepare(*, quiet: bool) -> Console:
    """Set progress bars and library chatter; returns the console for people (silent with --json or --quiet).

    transformers reads them when it is imported; that is not done here, since no refusal has to wait for it. Of several
    processes (torchrun's) the first one speaks; the others have but errors to tell.
    """
    others = os.environ.get("RANK", "0") != "0"
    sys.stdout = open(os.devnull, "w") if others else sys.stdout  # noqa: SIM115
    progress.set_quiet(quiet or others)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # other libraries' bars; ours say the same, once
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    return _Console(quiet=quiet, highlight=False)


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(harmless(o) if isinstance(o, str) else o for o in objects), **options)


COMPACT: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[str] = (), **options: Any) -> Table:
    """A table: numbers to the right, the first column and those of ``left`` to the left; texts may hold markup."""
    made = Table(title_justify="left", **options | {"title": harmless(options.get("title", ""))})
    for i, name in enumerate(head):
        made.add_column(harmless(name), justify="left" if i == 0 or name in left else "right")
    for row in rows:
        made.add_row(*map(harmless, row))
    return made


def aside(console: Console) -> Callable[[str], None]:
    """What long work calls with sentences for people."""
    return lambda text: console.print(text, style="yellow", markup=False)


def complain(kind: str, message: str) -> None:
    """One clear paragraph on stderr; wrapped by the terminal alone, so that a path in it can be copied."""
    _Console(stderr=True, highlight=False).print(f"[bold red]{kind}[/]: {escape(message)}", soft_wrap=True)
