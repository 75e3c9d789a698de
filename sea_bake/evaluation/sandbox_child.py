"""The process in which :mod:`sandbox <sea_bake.evaluation.sandbox>` runs code: ``python -I -S`` on this file alone.

It gets its work in pieces, each when its time has come: limits, the program, one test after the other, and, when all
have held, a token that it writes as proof. While the program or a test runs, neither a test to come nor the token is in
memory, and the frame that asks for them is out of reach: ``sys._getframe`` is gone, the hook refuses what leads to a
frame, and :func:`attempt`, whose frame runs the code, holds nothing but built-in functions.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import BuiltinFunctionType
from typing import Any

MODULES = (
    *("array", "bisect", "calendar", "cmath", "collections", "collections.abc", "copy", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator"),
    *("random", "re", "statistics", "string", "textwrap", "time", "typing", "unicodedata"),
)
"""What the code may import."""

SILENT = ("_strptime", "encodings.ascii", "encodings.latin_1")  # what those import as they run

HARMLESS = (
    *("compile", "exec", "marshal.", "object.", "code.__new__", "builtins.id", "sys._getframemodulename", "array."),
    "time.sleep",
)
"""Beginnings of the audit events that are let pass."""

FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
"""Attributes that lead to a frame, and from there to all frames behind it."""

LEFT = {
    "posix": ("fspath", "getcwd", "getpid", "getppid", "cpu_count", "strerror", "urandom", "_exit"),
    "_thread": ("allocate_lock", "get_ident", "get_native_id"),
    "_imp": ("acquire_lock", "release_lock", "lock_held", "is_builtin", "is_frozen"),
    "_signal": (),
    "resource": (),
    "gc": (),
}
"""Modules that act on the system or the interpreter, and what is left of their functions: not every one of them raises
an audit event (``mkfifo``, ``setpriority``, ``setitimer``, and before Python 3.12 a new thread do not)."""

TAKEN = (("time", "clock_settime"), ("time", "clock_settime_ns"), ("sys", "activate_stack_trampoline"))
"""Single functions of the same kind."""


def refusing(name: str) -> Callable[..., Any]:
    """What stands in the place of a function that was taken away."""

    def refuse(*args: Any, error: Any = PermissionError, **settings: Any) -> Any:
        raise error(f"the sandbox refuses {name}")

    return refuse


def close() -> None:
    """Take the functions away, wherever a module holds them; ``sys._getframe`` without a trace, as the standard library
    is ready for."""
    taken: dict[int, Any] = {}
    for module, left in LEFT.items():
        for name, value in vars(sys.modules[module]).items():
            if type(value) is BuiltinFunctionType and name not in left and not name.startswith("_path_"):
                taken[id(value)] = refusing(f"{'os' if module == 'posix' else module.lstrip('_')}.{name}")
    for module, name in TAKEN:
        if hasattr(sys.modules[module], name):
            taken[id(getattr(sys.modules[module], name))] = refusing(f"{module}.{name}")
    for holder in [one for one in sys.modules.values() if one is not sys.modules["__main__"]]:
        for name, value in list(vars(holder).items()):
            if id(value) in taken:
                setattr(holder, name, taken[id(value)])
    for name in ("supports_dir_fd", "supports_effective_ids", "supports_fd", "supports_follow_symlinks"):
        setattr(os, name, set())  # they hold the functions themselves
    del sys._getframe
    for name in ("resource", "importlib", "signal", "gc", "__main__"):
        del sys.modules[name]


def limit(seconds: float, memory: int) -> None:
    """What the system limits. The wall-clock time is the parent's to keep; the alarm is for when there is no parent."""
    signal.setitimer(signal.ITIMER_REAL, seconds + 5)
    processor = int(seconds) + 2
    limits = {"CPU": processor, "AS": memory, "FSIZE": 0, "NPROC": 0, "NOFILE": 0, "CORE": 0}
    for name, value in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    if sys.version_info >= (3, 12) and hasattr(os, "unshare"):
        with suppress(OSError):
            os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)


def watch(
    event: str, args: Any, harmless: Any = HARMLESS, frames: Any = FRAMES, refusal: Any = PermissionError
) -> None:
    """The audit hook."""
    if event == "object.__getattr__" and args[1] in frames:
        raise refusal("the sandbox refuses " + args[1])
    if not event.startswith(harmless):
        raise refusal("the sandbox refuses " + event)


def attempt(
    code: str,
    name: str,
    names: dict[str, Any],
    given: Any = None,
    exec: Any = exec,
    compile: Any = compile,
    kind: Any = type,
    anything: Any = BaseException,
) -> bytes:
    """b"" where the code runs to its end, or else "-" and what stopped it. All that it uses is in its own frame, since
    the code may replace what is in ``builtins``; ``given`` puts the built-in functions back."""
    try:
        if given is not None:
            names["__builtins__"] = given.copy()
        exec(compile(code, name, "exec", 0, True), names)  # without the __future__ of this file
    except anything as error:
        try:
            return f"-{kind(error).__name__}: {error}"[:300].encode("utf-8", "backslashreplace")
        except anything:
            return b"-an error that cannot be shown"
    return b""


def main() -> None:
    """Everything is bound here before the program runs; then the module is emptied, since the code can reach it."""
    read, write, leave, text, run, number = os.read, os.write, os._exit, str, attempt, int.from_bytes
    given, out, null = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()

    def piece() -> bytes:
        return read(given, number(read(given, 8), "big"))

    seconds, memory, tests = piece().split()
    for name in MODULES + SILENT:
        importlib.import_module(name)
    code, names = text(piece(), "utf-8", "surrogatepass"), {"__name__": "answer"}
    steps = range(int(tests))
    functions = dict(vars(sys.modules["builtins"]))
    gc.collect()
    gc.disable()  # a collection would run what the program leaves behind in whatever frame it comes
    limit(float(seconds), int(memory))
    close()
    hook, watching = sys.addaudithook, watch
    globals().clear()
    hook(watching)
    write(out, b"+")
    said = run(code, "answer", names)
    if not said:
        for _ in steps:
            said = run(text(piece(), "utf-8", "surrogatepass"), "test", names, functions)
            if said:
                break
    write(out, said or piece())
    leave(0)


if __name__ == "__main__":
    main()
