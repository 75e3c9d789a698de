"""What a model changes about the base's logits, held against what the edit changes: how alike, how strong."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sea_bake.verification.verdict import Answers

NOTHING_CHANGED = (
    "the edit changes no logit of these texts, so what is left of it cannot be measured: prove an edit that does "
    "something (sea-bake inspect says what is in one)"
)


def effect_correlation(edited: Answers, unedited: Answers, live: Answers, base: Answers) -> float | None:
    """Pearson correlation of ``edited - unedited`` (one precision) with ``live - base`` (float32), over all logits.

    0 where nothing is changed, and None where the edit itself changes no logit.
    """
    ours, theirs = _differences(edited, unedited, live, base)
    if not theirs.any():
        return None
    found = float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])
    return found if found == found else 0.0


def likeness(model: Answers, live: Answers, base: Answers) -> str:
    """How what a model changes about the base's logits compares with what the edit changes: which way, and how much."""
    found = along(model, base, live, base)
    if found is None:
        return NOTHING_CHANGED
    strength, cosine = found
    return (
        f"what it changes about the base points where the edit's change does by a cosine of {cosine:.3f} (1 expected), "
        f"{strength:.2f} times as strong along it"
    )


def along(model: Answers, unedited: Answers, live: Answers, base: Answers) -> tuple[float, float] | None:
    """How far ``model - unedited`` goes along ``live - base``, in lengths of that; and the cosine of the two.

    None where the edit changes no logit: there is no way to go along.
    """
    theirs, ours = _differences(model, unedited, live, base)
    if not ours.any():
        return None
    return float(theirs @ ours / (ours @ ours)), float(F.cosine_similarity(theirs, ours, dim=0))


def _differences(*doors: Answers) -> list[Tensor]:
    """Of the first two doors and of the last two, over all logits of all texts."""
    keys = sorted(key for key in doors[2] if key.startswith("logits."))
    return [
        torch.cat([(one[key].double() - other[key].double()).flatten() for key in keys])
        for one, other in (doors[:2], doors[2:])
    ]
