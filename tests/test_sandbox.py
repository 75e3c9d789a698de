"""Code that a model wrote, in a process of its own: what it is refused, its time, and that it cannot pass itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sea_bake.errors import EvaluationError
from sea_bake.evaluation import sandbox


@pytest.mark.parametrize(("program", "why"), [
    ("while True: pass", "more than 1 second"),
    ("import time\ntime.sleep(60)", "more than 1 second"),
    ("import os\nos.fork()", "refuses os.fork"),
    ("import _thread\n_thread.start_new_thread(print, ())", "refuses thread.start_new_thread"),
    ("import os\nos.setpriority(os.PRIO_PROCESS, 0, 19)", "refuses os.setpriority"),
    ("import _signal\n_signal.setitimer(0, 0)", "refuses signal.setitimer"),
    ("import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)", "refuses time.clock_settime"),
    ("import os\nos.mkfifo({outside!r})", "refuses os.mkfifo"),
    ("import sys\nsys.modules['posix'].mkfifo({outside!r})", "refuses os.mkfifo"),
    ("import sys\nsys.modules['posix'].mknod({outside!r})", "refuses os.mknod"),
    ("import os\nnext(f for f in os.supports_dir_fd if f.__name__ == 'mkfifo')({outside!r})", "StopIteration"),
    ("import sys\ndel sys.modules['posix']\n__loader__.load_module('posix').mkfifo({outside!r})", "create_builtin"),
    ("import inspect\ninspect.importlib.import_module('gc').get_objects()", "refuses imp.create_builtin"),
    ("import sys\nsys.modules['posix'].fork()", "refuses os.fork"),
    ("import os\nos.system('true')", "refuses os.system"),
    ("import subprocess", "refuses import"),
    ("import ctypes", "refuses import"),
    ("import socket", "refuses import"),
    ("import os\nos.kill(os.getppid(), 0)", "refuses os.kill"),
    ("open('here', 'w')", "refuses open"),
    ("open({outside!r}, 'w')", "refuses open"),
    ("open('/etc/hostname')", "refuses open"),
    ("import os\nos.remove({kept!r})", "refuses os.remove"),
    ("import os\nos.mkdir({outside!r})", "refuses os.mkdir"),
    ("x = bytearray(2 ** 30)", "MemoryError"),
    ("f = lambda: f()\nf()", "RecursionError"),
    ("import sys\nsys.exit(0)", "SystemExit"),
    ("import os\nos._exit(0)", "ended its own process"),
])  # fmt: skip
def test_what_is_refused(program: str, why: str, tmp_path: Path) -> None:
    kept, outside = tmp_path / "kept", tmp_path / "outside"
    kept.touch()
    program = program.replace("{outside!r}", repr(str(outside))).replace("{kept!r}", repr(str(kept)))
    found = sandbox.run(program, seconds=1.0)
    assert not found.passed
    assert why in found.why
    assert kept.exists()
    assert not outside.exists()


def test_what_is_harmless_runs() -> None:
    """The control: what tests of snippets need, printing included."""
    program = "import math, re, random, collections\nfrom datetime import datetime\nprint(math.pi)\nx = sorted([3, 1])"
    assert sandbox.run(program, ["assert x == [1, 3]", "assert datetime.strptime('2024', '%Y').year == 2024"]).passed
    assert sandbox.run("x = 1", ["assert x == 2"]).why.startswith("AssertionError")
    program = """
import enum, typing, warnings
from collections import namedtuple
from dataclasses import dataclass
Pair, Colour = namedtuple("Pair", "a b"), enum.Enum("Colour", "red blue")
class Named(typing.NamedTuple):
    x: int
@dataclass
class Point:
    x: int = 1
warnings.warn("seen by nobody")
"""
    tests = ["assert Pair(1, 2).b == 2", "assert Point() == Point(1)", "assert Named(1).x == 1", "Colour.red"]
    assert sandbox.run(program, tests) == sandbox.Outcome(True)


FRAMES = """
import sys
def walk(frame):
    while frame:
        for held in list(frame.f_locals.values()):
            if isinstance(held, dict) and "tests" in held:
                held["tests"].clear()
        frame = frame.f_back
