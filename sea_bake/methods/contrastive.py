"""Contrastive directions: what co-varies with the positive and not with the negative, and the other way round.

SEA's U+ and U- (``sea.py``) overlap, since both texts share most of what varies. Here M± = Ω± Ω±ᵀ, whose eigenvectors
U± are, are compared with each other: generalised eigenvectors M+ u = λ M- u (as common spatial patterns in Koles 1991,
or contrastive PCA in Abid et al., Nature Communications 2018, arXiv 1709.06716, with a ratio in place of a difference).
Both are scaled to trace 1, and a ridge is added. Directions with λ > 1 belong to the positive and are kept, those with
λ < 1 to the negative and are dropped; what is shared has λ near 1. An edit applies them as SEA does: y = P+ h + P- h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sea_bake.errors import SettingError
from sea_bake.methods.collected import in_double
from sea_bake.methods.sea import Projector, rank


def projector(
    neutral: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    K_positive: float | int,
    K_negative: float | int,
    ridge: float,
    centre: bool = True,
) -> Projector:
    """Of one layer. Its spectra are |log λ|, descending: 0 is shared, 1 has e times the share in one of the two.

    With n < d all happens in the span of the neutral activations, through thin QR factors: nothing d x d is formed.

    Args:
        neutral, positive, negative: H, H+, H-: [n, d].
        K_positive, K_negative: shares of the squares of |log λ|, or ranks; see :func:`sea_bake.methods.sea.rank`.
        ridge: added to both, in units of their mean eigenvalue (over min(n, d)); a small one lets rare directions in.
        centre: subtract each role's own mean first.

    Raises:
        SettingError: a ridge that is not above 0, or K out of range.
        ActivationError: shapes that do not agree.
    """
    check_ridge(ridge)
    H, H_pos, H_neg = (role - role.mean(0) if centre else role for role in in_double(neutral, positive, negative))
    n, d = H.shape
    Q, R = torch.linalg.qr(H.T) if n < d else (None, H.T)  # Ω± = Q R H±: its left factor, and the rest [r, d]
    M = [_second_moment(R, other, ridge) for other in (H_pos, H_neg)]
    # M- = L Lᵀ: with u = L⁻ᵀ v, M+ u = λ M- u becomes L⁻¹ M+ L⁻ᵀ v = λ v, which is symmetric.
    L = torch.linalg.cholesky(M[1])
    inner = torch.linalg.solve_triangular(L, M[0], upper=False)
    inner = torch.linalg.solve_triangular(L, inner.T, upper=False)
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    vectors = torch.linalg.solve_triangular(L.T, vectors, upper=True)
    logs = values.clamp_min(torch.finfo(values.dtype).tiny).log()
    found = []
    for sign, K in ((1, K_positive), (-1, K_negative)):
        own = (sign * logs > 0).nonzero().flatten()
        own = own.flip(0) if sign > 0 else own  # the furthest from 1 first
        spectrum = logs[own].abs()
        chosen = vectors[:, own[: rank(spectrum, K)]]
        rows = torch.linalg.qr(chosen if Q is None else Q @ chosen).Q.T
        found.append((rows.contiguous(), spectrum))
    (kept, of_kept), (dropped, of_dropped) = found
    return Projector(kept, dropped, of_kept, of_dropped)


def _second_moment(R: Tensor, other: Tensor, ridge: float) -> Tensor:
    """Ω Ωᵀ of Ω = R H', in the basis of R, of trace 1; and the ridge."""
    omega = R @ other
    M = omega @ omega.T
    trace = M.trace()
    M = M / trace if float(trace) > 0 else M
    return M + ridge / len(M) * torch.eye(len(M), dtype=M.dtype)


def check_ridge(ridge: float) -> None:
    """Raises SettingError unless it is a number above 0 and not beyond 1000."""
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 1e-9 <= ridge <= 1e3:
        raise SettingError(
            f"ridge = {ridge!r} is not a number from 1e-9 to 1000: it is in units of the mean eigenvalue"
        )
