"""The mathematics of SEA (Qiu et al., NeurIPS 2024, arXiv 2405.09719, section 3): torch only, float64, thin.

Shapes: H, H+, H- are [n, d], one activation vector per demonstration. Nothing d x d is formed while n < d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sea_bake.errors import ActivationError, SettingError
from sea_bake.modeling_sea import FEATURES


@dataclass(frozen=True)
class Projector:
    """What SEA keeps of one layer: the leading left singular vectors of Ω+ and Ω-, as rows.

    Attributes:
        positive: U+ᵀ, [k+, d], orthonormal rows; P+ = U+ U+ᵀ keeps what co-varies most with the positive.
        negative: U-ᵀ, [k-, d], orthonormal rows; P- = I - U- U-ᵀ drops what co-varies most with the negative.
            Both float64 as fitted, float32 in an Edit.
        positive_spectrum, negative_spectrum: singular values of Ω+ and Ω-, descending, float64.
    """

    is_sea: ClassVar[bool] = True

    positive: Tensor
    negative: Tensor
    positive_spectrum: Tensor
    negative_spectrum: Tensor

    @property
    def ranks(self) -> tuple[int, int]:
        """(k+, k-)."""
        return self.positive.shape[0], self.negative.shape[0]

    @property
    def dim(self) -> int:
        return self.positive.shape[1]

    @property
    def parts(self) -> dict[str, Tensor]:
        """Name -> what decides what it does."""
        return {"positive": self.positive, "negative": self.negative}

    @property
    def keeps_what_it_drops(self) -> bool:
        """Whether both are the same directions, so that h + U+ U+ᵀ h - U- U-ᵀ h is h: up to a turn of 1e-5, as the
        rounding of float32 activations leaves some 1e-6.
        """
        kept, dropped = self.positive.double(), self.negative.double()
        return len(kept) == len(dropped) and bool((kept - kept @ dropped.T @ dropped).norm(dim=1).le(1e-5).all())

    @property
    def extra(self) -> tuple[str, ...]:
        """Nothing beside its low-rank part; see AffineMap."""
        return ()

    @property
    def spectra(self) -> dict[str, list[float]]:
        """The two, as plain numbers."""
        return {"positive": self.positive_spectrum.tolist(), "negative": self.negative_spectrum.tolist()}

    def float(self) -> Projector:
        """The same with float32 rows: what an Edit holds and saves."""
        return replace(self, positive=self.positive.float(), negative=self.negative.float())


Factors = tuple[Tensor, Tensor]  # Q [d, n] and R [n, n] of Hᵀ


def left_singular(H: Tensor, H_other: Tensor, factors: Factors | None = None) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values of Ω = Hᵀ H_other / n (paper, section 3).

    With n < d through thin QR factors, O(d n²): Hᵀ = Q R and H_otherᵀ = Q' R' give Ω = Q (R R'ᵀ / n) Q'ᵀ, whose middle
    is n x n. With n >= d the d x d matrix is the smaller one, and its SVD is taken directly.

    Args:
        H, H_other: [n, d], any float dtype; computed in float64.
        factors: those of H, where they are known.

    Returns:
        U [d, min(n, d)] with orthonormal columns, and s [min(n, d)], descending; both float64.
    """
    n, d = H.shape
    H, H_other = H.double(), H_other.double()
    if n < d:
        Q, R = factors or torch.linalg.qr(H.T)
        R_other = torch.linalg.qr(H_other.T, mode="r").R
        u, s, _ = torch.linalg.svd(R @ R_other.T / n, full_matrices=False)
        return Q @ u, s
    U, s, _ = torch.linalg.svd(H.T @ H_other / n, full_matrices=False)
    return U, s


