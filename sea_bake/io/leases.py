"""Temporaries beside an output: hidden folders, each held by a lock for as long as its run lives.

Their names are ``.OUTPUT.sea-bake-KERNEL-RANDOM``. The system lets the lock go when a run ends, however it ends, so
the next run knows what nobody will come back for. It may only believe that of a run on its own kernel: on a shared disk
another machine's lock need not show, so there a temporary is left alone until nothing in it has changed for a day.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sea_bake.io import replacing

_MARK = ".sea-bake-"
_OLD = "old-"
_TAIL = re.compile(r"[0-9a-f]+-(old-)?\w+")
_ROOM = len(f".{_MARK}12345678-{_OLD}12345678")  # bytes that a temporary's name has more than its output's
_FORGOTTEN = 24 * 3600  # seconds

_here: list[Path] = []


class Lease:
    """A new temporary folder, and the lock that says its run lives.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path, output: Path, handles: list[int]) -> None:
        self.path, self._output = path, output
        self._handles = handles
        _here.append(path)

    def hold(self, other: Path) -> bool:
        """Hold a lock on something else until this ends: on what is about to be replaced. False where another run
        holds it.
        """
        try:
            handle = _lock(other, shared=False)
        except BlockingIOError:
            return False
        self._handles += [] if handle is None else [handle]
        return True

    def remove(self) -> bool:
        """Remove the folder and end; False where something of it is left, which is named by :func:`left_behind`.

        An old output that was set aside goes back to its name where that is free.
        """
        for _ in range(3):  # a disk may refuse once
            if not os.path.lexists(self.path):
                break
            if _holds_old(self.path) and not os.path.lexists(self._output):
                with contextlib.suppress(OSError):
                    replacing.rename_new(self.path / "old", self._output)
            if os.path.lexists(self._output) or not _holds_old(self.path):
                _remove(self.path)
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()
        if os.path.lexists(self.path):
            return False
        with contextlib.suppress(ValueError):
            _here.remove(self.path)
        return True


def make(path: Path, *, old: bool = False) -> Lease:
    """A new temporary beside an output; with ``old``, one for what lay there before."""
    mark = f"{_prefix(path)}{_kernel()}-{_OLD * old}"
    while True:
        made = Path(tempfile.mkdtemp(prefix=mark, dir=path.parent))
        try:
            handle = _lock(made, shared=True)
        except BlockingIOError:  # another run takes it for litter: it is as new as that
            continue
        except BaseException:
            _remove(made)
            raise
        if handle is None or replacing.is_at(made, replacing.Identity(*_known(handle))):
            return Lease(made, path, [] if handle is None else [handle])
        os.close(handle)  # removed already


def sweep(path: Path) -> None:
    """Remove what killed runs left beside an output, and put back the old output that one had set aside."""
    if not path.parent.is_dir():
        return
    put_back(path)
    for litter in _temporaries(path):
        with _dead(litter) as dead:
            if dead and (os.path.lexists(path) or not _holds_old(litter)):
                _remove(litter)


def put_back(path: Path) -> None:
    """Give an output its name again that a run had set aside when it was killed; and say so."""
    if os.path.lexists(path):
        return
    for aside in _temporaries(path):
        if _holds_old(aside):
            # Of another user's, in a folder for all, nothing is ours to move.
            with _dead(aside, whoever=True) as dead, contextlib.suppress(FileExistsError, PermissionError):
                if dead:
                    replacing.rename_new(aside / "old", path)
                    replacing.sync(path.parent)
                    logging.getLogger(__name__).warning("%s was put back: a run that replaced it was killed", path)
                    _remove(aside)
                    return


def left_behind() -> list[Path]:
    """Temporaries of this process that could not be removed."""
    return [path for path in _here if os.path.lexists(path)]


def longest_name(folder: Path) -> int:
    """Bytes that a name in a folder may have."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        return os.pathconf(folder, "PC_NAME_MAX")
    return 255


def _prefix(path: Path) -> str:
    """What all temporaries of an output begin with; of a long name only its beginning and a digest fit in."""
    name, room = os.fsencode(path.name), longest_name(path.parent) - _ROOM
    if len(name) <= room:
        return f".{path.name}{_MARK}"
    cut = name[: room - 9].decode("utf-8", "ignore")
    return f".{cut}~{hashlib.sha256(name).hexdigest()[:8]}{_MARK}"


@functools.cache
def _kernel() -> str:
    """8 hex digits of the kernel that this runs on: its locks are known to those who share it, containers too."""
    try:
        known = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        known = repr(os.uname() if hasattr(os, "uname") else "").encode()
    return hashlib.sha256(known).hexdigest()[:8]


def _temporaries(path: Path) -> list[Path]:
    """Those of an output, the latest first."""
    prefix, found = _prefix(path), []
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(path.parent)
    for name in names:
        if name.startswith(prefix) and _TAIL.fullmatch(name.removeprefix(prefix)):
            with contextlib.suppress(OSError):
                found.append((os.lstat(path.parent / name).st_ctime_ns, path.parent / name))
    return [temporary for _, temporary in sorted(found, reverse=True)]


def _holds_old(temporary: Path) -> bool:
    return f"-{_OLD}" in temporary.name and os.path.lexists(temporary / "old")


@contextlib.contextmanager
def _dead(temporary: Path, *, whoever: bool = False) -> Iterator[bool]:
    """Whether nobody will come back for it; its lock is ours meanwhile.

    Args:
        whoever: go by the lock alone: nothing will be removed that is worth something.
    """
    try:
        handle = _lock(temporary, shared=False)
    except BlockingIOError:
        yield False
        return
    try:
        known = handle is not None and temporary.name.rpartition(_MARK)[2].startswith(f"{_kernel()}-")
        yield whoever or known or time.time() - _last_change(temporary) > _FORGOTTEN
    finally:
        if handle is not None:
            os.close(handle)


def _last_change(temporary: Path) -> float:
    """Of it, or of anything inside: seconds since 1970; now, where that cannot be seen."""
    try:
        return max(os.lstat(path).st_ctime for path in (temporary, *temporary.rglob("*")))
    except OSError:
        return time.time()


def _lock(path: Path, *, shared: bool) -> int | None:
    """An open file that holds the lock; None where the system has no such locks, or has nothing there.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def _known(handle: int) -> tuple[int, int, int]:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
