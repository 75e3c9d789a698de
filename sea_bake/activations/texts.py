"""From demonstrations to the token ids of all three roles, and what a model cannot read among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sea_bake.activations.generating import decoder_start, rows_of
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import Tokens, encode
from sea_bake.demonstrations import Demonstration
from sea_bake.errors import ActivationError
from sea_bake.model.sites import text_config
from sea_bake.model.skeleton import decoder_of

Neutral = Literal["generate", "prompt"]
# One default each, for all who collect activations.
DEFAULT_NEUTRAL: Neutral = "generate"
DEFAULT_NEW_TOKENS = 32
DEFAULT_BATCH_SIZE = 16
ROLES = ("neutral", "positive", "negative")


def sequences(
    model: Any,
    tokenizer: Any,
    demonstrations: Sequence[Demonstration],
    *,
    neutral: Neutral = DEFAULT_NEUTRAL,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    prompt_format: PromptFormat | None = None,
) -> tuple[dict[str, list[Tokens]], list[int]]:
    """Token ids of the three roles of each demonstration, in its order; and where the neutral one is to be written yet.

    The neutral text is the demonstration's own if it has one; else the model's greedy continuation ("generate", as in
    the paper; a trailing end-of-sequence token is dropped), or nothing ("prompt": the prompt alone). Of one that is to
    be written, the prompt is there.

    Raises:
        ActivationError: a text with tokens that the embedding lacks, or beyond the model's context; positive and
            negative texts that are the same.
    """
    start = decoder_start(model)

    def encoded(prompt: str, continuation: str | None) -> Tokens:
        return encode(tokenizer, prompt, continuation, prompt_format, decoder_start=start)

    found = {
        "positive": [encoded(d.prompt, d.positive) for d in demonstrations],
        "negative": [encoded(d.prompt, d.negative) for d in demonstrations],
        "neutral": [encoded(d.prompt, d.neutral) for d in demonstrations],
    }
    if found["positive"] == found["negative"]:
        raise ActivationError(
            "the positive and the negative answer are the same in every demonstration, so there is nothing to move "
            "towards or away from: give answers that differ"
        )
    check_vocabulary(model, tokenizer, found)
    _check_lengths(model, found, max_new_tokens if neutral == "generate" else 0)
    return found, [i for i, d in enumerate(demonstrations) if neutral == "generate" and d.neutral is None]


def check_vocabulary(model: Any, tokenizer: Any, roles: dict[str, list[Tokens]]) -> None:
    """Raise ActivationError where a text holds a token that the model's embedding has no row for."""
    readers = {"ids": rows_of(decoder_of(model)), "encoder": rows_of(model)}
    for role in ("positive", "negative", "neutral"):
        for i, tokens in enumerate(roles.get(role, ())):
            for part, rows in readers.items():
                bad = next((id for id in getattr(tokens, part) or () if not 0 <= id < rows), None)
                if bad is not None:
                    raise ActivationError(
                        f"the {role} text of demonstration {i + 1} holds the token "
                        f"{tokenizer.convert_ids_to_tokens(bad)!r} (id {bad}), and the model's embedding has {rows} "
                        f"rows (ids 0 to {rows - 1}): the tokenizer has tokens that this model was never given. Take "
                        "it out of the text (or, where the chat template adds it, pass --no-chat-template), or use the "
                        "tokenizer that belongs to these weights"
                    )


def _check_lengths(model: Any, roles: dict[str, list[Tokens]], extra: int) -> None:
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if not limit:
        return
    for role, sequences_of_role in roles.items():
        for i, tokens in enumerate(sequences_of_role):
            length = max(len(tokens.ids) + (extra if role == "neutral" else 0), len(tokens.encoder or ()))
            if length > limit:
                raise ActivationError(
                    f"the {role} text of demonstration {i + 1} takes {length} tokens, and the model has positions for "
                    f"{limit}: shorten it, leave it out, or lower --max-new-tokens"
                )
