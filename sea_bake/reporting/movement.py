"""How far an edit moves the activations of demonstrations, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sea_bake.activations import Activations
from sea_bake.activations.texts import ROLES
from sea_bake.edit import Edit
from sea_bake.errors import ActivationError, SeaBakeError
from sea_bake.model.sites import ranges


@dataclass(frozen=True)
class Moved:
    """Of one layer and role, over the demonstrations.

    Attributes:
        relative: ‖y - h‖ / ‖h‖, its first quartile, median and third quartile.
        cosine: of h and y, the same.
    """

    relative: tuple[float, float, float]
    cosine: tuple[float, float, float]

    def to_json(self) -> dict[str, list[float]]:
        return {"relative": list(self.relative), "cosine": list(self.cosine)}


def edited(edit: Edit, layer: int, H: Tensor) -> Tensor:
    """[n, d] -> [n, d] float64: what the edit makes of activations."""
    y: Tensor = edit.layer(layer).double()(H.double())
    return y


def movement(edit: Edit, activations: Activations) -> dict[int, dict[str, Moved]]:
    """Edited layer -> role -> how far its activations move, in float64.

    Each layer is looked at by itself, on what the base gives it: in the running model the layers before it have moved
    its input already. Vectors of length 0 do not move, and count as having kept their direction.
    """
    found: dict[int, dict[str, Moved]] = {}
    for layer in edit.layers:
        row = activations.layers.index(layer)
        found[layer] = {}
        for role in ROLES:
            h = getattr(activations, role)[row].double()
            y = edited(edit, layer, h)
            lengths = torch.linalg.vector_norm(h, dim=-1)
            relative = torch.linalg.vector_norm(y - h, dim=-1) / lengths
            cosine = (h * y).sum(-1) / (lengths * torch.linalg.vector_norm(y, dim=-1))
            found[layer][role] = Moved(_quartiles(relative.nan_to_num(0.0)), _quartiles(cosine.nan_to_num(1.0)))
    return found


def _quartiles(values: Tensor) -> tuple[float, float, float]:
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return low, middle, high


def belonging(edits: Sequence[Edit], given: Sequence[Activations | str | Path]) -> list[Activations | None]:
    """For each edit its activations out of those given, best of all of the demonstrations it was fitted on.

    Raises:
        ActivationError: some belong to no edit: another base, another site, or edited layers that they lack.
    """
    loaded = [a if isinstance(a, Activations) else Activations.load(a) for a in given]
    names = ["the activations" if isinstance(a, Activations) else str(a) for a in given]
    problems = [[_mismatch(edit, found) for edit in edits] for found in loaded]
    for name, told in zip(names, problems):
        if all(told):
            raise ActivationError(f"{name} cannot be used here: {told[0]}")
    chosen: list[Activations | None] = []
    for i, edit in enumerate(edits):
        fitting = [found for found, told in zip(loaded, problems) if told[i] is None]
        chosen.append(max(fitting, key=lambda found: same_demonstrations(edit, found), default=None))
    return chosen


def _mismatch(edit: Edit, found: Activations) -> str | None:
    """Why activations say nothing about an edit; None where they do."""
    if found.site is not edit.site:
        return f"they are of the site '{found.site.value}', and the edit acts at '{edit.site.value}'"
    try:
        edit.base.check(found.base, edit.layers, what="the model they were taken from")
    except SeaBakeError as error:
        return str(error)
    absent = [layer for layer in edit.layers if layer not in found.layers]
    if absent:
        return f"they hold layers {ranges(found.layers)}, and the edit acts on layer {absent[0]} too"
    return None


def same_demonstrations(edit: Edit, activations: Activations) -> bool:
    """Whether these are what the edit was fitted on."""
    digest: Any = edit.recipe.get("demonstrations_sha256")
    return digest is not None and digest == activations.recipe.get("demonstrations_sha256")
