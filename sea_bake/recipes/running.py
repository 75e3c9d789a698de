"""Do what a recipe asks for, step by step, and only what has not been done already."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import OutputError, RecipeError, SettingError
from sea_bake.io.apart import check_apart
from sea_bake.io.leases import sweep
from sea_bake.io.staging import check_output
from sea_bake.recipes.schema import Recipe, read
from sea_bake.recipes.settings import unknown
from sea_bake.recipes.state import State, digest

if TYPE_CHECKING:
    from sea_bake.recipes.steps import Step


@dataclass
class Progress:
    """How far one step is.

    Attributes:
        step: its name.
        status: "waiting", "running", "kept" (done by an earlier run), "done", "would run", "failed" or "left out".
        why: why it runs, or what it came to.
        seconds: how long it took.
        details: what its function reported, as plain data.
    """

    step: str
    status: str = "waiting"
    why: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecipeRun:
    """What a run did.

    Attributes:
        passed: every step that it was told to do is done, and no verification failed.
        artefact: folder of the edited model.
        work: folder of edits, activations and the state.
        steps: all steps of the recipe.
    """

    passed: bool
    artefact: Path
    work: Path
    steps: list[Progress]

    def to_json(self) -> dict[str, Any]:
        steps = [vars(step) for step in self.steps]
        return {"passed": self.passed, "artefact": str(self.artefact), "work": str(self.work), "steps": steps}


def run(
    recipe: str | Path | Mapping[str, Any],
    *,
    folder: str | Path | None = None,
    until: str | None = None,
    again_from: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    watch: Callable[[Sequence[Progress]], None] | None = None,
) -> RecipeRun:
    """Fit, bake, verify, evaluate, report, export and publish as one recipe says.

    Finished steps are kept: a step runs when its settings, the base, the demonstrations or the output of a step before
    it changed, or its own output is gone; so a run that was killed goes on where it was.

    Args:
        recipe: a YAML file; sea-bake init writes one. In Python also the same as a mapping.
        folder: folder that relative paths start from. Default: the recipe's own; for a mapping, the current one.
        until: stop after this step.
        again_from: do this step and all behind it again, finished or not.
        dry_run: say which steps would run, and why. Nothing is written.
        overwrite: replace outputs of sea-bake that no run of this recipe wrote; nothing else is ever replaced.
        watch: called with all steps whenever one begins or ends.

    Raises:
        RecipeError: the recipe cannot be read (see :func:`sea_bake.recipes.schema.read`), or is being run already.
        SettingError: ``until`` or ``again_from`` is no step of it.
        OutputError: an output is there that no run of this recipe wrote.
        SeaBakeError: whatever the steps raise; the steps before are kept.
    """
    found = read(recipe, folder=folder)
    from sea_bake.recipes.steps import steps_of  # torch, for which a recipe that is refused does not wait

    return _Run(found, steps_of(found), State(found.work), overwrite, watch).go(until, again_from, dry_run)


@dataclass
class _Run:
    recipe: Recipe
    steps: list[Step]
    state: State
    overwrite: bool
    watch: Callable[[Sequence[Progress]], None] | None

    def go(self, until: str | None, again_from: str | None, dry_run: bool) -> RecipeRun:
        names = [step.name for step in self.steps]
        for asked in (until, again_from):
            if asked is not None and asked not in names:
                raise SettingError(f"'{asked}' is no step of {self.recipe.where}. {unknown(asked, names)}")
        last = names.index(until) if until is not None else len(names) - 1
        again = set(names[names.index(again_from) :]) if again_from is not None else set()
        self.progress = [Progress(name, "waiting" if i <= last else "left out") for i, name in enumerate(names)]
        with contextlib.nullcontext() if dry_run else self._alone():
            for step in self.steps[: last + 1] if not dry_run else ():
                self._check_output(step)
            passed = self._all(list(zip(self.steps, self.progress))[: last + 1], again, dry_run)
        for progress in self.progress:
            progress.status = "left out" if progress.status == "waiting" else progress.status
        return RecipeRun(passed, self.recipe.output, self.recipe.work, self.progress)

    def _all(self, steps: list[tuple[Step, Progress]], again: set[str], dry_run: bool) -> bool:
        """Do, or keep, each of the steps; False when one did not hold, and what is behind it was left."""
        running: set[str] = set()
        for step, progress in steps:
            behind = [name for name in step.after if name in running]
            inputs = None if dry_run and behind else self._inputs(step)
            why = f"behind {', '.join(behind)}" if inputs is None else self.state.why(step.name, inputs, step.output)
            if why is None and step.name in again:
                why = "asked for"
            if why is None:
                progress.status = "kept"
                self._tell()
                continue
            running.add(step.name)
            progress.why = why
            if dry_run:
                progress.status = "would run"
                continue
            if not self._do(step, progress, inputs or {}):
                return False
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other run in this work folder. The system takes the lock from a run that is killed.

        Raises:
            RecipeError: there is another.
        """
        from filelock import FileLock, Timeout

        work = self.recipe.work
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RecipeError(
                f"another run is at work in {work}: wait until it ends, or give this one another 'work' and 'output'"
            ) from None
        try:
            for path in (self.state.path, *(step.output for step in self.steps)):
                sweep(path)  # what is kept is not written again, and would keep a killed run's temporaries
            self.state = State(work)  # another run may have ended since it was read
            yield
        finally:
            if [path.name for path in work.iterdir()] == [".lock"]:  # nothing was begun
                shutil.rmtree(work)
            lock.release()

    def _do(self, step: Step, progress: Progress, inputs: dict[str, str]) -> bool:
        overwrite = self.overwrite or (step.output.exists() and self.state.may_replace(step.name, step.output))
        progress.status = "running"
        self._tell()
        began = time.perf_counter()
        try:
            self.state.begin(step.name, step.output)  # inside: a Ctrl-C may come as soon as it is on disk
            result = step.work(overwrite)
        except BaseException:
            self.state.give_up()
            progress.status, progress.why = "failed", ""  # the error says why
            self._tell()
            raise
        progress.seconds = round(time.perf_counter() - began, 2)
        progress.details = _plain(result)
        failures = getattr(result, "failures", None)
        if getattr(result, "passed", True) is not True:
            progress.status = "failed"
            progress.why = "; ".join(failures or ["it did not hold"])
            self.state.give_up(step.name)
        else:
            progress.status = "done"
            self.state.finish(step.name, inputs, step.output, progress.seconds)
        self._tell()
        return progress.status == "done"

    def _inputs(self, step: Step) -> dict[str, str]:
        """Name -> digest of everything that decides what a step makes."""
        behind = {name: self.state.output(name) for name in step.after}
        place = {"output": digest(step.output.name)}
        return {name: digest(value) for name, value in {**step.settings, **step.reads}.items()} | behind | place

    def _check_output(self, step: Step) -> None:
        """Before anything heavy: what lies where a step will write has to be its own."""
        there = step.output.exists() or step.output.is_symlink()
        if step.replaces and there and not self.overwrite and not self.state.may_replace(step.name, step.output):
            raise OutputError(
                f"{step.output} exists already, and no run of {self.recipe.where} left it so (step {step.name}): move "
                "it away, choose another output or pass --overwrite"
            )
        check_apart(step.output, [self.recipe.where], folder=False)
        if not there:
            check_output(step.output, folder=True)  # whether it can be written at all

    def _tell(self) -> None:
        if self.watch is not None:
            self.watch(self.progress)


def _plain(result: Any) -> dict[str, Any]:
    if hasattr(result, "to_json"):
        data = dict(result.to_json())
        data.pop("card", None)  # of a publish: a page of text
        return data
    return result if isinstance(result, dict) else {}
