"""Is the code that an inserted artefact brings along ours? And the artefact living, through the package's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sea_bake import modeling_sea
from sea_bake.artefact.names import CODE
from sea_bake.errors import CheckpointError, first_line_of
from sea_bake.io.files import file_digest, read_json
from sea_bake.io.regular import check_folder
from sea_bake.model.kernels import check_kernels
from sea_bake.model.loading import architecture
from sea_bake.model.placing import Placement

# SHA-256 of what earlier versions wrote: before there were affine maps, and before these took one product less.
_EARLIER = (
    "4a806306ff3e8f306c3c24660815a7cc80c9cbae3ad57c930f3c56428b2b5d31",
    "e050502b906d1f57a403245b61f6ccea6f8f4790f8e327b1672f6140d42cbdbf",
)


def check_code(artefact: Path) -> None:
    """Raise CheckpointError unless the code that ``trust_remote_code`` would run for an inserted artefact is ours.

    That is: ``modeling_sea.py`` is this sea_bake's, or an earlier one's, byte for byte, and no configuration names any
    other code.
    """
    check_folder(artefact)
    ours, theirs = Path(modeling_sea.__file__), artefact / CODE
    if not theirs.is_file():
        raise CheckpointError(f"{theirs} is missing: the artefact is not whole")
    if file_digest(theirs) not in (file_digest(ours), *_EARLIER):
        raise CheckpointError(
            f"{theirs} is not this sea_bake's (sha256 {file_digest(theirs)[:16]}..., not {file_digest(ours)[:16]}...), "
            "so it is not run: it was changed, or comes from another version. Bake again, or use the sea_bake that "
            "made it."
        )
    for path in sorted(artefact.glob("*config.json")):
        named = read_json(path).get("auto_map") or {}
        codes = named.values() if isinstance(named, dict) else [named]
        if any(not isinstance(code, str) or not code.startswith(f"{theirs.stem}.SEA") for code in codes):
            raise CheckpointError(f"{path} names other code than {CODE} (auto_map): it is not run. Bake it again.")
    check_kernels(read_json(artefact / "config.json"))


def load_inserted(folder: Path, *, dtype: torch.dtype | str, device: str = "cpu") -> Any:
    """The edited model in evaluation mode; SEA tensors stay float32. The file of code inside the artefact is never run.

    Raises:
        CheckpointError: it is incomplete or damaged; the message carries transformers' own reason.
    """
    config = read_json(folder / "config.json")
    check_kernels(config)
    name = architecture(config) or ""
    place = Placement(device)
    try:
        kind = getattr(modeling_sea, name if name.startswith("SEA") else f"SEA{name}")
        model, info = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **place.options
        )
    except Exception as error:
        place.drop()
        why = f"{first_line_of(error)}{place.cure(error)}"
        raise CheckpointError(f"the artefact {folder} cannot be loaded: {why}") from error
    place.of(model)
    if info["missing_keys"]:  # transformers fills them with random numbers, and goes on
        raise CheckpointError(f"{folder} is incomplete: it lacks {sorted(info['missing_keys'])[0]}")
    return model.eval()
