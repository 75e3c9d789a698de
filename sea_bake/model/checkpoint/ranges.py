"""A file copied but for spans that are going to be written anyway: no byte is written twice."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sea_bake.errors import CheckpointError

_STEP = 1 << 26  # bytes in one call, between which Ctrl-C is heeded
_NOT_HERE = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def copy_but(source: Path, target: Path, spans: Iterable[tuple[int, int]]) -> None:
    """Make a new file of the same length, which holds the same but for spans (start, end): those read as zeros.

    The kernel copies, where it can: without a byte coming by here, and on some file systems without one being copied
    (``copy_file_range``).

    Raises:
        CheckpointError: the source became shorter meanwhile.
    """
    with open(source, "rb") as given, open(target, "xb") as made:
        size = os.fstat(given.fileno()).st_size
        os.truncate(made.fileno(), size)
        for start, end in _others(spans, size):
            while start < end:
                count = _copied(given.fileno(), made.fileno(), start, min(_STEP, end - start))
                if not count:
                    raise CheckpointError(f"{source} became shorter while it was copied")
                start += count


def _others(spans: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """What lies between spans, in order."""
    here = 0
    for start, end in sorted(spans):
        if start > here:
            yield here, min(start, size)
        here = max(here, end)
    if here < size:
        yield here, size


def _copied(given: int, made: int, start: int, count: int) -> int:
    """Copy some of so many bytes; returns how many."""
    if hasattr(os, "copy_file_range"):
        try:
            if done := os.copy_file_range(given, made, count, start, start):
                return done
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
    return os.pwrite(made, os.pread(given, min(count, 1 << 22), start), start)
