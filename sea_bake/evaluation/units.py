"""What an evaluation consists of: a unit per task of the harness, per cost, and for demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.demonstrations import Demonstration
from sea_bake.demonstrations import digest as digest_of
from sea_bake.evaluation import conditions, damage, preference
from sea_bake.evaluation.keeping import digest
from sea_bake.evaluation.running import Advance, Answers, Session, Unit
from sea_bake.evaluation.tasks import Local


def versions() -> dict[str, str]:
    """Of all that decides a figure."""
    return {name: version(name) for name in ("sea-bake", "lm-eval", "transformers", "torch")}


def tasks(
    names: Sequence[str],
    local: Sequence[Local] | None,
    *,
    limit: int | None = None,
    offset: int = 0,
    fewshot: int | None = None,
    chat: bool = False,
    form: PromptFormat | None = None,
    dtype: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> list[Unit]:
    """One per task. The harness is imported here, and the tasks' data loaded, before any model.

    ``form``: how the chat template is used, where it is: its arguments, system prompt and date. ``say``: told which
    tasks are without the worked examples asked for, and what was too long for the model.

    Raises:
        EvaluationError: an unknown task, or data that cannot be had.
    """
    from sea_bake.evaluation import harness

    loaded = harness.load_tasks(names, local, fewshot, say)
    origins = {name: harness.origin(loaded[name]) for name in names}
    digests = {task.name: task.digest for task in local or ()}
    settings: dict[str, Any] = {"limit": limit, "offset": offset, "fewshot": fewshot, "chat": chat, "dtype": dtype}
    settings |= {"prompt_format": form.to_json()} if chat and form else {}

    said: set[str] = set()

    def answer(name: str, session: Session, advance: Advance) -> Answers:
        lm = session.lm(advance, origins[name])
        found = harness.run(lm, loaded[name], limit=limit, offset=offset, chat=chat, form=form)
        for sentence in conditions.truncated(name, found[1]):
            if sentence not in said:  # by the other door already
                said.add(sentence)
                say(sentence)
        return found

    return [
        Unit(
            name,
            digest(name, digests.get(name), settings, versions()),
            partial(answer, name),
            harness.count_requests(loaded[name], limit, offset),
            data=origins[name],
        )
        for name in names
    ]


def neutral_text(tokenizer: Any, texts: Sequence[str]) -> Unit:
    """KL to the first door, and perplexity."""
    work = damage.Neutral(tokenizer, texts)

    def answer(session: Session, advance: Advance) -> Answers:
        return work.records(session.model, advance, session.lower), {}

    return Unit(damage.NEUTRAL, digest(texts, versions()), answer, len(work.ids), "text", against=True)


def generation(form: PromptFormat) -> Unit:
    """Greedy answers, and how much they repeat themselves."""

    def answer(session: Session, advance: Advance) -> Answers:
        return damage.generations(session.model, session.tokenizer, form=form, advance=advance), {}

    return Unit(damage.GENERATION, digest(damage.PROMPTS, form.to_json(), versions()), answer, len(damage.PROMPTS))


def demonstrations(triples: Sequence[Demonstration], form: PromptFormat) -> Unit:
    """Whether the positive answers are preferred to the negative ones."""

    def answer(session: Session, advance: Advance) -> Answers:
        return preference.records(session, triples, advance, form=form), {}

    inputs = digest(digest_of(triples), form.to_json(), versions())
    return Unit(preference.DEMONSTRATIONS, inputs, answer, 2 * len(triples))
