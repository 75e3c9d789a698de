"""The trials of a search that have ended, in Optuna's study of two objectives (gain, KL): of one run in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sea_bake.fitting.tuning.results import DEFAULT, Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

RECORD = "record"  # the attribute of Optuna's trial that holds ours
LOOKS = "looks"  # the attribute of the study that names the trials ever compared on the held-back data
Rows = dict[str, list[dict[str, Any]]]  # comparison -> rows as in evaluation.json


class Trials:
    """Of a run that is alone with its study. A trial is written when it is finished, at one stroke: of one that a kill
    cuts off nothing is left.
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    def frozen(self) -> list[FrozenTrial]:
        """As Optuna holds them, in the order of our numbers; of two with one number the first counts."""
        found: dict[int, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if RECORD in trial.user_attrs:
                found.setdefault(trial.user_attrs[RECORD]["number"], trial)
        return [found[number] for number in sorted(found)]

    def ended(self) -> list[Trial]:
        return [Trial.from_json(trial.user_attrs[RECORD]) for trial in self.frozen()]

    def next(self, wanted: int, late: Callable[[], bool]) -> int | None:
        """Number of the trial to run now; None when there are as many as wanted, or, but for the first, it is late."""
        number = len(self.ended())
        return number if number < wanted and (number == DEFAULT or not late()) else None

    def add(self, trial: Trial, drawn: Mapping[str, Any], known: Mapping[str, BaseDistribution], max_kl: float) -> None:
        """Write down a trial that has ended, with what Optuna drew for it out of its distributions."""
        from optuna.trial import TrialState, create_trial

        ended: dict[str, Any] = {
            "values": [trial.gain.value, trial.kl],
            "constraints": {"KL": trial.kl - max_kl},
        }
        self.study.add_trial(
            create_trial(
                params=dict(drawn),
                distributions={name: known[name] for name in drawn},
                user_attrs={RECORD: trial.to_json()},
                **({"state": TrialState.FAIL} if trial.failure else ended),
            )
        )

    def resume(self, known: Mapping[str, BaseDistribution], max_kl: float) -> None:
        """Write down what an earlier run of this worker could not."""

    @property
    def looks(self) -> list[int]:
        """Trials that were ever compared on the held-back data, or were about to be."""
        return list(self.study.user_attrs.get(LOOKS, ()))

    def look(self, number: int) -> Rows | None:
        """What another worker saw as it compared this trial on the held-back data; None: this one is to look, now."""
        self.study.set_user_attr(LOOKS, list(dict.fromkeys([*self.looks, number])))
        return None

    def looked(self, number: int, rows: Rows) -> None:
        """What was seen."""

    def close(self) -> None:
        """Leave: what was begun is free for others."""
