"""Persona vectors (https://github.com/safety-research/persona_vectors): h + a v behind a layer.

``{trait}_response_avg_diff.pt`` holds one tensor [layers + 1, d]: row i was seen in ``hidden_states[i]``, so row 0 is
the embeddings and row i the output of decoder layer i - 1, counted from 0, where their steerer adds it too.
"""

from __future__ import annotations

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError, WrongModelError, command
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given, vector
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site


def _sees(given: Given) -> bool:
    from torch import Tensor

    return given.kinds == ("torch",) and isinstance(given.contents[0], Tensor) and given.contents[0].dim() == 2


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    path = given.one(FORMAT.title)
    rows = vector(given.contents[0], str(path), dims=2)
    depth = base.text.num_hidden_layers
    if len(rows) == depth:
        lines = (
            f"import torch; torch.save({{'layer_activations': dict(enumerate(torch.load({str(path)!r}))), "
            "'layer_type': 'decoder_block'}, 'plain.pt')"
        )
        raise EditError(
            f"{path} has {depth} rows, and persona vectors of a model of {depth} layers have {depth + 1}: row 0 is the "
            f"embeddings. If row 0 belongs to the first layer here, say so in a file: {command('python', '-c', lines)}"
        )
    if len(rows) != depth + 1:
        raise WrongModelError(
            f"{path} has {len(rows)} rows, and persona vectors of '{base.source.name}' would have {depth + 1}: its "
            f"{depth} layers, and the embeddings. Give the model that it was made for (--base)"
        )
    maps = {i - 1: AffineMap(constant=rows[i]) for i in range(1, len(rows))}
    return Found(maps, asked.site or Site.BLOCK, choose=True)


FORMAT = Format("persona", "persona vectors", "mean-difference", _sees, _read)
