"""Principal direction of the differences H+ - H-: y = h + v.

Zou et al., "Representation Engineering: A Top-Down Approach to AI Transparency", 2023, arXiv 2310.01405, section 3.1
(linear artificial tomography); control vectors (the package repeng, "pca_diff").

The paper gives pairs a random order, so that their differences have no mean: its direction is the principal one of the
plain second moments (``centre`` False). repeng subtracts the mean of the differences first (``centre`` True). A
principal direction has neither sign nor length. Here it has repeng's sign, towards the positive of most pairs, and the
length of a typical difference along it, their root mean square. (repeng's has length 1, whatever the activations'.) The
mean difference need not go along it at all: where what varies most has nothing to do with the answers' being positive
or negative, neither has this vector, at any strength.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sea_bake.methods.affine import AffineMap
from sea_bake.methods.collected import in_double

_ROUNDING = 1e-12  # what is left of equal differences without their mean, relative to their length


def shift(neutral: Tensor, positive: Tensor, negative: Tensor, *, centre: bool = True) -> AffineMap:
    """The constant of one layer, by a thin SVD of the [n, d] differences.

    Args:
        neutral: not read.
        positive, negative: H+, H-: [n, d], row by row of one demonstration.
        centre: subtract the differences' mean first.

    Raises:
        ActivationError: shapes that do not agree.
    """
    H_pos, H_neg = in_double(positive, negative)
    differences = H_pos - H_neg
    mean = differences.mean(0)
    rows = differences - mean if centre else differences
    _, s, V = torch.linalg.svd(rows, full_matrices=False)
    if float(s[0]) <= _ROUNDING * float(torch.linalg.matrix_norm(differences)):
        return AffineMap(constant=mean)  # all differences are one: it is their direction
    along = differences @ V[0]
    agree = float(along.sign().sum()) or float(along.sum())  # as many either way: the longer ones decide
    return AffineMap(constant=(-1 if agree < 0 else 1) * along.square().mean().sqrt() * V[0])
