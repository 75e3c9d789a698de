"""The search: Optuna proposes settings, each is fitted from saved activations and judged, and the journal keeps it.

The sampler is TPE, in its form for several objectives (Ozaki et al. 2022), which Optuna recommends for up to a thousand
trials; NSGA-II wants populations of fifty. It is told how far each trial lies beyond the KL that is allowed, so that it
does not dwell on gains that cost too much. It is seeded anew for every trial with the run's seed and the trial's
number, and sees finished trials only: a run that was killed goes on with what it would have proposed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from sea_bake.activations import Activations
from sea_bake.edit import Edit
from sea_bake.errors import ActivationError, EvaluationError, SettingError, first_line_of
from sea_bake.evaluation import Judge, Row
from sea_bake.evaluation.damage import NEUTRAL
from sea_bake.fitting import fit
from sea_bake.io import progress
from sea_bake.methods.table import named
from sea_bake.model.anatomy import Site
from sea_bake.tuning.objective import Objective, gain, kl
from sea_bake.tuning.results import CHOSEN_BASE, CHOSEN_DEFAULT, DEFAULT, DEFAULT_BASE, Trial
from sea_bake.tuning.space import Settings, Space, starts

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

RECORD = "record"  # the attribute of Optuna's trial that holds ours
_OWN_FAULTS = (SettingError, ActivationError, EvaluationError, torch.linalg.LinAlgError)  # of one trial's settings


@dataclass(frozen=True)
class Bench:
    """What a trial needs: activations of every site, the data for selection, and what to read off them."""

    activations: Mapping[str, Activations]
    judge: Judge
    objective: Objective

    def edit(self, settings: Settings) -> Edit:
        """Fitted from the saved activations: no model is run."""
        site = (named(settings["method"]).reads or Site(settings["site"])).value
        return fit(None, activations=self.activations[site], **settings)

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


def search(
    study: Study,
    bench: Bench,
    space: Space,
    *,
    trials: int,
    seed: int,
    max_kl: float,
    timeout: float | None = None,
) -> list[Trial]:
    """Run trials until there are as many as wanted; all of them, in their order.

    A trial is written into the study when it is finished, at one stroke: of one that a kill cuts off nothing is left.

    Args:
        timeout: seconds after which no further trial is begun; the untuned default always is.
    """
    from optuna.trial import TrialState, create_trial

    done = [Trial.from_json(trial.user_attrs[RECORD]) for trial in study.get_trials(deepcopy=False)]
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    distributions, first = space.distributions(), starts(space)
    with progress.bar("trials", trials, "trial") as advance:
        advance(min(len(done), trials))
        while len(done) < trials and (len(done) == DEFAULT or time.monotonic() < deadline):
            number = len(done)
            if number < len(first):
                settings = first[number]
                drawn = space.drawn(settings)
            else:
                drawn = _proposed(study, distributions, seed, number)
                settings = space.settings(drawn)
            same = next((trial for trial in done if _key(trial.settings) == _key(settings)), None)
            found = replace(same, number=number) if same else bench.trial(number, settings)
            ended: dict[str, Any] = {
                "values": [found.gain.value, found.kl],
                "constraints": {"KL": found.kl - max_kl},
            }
            study.add_trial(
                create_trial(
                    params=drawn,
                    distributions={name: distributions[name] for name in drawn},
                    user_attrs={RECORD: found.to_json()},
                    **({"state": TrialState.FAIL} if found.failure else ended),
                )
            )
            done.append(found)
            advance(1)
    return done


def _proposed(study: Study, distributions: dict[str, BaseDistribution], seed: int, number: int) -> dict[str, Any]:
    """The next settings: asked of a copy in memory, since the journal waits for the disk at every step."""
    import numpy as np
    import optuna
    from optuna.samplers import TPESampler

    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    # Each setting by itself, as Optuna does for several objectives: trial 0 may lie outside of the space.
    sampler = TPESampler(seed=own, multivariate=False, constant_liar=False)
    copy = optuna.create_study(directions=study.directions, sampler=sampler)
    copy.add_trials(study.get_trials(deepcopy=False))
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
