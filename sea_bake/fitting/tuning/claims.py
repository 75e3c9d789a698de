"""Who is at what, among workers that share nothing but an Optuna storage.

A claim is a running trial in a study of its own. Its worker counts it up every few seconds; one that has stood still
for a minute, by the clock of whoever watches, is a dead worker's, and free again. Of several claims to one thing the
first counts: storages number trials in one order for all.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

BEAT, STALE = 10.0, 60.0  # seconds between two counts, and without one until a worker is taken for dead


class Claims:
    """Of the workers of one search; each worker holds one at a time.

    Args:
        storage: Optuna's ``RDBStorage`` or ``JournalStorage``.
        name: of the study that holds them.
    """

    def __init__(self, storage: Any, name: str) -> None:
        import optuna

        optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        self._storage, self._study = storage, storage.get_study_id_from_name(name)
        self._seen: dict[int, tuple[int, float]] = {}  # number of a claim -> its count, and when that was first seen
        self._mine: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def held(self) -> dict[str, int]:
        """What living workers are at -> number of the claim that counts."""
        from optuna.trial import TrialState

        now = time.monotonic()
        found: dict[str, int] = {}
        for claim in self._storage.get_all_trials(self._study, deepcopy=False, states=(TrialState.RUNNING,)):
            count, since = self._seen.get(claim.number, (None, now))
            if count != claim.user_attrs["count"]:
                self._seen[claim.number] = claim.user_attrs["count"], now
            elif now - since > STALE:
                self._end(self._id(claim.number))
                continue
            found.setdefault(str(claim.user_attrs["what"]), claim.number)
        return found

    def take(self, what: str) -> bool:
        """Claim it, unless a living worker has done so.

        Raises:
            OSError: what was written is not there.
        """
        from optuna.trial import TrialState, create_trial

        if what in self.held():
            return False
        claim = create_trial(state=TrialState.RUNNING, user_attrs={"what": what, "count": 0})
        mine = self._storage.create_new_trial(self._study, claim)
        first = self.held().get(what)
        if first is None:
            raise OSError("a claim that was written there is gone at once")
        if first != self._storage.get_trial_number_from_id(mine):
            self._end(mine)
            return False
        self._mine = mine
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, args=(mine,), daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give back what this worker has claimed, if anything."""
        mine, self._mine = self._mine, None
        if mine is not None and self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._end(mine)

    def _beat(self, mine: int) -> None:
        count = 0
        while not self._stop.wait(BEAT):
            count += 1
            with contextlib.suppress(Exception):  # a storage that is down: whoever needs it will say so
                self._storage.set_trial_user_attr(mine, "count", count)

    def _end(self, claim: int) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with contextlib.suppress(UpdateFinishedTrialError):  # by another one, at the same time
            self._storage.set_trial_state_values(claim, TrialState.FAIL)

    def _id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._study, number))
