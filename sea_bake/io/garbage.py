"""No search for garbage meanwhile: with torch imported, each looks through a million objects, and finds nothing."""

from __future__ import annotations

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
