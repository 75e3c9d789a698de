"""LEACE: after it no linear classifier tells positive from negative, at the least change in the mean square.

Belrose et al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023, arXiv 2306.03819, section 4,
equation 1: r(x) = x - W⁺ P W (x - mean) with W = (Σxx^½)⁺ and P the orthogonal projection onto the range of W Σxz.
Fitted by the authors' package ``concept-erasure`` (extra ``leace``) with its defaults: the covariance shrunk, and its
trace kept from growing.

With n < d the package would take eigenvalues of a d x d matrix. All that depends on the data happens in the span of the
centred activations, so it is handed these in a basis of their span; its shrinkage, which depends on the width too, is
computed for the width d (:func:`shrunk`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sea_bake.methods.affine import AffineMap
from sea_bake.methods.collected import in_double

_NEGLIGIBLE = 1e-12  # of the largest factor: what a dense SVD in the package leaves of directions that are none


def eraser(neutral: Tensor, positive: Tensor, negative: Tensor) -> AffineMap:
    """A, B and the constant of one layer.

    Args:
        neutral: not read.
        positive, negative: H+, H-: [n, d].

    Raises:
        ActivationError: shapes that do not agree.
    """
    H_pos, H_neg = in_double(positive, negative)
    X = torch.cat([H_pos, H_neg])
    z = torch.cat([torch.ones(len(H_pos)), torch.zeros(len(H_neg))]).double()
    rows, d = X.shape
    mean = X.mean(0)
    if rows > d:
        left, right = _fitted(X, z, None)
    else:
        Q = _basis(X - mean)
        left, right = _fitted((X - mean) @ Q, z, d)
        left, right = Q @ left, right @ Q.T
    return AffineMap(A=right, B=-left, constant=left @ (right @ mean))


def _basis(centred: Tensor) -> Tensor:
    """[d, r] orthonormal columns that span the rows of a centred [n, d]."""
    _, s, V = torch.linalg.svd(centred, full_matrices=False)
    return V[s > s[0] * max(centred.shape) * torch.finfo(s.dtype).eps].T


def _fitted(X: Tensor, z: Tensor, width: int | None) -> tuple[Tensor, Tensor]:
    """proj_left [r, k] and proj_right [k, r] of the package, without directions that do nothing.

    Args:
        X: [n, r].
        z: [n], the labels.
        width: of the space that X is a part of; None: r.
    """
    from concept_erasure import LeaceFitter

    class Fitter(LeaceFitter):
        @property
        def sigma_xx(self) -> Any:
            return super().sigma_xx if width is None else shrunk(self.sigma_xx_ / self.n, int(self.n), width)

    fitter = Fitter(X.shape[1], 1, dtype=X.dtype)
    found = fitter.update(X, z).eraser
    left, right = found.proj_left.real, found.proj_right.real
    sizes = torch.linalg.vector_norm(left, dim=0) * torch.linalg.vector_norm(right, dim=1)
    kept = sizes > _NEGLIGIBLE * sizes.max()
    return left[:, kept], right[kept]


def shrunk(S: Tensor, n: int, d: int) -> Tensor:
    """a S + b I on the span of the data: the covariance that ``concept_erasure.optimal_linear_shrinkage`` gives in d
    dimensions (Bodnar et al. 2014, arXiv 1308.2608), of which two traces are all that depends on d.

    Args:
        S: [r, r], the sample covariance in a basis of the span.
        n: number of samples.
        d: the width of the whole space.
    """
    eps = torch.finfo(S.dtype).eps
    trace = S.trace()
    isotropic = trace.square() / d  # ‖(tr S / d) I‖², and tr(S (tr S / d) I)
    bottom = S.square().sum() * isotropic - isotropic.square()
    a = 1 - (trace.square() * isotropic / n + eps) / (bottom + eps)
    b = (1 - a) * trace / d
    return a * S + b * torch.eye(len(S), dtype=S.dtype)
