"""What is tuned for: one measure of one benchmark, or of demonstrations that the fit has not seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sea_bake.artefact.evaluation import Record
from sea_bake.edit.measured import Estimate
from sea_bake.errors import EvaluationError
from sea_bake.evaluation import TASKS, Row
from sea_bake.evaluation.damage import NEUTRAL
from sea_bake.evaluation.measures import measures, table
from sea_bake.evaluation.preference import DEMONSTRATIONS
from sea_bake.evaluation.tasks import near


@dataclass(frozen=True)
class Objective:
    """``TASK`` or ``TASK:MEASURE``.

    Attributes:
        task: "demonstrations", or a name of ``evaluation.TASKS``.
        measure: key of a measure of it; None takes its first, the most telling one.
    """

    task: str
    measure: str | None = None

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Raises EvaluationError for an unknown task, or a measure that it surely lacks; the message names the near."""
        task, _, measure = (part.strip() for part in text.partition(":"))
        names = [DEMONSTRATIONS, *TASKS]
        if task not in names:
            raise EvaluationError(f"unknown objective '{task}': {near(task, names)}")
        known = [] if task == "bbq" else [m.key for m in measures(task, [])]  # what BBQ has depends on its rows
        if measure and known and measure not in known:
            raise _no_measure(task, measure, known)
        return cls(task, measure or None)

    @property
    def name(self) -> str:
        return f"{self.task}:{self.measure}" if self.measure else self.task

    @property
    def needs_data(self) -> bool:
        return self.task != DEMONSTRATIONS

    def row(self, rows: Sequence[Row]) -> Row:
        """Its own among the rows of a :class:`sea_bake.evaluation.Judge`.

        Raises:
            EvaluationError: there is no such measure.
        """
        own = [row for row in rows if row.task == self.task]
        found = [row for row in own if self.measure in (None, row.measure.key)]
        if not found:
            raise _no_measure(self.task, str(self.measure), [row.measure.key for row in own])
        return found[0]

    def count(self, tasks: Sequence[Any], rows: Collection[int]) -> int:
        """How many of these rows its measure looks at: told by the rows alone, before any model is loaded.

        Args:
            tasks: of the harness, those that the benchmark consists of.

        Raises:
            EvaluationError: there is no such measure of these rows.
        """
        records = [_unanswered(task, task.eval_docs[i]) for task in tasks for i in rows]
        counts = {m.key: len(table(m, records)[0]) for m in measures(self.task, records) if not m.detail}
        found = {key: count for key, count in counts.items() if count}
        if self.measure is not None and self.measure not in found:
            raise _no_measure(self.task, self.measure, list(found))
        return found[self.measure] if self.measure else next(iter(found.values()))


def _unanswered(task: Any, row: Any) -> Record:
    """A record as of a model to which every answer is as likely."""
    choices = task.doc_to_choice(row) if task.OUTPUT_TYPE == "multiple_choice" else []
    names = [of.name for of in task._filters]
    tails = [f",{name}" if len(names) > 1 and name != "none" else "" for name in names]
    values = {f"{metric}{tail}": 0.0 for metric in task.aggregation() for tail in tails}
    likelihoods = {"loglikelihoods": [0.0] * len(choices), "tokens": [1] * len(choices)}
    return {"doc": row, "values": values, "choices": choices, **likelihoods}


def gain(row: Row) -> Estimate:
    """A measure's paired difference with its interval, turned so that more is better."""
    found = row.found.difference
    assert found is not None
    return found if row.measure.better == "higher" else Estimate(-found.value, -found.high, -found.low)


def kl(rows: Sequence[Row]) -> Estimate:
    """KL from the base in nats per token of neutral text."""
    found = next(row.found.edited for row in rows if (row.task, row.measure.key) == (NEUTRAL, "kl"))
    assert found is not None
    return found


def _no_measure(task: str, measure: str, known: Sequence[str]) -> EvaluationError:
    return EvaluationError(f"{task} has no measure '{measure}': {near(measure, known)}")
