"""What a model writes to the prompts of a behaviour: its greedy answers, scored by the behaviour's rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact.evaluation import Record, Row
from sea_bake.demonstrations.behaviours import rows as stored
from sea_bake.evaluation import damage
from sea_bake.evaluation.behaviours import SCORERS
from sea_bake.evaluation.keeping import digest
from sea_bake.evaluation.measures import table
from sea_bake.evaluation.running import Advance, Answers, Session, Unit
from sea_bake.evaluation.statistics import compare

MOST = 24  # prompts: writing takes far longer than reading


def unit(task: str, name: str, form: PromptFormat, limit: int | None, versions: dict[str, str]) -> Unit:
    """Greedy answers to prompts of a behaviour's kept-back part, evenly spread, and what its rule says of them."""
    there = [row for _, row in stored(name, "test")][:limit]
    count = min(MOST, len(there))
    chosen = [there[i * len(there) // count] for i in range(count)]
    scorer = SCORERS[name]

    def answer(session: Session, advance: Advance) -> Answers:
        prompts = [row["prompt"] for row in chosen]
        told = damage.generations(
            session.model, session.tokenizer, prompts=prompts, max_new_tokens=scorer.tokens, form=form, advance=advance
        )
        return [
            {**one, "task": task, "values": scorer.values(row, one["response"])}
            for row, one in zip(chosen, told, strict=True)
        ], {}

    return Unit(task, digest(chosen, scorer.tokens, form.to_json(), versions), answer, count)


def rows(task: str, title: str, kind: str, name: str, base: list[Record], other: list[Record] | None) -> list[Row]:
    """The rule's measures; each on the answers of which it says something at both doors."""
    made = []
    for i, measure in enumerate(SCORERS[name].measures):
        columns, places = table(measure, base)
        edited = None
        if other is not None:
            told, there = table(measure, other)
            both = set(places) & set(there)
            columns, edited = _kept(columns, places, both), _kept(told, there, both)
        if len(columns):
            found = compare(columns, edited, measure.statistic)
            made.append(Row(task, kind if i == 0 else "damage", measure.measure, found, {"type": task, "name": title}))
    return made


def _kept(columns: Any, places: Sequence[int], both: set[int]) -> Any:
    return columns[[i for i, place in enumerate(places) if place in both]]
