"""Short Python that a model wrote, run against its tests in a process of its own, with limits.

The process runs ``python -I -S`` in an empty folder, with no environment. This side keeps its wall-clock time and ends
it. The system limits its processor time and memory, and lets it open no file, socket or pipe: it gets no new
descriptor. What acts on the system is taken out of the modules that are there (files, pipes, signals, threads,
priorities), and an audit hook (PEP 578), which cannot be taken off again, refuses what else leaves the process, and
imports beyond a list of harmless modules. The verdict is a token that the process is told when the last test has held,
in a frame that the program has no way to (:mod:`sandbox_child <sea_bake.evaluation.sandbox_child>`).

That stops mistakes, endless loops and what a small model makes up. It is no wall: the tests run in the interpreter that
the program ran in, so that a program can pass with a value that lies (an object whose ``__eq__`` is always True), and
whoever attacks CPython itself (with bytecode of their own, say) can do there what your user can.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sea_bake.errors import EvaluationError

SECONDS: Final = 2.0
MEMORY: Final = 256 << 20
_START: Final = 60.0  # seconds that the interpreter itself may take on a busy machine, before the code's own begin
_CHILD: Final = Path(__file__).with_name("sandbox_child.py")


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
        EvaluationError: this system has no such limits (Windows), or the process did not start.
    """
    if os.name != "posix":
        raise EvaluationError("code is only run where its process can be limited: on Linux or macOS")
    token = secrets.token_bytes(16)
    with tempfile.TemporaryDirectory(prefix="sea-bake-sandbox-") as folder, tempfile.TemporaryFile() as pieces:
        texts = (f"{seconds} {memory} {len(tests)}", code, *tests)
        for piece in (*(text.encode("utf-8", "surrogatepass") for text in texts), token):
            pieces.write(len(piece).to_bytes(8, "big") + piece)
        pieces.seek(0)
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-W", "ignore", _CHILD],
            stdin=pieces,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            out = process.stdout.fileno()
            try:
                began = _heard(out, 1, _START)
                said = _heard(out, 4096, seconds) if began else b""
            finally:
                for end in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        end(process.pid, signal.SIGKILL)
    if not began:
        late = f"took over {_START:g} seconds to start: try again while less runs beside it"
        ended = f"ended before the code began: allow it more memory, and see what '{sys.executable} -I -S -c pass' says"
        raise EvaluationError(f"the process that code is run in {late if began is None else ended}")
    if said == token:
        return Outcome(True)
    if said is None or (not said and process.returncode in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL)):
        return Outcome(False, f"it took more than {seconds:g} seconds")
    return Outcome(False, said[1:].decode("utf-8", "replace") if said[:1] == b"-" else "it ended its own process")


def _heard(descriptor: int, size: int, seconds: float) -> bytes | None:
    """What the process says next: b"" where it has ended, None where it says nothing in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return os.read(descriptor, size) if selector.select(seconds) else None
