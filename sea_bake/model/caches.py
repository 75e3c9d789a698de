"""Keys and values that a model keeps: what they are called, and whether they can be copied, cut and shared."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from sea_bake.model.placing import input_device
from sea_bake.model.running import THEIRS


def cache_name(model: Any) -> str:
    """transformers 5.24 renames the argument and the output, family by family."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def can_share(model: Any, *, cut: bool = False) -> bool:
    """Whether a model keeps plain keys and values, one pair per layer, that can be copied and chosen from by rows.

    Args:
        cut: also shortened again, as those of a sliding window cannot be.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if getattr(model.config, "is_encoder_decoder", False):
        return False
    ids = torch.zeros(1, 2, dtype=torch.long, device=input_device(model))
    try:
        with torch.inference_mode():
            cache = model(input_ids=ids, use_cache=True).get(cache_name(model))
    except THEIRS:  # it runs without, or not at all, and then says why
        return False
    plain = (DynamicLayer,) if cut else (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in plain for layer in cache.layers)
