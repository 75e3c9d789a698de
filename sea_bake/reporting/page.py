"""The page: for each thing one would ask before publishing a section, or the command that would fill it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sea_bake.evaluation import Evaluation
from sea_bake.pages.html import document, text
from sea_bake.pages.pictures import Picture
from sea_bake.reporting.by_layer import layers, moved, plane
from sea_bake.reporting.findings import Findings
from sea_bake.reporting.sections import answers, edited, effects, proof, provenance
from sea_bake.reporting.subject import Subject

_STYLE = (
    ".verdict{padding:.7rem 1rem;border-left:.4rem solid var(--soft)}.verdict.yes{border-color:var(--good)}"
    ".verdict.no{border-color:var(--bad);font-weight:600}nav ol{columns:2;padding-left:1.4rem}"
    "h2{margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}code{font-size:.9em}"
    ".facts td:first-child{color:var(--soft);white-space:nowrap}.facts td{text-align:left}"
    ".provenance td{overflow-wrap:anywhere;font-size:.9rem;padding:.1rem .7rem}"
    "@media(max-width:42rem){nav ol{columns:1}}"
)


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, heading, and HTML."""

    anchor: str
    heading: str
    body: str


def page(
    subject: Subject,
    findings: Sequence[Findings],
    pictures: Sequence[Sequence[Picture]],
    evaluation: Evaluation | None,
    measured: Sequence[Picture],
    samples: Sequence[dict[str, str]],
) -> str:
    """The whole page.

    Args:
        findings, pictures: of each edit, in the order in which they act.
        evaluation, measured: gain and cost, and its figures.
        samples: answers side by side.
    """
    sections = [
        Section("edited", "What was edited", edited(subject)),
        Section("proof", "Is it the edit?", proof(subject)),
        Section("effects", "Gain and cost", effects(subject, evaluation, measured)),
    ]
    for i, (found, figures) in enumerate(zip(findings, pictures)):
        which, stem = (f"Edit {i + 1}: ", f"edit-{i + 1}-") if len(findings) > 1 else ("", "")
        drawn = {picture.name.removeprefix(stem): picture for picture in figures}
        sections += [
            Section(f"{stem}layers", f"{which}What the fit found in each layer", layers(found, drawn)),
            Section(f"{stem}movement", f"{which}How far activations move", moved(found, drawn)),
            Section(f"{stem}plane", f"{which}Before and after", plane(found, drawn)),
        ]
    sections += [
        Section("answers", "Answers side by side", answers(samples, evaluation)),
        Section("provenance", "Provenance", provenance(subject)),
    ]
    name = f"Report: {subject.name}"
    contents = "".join(f'<li><a href="#{s.anchor}">{text(s.heading)}</a></li>' for s in sections)
    parts = "".join(f'<section id="{s.anchor}"><h2>{text(s.heading)}</h2>{s.body}</section>' for s in sections)
    head = f'<h1>{text(name)}</h1>{_banner(subject)}<nav aria-label="Contents"><ol>{contents}</ol></nav>'
    return document(name, f"<main>{head}{parts}</main>", style=_STYLE)


def _banner(subject: Subject) -> str:
    """The verdict, before all else."""
    artefact = subject.artefact
    if artefact is None:
        return '<p class="verdict">An edit, not a model yet: nothing has been baked, so nothing is verified.</p>'
    if artefact.doubt:
        return (
            '<p class="verdict no">NOT verified. Nobody has shown that this model is the edit that it says it is: '
            f"{text(artefact.doubt)}.</p>"
        )
    if artefact.approximate:
        return (
            '<p class="verdict yes">Approximate, as promised: a linear stand-in for the edit, near it and not equal to '
            "it.</p>"
        )
    return '<p class="verdict yes">Verified: it answers like the edit live on its base, and unlike the base.</p>'
