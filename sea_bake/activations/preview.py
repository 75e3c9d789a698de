"""One demonstration as the model reads it, with the tokens marked whose activations count; the model is not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_bake.activations.capture import DEFAULT_POSITION, DEFAULT_SEED, Position, picked
from sea_bake.activations.generating import start_token
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import Tokens, encode
from sea_bake.activations.rendering import pinned, rendered, said_of_reasoning
from sea_bake.activations.texts import DEFAULT_NEUTRAL, DEFAULT_NEW_TOKENS, Neutral
from sea_bake.demonstrations import Demonstration, builtin
from sea_bake.model.loading import load_tokenizer
from sea_bake.model.source import ModelSource

MARKS = ("⟦", "⟧")
_LATER = "⟦the model's own answer, of up to {} tokens⟧"


@dataclass(frozen=True)
class Preview:
    """The texts of one demonstration.

    Attributes:
        texts: role -> its text, the tokens that count between ⟦ and ⟧.
        ids: role -> its token ids; of an encoder-decoder those of the decoder.
        format: how they were rendered, as it is recorded.
        reasoning: what opens a block of reasoning, where the chat template leaves one open.
        remarks: what else is to be known, in sentences.
    """

    texts: dict[str, str]
    ids: dict[str, list[int]]
    format: dict[str, Any]
    reasoning: str | None
    remarks: list[str]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def __str__(self) -> str:
        parts = [f"--- {role} ---\n{text}" for role, text in self.texts.items()]
        return "\n".join([*parts, "---", *self.remarks])


def preview(
    model: str | Path | ModelSource,
    demonstrations: Sequence[Demonstration] | None = None,
    *,
    prompt_format: PromptFormat | None = None,
    position: Position = DEFAULT_POSITION,
    neutral: Neutral = DEFAULT_NEUTRAL,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    seed: int = DEFAULT_SEED,
) -> Preview:
    """The first demonstration, rendered and encoded as a fit would.

    Args:
        model: the base, of which only tokenizer and configuration are read.
        demonstrations: triples. Default: the built-in set.
        prompt_format: how prompts are rendered.
        position, neutral, max_new_tokens, seed: see :func:`sea_bake.activations.collect_sites`.

    Raises:
        SettingError: a chat template that refuses the prompt, or leaves it out.
        CheckpointError: the tokenizer cannot be loaded.
    """
    source = ModelSource.parse(model)
    tokenizer = load_tokenizer(source)
    form = pinned(tokenizer, prompt_format)
    triple = (builtin() if demonstrations is None else demonstrations)[0]
    start = start_token(source)
    answers = {"neutral": triple.neutral, "positive": triple.positive, "negative": triple.negative}
    texts, ids = {}, {}
    for role, answer in answers.items():
        tokens = encode(tokenizer, triple.prompt, answer, form, decoder_start=start)
        later = role == "neutral" and neutral == "generate" and answer is None
        texts[role] = _marked(tokenizer, tokens, None if later else picked(tokens, position, f"{seed}:{role}:0"))
        texts[role] += _LATER.format(max_new_tokens) if later else ""
        ids[role] = list(tokens.ids)
    opened = rendered(tokenizer, triple.prompt, form).reasoning
    return Preview(texts, ids, form.to_json(), opened, _remarks(form, opened))


def _remarks(form: PromptFormat, opened: str | None) -> list[str]:
    found = [f"Between {MARKS[0]} and {MARKS[1]}: the tokens whose activations count."]
    found += [said_of_reasoning(opened, closed=form.close_reasoning)] if opened else []
    if form.date is not None:
        found.append(f"The chat template shows a date: {form.to_json()['date']}, which is recorded and used again.")
    return found


def _marked(tokenizer: Any, tokens: Tokens, span: tuple[int, int] | None) -> str:
    """The text of a sequence with its encoder's in front, and marks around a span of its tokens."""
    first, end = span or (len(tokens.ids), len(tokens.ids))
    before, inside, behind = (tokenizer.decode(list(part)) for part in _cut(tokens.ids, first, end))
    read = "" if tokens.encoder is None else f"{tokenizer.decode(list(tokens.encoder))}\n(decoder:) "
    return f"{read}{before}{MARKS[0]}{inside}{MARKS[1]}{behind}" if span else read + before


def _cut(ids: tuple[int, ...], first: int, end: int) -> tuple[tuple[int, ...], ...]:
    return ids[:first], ids[first:end], ids[end:]
