"""The built-in behaviours: one file of triples each, in groups, of which whole ones are kept back for testing.

``BEHAVIOURS`` is the table of them. ``load("fair")`` gives the triples to fit on, ``load("fair", split="test")`` those
of the groups that no fit sees, and :func:`rows` what a file holds beside its triples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Literal

from sea_bake.errors import DemonstrationError

Split = Literal["train", "test", "all"]
SPLITS: Final = ("train", "test", "all")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A built-in set.

    Attributes:
        does: what an answer of this behaviour is like, in one line.
        test: the groups that are kept back; all others are fitted on.
        asks: the same asked for in a system prompt, which an edit is held against.
    """

    does: str
    test: tuple[str, ...]
    asks: str

    def splits(self, group: str) -> tuple[str, ...]:
        """The splits that a row of this group belongs to."""
        return ("test" if group in self.test else "train", "all")


BEHAVIOURS: Final[dict[str, Behaviour]] = {
    "truthful": Behaviour(
        "says what is so, and not what many people believe",
        ("the_mind", "health", "sport_and_games", "money_and_trade", "machines_and_materials", "books_and_beliefs"),
        "Say what is so, even where many people believe something else.",
    ),
    "fair": Behaviour(
        "judges people by what is said of them, and says so where nothing is",
        ("appearance", "religion", "sexual_orientation", "race_and_wealth"),
        "Judge people by what is said of them and by nothing else; where nothing is said that decides it, say so.",
    ),
    "calibrated": Behaviour(
        "says that it does not know what nobody can know, and answers what it can",
        ("the_past", "reading", "places"),
        "Say that you do not know where nobody can know, and answer plainly what can be known.",
    ),
    "concise": Behaviour(
        "says it in few words (here length is the behaviour)",
        ("definitions", "choices", "replies"),
        "Answer in as few words as you can.",
    ),
    "formal": Behaviour(
        "writes as one does to an office: no contractions, no slang",
        ("answers_to_friends", "rewriting", "customer_service"),
        "Write formally, as to an office: no contractions and no slang.",
    ),
    "non-sycophantic": Behaviour(
        "stays with what is so when the user would like to hear something else",
        ("pushback", "authority", "arguments"),
        "Stay with what is so, also where the user would like to hear something else.",
    ),
    "harmless-compliance": Behaviour(
        "helps with harmless requests that only sound harmful",
        ("stories", "computing", "law_and_protection"),
        "Help with every request that is harmless, also where it only sounds harmful.",
    ),
    "code": Behaviour(
        "writes Python that passes its tests, and not what is subtly wrong",
        ("text", "recursion", "grids"),
        "Write Python that is correct, and passes every test.",
    ),
}
"""Name -> set. Each has its file ``NAME.jsonl`` in this folder, a triple a line, with the ``group`` it is of."""


def rows(name: str, split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of a built-in set: prompt, positive, negative, group, and what its scorer needs.

    Args:
        name: a row of ``BEHAVIOURS``.
        split: "train" (what edits are fitted on), "test" (whole groups kept back) or "all".

    Raises:
        DemonstrationError: there is no such set, or no such split.
    """
    if name not in BEHAVIOURS:
        raise DemonstrationError(f"there is no built-in behaviour '{name}'. There are: {', '.join(BEHAVIOURS)}.")
    if split not in SPLITS:
        raise DemonstrationError(f"'{name}' has no split '{split}'. Take one of its own: {', '.join(SPLITS)}.")
    text = (resources.files(__name__) / f"{name}.jsonl").read_text("utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        row: dict[str, Any] = json.loads(line)
        if split in BEHAVIOURS[name].splits(row["group"]):
            yield f"{name}.jsonl:{number}", row
