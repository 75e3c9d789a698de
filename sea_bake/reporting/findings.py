"""Everything a report shows of one edit, as numbers; what is not known is None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from sea_bake.activations import Activations
from sea_bake.edit import Edit
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
        shares = {} if edit.recipe.get("imported") else {layer: _shares(edit, layer) for layer in edit.layers}
        kept = {layer: (at[0][0], at[1][0]) for layer, at in shares.items()}
        first = {layer: (at[0][1], at[1][1]) for layer, at in shares.items()}
        if activations is None:
            return cls(edit, kept, first)
        return cls(
            edit,
            kept,
            first,
            movement(edit, activations),
            project(edit, activations, layers, method),
            activations.neutral.shape[1],
            same_demonstrations(edit, activations),
        )

    def to_json(self) -> dict[str, Any]:
        layers = {
            str(layer): {
                "ranks": list(ranks),
                "explained": list(self.explained[layer]) if self.explained else None,
                "first_direction": list(self.first[layer]) if self.first else None,
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

    def medians(self, quantity: str) -> list[float]:
        """Per layer the median of a quantity of :class:`Moved`, over all roles' medians."""
        assert self.moved is not None
        return [median(getattr(m, quantity)[1] for m in by_role.values()) for by_role in self.moved.values()]


def _shares(edit: Edit, layer: int) -> list[tuple[float, float]]:
    """For Ω+ and Ω-: what the k leading directions explain, and what the first does."""
    found = []
    for part, k in zip(("positive", "negative"), edit.ranks[layer]):
        share = explained(spectrum(edit, layer, part)).nan_to_num(0.0).tolist()
        found.append((share[min(k, len(share)) - 1] if k and share else 0.0, share[0] if share else 0.0))
    return found
