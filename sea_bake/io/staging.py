"""Write whole or not at all: outputs grow in a sibling temporary and are renamed at the end.

A kill at any point leaves the finished output or nothing under its name; the temporary of a killed run is removed by
the next run that writes to the same place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sea_bake.errors import OutputError
from sea_bake.io import interrupts

_MARK = ".sea-bake-"


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def check_output(
    path: str | Path, *, overwrite: bool = False, folder: bool, ours: Callable[[Path], bool] = is_empty
) -> Path:
    """The output path, made absolute, after every check that can be made before heavy work.

    Args:
        ours: whether a folder that is there may be replaced when ``overwrite`` is on.

    Raises:
        OutputError: it exists and ``overwrite`` is off; it is of the other kind; its parent cannot be written to.
    """
    path = Path(os.path.expanduser(path)).absolute()  # of a user that is not there it makes a plain name
    kind = "folder" if folder else "file"
    if path.exists() or path.is_symlink():
        if path.is_dir() != folder or path.is_symlink():
            raise OutputError(f"{path} exists and is not a {kind}: choose another output")
        if not overwrite:
            raise OutputError(f"{path} exists already: choose another output or pass --overwrite")
        if folder and not ours(path):
            raise OutputError(
                f"{path} was not written by sea_bake, so --overwrite will not replace it: remove it yourself"
            )
    parent = path.parent
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {existing}: it is not a folder that this user may write to")
    return path


def need_space(folder: Path, size: int) -> None:
    """Refuse when the file system of ``folder`` (or its nearest existing parent) has fewer than ``size`` bytes free.

    Raises:
        OutputError: not enough space, with both numbers.
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise OutputError(
            f"no space on disk: {existing} has {free / 1e6:,.1f} MB free and the output needs {size / 1e6:,.1f} MB. "
            "Free some, or choose an output on another disk (or on the input's own, where files are hard-linked)."
        )


@contextlib.contextmanager
def staged_folder(
    path: str | Path, *, overwrite: bool = False, ours: Callable[[Path], bool] = is_empty
) -> Iterator[Path]:
    """A temporary sibling folder to fill; renamed to ``path`` on success, removed on any exception.

    Raises:
        OutputError: see :func:`check_output`; or the disk filled up on the way.
    """
    path = check_output(path, overwrite=overwrite, folder=True, ours=ours)
    with scratch_folder(path) as stage:
        yield stage
        stage.chmod(0o777 & ~_umask())
        for file in stage.rglob("*"):
            if file.is_file() and file.stat().st_nlink == 1:  # a hard link is the input's own file
                _settle(file)
        interrupts.check()
        _swap_in(stage, path)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, for what is needed only while ``path`` is made; always removed.

    Raises:
        OutputError: the disk filled up on the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}{_MARK}{os.getpid()}-", dir=path.parent))
    try:
        with _disk_errors(path):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def staged_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling file to write; renamed to ``path`` on success, removed on any exception.

    Raises:
        OutputError: see :func:`check_output`; or the disk filled up on the way.
    """
    path = check_output(path, overwrite=overwrite, folder=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{_MARK}{os.getpid()}-", dir=path.parent)
    os.close(handle)
    stage = Path(name)
    try:
        with _disk_errors(path):
            yield stage
            _settle(stage)
            interrupts.check()
            os.replace(stage, path)
    finally:
        stage.unlink(missing_ok=True)


def _swap_in(stage: Path, path: Path) -> None:
    if path.exists():  # --overwrite: the old artefact steps aside, so that the name never holds a mixture
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}{_MARK}{os.getpid()}-old-", dir=path.parent))
        os.rename(path, aside / "old")
        os.rename(stage, path)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(stage, path)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"no space on disk while writing {path}: nothing was left behind ({error})") from error
        raise OutputError(f"{path} could not be written: nothing was left behind ({error})") from error
    except Exception as error:  # safetensors wraps the operating system's error in its own type
        if type(error).__name__ == "SafetensorError" and any(s in str(error) for s in ("os error 28", "os error 27")):
            raise OutputError(f"no space on disk while writing {path}: nothing was left behind ({error})") from error
        raise


def _sweep(path: Path) -> None:
    """Remove what killed runs left beside ``path``: temporaries whose process is gone."""
    for litter in [p for p in path.parent.iterdir() if p.name.startswith(f".{path.name}{_MARK}")]:
        pid = litter.name.split(_MARK, 1)[1].split("-", 1)[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            if litter.is_dir():
                shutil.rmtree(litter, ignore_errors=True)
            else:
                litter.unlink(missing_ok=True)


def _settle(file: Path) -> None:
    """On disk, and readable to whom the umask allows: safetensors and tempfile write files for their owner only."""
    file.chmod(0o666 & ~_umask())
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
