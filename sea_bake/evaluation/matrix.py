"""Side effects: an edit on every behaviour's kept-back part, and beside it what prompts do: the behaviour asked for,
and shown in worked examples.

Per behaviour the margin of the positive over the negative answer counts, and where a rule can tell the behaviour in a
text, what it says of greedy answers. Damage alone moves it towards 0: up where the
base prefers the wrong answer, down where it prefers the right one. So the two kinds are told apart, and the measure
that judges is the mean of both changes, in which such a shift largely cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.rendering import rendered
from sea_bake.artefact.evaluation import Measure, Record, Row
from sea_bake.demonstrations import BEHAVIOURS, Demonstration, digest, load
from sea_bake.demonstrations.behaviours import rows as stored
from sea_bake.edit import Edit
from sea_bake.errors import EvaluationError, SettingError, first_line_of
from sea_bake.evaluation import preference, written
from sea_bake.evaluation.behaviours import SCORERS
from sea_bake.evaluation.keeping import digest as digest_of
from sea_bake.evaluation.running import Advance, Answers, Session, Unit
from sea_bake.evaluation.statistics import compare
from sea_bake.evaluation.tasks import near

ALL = "all"
_UNIT = "behaviour-"
PROMPTS = {
    "asked": "asked for in the system prompt",
    "shown": "shown in worked examples",
}
FITTED_ON = " (fitted on these items)"
_WRITTEN = "written"
_SHOWN = 4  # worked examples
FEWEST = 5  # of a kind: of fewer it says nothing
_MARGIN = "margin per token"


def named(behaviours: Sequence[str]) -> list[str]:
    """Names of built-in behaviours; "all" is every one.

    Raises:
        EvaluationError: an unknown one.
    """
    found = [name for one in behaviours for name in (BEHAVIOURS if one == ALL else (one,))]
    for name in found:
        if name not in BEHAVIOURS:
            raise EvaluationError(f"unknown behaviour '{name}': {near(name, [ALL, *BEHAVIOURS])}")
    return list(dict.fromkeys(found))


def units(
    names: Sequence[str],
    form: PromptFormat,
    tokenizer: Any,
    versions: dict[str, str],
    *,
    limit: int | None = None,
    prompts: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[Unit]:
    """Per behaviour: every door on its kept-back part, and what it writes; with ``prompts`` also the base, asked for
    the behaviour in the system prompt, and shown it in worked examples.

    ``say``: told of a model whose chat template takes no such prompt.
    """
    found = []
    for name in names:
        triples = list(load(name, split="test"))[:limit]
        if name in SCORERS:
            found.append(written.unit(f"{_UNIT}{name}-{_WRITTEN}", name, form, limit, versions))
        inputs = [digest(triples), versions]
        found.append(_unit(f"{_UNIT}{name}", triples, form, [*inputs, form.to_json()], base_only=False))
        for kind, other in baselines(name, form).items() if prompts else ():
            try:
                rendered(tokenizer, triples[0].prompt, other)
            except SettingError as error:
                say(f"{name} is not {PROMPTS[kind]}: {first_line_of(error)}")
                continue
            found.append(_unit(f"{_UNIT}{name}-{kind}", triples, other, [*inputs, other.to_json()], base_only=True))
    return found


def baselines(name: str, form: PromptFormat) -> dict[str, PromptFormat]:
    """What an edit for a behaviour is held against, by the keys of ``PROMPTS``: the behaviour asked for in the system
    prompt; and worked examples of it before the prompt, one each of four groups that are fitted on.
    """
    ask = f"{form.system}\n{BEHAVIOURS[name].asks}" if form.system else BEHAVIOURS[name].asks
    first: dict[str, tuple[str, str]] = {}
    for _, row in stored(name):
        first.setdefault(row["group"], (row["prompt"], row["positive"]))
    pairs = (*form.primer, *list(first.values())[:_SHOWN])
    return {"asked": replace(form, system=ask), "shown": replace(form, primer=pairs, primer_name=None)}


def _unit(name: str, triples: list[Demonstration], form: PromptFormat, inputs: Any, *, base_only: bool) -> Unit:
    def answer(session: Session, advance: Advance) -> Answers:
        if getattr(session.model.config, "is_encoder_decoder", False):
            raise EvaluationError("behaviours are not measured on encoder-decoders: drop --behaviours")
        told = preference.records(session, triples, advance, form=form)
        return [{**record, "task": name} for record in told], {}

    return Unit(name, digest_of(inputs), answer, 2 * len(triples), base_only=base_only)


def is_behaviour(task: str) -> bool:
    return task.startswith(_UNIT)


def edited_for(edits: Sequence[Edit]) -> list[str]:
    """The behaviours whose demonstrations edits were fitted on, as far as they record it."""
    sources = [edit.recipe.get("demonstrations_from") for edit in edits]
    names = [one.get("source") for one in sources if isinstance(one, dict) and one.get("kind") == "builtin"]
    return [{"builtin": "truthful"}.get(str(name), str(name)) for name in names]


def fitted_on(edits: Sequence[Edit]) -> set[str]:
    """The behaviours of which edits were fitted on the very items that are measured (``fit --split test`` or all)."""
    sources = [(edit, edit.recipe.get("demonstrations_from")) for edit in edits]
    tested = [edit for edit, one in sources if isinstance(one, dict) and one.get("split") in ("test", "all")]
    return set(edited_for(tested))


def rows(
    found: dict[str, dict[str, list[Record]]], edits: Sequence[Edit], say: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """The row of the matrix: of what was edited for first.

    ``say``: told where a prompt does more than the edit, for what it was edited for.
    """
    wanted, known = edited_for(edits), fitted_on(edits)
    made: list[Row] = []
    names = [name for name in BEHAVIOURS if f"{_UNIT}{name}" in found]
    for name in sorted(names, key=lambda one: one not in wanted):
        kind = "gain" if name in wanted else "damage"
        called = f"behaviour {name}" + FITTED_ON * (name in known)
        base, *others = found[f"{_UNIT}{name}"].values()
        made += _rows(f"{_UNIT}{name}", called, kind, base, others[0] if others else None)
        base_wrote, *others_wrote = found.get(f"{_UNIT}{name}-{_WRITTEN}", {}).values() or (None,)
        if base_wrote is not None:
            title = f"{called}, as it writes"
            edited = others_wrote[0] if others_wrote else None
            made += written.rows(f"{_UNIT}{name}-{_WRITTEN}", title, kind, name, base_wrote, edited)
        for prompt, does in PROMPTS.items():
            for answers in found.get(f"{_UNIT}{name}-{prompt}", {}).values():
                title = f"behaviour {name}, {does}, without edit"
                made += _rows(f"{_UNIT}{name}-{prompt}", title, kind, base, answers)[:1]
                if others and name in wanted:
                    say(_against(name + FITTED_ON * (name in known), prompt, base, others[0], answers))
    return made


def _against(called: str, prompt: str, base: list[Record], edited: list[Record], prompted: list[Record]) -> str:
    between = compare(_balanced(base, prompted), _balanced(base, edited)).difference
    assert between is not None
    low, high = between.interval
    numbers = f"edit less prompt {between.value:+.3f} [{low:+.3f}, {high:+.3f}] nats per token"
    other = f"the behaviour {PROMPTS[prompt]}"
    if high < 0:
        return f"{called}: {other} does more than the edit ({numbers})"
    if low > 0:
        return f"{called}: the edit does more than {other} ({numbers})"
    return f"{called}: the edit and {other} are not told apart ({numbers})"


def _rows(task: str, title: str, kind: str, base: list[Record], other: list[Record] | None) -> list[Row]:
    dataset = {"type": task, "name": title, "split": "test"}
    right = [bool(record["values"]["right"]) for record in base]
    both = min(sum(right), len(right) - sum(right)) >= FEWEST
    strata = [("right", "base right", [i for i, one in enumerate(right) if one])]
    strata += [("wrong", "base wrong", [i for i, one in enumerate(right) if not one])]
    made = []

    def add(measure: Measure, columns: Callable[[list[Record]], Any]) -> None:
        compared = compare(columns(base), None if other is None else columns(other))
        made.append(Row(task, kind, measure, compared, dataset))

    if both:
        add(Measure("balanced", f"{_MARGIN}, base right and wrong alike", unit="nats"), lambda r: _balanced(base, r))
    add(Measure("margin", _MARGIN, unit="nats", judged=not both), lambda r: _columns(r, range(len(r)), "margin"))
    for key, part, places in strata:
        if len(places) >= FEWEST:
            measure = Measure(f"{key}.margin", _MARGIN, unit="nats", part=part, judged=False)
            add(measure, lambda r, places=places: _columns(r, places, "margin"))  # type: ignore[misc]
    add(Measure("pairs", "positive preferred", judged=False), lambda r: _columns(r, range(len(r)), "right"))
    return made


def _columns(records: list[Record], places: Sequence[int], value: str) -> Any:
    return np.array([[float(records[i]["values"][value]), 1.0] for i in places])


def _balanced(base: list[Record], records: list[Record]) -> Any:
    """[n, 2]: margins with weights under which the items that the base has right count as much as the others."""
    right = np.array([bool(record["values"]["right"]) for record in base])
    weights = np.where(right, 0.5 / max(right.sum(), 1), 0.5 / max((~right).sum(), 1))
    margins = np.array([float(record["values"]["margin"]) for record in records])
    return np.stack([margins * weights, weights], 1) * len(right)
