"""Base and edited model side by side, whatever runs them: one answer at a time, in pieces as it grows."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import Tokens, encode
from sea_bake.activations.rendering import without_reasoning
from sea_bake.errors import SettingError
from sea_bake.serving.sampling import Sampling

BASE, EDITED = "base", "edited"
MOST = 1e6  # an Edit refuses an alpha of this size
Say = Callable[[str], None]
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: without special tokens.
        tokens: how many were written.
        ended: whether the model ended it; else it was cut at the longest length.
    """

    text: str
    tokens: int
    ended: bool


class Pair(abc.ABC):
    """A base and what an edit makes of it.

    Attributes:
        name: what to call it.
        how: "live", "insert", "fold", "adapter", "onnx", "gguf"; None of a base alone.
        runtime: what runs it: "transformers", "onnxruntime" or "llama.cpp".
        sides: of ``BASE`` and ``EDITED`` those that there are.
        lacking: why one of them is not there; "" where both are.
        fixed: why the strength can only be 1, and 0 where the base is there; "" where it can be any.
        form: how prompts are rendered.
        stored: strengths of the edits as they are stored, which a wanted one is multiplied with.
    """

    name: str
    how: str | None
    runtime: str
    sides: tuple[str, ...]
    lacking: str = ""
    fixed: str = ""
    form: PromptFormat = PromptFormat()
    stored: Sequence[float] = ()

    def check(self, side: str, strength: float) -> None:
        """Raises SettingError for a side that is not there, or a strength that it cannot have."""
        if side not in self.sides:
            raise SettingError(self.lacking or f"there is no side {side!r}: {' and '.join(self.sides)} are there")
        most = MOST / max([1.0, *map(abs, self.stored)])
        if not abs(strength) < most:  # NaN is not, either
            raise SettingError(
                f"alpha = {strength!r:.40} is no strength: use a number between -{floor(most)} and {floor(most)}; 1 is "
                "the edit as it is stored, 0 the base"
            )
        known = (0, 1) if BASE in self.sides else (1,)
        if side == EDITED and strength not in known and self.fixed:
            raise SettingError(self.fixed)

    @abc.abstractmethod
    def check_format(self, form: PromptFormat) -> None:
        """Raises SettingError where prompts cannot be rendered so: a chat template without a system prompt, say."""

    @abc.abstractmethod
    def reply(
        self, side: str, prompt: str, *, before: Turns = (), strength: float = 1.0, sampling: Sampling, say: Say
    ) -> Reply:
        """One side's answer.

        Args:
            before: (prompt, answer) pairs of the same conversation.
            strength: times the edit as it is stored; 0 is the base.
            say: is given each piece of the text as it comes.

        Raises:
            SettingError: see :meth:`check`; a conversation that is longer than the model can read.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what it holds."""


def tokens_of(tokenizer: Any, prompt: str, before: Turns, form: PromptFormat, start: int | None = None) -> Tokens:
    """A prompt behind its conversation, which stands where a primer would.

    Raises:
        SettingError: the chat template refuses it.
    """
    turns = tuple((question, without_reasoning(answer)) for question, answer in before)
    return encode(tokenizer, prompt, form=replace(form, primer=(*form.primer, *turns)), decoder_start=start)


def room_for(tokens: int, limit: int | None, wanted: int, whose: str = "") -> int:
    """How many tokens an answer may have behind so many.

    Args:
        whose: what sets the limit, in words, where that is not the model.

    Raises:
        SettingError: none at all.
    """
    if limit is None or tokens + 1 <= limit:
        return wanted if limit is None else min(wanted, limit - tokens)
    whose = whose or f"the model has positions for {limit}"
    raise SettingError(
        f"the conversation takes {tokens} tokens, and {whose}: begin a new one (/new in a chat), or shorten the prompt"
    )
