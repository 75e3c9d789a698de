"""Ctrl-C is not lost: a tracer, a callback or a finaliser of a library may swallow the KeyboardInterrupt and go on.

The command line remembers that it was interrupted; whatever works in steps asks at each of them, and nothing is renamed
to its final name any more.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator

_seen = False


def interrupted() -> bool:
    """Whether Ctrl-C came within the :func:`heeded` block that this process is in."""
    return _seen


def check() -> None:
    """Raise KeyboardInterrupt, once more, when an earlier one came to nothing; not while an error is being handled, for
    what is written then tells of it.
    """
    if _seen and sys.exc_info()[1] is None:
        raise KeyboardInterrupt


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Remember Ctrl-C from here to the end of the block, and keep what it broke from being logged or printed.

    Where SIGINT is ignored (behind ``nohup``) or somebody else handles it, this does nothing.
    """
    global _seen
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        global _seen
        _seen = True
        logging.disable()
        sys.unraisablehook = lambda _: None  # "Exception ignored in", and a traceback
        raise KeyboardInterrupt

    before, hook = logging.root.manager.disable, sys.unraisablehook
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.disable(before)
        sys.unraisablehook = hook
        _seen = False
