"""How the maps of an edit lie in its file: one tensor per part and layer, float32, under names that say which.

What is read stays in NumPy, which says all that an edit says of itself; torch is imported for what computes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from sea_bake.errors import EditError
from sea_bake.io import store
from sea_bake.methods.affine import AffineMap, check_parts, extra_of
from sea_bake.model.travelling import EXTRA

if TYPE_CHECKING:
    from sea_bake.methods.sea import Projector

Array = NDArray[np.float32]
AnyMap = Union["Projector", AffineMap, "StoredMap"]

_SPECTRUM_KEPT = 512  # leading singular values kept in the file: all of them for up to 512 demonstrations
_SIGNS = ("positive", "negative")
_PARTS = ("A", "B", *EXTRA)
AFFINE = "affine"


@dataclass(frozen=True)
class StoredMap:
    """One layer's map as a file holds it, checked.

    Attributes:
        parts: name -> array, as ``parts`` of a Projector or an AffineMap.
        spectra: of a Projector, its singular values: "positive", "negative".
    """

    parts: Mapping[str, Array]
    spectra: Mapping[str, list[float]] | None = None

    @property
    def is_sea(self) -> bool:
        return self.spectra is not None

    @property
    def ranks(self) -> tuple[int, int]:
        if self.is_sea:
            return len(self.parts["positive"]), len(self.parts["negative"])
        return len(self.parts["A"]) if "A" in self.parts else 0, 0

    @property
    def dim(self) -> int:
        if self.is_sea:
            return self.parts["positive"].shape[1]
        return next(len(self.parts[name]) for name in ("constant", "B", "scale") if name in self.parts)

    @property
    def extra(self) -> tuple[str, ...]:
        return extra_of(self.parts)

    @property
    def changes_nothing(self) -> bool:
        """Of an affine map: whether every activation comes out as it went in."""
        moves = any(bool(self.parts[name].any()) for name in ("B", "constant") if name in self.parts)
        return not moves and ("scale" not in self.parts or bool((self.parts["scale"] == 1).all()))

    def arrays(self) -> dict[str, Array]:
        """{"A": [k, d], "B": [d, k]} and the rest of an affine map, as ``SEALayer`` names them."""
        if not self.is_sea:
            return dict(self.parts)
        up, un = self.parts["positive"], self.parts["negative"]
        return {"A": np.concatenate([up, un]), "B": np.ascontiguousarray(np.concatenate([up, -un]).T)}

    def living(self) -> Projector | AffineMap:
        """The same in torch; the memory is shared."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in self.parts.items()}
        if self.spectra is None:
            return AffineMap(**tensors)
        from sea_bake.methods.sea import Projector

        values = (torch.tensor(self.spectra[sign], dtype=torch.float64) for sign in _SIGNS)
        return Projector(tensors["positive"], tensors["negative"], *values)


