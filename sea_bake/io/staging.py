"""Write whole or not at all: outputs grow in a temporary beside their place, and take their name in one move.

Whatever stops a run, its output is the old one whole or the new one whole. What a killed run leaves beside it is
removed, or put back, by the next one that writes to the same place.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from sea_bake.errors import OutputError
from sea_bake.io import interrupts, leases, replacing

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # Path itself cannot be derived from before Python 3.12


_CLEAN = "nothing was left behind"
_ELSEWHERE = "choose an output on another disk (or on the input's own, where files are hard-linked)"


class Checked(_Path):
    """An output path, and what lay there when it was checked: nothing else will be replaced.

    Attributes:
        was: None where nothing did; False of a path that was not checked (one that was made from this one).
    """

    was: replacing.Identity | Literal[False] | None = False

    def __repr__(self) -> str:
        return repr(Path(self))


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def check_output(
    path: str | Path, *, overwrite: bool = False, folder: bool, ours: Callable[[Path], bool] = is_empty
) -> Checked:
    """The output path, made absolute, after every check that can be made before heavy work.

    What a killed run left there is removed, or put back. Give the result to :func:`staged_folder` or
    :func:`staged_file`: what appears there from now on will not be replaced.

    Args:
        ours: whether a folder that is there may be replaced when ``overwrite`` is on.

    Raises:
        OutputError: it exists and ``overwrite`` is off; it is of the other kind; its name is too long, or its parent
            cannot be written to.
    """
    known = path.was if isinstance(path, Checked) else False
    path = Path(os.path.expanduser(path)).absolute()  # of a user that is not there it makes a plain name
    if ".." in path.parts:  # what it leads through need not exist, and is not made
        path = Path(os.path.realpath(path)) if path.name == ".." else Path(os.path.realpath(path.parent)) / path.name
    existing = next(p for p in (path.parent, *path.parent.parents) if os.path.exists(p))
    length, most = len(os.fsencode(path.name)), leases.longest_name(existing)
    if length > most:
        raise OutputError(f"{path.name[:40]}... is a name of {length} bytes, and {existing} takes {most}: shorten it")
    leases.sweep(path)
    was = replacing.identity(path)
    if was is not None:
        kind = "folder" if folder else "file"
        if path.is_symlink() or not (path.is_dir() if folder else path.is_file()):  # no device is replaced either
            raise OutputError(f"{path} exists and is not a {kind}: choose another output")
        if not overwrite:
            raise OutputError(f"{path} exists already: choose another output or pass --overwrite")
        if folder and not ours(path):
            raise OutputError(
                f"{path} was not written by sea_bake, so --overwrite will not replace it: remove it yourself"
            )
    if known is not False and was is not None and was != known:
        raise OutputError(f"{path} was made or changed since this run began, so it is not replaced: {replacing.CURE}")
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {existing}: it is not a folder that this user may write to")
    checked = Checked(path)
    checked.was = was
    return checked


def need_space(folder: Path, size: int, *, cure: str = _ELSEWHERE) -> None:
    """Refuse when the file system of ``folder`` (or its nearest existing parent) has fewer than ``size`` bytes free.

    Args:
        cure: what can be done beside making room.

    Raises:
        OutputError: not enough space, with both numbers.
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise OutputError(
            f"no space on disk: {existing} has {free / 1e6:,.1f} MB free and the output needs {size / 1e6:,.1f} MB. "
            f"Free some, or {cure}."
        )


def staged_folder(
    path: str | Path, *, overwrite: bool = False, ours: Callable[[Path], bool] = is_empty
) -> contextlib.AbstractContextManager[Path]:
    """A temporary folder beside ``path`` to fill; it becomes ``path`` on success, and is removed on any exception.

    Raises:
        OutputError: see :func:`check_output`; something else lies there at the end; the disk filled up on the way.
    """
    return _Folder(path, overwrite=overwrite, ours=ours)


def staged_file(path: str | Path, *, overwrite: bool = False) -> contextlib.AbstractContextManager[Path]:
    """A temporary file beside ``path`` to write; it becomes ``path`` on success, and is removed on any exception.

    Raises:
        OutputError: see :func:`check_output`; something else lies there at the end; the disk filled up on the way.
    """
    return _File(path, overwrite=overwrite)


def scratch_folder(path: Path) -> contextlib.AbstractContextManager[Path]:
    """A temporary folder beside ``path``, for what is needed only while ``path`` is made; always removed.

    Raises:
        OutputError: the disk filled up on the way.
    """
    return _Scratch(path)


