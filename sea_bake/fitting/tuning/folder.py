"""The folder that a search works in: what it was asked for, Optuna's journal of its trials, and saved activations.

A run that was killed goes on there; one of other settings does not.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake import demonstrations as demos
from sea_bake.activations import Activations
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.demonstrations import Demonstration
from sea_bake.errors import ActivationError, CheckpointError, OutputError
from sea_bake.fitting.tuning.trials import LOOKS
from sea_bake.io import leases
from sea_bake.io.files import read_json, write_json
from sea_bake.io.staging import check_output, staged_file
from sea_bake.io.typed import build
from sea_bake.model.fingerprint import BaseModel

if TYPE_CHECKING:
    from optuna import Study

RUN, JOURNAL, FITTED_ON = "run.json", "journal.log", "fit.jsonl"
EDIT, RESULT, SUMMARY, FIGURES = "edit.safetensors", "tune.json", "tune.md", ("pareto.png", "pareto.svg")
_WRITTEN = (RUN, FITTED_ON, EDIT, RESULT, SUMMARY, *FIGURES)
_FORMAT = "sea_bake.tuning-run"


@dataclass(frozen=True)
class Run:
    """What a search was asked for, as it is written down.

    Attributes:
        inputs: name -> what it is known by; empty before the first run.
        held_back: marks of the questions that are held back.
        spent: mark -> number of choices that it had decided on before this run.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    held_back: list[str] = field(default_factory=list)
    spent: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        """Raises ValueError where it is not what :meth:`to_json` gives."""
        if data.get("format") != _FORMAT:
            raise ValueError(f"its format is {data.get('format')!r:.40}, not '{_FORMAT}'")
        if "inputs" not in data:
            raise ValueError("inputs is missing")
        return build(cls, data)


class _Alone:
    """In the place of Optuna's lock, a file that a kill leaves: :meth:`Folder.alone` keeps other runs out."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Folder:
    """Opened for one run, whose inputs are a plain mapping: name -> what it is known by.

    Args:
        overwrite: replace what a run of other inputs has left. One of these very inputs goes on all the same.

    Attributes:
        looks_before: choices that the held-back data, or some of them, have decided on in runs that were replaced here.

    Raises:
        OutputError: the folder holds something else, or another run's trials.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(os.path.expanduser(path)).absolute()
        self.overwrite = overwrite
        self.looks_before = 0
        leases.sweep(self.path / RUN)  # all that a run has left that was killed at its very first step
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            check_output(self.path / RUN, folder=False)
        elif not self.path.is_dir() or not (self.path / RUN).is_file():
            raise OutputError(f"{self.path} exists and holds no search: choose another output")

    def begin(self, inputs: dict[str, Any], held_back: Sequence[str] = ()) -> None:
        """Write down what is asked for, or go on with what was asked for before. A run of which no trial has ended is
        replaced; what another one has found stays until this one has found something in its place.

        Args:
            held_back: marks of the questions that are held back. On how many choices each has decided is kept,
                whatever else is replaced.

        Raises:
            OutputError: that was something else, and ``overwrite`` is off.
        """
        inputs = json.loads(json.dumps(inputs))
        run = self._run()
        before, spent = run.inputs, run.spent
        if before != inputs:
            trials, looks = self._ended()
            if trials and before and not self.overwrite:
                names = [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)]
                raise OutputError(
                    f"{self.path} holds the trials of another search (other {', '.join(names).replace('_', ' ')}): "
                    "choose another output, or pass --overwrite"
                )
            spent |= {mark: spent.get(mark, 0) + looks for mark in run.held_back if looks}
            if looks:  # counted before they go, whatever happens next
                self._write(Run(before, [], spent))
            stale = [self.path / JOURNAL]
            if before.get("model") != inputs.get("model"):  # their fingerprint is a sample of the weights
                stale += self.path.glob("activations-*.safetensors")
            for path in stale:
                path.unlink(missing_ok=True)
        if before != inputs or run.held_back != list(held_back):
            self._write(Run(inputs, list(held_back), spent))
        self.looks_before = max((spent.get(mark, 0) for mark in held_back), default=0)

    def _write(self, run: Run) -> None:
        with staged_file(self.path / RUN, overwrite=True) as stage:
            write_json(stage, run.to_json())

    def _run(self) -> Run:
        if not (self.path / RUN).is_file():
            return Run()
        try:
            return Run.from_json(read_json(self.path / RUN))
        except (CheckpointError, ValueError) as error:
            if self.overwrite:
                return Run()
            raise OutputError(f"{self.path / RUN} is damaged ({error}): remove it, or pass --overwrite") from error

    def _ended(self) -> tuple[bool, int]:
        """Whether a trial has, and how many choices were compared on the held-back data."""
        if not (self.path / JOURNAL).is_file():
            return False, 0
        try:
            study = self.study()
        except OutputError:
            return True, 0  # there were trials, for all that can be told
        return bool(study.trials), len(study.user_attrs.get(LOOKS, ()))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One run at a time. The system lets the lock go when a run is killed.

        Raises:
            OutputError: another one is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in (*_WRITTEN, *(path.name for path in self.path.glob("activations-*"))):
                leases.sweep(self.path / name)
            yield
        except BlockingIOError as error:
            raise OutputError(f"another search is at work in {self.path}: wait for its end") from error
        finally:
            os.close(folder)

    def study(self) -> Study:
        """Optuna's study of two objectives (gain, KL), from its journal if there is one.

        Raises:
            OutputError: the journal is damaged.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.path / JOURNAL
        if path.is_file():
            whole, _, half = path.read_bytes().rpartition(b"\n")
            if half:  # a line that a kill cut off
                os.truncate(path, len(whole) + 1 if whole else 0)
        lock: Any = _Alone()
        try:
            storage = JournalStorage(JournalFileBackend(str(path), lock))
            return optuna.create_study(
                storage=storage, study_name="sea-bake", directions=["maximize", "minimize"], load_if_exists=True
            )
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} is damaged ({error}): remove it, or choose another output") from error

    def triples(self, chosen: Sequence[Demonstration]) -> Sequence[Demonstration]:
        """The demonstrations of the fit as something that can be found again: ``reproduce`` asks where they are from.

        Those that know it already are left as they are; a part of them is written down here.
        """
        if hasattr(chosen, "origin"):
            return chosen
        path = self.path / FITTED_ON
        rows = [{key: text for key, text in asdict(triple).items() if text is not None} for triple in chosen]
        with staged_file(path, overwrite=True) as stage:
            stage.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return demos.load(path, format="triples")

    def activations(
        self,
        site: str,
        base: BaseModel,
        triples: Sequence[Demonstration],
        settings: dict[str, Any],
        form: PromptFormat,
    ) -> Activations | None:
        """Those of an earlier run on the same model and demonstrations, taken in the same way; else None."""
        path = self.path / f"activations-{site}.safetensors"
        if not path.is_file():
            return None
        try:
            found = Activations.load(path)
        except ActivationError:
            return None
        wanted = {**settings, "demonstrations_sha256": demos.digest(triples)}
        if settings["neutral"] != "generate":
            wanted["max_new_tokens"] = None  # nothing is generated
        wanted |= {name: value for name, value in form.to_json().items() if name not in ("chat_template", "date")}
        if form.date is not None:  # else that of the day on which they were collected
            wanted["date"] = form.to_json()["date"]
        same = all(found.recipe.get(name) == value for name, value in wanted.items())
        return found if same and found.site.value == site and found.base == base else None

    def keep(self, site: str, found: Activations) -> None:
        found.save(self.path / f"activations-{site}.safetensors", overwrite=True)
