"""Vectors of the package steering-vectors (https://github.com/steering-vectors/steering-vectors): h + a v.

Its dataclass as a plain dict in a ``.pt``: ``layer_activations`` {N: [d]}, ``layer_type``. Vector N is added to the
output of the decoder layer N, counted from 0, or of its attention or MLP. Whoever has vectors by layer can write such a
file: ``torch.save({"layer_activations": {13: v}, "layer_type": "decoder_block"}, "v.pt")``.
"""

from __future__ import annotations

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given, vector
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site

_KEY = "layer_activations"
_SITES = {"decoder_block": Site.BLOCK, "self_attn": Site.ATTN, "mlp": Site.MLP}


def _sees(given: Given) -> bool:
    return given.all_are("torch") and all(isinstance(one, dict) and _KEY in one for one in given.contents)


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    path = given.one(FORMAT.title)
    content = given.contents[0]
    kind, vectors = content.get("layer_type", "decoder_block"), content[_KEY]
    if kind not in _SITES:
        raise EditError(f"{path} acts on {kind!r:.40}, whose output is no site here: {', '.join(_SITES)} are")
    if not isinstance(vectors, dict) or not vectors:
        raise EditError(f"{path} has no {_KEY}: it is damaged")
    if strange := [layer for layer in vectors if isinstance(layer, bool) or not isinstance(layer, int)]:
        raise EditError(f"{path} has a vector for {strange[0]!r:.40}, which is no layer")
    maps = {layer: AffineMap(constant=vector(v, f"{path}: layer {layer}")) for layer, v in vectors.items()}
    return Found(maps, asked.site or _SITES[kind])


FORMAT = Format("steering-vectors", "steering vector", "mean-difference", _sees, _read)
