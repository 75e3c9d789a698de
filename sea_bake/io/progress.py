"""One progress bar for all long work: description, bar, count, rate and ETA on stderr; silent with ``quiet``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sea_bake.io import interrupts

if TYPE_CHECKING:
    from rich.progress import Progress

_quiet = False
_host: Progress | None = None


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
    from rich.console import Console

    console = Console(stderr=True)
    own = _host is None
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

        try:
            yield advance
        finally:
            progress.remove_task(task)
