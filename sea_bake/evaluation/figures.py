"""Pictures of an evaluation (extra ``eval``)."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

from sea_bake.artefact.evaluation import Evaluation, Row
from sea_bake.errors import need
from sea_bake.evaluation.measures import rates
from sea_bake.pages.pictures import Picture, drawing, panels
from sea_bake.pages.text import harmless

_COLOURS = {"gain": "#3b6fb6", "damage": "0.45", "ambiguous": "#c47f2c", "disambiguated": "#3b6fb6"}
_LONGEST = 60  # characters of a label, so that what it labels has room


def draw(evaluation: Evaluation) -> list[Picture]:
    """Each figure there is something to draw in.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    need("eval", "The report's figures", "matplotlib.figure")
    points = "in percentage points"
    found = {
        "differences": (_forest, f"Differences with 95 % intervals, {points}: gain in blue, cost in grey."),
        "bbq-categories": (_categories, f"BBQ accuracy by category: difference with its 95 % interval, {points}."),
        "truthfulqa-margins": (
            _margins,
            "TruthfulQA: margin of true over false answers per token, one dot per question.",
        ),
    }
    with drawing(plain=True):
        return [
            Picture(name, caption, figure) for name, (make, caption) in found.items() if (figure := make(evaluation))
        ]


def _forest(evaluation: Evaluation) -> Any:
    rows = [row for row in evaluation.headlines if row.measure.unit == "%" and row.measure.judged]
    names = [", ".join(filter(None, (row.measure.name, row.measure.part))) for row in rows]
    return _dots([(row, f"{row.title}: {name}", _COLOURS[row.kind]) for row, name in zip(rows, names)])


def _categories(evaluation: Evaluation) -> Any:
    rows = [row for row in evaluation.rows if row.measure.detail and row.measure.key.endswith(".acc")]
    return _dots([(row, row.measure.part, _COLOURS.get(row.measure.part.split(", ")[-1], "0.2")) for row in rows])


def _dots(rows: list[tuple[Row, str, str]]) -> Any:
    """Differences with their intervals, each with its label and colour; None without any."""
    shown = [(row.found.difference, label, colour) for row, label, colour in rows if row.found.difference]
    if not shown:
        return None
    figure, axes = panels(8, 0.9 + 0.26 * len(shown))
    for place, (difference, _, colour) in enumerate(shown):
        axes.plot([100 * end for end in difference.interval], [place, place], color=colour, linewidth=2)
        axes.plot(100 * difference.value, place, "o", color=colour, markersize=5)
    axes.axvline(0, color="0.7", linewidth=1, zorder=0)
    names = [shorten(harmless(label), _LONGEST, placeholder=" ...") for _, label, _ in shown]
    axes.set(yticks=range(len(shown)), yticklabels=names, xlabel="edited - base (percentage points)")
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    return figure


def _margins(evaluation: Evaluation) -> Any:
    doors = list(evaluation.records.get("truthfulqa_mc2", {}).values())
    if len(doors) < 2:
        return None
    pairs = [(rates(a), rates(b)) for a, b in zip(*doors)]
    points = [(a["margin"], b["margin"]) for a, b in pairs if a and b]
    if not points:
        return None
    figure, axes = panels(4.6, 4.6)
    axes.scatter([a for a, _ in points], [b for _, b in points], s=9, color=_COLOURS["gain"], alpha=0.6, linewidths=0)
    low, high = min(min(p) for p in points), max(max(p) for p in points)
    axes.plot([low, high], [low, high], color="0.7", linewidth=1, zorder=0)
    axes.set(xlabel="base (nats per token)", ylabel="edited (nats per token)", aspect="equal")
    return figure