def leading(H: Tensor, H_other: Tensor, K: float | int, factors: Factors | None = None) -> tuple[Tensor, Tensor]:
    """The first k = rank(s, K) of those vectors, as rows [k, d], and all of s.

    Large problems whose k-th singular value is large enough take half the time: the eigenvectors of Ω Ωᵀ are the same,
    and what squaring costs stays small. A singular value s is off by about 1e-16 s₁² / s, so those behind the 1e-8 of
    s₁ are noise there; at K = 1, where they decide, and wherever k reaches further than 1e-5 s₁, it is the SVD's.

    Args:
        H, H_other, factors: see :func:`left_singular`; float64.
    """
    whole = isinstance(K, float) and K >= 1.0
    found = _by_squares(H, H_other, K, factors) if min(H.shape) >= _LARGE and not whole else None
    U, s = left_singular(H, H_other, factors) if found is None else found
    return U[:, : rank(s, K)].T.contiguous(), s


_LARGE, _REACH = 384, 1e-5


def _by_squares(H: Tensor, H_other: Tensor, K: float | int, factors: Factors | None) -> tuple[Tensor, Tensor] | None:
    half = (H.T if factors is None else factors[1]) @ H_other / len(H)  # Ω, or Qᵀ Ω
    values, vectors = torch.linalg.eigh(half @ half.T)
    s = values.clamp_min(0.0).sqrt().flip(0)
    k = rank(s, K)
    if k == 0 or s[k - 1] < _REACH * s[0]:
        return None
    u = vectors.flip(1)[:, :k]
    return u if factors is None else factors[0] @ u, s


def rank(spectrum: Tensor, K: float | int) -> int:
    """k: the fewest directions whose squared singular values reach the share K of their sum (paper, section 3).

    Args:
        spectrum: singular values, descending.
        K: a share in (0, 1], or an int >= 0: the rank itself. Directions with a singular value of zero (up to
            rounding) are never counted: they are arbitrary vectors, not directions of the data.

    Raises:
        SettingError: K is out of range.
    """
    check_share(K)
    if spectrum.numel() == 0 or spectrum[0] <= 0:
        return 0
    floor = float(spectrum[0]) * spectrum.numel() * torch.finfo(torch.float64).eps
    meaningful = int((spectrum > floor).sum())
    if isinstance(K, int):
        return min(K, meaningful)
    energy = spectrum.double().square()
    share = energy.cumsum(0) / energy.sum()
    # A share that misses K by rounding only still reaches it (K = 1 would otherwise depend on the last bit).
    reached = int((share < K - 1e-12).sum()) + 1
    return min(reached, meaningful)


def check_share(K: float | int, name: str = "K") -> None:
    """Raises SettingError unless K is a float in (0, 1] or an int >= 0."""
    if isinstance(K, bool) or not isinstance(K, int | float):
        raise SettingError(f"{name} must be a share in (0, 1] or an integer rank, not {K!r}")
    if isinstance(K, int) and K < 0:
        raise SettingError(f"{name} = {K} is not a rank: integer ranks are 0 or more")
    if isinstance(K, float) and not 0.0 < K <= 1.0:
        raise SettingError(
            f"{name} = {K} is outside (0, 1]: it is the share of explained variance to keep, such as 0.998 "
            "(write an integer, such as 8, for a fixed rank)"
        )


def projector(
    neutral: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    K_positive: float | int,
    K_negative: float | int,
    feature: str = "identity",
    centre: bool = False,
) -> Projector:
    """SEA's projector of one layer (paper, section 3); with a feature function, of Φ-SEA.

    Args:
        neutral, positive, negative: H, H+, H-: [n, d].
        K_positive, K_negative: shares of explained variance, or integer ranks; see :func:`rank`.
        feature: φ, a key of ``modeling_sea.FEATURES``; applied before centring.
        centre: subtract each role's own mean first, so that Ω± are covariances.

    Raises:
        SettingError: an unknown feature function or K out of range.
        ActivationError: shapes that do not agree.
    """
    if not neutral.shape == positive.shape == negative.shape or neutral.dim() != 2:
        shapes = [tuple(t.shape) for t in (neutral, positive, negative)]
        raise ActivationError(f"neutral, positive and negative activations must share one [n, d] shape, not {shapes}")
    H, H_pos, H_neg = (_featured(t, feature, centre) for t in (neutral, positive, negative))
    factors = tuple(torch.linalg.qr(H.T)) if H.shape[0] < H.shape[1] else None
    (kept, s_pos), (dropped, s_neg) = (
        leading(H, other, K, factors) for other, K in ((H_pos, K_positive), (H_neg, K_negative))
    )
    return Projector(kept, dropped, s_pos, s_neg)


