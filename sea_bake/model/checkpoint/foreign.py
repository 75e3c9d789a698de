"""What a stranger's folder may bring besides weights, and is refused for: links that lead out of it, and code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.model.checkpoint.writer import SKIPPED_FOLDERS
from sea_bake.model.loading import check_kernels


def check_files(folder: Path) -> None:
    """Raise CheckpointError where a folder holds what is not its own: a link out of it, or no file at all (a pipe).

    What a link leads to would be carried into an artefact, and published with it. The Hub's cache is one folder to
    this: the files of its snapshots are links to its blobs. A dangling link fails when it is read.
    """
    root = folder.resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parent.parent / "blobs")
    for where, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS]
        for path in (Path(where) / name for name in (*folders, *files)):
            if path.is_symlink() and not any(_lies_in(path, home) for home in homes):
                raise CheckpointError(
                    f"{path} is a link that leads out of its folder: a checkpoint is only what lies in it. Put the "
                    "file itself there (cp -rL copies a folder with its links resolved)."
                )
            if os.path.exists(path) and not path.is_file() and not path.is_dir():
                raise CheckpointError(f"{path} is neither a file nor a folder: remove it")


def _lies_in(path: Path, home: Path) -> bool:
    try:
        return path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # links in a circle
        return False


def check_references(folder: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError where a base's files name code, of its own or of another repository.

    Carried along, they would be obeyed by whoever loads the artefact with ``trust_remote_code``, which is meant for
    ``modeling_sea.py`` alone.
    """
    for path in sorted(folder.glob("*_config.json")):
        if read_json(path).get("auto_map"):
            raise CheckpointError(
                f"{path} names custom code (auto_map), which an artefact would carry along. If transformers supports "
                "the model without it, remove that entry."
            )
    check_kernels(config)
