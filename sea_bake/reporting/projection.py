"""Activations in two dimensions before and after an edit, as in the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sea_bake.activations import Activations
from sea_bake.activations.texts import ROLES
from sea_bake.edit import Edit
from sea_bake.errors import SettingError, missing_extra
from sea_bake.methods import collected
from sea_bake.reporting.movement import edited

METHODS = ("pca", "tsne")
_PERPLEXITY = 30.0  # of t-SNE, its authors' range being 5 to 50; less where there are few points


@dataclass(frozen=True)
class Projected:
    """One layer's demonstrations in the plane.

    Attributes:
        before, after: role -> [n, 2] float64.
        shares: of PCA, the share of variance that each axis explains before the edit; None of t-SNE.
        separation: distance of the positive and the negative mean, before and after, in units of the spread around
            them (root mean square distance from the own mean), in all d dimensions.
    """

    layer: int
    method: str
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    shares: tuple[float, float] | None
    separation: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        points = {
            when: {role: [[float(f"{x:.5g}") for x in row] for row in rows.tolist()] for role, rows in found.items()}
            for when, found in (("before", self.before), ("after", self.after))
        }
        return {
            "layer": self.layer,
            "method": self.method,
            "shares": self.shares and list(self.shares),
            "separation": list(self.separation),
            **points,
        }


def check_method(projection: str) -> None:
    """Raises SettingError for an unknown one, MissingExtraError for t-SNE without scikit-learn."""
    if projection not in METHODS:
        raise SettingError(f"unknown projection {projection!r}: use {' or '.join(METHODS)}")
    if projection == "tsne":
        try:
            import sklearn.manifold  # noqa: F401
        except ImportError:
            raise missing_extra("scikit-learn", "report", "A t-SNE projection") from None


def project(edit: Edit, activations: Activations, layers: Sequence[int], method: str = "pca") -> list[Projected]:
    """Each layer's activations of all roles, before and after the edit.

    PCA's axes are those of the base's activations, all roles together; what the edit made of them is seen along the
    same axes. t-SNE knows no axes: there both are laid out together.

    Raises:
        SettingError: an unknown method.
        MissingExtraError: t-SNE, and scikit-learn is not installed.
    """
    check_method(method)
    found = []
    for layer in layers:
        row = activations.layers.index(layer)
        before = {role: getattr(activations, role)[row].double() for role in ROLES}
        after = {role: edited(edit, layer, H) for role, H in before.items()}
        stacked = torch.cat([*before.values(), *after.values()])  # [6 n, d]
        points, shares = _pca(stacked) if method == "pca" else (_tsne(stacked), None)
        first, second = (dict(zip(ROLES, half.chunk(len(ROLES)))) for half in points.chunk(2))
        found.append(Projected(layer, method, first, second, shares, (separation(before), separation(after))))
    return found


def separation(roles: dict[str, Tensor]) -> float:
    """How far apart positive and negative lie: see :func:`sea_bake.methods.collected.separation`."""
    return collected.separation(roles["positive"], roles["negative"])


def _pca(stacked: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """[6 n, d] -> [6 n, 2] along the principal axes of the first half, and the shares that they explain of it."""
    base = stacked[: len(stacked) // 2]
    mean = base.mean(0)
    _, s, V = torch.linalg.svd(base - mean, full_matrices=False)
    axes = V[:2]
    largest = axes.abs().argmax(1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()  # an axis points where its largest entry is positive
    energy = s.square()
    first, second = (float(x) for x in energy[:2] / energy.sum().clamp_min(1e-300))
    return (stacked - mean) @ axes.T, (first, second)


def _tsne(stacked: Tensor) -> Tensor:
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(stacked) - 1) / 3)
    laid_out = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(stacked.numpy())
    return torch.from_numpy(laid_out).double()
