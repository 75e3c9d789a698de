"""No search for garbage meanwhile: with torch imported, each looks through a million objects, and finds nothing."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For as long as the context lasts; or as a decorator. For what makes many objects and is done in a second."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def collect_seldom() -> None:
    """In a process of our own: garbage is looked for after 50,000 new objects, not 700, and not at its end.

    Importing torch and a model's code makes millions of objects that all stay: looking through them was a fifth of the
    start of a command, and taking them apart at its end a tenth (``scripts/bench_start``).
    """
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)
