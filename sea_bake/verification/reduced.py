"""The verdict on a graph of less precision, which never equals the edited model: what is left of the edit in it."""

from __future__ import annotations

import torch
from torch import Tensor

from sea_bake.artefact.verification import Comparison

# Rounding the weights of a small model to 4 bits changes more than many edits do, so its distance from the edited model
# says little about the edit. What the edit changes there, against the same rounded weights without it, says it all.
KEPT = 0.8


def judge_reduced(equality: Comparison, effect: Comparison, correlation: float | None, bits: int) -> list[str]:
    """Every reason why the edit is lost in a graph of less precision; empty when it is there.

    Its effect has to correlate above ``KEPT`` with the same in float32. With 8 bits and more, and where that is not
    known, it has to be nearer to the hook-edited base than to the base.
    """
    failures = []
    if correlation is not None and not correlation > KEPT:
        failures.append(
            f"what the edit changes correlates by {correlation:.2f} with what it changes in float32 (above {KEPT} "
            "expected)"
        )
    if (bits >= 8 or correlation is None) and not equality.mean_kl < effect.mean_kl:
        failures.append(
            f"it is no nearer to the hook-edited base (mean KL {equality.mean_kl:.3g}) than to the unedited base "
            f"({effect.mean_kl:.3g})"
        )
    return failures


def effect_correlation(
    edited: dict[str, Tensor], unedited: dict[str, Tensor], live: dict[str, Tensor], base: dict[str, Tensor]
) -> float:
    """Pearson correlation of ``edited - unedited`` (one precision) with ``live - base`` (float32), over all logits."""
    keys = sorted(key for key in live if key.startswith("logits."))
    ours = torch.cat([(edited[key].double() - unedited[key].double()).flatten() for key in keys])
    theirs = torch.cat([(live[key].double() - base[key].double()).flatten() for key in keys])
    return float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])
