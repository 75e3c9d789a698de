"""Folders that sea_bake writes: whole or not at all, and ``--overwrite`` replaces nothing but folders of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sea_bake.artefact.names import MARKS
from sea_bake.io.staging import check_output, staged_folder


def is_ours(folder: Path) -> bool:
    """An empty folder, or one that carries our mark."""
    return not any(folder.iterdir()) or any((folder / name).is_file() for name in MARKS)


# These raise OutputError.
check_folder = partial(check_output, folder=True, ours=is_ours)
staged = partial(staged_folder, ours=is_ours)
