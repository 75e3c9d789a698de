"""The best linear stand-in for an edit: y ≈ M h with M = s I + B A of low rank, from second moments alone.

Least squares in s and in the rank-r remainder together: with s fixed, the remainder is the reduced-rank regression of
y - s h on h (Izenman, Journal of Multivariate Analysis 5, 1975, 248-264), with a ridge (Mukherjee and Zhu, Statistical
Analysis and Data Mining 4, 2011, 612-622); with the remainder fixed, s has a closed form. The two alternate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sea_bake.baking.linear import LinearEdit

# λ = ridge · mean eigenvalue of E[h hᵀ]: from "as good as none" to "shrink even the strong directions".
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0)
_ROUNDS = 30  # of s and remainder in turn; a handful is the rule
_SETTLED = 1e-6  # change of s, whose size is about 1: the error, at its minimum, then changes in the sixth digit
_OVERSAMPLING, _POWERS = 16, 4  # of the randomised SVD (Halko, Martinsson and Tropp 2011); exact where r + 16 >= d


class Moments:
    """Sums over tokens of h hᵀ, y hᵀ and |y|², in float64: 16 d² bytes.

    Attributes:
        hh, yh: [d, d].
        yy: Σ |y|².
        count: tokens.
    """

    def __init__(self, dim: int) -> None:
        self.hh = torch.zeros(dim, dim, dtype=torch.float64)
        self.yh = torch.zeros(dim, dim, dtype=torch.float64)
        self.yy, self.count = 0.0, 0

    def add(self, h: Tensor, y: Tensor) -> None:
        """h, y: [tokens, d], any float dtype and device."""
        h, y = h.cpu().double(), y.cpu().double()
        self.hh.addmm_(h.T, h)
        self.yh.addmm_(y.T, h)
        self.yy += float(y.square().sum())
        self.count += len(h)

    def __add__(self, other: Moments) -> Moments:
        both = Moments(len(self.hh))
        both.hh, both.yh = self.hh + other.hh, self.yh + other.yh
        both.yy, both.count = self.yy + other.yy, self.count + other.count
        return both

    def error(self, M: LinearEdit) -> float:
        """Σ |y - M h|²."""
        MH = M(self.hh)
        return self.yy - 2 * _inner(M, self.yh) + _inner(M, MH)


def _inner(M: LinearEdit, X: Tensor) -> float:
    """⟨M, X⟩ without forming M."""
    return float(M.scale) * float(X.trace()) + float(((M.B.T @ X) * M.A).sum())


def solve(moments: Moments, rank: int, ridge: float) -> LinearEdit:
    """The M = s I + B A with B A of rank ``rank`` that minimises Σ |y - M h|² + λ |B A|².

    Args:
        ridge: λ over the mean eigenvalue of Σ h hᵀ.
    """
    hh, yh = moments.hh, moments.yh
    dim, trace = len(hh), float(hh.trace())
    L = torch.linalg.cholesky(hh + ridge * trace / dim * torch.eye(dim, dtype=torch.float64))
    # In whitened inputs L⁻¹ h the ridge regression of y - s h is W, and its best approximation of rank r, V Vᵀ W.
    white_y, white_h = (torch.linalg.solve_triangular(L, X.T, upper=False).T for X in (yh, hh))
    s = float(yh.trace()) / trace
    for _ in range(_ROUNDS):
        W = white_y - s * white_h
        V = _leading(W, min(rank, dim))
        A = torch.linalg.solve_triangular(L, V.T @ W, upper=False, left=False)
        before, s = s, float(yh.trace() - ((V.T @ hh) * A).sum()) / trace
        if abs(s - before) <= _SETTLED:
            break
    return LinearEdit(s, A, V)


def _leading(W: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors of W: [d, rank]; the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.svd_lowrank(W, q=min(rank + _OVERSAMPLING, len(W)), niter=_POWERS)[0][:, :rank]


def best_ridge(folds: Sequence[Moments], rank: int) -> float:
    """The ridge whose solution on each fold leaves the smallest error on the other one."""
    one, other = folds

    def error(ridge: float) -> float:
        return other.error(solve(one, rank, ridge)) + one.error(solve(other, rank, ridge))

    return min(RIDGES, key=error)
