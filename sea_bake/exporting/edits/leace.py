"""Erasers of concept-erasure (https://github.com/EleutherAI/concept-erasure, LEACE): x - L R (x - mu).

A LeaceEraser's three tensors, as a plain dict in a ``.pt`` or as safetensors: ``proj_left`` L [d, k], ``proj_right`` R
[k, d], ``bias`` mu [d] or none. Such a file does not say where it belongs: ``layers`` and ``site`` do. Several layers
go into one file under their numbers: ``13.proj_left``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError, SettingError
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given, vector
from sea_bake.methods.affine import AffineMap

_PARTS = ("proj_left", "proj_right", "bias")
_NUMBERED = re.compile(r"(\d{1,6})\.(proj_left|proj_right|bias)")


def _sees(given: Given) -> bool:
    return set(given.kinds) <= {"torch", "safetensors"} and all(
        isinstance(one, dict) and any(str(key).rpartition(".")[2] == _PARTS[0] for key in one) for one in given.contents
    )


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    path = given.one(FORMAT.title)
    if asked.site is None:
        raise SettingError(f"{path} does not say what it erases from: name the site (--site block, mlp or attn)")
    content: dict[Any, Any] = given.contents[0]
    if set(content) <= set(_PARTS):
        if asked.shifted:
            raise SettingError(f"{path} holds one eraser, of the layer that you name: drop --shift")
        if asked.layers is None or len(asked.layers) != 1:
            raise SettingError(f"{path} holds one eraser, not saying for which layer: name it (--layers 13)")
        return Found({asked.layers[0]: _map(content, str(path))}, asked.site)
    erasers: dict[int, dict[str, Any]] = {}
    for key, tensor in content.items():
        match = _NUMBERED.fullmatch(str(key))
        if match is None:
            raise EditError(f"{path} holds {str(key)!r:.60}, which is no part of an eraser: {', '.join(_PARTS)} are")
        erasers.setdefault(int(match[1]), {})[match[2]] = tensor
    return Found({i: _map(parts, f"{path}: layer {i}") for i, parts in erasers.items()}, asked.site)


def _map(parts: Mapping[str, Any], where: str) -> AffineMap:
    for name in _PARTS[:2]:
        if name not in parts:
            raise EditError(f"{where} lacks {name}: it is no whole eraser")
    eps = torch.finfo(parts["proj_left"].dtype).eps if getattr(parts["proj_left"], "is_floating_point", bool)() else 0.0
    left, right = (vector(parts[name], f"{where}: {name}", dims=2) for name in _PARTS[:2])
    if left.shape != right.T.shape:
        raise EditError(
            f"{where}: proj_left is {tuple(left.shape)} and proj_right {tuple(right.shape)}, where [d, k] and [k, d] "
            "belong together"
        )
    left, right = _thin(left, right, eps)
    if parts.get("bias") is None:
        return AffineMap(A=right, B=-left)
    mean = vector(parts["bias"], f"{where}: bias")
    if len(mean) != len(left):
        raise EditError(f"{where}: bias is {len(mean)} wide, and the eraser {len(left)}")
    return AffineMap(A=right, B=-left, constant=left @ (right @ mean))


def _thin(left: Tensor, right: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The same product from as few columns as it has directions: fitting leaves columns of zeros, or of rounding."""
    if left.shape[1] > left.shape[0]:
        raise EditError(f"an eraser of {left.shape[1]} columns for {left.shape[0]} units is none")
    Q, R = torch.linalg.qr(left)
    u, s, vh = torch.linalg.svd(R @ right, full_matrices=False)
    kept = s > s.max().clamp_min(torch.finfo(torch.float64).tiny) * max(left.shape) * eps
    return Q @ (u[:, kept] * s[kept]), vh[kept]


FORMAT = Format("leace", "LEACE eraser", "leace", _sees, _read)
