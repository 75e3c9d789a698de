"""What an adapter artefact holds: the pair of factors of each module, by the module's path in transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.model.lora import WEIGHTS
from sea_bake.model.source import ADAPTER_CONFIG

_BEFORE = "base_model.model."
# What bake sets, and what PEFT adds when it saves that again. Whatever else is set may make other numbers of it.
_PLAIN = {
    "base_model_name_or_path", "bias", "inference_mode", "init_lora_weights", "layers_to_transform", "lora_alpha",
    "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision",
    "target_modules", "task_type",
}  # fmt: skip
_FIXED = {"bias": "none", "init_lora_weights": True}


def stored_pairs(folder: Path, *, experts: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Module path -> A [rank, in] and B [d, rank], float32; one rank for all, and a scale of 1.

    Args:
        folder: of an adapter that ``bake`` wrote.
        experts: the cure where it adapts fused experts.

    Raises:
        CheckpointError: fused experts, whose layout is PEFT's own; or it is not as ``bake`` wrote it.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    rank = config.get("r")
    if config.get("target_parameters"):
        raise CheckpointError(f"{folder} adapts fused experts, in a layout that is PEFT's own. {experts}")
    odd = [key for key, value in config.items() if value and (key not in _PLAIN or value != _FIXED.get(key, value))]
    if not isinstance(rank, int) or config.get("lora_alpha") != rank or config.get("peft_type") != "LORA" or odd:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} is not as sea_bake writes it (one rank, lora_alpha equal to it, and no more: "
            f"{', '.join(odd) or 'r and lora_alpha'}): bake the edit once more with --how adapter"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(str(folder / WEIGHTS), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                path, _, part = name.removeprefix(_BEFORE).removesuffix(".weight").rpartition(".lora_")
                if name != f"{_BEFORE}{path}.lora_{part}.weight" or part not in ("A", "B"):
                    raise CheckpointError(f"{folder / WEIGHTS} holds {name}, which no adapter of an edit has")
                parts.setdefault(path, {})[part] = file.get_tensor(name).float()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: it is missing, truncated or damaged") from error
    for name, pair in parts.items():
        sizes = {part: tuple(tensor.shape) for part, tensor in pair.items()}
        if set(pair) != {"A", "B"} or sizes["A"][:-1] != (rank,) or sizes["B"][1:] != (rank,):
            raise CheckpointError(f"{folder / WEIGHTS} is damaged: its pair for {name} is not whole, of rank {rank}")
    if not parts:
        raise CheckpointError(f"{folder / WEIGHTS} is empty")
    if not _are_meant(set(parts), config.get("target_modules"), config.get("layers_to_transform")):
        raise CheckpointError(
            f"{folder / WEIGHTS} holds pairs for other modules than {ADAPTER_CONFIG} names, so PEFT would make another "
            "model of it: bake the edit once more with --how adapter"
        )
    return {name: (pair["A"], pair["B"]) for name, pair in parts.items()}


def _are_meant(paths: set[str], targets: Any, layers: Any) -> bool:
    """Whether a configuration names just these modules, as bake does: by full names, or by last names and layers."""
    if not isinstance(targets, list) or not layers:
        return isinstance(targets, list) and set(targets) == paths
    numbers = {int(found[1]) for path in paths if (found := re.search(r"\.(\d+)\.", path))}
    return numbers == set(layers) and all(any(path.endswith(f".{name}") for name in targets) for path in paths)
