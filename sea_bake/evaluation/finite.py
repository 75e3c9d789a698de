"""NaN logits are an error that says where they come from, never a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sea_bake.anatomy import Site
from sea_bake.errors import EvaluationError, FamilyError
from sea_bake.hooks import hooked
from sea_bake.sites import site_modules, text_config


def check_finite(model: Any, logits: Tensor, texts: Sequence[Sequence[int]]) -> None:
    """Raise EvaluationError for logits that are NaN or infinite, naming the first layer at fault.

    Args:
        logits: [rows, tokens, vocabulary]; minus infinity is how some models forbid a token.
        texts: the token ids that gave each row, to look for the layer with.
    """
    bad = (logits.isnan() | logits.eq(float("inf"))).flatten(1).any(1)
    if not bool(bad.any()):
        return
    ids = torch.tensor([texts[int(bad.nonzero()[0])]], device=logits.device)
    where = first_bad_layer(model, ids)
    raise EvaluationError(
        f"the model answers NaN or infinite logits{f': the first bad values come out of {where}' if where else ''}. "
        "float16 overflows in some models (try --dtype float32); an edit that was lost on loading is NaN on purpose."
    )


@torch.inference_mode()
def first_bad_layer(model: Any, ids: Tensor) -> str | None:
    """ "decoder layer 12 of 30": the first whose output is not finite; None when all are (then it is the head)."""
    seen: dict[int, bool] = {}
    count = text_config(model).num_hidden_layers
    try:
        modules = site_modules(model, Site.BLOCK, range(count))
    except FamilyError:
        return None

    def look(layer: int, output: Tensor) -> None:
        seen.setdefault(layer, bool(torch.isfinite(output).all()))

    with hooked(modules, look):
        model(input_ids=ids, use_cache=False)
    bad = [layer for layer in sorted(seen) if not seen[layer]]
    return f"decoder layer {bad[0]} of {count}" if bad else "the output head"
