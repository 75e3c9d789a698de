"""The noun: one prompt with a good and a bad answer, and the fingerprint of a list of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sea_bake.errors import DemonstrationError
from sea_bake.io.files import has_utf8

MIN_TRIPLES: Final = 2
"""One triple gives cross-covariances of rank one: their only direction is that triple's own neutral activation."""


def flaw(value: object) -> str | None:
    """What is wrong with ``value`` as the text of a demonstration, or None when nothing is."""
    if not isinstance(value, str):
        return "is empty" if value is None else f"is not a string but {type(value).__name__}"
    if not value.strip():
        return "is empty"
    if not has_utf8(value):
        return "holds half of a surrogate pair (a cut-off \\ud800-style escape), which no tokenizer accepts"
    return None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt, an answer the model should give, and one it should not (SEA, arXiv 2405.09719).

    Attributes:
        prompt: the question, without any chat template or few-shot preamble.
        positive: the answer to move towards.
        negative: the answer to move away from.
        neutral: the model's own answer; None lets the model's state at the end of the bare prompt (or its own greedy
            answer) stand for it.

    The texts are kept as given: white space at the end of an answer becomes its last token.

    Raises:
        DemonstrationError: a text that is not a string, or is empty once stripped.
    """

    prompt: str
    positive: str
    negative: str
    neutral: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "positive", "negative", "neutral"):
            value = getattr(self, name)
            problem = None if name == "neutral" and value is None else flaw(value)
            if problem:
                hint = " (or leave it out: None)" if name == "neutral" else ""
                raise DemonstrationError(f"Demonstration: '{name}' {problem}. Give it a non-empty string{hint}.")


class Loaded(list[Demonstration]):
    """Demonstrations that know how they were loaded; a slice or a copy is a plain list, and does not claim to.

    Attributes:
        origin: "kind" (builtin, file, folder, hub), "source" (of a path its last part alone), "file_sha256" of a file,
            and the other arguments of :func:`sea_bake.demonstrations.load`.
    """

    def __init__(self, demonstrations: Iterable[Demonstration], origin: dict[str, Any]) -> None:
        super().__init__(demonstrations)
        self.origin = origin


def digest(demonstrations: Iterable[Demonstration]) -> str:
    """SHA-256 (64 hex digits) over a canonical JSON encoding: the same texts in the same order, and nothing else."""
    rows = [[d.prompt, d.positive, d.negative, d.neutral] for d in demonstrations]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode("ascii")).hexdigest()
