"""An evaluation for people: one table of gain and damage, as Markdown, and as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sea_bake.artefact.evaluation import Evaluation, P, Row
from sea_bake.edit.measured import Estimate
from sea_bake.evaluation import figures
from sea_bake.evaluation.keeping import PAPERS
from sea_bake.evaluation.statistics import FEW, RESAMPLES
from sea_bake.io.files import json_text
from sea_bake.io.staging import staged_file
from sea_bake.pages import templates
from sea_bake.pages.text import p_value

HEADINGS = {"gain": "Gain", "damage": "Cost"}
_DIGITS = {"%": 1, "nats": 3, "words": 1, "": 2}


def number(estimate: Estimate, unit: str, *, sign: bool = False) -> str:
    """ "25.5 ± 6.0" (shares in per cent), "+0.021 ± 0.008" with a sign: half of the 95 % interval behind the ±."""
    factor, digits = (100, 1) if unit == "%" else (1, _DIGITS[unit])
    value, half = estimate.value * factor, estimate.half * factor
    while digits < 5 and half and max(abs(value), half) < 10 ** (1 - digits):
        digits += 1  # small ones keep two figures
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return f"{text} ± {half:.{digits}f}"


def verdict(row: Row) -> str:
    """ "better" or "worse" where there is a difference (see :attr:`Comparison.shown`), else ""."""
    found = row.found.difference
    if found is None or not row.found.shown or not row.measure.judged:
        return ""
    return "better" if (found.value > 0) == (row.measure.better == "higher") else "worse"


def cells(row: Row) -> list[str]:
    """What a table shows of one measure, in the columns of :func:`header`."""
    unit, found = row.measure.unit, row.found
    part = f", {row.measure.part}" if row.measure.part else ""
    task, measure = (part, "") if row.measure.detail else ("", part)
    name = row.measure.name + measure + (f" ({unit})" if unit else "")
    alone = [row.title + task, name, str(found.n), number(found.base, unit)]
    if found.edited is None or found.difference is None:
        return alone
    difference = number(found.difference, unit, sign=True)
    return [*alone, number(found.edited, unit), difference, p_value(found.p or 0.0), verdict(row)]


def header(evaluation: Evaluation) -> list[str]:
    """The table's head."""
    alone = ["task", "measure", "n", "base"]
    return alone if evaluation.model["how"] is None else [*alone, "edited", "difference", "p", ""]


def title(evaluation: Evaluation) -> str:
    """ "smollm2-truthful (insert) against smollm2"."""
    model = evaluation.model
    if model["how"] is None:
        return f"{model['base']}, unedited"
    name = "the live edit" if model["how"] == "live" else f"{model['edited']} ({model['how']})"
    return f"{name} against {model['base']}"


def notes(evaluation: Evaluation) -> list[str]:
    """What the numbers are, in sentences."""
    settings, versions = evaluation.settings, evaluation.versions
    count = "all examples" if settings["limit"] is None else f"at most the first {settings['limit']} examples"
    behind = f" behind row {settings['offset']}" if settings["offset"] else ""
    found = [
        f"{count.capitalize()} of each task{behind}, {'with' if settings['chat'] else 'without'} chat template, dtype "
        f"{settings['dtype']}; lm-evaluation-harness {versions['lm-eval']}, transformers {versions['transformers']}, "
        f"torch {versions['torch']}, sea-bake {versions['sea-bake']}.",
        f"± is half of a 95 % percentile interval from {RESAMPLES:,} resamples of the examples; 3/n where no answer "
        "changed, and towards the other side where all are alike.",
    ]
    if any(row.found.n < FEW for row in evaluation.headlines):
        found.append(f"Where n is below {FEW} the intervals are too narrow: resampling so few says little of others.")
    found += [f"{remark[:1].upper()}{remark[1:]}." for remark in evaluation.remarks]
    if evaluation.model["how"] is not None:
        found.append(
            "Differences are paired, example by example: the exact McNemar test where answers are right or wrong, a "
            "randomisation test otherwise. p-values are not corrected for the number of measures: of twenty that "
            'nothing has changed, one comes out below 0.05. "better" and "worse" say that the interval leaves 0 out, '
            f"and p is below {P}."
        )
    return found


def grouped(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Gain, then damage; only what there is."""
    kinds = {kind: [row for row in rows if row.kind == kind] for kind in HEADINGS}
    return [(kind, found) for kind, found in kinds.items() if found]


def shown(evaluation: Evaluation) -> dict[str, Any]:
    """What the pages show: tables of gain and cost, how many measures moved for sure, and what stands below them."""
    kinds = []
    for kind, rows in grouped(evaluation.headlines):
        judged = [verdict(row) for row in rows if row.measure.judged]
        counts = {name: judged.count(word) for name, word in (("better", "better"), ("worse", "worse"), ("same", ""))}
        kinds.append({"heading": HEADINGS[kind], "rows": list(map(cells, rows)), "judged": len(judged), **counts})
    return {
        "title": title(evaluation),
        "kinds": kinds,
        "head": header(evaluation),
        "breakdown": [cells(row) for row in evaluation.rows if row.measure.detail],
        "notes": notes(evaluation),
    }


def markdown(evaluation: Evaluation) -> str:
    """The report as Markdown."""
    return templates.markdown("evaluation.md.j2", **_about(evaluation))


def page(evaluation: Evaluation) -> str:
    """The report as HTML: styles and figures inside, nothing fetched."""
    answers = [list(sample.values()) for sample in evaluation.samples]
    return templates.html(
        "evaluation.html.j2", **_about(evaluation), pictures=figures.draw(evaluation), answers=answers
    )


def _about(evaluation: Evaluation) -> dict[str, Any]:
    return shown(evaluation) | {"title": f"Evaluation: {title(evaluation)}", "samples": evaluation.samples}


def write(evaluation: Evaluation, folder: Path) -> None:
    """JSON, Markdown and HTML into a folder, each whole or not at all. Raises OutputError."""
    for name, text in zip(
        PAPERS, (json_text(evaluation.to_json()), markdown(evaluation), page(evaluation)), strict=True
    ):
        with staged_file(folder / name, overwrite=True) as stage:
            stage.write_text(text, "utf-8")
