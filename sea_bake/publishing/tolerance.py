"""How far two fits of one recipe may differ, and why: a bound on the angle between what their projectors span, or on
the difference of the parts of their maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

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

    @property
    def of_parts(self) -> float:
        """Largest admissible relative difference of a part of an affine map.

        A difference of means is a small share of the activations that it is made of, and a factor per unit a quotient
        of small numbers: so a hundred times the noise, and never more than ``largest``.
        """
        return min(100 * self.noise, self.largest)

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
