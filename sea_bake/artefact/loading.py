"""An inserted artefact as a living model, through the package's own code: the file inside the artefact is never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sea_bake import modeling_sea
from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.model.loading import architecture, check_kernels


def load_inserted(folder: Path, *, dtype: torch.dtype | str, device: str = "cpu") -> Any:
    """The edited model in evaluation mode; SEA tensors stay float32.

    Raises:
        CheckpointError: it is incomplete or damaged; the message carries transformers' own reason.
    """
    config = read_json(folder / "config.json")
    check_kernels(config)
    name = architecture(config) or ""
    options = {"device_map": device} if device != "cpu" else {}
    try:
        kind = getattr(modeling_sea, name if name.startswith("SEA") else f"SEA{name}")
        model, info = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"the artefact {folder} cannot be loaded: {reason}") from error
    if info["missing_keys"]:  # transformers fills them with random numbers, and goes on
        raise CheckpointError(f"{folder} is incomplete: it lacks {sorted(info['missing_keys'])[0]}")
    return model.eval()
