"""What was measured of an edit before it was written: its gain on demonstrations held back, its cost, and random edits
of the same cost. It lies in the edit's file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sea_bake.io.store import finite
from sea_bake.io.typed import build

CLAIM = 20  # random edits of a kind: from so few on, standing above 95 % of them means something
SHARE = 0.95
NOISE = 1e-7  # nats per token: a KL below may be rounding of float32 logits alone
KINDS = {
    "subspaces": "random subspaces of the same ranks",
    "constants": "random constant vectors",
    "elsewhere": "random constant vectors at another site",
}
_LONGEST = 1000  # characters of a place: a site, and ranges of layers
_FIRST = {"subspaces", "constants"}  # all that there were in older records


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's width: what stands behind "±"."""
        return (self.high - self.low) / 2

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]

    @classmethod
    def of(cls, value: Any, interval: Any) -> Estimate:
        """Raises TypeError or ValueError for what is no finite number."""
        low, high = interval
        return cls(finite(value), finite(low), finite(high))


@dataclass(frozen=True)
class Controls:
    """Random edits of one kind and of the same KL, measured on the same demonstrations.

    Attributes:
        kind: a key of ``KINDS``.
        draws: how many.
        below: how many of them the edit gains more than.
        mean: their mean gain; far from 0 where damage alone moves the measure.
        difference: the edit's gain less theirs, with the errors of examples and of draws.
        unmatched: draws that no strength brought to the KL; they do not count.
        where: site and layers, where they are not at the edit's own: "block, layer 15".
    """

    kind: str
    draws: int
    below: int
    mean: Estimate
    difference: Estimate
    unmatched: int = 0
    where: str = ""

    @property
    def above(self) -> bool:
        """Whether the edit gains more than 95 % of them."""
        return self.below >= SHARE * self.draws


@dataclass(frozen=True)
class Measured:
    """What is known of an edit's worth.

    Attributes:
        kl: from the base, nats per token of neutral text; None where it was not measured.
        budget: the KL that its strength was chosen for; None where the strength was given.
        missed: a KL that no strength reaches; the strength is then the method's own.
        texts: how many neutral texts.
        gain: of the margin of positive over negative answers, nats per token, on demonstrations held back.
        base: the base's own margin on them.
        held_back: how many.
        held_back_sha256: which.
        controls: random edits of the same KL.
        why: why something was not measured.
        asked: how many random edits of each kind were asked for; 0 where none were, and in older records.
        missing: kind -> how many were tried, where no strength brought any of them to the KL.
    """

    kl: Estimate | None = None
    budget: float | None = None
    texts: int = 0
    gain: Estimate | None = None
    base: float | None = None
    held_back: int = 0
    held_back_sha256: str = ""
    controls: list[Controls] = field(default_factory=list)
    why: str = ""
    missed: float | None = None
    asked: int = 0
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Whether the edit is known to change nothing that was measured."""
        return self.kl is not None and self.kl.value < NOISE

    @property
    def shown(self) -> bool:
        """Whether there is a gain: its interval lies above 0, and no random edit of the same KL gains as much (of 20
        and more of a kind: at most 5 %).
        """
        many = [one.above if one.draws >= CLAIM else one.below == one.draws for one in self.controls]
        return self.gain is not None and self.gain.low > 0 and all(many)

    @property
    def beyond_damage(self) -> bool:
        """Whether that is known: of every kind that was to be drawn there are as many as were asked for, and no fewer
        than 20. An older record does not say which were to be drawn: it has to hold all of them.
        """
        enough = {one.kind for one in self.controls if one.draws >= max(CLAIM, self.asked)}
        wanted = {*(one.kind for one in self.controls), *self.missing} if self.asked else _FIRST
        return self.shown and bool(wanted) and wanted <= enough

    @property
    def verdict(self) -> str:
        """What its gain comes to, in words; "" where it was not measured."""
        if self.gain is None:
            return ""
        if self.beyond_damage:
            return "a gain beyond damage"
        if self.gain.high < 0:
            return "a loss"
        return "a gain; whether damage alone would do the same is open" if self.shown else "no gain shown"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Measured:
        """Raises ValueError for what no measurement leaves behind; the message names it."""
        found = build(cls, data)
        estimates = [found.kl, found.gain, *(e for one in found.controls for e in (one.mean, one.difference))]
        numbers = [n for e in estimates if e is not None for n in (e.value, e.low, e.high)]
        numbers += [n for n in (found.budget, found.base, found.missed) if n is not None]
        if not all(abs(number) < 1e9 for number in numbers):
            raise ValueError("a number is out of all bounds")
        for one in found.controls:
            if one.kind not in KINDS or not 0 <= one.below <= one.draws or one.draws < 1 or one.unmatched < 0:
                raise ValueError(f"controls of the kind {one.kind!r:.40}: {one.below} of {one.draws}")
            if len(one.where) > _LONGEST or not one.where.isprintable():
                raise ValueError(f"controls at the place {one.where!r:.40}")
        if found.asked < 0 or any(kind not in KINDS or tried < 1 for kind, tried in found.missing.items()):
            raise ValueError(f"random edits: {found.asked} asked for, and missing: {found.missing!r:.80}")
        if found.texts < 0 or found.held_back < 0 or (found.kl is not None and found.kl.value < 0):
            raise ValueError("a count or a KL is below 0")
        return found
