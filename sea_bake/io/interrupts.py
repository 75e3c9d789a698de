"""Ctrl-C is not lost, and breaks no clean-up.

A tracer, a callback or a finaliser of a library may swallow the KeyboardInterrupt and go on. The command line remembers
that it was interrupted; whatever works in steps asks at each of them, and nothing gets its final name any more. And
what must be done whole (a name taken, a temporary removed) holds Ctrl-C back until it is done.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_seen = False
_kept = False  # one came while it was held back
_depth = 0
_guarded: set[CodeType] = set()


def interrupted() -> bool:
    """Whether Ctrl-C came within the :func:`heeded` block that this process is in."""
    return _seen


def check() -> None:
    """Raise KeyboardInterrupt, once more, when an earlier one came to nothing; not while an error is being handled, for
    what is written then tells of it.
    """
    if _seen and sys.exc_info()[1] is None:
        raise KeyboardInterrupt


def guarded(function: F) -> F:
    """A function that no Ctrl-C breaks, from its first instruction to its last, where it is :func:`heeded`.

    It is to call :func:`check` where it can be left.
    """
    _guarded.add(function.__code__)
    return function


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back to the end of the block, and raise it then.

    In another thread than the main one, and where somebody else handles SIGINT, this does nothing: no KeyboardInterrupt
    comes there.
    """
    global _depth, _kept
    mine = threading.current_thread() is threading.main_thread()
    plain = mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if plain:
        signal.signal(signal.SIGINT, _keep)
    _depth += mine
    try:
        yield
    finally:
        _depth -= mine
        if plain:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if mine and _kept and not _depth:
            _kept = False
            if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                raise KeyboardInterrupt


def _keep(number: int, frame: FrameType | None) -> None:
    global _kept
    _kept = True


def _is_guarded(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _guarded:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Remember Ctrl-C from here to the end of the block, and keep what it broke from being logged or printed.

    Where SIGINT is ignored (behind ``nohup``) or somebody else handles it, this does nothing.
    """
    global _seen, _kept
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        global _seen, _kept
        _seen = True
        logging.disable()
        sys.unraisablehook = lambda _: None  # "Exception ignored in", and a traceback
        if _depth or _is_guarded(frame):
            _kept = bool(_depth)
            return
        raise KeyboardInterrupt

    before, hook = logging.root.manager.disable, sys.unraisablehook
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.disable(before)
        sys.unraisablehook = hook
        _seen = _kept = False


@contextlib.contextmanager
def taken() -> Iterator[list[bool]]:
    """Let Ctrl-C end this block, and nothing around it: an answer, and not the conversation.

    What it gives is empty, and holds True once the block was ended so; outside of :func:`heeded` too.
    """
    global _seen
    check()  # an earlier one, swallowed, is not of this block
    before, hook = logging.root.manager.disable, sys.unraisablehook
    came: list[bool] = []
    try:
        yield came
    except KeyboardInterrupt:
        came.append(True)
    except Exception:
        if not _seen:
            raise
        came.append(True)  # a library has made another error of it
    if _seen or came:
        came[:] = [True]
        _seen = False
        logging.disable(before)
        sys.unraisablehook = hook