def _featured(H: Tensor, feature: str, centre: bool) -> Tensor:
    if feature not in FEATURES:
        raise SettingError(f"unknown feature function {feature!r}: use one of {', '.join(FEATURES)}")
    phi, _ = FEATURES[feature]
    H = phi(H.double())
    return H - H.mean(0, keepdim=True) if centre else H


def signature(positive: Tensor, negative: Tensor) -> float:
    """A layer's signature: the sum of singular values of the cross-covariance of activations with their label.

    The label is one-hot (positive, negative), so Ω_y = [H+; H-]ᵀ Y / n is [d, 2] with the two role means as columns
    (``get_heuristic_info`` of the released code).

    Args:
        positive, negative: H+, H-: [n, d].
    """
    omega = torch.stack([positive.double().mean(0), negative.double().mean(0)], dim=1)
    return float(torch.linalg.svdvals(omega).sum())


def from_dense(positive: Tensor, negative: Tensor, *, tolerance: float = 1e-3) -> Projector:
    """Thin form of the authors' published dense projections of one layer.

    Args:
        positive: ``uu_positive[layer]`` = U+ U+ᵀ, [d, d].
        negative: ``uu_negative[layer]`` = I - U- U-ᵀ (they store the directions that are *kept*), [d, d].
        tolerance: largest admissible distance of an eigenvalue from 0 or 1.

    Raises:
        ActivationError: a matrix that is not an orthogonal projector.
    """
    d = positive.shape[-1]
    if positive.shape != (d, d) or negative.shape != (d, d):
        raise ActivationError(f"dense projections must be [d, d], not {tuple(positive.shape)}, {tuple(negative.shape)}")
    identity = torch.eye(d, dtype=torch.float64)
    kept = _range_of(positive.double(), "positive", tolerance)
    dropped = _range_of(identity - negative.double(), "negative", tolerance)
    ones = [torch.ones(len(U), dtype=torch.float64) for U in (kept, dropped)]  # their spectra were not published
    return Projector(kept, dropped, *ones)


def dense_projectors(
    positive: Tensor, negative: Tensor, *, layers: Sequence[int], num_layers: int, width: int
) -> dict[int, Projector]:
    """Decoder layer -> thin projectors, float32, of the authors' published files.

    Args:
        positive, negative: [L, d, d]; one for every layer of the model, or for the selected layers only.
        layers: those that are edited.
        num_layers, width: of the model.

    Raises:
        ActivationError: a matrix that is not an orthogonal projector.
        SettingError: L is neither the model's number of layers nor the number of selected ones, or another width.
    """
    if positive.shape != negative.shape or positive.dim() != 3 or positive.shape[-1] != width:
        raise SettingError(
            f"dense projections must both be [layers, {width}, {width}] for this model, not {tuple(positive.shape)} "
            f"and {tuple(negative.shape)}"
        )
    if len(positive) not in (num_layers, len(layers)):
        raise SettingError(
            f"{len(positive)} dense projections for {num_layers} layers, {len(layers)} of them selected: "
            f"they belong to another model, or to {len(positive)} of its layers (then name these: --layers)"
        )
    rows = {layer: layer if len(positive) == num_layers else i for i, layer in enumerate(layers)}
    return {layer: from_dense(positive[row], negative[row]).float() for layer, row in rows.items()}


def _range_of(P: Tensor, name: str, tolerance: float) -> Tensor:
    if not torch.isfinite(P).all():
        raise ActivationError(f"the {name} projection holds NaN or infinite values")
    if (P - P.T).abs().max() > tolerance:
        raise ActivationError(f"the {name} projection is not symmetric, so it is no orthogonal projector")
    values, vectors = torch.linalg.eigh((P + P.T) / 2)
    if torch.minimum(values.abs(), (values - 1).abs()).max() > tolerance:
        raise ActivationError(f"the {name} projection has eigenvalues other than 0 and 1, so it is no projector")
    return vectors[:, values > 0.5].T.contiguous()
