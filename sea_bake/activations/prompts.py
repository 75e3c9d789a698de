"""From prompts to token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.rendering import PLAIN_TEMPLATE, render, rendered

__all__ = ["PLAIN_TEMPLATE", "Tokens", "encode", "pad_id", "render"]


@dataclass(frozen=True)
class Tokens:
    """One sequence of the decoder: ``ids``, and the index at which the continuation starts (``len(prompt)``).

    In an encoder-decoder ``encoder`` holds the prompt, and ``ids`` are the decoder's start token and the continuation.
    """

    ids: tuple[int, ...]
    start: int
    encoder: tuple[int, ...] | None = None


def encode(
    tokenizer: Any,
    prompt: str,
    continuation: str | None = None,
    form: PromptFormat | None = None,
    *,
    decoder_start: int | None = None,
) -> Tokens:
    """Token ids of the rendered prompt, followed by the continuation when there is one.

    Args:
        form: how the prompt is rendered.
        decoder_start: of an encoder-decoder, the token that its decoder starts with. The answer's prefix is its too.

    Raises:
        SettingError: see :func:`sea_bake.activations.rendering.rendered`.
    """
    found = rendered(tokenizer, prompt, form)
    text, special = found.whole, found.special
    if decoder_start is not None:  # special tokens as in training: all for the encoder, none before the answer
        told = tokenizer(found.text, add_special_tokens=special, verbose=False)["input_ids"]
        begun = _ids(tokenizer, found.prefix, False) if found.prefix else []
        said = found.prefix if continuation is None else found.prefix + found.before(found.prefix) + continuation
        said = said if found.prefix else continuation or ""
        ids = _ids(tokenizer, said, False)
        return Tokens((decoder_start, *ids), 1 + _parting(begun, ids), tuple(told))
    prompt_ids = _ids(tokenizer, text, special)
    if continuation is None:
        return Tokens(tuple(prompt_ids), len(prompt_ids))
    ids = _ids(tokenizer, text + found.before(text) + continuation, special)
    return Tokens(tuple(ids), min(_parting(prompt_ids, ids), len(ids) - 1))


def _parting(prompt: list[int], ids: list[int]) -> int:
    """Where two encodings part, and so the continuation starts: the join may merge tokens."""
    return next((i for i, (a, b) in enumerate(zip(prompt, ids)) if a != b), min(len(prompt), len(ids)))


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    # Some tokenizers append EOS: it would end the prompt before its continuation, and be everybody's last token.
    return ids[:-1] if special and ids and ids[-1] == getattr(tokenizer, "eos_token_id", None) else ids


def pad_id(tokenizer: Any, rows: int | None = None) -> int:
    """A token id to pad with, that an embedding of this number of rows has; it never reaches a result."""
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int) and 0 <= value < (value + 1 if rows is None else rows):
            return value
    return 0
