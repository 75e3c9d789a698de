"""The trials of a search that several workers share, each with its own model and folder, in one Optuna storage.

Workers come and go. A trial belongs to who claims its number; a dead worker's claim is free after a minute. What a
worker has measured while the storage is down waits in its folder, and goes there with its next start.

Figures of the held-back data are of one look for all. A worker that dies at it has shown its figures to nobody, and
another looks in its place: at most one look is counted, and told of.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sea_bake.errors import OutputError
from sea_bake.fitting.tuning import storage
from sea_bake.fitting.tuning.claims import Claims
from sea_bake.fitting.tuning.results import DEFAULT, Trial
from sea_bake.fitting.tuning.trials import Rows, Trials
from sea_bake.fitting.tuning.unsent import Unsent
from sea_bake.io import interrupts

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

POLL, PATIENCE = 1.0, 120.0  # seconds between two looks at the others, and until a storage is taken for down
INPUTS, HELD_BACK = "inputs", "held back"
Answer = TypeVar("Answer")


class Shared(Trials):
    """Those of the search of this name, which begins with the first worker.

    Args:
        url: see :func:`sea_bake.fitting.tuning.storage.connect`.
        folder: of this worker.
        say: called with sentences for people.

    Raises:
        SettingError, MissingExtraError, OutputError: see :func:`sea_bake.fitting.tuning.storage.connect`.
    """

    def __init__(self, url: str, name: str, folder: Path, say: Callable[[str], None]) -> None:
        import optuna

        self._url, self._name, self._unsent, self._say = url, name, Unsent(folder, name), say
        self._said = ""
        opened = storage.connect(url)
        with storage.reached(url):
            made = optuna.create_study(
                storage=opened, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
            )
            super().__init__(made)
            self._claims = Claims(opened, f"{name}: at work")

    def begin(self, inputs: dict[str, Any]) -> None:
        """Join the search of these inputs, or begin it.

        Raises:
            OutputError: the search of this name is another one; or a trial of another one waits in the folder.
        """
        inputs = json.loads(json.dumps(inputs))
        self._unsent.begin(inputs)
        self._wait(lambda: self._claims.take("the beginning"))
        try:
            known = self._patiently(lambda: self.study.user_attrs.get(INPUTS))
            if known is None:
                self._patiently(lambda: self.study.set_user_attr(INPUTS, inputs))
        finally:
            self.close()
        other = [name for name in {**(known or inputs), **inputs} if (known or inputs).get(name) != inputs.get(name)]
        if other:
            raise OutputError(
                f"the search '{self._name}' in {storage.shown(self._url)} is another one (other "
                f"{', '.join(other).replace('_', ' ')}): start all workers with the same command line, files and "
                "versions, or choose another --study"
            )

    def frozen(self) -> list[FrozenTrial]:
        return self._patiently(super().frozen)

    def next(self, wanted: int, late: Callable[[], bool]) -> int | None:
        """Number of a trial that nobody is at, claimed. Waits for those that others are at: one of them may die. Late
        workers wait until nobody is at any.
        """
        idle = False
        while missing := [n for n in range(wanted) if n not in {trial.number for trial in self.ended()}]:
            held = self._patiently(self._claims.held)
            free = [n for n in missing if _trial(n) not in held and (n == DEFAULT or not late())]
            for number in free[:1]:
                if self._patiently(lambda: self._claims.take(_trial(number))):  # noqa: B023
                    if number not in {trial.number for trial in self.ended()}:
                        return number
                    self.close()  # it has ended as we came
            if free:
                continue
            at = [what for what in held if what.startswith(_trial(""))]
            if not at and idle:
                return None
            idle = not at  # twice: a worker may be between two of them
            self._wait_a_little(f"waiting for other workers: {', '.join(at)}" if at else "")
        return None

    def add(self, trial: Trial, drawn: Mapping[str, Any], known: Mapping[str, BaseDistribution], max_kl: float) -> None:
        try:
            self._patiently(lambda: super(Shared, self).add(trial, drawn, known, max_kl))
            if trial.number not in {one.number for one in self.ended()}:
                raise OutputError(f"the storage {storage.shown(self._url)} does not keep what is written to it")
        except (OutputError, KeyboardInterrupt) as error:
            self._unsent.keep(trial, drawn)
            with contextlib.suppress(OutputError):
                self.close()
            if isinstance(error, KeyboardInterrupt):
                raise
            raise OutputError(
                f"{error}. Trial {trial.number} waits in {self._unsent.path} for this line's next start"
            ) from error
        self.close()

    def resume(self, known: Mapping[str, BaseDistribution], max_kl: float) -> None:
        if kept := self._unsent.read(known):
            trial, drawn = kept
            if trial.number in {one.number for one in self.ended()}:
                self._say(f"trial {trial.number}, which waited to be sent, has ended there meanwhile")
            else:
                self.add(trial, drawn, known, max_kl)
            self._unsent.sent()

    @property
    def looks(self) -> list[int]:
        return self._patiently(lambda: super(Shared, self).looks)

    def look(self, number: int) -> Rows | None:
        """By one worker at a time; whoever comes later is given what was seen. Of one that dies before it has said what
        it saw, the look falls to another, and counts once.
        """
        while (seen := self._patiently(lambda: self.study.user_attrs.get(f"{HELD_BACK} {number}"))) is None:
            if self._patiently(lambda: self._claims.take("the held-back data")):
                if self._patiently(lambda: self.study.user_attrs.get(f"{HELD_BACK} {number}")) is None:
                    self._patiently(lambda: super(Shared, self).look(number))
                    return None
                self.close()
                continue
            self._wait_a_little("waiting for the worker that compares on the held-back data")
        return dict(seen)

    def looked(self, number: int, rows: Rows) -> None:
        self._patiently(lambda: self.study.set_user_attr(f"{HELD_BACK} {number}", rows))
        self.close()

    def close(self) -> None:
        with storage.reached(self._url):
            self._claims.release()

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """A call of the storage, again and again for as long as one may hope.

        Raises:
            OutputError: it was down all the time.
        """
        end, pause = time.monotonic() + PATIENCE, POLL
        while True:
            try:
                return call()
            except storage.troubles() as error:
                if time.monotonic() + pause > end:
                    raise storage.unreachable(self._url, error) from None
                self._wait_a_little(f"the storage does not answer: trying for {PATIENCE:.0f} seconds", pause)
                pause = min(2 * pause, 15.0)

    def _wait(self, until: Callable[[], bool]) -> None:
        while not self._patiently(until):
            self._wait_a_little("waiting for other workers")

    def _wait_a_little(self, why: str, seconds: float | None = None) -> None:
        if why and why != self._said:
            self._say(why)
            self._said = why
        interrupts.check()
        time.sleep(POLL if seconds is None else seconds)


def _trial(number: int | str) -> str:
    return f"trial {number}"
