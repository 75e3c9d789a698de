"""What an evaluation found: the differences with their intervals, gain and damage alike.

``to_json`` is the file ``evaluation.json``, and ``sea/evaluation.json`` in an artefact, which the model card reads::

    {"format": "sea_bake.evaluation", "version": 1,
     "model": {"base", "revision", "edited", "how", "edits"},
     "settings": {...}, "versions": {...},
     "results": [{"dataset": {"type": Hub id, "name", "split"}, "metric": {"type", "name"},
                  "value", "base", "interval": [low, high] of value - base, "better": "higher" | "lower",
                  "judged": whether a change of it alone is for the better or the worse,
                  "kind": "gain" | "damage", "n", "p", "test", "unit", "part", "changed",
                  "value_interval", "base_interval"}, ...],
     "breakdown": [the same by category and condition],
     "harness": {task: {door: {leaf: {"acc,none": ..., "num_fewshot", "requests", "truncated", "tokens_cut"}}}},
     "samples": [{"prompt", "base", "edited"}, ...],
     "remarks": [text, ...]}

Shares are between 0 and 1. Without an edited model "value" is the base's, and "base" and "interval" are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sea_bake.errors import EvaluationError
from sea_bake.evaluation import damage
from sea_bake.evaluation.measures import Measure, Record, measures, table
from sea_bake.evaluation.preference import DEMONSTRATIONS
from sea_bake.evaluation.statistics import Comparison, Estimate, compare
from sea_bake.evaluation.tasks import TASKS

FORMAT = "sea_bake.evaluation"
VERSION = 1


@dataclass(frozen=True)
class Row:
    """One measure of one task, on the base and on the edited model."""

    task: str
    title: str
    kind: str
    measure: Measure
    found: Comparison

    def to_json(self) -> dict[str, Any]:
        benchmark = TASKS.get(self.task)
        dataset = {"type": benchmark.hub if benchmark else self.task, "name": self.title}
        if benchmark:
            dataset["split"] = benchmark.split
        edited = self.found.edited or self.found.base
        both = self.found.edited is not None
        return {
            "task": self.task,
            "dataset": dataset,
            "metric": {"type": self.measure.key, "name": self.measure.name},
            "value": edited.value,
            "base": self.found.base.value if both else None,
            "interval": _interval(self.found.difference),
            "better": self.measure.better,
            "judged": self.measure.judged,
            "kind": self.kind,
            "n": self.found.n,
            "p": self.found.p,
            "test": self.found.test,
            "unit": self.measure.unit,
            "part": self.measure.part,
            "changed": self.found.changed,
            "value_interval": _interval(edited),
            "base_interval": _interval(self.found.base) if both else None,
        }


def _interval(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [estimate.low, estimate.high]


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        model: names of base and edited model, and the edits' settings.
        rows: every measure; the headlines are those without ``measure.detail``.
        harness: task -> door -> the harness' own figures.
        samples: neutral prompts with the greedy answer of each door.
        settings, versions: what it was measured with.
        records: task -> door -> all examples; not part of ``to_json``.
        remarks: what was said to people while it was measured: batches that were halved.
    """

    model: dict[str, Any]
    rows: list[Row]
    harness: dict[str, dict[str, Any]]
    samples: list[dict[str, str]]
    settings: dict[str, Any]
    versions: dict[str, str]
    records: dict[str, dict[str, list[Record]]] = field(repr=False, default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def headlines(self) -> list[Row]:
        return [row for row in self.rows if not row.measure.detail]

    def row(self, task: str, key: str) -> Row:
        """One measure. Raises KeyError."""
        return {(row.task, row.measure.key): row for row in self.rows}[task, key]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "settings": self.settings,
            "versions": self.versions,
            "results": [row.to_json() for row in self.headlines],
            "breakdown": [row.to_json() for row in self.rows if row.measure.detail],
            "harness": self.harness,
            "samples": self.samples,
            "remarks": self.remarks,
        }


def rows_of(task: str, doors: dict[str, list[Record]], *, detail: bool = True) -> list[Row]:
    """All measures of one task; without ``detail`` the headlines alone.

    Raises:
        EvaluationError: the doors did not answer the same examples.
    """
    (base, *others) = doors.values()
    other = others[0] if others else None
    if other is not None and [_key(r) for r in base] != [_key(r) for r in other]:
        raise EvaluationError(f"the doors {' and '.join(doors)} did not answer the same examples of {task}")
    title = damage.TITLES.get(task) or (TASKS[task].title if task in TASKS else task)
    found = []
    for measure in damage.MEASURES.get(task) or measures(task, base):
        if measure.detail and not detail:
            continue
        if other is None and measure.key in ("kl", "top1"):
            continue  # of the base from itself
        columns, places = table(measure, base)
        if not len(columns):
            continue
        edited = None
        if other is not None:
            edited, same = table(measure, other)
            if same != places:
                raise EvaluationError(f"the doors differ in which examples of {task} count for {measure.key}")
        found.append(Row(task, title, kind_of(task), measure, compare(columns, edited, measure.statistic)))
    return found


def kind_of(task: str) -> str:
    """ "gain" or "damage"."""
    return TASKS[task].kind if task in TASKS else "gain" if task == DEMONSTRATIONS else "damage"


def _key(record: Record) -> tuple[Any, ...]:
    return record["task"], record["id"], record["hash"]


def samples_of(doors: dict[str, list[Record]]) -> list[dict[str, str]]:
    """Greedy answers side by side."""
    (base, *others) = doors.values()
    return [
        {"prompt": record["prompt"], "base": record["response"]}
        | ({"edited": others[0][i]["response"]} if others else {})
        for i, record in enumerate(base)
    ]


def ordered(tasks: Sequence[str]) -> list[str]:
    """Gain first, then damage, each in the order given."""
    return sorted(tasks, key=lambda name: kind_of(name) != "gain")
