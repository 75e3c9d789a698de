"""The last step of an output: it takes its name in one move, and takes nobody else's place.

The kernel is asked to rename only where nothing is (``RENAME_NOREPLACE``), or to exchange two names
(``RENAME_EXCHANGE``), so that at no moment a name holds nothing, or half. Where a file system knows neither, the
nearest safe thing is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sea_bake.errors import OutputError

_NOREPLACE, _EXCHANGE = (1, 4), (2, 2)  # flags of Linux and of macOS
_AT_FDCWD = -100
CURE = "look at it, and run again with another output or with --overwrite"
# Of a file system, kernel or sandbox that does not know the call; what is really forbidden, the next one refuses too.
_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP}


class Identity(NamedTuple):
    """What a file or folder is known by: no other one has these, not even under its name.

    Attributes:
        device, inode: where it is.
        changed: when its inode changed last, in ns: an inode's number is given out again.
    """

    device: int
    inode: int
    changed: int


def identity(path: Path) -> Identity | None:
    """Of what lies at a path, a link itself; None where nothing does."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Identity(found.st_dev, found.st_ino, found.st_ctime_ns)


def is_at(path: Path, which: Identity | None) -> bool:
    """Whether this thing lies there, however it has been renamed since."""
    found = identity(path)
    return found is not None and which is not None and found[:2] == which[:2]


def rename_new(source: Path, target: Path) -> None:
    """Rename where nothing is. Raises FileExistsError where something is, which is left as it is."""
    if _renamed(source, target, _NOREPLACE):
        return
    if not stat.S_ISDIR(os.lstat(source).st_mode):
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
        else:
            os.unlink(source)
            return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)  # of a folder: over an empty one at worst


def replace(
    stage: Path, path: Path, was: Identity, aside: Callable[[], Path], ours: Callable[[Path], bool]
) -> Path | None:
    """Put what was made into the place of what lay there when the run began, and of nothing else.

    Args:
        stage: the new one; where the old one could be exchanged with it, it is there afterwards.
        was: the old one.
        aside: makes an empty folder beside ``path`` for the old one; called where the two cannot be exchanged.
        ours: asked once more whether it may be replaced.

    Returns:
        Where the old one is now, if not at ``stage``.

    Raises:
        OutputError: something else lies there now; it is left as it is.
    """
    now = identity(path)
    if now is None:
        take(stage, path)
        return None
    if now != was or not ours(path):
        raise OutputError(f"{path} is no longer what it was when this run began, so it was not replaced: {CURE}")
    new = identity(stage)
    if _renamed(stage, path, _EXCHANGE):
        try:
            if not is_at(stage, was):
                raise OutputError(f"{path} was changed by another program just now, so it was not replaced: {CURE}")
            sync(path.parent)
        except BaseException:
            if is_at(path, new):
                _renamed(stage, path, _EXCHANGE)
            raise
        return None
    if not stat.S_ISDIR(os.lstat(stage).st_mode):
        os.replace(stage, path)
        sync(path.parent)
        return None
    old = aside() / "old"
    os.rename(path, old)
    try:
        if not is_at(old, was):
            raise OutputError(f"{path} was changed by another program just now, so it was not replaced: {CURE}")
        take(stage, path)
    except BaseException:
        rename_new(old, path)
        raise
    return old


def take(stage: Path, path: Path) -> None:
    """Give what was made its name, for good. Raises OutputError where something lies there by now."""
    new = identity(stage)
    try:
        rename_new(stage, path)
    except FileExistsError:
        raise OutputError(f"{path} was made by another program meanwhile, so it was not replaced: {CURE}") from None
    try:
        sync(path.parent)
    except BaseException:
        if is_at(path, new):
            rename_new(path, stage)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk. A rename is durable only then."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except PermissionError:
        if path.is_dir():  # Windows opens none; and a folder may be written to that may not be read
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):  # "not of a folder, here"
            raise
    finally:
        os.close(handle)


def _renamed(source: Path, target: Path, how: tuple[int, int]) -> bool:
    """Rename in the way named; False where this system cannot. Raises OSError."""
    call = _kernel()
    if call is None:
        return False
    ctypes.set_errno(0)
    if call(os.fsencode(source), os.fsencode(target), how[sys.platform == "darwin"]) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


@functools.cache
def _kernel() -> Callable[[bytes, bytes, int], int] | None:
    """The C library's renaming with flags; None where it has none."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return lambda old, new, flags: int(library.renamex_np(old, new, ctypes.c_uint(flags)))
        library.renameat2  # noqa: B018 (an AttributeError, if need be)
        return lambda old, new, flags: int(library.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, ctypes.c_uint(flags)))
    return None
