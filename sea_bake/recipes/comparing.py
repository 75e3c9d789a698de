"""Whether two fits found the same maps.

Projectors: by the angle between what they span, not by the vectors that span it. Singular vectors have free signs, and
turn among themselves where singular values lie close together; P = U Uᵀ has no such freedom. It is compared by the sine
of the largest principal angle between the two spans, which is the spectral norm of P - P' for equal ranks, from the
[k, d] factors alone.

Affine maps: part by part, ‖difference‖ / ‖part‖ (Frobenius), of A and B by their product, which alone is meant.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sea_bake.edit import Edit
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.sea import Projector
from sea_bake.publishing.tolerance import Tolerance

_SIGNS = ("positive", "negative")


@dataclass(frozen=True)
class LayerComparison:
    """One projection, or one part of an affine map, of one layer in two fits.

    Attributes:
        layer, part: decoder layer, and "positive" or "negative"; of an affine map "B A", "scale", "constant" or "gate".
        ranks: k of the first and of the second; of a part without any, 0.
        sine: of the largest principal angle, or the relative difference; 1 where one of the two is not there.
        limit: what it is held to.
    """

    layer: int
    part: str
    ranks: tuple[int, int]
    sine: float
    limit: float

    @property
    def same(self) -> bool:
        return self.ranks[0] == self.ranks[1] and self.sine <= self.limit

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "same": self.same}


def compare(edit: Edit, again: Edit, tolerance: Tolerance) -> list[LayerComparison]:
    """Every projection, or part, of every layer that either edits; of a layer that one leaves alone the rank is 0."""
    found = []
    for layer in sorted({*edit.layers, *again.layers}):
        maps = edit.maps.get(layer), again.maps.get(layer)
        if any(isinstance(one, AffineMap) for one in maps):
            found += _parts(layer, *maps, tolerance)
        else:
            found += [_projection(layer, sign, edit, again, tolerance) for sign in _SIGNS]
    return found


def _projection(layer: int, part: str, edit: Edit, again: Edit, tolerance: Tolerance) -> LayerComparison:
    spans = [getattr(e.projectors[layer], part) if layer in e.projectors else None for e in (edit, again)]
    ranks = (0 if spans[0] is None else len(spans[0]), 0 if spans[1] is None else len(spans[1]))
    if ranks[0] != ranks[1] or spans[0] is None or spans[1] is None:
        return LayerComparison(layer, part, ranks, 1.0, tolerance.largest)
    spectrum = getattr(edit.projectors[layer], f"{part}_spectrum")
    limit = tolerance.limit(spectrum, ranks[0]) if ranks[0] else 0.0
    if edit.method != "sea" and ranks[0]:  # Wedin's bound is one of singular vectors, not of generalised eigenvectors
        limit = tolerance.largest
    return LayerComparison(layer, part, ranks, sine(spans[0], spans[1]), limit)


def _parts(
    layer: int, one: Projector | AffineMap | None, other: Projector | AffineMap | None, tolerance: Tolerance
) -> list[LayerComparison]:
    named = [_named(one), _named(other)]
    rank = tuple(0 if m is None else m.ranks[0] for m in (one, other))
    found = []
    for part in dict.fromkeys([*named[0], *named[1]]):
        k = (rank[0], rank[1]) if part == "B A" else (0, 0)
        apart = _apart(named[0][part], named[1][part]) if part in named[0] and part in named[1] else 1.0
        found.append(LayerComparison(layer, part, k, apart, tolerance.of_parts))
    return found


def _named(one: Projector | AffineMap | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Part -> (B, A) whose product it is."""
    if not isinstance(one, AffineMap):
        return {}
    found = {} if one.A is None or one.B is None else {"B A": (one.B.double(), one.A.double())}
    unit = torch.ones(1, 1, dtype=torch.float64)
    return found | {name: (one.parts[name].double()[:, None], unit) for name in one.extra}


def _apart(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """‖B A - B' A'‖ / ‖B A‖ in the Frobenius norm, from thin factors."""
    if first[0].shape[0] != second[0].shape[0]:
        return 1.0
    size = _norm(*first)
    apart = _norm(torch.cat([first[0], -second[0]], dim=1), torch.cat([first[1], second[1]]))
    return apart / size if size > 0 else float(apart > 0)


def _norm(B: Tensor, A: Tensor) -> float:
    """‖B A‖: of the triangular factors of both, since Gram matrices would lose half of the digits."""
    left, right = torch.linalg.qr(B, mode="r").R, torch.linalg.qr(A.T, mode="r").R
    return float(torch.linalg.matrix_norm(left @ right.T))


def sine(first: Tensor, second: Tensor) -> float:
    """Sine of the largest principal angle between the spans of the rows of two [k, d] matrices of full rank.

    Of what is left of the second basis outside of the first span, so that small angles are exact: the cosine of an
    angle of 1e-8 is 1 in float64 (Björck and Golub 1973).
    """
    if not len(first) and not len(second):
        return 0.0
    Q, R = (torch.linalg.qr(rows.double().T).Q for rows in (first, second))
    return float(torch.linalg.matrix_norm(R - Q @ (Q.T @ R), 2))
