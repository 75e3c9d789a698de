"""Pictures of an evaluation (extra ``eval``)."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

from sea_bake.artefact.evaluation import Evaluation, Row
from sea_bake.evaluation.measures import rates
from sea_bake.pages.pictures import Picture, drawing, need_matplotlib
from sea_bake.pages.text import harmless

_GAIN, _COST = "#3b6fb6", "0.45"
_LONGEST = 60  # characters of a label, so that what it labels has room


def draw(evaluation: Evaluation) -> list[Picture]:
    """Each figure there is something to draw in.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    need_matplotlib("eval", "The report's figures")
    found = [
        (
            "differences",
            "Differences with 95 % intervals, in percentage points: gain in blue, cost in grey.",
            _forest,
        ),
        (
            "bbq-categories",
            "BBQ accuracy by category: difference with its 95 % interval, in percentage points.",
            _categories,
        ),
        (
            "truthfulqa-margins",
            "TruthfulQA: margin of true over false answers per token, one dot per question.",
            _margins,
        ),
    ]
    with drawing(plain=True):
        return [Picture(name, caption, figure) for name, caption, make in found if (figure := make(evaluation))]


def _forest(evaluation: Evaluation) -> Any:
    rows = [row for row in evaluation.headlines if row.found.difference is not None and row.measure.unit == "%"]
    rows = [row for row in rows if row.measure.judged]
    return _dots(rows, [": ".join(named(row)) for row in rows], [_colour(row) for row in rows])


def _categories(evaluation: Evaluation) -> Any:
    rows = [
        row
        for row in evaluation.rows
        if row.measure.detail and row.found.difference is not None and row.measure.key.endswith(".acc")
    ]
    shades = {"ambiguous": "#c47f2c", "disambiguated": _GAIN}
    return _dots(rows, [row.measure.part for row in rows], [shades.get(_last(row), "0.2") for row in rows])


def named(row: Row) -> tuple[str, str]:
    """What a row is called."""
    return row.title, ", ".join(filter(None, (row.measure.name, row.measure.part)))


def _last(row: Row) -> str:
    return row.measure.part.rpartition(", ")[2]


def _colour(row: Row) -> str:
    return _GAIN if row.kind == "gain" else _COST


def _dots(rows: list[Row], labels: list[str], colours: list[str]) -> Any:
    from matplotlib.figure import Figure

    if not rows:
        return None
    figure = Figure(figsize=(8, 0.9 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (row, colour) in enumerate(zip(rows, colours)):
        difference = row.found.difference
        assert difference is not None
        axes.plot([100 * difference.low, 100 * difference.high], [place, place], color=colour, linewidth=2)
        axes.plot(100 * difference.value, place, "o", color=colour, markersize=5)
    axes.axvline(0, color="0.7", linewidth=1, zorder=0)
    names = [shorten(harmless(label), _LONGEST, placeholder=" ...") for label in labels]
    axes.set(yticks=range(len(rows)), yticklabels=names, xlabel="edited - base (percentage points)")
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _margins(evaluation: Evaluation) -> Any:
    from matplotlib.figure import Figure

    doors = list(evaluation.records.get("truthfulqa_mc2", {}).values())
    if len(doors) < 2:
        return None
    pairs = [(rates(a), rates(b)) for a, b in zip(*doors)]
    points = [(a["margin"], b["margin"]) for a, b in pairs if a and b]
    if not points:
        return None
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.scatter([a for a, _ in points], [b for _, b in points], s=9, color=_GAIN, alpha=0.6, linewidths=0)
    low, high = min(min(p) for p in points), max(max(p) for p in points)
    axes.plot([low, high], [low, high], color="0.7", linewidth=1, zorder=0)
    axes.set(xlabel="base (nats per token)", ylabel="edited (nats per token)", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
