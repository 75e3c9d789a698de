"""What activations must have for a fit: roles that differ, and something that varies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from sea_bake.activations import Activations
from sea_bake.activations.texts import ROLES
from sea_bake.errors import ActivationError


def check_roles(activations: Activations) -> None:
    """Raise ActivationError where positive and negative activations are the same in every layer."""
    if torch.equal(activations.positive, activations.negative):
        raise ActivationError(
            "the positive and the negative activations are identical in every layer, so there is nothing to move "
            "towards or away from: give answers that differ, and at the token that is read (--position mean reads all)"
        )


def check_directions(
    activations: Activations, rows: Sequence[int], ranks: Sequence[tuple[int, int]], parts: str, *, centre: bool
) -> None:
    """Raise ActivationError where no layer has a direction to keep or to drop, with the reason.

    Args:
        rows: of the activations, one per edited layer.
        ranks: (k+, k-) of each.
        parts, centre: as of the fit.
    """
    used = {"both": (0, 1), "positive": (0,), "negative": (1,)}[parts]
    same = [role for role in ROLES if bool((of := getattr(activations, role)[list(rows)]).eq(of[:, :1]).all())]
    empty = not any(pair[part] for pair in ranks for part in used)
    if centre and same and (empty or "neutral" in same):  # rounding of a mean may leave what looks like a direction
        raise ActivationError(
            f"the {same[0]} activations of all {activations.neutral.shape[1]} demonstrations are identical, so nothing "
            "is left of them once their mean is subtracted, and the edit would change nothing: give prompts and "
            "answers that differ, or pass --no-centre"
        )
    if empty:
        raise ActivationError(
            "no direction is left in any layer, so the edit would change nothing: the activations are all zero, or K "
            "is too small. Give more or other demonstrations, or a larger K"
        )


def check_changes(maps: Iterable[Any]) -> None:
    """Raise ActivationError where affine maps leave every activation as it is."""
    if all(one.changes_nothing for one in maps):
        raise ActivationError(
            "the edit would change nothing: in every layer positive and negative activations have the same mean. Give "
            "answers that differ, at the token that is read (--position mean reads all)"
        )
