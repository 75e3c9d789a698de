"""The verdict on a graph of less precision, which never equals the edited model: what is left of the edit in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sea_bake.verification.verdict import Comparison

# Rounding the weights of a small model to 4 bits changes more than many edits do, so its distance from the edited model
# says little about the edit. What the edit changes there, against the same rounded weights without it, says it all.
KEPT = 0.8


@dataclass(frozen=True)
class Variant:
    """A graph of less precision, against the float32 model.

    Attributes:
        passed: whether the edit is in it; ``failures`` says why not.
        bits: of its weights.
        bytes: size of graph and weights on disk.
        equality: against the hook-edited base in float32. Its ``mean_kl`` is the price of the precision.
        effect: against the base in float32.
        effect_correlation: Pearson correlation, over all logits of all texts, of what the edit changes in this graph
            with what it changes in float32; None where this graph cannot be had without its edit (a fold).
    """

    passed: bool
    failures: list[str]
    bits: int
    bytes: int
    equality: Comparison
    effect: Comparison
    effect_correlation: float | None

    @property
    def verdict(self) -> str:
        """ "approximate" at best: another precision is another model."""
        return "approximate" if self.passed else "NOT verified"


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
