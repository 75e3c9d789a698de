"""What activations must have for a fit: roles that differ, and something that varies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    activations: Activations, rows: Sequence[int], projectors: Sequence[Any], settings: Mapping[str, Any]
) -> None:
    """Raise ActivationError where projectors leave every activation as it is, with the reason.

    Args:
        rows: of the activations, one per edited layer.
        projectors: of each.
        settings: "parts", "merge", "feature" and "centre" of the fit.
    """
    parts, ranks, n = settings["parts"], [one.ranks for one in projectors], activations.neutral.shape[1]
    used = {"both": (0, 1), "positive": (0,), "negative": (1,)}[parts]
    cancels = parts == "both" and settings["merge"] != "average" and settings["feature"] == "identity"
    same = [role for role in ROLES if bool((of := getattr(activations, role)[list(rows)]).eq(of[:, :1]).all())]
    empty = not any(pair[part] for pair in ranks for part in used)
    held = " (some were held back: --held-back 0 fits on all)" if activations.recipe.get("held_back") else ""
    one_prompt = ", or choose a method that needs one prompt alone (--method mean-difference)"
    if settings["centre"] and same and (empty or "neutral" in same):  # rounding may leave what looks like a direction
        raise ActivationError(
            f"the {same[0]} activations of all {n} demonstrations are identical, so nothing is left of them once their "
            f"mean is subtracted, and the edit would change nothing: give prompts and answers that differ{held}"
            + (one_prompt * ("neutral" in same) if cancels else ", or pass --no-centre")
        )
    if empty:
        raise ActivationError(
            "no direction is left in any layer, so the edit would change nothing: the activations are all zero, or K "
            "is too small. Give more or other demonstrations, or a larger K"
        )
    if cancels and all(one.keeps_what_it_drops for one in projectors):
        cure = "at least three different prompts" if max(map(max, ranks)) == 1 else "more demonstrations or a smaller K"
        raise ActivationError(
            f"the edit would change nothing: in every layer it keeps the very directions that it drops, for the {n} "
            f"demonstrations leave no others. Give {cure}{held}{one_prompt}"
        )


def check_changes(maps: Iterable[Any]) -> None:
    """Raise ActivationError where affine maps leave every activation as it is."""
    if all(one.changes_nothing for one in maps):
        raise ActivationError(
            "the edit would change nothing: in every layer positive and negative activations have the same mean. Give "
            "answers that differ, at the token that is read (--position mean reads all)"
        )
