"""A search for people: the Pareto table, what the held-back data say, and a picture of gain against KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sea_bake.artefact.evaluation import Row
from sea_bake.evaluation.damage import NEUTRAL
from sea_bake.evaluation.rendering import number
from sea_bake.fitting.tuning.folder import FIGURES, RESULT, SUMMARY
from sea_bake.fitting.tuning.results import CHOSEN_BASE, DEFAULT, RULE, Trial, Tuning
from sea_bake.fitting.tuning.space import in_words, shown
from sea_bake.io.files import json_text
from sea_bake.io.staging import staged_file
from sea_bake.pages import templates
from sea_bake.pages.pictures import Picture, drawing, panels
from sea_bake.pages.text import harmless, p_value

_GAIN, _COST, _CHOSEN = "#3b6fb6", "0.6", "#c2452d"


def header(tuning: Tuning) -> list[str]:
    """Of the Pareto table."""
    unit = _unit(tuning.objective[CHOSEN_BASE])
    return ["trial", "k+", "k-", f"gain{unit}", "KL", "", "differs from an untuned fit in"]


def _unit(row: Row) -> str:
    return f" ({row.measure.unit})" if row.measure.unit else ""


def table(tuning: Tuning) -> list[tuple[Trial, list[str]]]:
    """The trials of the Pareto front, the cheapest first, and the untuned default; each with its cells."""
    numbers = sorted({*tuning.front, DEFAULT}, key=lambda n: (tuning.trial(n).kl, n))
    return [(tuning.trial(n), _cells(tuning, tuning.trial(n))) for n in numbers if not tuning.trial(n).failure]


def _cells(tuning: Tuning, trial: Trial) -> list[str]:
    marks = [name for name, n in (("default", DEFAULT), ("chosen", tuning.chosen)) if n == trial.number]
    return [
        str(trial.number),
        *(f"{low}-{high}" if low != high else str(low) for low, high in trial.ranks),
        number(trial.gain, tuning.objective[CHOSEN_BASE].measure.unit, sign=True),
        f"{trial.kl:.2g}" if trial.kl < 0.1 else f"{trial.kl:.3f}",
        ", ".join(marks),
        in_words(trial.settings),
    ]


def held_back(tuning: Tuning) -> list[tuple[str, int, list[list[str]]]]:
    """Comparison, examples of the objective, and measures: value before and after, difference with its interval, p; the
    objective first, then the share of answers in the right order where it is a margin, then costs.
    """
    found = []
    for name, rows in tuning.held_back.items():
        own = tuning.objective[name]
        order = [row for row in rows if row.task == own.task and row.measure.key == "pairs" and row is not own]
        costs = [row for row in rows if row.task == NEUTRAL and row.measure.key in ("kl", "perplexity")]
        found.append((name, own.found.n, [_compared(row) for row in (own, *order, *costs)]))
    return found


def _compared(row: Row) -> list[str]:
    found, unit = row.found, row.measure.unit
    assert found.edited is not None
    assert found.difference is not None
    assert found.p is not None
    title = ", ".join(filter(None, (row.measure.name, row.measure.part))) + _unit(row)
    return [
        title,
        number(found.base, unit),
        number(found.edited, unit),
        number(found.difference, unit, sign=True),
        p_value(found.p),
    ]


COMPARED = ["measure", "before", "after", "difference", "p"]


def summary(tuning: Tuning) -> list[str]:
    """What the numbers are, in sentences."""
    about, splits = tuning.told, tuning.told["splits"]
    parts = []
    once = ", once," if tuning.decided == 1 else ""
    for name, what in (("fit", "fitted on"), ("selection", "scored on"), ("held_back", f"compared{once} on")):
        part = splits[name]
        count = f"{part['demonstrations']} demonstrations" if "demonstrations" in part else _rows(part)
        parts.append(f"{what} {count}")
    kind = "question" if splits["by"] == "question" else "scenario (category and question index)"
    flat = []
    if tuning.objective[CHOSEN_BASE].measure.key == "margin":
        flat.append(
            "A margin also changes where a distribution only gets flatter; the share of answers in the right "
            f"order is blind to that, and an objective too ({about['objective'].partition(':')[0]}:pairs)."
        )
    shared = []
    if "rows" in splits["held_back"]:
        shared.append(
            "Other searches on this benchmark, in any folder, look at the same held-back rows: count theirs too."
        )
    return [
        f"{len(tuning.trials)} trials for {about['objective']} on {about['base']}, seed {about['seed']}: "
        f"{', '.join(parts)}; no {kind} is in two of these, and of the neutral texts one half is for trials and the "
        "other held back.",
        f"Chosen: {RULE} ({tuning.max_kl:g} nats per token).",
        "± is half of a 95 % interval from paired resamples. The gains of trials are those they were chosen by, and "
        "too good for that reason: what an edit is worth stands under held-back data.",
        *flat,
        *shared,
        *tuning.notes,
    ]


def _rows(part: dict[str, Any]) -> str:
    first, end = part["rows"]
    without = f" (but {len(part['left_out'])} that ask what those before ask)" if part.get("left_out") else ""
    return f"rows {first + 1}-{end}{without}"


def markdown(tuning: Tuning) -> str:
    """The report as Markdown."""
    measures = [[name, str(n), *cells] for name, n, some in held_back(tuning) for cells in some]
    return templates.markdown(
        "tune.md.j2",
        objective=tuning.told["objective"],
        base=tuning.told["base"],
        verdict=f"{tuning.verdict[:1].upper()}{tuning.verdict[1:]}.",
        sentences=summary(tuning),
        front=(header(tuning), [cells for _, cells in table(tuning)]),
        figure=FIGURES[0],
        held_back=(["", "n", *COMPARED], measures),
        chosen=shown(tuning.trial(tuning.chosen).settings),
    )


def write(tuning: Tuning, folder: Path) -> None:
    """JSON, Markdown and the figure, each whole or not at all. Raises OutputError."""
    with drawing(plain=True):
        picture = Picture("pareto", "gain against KL", draw(tuning))
    texts = (json_text(tuning.to_json()), markdown(tuning))
    contents = (*(text.encode() for text in texts), picture.png(), picture.svg())
    for name, content in zip((RESULT, SUMMARY, *FIGURES), contents, strict=True):
        with staged_file(folder / name, overwrite=True) as stage:
            stage.write_bytes(content)


def draw(tuning: Tuning) -> Any:
    """A dot for every trial; the front as a line, the default and the chosen one marked."""
    figure, axes = panels(7, 4.4)
    own = tuning.objective[CHOSEN_BASE].measure
    factor = 100 if own.unit == "%" else 1
    good = [trial for trial in tuning.trials if not trial.failure]

    def at(trial: Trial) -> tuple[float, float]:
        return max(trial.kl, 1e-6), factor * trial.gain.value  # the scale has no zero

    front = sorted(map(at, (tuning.trial(n) for n in tuning.front)))
    axes.scatter(*zip(*map(at, good)), s=16, color=_COST, label="trials", linewidths=0)
    axes.plot(*zip(*front), color=_GAIN, marker="o", markersize=4, linewidth=1, label="Pareto front")
    marked = {"untuned default": (DEFAULT, "black", "s"), "chosen": (tuning.chosen, _CHOSEN, "*")}
    for name, (place, colour, marker) in marked.items():
        trial = tuning.trial(place)
        if not trial.failure:
            x, y = at(trial)
            half = [[factor * (trial.gain.value - trial.gain.low)], [factor * (trial.gain.high - trial.gain.value)]]
            axes.errorbar(x, y, yerr=half, color=colour, marker=marker, markersize=9, capsize=2, label=name, zorder=3)
    axes.axvline(tuning.max_kl, color="0.7", linestyle="--", linewidth=1, zorder=0)
    axes.annotate(f"max KL {tuning.max_kl:g}", (tuning.max_kl, 1), xycoords=("data", "axes fraction"), fontsize=8,
                  color="0.4", xytext=(3, -9), textcoords="offset points")  # fmt: skip
    axes.axhline(0, color="0.85", linewidth=1, zorder=0)
    points = " (percentage points)" if own.unit == "%" else _unit(tuning.objective[CHOSEN_BASE])
    axes.set(
        xscale="log", xlabel="KL from the base (nats per token of neutral text)", ylabel=f"gain: {own.name}{points}"
    )
    title = harmless(f"{tuning.told['objective']} on {tuning.told['base']}, data for selection")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
