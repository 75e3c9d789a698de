"""Inference-Time Intervention (https://github.com/likenneth/honest_llama): x + a sigma theta in some attention heads.

What its scripts save as NumPy arrays, told apart by their shapes (L layers, H heads, D the size of a head, n texts):

    activations  [n, L, H D]      what the heads gave, the input of o_proj; a second one is taken for sigma
    labels       [n]              1 of a true answer, 0 of a false one
    heads        [K, 2]           (layer, head) of those that are moved, both counted from 0; the scripts print it
    directions   [L H, D], [L, H, D]   theta, layer by layer; or made of activations and labels: difference of means
    sigma        [L, H]           spread along theta; or made of activations

theta becomes a unit vector, and the strength is 15 unless another is given, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError, SettingError, WrongModelError
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site

ALPHA = 15.0
_HEADS = "import numpy; numpy.save('heads.npy', [(14, 1), (16, 28)])"


@dataclass(frozen=True)
class _Size:
    """L, H and D of the base."""

    layers: int
    heads: int
    dim: int

    @classmethod
    def of(cls, base: OpenBase) -> _Size:
        text = base.text
        heads = text.num_attention_heads
        return cls(text.num_hidden_layers, heads, getattr(text, "head_dim", None) or text.hidden_size // heads)


def _sees(given: Given) -> bool:
    return given.all_are("numpy")


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    size = _Size.of(base)
    parts = _parts(given, size, base.source.name)
    if "heads" not in parts:
        raise SettingError(
            "which heads are moved is not among these files: save the list that validate_2fold.py prints, and name it "
            f'too: python -c "{_HEADS}"'
        )
    banks = parts.get("activations", [])
    theta = _directions(parts, size, banks)
    sigma = parts["sigma"][0].double() if "sigma" in parts else None
    maps: dict[int, Tensor] = {}
    for layer, head in parts["heads"][0].tolist():
        if not (0 <= layer < size.layers and 0 <= head < size.heads):
            raise WrongModelError(
                f"layer {layer}, head {head} is not in '{base.source.name}', which has layers 0 to {size.layers - 1} "
                f"and heads 0 to {size.heads - 1}"
            )
        direction = theta[layer, head] / theta[layer, head].norm()
        if sigma is not None:
            spread = sigma[layer, head]
        elif banks:
            spread = (_heads(banks[-1], layer, size)[:, head] @ direction).std(correction=0)
        else:
            raise SettingError("the spread along each direction is not among these files: give sigma, or activations")
        moved = maps.setdefault(layer, torch.zeros(size.heads * size.dim, dtype=torch.float64))
        moved[head * size.dim : (head + 1) * size.dim] = spread * direction
    if asked.site not in (None, Site.HEADS):
        raise SettingError("ITI moves the attention's heads: drop --site")
    affine = {layer: AffineMap(constant=moved) for layer, moved in sorted(maps.items())}
    return Found(affine, Site.HEADS, alpha=ALPHA, facts={"heads": parts["heads"][0].tolist()})


def _parts(given: Given, size: _Size, name: str) -> dict[str, list[Any]]:
    """Role -> arrays, by their shapes; activations stay on disk until a layer of them is needed."""
    found: dict[str, list[Any]] = {}
    for path, array in zip(given.paths, given.contents):
        role = _role(array, size)
        if role is None:
            raise WrongModelError(
                f"{path} is {array.shape} {array.dtype}: for '{name}' activations are [n, {size.layers}, "
                f"{size.heads * size.dim}], directions [{size.layers * size.heads}, {size.dim}], sigma [{size.layers}, "
                f"{size.heads}], labels [n], heads [K, 2] of whole numbers"
            )
        if role in found and (role != "activations" or len(found[role]) == 2):
            raise EditError(f"{path} is one array of {role} too many")
        found.setdefault(role, []).append(_tensor(array, path, role))
    return found


def _role(array: Any, size: _Size) -> str | None:
    whole, shape = array.dtype.kind in "iub", array.shape
    if array.ndim == 1:
        return "labels"
    if whole:
        return "heads" if array.ndim == 2 and shape[1] == 2 else None
    if array.ndim == 3 and shape[1:] == (size.layers, size.heads * size.dim):
        return "activations"
    if shape in ((size.layers * size.heads, size.dim), (size.layers, size.heads, size.dim)):
        return "directions"
    return "sigma" if shape == (size.layers, size.heads) else None


def _tensor(array: Any, path: Path, role: str) -> Any:
    import numpy as np

    if role == "activations":
        return array  # on disk
    plain = array.astype(np.int64 if role == "heads" else np.float64)
    if not np.isfinite(plain).all():
        raise EditError(f"{path} holds NaN or infinity")
    return torch.from_numpy(plain)


def _directions(parts: dict[str, list[Any]], size: _Size, banks: list[Any]) -> Tensor:
    """[L, H, D]"""
    shape = (size.layers, size.heads, size.dim)
    if "directions" in parts:
        found: Tensor = parts["directions"][0].reshape(shape)
        return found
    if not banks or "labels" not in parts:
        raise SettingError("the directions are not among these files: give them, or activations with their labels")
    labels = parts["labels"][0]
    if len(labels) != len(banks[0]) or not bool(((labels == 0) | (labels == 1)).all()):
        raise EditError(f"{len(labels)} labels for {len(banks[0])} texts: one each is needed, 0 or 1")
    true = labels == 1
    if not 0 < int(true.sum()) < len(true):
        raise EditError("all labels are the same: a direction lies between true and false answers")
    theta = torch.empty(shape, dtype=torch.float64)
    for layer in range(size.layers):
        heads = _heads(banks[0], layer, size)
        theta[layer] = heads[true].mean(0) - heads[~true].mean(0)
    return theta


def _heads(bank: Any, layer: int, size: _Size) -> Tensor:
    """[n, H, D] of one layer, float64."""
    found = torch.from_numpy(bank[:, layer].astype("float64")).reshape(-1, size.heads, size.dim)
    if not bool(torch.isfinite(found).all()):
        raise EditError(f"the activations of layer {layer} hold NaN or infinity")
    return found


FORMAT = Format("iti", "ITI", "iti", _sees, _read)
