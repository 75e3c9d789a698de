"""Regular files of a limited size: no pipe, no device, no endless file, no link out of a stranger's folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from sea_bake.errors import CheckpointError

MAX_JSON = 64 << 20  # bytes; the index of the largest public checkpoint has some 20 MiB
SKIPPED_FOLDERS = {".git", ".cache", "__pycache__"}


def open_regular(path: str | Path, *, limit: int | None = None) -> BinaryIO:
    """Open a file to read its bytes. Links are followed; see :func:`check_folder` for those of a stranger.

    Args:
        limit: most bytes that such a file may have.

    Raises:
        OSError: as ``open`` does; and for a pipe, a socket, a device or a folder, and a file over the limit.
    """
    # Without O_NONBLOCK a pipe that nobody writes to would be waited for.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, f"it is {_kind(state.st_mode)}, not a file")
        if limit is not None and state.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {state.st_size:,} bytes, and such a file has at most {limit:,}")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | Path, *, limit: int) -> bytes:
    """All bytes of a regular file. Raises OSError, see :func:`open_regular`; also where it grows over the limit."""
    with open_regular(path, limit=limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes")
    return content


def read_text(path: str | Path, *, limit: int) -> str:
    """A UTF-8 file, line ends as they are. Raises OSError, see :func:`open_regular`, and UnicodeDecodeError."""
    return read_bytes(path, limit=limit).decode("utf-8")


def check_folder(folder: Path) -> None:
    """Raise CheckpointError where a folder holds what is not its own: a link out of it, or no file at all (a pipe).

    What a link leads to would be carried into an artefact, and published with it. The Hub's cache is one folder to
    this: the files of its snapshots are links to its blobs. A dangling link fails when it is read.
    """
    root = folder.resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parent.parent / "blobs")
    for where, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS]
        for path in (Path(where) / name for name in (*folders, *files)):
            if path.is_symlink() and not any(_lies_in(path, home) for home in homes):
                raise CheckpointError(
                    f"{path} is a link that leads out of its folder: a checkpoint is only what lies in it. Put the "
                    "file itself there (cp -rL copies a folder with its links resolved)."
                )
            if os.path.exists(path) and not path.is_file() and not path.is_dir():
                raise CheckpointError(f"{path} is neither a file nor a folder: remove it")


def _lies_in(path: Path, home: Path) -> bool:
    try:
        return path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # links in a circle
        return False


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")
