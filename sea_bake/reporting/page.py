"""What the page shows of an edit or an artefact; its prose stands in pages/templates/report.html.j2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from sea_bake.evaluation import Evaluation, rendering
from sea_bake.model.sites import ranges
from sea_bake.pages.edits import COMPARED, columns, compared, worth
from sea_bake.pages.pictures import Picture
from sea_bake.pages.templates import html
from sea_bake.reporting.figures import ROLES
from sea_bake.reporting.findings import Findings
from sea_bake.reporting.subject import Subject

_STILL = 0.02  # an edit that moves activations by less than this share of their length is called nearly the identity


def page(
    subject: Subject,
    findings: Sequence[Findings],
    pictures: Sequence[Sequence[Picture]],
    evaluation: Evaluation | None,
    effects: Sequence[Picture],
    samples: Sequence[dict[str, str]],
    site: str | None = None,
) -> str:
    """The whole page.

    Args:
        findings, pictures: of each edit, in the order in which they act.
        evaluation, effects: gain and cost, and its figures.
        samples: answers side by side.
        site: address of the page that runs both models in a browser.
    """
    verification = subject.artefact.verification if subject.artefact else None
    head, rows = columns(subject.edits)
    stems = [f"edit-{i + 1}-" if len(findings) > 1 else "" for i in range(len(findings))]
    return html(
        "report.html.j2",
        title=f"Report: {subject.name}",
        artefact=subject.artefact,
        settings=(head, [["base", *(edit.base.name for edit in subject.edits)], *rows]),
        compared=(COMPARED, compared(verification)) if verification else None,
        worth=worth(subject.edits),
        evaluation=evaluation,
        measured=rendering.shown(evaluation) if evaluation else None,
        effects=effects,
        edits=[_edit(*one) for one in zip(stems, findings, pictures, strict=True)],
        still=_STILL,
        site=site,
        asks=[f"{site}/#{urlencode({'prompt': sample['prompt']}, errors='replace')}" for sample in samples]
        if site
        else [],
        answers=[[sample[key] for key in ("prompt", "base", "edited")] for sample in samples],
        provenance=[[name, str(value)] for name, value in subject.provenance()],
    )


def _edit(stem: str, found: Findings, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Numbers of one edit, layer by layer."""
    signatures = found.edit.recipe.get("signatures", {})
    layers: list[list[Any]] = []
    for layer, ranks in found.edit.ranks.items():
        shares = [f"{100 * share:.2f}" for share in found.explained[layer]] if found.explained else ["", ""]
        mark = signatures.get(str(layer))
        parts = [f"{size:.4g}" for size in found.sizes[layer].values()]
        layers.append([layer, *(parts or [*map(str, ranks), *shares]), "" if mark is None else f"{mark:.4g}"])
    norms = [f"‖{name}‖" for name in next(iter(found.sizes.values()))]
    shown = {
        "stem": stem,
        "pictures": {picture.name.removeprefix(stem): picture for picture in pictures},
        "first": [share for both in found.first.values() for share in both],
        "signatures": signatures,
        "layers": (["layer", *(norms or ["k+", "k-", "Ω+ explained (%)", "Ω- explained (%)"]), "signature"], layers),
        "affine": bool(norms),
        "apart": [[p.layer, *(f"{value:.3f}" for value in p.separation)] for p in found.projected],
        "moved": None,
    }
    if found.moved is None:
        return shown
    moves = found.medians("relative")
    head = ["layer", *(f"{role}, {name}" for name in ("change (%)", "cosine") for role in ROLES)]
    rows = [
        [
            layer,
            *(f"{100 * by_role[role].relative[1]:.2f}" for role in ROLES),
            *(f"{by_role[role].cosine[1]:.4f}" for role in ROLES),
        ]
        for layer, by_role in found.moved.items()
    ]
    return shown | {
        "demonstrations": found.demonstrations,
        "own": found.own,
        "moves": moves,
        "turns": found.medians("cosine"),
        "still": ranges([layer for layer, move in zip(found.moved, moves) if move < _STILL]),
        "moved": (head, rows),
    }