"""
FORGED = """
import sys
frame = sys._getframe(1)
frame.f_locals["write"](frame.f_locals["out"], b'["%s", ""]' % frame.f_locals["task"]["token"].encode())
frame.f_locals["leave"](0)
"""
# What is called from C runs in the frame of whoever called: here that which runs the code and says what was raised.
LOCALS = """
class Found(Exception):
    __str__ = map(lambda found: str(sorted(found)), iter(locals, None)).__next__
raise Found
"""


@pytest.mark.parametrize("program", [
    "import builtins\nbuiltins.exec = lambda *a: None",
    "import builtins\nbuiltins.compile = lambda *a, **k: 'pass'",
    "import builtins\nbuiltins.BaseException = builtins.AssertionError = ZeroDivisionError",
    "import sys\nsys.modules['__main__'].task['tests'].clear()",
    FRAMES + "walk(sys._getframe())",
    FRAMES + "try:\n    1 / 0\nexcept Exception as error:\n    walk(error.__traceback__.tb_frame)",
    FRAMES + "def steps():\n    yield walk(me.gi_frame)\nme = steps()\nnext(me)",
    FORGED,
    FORGED.replace("sys._getframe(1)", "__import__('inspect').currentframe().f_back"),
    "import os\nfor n in range(3, 64):\n    try: os.write(n, b'x' * 16)\n    except OSError: pass\nos._exit(0)",
    "import os\nfor n in range(4, 64):\n    try: os.write(n, os.read(3, 99))\n    except OSError: pass\nos._exit(0)",
    "open(3, 'rb').read()",
    "import sys\nsys.__stdin__.buffer.raw.__init__(3)",
    "import os\nos.fork.__globals__.update(run=lambda *a: b'', attempt=lambda *a: b'')",
])  # fmt: skip
def test_no_program_passes_a_test_that_fails(program: str) -> None:
    assert not sandbox.run(program, ["assert False"]).passed


def test_what_the_program_can_reach_decides_nothing() -> None:
    """Of the frame that runs it, it sees code that it has and functions that cannot be changed; no tests, no token."""
    why = sandbox.run(LOCALS, ["assert False"]).why
    assert eval(why.removeprefix("Found: ")) == sorted(
        ("code", "name", "names", "given", "exec", "compile", "kind", "anything", "error")
    )


def test_tests_have_the_functions_that_python_has() -> None:
    """What the program made of them is its own; and what is beyond the sandbox, as it says: a value that lies."""
    program = "import builtins\nbuiltins.abs = builtins.sorted = lambda *a: 1\ndef f(): return abs(0)"
    assert sandbox.run(program, ["assert f() == 1"]).passed
    assert not sandbox.run(program, ["assert abs(0) == 1"]).passed
    lies = "class Any:\n    def __eq__(self, other): return True\ndef f(): return Any()"
    assert sandbox.run(lies, ["assert f() == 1", "assert f() == 2"]).passed


@pytest.mark.parametrize("program", ["import time\ntime.sleep(60)", "while True: pass"])
def test_the_time_is_kept_from_outside(program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Even where the process is without an alarm and a limit of its own."""
    child = sandbox._CHILD.read_text("utf-8")
    without = child.replace("    limit(float(seconds), int(memory))\n", "")
    assert without != child
    (tmp_path / "child.py").write_text(without, "utf-8")
    monkeypatch.setattr(sandbox, "_CHILD", tmp_path / "child.py")
    began = time.monotonic()
    assert sandbox.run(program, seconds=0.5).why == "it took more than 0.5 seconds"
    assert time.monotonic() - began < 30  # the start of the process, too, on a busy machine


def test_a_process_that_cannot_start_is_no_failed_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox, "_CHILD", tmp_path / "child.py")
    with pytest.raises(EvaluationError, match="ended before the code began"):
        sandbox.run("x = 1")
    (tmp_path / "child.py").write_text("while True: pass")
    monkeypatch.setattr(sandbox, "_START", 0.3)
    with pytest.raises(EvaluationError, match=r"over 0\.3 seconds to start"):
        sandbox.run("x = 1")
