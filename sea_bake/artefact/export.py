"""The record that every export carries: what it was made from, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json

EXPORT = "sea/export.json"


def is_export(folder: str | Path) -> bool:
    """Whether this folder was written by an export of ours."""
    return (Path(folder) / EXPORT).is_file()


def read_export(folder: str | Path) -> dict[str, Any]:
    """The record of an export. Raises CheckpointError when the folder is none of ours, or its record is damaged."""
    folder = Path(folder)
    if not is_export(folder):
        raise CheckpointError(f"{folder} is not an export of sea_bake: it has no {EXPORT}")
    return read_json(folder / EXPORT)
