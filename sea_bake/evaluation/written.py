"""What a model writes to the prompts of a behaviour: its greedy answers, scored by the behaviour's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact.evaluation import Record, Row
from sea_bake.demonstrations.behaviours import rows as stored
from sea_bake.edit import Edit
from sea_bake.evaluation import damage
from sea_bake.evaluation.behaviours import SCORERS
from sea_bake.evaluation.keeping import digest
from sea_bake.evaluation.measures import table
from sea_bake.evaluation.rendering import number
from sea_bake.evaluation.running import Advance, Answers, Session, Unit
from sea_bake.evaluation.statistics import compare
from sea_bake.io import progress
from sea_bake.model.source import ModelSource

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


@dataclass(frozen=True)
class Beside:
    """What a model writes to the same prompts without an edit and with it, and what the behaviour's rule says of both.

    Attributes:
        base, edited: (prompt, answer).
        rows: the rule's measures.
    """

    base: list[tuple[str, str]]
    edited: list[tuple[str, str]]
    rows: list[Row]

    def lines(self, shown: int = 3, width: int = 100) -> list[str]:
        """The first answers that the edit changes, cut to a width, and the rule's measures of all."""
        found = []
        pairs = [pair for pair in zip(self.base, self.edited, strict=True) if pair[0] != pair[1]]
        for (prompt, before), (_, after) in pairs[:shown]:
            found += [f"{prompt}", *(f"  {name} {_cut(text, width)}" for name, text in (("-", before), ("+", after)))]
        for row in self.rows:
            unit, told = row.measure.unit, row.found
            if told.edited is not None and told.difference is not None:
                change = number(told.difference, unit, sign=True)
                parts = (number(told.base, unit), number(told.edited, unit))
                found.append(f"{row.measure.name} ({unit}): {' -> '.join(parts)}, difference {change}")
        return found


def _cut(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def beside(source: ModelSource | str, edit: Edit, name: str, limit: int | None = None) -> Beside:
    """Greedy answers to prompts of a behaviour's kept-back part, on a model that is loaded for it.

    Raises:
        WrongModelError: an edit of another model.
        EvaluationError: NaN logits.
        CheckpointError: see ``load_model``.
    """
    from sea_bake.model.loading import load_model, load_tokenizer

    model = load_model(source)
    session = Session(model, load_tokenizer(source), 1, lambda text: None)
    asked = unit(name, name, PromptFormat.from_json(edit.recipe), limit, {})
    with progress.bar("answers", 2 * asked.count, "answer") as advance:
        base = asked.answer(session, advance)[0]
        with edit.live(model):
            edited = asked.answer(session, advance)[0]
    said, says = ([(one["prompt"], one["response"]) for one in records] for records in (base, edited))
    return Beside(said, says, rows(name, name, "gain", name, base, edited))
