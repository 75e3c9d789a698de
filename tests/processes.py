"""Several processes of one run, as ``torchrun`` would start them, but forked from one that has imported everything.

Run as a script it is the one that forks: of each line, a run, it reads the command line of each process, and prints how
each ended.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import doors
import tiny

_LIMIT = 300  # seconds that a run may take
# Of tests that kill one process of a run, each at another moment: how many kills.
KILLS = range(int(os.environ.get("SEA_BAKE_TEST_KILLS", "1")))


def together(commands: Sequence[Sequence[Any]]) -> list[tiny.Ran]:
    """``sea-bake ARGS`` in as many processes as there are command lines, which know of each other; or a script of
    ``scripts``, where its path is the first of them.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([list(map(str, args)) for args in commands]) + "\n")
    return [tiny.Ran(*one) for one in json.loads(server.stdout.readline())]


def one_killed(args: Sequence[Any], kill: int, reached: Callable[[], bool]) -> int:
    """``sea-bake ARGS`` under ``torchrun``, in turn in two processes and in four, of which one is killed when the
    moment is reached, each in its turn: the whole run ends with an error. How many there were.
    """
    count = (2, 4)[kill % 2]
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count, "-m", "sea_bake"]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = subprocess.Popen([*map(str, [*words, *args])], text=True, **streams)
    deadline = time.monotonic() + 600  # on a machine with more to do
    while time.monotonic() < deadline and running.poll() is None and not reached():
        time.sleep(0.01)
    found = subprocess.run(["pgrep", "-P", str(running.pid), "-f", "sea_bake"], capture_output=True, text=True).stdout
    pids = sorted(map(int, found.split()))
    assert len(pids) == count, running.poll()
    os.kill(pids[kill // 2 % count], signal.SIGKILL)
    running.communicate(timeout=_LIMIT)
    assert running.returncode != 0
    return count


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The one of these tests."""
    made = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    atexit.register(made.kill)
    return made


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _serve() -> None:
    import lm_eval.models.huggingface  # noqa: F401

    import sea_bake.evaluation
    import sea_bake.evaluation.harness  # noqa: F401

    tiny.preload()
    doors.one_thread()
    doors.warm()
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(commands: list[list[str]]) -> list[list[Any]]:
    """How each process ended: its exit code, and what it wrote."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(commands))}
    with tempfile.TemporaryDirectory() as folder:
        pids = [_forked(place, rank, args, Path(folder)) for rank, args in enumerate(commands)]
        watch = threading.Timer(_LIMIT, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids])
        watch.start()
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        watch.cancel()
        said = [[Path(folder, f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(len(pids))]
    return [[code, *texts] for code, texts in zip(codes, said)]


def _forked(place: dict[str, str], rank: int, args: list[str], folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": place["WORLD_SIZE"]}
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["sea-bake", *args]
    code: Any = 1
    try:
        if Path(args[0]).parent.name == "scripts":
            sys.argv = args
            sys.path.insert(0, str(Path(args[0]).parent))
            runpy.run_path(args[0], run_name="__main__")
        else:
            from sea_bake.cli import main

            main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
