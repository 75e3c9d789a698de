"""JSON files, and the SHA-256 of any file, read once for as long as the file stays what it is."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError
from sea_bake.io.regular import MAX_JSON, open_regular, read_text

_BLOCK = 1 << 22
# A file that changes twice within one tick of the file system's clock has the same times after both.
_TICK = 0.02
_digests: dict[tuple[int, ...], str] = {}


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when it is missing, unreadable, no regular file, over 64 MiB, or not a JSON object."""
    try:
        data = json.loads(read_text(path, limit=MAX_JSON))
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # half a surrogate pair could not be written again
    except FileNotFoundError:
        raise CheckpointError(f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


def has_utf8(text: str) -> bool:
    """Not of a text with half a surrogate pair: what Python makes of other bytes, and of a cut-off JSON escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_text(data: dict[str, Any]) -> str:
    """Two-space JSON with a final newline, as transformers writes its own."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, data: dict[str, Any]) -> None:
    """:func:`json_text` into a file."""
    path.write_text(json_text(data), "utf-8")


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, 64 hex digits. It is read once per process, while its inode, size and times stay the same."""
    before = _identity(path)
    if before not in _digests:
        age = time.time() - before[-1] / 1e9
        if 0 <= age < _TICK:  # just written: once the tick is over, another change would show
            time.sleep(_TICK)
        found = _sha256(path)
        if age < 0 or before != _identity(path):  # changed meanwhile, or by a clock that is ahead of ours
            return found
        _digests[before] = found
    return _digests[before]


def _identity(path: str | Path) -> tuple[int, ...]:
    """Device, inode, size, and the times of the last change of content and of the inode."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _sha256(path: str | Path) -> str:
    found = hashlib.sha256()
    with open_regular(path) as file:
        for block in iter(functools.partial(file.read, _BLOCK), b""):
            found.update(block)
    return found.hexdigest()
