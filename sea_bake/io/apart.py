"""Inputs stay apart from outputs: nothing that is read lies in what is replaced, nor the other way round."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sea_bake.errors import OutputError
from sea_bake.io.regular import SKIPPED_FOLDERS

Identity = tuple[int, int]  # device and inode: two spellings of a path, and two links, are one file


def check_apart(output: str | Path, inputs: Iterable[object], *, folder: bool = True) -> None:
    """Raise OutputError where replacing ``output`` would take an input away.

    Looked at are the files themselves, by device and inode, so that links and other spellings of a path change nothing.
    An output that is not there yet takes nothing away, but a folder must not grow inside one that is read.

    Args:
        output: what is to be written, with or without something there now.
        inputs: paths that are read. Anything else (None, an open Edit) and what is not there (a Hub id, "builtin") is
            passed over.
        folder: whether the output is a folder.
    """
    output = Path(os.path.expanduser(output)).absolute()
    place = _identity(output)
    above_output = {*_above(output)}
    for given in inputs:
        if not isinstance(given, str | Path):
            continue
        source = Path(os.path.expanduser(given)).absolute()
        if not os.path.exists(source):
            continue
        if place is not None and place in (_identity(source), *_above(source)):
            raise OutputError(f"{source} is read, and lies in the output {output}: choose another output")
        if os.path.isdir(source):
            if (folder or place is not None) and _identity(source) in above_output:
                raise OutputError(f"{output} lies inside {source}, which is read: choose an output outside of it")
            for link in _links(source) if place is not None else ():
                if place in (_identity(link), *_above(link)):
                    raise OutputError(f"{link} is read, and leads into the output {output}: choose another output")


def _identity(path: Path) -> Identity | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _above(path: Path) -> Iterator[Identity]:
    """The folders that hold a path, as it is spelt and with its links resolved."""
    for parent in dict.fromkeys([*path.parents, *Path(os.path.realpath(path)).parents]):
        found = _identity(parent)
        if found is not None:
            yield found


def _links(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS]
        yield from (path for name in (*folders, *files) if (path := Path(where) / name).is_symlink())
