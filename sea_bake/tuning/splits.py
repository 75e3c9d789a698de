"""Three parts without overlap: what projectors are fitted on, what trials are scored on, and what is looked at once, at
the end.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sea_bake.demonstrations import MIN_TRIPLES, Demonstration, digest
from sea_bake.errors import DemonstrationError, EvaluationError, SettingError
from sea_bake.evaluation.tasks import locate

ROWS = 100  # of a benchmark, for selection and again for the end, when nothing is said
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
        repeated: held-back rows that ask what a row for selection asks: they are not counted.
        data: digest of the benchmark's files.
    """

    fit: Sequence[Demonstration]
    selection: Sequence[Demonstration] = ()
    held_back: Sequence[Demonstration] = ()
    rows: tuple[tuple[int, int], tuple[int, int]] | None = None
    places: dict[str, list[int]] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    repeated: frozenset[int] = frozenset()
    data: str | None = None

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
        return found


def by_question(demonstrations: Sequence[Demonstration], select: int | None, confirm: int | None, seed: int) -> Splits:
    """Demonstrations in three parts; all triples of one question lie in one of them.

    Args:
        select, confirm: triples for selection, and held back; None takes a quarter each.

    Raises:
        DemonstrationError: they are too few for it.
    """
    n = len(demonstrations)
    wanted = {"held_back": n // 4 if confirm is None else confirm, "selection": n // 4 if select is None else select}
    groups: dict[str, list[int]] = {}
    for i, triple in enumerate(demonstrations):
        groups.setdefault(_plain(triple.prompt), []).append(i)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    places: dict[str, list[int]] = {"held_back": [], "selection": [], "fit": []}
    for group in order:
        part = next((name for name, count in wanted.items() if len(places[name]) < count), "fit")
        places[part] += group
    short = [name for name, found in places.items() if len(found) < MIN_TRIPLES]
    if short:
        least = max(wanted["held_back"], MIN_TRIPLES) + max(wanted["selection"], MIN_TRIPLES) + MIN_TRIPLES
        raise DemonstrationError(
            f"{n} demonstrations of {len(groups)} questions are too few for three parts (fit, selection, held back) of "
            f"at least {MIN_TRIPLES}, with {wanted['selection']} for selection and {wanted['held_back']} held back: "
            f"give at least {least}, or say less with --select and --confirm"
        )
    places = {name: sorted(found) for name, found in places.items()}
    fit, selection, kept = ([demonstrations[i] for i in places[name]] for name in ("fit", "selection", "held_back"))
    return Splits(fit, selection, kept, places=places)


def by_rows(
    task: str,
    data: str | Path | None,
    demonstrations: Sequence[Demonstration],
    select: int | None,
    confirm: int | None,
) -> Splits:
    """The first rows of a benchmark for selection, those behind them held back; all demonstrations for the fit, but
    those that ask what one of these rows asks.

    Raises:
        EvaluationError: missing data, or fewer rows than that.
        DemonstrationError: too few demonstrations are left.
    """
    from sea_bake.evaluation import harness

    select, confirm = (ROWS if count is None else count for count in (select, confirm))
    local = None if data is None else locate([task], data)
    loaded = harness.load_tasks([task], local, None)[task]["tasks"]
    fewest = min(len(leaf.eval_docs) for leaf in loaded.values())
    if fewest < select + confirm:
        raise EvaluationError(
            f"{task} has {fewest} rows, and {select} for selection and {confirm} held back are {select + confirm}: ask "
            "for fewer with --select and --confirm"
        )
    seen, repeated = set(), set()
    for leaf in loaded.values():
        asked = [question(leaf.eval_docs[i]) for i in range(select + confirm)]
        repeated |= {i for i in range(select, select + confirm) if asked[i] and asked[i] in asked[:select]}
        seen |= set(filter(None, asked))
    if len(repeated) > confirm - MIN_TRIPLES:
        raise EvaluationError(f"nearly all held-back rows of {task} repeat rows for selection: give other data")
    left_out = [i for i, triple in enumerate(demonstrations) if _plain(triple.prompt) in seen]
    kept = [i for i in range(len(demonstrations)) if i not in set(left_out)]
    if len(kept) < MIN_TRIPLES:
        raise DemonstrationError(
            f"{len(left_out)} of {len(demonstrations)} demonstrations ask what the rows of {task} ask, and so cannot "
            "be fitted on: give others"
        )
    return Splits(
        [demonstrations[i] for i in kept] if left_out else demonstrations,  # as loaded, they know where from
        rows=((0, select), (select, select + confirm)),
        places={"fit": kept},
        left_out=left_out,
        repeated=frozenset(repeated),
        data=local[0].digest if local else None,
    )


def check_counts(**counts: int | None) -> None:
    """Raise SettingError for a part of fewer examples than an interval needs."""
    for name, count in counts.items():
        if count is not None and count < MIN_TRIPLES:
            raise SettingError(f"{name} = {count}: an interval needs at least {MIN_TRIPLES} examples")


def halves(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Neutral texts for selection, and held back.

    Raises:
        EvaluationError: fewer than four, since either half needs two.
    """
    if len(texts) < 4:
        raise EvaluationError(f"{len(texts)} neutral texts cannot be halved: give at least four")
    return list(texts[::2]), list(texts[1::2])


def question(row: Any) -> str:
    """What a benchmark's row asks, without regard to white space and case; empty where no column says so."""
    return _plain(" ".join(str(row[name]) for name in _QUESTION if isinstance(row.get(name), str)))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
