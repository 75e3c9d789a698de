"""The page's sections about one edit, layer by layer."""

from __future__ import annotations

from sea_bake.fitting import ranges
from sea_bake.pages.html import image, table
from sea_bake.pages.pictures import Picture
from sea_bake.reporting.figures import ROLES
from sea_bake.reporting.findings import Findings
from sea_bake.reporting.sections import folded, missing, paragraph, percent

_STILL = 0.02  # an edit that moves activations by less than this share of their length is called nearly the identity
_ACTIVATIONS = (
    "sea-bake fit BASE ... --save-activations ACTS, and then sea-bake report ... --activations ACTS (or --model BASE, "
    "which runs the model; with --demonstrations, where the edit was fitted on others than the built-in ones)"
)


def layers(found: Findings, drawn: dict[str, Picture]) -> str:
    """Spectra, where K cut, ranks, signatures."""
    parts = []
    if found.explained:
        first = [share for both in found.first.values() for share in both]
        parts.append(
            paragraph(
                "K cuts each spectrum where the leading directions explain enough of it: the steeper a curve, the "
                f"fewer they are. The first direction alone explains {percent(min(first))} to {percent(max(first))}, "
                "depending on the layer.",
                "Where one direction explains nearly all, it is mostly the activations' mean, and the edit does little."
                if max(first) > 0.99
                else "",
            )
        )
        parts.append(image(drawn["spectra"]))
    else:
        parts.append(paragraph("The edit was imported: its spectra were not published with it."))
    if found.edit.recipe.get("signatures"):
        parts.append(
            paragraph(
                "A layer's signature is the sum of the singular values of the cross-covariance of its activations with "
                "their label, positive or negative. It grows with their length too, so compare neighbours."
            )
        )
    parts.append(image(drawn["layers"]))
    signatures = found.edit.recipe.get("signatures", {})
    rows = []
    for layer, ranks in found.edit.ranks.items():
        shares = [f"{100 * share:.2f}" for share in found.explained[layer]] if found.explained else ["", ""]
        mark = signatures.get(str(layer))
        rows.append([str(layer), *map(str, ranks), *shares, "" if mark is None else f"{mark:.4g}"])
    head = ["layer", "k+", "k-", "Ω+ explained (%)", "Ω- explained (%)", "signature"]
    return "".join(parts) + folded("Layer by layer", table(head, rows, classes="numbers"))


def moved(found: Findings, drawn: dict[str, Picture]) -> str:
    """Relative change and cosine."""
    if found.moved is None:
        return missing("There were no activations to see it on.", _ACTIVATIONS)
    moves, turns = found.medians("relative"), found.medians("cosine")
    whose = "that the edit was fitted on" if found.own else "other than those that the edit was fitted on"
    sentence = (
        f"On {found.demonstrations} demonstrations {whose}, the edit changes an activation by "
        f"{percent(min(moves))} to {percent(max(moves))} of its length (medians, layer by layer); the cosine between "
        f"before and after is {min(turns):.3f} to {max(turns):.3f}."
    )
    still = [layer for layer, move in zip(found.moved, moves) if move < _STILL]
    nearly = f"Nearly the identity (below {percent(_STILL)}): layers {ranges(still)}." if still else ""
    alone = (
        "Each layer is looked at by itself, on what the base gives it: in the running model the edits of the layers "
        "before it come on top."
    )
    head = ["layer", *(f"{role}, {name}" for name in ("change (%)", "cosine") for role in ROLES)]
    rows = [
        [
            str(layer),
            *(f"{100 * by_role[role].relative[1]:.2f}" for role in ROLES),
            *(f"{by_role[role].cosine[1]:.4f}" for role in ROLES),
        ]
        for layer, by_role in found.moved.items()
    ]
    return (
        paragraph(sentence, nearly)
        + paragraph(alone)
        + image(drawn["movement"])
        + folded("Medians, layer by layer", table(head, rows, classes="numbers"))
    )


def plane(found: Findings, drawn: dict[str, Picture]) -> str:
    """Before and after, in two dimensions."""
    if not found.projected:
        return missing("There were no activations to project.", _ACTIVATIONS)
    sentence = (
        "Each dot is one demonstration's activation. What an edit is for would show as positive and negative dots "
        "drawing apart. The table measures that in all dimensions: the distance of their means, in units of the spread "
        "around them."
    )
    rows = [[str(p.layer), *(f"{value:.3f}" for value in p.separation)] for p in found.projected]
    head = ["layer", "apart, before", "apart, after"]
    return paragraph(sentence) + image(drawn["projection"]) + table(head, rows, classes="numbers")
