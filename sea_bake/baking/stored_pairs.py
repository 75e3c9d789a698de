"""What an adapter artefact holds: the pair of factors of each module, by the module's path in transformers."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.model.lora import WEIGHTS
from sea_bake.model.source import ADAPTER_CONFIG

_BEFORE = "base_model.model."
# Whatever of these is set makes other numbers of the same tensors.
_ELSE = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias", "modules_to_save", "fan_in_fan_out")


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
    odd = [key for key in _ELSE if config.get(key)]
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
    return {name: (pair["A"], pair["B"]) for name, pair in parts.items()}
