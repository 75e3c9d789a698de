"""An edit in words, and the table of its verification: the same on every page, card and terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sea_bake.artefact.verification import Verification
from sea_bake.edit import Edit
from sea_bake.edit.measured import CLAIM, KINDS, Controls, Measured
from sea_bake.methods.table import METHODS
from sea_bake.model.sites import ranges

_SITES = {
    "mlp": "MLP output",
    "attn": "attention output",
    "block": "block output (residual stream)",
    "heads": "attention heads (input of the output projection)",
}
COMPARED = ["against", "max |Δlogit|", "mean KL (nats)", "same top-1", "same greedy text"]
"""The head of :func:`compared`."""


def sentence(edit: Edit) -> str:
    """One line. Somebody else may have written the base's name: escape it where it is shown."""
    kept, dropped = zip(*edit.ranks.values())
    how = f"merge {_merge(edit)}, per layer {_span(kept)} directions kept and {_span(dropped)} dropped"
    return (
        f"{_kind(edit)} on {edit.base.name}: {edit.site.value} of layers {ranges(edit.layers)}, "
        + (how if edit.is_sea else f"per layer {_parts(edit)}")
        + ("" if edit.alpha == 1 else f", alpha {edit.alpha:g}")
        + (f", {edit.origin} on the Hub" if edit.origin else "")
        + (f". {reasoning}" if (reasoning := _reasoning(edit)) else "")
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
    found = {
        "site": _SITES.get(edit.site.value, edit.site.value),
        "decoder layers": f"{ranges(edit.layers)} of {edit.base.num_layers}",
        "kind": _kind(edit),
        "map": f"merge {_merge(edit)}" if edit.is_sea else _parts(edit),
        "strength": f"{edit.alpha:g}",
    }
    if edit.is_sea or isinstance(centre, bool):
        found["centred"] = ("yes" if centre else "no") if isinstance(centre, bool) else unknown
    if edit.is_sea:
        found |= {
            "K (share of variance, or rank)": unknown if None in K else "/".join(dict.fromkeys(map(str, K))),
            "rank kept, k+": _span(kept),
            "rank dropped, k-": _span(dropped),
        }
    found |= {name: str(recipe[name]) for name in ("heads", "ridge", "direction") if recipe.get(name) is not None}
    return found | {
        "prompts": _prompts(edit) or unknown,
        "demonstrations": f"{count} triples{named}"
        if isinstance(count, int)
        else str(recipe.get("imported") or unknown),
    }


def in_words(edit: Edit) -> list[str]:
    """:func:`sentence`, and the lines of :func:`measured`."""
    return [sentence(edit), *measured(edit)]


def measured(edit: Edit) -> list[str]:
    """What was measured of it when it was fitted, in three lines: gain, cost, and random edits of the same cost."""
    found = edit.measured
    if found is None:
        return [f"strength {edit.alpha:g}; nothing was measured, neither gain nor cost"]
    why = f" ({' '.join(found.why.split())[:500]})" if found.why else ""
    lines = [f"gain: not measured{why}"]
    if found.gain is not None and found.base is not None:
        low, high = found.gain.interval
        lines = [
            f"gain: margin {found.gain.value:+.4f} [{low:+.4f}, {high:+.4f}] nats per token on {found.held_back} "
            f"demonstrations held back (base {found.base:+.4f}): {found.verdict}"
        ]
    cost = f"cost: not measured{why}"
    if found.kl is not None:
        value, *interval = (_nats(n, found.kl.value) for n in (found.kl.value, *found.kl.interval))
        budget = "" if found.budget is None else f", budget {found.budget:g}"
        budget += "" if found.missed is None else f", the method's own: none reaches the budget of {found.missed:g}"
        cost = f"cost: KL {value} [{', '.join(interval)}] nats per token of {found.texts} neutral texts"
        cost += f" (strength {edit.alpha:g}{budget})"
    beside = [*map(_beside, found.controls), *(_none(*one) for one in found.missing.items())]
    if not beside:  # why nothing was measured at all stands above
        beside = [f"none were drawn{why}" if found.gain is not None else "none were drawn"]
    return [*lines, cost, f"random edits of the same KL: {'; '.join(beside)}{_few(found)}"]


def _nats(number: float, beside: float) -> str:
    """Four decimals; three significant digits where those of the number that it stands beside would be fewer."""
    return f"{number:.4f}" if beside >= 0.01 else f"{number:#.3g}" if number else "0"


def idle(edit: Edit) -> str:
    """That an edit changes nothing, so that no bake of it could be told from the base; "" where it changes some."""
    if not edit.changes_nothing and not (edit.measured and edit.measured.nothing):
        return ""
    what = "it is the base model" if edit.changes_nothing else "nothing that was measured changes"
    return f"At strength {edit.alpha:g} {what}: there is nothing to bake"


def worth(edits: Sequence[Edit]) -> list[str]:
    """What was measured of these edits when they were fitted, line by line; empty where nothing was."""
    several = len(edits) > 1
    return [
        f"edit {i}, {line}" if several else line
        for i, edit in enumerate(edits, 1)
        for line in (measured(edit) if edit.measured else ())
    ]


def _beside(one: Controls) -> str:
    lost = f", {one.unmatched} more did not reach it" if one.unmatched else ""
    place = f" ({one.where})" if one.where else ""
    low, high = one.difference.interval
    return (
        f"gains more than {one.below} of {one.draws} {KINDS[one.kind]}{place}{lost} (their mean {one.mean.value:+.4f}, "
        f"difference {one.difference.value:+.4f} [{low:+.4f}, {high:+.4f}])"
    )


def _none(kind: str, tried: int) -> str:
    return f"none of {tried} {KINDS[kind]} reached it"


def _few(found: Measured) -> str:
    wanted = max(CLAIM, found.asked)
    if not found.missing and all(one.draws >= wanted for one in found.controls):
        return ""
    asked = found.asked or max((one.draws + one.unmatched for one in found.controls), default=0)
    if asked < CLAIM:
        return f"; so few allow no claim (--controls {CLAIM})"
    return f"; {asked} of each kind were to be drawn, and fewer allow no claim"


def columns(edits: Sequence[Edit]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of settings, with a column per edit."""
    found = list(map(settings, edits))
    head = ["", *(f"edit {i + 1}" for i in range(len(found)))] if len(found) > 1 else ["", ""]
    names = dict.fromkeys(name for one in found for name in one)
    return head, [[name, *(one.get(name, "") for one in found)] for name in names]


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


def _prompts(edit: Edit) -> str:
    """How they were rendered; "" where that is not recorded."""
    from sea_bake.activations.rendering import PLAIN_TEMPLATE

    recipe = edit.recipe
    if "chat_template" not in recipe:
        return ""
    args = recipe.get("template_args")
    primer = recipe.get("primer")
    said = ["chat template" if recipe["chat_template"] else PLAIN_TEMPLATE.format(prompt="...").replace("\n", " ")]
    said += [f"{name}={value!r}" for name, value in args.items()] if isinstance(args, dict) else []
    said += ["system prompt"] if recipe.get("system") else []
    said += [f"primer {primer if isinstance(primer, str) else f'of {len(primer)} pairs'}"] if primer else []
    said += [f"answers begin with {recipe['response_prefix']!r}"] if recipe.get("response_prefix") else []
    said += [f"dated {recipe['date']}"] if recipe.get("date") else []
    said += ["reasoning block closed" if recipe.get("close_reasoning") else "in the reasoning block"] * bool(
        recipe.get("reasoning")
    )
    return ", ".join(said)


def _reasoning(edit: Edit) -> str:
    opened = edit.recipe.get("reasoning")
    if not isinstance(opened, str):
        return ""
    from sea_bake.activations.rendering import said_of_reasoning

    return said_of_reasoning(opened, closed=bool(edit.recipe.get("close_reasoning")))


def _kind(edit: Edit) -> str:
    row = METHODS.get(edit.method)
    if edit.method != "sea" or not edit.is_sea:
        return row.title if row else "affine edit"
    return "linear SEA" if edit.feature == "identity" else f"Φ-SEA ({edit.feature})"


def _parts(edit: Edit) -> str:
    """What an affine map is made of, in words."""
    kept, _ = zip(*edit.ranks.values())
    named = {"scale": "a factor per unit", "constant": "a constant", "gate": "a gate (relu)"}
    parts = [f"a map of rank {_span(kept)}"] if any(kept) else []
    return " and ".join(parts + [named[name] for name in edit.extra])


def _merge(edit: Edit) -> str:
    return edit.merge + ("" if edit.parts == "both" else f", {edit.parts} projection only")


def _span(ranks: Sequence[int]) -> str:
    return f"{ranks[0]}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"


def stand_in(approximation: dict[str, Any]) -> str:
    """The error of an approximate fold, on texts held out from it."""
    shares, end = [layer["share"] for layer in approximation["layers"]], approximation["end_to_end"]
    return (
        f"approximate: a linear stand-in for the edit, not the edit. On held-out texts it explains "
        f"{min(shares):.1%} to {max(shares):.1%} of the edit's change per layer; mean KL from the edit {end['kl']:.2e} "
        f"per token (the base: {end['base_kl']:.2e}), the same most likely token at {end['top1']:.1%} "
        f"(the base: {end['base_top1']:.1%})"
    )
