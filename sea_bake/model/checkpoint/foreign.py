"""What a stranger's folder may bring besides weights, and is refused for: code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.model.kernels import check_kernels


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
