"""Three parts without overlap: what projectors are fitted on, what trials are scored on, and what is looked at once, at
the end.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sea_bake.demonstrations import MIN_TRIPLES, Demonstration, digest
from sea_bake.demonstrations.holding import by_question as questions_of
from sea_bake.demonstrations.holding import plain
from sea_bake.errors import DemonstrationError, EvaluationError, SettingError
from sea_bake.evaluation.statistics import FEW
from sea_bake.evaluation.tasks import locate
from sea_bake.fitting.tuning.objective import Objective

ROWS = 100  # of a benchmark, for selection and again for the end, when nothing is said
LEAST = {"select": FEW, "confirm": 20}  # examples: below it one trial is taken for another, or for a gain
_QUESTION = ("context", "question", "query", "text", "sent_more")  # columns that say what a row asks


@dataclass(frozen=True)
class Splits:
    """Who sees what.

    Attributes:
        fit: the demonstrations that projectors are fitted on.
        selection, held_back: demonstrations, where they are the objective; else empty.
        rows: of a benchmark: ((first, end) for selection, (first, end) held back); None where there is none.
        places: part -> places of its demonstrations among those that were given, from 0.
        left_out: places of demonstrations whose question is one of the benchmark's rows.
        repeated: rows among those held back that ask what a row for selection asks: they are not counted.
        data: digest of the benchmark's files.
        by: what no two parts share: "question", by its text, or a "scenario" of BBQ.
        marks: one of every question (or scenario) that is held back, by which another search knows it again.
    """

    fit: Sequence[Demonstration]
    selection: Sequence[Demonstration] = ()
    held_back: Sequence[Demonstration] = ()
    rows: tuple[tuple[int, int], tuple[int, int]] | None = None
    places: dict[str, list[int]] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    repeated: frozenset[int] = frozenset()
    data: str | None = None
    by: str = "question"
    marks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Part -> what is in it: demonstrations by their places and digest, rows of a benchmark by theirs."""
        parts = {"fit": self.fit, "selection": self.selection, "held_back": self.held_back}
        found: dict[str, Any] = {}
        for name, triples in parts.items():
            if triples:
                told = {"demonstrations": len(triples), "sha256": digest(triples), "places": self.places[name]}
                found[name] = told
        if self.rows is not None:
            for name, (first, end) in zip(("selection", "held_back"), self.rows):
                found[name] = {"rows": [first, end], "data_sha256": self.data}
            found["held_back"]["left_out"] = sorted(self.repeated)
            found["fit"]["left_out"] = self.left_out
        return found | {"by": self.by}


