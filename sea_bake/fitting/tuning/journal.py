"""Optuna's journal file, which workers on one disk share: only ever a journal is written to, and one that goes back is
noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from sea_bake.errors import OutputError, first_line_of

_BEGUN = re.compile(rb'\{"op_code": ?\d+, ?"worker_id": ?"')  # as a killed first writer may leave it
_LONGEST = 1 << 20  # bytes of a first line: it makes a study, and has some 200
_MARK = 256  # bytes before the end that is known, by which the file is known again


def opened(path: Path) -> JournalStorage:
    """Optuna's storage in this file, which is made where it is not there.

    Raises:
        OutputError: it is something else, or damaged. Nothing is written then.
        OSError: it cannot be read or written.
    """
    check(path)
    with whole(path):
        return JournalStorage(_Backend(path))


def check(path: Path) -> None:
    """Raise OutputError unless a journal is there, or can be made there."""
    lock = Path(f"{path}.lock")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the path of a journal file, such as {path / 'journal.log'}")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} for the journal {path.name}: make it, on a disk for all")
    if path.exists() and not (path.is_file() and is_journal(path)):
        raise OutputError(f"{path} is no journal of Optuna, and is left as it is: choose another path for --storage")
    if lock.exists() and not lock.is_symlink():  # Optuna takes what has this name away
        raise OutputError(f"{lock} is there, and the lock of the journal needs that name: choose another --storage")


def is_journal(path: Path) -> bool:
    """Whether a file is empty, or begins with a record of Optuna."""
    with open(path, "rb") as file:
        line = file.readline(_LONGEST)
    if not line.endswith(b"\n"):
        return not line or _BEGUN.match(line) is not None
    try:
        first = json.loads(line)
    except ValueError:
        return False
    return isinstance(first, dict) and isinstance(first.get("op_code"), int) and isinstance(first.get("worker_id"), str)


def mend(path: Path) -> None:
    """Cut off the half of a line at the end of a journal, where a kill has left one; of no other file."""
    if not is_journal(path):
        return
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        at = end
        while at:
            at -= 1
            file.seek(at)
            if file.read(1) == b"\n":
                at += 1
                break
        if at < end:
            file.truncate(at)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[None]:
    """Raises OutputError for what Optuna makes of a damaged journal inside."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise OutputError(
            f"the journal {path} is damaged ({type(error).__name__}: {first_line_of(error)}): put back a whole copy of "
            "it, or choose another --storage"
        ) from error


class _Backend(JournalFileBackend):
    """Lines that were read or written once must still be there: Optuna reads on from where it was, and would take what
    it writes to an emptied file for written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Lock(str(path)))
        self._path, self._known, self._mark = path, 0, b""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        self._look()
        with whole(self._path):
            yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._look()  # Optuna reads behind each writing, so what befalls the file meanwhile is seen, too
        super().append_logs(logs)

    def _look(self) -> None:
        """Raises OutputError unless the file goes on where it ended, OSError where there is none."""
        with open(self._path, "rb") as file:
            file.seek(self._known - len(self._mark))
            if file.read(len(self._mark)) != self._mark:
                raise OutputError(
                    f"the journal {self._path} was emptied, replaced or put back to an earlier state while this worker "
                    "was at work, and what it held may be lost: put its newest copy there if there is one, and start "
                    "all workers again with the same line"
                )
            new = file.read()
        lines = new[: new.rfind(b"\n") + 1]  # the half of one may be cut off yet
        self._known += len(lines)
        self._mark = (self._mark + lines)[-_MARK:]


class _Lock(JournalFileSymlinkLock):
    """Whoever may write first removes the half of a line that a killed writer has left."""

    def acquire(self) -> bool:
        held = super().acquire()
        with contextlib.suppress(OSError):
            mend(Path(self._lock_target_file))
        return held
