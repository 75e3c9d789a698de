"""An edit in words, and the table of its verification: the same on every page, card and terminal."""

from __future__ import annotations

from collections.abc import Sequence

from sea_bake.artefact.verification import Verification
from sea_bake.edit import Edit
from sea_bake.fitting import ranges

_SITES = {"mlp": "MLP output", "attn": "attention output", "block": "block output (residual stream)"}
COMPARED = ["against", "max |Δlogit|", "mean KL (nats)", "same top-1", "same greedy text"]
"""The head of :func:`compared`."""


def sentence(edit: Edit) -> str:
    """One line. Somebody else may have written the base's name: escape it where it is shown."""
    kept, dropped = zip(*edit.ranks.values())
    return (
        f"{_kind(edit)} on {edit.base.name}: {edit.site.value} of layers {ranges(edit.layers)}, merge {_merge(edit)}, "
        f"per layer {_span(kept)} directions kept and {_span(dropped)} dropped"
        + ("" if edit.alpha == 1 else f", alpha {edit.alpha:g}")
    )


def settings(edit: Edit) -> dict[str, str]:
    """Name and value of each setting. Somebody else may have written some: escape them where they are shown."""
    recipe = edit.recipe
    kept, dropped = zip(*edit.ranks.values())
    K = [recipe.get(f"K_{part}") for part in ("positive", "negative")]
    count, centre, origin = (recipe.get(key) for key in ("demonstrations", "centre", "demonstrations_from"))
    source = origin.get("source") if isinstance(origin, dict) else None
    named = f" ({source})" if isinstance(source, str) else ""
    unknown = "not recorded"
    return {
        "site": _SITES[edit.site.value],
        "decoder layers": f"{ranges(edit.layers)} of {edit.base.num_layers}",
        "kind": _kind(edit),
        "merge": _merge(edit),
        "strength": f"{edit.alpha:g}",
        "centred": ("yes" if centre else "no") if isinstance(centre, bool) else unknown,
        "K (share of variance, or rank)": unknown if None in K else "/".join(dict.fromkeys(map(str, K))),
        "rank kept, k+": _span(kept),
        "rank dropped, k-": _span(dropped),
        "demonstrations": f"{count} triples{named}"
        if isinstance(count, int)
        else str(recipe.get("imported") or unknown),
    }


def compared(verification: Verification) -> list[list[str]]:
    """Its numbers, in the columns of ``COMPARED``."""
    return [
        [
            name,
            f"{max(c.max_abs, c.padded_max_abs):.2e}",
            f"{c.mean_kl:.2e}",
            f"{100 * c.top1:.1f} %",
            f"{c.greedy_equal}/{c.prompts}",
        ]
        for name, c in (
            ("the live edit (hooks on the base)", verification.equality),
            ("the unedited base", verification.effect),
        )
    ]


def _kind(edit: Edit) -> str:
    return "linear SEA" if edit.feature == "identity" else f"Φ-SEA ({edit.feature})"


def _merge(edit: Edit) -> str:
    return edit.merge + ("" if edit.parts == "both" else f", {edit.parts} projection only")


def _span(ranks: Sequence[int]) -> str:
    return f"{ranks[0]}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
