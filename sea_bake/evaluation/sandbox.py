"""Short Python that a model wrote, run against its tests in a process of its own, with limits.

The process runs ``python -I -S`` in an empty folder, with no environment. The system limits its processor time, memory,
files and processes, and its wall-clock time is limited from outside. An audit hook (PEP 578), which cannot be taken
off again, refuses whatever else leaves the process: starting others, opening files, sockets, imports beyond a list of
harmless modules. That stops mistakes, endless loops and what a small model makes up; it is no wall against somebody
who attacks CPython itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sea_bake.errors import EvaluationError

SECONDS: Final = 2.0
MEMORY: Final = 256 << 20
_START: Final = 10.0  # seconds that the interpreter itself may take on a busy machine, before the code's own begin
MODULES: Final = (
    *("array", "bisect", "calendar", "cmath", "collections", "collections.abc", "copy", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator"),
    *("random", "re", "statistics", "string", "textwrap", "time", "typing", "unicodedata"),
)
"""What the code may import."""

# What the hook and the end need is bound as defaults, so that nothing the code replaces reaches them.
_CHILD: Final = """
import importlib, io, json, os, resource, signal, sys
task = json.loads(sys.stdin.buffer.read())
out = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(null, number)
sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()
for name in task["modules"] + ["_strptime", "encodings.ascii", "encodings.latin_1"]:
    importlib.import_module(name)
seconds = int(task["seconds"]) + 1
signal.setitimer(signal.ITIMER_REAL, task["seconds"])
limits = {"CPU": seconds, "AS": task["memory"], "FSIZE": 0, "NPROC": 0, "CORE": 0}
for name, value in limits.items():
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    except (ValueError, OSError):
        pass
if hasattr(os, "unshare"):
    try:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
    except OSError:
        pass
for name in ("resource", "importlib", "signal"):
    del sys.modules[name]
HARMLESS = ("compile", "exec", "marshal.", "object.", "code.__new__", "builtins.id", "sys._getframe", "array.")
def watch(event, args, harmless=HARMLESS, refusal=PermissionError, any=any):
    if not event.startswith(harmless):
        raise refusal("the sandbox refuses " + event)
write, leave, dumps = os.write, os._exit, json.dumps
def run(task, watch=watch, write=write, leave=leave, dumps=dumps, out=out):
    said = ""
    sys.addaudithook(watch)
    try:
        names = {"__name__": "answer"}
        exec(compile(task["code"], "answer", "exec"), names)
        for test in task["tests"]:
            exec(compile(test, "test", "exec"), names)
    except BaseException as error:
        said = (type(error).__name__ + ": " + str(error))[:300]
    write(out, dumps([task["token"], said]).encode())
    leave(0)
run(task)
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: it ran to its end, and all of its tests held.
        why: what stopped it; "" where nothing did.
    """

    passed: bool
    why: str = ""


def run(code: str, tests: Sequence[str] = (), *, seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Run ``code``, then each test (a statement, such as an ``assert``) in its names.

    Args:
        seconds: of wall-clock time.
        memory: bytes of address space.

    Raises:
        EvaluationError: this system has no such limits (Windows).
    """
    if os.name != "posix":
        raise EvaluationError("code is only run where its process can be limited: on Linux or macOS")
    task = {"code": code, "tests": list(tests), "seconds": seconds, "memory": memory}
    task |= {"modules": list(MODULES), "token": secrets.token_hex(16)}
    with tempfile.TemporaryDirectory(prefix="sea-bake-sandbox-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(json.dumps(task).encode(), timeout=seconds + _START)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"it took more than {seconds:g} seconds")
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    try:
        token, why = json.loads(said)
    except ValueError:
        token, why = "", ""
    if token != task["token"]:
        slow = process.returncode in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL)
        return Outcome(False, f"it took more than {seconds:g} seconds" if slow else "it ended its own process")
    return Outcome(not why, why)
