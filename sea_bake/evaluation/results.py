"""From the records of both doors to rows of measures, and what a task is called in them."""

from __future__ import annotations

from operator import itemgetter

from sea_bake.artefact.evaluation import Record, Row
from sea_bake.errors import EvaluationError
from sea_bake.evaluation import damage
from sea_bake.evaluation.measures import measures, table
from sea_bake.evaluation.preference import DEMONSTRATIONS
from sea_bake.evaluation.statistics import compare
from sea_bake.evaluation.tasks import TASKS

_example = itemgetter("task", "id", "hash")


def rows_of(task: str, doors: dict[str, list[Record]], *, detail: bool = True) -> list[Row]:
    """All measures of one task; without ``detail`` the headlines alone.

    Raises:
        EvaluationError: the doors did not answer the same examples.
    """
    (base, *others) = doors.values()
    other = others[0] if others else None
    if other is not None and list(map(_example, base)) != list(map(_example, other)):
        raise EvaluationError(f"the doors {' and '.join(doors)} did not answer the same examples of {task}")
    dataset = _dataset(task)
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
        compared = compare(columns, edited, measure.statistic)
        found.append(Row(task, kind_of(task), measure.measure, compared, dataset))
    return found


def _dataset(task: str) -> dict[str, str]:
    """What a data set is called: on the Hub, and for people."""
    benchmark = TASKS.get(task)
    if benchmark is None:
        return {"type": task, "name": damage.TITLES.get(task, task)}
    return {"type": benchmark.hub, "name": benchmark.title, "split": benchmark.split}


def kind_of(task: str) -> str:
    """ "gain" or "damage"."""
    return TASKS[task].kind if task in TASKS else "gain" if task == DEMONSTRATIONS else "damage"


def samples_of(doors: dict[str, list[Record]]) -> list[dict[str, str]]:
    """Greedy answers side by side."""
    (base, *others) = doors.values()
    return [
        {"prompt": record["prompt"], "base": record["response"]}
        | ({"edited": others[0][i]["response"]} if others else {})
        for i, record in enumerate(base)
    ]
