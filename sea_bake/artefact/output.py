"""Folders that sea_bake writes: whole or not at all, and ``--overwrite`` replaces nothing but folders of its own."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sea_bake.artefact.names import MARKS
from sea_bake.io.staging import check_output, staged_folder


def is_ours(folder: Path) -> bool:
    """An empty folder, or one that carries our mark."""
    return not any(folder.iterdir()) or any((folder / name).is_file() for name in MARKS)


def check_folder(path: str | Path, *, overwrite: bool = False) -> Path:
    """:func:`sea_bake.io.staging.check_output` of a folder. Raises OutputError."""
    return check_output(path, overwrite=overwrite, folder=True, ours=is_ours)


def staged(path: str | Path, *, overwrite: bool = False) -> contextlib.AbstractContextManager[Path]:
    """:func:`sea_bake.io.staging.staged_folder`. Raises OutputError."""
    return staged_folder(path, overwrite=overwrite, ours=is_ours)
