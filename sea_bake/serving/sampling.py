"""Settings of an answer, and what can run a GGUF; without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

from sea_bake.errors import SettingError
from sea_bake.io.edits import edit_file
from sea_bake.model.source import ModelSource

DEFAULT_ANSWER = 256  # tokens of an answer for people
Runtime = Literal["auto", "transformers", "llama.cpp"]
_HOTTEST = 100
_COLDEST = 1e-30  # a logit of 1e8, divided by it, is still a number in float32, whose largest is 3e38
RUNTIMES = ("auto", "transformers", "llama.cpp")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: the longest answer.
        temperature: 0: the most likely token, always.
        seed: of what is drawn at a higher temperature.

    Raises:
        SettingError: a number outside its range.
    """

    max_new_tokens: int = DEFAULT_ANSWER
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SettingError(f"max_new_tokens = {self.max_new_tokens}: an answer needs at least 1")
        check_temperature(self.temperature)
        if not 0 <= self.seed < 2**63:
            raise SettingError(f"seed = {self.seed}: use a whole number from 0 on")


def check_temperature(temperature: float) -> None:
    """Raises SettingError for what no draw can be made at: logits are divided by it, in float32."""
    if not 0 <= temperature < _HOTTEST:
        raise SettingError(
            f"temperature = {temperature}: use 0 (the most likely token), or a number below {_HOTTEST}; 0.7 is usual"
        )
    if 0 < temperature < _COLDEST:
        raise SettingError(
            f"temperature = {temperature} is so small that logits divided by it are no numbers: use 0, which takes "
            "the most likely token"
        )


def check_there(model: Any, edit: Any = None, revision: str | None = None, prompts: Sequence[str] = ("?",)) -> None:
    """What can be said before torch is loaded.

    Raises:
        SettingError: no prompt, an empty one, or one that is no text.
        CheckpointError, EditError: there is no such model, or no such edit.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise SettingError("there is no prompt, or an empty one: give a question with -p")
    for prompt in prompts:
        check_text(prompt)
    if isinstance(model, str | Path):
        ModelSource.parse(model, revision)
    for one in edit if isinstance(edit, Sequence) and not isinstance(edit, str) else [edit]:
        if isinstance(one, str | Path):
            edit_file(one)


def check_text(prompt: str) -> None:
    """Raises SettingError for bytes that are no UTF-8, which Python keeps in a string as halves of surrogate pairs."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise SettingError(
            f"the prompt is no UTF-8 (its character {error.start + 1}), and no tokenizer reads it: convert it "
            "(iconv -f LATIN1 -t UTF-8)"
        ) from error


def piped(prompts: Sequence[str]) -> list[str]:
    """Prompts, with what comes in through a pipe in the place of "-"."""
    keep_bytes()
    return [(sys.stdin.read() if sys.stdin else "") if prompt == "-" else prompt for prompt in prompts]


def at_terminal() -> bool:
    """Whether lines come from somebody who types them."""
    return bool(sys.stdin and sys.stdin.isatty())


def keep_bytes() -> None:
    """Let what comes in and is no UTF-8 be refused as a prompt (:func:`check_text`), and not break the reading."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
