"""What a fold does to the writers of a site: thin affine maps in float64, composed of all the edits that meet there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sea_bake.baking.exactness import identity
from sea_bake.edit import Edit
from sea_bake.errors import NotExactError
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site


@dataclass(frozen=True)
class LinearEdit:
    """y = s ⊙ h + B A h + b of one site and layer, in float64.

    Attributes:
        scale: s: factor of the identity, or a diagonal [d].
        A: [k, d].
        B: [d, k].
        constant: b, [d]; None where there is none.
    """

    scale: float | Tensor
    A: Tensor
    B: Tensor
    constant: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def is_identity(self) -> bool:
        """Whether the linear part leaves a weight as it is."""
        return bool((torch.as_tensor(self.scale) == 1).all()) and not bool(self.B.any())

    def __call__(self, W: Tensor) -> Tensor:
        """M W for W [d, ...], in W's own dtype: the linear part alone."""
        flat = W.reshape(len(W), -1)
        A, B = self.A.to(W.dtype), self.B.to(W.dtype)
        if isinstance(self.scale, Tensor):
            return torch.addmm(self.scale.to(W.dtype)[:, None] * flat, B, A @ flat).reshape(W.shape)
        return torch.addmm(flat, B, A @ flat, beta=self.scale).reshape(W.shape)

    def of_bias(self, bias: Tensor) -> Tensor:
        """M c + b for a bias c [d, ...], in its own dtype."""
        moved = self(bias)
        if self.constant is None:
            return moved
        return moved + self.constant.to(bias.dtype).reshape(-1, *[1] * (bias.dim() - 1))

    @property
    def transposed(self) -> LinearEdit:
        """Mᵀ, for weights that are multiplied from the right: W M = (Mᵀ Wᵀ)ᵀ."""
        return LinearEdit(self.scale, self.B.T, self.A.T)

    def then(self, other: LinearEdit) -> LinearEdit:
        """The two in a row, this one first; thin again."""
        later = other.scale[:, None] if isinstance(other.scale, Tensor) else other.scale
        A = torch.cat([self.A, self.scale * other.A + (other.A @ self.B) @ self.A])
        constant = other.constant
        if self.constant is not None:
            constant = other.of_bias(self.constant)
        return LinearEdit(self.scale * other.scale, A, torch.cat([later * self.B, other.B], dim=1), constant)


def linear_edit(edit: Edit, layer: int) -> LinearEdit:
    """The affine map of a linear edit at one layer.

    For the l2 merge it is that of the sum merge: only to be used where a norm behind the site divides the length out.

    Raises:
        NotExactError: the edit is not affine.
    """
    if edit.feature != "identity" or "gate" in edit.extra:
        kind = "a gate" if "gate" in edit.extra else f"Φ-SEA ({edit.feature})"
        raise NotExactError(f"{kind} is not linear: it has no matrix")
    one, alpha = edit.maps[layer], edit.alpha
    if isinstance(one, AffineMap):
        d = one.dim
        A, B = (torch.zeros(0, d), torch.zeros(d, 0)) if one.A is None or one.B is None else (one.A, one.B)
        scale = 1.0 if one.scale is None else 1.0 + alpha * (one.scale.double() - 1.0)
        constant = None if one.constant is None else alpha * one.constant.double()
        return LinearEdit(scale, A.double(), alpha * B.double(), constant)
    up, un = one.positive.double(), one.negative.double()
    if edit.parts != "both":
        up, un = (up, un[:0]) if edit.parts == "positive" else (up[:0], un)
    weight = alpha * (0.5 if edit.merge == "average" and edit.parts == "both" else 1.0)
    return LinearEdit(identity(edit.merge, edit.parts, alpha), torch.cat([up, un]), torch.cat([up, -un]).T * weight)


@dataclass(frozen=True)
class Change:
    """What all edits do to one writer: W x + c becomes M (W (N x + e) + c) + b.

    Attributes:
        before: N and e, on the writer's input (the site ``heads``); None leaves it alone.
        after: M and b, on its output.
    """

    before: LinearEdit | None = None
    after: LinearEdit | None = None

    @property
    def constant(self) -> bool:
        """Whether the writer's bias is moved by more than a product."""
        parts = [part.constant for part in (self.before, self.after) if part is not None]
        return any(constant is not None and bool(constant.any()) for constant in parts)

    @property
    def is_identity(self) -> bool:
        """Whether weights stay as they are."""
        return all(part is None or part.is_identity for part in (self.before, self.after))

    def moves(self, *, is_bias: bool) -> bool:
        """Whether a weight of the writer, or its bias, becomes another one."""
        product = self.after is not None and not self.after.is_identity
        return self.constant or product if is_bias else not self.is_identity

    @property
    def without_constant(self) -> Change:
        """The linear parts alone: what becomes of a bias that no constant goes into."""
        before, after = (part and replace(part, constant=None) for part in (self.before, self.after))
        return Change(before, after)

    @property
    def rank(self) -> int:
        return sum(part.rank for part in (self.before, self.after) if part is not None)

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """W' - W = B A for W [d, in] in float64: A [rank, in] and B [d, rank]. Without ``before`` B is one for all W.

        Only where both parts are the identity and something of low rank.
        """
        A, B = [], []
        if self.before is not None:
            A, B = [self.before.A], [W @ self.before.B]
            W = self.before.transposed(W.T).T
        if self.after is not None:
            A, B = [*A, self.after.A @ W], [*B, self.after.B]
        return torch.cat(A), torch.cat(B, dim=1)

    def then(self, site: Site, edit: LinearEdit) -> Change:
        """Followed by one more edit, at a site that this writer serves."""
        if site.is_input:
            return replace(self, before=edit if self.before is None else self.before.then(edit))
        return replace(self, after=edit if self.after is None else self.after.then(edit))

    def of_weight(self, W: Tensor) -> Tensor:
        """[d, in] -> the same, in its own dtype; in parts of its columns too, where ``before`` is None."""
        if self.before is not None:
            W = self.before.transposed(W.T).T
        return W if self.after is None else self.after(W)

    def of_bias(self, bias: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        """[d, 1] -> the same.

        Args:
            weight: gives the writer's unedited W, [d, in].
        """
        if self.before is not None and self.before.constant is not None:
            moved = weight().double() @ self.before.constant
            bias = bias + moved.to(bias.dtype).reshape(bias.shape)
        return bias if self.after is None else self.after.of_bias(bias)


def changes(
    edits: Iterable[Edit], stand_ins: Mapping[tuple[Site, int], LinearEdit] | None = None
) -> dict[tuple[Site, int], Change]:
    """(site whose writer is edited, layer) -> what becomes of it, by all edits in the order in which they act.

    The constants of ``block`` are added behind the MLP whatever the order: the layer's end comes after its inside.

    Args:
        stand_ins: (site, layer) -> what stands in for all edits there.

    Raises:
        NotExactError: an edit that is not affine.
    """
    stand_ins, found = stand_ins or {}, dict[tuple[Site, int], Change]()
    for (site, layer), instead in stand_ins.items():
        key = (site.written_by, layer)
        found[key] = found.get(key, Change()).then(site, instead)
    for edit in sorted(edits, key=lambda edit: edit.site is Site.BLOCK):
        for layer in (layer for layer in edit.layers if (edit.site, layer) not in stand_ins):
            key = (edit.site.written_by, layer)
            found[key] = found.get(key, Change()).then(edit.site, linear_edit(edit, layer))
    return found
