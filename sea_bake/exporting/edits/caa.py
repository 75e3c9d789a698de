"""Contrastive Activation Addition (https://github.com/nrimsky/CAA): h + a v behind a layer.

``vec_layer_{N}_{model}.pt`` holds one tensor [d], a difference of means seen behind decoder layer N, counted from 0,
and added there. (Their wrapper adds it from the end of the instruction on; an edit adds it to every token.)
"""

from __future__ import annotations

import re
from pathlib import Path

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError, SettingError
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given, vector
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site

_NAME = re.compile(r"vec_layer_(\d{1,6})(_.*)?")


def _sees(given: Given) -> bool:
    from torch import Tensor

    return given.all_are("torch") and all(isinstance(one, Tensor) and one.dim() == 1 for one in given.contents)


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    maps: dict[int, AffineMap] = {}
    for path, tensor in zip(given.paths, given.contents):
        layer = _layer(path, given, asked)
        if layer in maps:
            raise EditError(f"{path} is the second vector for layer {layer}: import each of them by itself")
        maps[layer] = AffineMap(constant=vector(tensor, str(path)))
    return Found(maps, asked.site or Site.BLOCK, choose=given.from_folder and len(maps) > 1)


def _layer(path: Path, given: Given, asked: Asked) -> int:
    match = _NAME.fullmatch(path.stem)
    if match is not None:
        return int(match[1])
    if len(given.paths) == 1 and asked.layers is not None and len(asked.layers) == 1 and not asked.shifted:
        return asked.layers[0]
    raise SettingError(
        f"{path.name} does not say which layer its vector belongs to: say it (--layers 13), or call it vec_layer_13.pt"
    )


FORMAT = Format("caa", "CAA steering vector", "mean-difference", _sees, _read)
