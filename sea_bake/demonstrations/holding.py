"""Demonstrations held back from a fit, by question: what an edit gains is measured on those that it has not seen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from sea_bake.demonstrations.triple import Demonstration, Loaded
from sea_bake.errors import DemonstrationError

DEFAULT_HELD_BACK = 0.2
FEWEST = 10  # held back: resampling fewer says too little of others, so that none are
PROMPTS = 3  # to fit on, and no fewer: what is centred leaves of two one direction, which SEA keeps and drops


@dataclass(frozen=True)
class Parts:
    """Demonstrations in two parts without a common question, each in the order in which they came.

    Attributes:
        fit: to fit on; as they were loaded, where they know it.
        held_back: to measure on; empty where that leaves too few, or too few prompts to fit on.
        why: why none are held back; "" where some are.
        record: what a recipe says of it: the share; nothing where none are.
    """

    fit: Sequence[Demonstration]
    held_back: Sequence[Demonstration]
    why: str = ""
    record: dict[str, float] = field(default_factory=dict)


def hold_back(demonstrations: Sequence[Demonstration], share: float = DEFAULT_HELD_BACK, seed: int = 0) -> Parts:
    """Whole questions, drawn until they make up the share; no more than leaves three to fit on.

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
    kept, left = _drawn(order, wanted)
    if len(kept) < FEWEST and left == PROMPTS:  # few prompts: the larger ones make up more
        kept, left = _drawn(sorted(order, key=len, reverse=True), wanted)
    if len(kept) < FEWEST:
        return Parts(demonstrations, [], _why(len(demonstrations), len(order), share, wanted))
    rest = [one for i, one in enumerate(demonstrations) if i not in kept]
    if isinstance(demonstrations, Loaded):
        rest = Loaded(rest, demonstrations.origin)
    held = [one for i, one in enumerate(demonstrations) if i in kept]
    return Parts(rest, held, record={"held_back": share})


def _drawn(order: Sequence[Sequence[int]], wanted: int) -> tuple[set[int], int]:
    """Places of those that are held back, in this order, and how many questions are left."""
    kept: set[int] = set()
    left = len(order)
    for places in order:
        if left > PROMPTS and len(kept) < wanted and len(kept) + len(places) <= max(wanted, FEWEST):
            kept |= set(places)
            left -= 1
    return kept, left


def _why(count: int, prompts: int, share: float, wanted: int) -> str:
    if prompts <= PROMPTS:
        alike = "one prompt" if prompts == 1 else f"{prompts} prompts"
        return f"the {count} demonstrations have {alike}: of so few none is held back"
    if wanted >= FEWEST:
        return (
            f"no whole prompts could be held back of the {count} demonstrations: they would be fewer than {FEWEST} of "
            f"them, more than a share of {share:g}, or leave fewer than {PROMPTS} prompts to fit on"
        )
    if share == DEFAULT_HELD_BACK:
        return f"{count} demonstrations are too few to hold any back"
    return f"a share of {share:g} of {count} demonstrations is {wanted}: fewer than {FEWEST} are not held back"


def by_question(demonstrations: Sequence[Demonstration]) -> dict[str, list[int]]:
    """Question -> places of its triples, in their order."""
    groups: dict[str, list[int]] = {}
    for i, triple in enumerate(demonstrations):
        groups.setdefault(plain(triple.prompt), []).append(i)
    return groups


def plain(text: str) -> str:
    """Without regard to white space and case: two prompts that read so are one question."""
    return " ".join(text.split()).casefold()
