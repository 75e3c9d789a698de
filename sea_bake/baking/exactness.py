"""When may an edit vanish into the weights? The one place that plan, fold and adapter all obey.

The site's output is its writer's output, ``W x + b``, summed with weights over the experts of a MoE. A linear edit M
commutes with all of that: M (Σ g (W x + b)) = Σ g (M W x + M b). So it folds exactly, unless something is in the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sea_bake.edit import Edit
from sea_bake.errors import NotExactError
from sea_bake.model.anatomy import Family, Site


@dataclass(frozen=True)
class Exactness:
    """What can be done with one edit on one family.

    Attributes:
        fold: the edit folds into the writers exactly.
        adapter: the fold is also a low-rank update, so a LoRA adapter can carry it.
        why: the reason, for people.
    """

    fold: bool
    adapter: bool
    why: str


def exactness(
    row: Family,
    site: Site,
    merge: str = "l2",
    feature: str = "identity",
    parts: str = "both",
    alpha: float = 1.0,
    *,
    biased: bool = False,
) -> Exactness:
    """Decide from the family's row and the edit's settings alone.

    Args:
        biased: the site's writer has a bias.
    """

    def no(why: str) -> Exactness:
        return Exactness(False, False, why)

    if site is Site.BLOCK:
        return no("the residual stream bypasses the weights of the layer")
    if feature != "identity":
        return no(f"Φ-SEA ({feature}) is not linear")
    if merge == "l2":
        if not row.norm_behind:
            return no("the l2 merge rescales each token, which no weight can do")
        if alpha != 1.0:
            return no("with alpha other than 1 the l2 merge adds two vectors of one length, which is not linear")
        why = "linear up to the token's length, which the RMSNorm behind the site divides out (up to its epsilon)"
    else:
        why = "linear, and the site's output is a linear's output"
    if _identity(merge, parts, alpha) != 1.0:
        return Exactness(True, False, f"{why}; the change has full rank, so no adapter can carry it")
    if biased:
        return Exactness(True, False, f"{why}; the writer's bias changes too, which no portable adapter can carry")
    return Exactness(True, True, why)


def of_edit(row: Family, edit: Edit, *, biased: bool) -> Exactness:
    """:func:`exactness` of an Edit."""
    return exactness(row, edit.site, edit.merge, edit.feature, edit.parts, edit.alpha, biased=biased)


def _identity(merge: str, parts: str, alpha: float) -> float:
    """The factor of the identity in M: 1 where the edit is h plus something of low rank."""
    factor = 0.0 if parts == "positive" else 1.0
    if merge == "average" and parts == "both":
        factor /= 2
    return 1.0 + alpha * (factor - 1.0)


@dataclass(frozen=True)
class LinearEdit:
    """M = scale · I + B A of one layer, in float64: what a fold multiplies its writers by.

    Attributes:
        scale: factor of the identity.
        A: [k, d].
        B: [d, k].
    """

    scale: float
    A: Tensor
    B: Tensor

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0 and not bool(self.B.any())

    def __call__(self, W: Tensor) -> Tensor:
        """M W for W [d, ...], in W's own dtype."""
        flat = W.reshape(len(W), -1)
        A, B = self.A.to(W.dtype), self.B.to(W.dtype)
        return torch.addmm(flat, B, A @ flat, beta=self.scale).reshape(W.shape)

    def then(self, other: LinearEdit) -> LinearEdit:
        """The two in a row, this one first; thin again."""
        A = torch.cat([self.A, self.scale * other.A + (other.A @ self.B) @ self.A])
        return LinearEdit(self.scale * other.scale, A, torch.cat([other.scale * self.B, other.B], dim=1))


def linear_edit(edit: Edit, layer: int) -> LinearEdit:
    """The matrix of one layer's edit, thin.

    For the l2 merge it is that of the sum merge: only to be used where a norm behind the site divides the length out.

    Raises:
        NotExactError: the edit is not linear.
    """
    if edit.feature != "identity":
        raise NotExactError(f"Φ-SEA ({edit.feature}) is not linear: it has no matrix")
    p = edit.projectors[layer]
    up, un = p.positive.double(), p.negative.double()
    if edit.parts != "both":
        up, un = (up, un[:0]) if edit.parts == "positive" else (up[:0], un)
    weight = edit.alpha * (0.5 if edit.merge == "average" and edit.parts == "both" else 1.0)
    return LinearEdit(
        _identity(edit.merge, edit.parts, edit.alpha), torch.cat([up, un]), torch.cat([up, -un]).T * weight
    )


def linear_edits(edits: Iterable[Edit]) -> dict[tuple[Site, int], LinearEdit]:
    """(site, layer) -> the matrix of all edits there, in the order in which they act."""
    found: dict[tuple[Site, int], LinearEdit] = {}
    for edit in edits:
        for layer in edit.layers:
            key, matrix = (edit.site, layer), linear_edit(edit, layer)
            found[key] = found[key].then(matrix) if key in found else matrix
    return found