def by_question(
    demonstrations: Sequence[Demonstration],
    select: int | None,
    confirm: int | None,
    seed: int,
    fewest: int = MIN_TRIPLES,
) -> Splits:
    """Demonstrations in three parts; all triples of one question lie in one of them.

    Args:
        select, confirm: triples for selection, and held back; None takes a quarter each, and no fewer than ``LEAST``.
        fewest: triples that every method of the search can be fitted on.

    Raises:
        DemonstrationError: they are too few for it.
    """
    n = len(demonstrations)

    def parts(n: int) -> dict[str, int]:
        return {
            "held_back": max(n // 4, LEAST["confirm"]) if confirm is None else confirm,
            "selection": max(n // 4, LEAST["select"]) if select is None else select,
            "fit": fewest,
        }

    wanted = parts(n)
    groups = questions_of(demonstrations)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    places: dict[str, list[int]] = {"held_back": [], "selection": [], "fit": []}
    for group in order:
        part = next((name for name, count in wanted.items() if len(places[name]) < count), "fit")
        places[part] += group
    if any(len(places[name]) < count for name, count in wanted.items()):
        enough = next(m for m in itertools.count(n) if sum(parts(m).values()) <= m)
        cure = f"Give at least {enough}"
        if enough == n:
            cure = "Those of one question stay together, so give some of other questions"
        elif len(groups) < n:
            cure += ", and more questions: those of one stay together"
        raise DemonstrationError(
            f"{n} demonstrations of {len(groups)} questions are too few for three parts: {fewest} or more for the "
            f"fit, {wanted['selection']} for selection and {wanted['held_back']} held back. {cure}, or say less with "
            f"--select and --confirm, down to {LEAST['select']} and {LEAST['confirm']}"
        )
    places = {name: sorted(found) for name, found in places.items()}
    fit, selection, kept = ([demonstrations[i] for i in places[name]] for name in ("fit", "selection", "held_back"))
    return Splits(fit, selection, kept, places=places, marks=_marks(plain(triple.prompt) for triple in kept))


def by_rows(
    goal: Objective,
    data: str | Path | None,
    demonstrations: Sequence[Demonstration],
    select: int | None,
    confirm: int | None,
) -> Splits:
    """The first rows of a benchmark for selection, and behind them, held back, as many that ask something else; for the
    fit all demonstrations but those that ask what one of these rows asks.

    Raises:
        EvaluationError: missing data, too few rows, or a measure that these rows do not have.
        DemonstrationError: too few demonstrations are left.
    """
    from sea_bake.evaluation import harness

    task = goal.task
    select, confirm = (ROWS if count is None else count for count in (select, confirm))
    local = None if data is None else locate([task], data)
    leaves = list(harness.load_tasks([task], local, None)[task]["tasks"].values())
    fewest = min(len(leaf.eval_docs) for leaf in leaves)
    asked = [[_asks(task, leaf.eval_docs[i]) for i in range(fewest)] for leaf in leaves]
    known = [set(filter(None, keys[:select])) for keys in asked]
    repeated = {i for i in range(select, fewest) if any(keys[i] in those for keys, those in zip(asked, known))}
    fresh = [i for i in range(select, fewest) if i not in repeated][:confirm]
    if len(fresh) < confirm:
        raise EvaluationError(
            f"{task} has {fewest} rows, and behind the first {select}, for selection, {len(fresh)} that ask something "
            f"else, where {confirm} are to be held back: ask for fewer with --select and --confirm"
        )
    end = fresh[-1] + 1
    for part, places in (("select", range(select)), ("confirm", fresh)):
        count = goal.count(leaves, places)
        if count < LEAST[part]:
            raise EvaluationError(
                f"{goal.name} looks at {count} of {len(places)} rows, and needs {LEAST[part]}: say more with --{part}"
            )
    seen = {key for keys in asked for key in keys[:end] if key}
    scenarios = any(isinstance(key, tuple) for key in seen)
    # Names differ from one row of a scenario to the next, its questions do not.
    rows = (row for leaf in leaves for row in leaf.eval_docs) if scenarios else ()
    ends = tuple({plain(row["question"]) for row in rows if row["question"] and _asks(task, row) in seen})
    prompts = [plain(triple.prompt) for triple in demonstrations]
    left_out = [i for i, prompt in enumerate(prompts) if prompt in seen or prompt.endswith(ends)]
    kept = [i for i in range(len(demonstrations)) if i not in set(left_out)]
    if len(kept) < MIN_TRIPLES:
        raise DemonstrationError(
            f"{len(left_out)} of {len(demonstrations)} demonstrations ask what the rows of {task} ask, and so cannot "
            "be fitted on: give others"
        )
    return Splits(
        [demonstrations[i] for i in kept] if left_out else demonstrations,  # as loaded, they know where from
        rows=((0, select), (select, end)),
        places={"fit": kept},
        left_out=left_out,
        repeated=frozenset(i for i in repeated if i < end),
        data=local[0].digest if local else None,
        by="scenario" if scenarios else "question",
        marks=_marks(str(keys[i]) for keys in asked for i in fresh if keys[i]),
    )


def check_counts(**counts: int | None) -> None:
    """Raise SettingError for a part of fewer examples than ``LEAST``."""
    why = {"select": "gains of trials on fewer say too little", "confirm": "fewer decide nothing"}
    for name, count in counts.items():
        if count is not None and count < LEAST[name]:
            raise SettingError(f"{name} = {count} is less than {LEAST[name]} examples: {why[name]}")


def halves(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Neutral texts for selection, and held back.

    Raises:
        EvaluationError: fewer than four, since either half needs two.
    """
    if len(texts) < 4:
        raise EvaluationError(f"{len(texts)} neutral texts cannot be halved: give at least four")
    return list(texts[::2]), list(texts[1::2])


def _asks(task: str, row: Any) -> str | tuple[str, str]:
    """What a benchmark's row asks: of BBQ its scenario, which comes with and without the telling part of the context,
    with other names, and with the question turned; else the text of the question, empty where no column holds it.
    """
    if task == "bbq" and row.get("question_index") is not None:
        return str(row["category"]), str(row["question_index"])
    return plain(" ".join(str(row[name]) for name in _QUESTION if isinstance(row.get(name), str)))


def _marks(asked: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({hashlib.sha256(text.encode()).hexdigest()[:16] for text in asked}))
