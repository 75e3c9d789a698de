"""Servers that checks start: on a free loopback port, for as long as a context lasts, and stopped whatever happens.

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(
    name: str, command: Sequence[str], port: int, scratch: Path, own: Mapping[str, str], limit: float
) -> Iterator[str]:
    """A server for as long as the context lasts: its address. The script ends where it does not come up.

    Args:
        name: of the server, in messages.
        command: what starts it on ``port``.
        scratch: where it runs, and where server.log is written.
        own: added to its environment, which has no tokens of the Hub.
        limit: seconds until it has to answer /health.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_TOKEN", "PYTHONPATH"))}
    log = scratch / "server.log"
    with open(log, "w") as out:
        # A group of its own: the server may start an engine process, which has to end with it.
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**environment, "HF_HUB_OFFLINE": "1", **own}, cwd=scratch,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + limit
        while not healthy(address):
            if process.poll() is not None or time.monotonic() > deadline:
                said = "\n".join(log.read_text("utf-8", "replace").splitlines()[-40:])
                what = f"did not answer within {limit:.0f} s" if process.poll() is None else "ended"
                sys.exit(f"{name} {what}. Its last words:\n{said}")
            time.sleep(0.2)
        yield address
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: politely, then surely."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # also urllib's own errors
        return False
