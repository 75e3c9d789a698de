"""What strace sees of a command: the kernel's own account of the calls that change files, beside ``faults.c``."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# Names of the system's calls -> those of ``faults.c``, where they differ.
_NAMES = {
    "openat": "open", "pwrite64": "write", "writev": "write", "pwritev": "write", "renameat": "rename",
    "renameat2": "rename", "mkdirat": "mkdir", "unlinkat": "unlink", "linkat": "link", "symlinkat": "symlink",
    "fchmodat": "chmod", "fchmodat2": "chmod",
}  # fmt: skip
_CALLS = (
    *("open", "openat", "openat2", "creat", "write", "pwrite64", "writev", "pwritev", "pwritev2", "rename", "renameat"),
    *("renameat2", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "link", "linkat", "symlink", "symlinkat"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "truncate", "ftruncate", "fallocate", "utimensat", "copy_file_range"),
    *("sendfile", "fsync", "fdatasync", "sync_file_range", "msync", "splice", "io_uring_enter"),
)
_LINE = re.compile(r"^(?:\d+\s+)?(\w+)\((.*)\)\s+= (-?\d+)")
_PATH = re.compile(r'"([^"]*)"')


@functools.cache
def is_there() -> bool:
    """Whether strace is installed, and may trace."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True).returncode == 0


def calls(args: list[object], folder: Path) -> list[tuple[str, str]]:
    """The calls of ``sea-bake ARGS`` that change files below a folder: (name as in ``faults.c``, path from there)."""
    log = folder.parent / f"{folder.name}.strace"
    ran = run(
        args, "-y", "-qq", "-s", "0", "--seccomp-bpf", "-e", f"trace={','.join(f'?{c}' for c in _CALLS)}", "-o", log
    )
    assert ran.returncode == 0, ran.stderr
    found = []
    for line in log.read_text("utf-8", "replace").splitlines():
        seen = _LINE.match(line)
        if seen is None or int(seen[3]) < 0:
            continue
        name, rest = seen[1], seen[2]
        if name in ("open", "openat", "openat2") and not re.search(r"O_(CREAT|TRUNC|WRONLY|RDWR)", rest):
            continue
        path = _path(name, rest)
        if path == str(folder) or path.startswith(f"{folder}/"):
            what = "exchange" if "RENAME_EXCHANGE" in rest else _NAMES.get(name, name)
            found.append((what, os.path.relpath(path, folder)))
    return found


def run(args: list[object], *options: object) -> subprocess.CompletedProcess[str]:
    """``sea-bake ARGS`` under strace."""
    command = ["strace", "-f", *options, sys.executable, "-m", "sea_bake", *args]
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def _path(name: str, rest: str) -> str:
    """Of what a call changes: the new name of a rename or a link, the file of a handle."""
    named = _PATH.findall(rest)
    if not named:
        handles = re.findall(r"\d+<([^>]*)>", rest)
        at = 1 if name == "copy_file_range" else 0
        return handles[at] if len(handles) > at else ""
    path = named[-1]
    if os.path.isabs(path):
        return path
    folders = re.findall(r"(?:AT_FDCWD|\d+)<([^>]*)>", rest)
    return os.path.join(folders[-1], path) if folders else path
