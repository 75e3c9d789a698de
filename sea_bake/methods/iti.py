"""Inference-time intervention: x + sigma theta in the attention heads that know the difference best.

Li et al., "Inference-Time Intervention: Eliciting Truthful Answers from a Language Model", NeurIPS 2023, arXiv
2306.03341, section 3, equation 2; the variant "mass mean shift", the paper's best: theta is the unit vector from
mean(H-) to mean(H+) of a head, sigma the standard deviation of both roles' activations along it. Heads are ranked by
how well a linear probe tells positive from negative. Where this differs: the probe is a ridge regression onto ±1 in
closed form (the paper's is logistic), its accuracy comes from five folds (the paper's from one held-back fifth), and
both answers of a demonstration lie in one fold.

The strength alpha of an edit is the paper's: 15 is what it takes for LLaMA-7B. Our default is 6: 15 wrecks SmolLM2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sea_bake.errors import ActivationError, SettingError
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.collected import Collected, Maps, in_double

FOLDS = 5
_RIDGE = 0.1  # of the probe, in units of the mean eigenvalue of its covariance


def fit(collected: Collected, *, heads: float | int) -> tuple[Maps, dict[str, Any]]:
    """Constants of the layers in which some head is chosen, and which heads these are, with the probes' accuracies.

    Args:
        collected: of the site ``heads``.
        heads: share of all heads of the edited layers, or how many.

    Raises:
        SettingError: a share outside of (0, 1], or more heads than there are.
        ActivationError: a width that is no multiple of the number of heads, or no head whose means differ.
    """
    check_heads(heads)
    correct: dict[tuple[int, int], int] = {}
    for layer in collected.edited:
        _, positive, negative = collected.layers[layer]
        for head, count in enumerate(probed(positive, negative, collected.heads).tolist()):
            correct[layer, head] = count
        collected.advance(1)
    wanted = heads if isinstance(heads, int) else max(1, round(heads * len(correct)))
    if wanted > len(correct):
        raise SettingError(f"heads = {heads}: the edited layers have {len(correct)} attention heads")
    best = sorted(correct, key=lambda place: (-correct[place], place))[:wanted]  # of equals the earlier one
    of_layer = {layer: [h for where, h in sorted(best) if where == layer] for layer in sorted({p[0] for p in best})}
    maps: Maps = {
        layer: shift(*collected.layers[layer], heads=collected.heads, chosen=chosen)
        for layer, chosen in of_layer.items()
    }
    answers = 2 * len(collected.layers[collected.edited[0]][1])
    told = {str(layer): {str(h): correct[layer, h] / answers for h in chosen} for layer, chosen in of_layer.items()}
    return maps, {"chosen_heads": told}


def check_heads(heads: float | int) -> None:
    """Raises SettingError unless it is a share in (0, 1] or a whole number above 0."""
    whole = isinstance(heads, int) and not isinstance(heads, bool)
    if not (whole and heads >= 1) and not (isinstance(heads, float) and 0 < heads <= 1):
        raise SettingError(f"heads = {heads!r} is neither a share in (0, 1], such as 0.05, nor how many, such as 48")


def probed(positive: Tensor, negative: Tensor, heads: int) -> Tensor:
    """How many of the 2 n activations a head's probe tells right, each by the probe of the folds without it: [heads].

    Args:
        positive, negative: H+, H-: [n, heads * size].
        heads: number of attention heads.

    Raises:
        ActivationError: shapes that do not agree.
    """
    H_pos, H_neg = (_by_head(H, heads) for H in in_double(positive, negative))
    n = H_pos.shape[1]
    fold = torch.arange(n) % FOLDS
    correct = torch.zeros(heads, dtype=torch.long)
    for held in range(min(FOLDS, n)):
        own = fold == held
        X = torch.cat([H_pos[:, ~own], H_neg[:, ~own]], dim=1)  # [heads, rows, size]
        y = torch.cat([torch.ones(int((~own).sum())), -torch.ones(int((~own).sum()))]).double()
        mean = X.mean(1, keepdim=True)
        X = X - mean
        S = X.mT @ X
        size = S.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-300)
        S = S + _RIDGE * size[:, None, None] * torch.eye(S.shape[-1], dtype=S.dtype)
        w = torch.linalg.solve(S, (X.mT @ y)[..., None])
        correct += ((H_pos[:, own] - mean) @ w > 0).sum((1, 2)) + ((H_neg[:, own] - mean) @ w < 0).sum((1, 2))
    return correct


def shift(neutral: Tensor, positive: Tensor, negative: Tensor, *, heads: int, chosen: list[int]) -> AffineMap:
    """sigma theta of the chosen heads of one layer, 0 in the others.

    Args:
        neutral: not read.
        positive, negative: H+, H-: [n, heads * size].
    """
    H_pos, H_neg = (_by_head(H, heads) for H in in_double(positive, negative))
    theta = H_pos.mean(1) - H_neg.mean(1)  # [heads, size]
    theta = theta / torch.linalg.vector_norm(theta, dim=-1, keepdim=True).clamp_min(1e-300)
    along = (torch.cat([H_pos, H_neg], dim=1) @ theta[..., None]).squeeze(-1)  # [heads, 2 n]
    constant = torch.zeros_like(theta)
    constant[chosen] = along.std(1, correction=0)[chosen, None] * theta[chosen]
    return AffineMap(constant=constant.flatten())


def _by_head(H: Tensor, heads: int) -> Tensor:
    """[n, heads * size] -> [heads, n, size]."""
    if heads < 1 or H.shape[1] % heads:
        raise ActivationError(f"activations of width {H.shape[1]} do not come from {heads} attention heads")
    return H.reshape(len(H), heads, -1).transpose(0, 1)
