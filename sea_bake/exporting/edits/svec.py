"""Steering vectors of IBM's activation-steering (https://github.com/IBM/activation-steering): h + a v.

A ``.svec`` is JSON: ``model_type``, ``directions`` {layer: list}, ``explained_variances``. Direction N was seen
*behind* decoder layer N, counted from 0, and their LeashLayer adds it to the *input* of layer N, which is the output of
layer N - 1: what is imported is what their model does. ``shift=1`` puts it where it was seen. Their condition (a
threshold on a projection of the prompt) is no affine map, and is not imported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError, WrongModelError
from sea_bake.exporting.edits.found import Asked, Format, Found, check_family
from sea_bake.exporting.edits.reading import Given, vector
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site


def _sees(given: Given) -> bool:
    return given.all_are("json") and all("directions" in one for one in given.contents)


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    path = given.one(FORMAT.title)
    content = given.contents[0]
    check_family(content.get("model_type"), base, str(path))
    directions = content.get("directions")
    if not isinstance(directions, dict) or not directions:
        raise EditError(f"{path} has no directions: it is damaged")
    maps = {}
    for name, values in directions.items():
        if not (name.isascii() and name.isdigit() and len(name) < 7):
            raise EditError(f"{path} has a direction for {name!r:.40}, which is no layer")
        if int(name) >= base.text.num_hidden_layers:
            raise WrongModelError(
                f"{path} has a direction for layer {int(name)}, and '{base.source.name}' has the layers 0 to "
                f"{base.text.num_hidden_layers - 1}: it belongs to another model"
            )
        if int(name) - 1 in maps:
            raise EditError(f"{path} has two directions for layer {int(name)}")
        maps[int(name) - 1] = AffineMap(constant=_floats(values, f"{path}: direction {name}"))
    if not asked.shifted:
        maps.pop(-1, None)  # in front of the first layer is no site
    if not maps:
        raise EditError(
            f"{path} has a direction for layer 0 alone, whose input is no site: --shift 1 puts it behind it"
        )
    return Found(maps, asked.site or Site.BLOCK, choose=True)


def _floats(values: object, where: str) -> Tensor:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise EditError(f"{where} is no list of numbers")
    try:
        return vector(torch.tensor(values, dtype=torch.float64), where)
    except OverflowError:
        raise EditError(f"{where} holds a number that no float can hold") from None


FORMAT = Format("svec", "steering vector (.svec)", "steering-vector", _sees, _read)
