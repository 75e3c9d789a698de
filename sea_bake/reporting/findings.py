"""Everything a report shows of one edit, as numbers; what is not known is None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from sea_bake.activations import Activations
from sea_bake.edit import Edit
from sea_bake.methods.affine import AffineMap
from sea_bake.pages.edits import settings
from sea_bake.pages.pictures import explained, spectrum
from sea_bake.reporting.movement import Moved, movement, same_demonstrations
from sea_bake.reporting.projection import Projected, project


@dataclass(frozen=True)
class Findings:
    """What is known of one edit.

    Attributes:
        explained: layer -> shares of the squared singular values of Ω+ and Ω- in the directions kept and dropped;
            empty where the spectra are not known.
        first: layer -> the same of the first direction alone.
        moved: layer -> role -> how far activations move; None without activations.
        projected: some layers in the plane; empty without activations.
        demonstrations: how many there were activations of.
        own: whether these are the demonstrations that the edit was fitted on.
    """

    edit: Edit
    explained: dict[int, tuple[float, float]]
    first: dict[int, tuple[float, float]]
    moved: dict[int, dict[str, Moved]] | None = None
    projected: list[Projected] = field(default_factory=list)
    demonstrations: int = 0
    own: bool = True

    @classmethod
    def of(cls, edit: Edit, activations: Activations | None, layers: Sequence[int], method: str) -> Findings:
        """Compute them; see :func:`project` for what is raised."""
        known = () if edit.recipe.get("imported") else edit.projectors
        found = cls(
            edit, {i: _explained(edit, i, edit.ranks[i]) for i in known}, {i: _explained(edit, i) for i in known}
        )
        if activations is None:
            return found
        return replace(
            found,
            moved=movement(edit, activations),
            projected=project(edit, activations, layers, method),
            demonstrations=activations.neutral.shape[1],
            own=same_demonstrations(edit, activations),
        )

    def to_json(self) -> dict[str, Any]:
        layers = {
            str(layer): {
                "ranks": list(ranks),
                "explained": list(self.explained[layer]) if self.explained else None,
                "first_direction": list(self.first[layer]) if self.first else None,
                "parts": self.sizes[layer],
                "signature": self.edit.recipe.get("signatures", {}).get(str(layer)),
                "moved": {role: m.to_json() for role, m in self.moved[layer].items()} if self.moved else None,
            }
            for layer, ranks in self.edit.ranks.items()
        }
        return {
            "settings": settings(self.edit),
            "layers": layers,
            "projection": [projected.to_json() for projected in self.projected],
            "demonstrations": self.demonstrations,
            "own_demonstrations": self.own,
        }

    @property
    def sizes(self) -> dict[int, dict[str, float]]:
        """Layer -> part of an affine map -> its norm; nothing of a projector."""
        return {
            layer: {name: float(part.norm()) for name, part in one.parts.items()} if isinstance(one, AffineMap) else {}
            for layer, one in sorted(self.edit.maps.items())
        }

    def medians(self, quantity: str) -> list[float]:
        """Per layer the median of a quantity of :class:`Moved`, over all roles' medians."""
        assert self.moved is not None
        return [median(getattr(m, quantity)[1] for m in by_role.values()) for by_role in self.moved.values()]


def _explained(edit: Edit, layer: int, ranks: tuple[int, int] = (1, 1)) -> tuple[float, float]:
    """What a number of leading directions of Ω+ and of Ω- explain."""
    plus, minus = (
        explained(spectrum(edit, layer, part)).nan_to_num(0.0)[:k].tolist()
        for part, k in zip(("positive", "negative"), ranks)
    )
    return plus[-1] if plus else 0.0, minus[-1] if minus else 0.0