class _Scratch:
    """The life of a temporary: made, used, and removed whatever happens, and no Ctrl-C comes in between."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.parents: list[Path] = []
        self.leases: list[leases.Lease] = []
        self.made: replacing.Identity | None = None

    @interrupts.guarded
    def __enter__(self) -> Path:
        try:
            interrupts.check()
            self._check()
            with interrupts.held():
                self._make_parents()
                self.leases.append(leases.make(self.path))
                return self._begin(self.leases[0].path)
        except BaseException as error:
            self._end(error)
            raise

    @interrupts.guarded
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._end(error)
            return
        try:
            interrupts.check()
            self._finish(self.leases[0].path)
        except BaseException as problem:
            self._end(problem)
            raise
        with interrupts.held():
            if left := self._remove():
                logging.getLogger(__name__).warning("%s could not be removed", left)

    def _check(self) -> None:
        """Before anything is made. Raises OutputError."""
        leases.sweep(self.path)

    def _begin(self, temporary: Path) -> Path:
        return temporary

    def _finish(self, temporary: Path) -> None:
        """What is done with what was made."""

    def _end(self, error: BaseException) -> None:
        """Raise what an error of the disk is to the user, after the temporary is gone, or known not to be."""
        with interrupts.held():
            self._remove()
            for parent in reversed(self.parents):
                with contextlib.suppress(OSError):  # somebody uses it by now
                    parent.rmdir()
        number, left = _error_number(error), " and ".join(map(str, leases.left_behind()))
        rest = f"{left} could not be removed either" if left else _CLEAN
        if left and isinstance(error, OutputError) and _CLEAN in str(error):  # of something inside of this one
            raise OutputError(str(error).replace(_CLEAN, rest)) from error
        if number is None:
            return
        space = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if replacing.is_at(self.path, self.made):
            raise OutputError(f"{self.path} is written and whole, but its disk may not keep it ({error})") from error
        what = f"no space on disk while writing {self.path}" if space else f"{self.path} could not be written"
        raise OutputError(f"{what}: {rest} ({error})") from error

    def _remove(self) -> str:
        """Names what could not be."""
        return " and ".join(str(lease.path) for lease in reversed(self.leases) if not lease.remove())

    def _make_parents(self) -> None:
        for parent in reversed([p for p in (self.path.parent, *self.path.parent.parents) if not p.exists()]):
            parent.mkdir(exist_ok=True)
            self.parents.append(parent)
            replacing.sync(parent.parent)


class _Folder(_Scratch):
    def __init__(self, path: str | Path, *, overwrite: bool, ours: Callable[[Path], bool]) -> None:
        super().__init__(path)
        self.given, self.overwrite, self.ours = path, overwrite, ours

    def _check(self) -> None:
        self.path = check_output(self.given, overwrite=self.overwrite, folder=True, ours=self.ours)

    def _finish(self, temporary: Path) -> None:
        temporary.chmod(0o777 & ~_umask())
        folders = [temporary]
        for path in temporary.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            # A hard link is the input's own file.
            elif path.is_file() and path.lstat().st_nlink == 1 and not path.is_symlink():
                _settle(path)
            interrupts.check()
        for folder in reversed(folders):
            replacing.sync(folder)
        self._take(temporary)

    def _take(self, made: Path) -> None:
        assert isinstance(self.path, Checked)
        self.made = replacing.identity(made)
        interrupts.check()
        with interrupts.held():
            if not self.path.was:
                replacing.take(made, self.path)
                return
            if not self.leases[0].hold(self.path):
                raise OutputError(f"{self.path} is being replaced by another run just now: {replacing.CURE}")
            replacing.replace(made, self.path, self.path.was, self._aside, self.ours)

    def _aside(self) -> Path:
        self.leases.append(leases.make(self.path, old=True))
        return self.leases[-1].path


class _File(_Folder):
    def __init__(self, path: str | Path, *, overwrite: bool) -> None:
        super().__init__(path, overwrite=overwrite, ours=lambda _: True)

    def _check(self) -> None:
        self.path = check_output(self.given, overwrite=self.overwrite, folder=False)

    def _begin(self, temporary: Path) -> Path:
        file = temporary / self.path.name
        file.touch(mode=0o600)
        return file

    def _finish(self, temporary: Path) -> None:
        _settle(temporary / self.path.name)
        self._take(temporary / self.path.name)


def _settle(file: Path) -> None:
    """On disk, and readable to whom the umask allows: safetensors and tempfile write files for their owner only."""
    file.chmod(0o666 & ~_umask())
    replacing.sync(file)


def _error_number(error: BaseException) -> int | None:
    """The operating system's, which safetensors wraps in an error of its own and tokenizers in a bare Exception; None
    where it is none of the system.
    """
    if isinstance(error, OSError):
        return error.errno or 0
    theirs = type(error) is Exception or type(error).__name__ == "SafetensorError"
    found = re.search(r"os error (\d+)", str(error)) if theirs else None
    return int(found[1]) if found else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
