"""Dense projections of SEA's authors (https://github.com/yfqiu-nlp/sea-llm): a d x d matrix per layer and sign.

``uu_positive.pt`` holds U+ U+ᵀ and ``uu_negative.pt`` I - U- U-ᵀ, [layers, d, d], by decoder layer from 0. Their files
say neither layers nor site nor merge: those of the released code are the defaults, the last 21 layers, mlp and l2.
"""

from __future__ import annotations

from torch import Tensor

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError, SettingError
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given
from sea_bake.methods import sea
from sea_bake.methods.layers import select_layers
from sea_bake.model.anatomy import Site

_LAST = 21
LAYERS = f"last:{_LAST}"
SIGNS = ("positive", "negative")


def _sees(given: Given) -> bool:
    if len(given.paths) != 2 or not given.all_are("torch"):
        return False
    if [sign in path.name for sign, path in zip(SIGNS, _sorted(given).paths)] == [True, True]:
        return True
    return all(isinstance(one, Tensor) and one.dim() == 3 for one in given.contents)


def _sorted(given: Given) -> Given:
    """Positive first, where the names say which is which; else as they were given."""
    first, second = given.paths
    turned = SIGNS[1] in first.name and SIGNS[0] in second.name
    return Given((second, first)) if turned else given


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    if len(given.paths) != 2:
        raise EditError("dense projections are two files: uu_positive.pt and uu_negative.pt")
    given = _sorted(given)
    for path, content in zip(given.paths, given.contents):
        if not isinstance(content, Tensor):
            raise EditError(f"{path} holds a {type(content).__name__}, not a [layers, d, d] tensor")
    depth = base.text.num_hidden_layers
    if asked.layers is None and depth < _LAST:
        raise SettingError(
            f"these projections edit the last {_LAST} layers unless it is said otherwise, and '{base.source.name}' has "
            f"{depth}: choose them (--layers all, or --layers last:{max(1, round(0.66 * depth))})"
        )
    layers = asked.layers or select_layers(LAYERS, depth)
    found = sea.dense_projectors(*given.contents, layers=layers, num_layers=depth, width=base.text.hidden_size)
    return Found(found, asked.site or Site.MLP, merge=asked.merge or "l2")


FORMAT = Format("dense", "dense projections of the authors' released code", None, _sees, _read)
