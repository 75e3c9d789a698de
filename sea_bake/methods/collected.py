"""What every method is given: the activations of all roles, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sea_bake.errors import ActivationError
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.sea import Projector

Roles = tuple[Tensor, Tensor, Tensor]  # H, H+, H-: [n, d] each
Maps = dict[int, Projector | AffineMap]
Fit = Callable[..., tuple[Maps, dict[str, Any]]]


def _quiet(count: int) -> None:
    pass


@dataclass(frozen=True)
class Collected:
    """Activations, and which layers are to be edited.

    Attributes:
        layers: decoder layer -> its roles; all that there are.
        edited: the layers to make a map for.
        depth: number of decoder layers.
        heads: attention heads in a layer, of the site ``heads``; 0 elsewhere.
        advance: called with 1 behind each layer.
    """

    layers: Mapping[int, Roles]
    edited: Sequence[int]
    depth: int
    heads: int = 0
    advance: Callable[[int], None] = _quiet


def each(function: Callable[..., Projector | AffineMap]) -> Fit:
    """A fit out of a function of one layer: (neutral, positive, negative, **settings) -> its map."""

    def fit(collected: Collected, **settings: Any) -> tuple[Maps, dict[str, Any]]:
        maps: Maps = {}
        for layer in collected.edited:
            maps[layer] = function(*collected.layers[layer], **settings)
            collected.advance(1)
        return maps, {}

    return fit


def in_double(*roles: Tensor) -> list[Tensor]:
    """Float64 copies of roles.

    Raises:
        ActivationError: they are not of one [n, d] shape.
    """
    shapes = [tuple(role.shape) for role in roles]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2:
        raise ActivationError(f"the activations of all roles must share one [n, d] shape, not {shapes}")
    return [role.double() for role in roles]


def separation(positive: Tensor, negative: Tensor) -> float:
    """‖mean(H+) - mean(H-)‖ over the root mean square distance of both from their own means; 0 without any spread.

    Args:
        positive, negative: [n, d].
    """
    means = positive.mean(0), negative.mean(0)
    around = torch.cat([positive - means[0], negative - means[1]])
    spread = around.square().sum(-1).mean().sqrt()
    apart = torch.linalg.vector_norm(means[0] - means[1])
    return float(apart / spread) if float(spread) > 0 else 0.0
