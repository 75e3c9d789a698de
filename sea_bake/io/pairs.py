"""A file and the JSON record beside it that speaks for it, by its digest: whatever stops a run, the two agree.

Two names cannot be taken at once. So the record comes first, and holds the one before it too (``"before"``) until the
file has taken its name: it speaks for the old file and for the new one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError, OutputError
from sea_bake.io import interrupts
from sea_bake.io.files import file_digest, json_text, read_json
from sea_bake.io.staging import staged_file

_BEFORE = "before"


def speaking(record: Mapping[str, Any], file: Path, *, digest: str = "sha256") -> dict[str, Any]:
    """Of a record that a kill has left with the one before it, that which speaks for the file.

    Args:
        digest: the key of the file's digest.
    """
    found = dict(record)
    before = found.pop(_BEFORE, None)
    if isinstance(before, dict) and file.is_file() and before.get(digest) == file_digest(file):
        return dict(before)
    return found


@contextlib.contextmanager
@interrupts.guarded
def staged_pair(
    file: Path, record: Path, *, overwrite: bool = False, digest: str = "sha256"
) -> Iterator[tuple[Path, Callable[[Mapping[str, Any]], None]]]:
    """:func:`sea_bake.io.staging.staged_file` of a file, and what is to be called with its record once it is written.

    Raises:
        OutputError: see there.
    """
    text = record.read_text("utf-8") if record.is_file() else None
    before = _spoken(record, file, digest)
    told: dict[str, Any] = {}
    place, joint = Path(record), ""  # after the first step it is not the one that was checked any more
    try:
        with staged_file(file, overwrite=overwrite) as stage:
            yield stage, told.update
            joint = json_text(told if before is None else {**told, _BEFORE: before})
            _write(record, joint)
    except BaseException:
        with interrupts.held(), contextlib.suppress(OutputError):
            if joint and not (file.is_file() and file_digest(file) == told[digest]):
                place.unlink(missing_ok=True) if text is None else _write(place, text)
        raise
    if before is not None:
        with contextlib.suppress(OutputError):  # as it is, it speaks for the file too
            _write(place, json_text(told))


def _spoken(record: Path, file: Path, digest: str) -> dict[str, Any] | None:
    """The record that speaks for the file that is there; None where none does."""
    try:
        found = speaking(read_json(record), file, digest=digest)
    except (CheckpointError, json.JSONDecodeError):
        return None
    return found if file.is_file() and found.get(digest) == file_digest(file) else None


def _write(path: Path, text: str) -> None:
    with staged_file(path, overwrite=True) as stage:
        stage.write_text(text, "utf-8")
