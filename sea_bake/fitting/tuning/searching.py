"""The search: Optuna proposes settings, each is fitted from saved activations and judged, and the journal keeps it.

The sampler is TPE, in its form for several objectives (Ozaki et al. 2022), which Optuna recommends for up to a thousand
trials; NSGA-II wants populations of fifty. It is told how far each trial lies beyond the KL that is allowed, so that it
does not dwell on gains that cost too much. It is seeded anew for every trial with the run's seed and the trial's
number, and sees finished trials only: a run that was killed goes on with what it would have proposed.

Of several processes (``torchrun``) the main one proposes, fits and writes; all of them share the answers of a trial.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from sea_bake.activations import Activations
from sea_bake.edit import Edit
from sea_bake.errors import ActivationError, EvaluationError, SettingError, first_line_of
from sea_bake.evaluation import Judge, Row
from sea_bake.evaluation.damage import NEUTRAL
from sea_bake.fitting import fit
from sea_bake.fitting.tuning.objective import Objective, gain, kl
from sea_bake.fitting.tuning.results import CHOSEN_BASE, CHOSEN_DEFAULT, DEFAULT_BASE, Trial
from sea_bake.fitting.tuning.space import Settings, Space, starts
from sea_bake.fitting.tuning.trials import Rows, Trials
from sea_bake.io import progress
from sea_bake.methods.table import named
from sea_bake.model.anatomy import Site
from sea_bake.model.processes import on_main

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_OWN_FAULTS = (SettingError, ActivationError, EvaluationError, torch.linalg.LinAlgError)  # of one trial's settings


@dataclass(frozen=True)
class Bench:
    """What a trial needs: activations of every site (the main process'), the data for selection, and what to read off
    them.
    """

    activations: Mapping[str, Activations]
    judge: Judge
    objective: Objective

    def edit(self, settings: Settings) -> Edit:
        """Fitted from the saved activations: no model is run."""
        site = (named(settings["method"]).reads or Site(settings["site"])).value
        return on_main(lambda: self._fit(site, settings))

    def _fit(self, site: str, settings: Settings) -> Edit:
        try:
            return fit(None, activations=self.activations[site], **settings)
        except torch.linalg.LinAlgError as error:
            raise ActivationError(first_line_of(error)) from error

    def trial(self, number: int, settings: Settings) -> Trial:
        """Fit and judge. What only these settings can be blamed for is told in the trial, not raised."""
        began = time.perf_counter()
        try:
            found = self._judged(number, settings)
        except _OWN_FAULTS as error:
            found = Trial(number, settings, failure=first_line_of(error))
        return replace(found, seconds=round(time.perf_counter() - began, 2))

    def _judged(self, number: int, settings: Settings) -> Trial:
        edit = self.edit(settings)
        with progress.bar(f"trial {number}", self.judge.count, "answer") as advance:
            rows = self.judge.rows(self.judge(edit, advance))
        row, cost = self.objective.row(rows), kl(rows).value
        won = gain(row)
        if not all(map(math.isfinite, (won.value, won.low, won.high, cost))):
            raise EvaluationError(f"the gain ({won.value}) or the KL ({cost}) is no finite number")
        assert row.found.edited is not None
        kept, dropped = zip(*edit.ranks.values())
        ranks = (min(kept), max(kept)), (min(dropped), max(dropped))
        return Trial(number, settings, row.found.edited.value, row.found.base.value, won, cost, ranks)


@dataclass(frozen=True)
class _Turn:
    """A trial that is to be run, and what Optuna drew for it; ``same``: one that has ended with these settings."""

    number: int
    settings: Settings
    drawn: dict[str, Any]
    same: Trial | None
    ended: int  # trials


def search(
    trials: Trials,
    bench: Bench,
    space: Space,
    *,
    wanted: int,
    seed: int,
    max_kl: float,
    timeout: float | None = None,
) -> list[Trial]:
    """Run trials until there are as many as wanted; all of them, in their order.

    Args:
        timeout: seconds after which no further trial is begun; the untuned default always is.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    known = space.distributions()

    def turn() -> _Turn | None:
        number = trials.next(wanted, lambda: time.monotonic() >= deadline)
        return None if number is None else _turn(trials, space, seed, number)

    on_main(lambda: trials.resume(known, max_kl))
    before = on_main(lambda: len(trials.ended()))
    with progress.bar("trials", wanted, "trial") as advance:
        advance(min(before, wanted))
        while (own := on_main(turn)) is not None:
            found = replace(own.same, number=own.number) if own.same else bench.trial(own.number, own.settings)
            on_main(lambda: trials.add(found, own.drawn, known, max_kl))  # noqa: B023
            advance(max(own.ended + 1 - before, 0))  # with those of other workers
            before = own.ended + 1
    return on_main(lambda: trials.ended())


def _turn(trials: Trials, space: Space, seed: int, number: int) -> _Turn:
    first, done = starts(space), trials.ended()
    if number < len(first):
        settings = first[number]
        drawn = space.drawn(settings)
    else:
        drawn = _proposed(trials, space.distributions(), seed, number)
        settings = space.settings(drawn)
    same = next((trial for trial in done if _key(trial.settings) == _key(settings)), None)
    return _Turn(number, settings, drawn, same, len(done))


def _proposed(trials: Trials, distributions: dict[str, BaseDistribution], seed: int, number: int) -> dict[str, Any]:
    """The next settings: asked of a copy in memory, since the journal waits for the disk at every step."""
    import numpy as np
    import optuna
    from optuna.samplers import TPESampler

    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    # Each setting by itself, as Optuna does for several objectives: trial 0 may lie outside of the space.
    sampler = TPESampler(seed=own, multivariate=False, constant_liar=False)
    copy = optuna.create_study(directions=trials.study.directions, sampler=sampler)
    copy.add_trials(trials.frozen())
    return dict(copy.ask(distributions).params)


def _key(settings: Settings) -> str:
    """By which they are known again: a rank of 1 is not a share of 1.0."""
    return json.dumps(settings, sort_keys=True)


def compare(judge: Judge, edits: Mapping[str, Edit], repeated: Collection[int] = ()) -> dict[str, list[Row]]:
    """The one look at the held-back data: comparison -> every measure with its paired difference.

    Args:
        edits: "chosen", and "default" where there is one.
        repeated: places of rows that do not count.
    """
    found = {"base": judge.base}
    with progress.bar("held-back data", len(edits) * judge.count, "answer") as advance:
        found |= {name: judge(edit, advance) for name, edit in edits.items()}
    counted = {
        name: {unit: [r for r in rows if unit == NEUTRAL or r["id"] not in repeated] for unit, rows in units.items()}
        for name, units in found.items()
    }
    pairs = {CHOSEN_DEFAULT: ("chosen", "default"), CHOSEN_BASE: ("chosen", "base"), DEFAULT_BASE: ("default", "base")}
    return {
        name: judge.rows(counted[one], against=counted[other])
        for name, (one, other) in pairs.items()
        if one in counted and other in counted
    }


def looked_once(trials: Trials, number: int, look: Callable[[], dict[str, list[Row]]]) -> dict[str, list[Row]]:
    """What the look at the held-back data shows, or what another worker has seen there."""
    seen = on_main(lambda: trials.look(number))
    if seen is not None:
        return {name: [Row.from_json(row) for row in rows] for name, rows in seen.items()}
    found = look()
    rows: Rows = {name: [row.to_json() for row in rows] for name, rows in found.items()}
    on_main(lambda: trials.looked(number, rows))
    return found
