"""Where else a model's random edits may gain: constant vectors at other sites than an edit's own, and the one of these
sites at which they gain most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sea_bake.edit import Edit
from sea_bake.errors import SettingError
from sea_bake.evaluation.controls import Drawing
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.layers import select_layers
from sea_bake.model.site import Site
from sea_bake.model.sites import layers_with, ranges

# Of the layers that have the site; where methods edit by default.
_PLACES = {Site.ATTN: "last:0.66", Site.MLP: "last:0.66", Site.BLOCK: "middle"}
_TRIED = 3  # draws at each


def elsewhere(model: Any, edit: Edit) -> list[tuple[Edit, str]]:
    """An edit that adds nothing, at each site of the model that this edit does not change, and where that is."""
    own = Site.ATTN if edit.site is Site.HEADS else edit.site
    found = []
    for site, layers in _PLACES.items():
        try:
            there = layers_with(model, site)
        except SettingError:  # this family has no such site
            continue
        if site is not own:
            chosen = [there[i] for i in select_layers(layers, len(there))]
            maps = {i: AffineMap(constant=torch.zeros(edit.base.hidden_size)) for i in chosen}
            where = f"{site.value}, layer{'s' * (len(chosen) > 1)} {ranges(chosen)}"
            found.append((Edit(maps, site, edit.base, merge="sum"), where))
    return found


def best(kind: str, drawings: Sequence[Drawing]) -> Drawing:
    """Of drawings at several sites the one whose first draws gain most."""
    return drawings[0] if len(drawings) == 1 else max(drawings, key=lambda one: _mean(kind, one))


def _mean(kind: str, drawing: Drawing) -> float:
    """Of the first draws' gains; -inf where no strength brings one to the KL."""
    found = [draw.gains for draw in drawing.draws(kind, _TRIED) if draw is not None]
    return float(np.mean(found)) if found else -np.inf
