"""What a config.json still says of a quantisation that its weights no longer have: the tensors decide, not the word."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sea_bake.model.checkpoint.dtypes import BOOL, INT32, Dtype

# Tensor names that only a quantiser writes.
MARKS = {
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".g_idx": "gptq",
    ".qweight": "gptq or awq",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "fp8",
    ".weight_scale": "fp8",
    "_blocks": "mxfp4",
}
_SCALES = (".input_scale", ".k_scale", ".v_scale")  # of activations and caches alone, beside plain weights
_KEYS = ("quantization_config", "compression_config")
_ONLINE = ("bitnet",)  # quantises plain weights whenever they are used: there the word counts
_MASKS = (".bias", ".masked_bias", "position_ids")  # of older checkpoints, stored as bytes


def claimed(config: dict[str, Any]) -> str | None:
    """The quantisation that a config.json names, for the whole model or its text part: "gptq", "bitsandbytes", ..."""
    for part in (config, config.get("text_config") or {}):
        found = next((part[key] for key in _KEYS if part.get(key)), None) if isinstance(part, dict) else None
        if isinstance(found, dict):
            bits = any(found.get(key) for key in ("load_in_4bit", "load_in_8bit"))
            return str(found.get("quant_method") or ("bitsandbytes" if bits else "by an unnamed method"))
    return None


def unclaimed(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration without that entry, in all of its parts."""
    kept = {key: value for key, value in config.items() if key not in _KEYS}
    return {key: unclaimed(value) if isinstance(value, dict) else value for key, value in kept.items()}


def is_left_over(config: dict[str, Any], names: Iterable[str], dtype: Callable[[str], Dtype]) -> bool:
    """Whether a config.json names a quantisation, and not one tensor shows any.

    Args:
        names: of all tensors.
        dtype: of a tensor.
    """
    method = claimed(config)
    if method is None or method in _ONLINE:
        return False
    return not any(_shows(name, dtype(name)) for name in names)


def _shows(name: str, dtype: Dtype) -> bool:
    narrow = dtype.itemsize < 2 or dtype == INT32
    plain = dtype == BOOL or name.endswith(_MASKS)
    return name.endswith((*MARKS, *_SCALES)) or (narrow and not plain)


def without_claim(config: Any) -> Any:
    """A configuration of transformers without that entry, in all of its parts: changed in place, and returned."""
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))):
        for key in _KEYS:
            if part is not None and hasattr(part, key):
                delattr(part, key)
    return config


def remark(method: str) -> str:
    """What is said of it."""
    return (
        f"config.json names a quantisation ({method}) that no tensor shows: it is left over, and the weights are taken "
        "as they are"
    )
