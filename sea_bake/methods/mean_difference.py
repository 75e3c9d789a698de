"""Mean difference: y = h + v with v = mean(H+) - mean(H-), one vector per layer.

Contrastive Activation Addition: Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition", ACL 2024, arXiv
2312.06681, equation 1. The paper adds it behind one middle layer, at the tokens behind the prompt; a bake adds it at
every token.
"""

from __future__ import annotations

from torch import Tensor

from sea_bake.methods.affine import AffineMap
from sea_bake.methods.collected import in_double


def shift(neutral: Tensor, positive: Tensor, negative: Tensor) -> AffineMap:
    """The constant of one layer.

    Args:
        neutral: not read.
        positive, negative: H+, H-: [n, d].

    Raises:
        ActivationError: shapes that do not agree.
    """
    H_pos, H_neg = in_double(positive, negative)
    return AffineMap(constant=H_pos.mean(0) - H_neg.mean(0))