class StoredMaps(Mapping[int, Any]):
    """Layer -> Projector or AffineMap, each made of what the file holds when it is first looked up."""

    def __init__(self, stored: Mapping[int, StoredMap]) -> None:
        self.stored = dict(stored)
        self._living: dict[int, Projector | AffineMap] = {}

    def __getitem__(self, layer: int) -> Projector | AffineMap:
        if layer not in self._living:
            self._living[layer] = self.stored[layer].living()
        return self._living[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def seen(maps: Mapping[int, Any], layer: int) -> AnyMap:
    """One layer's map: of those from a file, without torch."""
    found: AnyMap = maps.stored[layer] if isinstance(maps, StoredMaps) else maps[layer]
    return found


def stored(maps: Mapping[int, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors of a file, ``layers.<layer>.<part>``, and the lines of its header that describe them."""
    tensors: dict[str, Any] = {}
    spectra: dict[str, dict[str, list[float]]] = {}
    for layer in sorted(maps):
        one = seen(maps, layer)
        for name, part in one.parts.items():  # layers may share one; files may not
            tensors[f"layers.{layer}.{name}"] = part.copy() if isinstance(part, np.ndarray) else part.clone()
        if one.spectra is not None:
            spectra[str(layer)] = {sign: _rounded(one.spectra[sign]) for sign in _SIGNS}
    return tensors, {"spectra": spectra} if spectra else {"map": AFFINE}


def restored(tensors: Mapping[str, Array], header: Mapping[str, Any], *, depth: int, width: int | None) -> StoredMaps:
    """Layer -> map, checked.

    Args:
        depth: decoder layers of the base.
        width: of the activation; None where the maps alone know it.

    Raises:
        EditError: tensors that are no valid maps.
        KeyError, TypeError, ValueError: a header without what is needed, or with garbage in its place.
    """
    layers = [store.whole(layer) for layer in header["layers"]]
    if not layers:
        raise EditError("an edit needs at least one layer")
    if len(layers) != len(set(layers)):
        raise EditError("a layer is listed twice")
    for layer in layers:
        if not 0 <= layer < depth:
            raise EditError(f"layer {layer} is out of range for a model of {depth} layers")
    is_affine = header.get("map", "sea") == AFFINE
    read = _affine if is_affine else _projector
    maps = {layer: read(tensors, header, layer, width) for layer in layers}
    if {f"layers.{layer}.{part}" for layer, one in maps.items() for part in one.parts} != set(tensors):
        raise EditError("its tensors do not match its list of layers")
    return StoredMaps(maps)


def _affine(tensors: Mapping[str, Array], header: Mapping[str, Any], layer: int, width: int | None) -> StoredMap:
    prefix = f"layers.{layer}."
    given = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    strange = sorted(set(given) - set(_PARTS))
    if strange:
        raise EditError(f"layer {layer}: {strange[0]} is no part of an affine map")
    parts = {name: given[name] for name in _PARTS if name in given}
    try:
        check_parts(parts)
    except EditError as error:
        raise EditError(f"layer {layer}: {error}") from error
    one = StoredMap(parts)
    if one.dim != width and width is not None:
        raise EditError(f"layer {layer} has a map of width {one.dim}, and the model's is {width}")
    if [store.whole(k) for k in header["ranks"][str(layer)]] != [*one.ranks]:
        raise EditError(f"layer {layer} holds another rank than its header says")
    return one


def _projector(tensors: Mapping[str, Array], header: Mapping[str, Any], layer: int, width: int | None) -> StoredMap:
    found = {part: tensors[f"layers.{layer}.{part}"] for part in _SIGNS}
    ranks = [store.whole(k) for k in header["ranks"][str(layer)]]
    for (part, rows), k in zip(found.items(), ranks, strict=True):
        columns = width or (rows.shape[-1] if rows.ndim else 0)
        if rows.shape != (k, columns):
            raise EditError(f"layers.{layer}.{part} is {rows.shape}, not ({k}, {columns})")
        if k > columns:  # before a k x k matrix is made: k may be huge where a row is short
            raise EditError(f"layers.{layer}.{part} has {k} rows, more than can be orthonormal in {columns}")
        wide = rows.astype(np.float64)
        # Also catches NaN. Unit rows at right angles up to float32 rounding, or it is no projector.
        if not bool((np.abs(wide @ wide.T - np.eye(k)) < 1e-4).all()):
            raise EditError(f"the rows of layers.{layer}.{part} are not orthonormal, so this is no projector")
    if found["positive"].shape[1] != found["negative"].shape[1]:
        raise EditError(f"the two projectors of layer {layer} are of different widths")
    spectra = header["spectra"][str(layer)]
    return StoredMap(found, {sign: [store.finite(x) for x in spectra[sign]] for sign in _SIGNS})


def _rounded(spectrum: list[float]) -> list[float]:
    return [float(f"{x:.7g}") for x in spectrum[:_SPECTRUM_KEPT]]
