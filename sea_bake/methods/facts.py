"""What the maps of an edit say of themselves; of those from a file, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sea_bake.methods.affine import AffineMap
from sea_bake.methods.storing import AnyMap, seen

if TYPE_CHECKING:
    from sea_bake.methods.sea import Projector


class MapFacts:
    """Of an object with maps.

    Attributes:
        maps: decoder layer -> Projector, or AffineMap; all of one kind.
    """

    maps: Mapping[int, Projector | AffineMap]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.maps))

    @property
    def seen(self) -> dict[int, AnyMap]:
        """Decoder layer -> its map: of one from a file, without torch."""
        return {layer: seen(self.maps, layer) for layer in self.layers}

    @property
    def is_sea(self) -> bool:
        """Whether its maps are SEA's projectors, and not affine maps."""
        return seen(self.maps, self.layers[0]).is_sea

    @property
    def projectors(self) -> dict[int, Projector]:
        """Decoder layer -> Projector; empty for an edit of another method than SEA."""
        return dict(self.maps) if self.is_sea else {}  # type: ignore[arg-type]

    @property
    def extra(self) -> tuple[str, ...]:
        """What its maps have besides a low-rank part: of "scale", "constant" and "gate"."""
        return seen(self.maps, self.layers[0]).extra

    @property
    def is_constant(self) -> bool:
        """Whether it adds one vector per layer, and nothing else."""
        return self.extra == ("constant",) and not any(map(any, self.ranks.values()))

    @property
    def ranks(self) -> dict[int, tuple[int, int]]:
        """Decoder layer -> (k+, k-); of an affine map, (k, 0)."""
        return {layer: one.ranks for layer, one in self.seen.items()}

    @property
    def widths(self) -> dict[int, int]:
        """Decoder layer -> d."""
        return {layer: one.dim for layer, one in self.seen.items()}

    @property
    def spectra(self) -> dict[int, Mapping[str, list[float]]]:
        """Decoder layer -> singular values of SEA's, "positive" and "negative"; empty for another method."""
        return {layer: one.spectra for layer, one in self.seen.items() if one.spectra is not None}
