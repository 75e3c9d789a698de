"""Demonstrations held back from a fit, by question: what an edit gains is measured on those that it has not seen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from sea_bake.demonstrations.triple import Demonstration, Loaded
from sea_bake.errors import DemonstrationError

DEFAULT_HELD_BACK = 0.2
FEWEST = 10  # held back: resampling fewer says too little of others, so that none are


@dataclass(frozen=True)
class Parts:
    """Demonstrations in two parts without a common question, each in the order in which they came.

    Attributes:
        fit: to fit on; as they were loaded, where they know it.
        held_back: to measure on; empty where there are too few.
        why: why none are held back; "" where some are.
        record: what a recipe says of it: the share; nothing where none are.
    """

    fit: Sequence[Demonstration]
    held_back: Sequence[Demonstration]
    why: str = ""
    record: dict[str, float] = field(default_factory=dict)


def hold_back(demonstrations: Sequence[Demonstration], share: float = DEFAULT_HELD_BACK, seed: int = 0) -> Parts:
    """Whole questions, drawn until they make up the share.

    Raises:
        DemonstrationError: a share outside of [0, 0.9].
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 0.9:
        raise DemonstrationError(f"held_back = {share!r} is no share from 0 (none) to 0.9")
    if share == 0:
        return Parts(demonstrations, [], "no demonstrations were held back")
    wanted = round(share * len(demonstrations))
    order = list(by_question(demonstrations).values())
    random.Random(seed).shuffle(order)
    kept: set[int] = set()
    for places in order:
        if len(kept) < wanted and len(kept) + len(places) <= max(wanted, FEWEST):
            kept |= set(places)
    if len(kept) < FEWEST:
        return Parts(demonstrations, [], f"{len(demonstrations)} demonstrations are too few to hold any back")
    rest = [one for i, one in enumerate(demonstrations) if i not in kept]
    if isinstance(demonstrations, Loaded):
        rest = Loaded(rest, demonstrations.origin)
    held = [one for i, one in enumerate(demonstrations) if i in kept]
    return Parts(rest, held, record={"held_back": share})


def by_question(demonstrations: Sequence[Demonstration]) -> dict[str, list[int]]:
    """Question -> places of its triples, in their order."""
    groups: dict[str, list[int]] = {}
    for i, triple in enumerate(demonstrations):
        groups.setdefault(plain(triple.prompt), []).append(i)
    return groups


def plain(text: str) -> str:
    """Without regard to white space and case: two prompts that read so are one question."""
    return " ".join(text.split()).casefold()
