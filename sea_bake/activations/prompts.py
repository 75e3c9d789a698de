"""From demonstrations to token ids: the tokenizer's chat template where it has one, else a plain one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sea_bake.errors import SettingError

PLAIN_TEMPLATE = "Q: {prompt}\nA:"


@dataclass(frozen=True)
class Tokens:
    """One sequence of the decoder: ``ids``, and the index at which the continuation starts (``len(prompt)``).

    In an encoder-decoder ``encoder`` holds the prompt, and ``ids`` are the decoder's start token and the continuation.
    """

    ids: tuple[int, ...]
    start: int
    encoder: tuple[int, ...] | None = None


def render(tokenizer: Any, prompt: str, system: str | None = None) -> tuple[str, bool]:
    """The text a continuation is appended to, and whether special tokens are still to be added by the tokenizer.

    Raises:
        SettingError: a system prompt that the chat template refuses.
    """
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), False
        except Exception as error:
            raise SettingError(
                f"the tokenizer's chat template refused the prompt (system={system!r}): {error}"
            ) from error
    text = PLAIN_TEMPLATE.format(prompt=prompt)
    return (f"{system}\n\n{text}" if system is not None else text), True


def encode(
    tokenizer: Any,
    prompt: str,
    continuation: str | None = None,
    system: str | None = None,
    *,
    decoder_start: int | None = None,
) -> Tokens:
    """Token ids of the rendered prompt, followed by the continuation when there is one.

    ``decoder_start``: of an encoder-decoder, the token that its decoder starts with.
    """
    text, special = render(tokenizer, prompt, system)
    if decoder_start is not None:  # special tokens as in training: all for the encoder, none before the answer
        told = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return Tokens((decoder_start, *_ids(tokenizer, continuation or "", False)), 1, tuple(told))
    prompt_ids = _ids(tokenizer, text, special)
    if continuation is None:
        return Tokens(tuple(prompt_ids), len(prompt_ids))
    separator = "" if text[-1:].isspace() or not special else " "
    ids = _ids(tokenizer, text + separator + continuation, special)
    # The join may merge tokens: the continuation starts where the two encodings part.
    start = next((i for i, (a, b) in enumerate(zip(prompt_ids, ids)) if a != b), min(len(prompt_ids), len(ids)))
    return Tokens(tuple(ids), min(start, len(ids) - 1))


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    # Some tokenizers append EOS: it would end the prompt before its continuation, and be everybody's last token.
    return ids[:-1] if special and ids and ids[-1] == getattr(tokenizer, "eos_token_id", None) else ids


def pad_id(tokenizer: Any, rows: int | None = None) -> int:
    """A token id to pad with, of an embedding with so many rows; it never reaches a result."""
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int) and 0 <= value < (value + 1 if rows is None else rows):
            return value
    return 0
