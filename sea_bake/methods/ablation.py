"""Directional ablation: y = h - r rᵀ h, one direction r of the residual stream for all edited layers.

Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", NeurIPS 2024, arXiv 2406.11717, sections
2.3 and 2.4: r is the unit vector along mean(H+) - mean(H-) of the residual stream at one layer, and is taken out of
whatever the attention and the MLP of every layer write. One edit has one site, so the paper's ablation is two edits of
one direction, fitted from the same activations: ``site`` attn, and ``site`` mlp. The paper also takes r out of the
embeddings, which are no site here, and it chooses the layer by trying each; here it is the one, among the first 80 % as
in the paper, behind which the roles' means lie furthest apart for their spread.

alpha = 2 is a Householder reflection, h - 2 r rᵀ h.
"""

from __future__ import annotations

from typing import Any

import torch

from sea_bake.errors import ActivationError, SettingError
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.collected import Collected, Maps, in_double, separation

_FIRST = 0.8  # of the depth: the paper leaves out the layers next to the unembedding (appendix C)


def fit(collected: Collected, *, direction: int | None = None) -> tuple[Maps, dict[str, Any]]:
    """The same map for every edited layer, and the layer that gave the direction.

    Args:
        collected: of the site ``block``, whatever is edited.
        direction: decoder layer that gives it; None: the one whose roles are furthest apart.

    Raises:
        SettingError: there are no activations of that layer.
        ActivationError: the roles have the same mean there.
    """
    if direction is not None and direction not in collected.layers:
        raise SettingError(f"direction = {direction}: there are no activations of that layer's block output")
    if direction is None:
        early = [layer for layer in collected.layers if layer < _FIRST * collected.depth]
        direction = max(early or collected.layers, key=lambda layer: separation(*collected.layers[layer][1:]))
    H_pos, H_neg = in_double(*collected.layers[direction][1:])
    difference = H_pos.mean(0) - H_neg.mean(0)
    length = torch.linalg.vector_norm(difference)
    if not float(length) > 0:
        raise ActivationError(
            f"positive and negative activations have the same mean behind layer {direction}: there is no direction to "
            "take out. Name another layer (--direction), or give other demonstrations"
        )
    r = (difference / length)[None]
    maps: Maps = {layer: AffineMap(A=r, B=-r.T) for layer in collected.edited}
    collected.advance(len(maps))
    return maps, {"direction": direction}
