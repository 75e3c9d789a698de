"""Whether two fits found the same projectors: by the angle between what they span, not by the vectors that span it.

Singular vectors have free signs, and turn among themselves where singular values lie close together; P = U Uᵀ has no
such freedom. It is compared by the sine of the largest principal angle between the two spans, which is the spectral
norm of P - P' for equal ranks, from the [k, d] factors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sea_bake.edit import Edit
from sea_bake.errors import RecipeError

MEASURE = "sine of the largest principal angle"
"""‖P - P'‖₂ of projectors of equal rank: 0 for the same span, 1 when some direction of one is at right angles to the
other."""

# Largest admissible perturbation of Ω, relative to its largest singular value, by the dtype that the model runs in.
# Measured on SmolLM2-135M (40 demonstrations, all layers, K = 0.95, 0.998 and 8, linear and tanh) as the sine times the
# gap: up to 3.5e-7 in float32 between batches of 1 and of 16. A hundred times that leaves room for other machines'
# kernels, and is a hundredth of what another choice of demonstrations does (3e-3 to 2e-1). In half precision batches of
# 5 and 16 (24 demonstrations, neutral text: the prompt) came to 1.1e-2 (bfloat16) and 1.2e-3 (float16), so this is
# not quite three times: there a change of demonstrations may pass, and a cut between close values may not.
NOISE = {"float64": 3e-5, "float32": 3e-5, "bfloat16": 3e-2, "float16": 3e-3}
# However close singular values lie at the cut, a span that turned by more than this is another edit.
LARGEST = 0.1


@dataclass(frozen=True)
class Tolerance:
    """What a recipe states: ``noise``, relative to the largest singular value, and ``largest``, of the sine."""

    noise: float
    largest: float = LARGEST

    @classmethod
    def of(cls, dtype: str) -> Tolerance:
        """By the dtype that the model ran in; an unknown one counts as float32."""
        return cls(NOISE.get(dtype, NOISE["float32"]))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], dtype: str) -> Tolerance:
        """Raises RecipeError when it is no tolerance, or wider than ours for the dtype that the model ran in."""
        try:
            noise, largest = float(data["noise"]), float(data["largest"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RecipeError(f"the recipe's tolerance lacks or garbles {error}") from error
        widest = cls.of(dtype).noise
        if not 0 < noise <= widest or not 0 < largest <= LARGEST:
            raise RecipeError(
                f"the recipe's tolerance (noise {noise:g}, largest {largest:g}) is wider than sea_bake accepts "
                f"for {dtype} ({widest:g}, {LARGEST:g}): it would prove nothing"
            )
        return cls(noise, largest)

    def limit(self, spectrum: Tensor, k: int) -> float:
        """Largest admissible sine for the span of the first ``k`` singular vectors.

        Wedin's theorem: a perturbation E of Ω turns it by at most ‖E‖₂ over the gap between the singular values on
        both sides of the cut. So a wide gap allows little, and a narrow one much, up to ``largest``.

        Args:
            spectrum: singular values, descending; as many as an edit keeps.
        """
        gap = float(spectrum[k - 1]) - (float(spectrum[k]) if len(spectrum) > k else 0.0)
        top = float(spectrum[0])
        return min(self.noise * top / gap, self.largest) if gap > 0 else self.largest


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
