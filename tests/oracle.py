"""SEA written down a second time: dense, float64, numpy, straight from the paper (arXiv 2405.09719), sharing no code.

Nothing of sea_bake is imported here. Where the package is thin and fast, this is d x d and slow; where they agree, two
independent readings of the same equations agree. ``test_oracle`` compares the mathematics, ``test_doors`` the models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MERGES = ("l2", "sum", "average")
FEATURES = ("identity", "squared-exponential", "tanh", "elu", "asinh", "signed-square-root")
PARTS = ("both", "positive", "negative")
EDGE = 1e-4  # how near to the ends of its range an inverse feature function is evaluated (the released code's value)

# How much φ⁻¹ can enlarge an error of its argument: the largest |dφ⁻¹/dy| on the clamped range.
#   tanh: 1/(1-y²) at 1-y = 1e-4;  elu: 1/(1+y) at 1+y = 1e-4;  squared-exponential: 1/(y sqrt(-2 ln y)) at y = 1e-4.
# Two reach all numbers, and there it is the relative error that grows, by |y dφ⁻¹/dy / φ⁻¹| times how much larger φ(h)
# is than y:  asinh: y coth y, 8 up to outputs of 1500, where y is twice as small;  signed-square-root: 2, where the
# input is 16 times the output, so that y is 4 times as small.
AMPLIFICATION = {
    "identity": 1.0,
    "tanh": 5.0e3,
    "elu": 1.0e4,
    "squared-exponential": 2.4e3,
    "asinh": 16.0,
    "signed-square-root": 8.0,
}


def tolerance(feature: str, roundoff: float, scale: float = 1.0) -> float:
    """Largest admissible |error| of one edit whose arithmetic has this unit roundoff, on outputs of this magnitude.

    16 roundings (two products and a few sums), each enlarged by φ⁻¹. The inverse squared-exponential also has a root at
    y = 1, where an error e of y becomes sqrt(2 e) of |h|.
    """
    error = 16 * roundoff
    root = np.sqrt(2 * error) if feature == "squared-exponential" else 0.0
    return float(scale * (error * AMPLIFICATION[feature] + root))


def phi(feature: str, h: Array) -> Array:
    """φ(h), element by element."""
    if feature == "squared-exponential":
        return np.exp(-(h**2) / 2)
    if feature == "tanh":
        return np.tanh(h)
    if feature == "elu":
        return np.where(h > 0, h, np.expm1(np.minimum(h, 0)))
    if feature == "asinh":
        return np.arcsinh(h)
    if feature == "signed-square-root":
        return np.sign(h) * np.sqrt(np.abs(h))
    return h


def phi_inverse(feature: str, y: Array, h: Array) -> Array:
    """φ⁻¹(y); h, the input of the edit, gives back the sign that the squared exponential forgets."""
    if feature == "squared-exponential":
        return np.sign(h) * np.sqrt(-2 * np.log(np.clip(y, EDGE, 1)))
    if feature == "tanh":
        return np.arctanh(np.clip(y, -1 + EDGE, 1 - EDGE))
    if feature == "elu":
        return np.where(y >= 0, y, np.log(np.clip(y, -1 + EDGE, 0) + 1))
    if feature == "asinh":
        return np.sinh(y)
    if feature == "signed-square-root":
        return y * np.abs(y)
    return y


def cross_covariance(H: Array, H_other: Array, centre: bool = False) -> Array:
    """Ω = Hᵀ H_other / n, d x d (eq. 3 and 4); with ``centre``, of what is left after each role's own mean."""
    if centre:
        H, H_other = H - H.mean(axis=0), H_other - H_other.mean(axis=0)
    return H.T @ H_other / len(H)


def explained(singular_values: Array, K: float | int) -> int:
    """Fewest leading directions whose squared singular values reach the share K; an int is the number itself.

    Directions without variance (a singular value of zero, up to rounding) are not directions of the data.
    """
    s = np.asarray(singular_values, dtype=np.float64)
    if s.size == 0 or s[0] == 0:
        return 0
    real = int(np.sum(s > s[0] * len(s) * np.finfo(np.float64).eps))
    if isinstance(K, int):
        return min(K, real)
    total, running = float(np.sum(s**2)), 0.0
    for k in range(1, real + 1):
        running += float(s[k - 1] ** 2)
        if running / total >= K - 1e-12:
            return k
    return real


@dataclass(frozen=True)
class Projections:
    """P+ = U+ U+ᵀ and P- = I - U- U-ᵀ, both d x d; the ranks of U±; the singular values of Ω±."""

    positive: Array
    negative: Array
    ranks: tuple[int, int]
    spectra: tuple[Array, Array]


def projections(
    neutral: Array,
    positive: Array,
    negative: Array,
    K_positive: float | int,
    K_negative: float | int,
    feature: str = "identity",
    centre: bool = False,
) -> Projections:
    """Dense projections from [n, d] activations: full SVD of the d x d matrices (eq. 3-7; eq. 9 with a feature)."""
    H, H_pos, H_neg = (phi(feature, np.asarray(x, dtype=np.float64)) for x in (neutral, positive, negative))
    U_pos, s_pos, _ = np.linalg.svd(cross_covariance(H, H_pos, centre))
    U_neg, s_neg, _ = np.linalg.svd(cross_covariance(H, H_neg, centre))
    k_pos, k_neg = explained(s_pos, K_positive), explained(s_neg, K_negative)
    P_pos = U_pos[:, :k_pos] @ U_pos[:, :k_pos].T
    P_neg = np.eye(H.shape[1]) - U_neg[:, :k_neg] @ U_neg[:, :k_neg].T
    return Projections(P_pos, P_neg, (k_pos, k_neg), (s_pos, s_neg))


def edit(
    h: Array,
    P_positive: Array,
    P_negative: Array,
    merge: str = "l2",
    feature: str = "identity",
    parts: str = "both",
    alpha: float = 1.0,
) -> Array:
    """h + alpha (y - h) for vectors h [..., d], where y merges P+ h and P- h (eq. 5-8; eq. 9 with a feature)."""
    h = np.asarray(h, dtype=np.float64)
    f = phi(feature, h)
    wanted = {"both": (P_positive, P_negative), "positive": (P_positive,), "negative": (P_negative,)}[parts]
    edited = [phi_inverse(feature, f @ P, h) for P in wanted]  # P is symmetric: rows of f @ P are P f
    y = sum(edited, np.zeros_like(h))
    if merge == "l2":
        y = y * _ratio(np.linalg.norm(h, axis=-1, keepdims=True), np.linalg.norm(y, axis=-1, keepdims=True))
    elif merge == "average":
        y = y / len(edited)
    return h + alpha * (y - h)


def released_l2(h: Array, P_positive: Array, P_negative: Array) -> Array:
    """The released code's merge, as a control: one norm per feature over *all* tokens of [tokens, d].

    A token's result depends on its neighbours, so on batching, padding and caching.
    """
    y = h @ P_positive + h @ P_negative
    return y * _ratio(np.linalg.norm(h, axis=0, keepdims=True), np.linalg.norm(y, axis=0, keepdims=True))


def signature(positive: Array, negative: Array) -> float:
    """Sum of the singular values of the cross-covariance between activations and their one-hot label (section 3.4)."""
    X = np.concatenate([positive, negative]).astype(np.float64)
    n = len(positive)
    Y = np.concatenate([np.tile([1.0, 0.0], (n, 1)), np.tile([0.0, 1.0], (n, 1))])
    return float(np.linalg.svd(X.T @ Y / n, compute_uv=False).sum())


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0: a vector without length cannot be given one."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
