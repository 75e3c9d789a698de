"""One progress bar for all long work: description, bar, count, rate and ETA on stderr; silent with ``quiet``.

Where stderr is no terminal (a log, a batch job), a line a minute in its place: short work says nothing there.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sea_bake.io import interrupts

if TYPE_CHECKING:
    from rich.progress import Progress

LOGGED = 60  # seconds between two lines of a log

_quiet = False
_host: Progress | None = None
_said = 0.0  # when the last line of a log was


def set_quiet(quiet: bool) -> None:
    """Switch all progress bars off or on (the command line's ``--quiet`` and ``--json``)."""
    global _quiet
    _quiet = quiet


@contextlib.contextmanager
def hosted(progress: Progress) -> Iterator[None]:
    """Draw all bars in this one, which is part of a larger display: a terminal holds one live display at a time."""
    global _host
    before, _host = _host, progress
    try:
        yield
    finally:
        _host = before


def bars(**options: Any) -> Progress:
    """The rich display that bars are drawn in; ``options`` go to ``rich.progress.Progress``."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, **options)


@contextlib.contextmanager
def bar(description: str, total: int, unit: str = "it") -> Iterator[Callable[[int], None]]:
    """Yields ``advance(n)``. The bar is drawn on stderr, where that is a terminal, and removed when it is done."""
    global _said
    from rich.console import Console

    console = Console(stderr=True)
    own = _host is None
    if own:
        _said = time.monotonic()
    progress = _host or bars(console=console, transient=True, disable=_quiet or not console.is_terminal)
    with contextlib.ExitStack() as stack:
        if own:
            stack.enter_context(progress)
            stack.enter_context(hosted(progress))  # bars of the work inside are drawn below this one
        task = progress.add_task(description, total=total, rate="")

        def advance(count: int = 1) -> None:
            interrupts.check()
            speed = next(t.speed for t in progress.tasks if t.id == task)
            progress.update(task, advance=count, rate=f"{speed:,.1f} {unit}/s" if speed else "")
            if not _quiet and not console.is_terminal:
                _log(progress)

        try:
            yield advance
        finally:
            progress.remove_task(task)


def _log(progress: Progress) -> None:
    """How far all bars are, once a minute."""
    global _said
    if time.monotonic() - _said >= LOGGED:
        _said = time.monotonic()
        known = [task for task in progress.tasks if task.total]
        told = [f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}" for task in known]
        print(", ".join(told), file=sys.stderr, flush=True)
