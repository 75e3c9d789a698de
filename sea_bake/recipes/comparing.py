"""Whether two fits found the same projectors: by the angle between what they span, not by the vectors that span it.

Singular vectors have free signs, and turn among themselves where singular values lie close together; P = U Uᵀ has no
such freedom. It is compared by the sine of the largest principal angle between the two spans, which is the spectral
norm of P - P' for equal ranks, from the [k, d] factors alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sea_bake.edit import Edit
from sea_bake.publishing.tolerance import Tolerance


@dataclass(frozen=True)
class LayerComparison:
    """One projection of one layer in two fits.

    Attributes:
        layer, part: decoder layer, and "positive" or "negative".
        ranks: k of the first and of the second.
        sine: of the largest principal angle; 1 where the ranks differ.
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
    """Every projection of every layer that either edits; of a layer that one of them leaves alone the rank is 0."""
    found = []
    for layer in sorted({*edit.layers, *again.layers}):
        for part in ("positive", "negative"):
            spans = [getattr(e.projectors[layer], part) if layer in e.projectors else None for e in (edit, again)]
            ranks = tuple(0 if span is None else len(span) for span in spans)
            if ranks[0] != ranks[1] or spans[0] is None or spans[1] is None:
                found.append(LayerComparison(layer, part, (ranks[0], ranks[1]), 1.0, tolerance.largest))
                continue
            spectrum = getattr(edit.projectors[layer], f"{part}_spectrum")
            limit = tolerance.limit(spectrum, ranks[0]) if ranks[0] else 0.0
            found.append(LayerComparison(layer, part, (ranks[0], ranks[1]), sine(spans[0], spans[1]), limit))
    return found


def sine(first: Tensor, second: Tensor) -> float:
    """Sine of the largest principal angle between the spans of the rows of two [k, d] matrices of full rank.

    Of what is left of the second basis outside of the first span, so that small angles are exact: the cosine of an
    angle of 1e-8 is 1 in float64 (Björck and Golub 1973).
    """
    if not len(first) and not len(second):
        return 0.0
    Q, R = (torch.linalg.qr(rows.double().T).Q for rows in (first, second))
    return float(torch.linalg.matrix_norm(R - Q @ (Q.T @ R), 2))
