"""Settings of an answer, and what can run a GGUF; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sea_bake.errors import SettingError

DEFAULT_ANSWER = 256  # tokens of an answer for people
Runtime = Literal["auto", "transformers", "llama.cpp"]
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
        if not 0 <= self.temperature < 100:
            raise SettingError(f"temperature = {self.temperature}: use a number from 0 (the most likely token) to 2")
        if not 0 <= self.seed < 2**63:
            raise SettingError(f"seed = {self.seed}: use a whole number from 0 on")
