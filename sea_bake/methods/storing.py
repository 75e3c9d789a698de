"""How the maps of an edit lie in its file: one tensor per part and layer, float32, under names that say which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sea_bake.errors import EditError
from sea_bake.io import store
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.sea import Projector

_SPECTRUM_KEPT = 512  # leading singular values kept in the file: all of them for up to 512 demonstrations
_SIGNS = ("positive", "negative")
AFFINE = "affine"


def stored(maps: Mapping[int, Projector | AffineMap]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a file, ``layers.<layer>.<part>``, and the lines of its header that describe them."""
    tensors: dict[str, Tensor] = {}
    spectra: dict[str, dict[str, list[float]]] = {}
    for layer, one in sorted(maps.items()):
        if isinstance(one, AffineMap):
            tensors |= {f"layers.{layer}.{name}": tensor.clone() for name, tensor in one.parts.items()}
            continue
        tensors |= {f"layers.{layer}.positive": one.positive, f"layers.{layer}.negative": one.negative}
        spectra[str(layer)] = {sign: _rounded(getattr(one, f"{sign}_spectrum")) for sign in _SIGNS}
    return tensors, {"spectra": spectra} if spectra else {"map": AFFINE}


def restored(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], *, depth: int, width: int | None
) -> dict[int, Projector | AffineMap]:
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
    return maps


def _affine(tensors: Mapping[str, Tensor], header: Mapping[str, Any], layer: int, width: int | None) -> AffineMap:
    prefix = f"layers.{layer}."
    try:
        one = AffineMap.restored({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    except EditError as error:
        raise EditError(f"layer {layer}: {error}") from error
    if one.dim != width and width is not None:
        raise EditError(f"layer {layer} has a map of width {one.dim}, and the model's is {width}")
    if [store.whole(k) for k in header["ranks"][str(layer)]] != [one.rank, 0]:
        raise EditError(f"layer {layer} holds another rank than its header says")
    return one


def _projector(tensors: Mapping[str, Tensor], header: Mapping[str, Any], layer: int, width: int | None) -> Projector:
    found = [tensors[f"layers.{layer}.{part}"] for part in _SIGNS]
    ranks = [store.whole(k) for k in header["ranks"][str(layer)]]
    for part, rows, k in zip(_SIGNS, found, ranks, strict=True):
        columns = width or (rows.shape[-1] if rows.dim() else 0)
        if rows.dtype != torch.float32 or rows.shape != (k, columns):
            raise EditError(f"layers.{layer}.{part} is {tuple(rows.shape)} {rows.dtype}, not ({k}, {columns}) float32")
        if k > columns:  # before a k x k matrix is made: k may be huge where a row is short
            raise EditError(f"layers.{layer}.{part} has {k} rows, more than can be orthonormal in {columns}")
        gram = rows.double() @ rows.double().T
        # Also catches NaN. Unit rows at right angles up to float32 rounding, or it is no projector.
        if not bool(((gram - torch.eye(k, dtype=torch.float64)).abs() < 1e-4).all()):
            raise EditError(f"the rows of layers.{layer}.{part} are not orthonormal, so this is no projector")
    if found[0].shape[1] != found[1].shape[1]:
        raise EditError(f"the two projectors of layer {layer} are of different widths")
    spectra = header["spectra"][str(layer)]
    values = [torch.tensor([store.finite(x) for x in spectra[p]], dtype=torch.float64) for p in _SIGNS]
    return Projector(*found, *values)


def _rounded(spectrum: Tensor) -> list[float]:
    return [float(f"{x:.7g}") for x in spectrum[:_SPECTRUM_KEPT].tolist()]
