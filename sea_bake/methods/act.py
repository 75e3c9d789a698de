"""Linear-AcT: y = w ⊙ h + b, unit by unit the optimal transport from negative to positive activations.

Rodriguez et al., "Controlling Language and Diffusion Models by Transporting Activations", ICLR 2025, arXiv 2410.23054,
section 3: in one dimension optimal transport pairs sorted samples, and w and b are the least-squares line through these
pairs. alpha is the paper's lambda. Where this differs: all layers are fitted on the base's activations (the paper's
causal variant fits each behind the edited ones before it), and the line holds everywhere (the paper may leave what lies
outside of the samples' range as it is, which no weight could do).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sea_bake.methods.affine import AffineMap
from sea_bake.methods.collected import in_double


def transport(neutral: Tensor, positive: Tensor, negative: Tensor) -> AffineMap:
    """Scale and constant of one layer.

    Args:
        neutral: not read.
        positive, negative: H+, H-: [n, d].

    Raises:
        ActivationError: shapes that do not agree.
    """
    target, source = (torch.sort(H, dim=0).values for H in in_double(positive, negative))
    means = target.mean(0), source.mean(0)
    target, source = target - means[0], source - means[1]
    energy = source.square().sum(0)
    still = energy <= torch.finfo(energy.dtype).tiny  # a unit that does not vary is shifted, and not scaled
    scale = torch.where(still, 1.0, (target * source).sum(0) / energy.clamp_min(torch.finfo(energy.dtype).tiny))
    return AffineMap(scale=scale, constant=means[0] - scale * means[1])
