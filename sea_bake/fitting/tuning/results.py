"""What a search found. ``to_json`` is the file ``tune.json``::

    {"format": "sea_bake.tuning", "version": 1, "base", "objective", "measure": {"key", "name", "unit", "better"},
     "verdict", "beats", "helps", "notes", "chosen": number, "front": [numbers], "rule", "max_kl", "seed",
     "looks": [numbers], "looks_before",
     "trials": [{"number", "settings", "value", "base", "gain", "interval", "kl", "ranks", "seconds", "failure"}, ...],
     "splits": {"fit", "selection", "held_back", "by": "question" | "scenario"}, "space", "versions",
     "held_back": {"default to chosen" | "base to chosen" | "base to default": [rows as in evaluation.json]}}

Trial 0 has the settings of an untuned fit. "gain" is the measure's difference from the base, turned so that more is
better. "beats" is said of the untuned default, "helps" of the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sea_bake.artefact.evaluation import P, Row
from sea_bake.edit import Edit
from sea_bake.edit.measured import Estimate
from sea_bake.fitting.tuning.objective import gain
from sea_bake.fitting.tuning.space import Settings

FORMAT = "sea_bake.tuning"
VERSION = 1
DEFAULT = 0  # the number of the trial with an untuned fit's settings
CHOSEN_DEFAULT, CHOSEN_BASE, DEFAULT_BASE = "default to chosen", "base to chosen", "base to default"


@dataclass(frozen=True)
class Trial:
    """One edit, scored on the data for selection.

    Attributes:
        number: from 0, the untuned fit.
        settings: arguments of ``fit``.
        value, base: the objective's measure under the edit, and without.
        gain: their paired difference, turned so that more is better, with its 95 % interval.
        kl: from the base, nats per token of neutral text.
        ranks: ((least, most) k+, (least, most) k-) over the layers.
        seconds: what it took.
        failure: why there is nothing of the above.
    """

    number: int
    settings: Settings
    value: float = 0.0
    base: float = 0.0
    gain: Estimate = field(default_factory=lambda: Estimate(0.0, 0.0, 0.0))
    kl: float = 0.0
    ranks: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    seconds: float = 0.0
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        data = asdict(self) | {"gain": self.gain.value, "interval": self.gain.interval}
        data["ranks"] = list(map(list, self.ranks))
        empty = ("value", "base", "gain", "interval", "kl", "ranks") if self.failure else ()
        return {name: value for name, value in data.items() if name not in empty}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        """Raises KeyError, TypeError or ValueError for what :meth:`to_json` would not give."""
        if data["failure"]:
            return cls(data["number"], data["settings"], seconds=data["seconds"], failure=data["failure"])
        (k, l), (m, n) = data["ranks"]
        found = Estimate(data["gain"], *data["interval"])
        numbers = (data["value"], data["base"], found, data["kl"], ((k, l), (m, n)), data["seconds"])
        return cls(data["number"], data["settings"], *numbers)


def front(trials: Sequence[Trial]) -> list[int]:
    """Numbers of the trials on the Pareto front: no other gains as much for less KL, or more for as much.

    (Optuna's own knows only those that keep to its constraints.)
    """
    good = [trial for trial in trials if not trial.failure]
    return [trial.number for trial in good if not any(_dominates(other, trial) for other in good)]


def _dominates(one: Trial, other: Trial) -> bool:
    gains = one.gain.value - other.gain.value, other.kl - one.kl
    return min(gains) >= 0 and max(gains) > 0


_WORDS = {1: "beats", 0: "is not shown to beat", -1: "is below"}


def _standing(row: Row) -> int:
    """1: better on the held-back data, -1: worse, 0: neither is shown."""
    if not row.found.shown:
        return 0
    return 1 if gain(row).value > 0 else -1


def _reason(row: Row) -> str:
    """Why that is said."""
    won = gain(row)
    side = "above" if won.low > 0 else "below" if won.high < 0 else ""
    if not side:
        return "the interval of the gain holds 0"
    return f"the interval of the gain lies {side} 0" + ("" if row.found.shown else f", but p is not below {P}")


RULE = "of the Pareto front, the largest gain whose KL is at most max_kl; where there is none, the smallest KL"


def choose(front: Sequence[Trial], max_kl: float) -> Trial:
    """By ``RULE``; of equals the cheaper, then the earlier one."""
    within = [trial for trial in front if trial.kl <= max_kl]
    if not within:
        return min(front, key=lambda trial: (trial.kl, trial.number))
    return min(within, key=lambda trial: (-trial.gain.value, trial.kl, trial.number))


@dataclass(frozen=True)
class Tuning:
    """What ``tune`` found.

    Attributes:
        edit: the chosen one, fitted.
        trials: all of them, in their order.
        front: numbers of those that no other beats in both gain and KL.
        chosen: number of the chosen one.
        held_back: comparison -> every measure of the held-back data; without the default where that has failed.
        objective: its row of each comparison.
        looks: the trials that were ever compared on the held-back data, by this run and those it goes on from.
        looks_before: choices that these data, or some of them, have decided on in searches that this one replaced.
        told: what it was measured with, for ``tune.json``.
    """

    edit: Edit
    trials: list[Trial]
    front: list[int]
    chosen: int
    held_back: dict[str, list[Row]]
    objective: dict[str, Row]
    max_kl: float
    looks: list[int]
    looks_before: int = 0
    told: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def against(self) -> str:
        """What the chosen edit has to beat: the untuned default, or, where that failed, the base."""
        return CHOSEN_DEFAULT if CHOSEN_DEFAULT in self.objective else CHOSEN_BASE

    @property
    def inert(self) -> bool:
        """Whether the chosen edit leaves every answer and distribution as it is."""
        same = self.objective[CHOSEN_BASE].found.changed == 0 and self.trial(self.chosen).kl == 0
        return self.edit.alpha == 0 or same

    @property
    def beats(self) -> bool:
        """Whether it is shown on the held-back data to gain more than ``against``: by its interval, and its p-value."""
        return self.chosen != DEFAULT and not self.inert and _standing(self.objective[self.against]) > 0

    @property
    def helps(self) -> bool:
        """Whether it is shown on the held-back data to be better than the base, which is what there is without it."""
        return not self.inert and _standing(self.objective[CHOSEN_BASE]) > 0

    @property
    def verdict(self) -> str:
        """In one sentence."""
        own, base = self.objective[self.against], self.objective[CHOSEN_BASE]
        if self.inert:
            why = " (its alpha is 0)" if self.edit.alpha == 0 else ""
            return f"trial {self.chosen} changes nothing{why}: no edit that was found helps"
        if self.chosen == DEFAULT:
            found = "no trial was chosen before the untuned default: tuning found nothing better"
            return f"{found}; on held-back data the default {_WORDS[_standing(base)]} the base ({_reason(base)})"
        if self.against == CHOSEN_BASE:
            rival = "the base (the untuned default failed)"
            return f"trial {self.chosen} {_WORDS[_standing(own)]} {rival} on held-back data: {_reason(own)}"
        also = "and" if (_standing(own) > 0) == (_standing(base) > 0) else "but"
        return (
            f"trial {self.chosen} {_WORDS[_standing(own)]} the untuned default on held-back data ({_reason(own)}), "
            f"{also} it {_WORDS[_standing(base)]} the base ({_reason(base)})"
        )

    @property
    def notes(self) -> list[str]:
        """What has to be said with it."""
        found = []
        chosen = self.trial(self.chosen)
        if chosen.gain.value <= 0:
            found.append("On the data for selection the chosen trial gains nothing over the base.")
        if chosen.kl > self.max_kl:
            found.append(f"No trial keeps KL within {self.max_kl:g} nats per token: this one has the least.")
        failed = [trial for trial in self.trials if trial.failure]
        if failed:
            found.append(f"{len(failed)} trials failed; the first, {failed[0].number}: {failed[0].failure}")
        if self.decided > 1:
            before = f"; {self.looks_before} in searches that this one replaced" if self.looks_before else ""
            found.append(
                f"The held-back data, or some of them, have now decided on {self.decided} choices (trials "
                f"{', '.join(map(str, self.looks))}{before}): take other data for a result to publish."
            )
        return found

    @property
    def decided(self) -> int:
        """On how many choices the held-back data have, this one among them."""
        return len(self.looks) + self.looks_before

    def trial(self, number: int) -> Trial:
        return next(trial for trial in self.trials if trial.number == number)

    def to_json(self) -> dict[str, Any]:
        measure = self.objective[CHOSEN_BASE].measure
        return {
            "format": FORMAT,
            "version": VERSION,
            "verdict": self.verdict,
            "beats": self.beats,
            "helps": self.helps,
            "measure": {"key": measure.key, "name": measure.name, "unit": measure.unit, "better": measure.better},
            "chosen": self.chosen,
            "front": self.front,
            "rule": RULE,
            "max_kl": self.max_kl,
            "looks": self.looks,
            "looks_before": self.looks_before,
            "notes": self.notes,
            "trials": [trial.to_json() for trial in self.trials],
            "held_back": {name: [row.to_json() for row in rows] for name, rows in self.held_back.items()},
            **self.told,
        }
