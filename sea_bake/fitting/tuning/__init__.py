"""Settings that work, found on data that are not reported on: many edits on one model, gain against KL (extra
``tune``).

Not every gain is one: of many trials the best looks better on the data that it was chosen on than it is. So what is
chosen is compared with the untuned default once more, on data that no trial has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sea_bake import demonstrations as demos
from sea_bake.activations import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_NEUTRAL,
    DEFAULT_NEW_TOKENS,
    DEFAULT_POSITION,
    DEFAULT_SEED,
    check_settings,
)
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact import is_artefact
from sea_bake.demonstrations import Demonstration
from sea_bake.errors import EvaluationError, SettingError, missing_extra
from sea_bake.evaluation import damage
from sea_bake.evaluation.doors import BASE, Doors
from sea_bake.fitting.tuning import pareto as reporting
from sea_bake.fitting.tuning import splits
from sea_bake.fitting.tuning.folder import Folder
from sea_bake.fitting.tuning.objective import Objective
from sea_bake.fitting.tuning.results import Trial, Tuning
from sea_bake.fitting.tuning.running import Run
from sea_bake.fitting.tuning.space import Range, Space, untuned
from sea_bake.fitting.tuning.trials import Trials
from sea_bake.fitting.tuning.unsent import UNSENT
from sea_bake.fitting.tuning.workers import Shared
from sea_bake.methods.layers import check_layers
from sea_bake.methods.table import check_count, named
from sea_bake.methods.table import check_settings as check_method
from sea_bake.model.processes import check_alike, in_step, is_main_process, on_main

_PACKAGES = {"optuna": "optuna", "lm_eval": "lm-eval", "matplotlib": "matplotlib"}

__all__ = ["Objective", "Range", "Space", "Trial", "Tuning", "tune", "untuned"]


def tune(
    model: str | Path,
    demonstrations: Sequence[Demonstration] | None = None,
    *,
    output: str | Path,
    objective: str = "demonstrations",
    data: str | Path | None = None,
    select: int | None = None,
    confirm: int | None = None,
    space: Space | None = None,
    trials: int = 20,
    timeout: float | None = None,
    max_kl: float = 0.1,
    seed: int = DEFAULT_SEED,
    neutral_text: str | Path | None = None,
    position: str = DEFAULT_POSITION,
    neutral: str = DEFAULT_NEUTRAL,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    prompt_format: PromptFormat | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    overwrite: bool = False,
    storage: str | None = None,
    study: str = "sea-bake",
    say: Callable[[str], None] = lambda text: None,
) -> Tuning:
    """Search the settings of a fit for the largest gain that costs little, and see whether it lasts.

    The data come in three parts without overlap: projectors are fitted on the first, trials scored on the second, and
    the chosen edit is compared with the untuned default and the base on the third, once. Trial 0 has the settings of an
    untuned fit, at the method's own strength. Of the Pareto front (gain against KL from the base on neutral text) the
    trial with the largest gain among those within ``max_kl`` is chosen.

    Args:
        model: the base: folder (or PEFT adapter that names its base), .gguf file or Hub id.
        demonstrations: triples. Default: the built-in set.
        output: folder for the edit, the results and the journal. A stopped search goes on there, and a finished one
            with more ``trials``.
        objective: what to gain. "demonstrations": log-likelihood margin of positive over negative answers, per token,
            on triples kept back from the fit. Or TASK[:MEASURE] of a benchmark: truthfulqa_mc2:margin, truthfulqa_mc1,
            bbq:acc, bbq:ambig.acc, bbq:disambig.bias, hellaswag, ...
        data: folder with the benchmark's files. Default: from the Hub.
        select: examples that trials are scored on, 10 or more. Default: a quarter of the triples (all of a question on
            one side), or a benchmark's first 100 rows.
        confirm: examples held back for one comparison at the end, 20 or more. Default: another quarter, or the next 100
            rows that ask something else (of BBQ: come from other scenarios).
        space: the settings that are searched.
        trials: settings to try, the untuned default among them.
        timeout: begin no further trial after this many seconds. Default: no limit.
        max_kl: largest KL of the chosen edit from the base, in nats per token of neutral text: how far next-token
            distributions may move. On SmolLM2-135M 0.04 changed one top token in ten, and 0.7 doubled the perplexity.
        seed: of the split of the demonstrations and of the proposals.
        neutral_text: file of neutral paragraphs for KL, separated by empty lines; half are held back.
            Default: built-in.
        position, neutral, max_new_tokens, batch_size: see :func:`sea_bake.activations.collect_sites`.
        prompt_format: see :func:`sea_bake.activations.collect_sites`.
        revision: see :func:`sea_bake.model.loading.load_model`.
        dtype, device: see :func:`sea_bake.model.loading.load_model`.
        overwrite: replace what a search of other data or settings has left in the output.
        storage: where several workers share their trials, each with an output of its own: the URL of a database
            (postgresql://USER@HOST/NAME) or the path of a journal file on a disk that all see. Default: a journal in
            the output, of this run alone.
        study: name of the search in the storage.
        say: called with sentences for people.

    Raises:
        MissingExtraError: Optuna, the harness or matplotlib is not installed.
        SettingError: a setting or number out of range, or ``data`` without a benchmark.
        DemonstrationError: too few demonstrations for three parts.
        EvaluationError: an unknown objective or measure, missing data, too few rows; or every trial failed.
        OutputError: the output holds something else, or another search; a storage that is down, or whose search of
            that name is another one.
        CheckpointError, FamilyError: the model cannot be loaded or edited.
    """
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise missing_extra(package, "tune", "Tuning")
    space = (space or Space()).check()
    _check_numbers(trials, timeout, max_kl, seed)
    splits.check_counts(select=select, confirm=confirm)
    check_settings(position=position, neutral=neutral, max_new_tokens=max_new_tokens, batch_size=batch_size)
    goal = Objective.parse(objective)
    if data is not None and not goal.needs_data:
        raise SettingError(
            "--data holds a benchmark's files, and the objective is demonstrations: name a benchmark (--objective), or "
            "drop --data"
        )
    texts = splits.halves(damage.read_texts(neutral_text))
    folder = on_main(lambda: Folder(output, overwrite=overwrite))
    if is_artefact(model):
        raise EvaluationError(f"{Path(model).name} is edited already: tune its base")
    doors = Doors.of(model, revision=revision, dtype=dtype, device=device)
    for layers in dict.fromkeys([*space.layers, untuned()["layers"]]):
        check_layers(doors.base, layers)
    for method in space.method:
        check_method(method=method)
    triples = demos.builtin() if demonstrations is None else demonstrations
    if goal.needs_data:
        parts = splits.by_rows(goal, data, triples, select, confirm)
    else:
        fewest = max(named(method).fewest for method in space.method)
        parts = splits.by_question(triples, select, confirm, seed, fewest)
    for method in space.method:
        check_count(method, len(parts.fit))
    collecting: dict[str, Any] = {"position": position, "neutral": neutral, "max_new_tokens": max_new_tokens}
    collecting |= {"seed": seed, "batch_size": batch_size}
    form = prompt_format or PromptFormat()
    inputs: dict[str, Any] = {
        "model": on_main(lambda: doors.identity(BASE)),
        "objective": goal.name,
        "data": parts.to_json(),
        "space": space.to_json(),
        "default": untuned(),
        "seed": seed,
        "max_kl": max_kl,
        "neutral_text": texts,
        "activations": collecting | form.to_json(),
        "versions": {name: version(name) for name in ("sea-bake", "optuna", "lm-eval", "transformers", "torch")},
    }
    check_alike({"base": doors.describe(), **inputs, **doors.here()})
    with ExitStack() as stack:
        kept: Any = None  # in the other processes
        with in_step():
            if is_main_process():
                kept = _begun(stack, folder, inputs, parts.marks, storage, study, say)
        judging = {"tasks": [goal.task] if goal.needs_data else [], "data": data, "batch_size": batch_size, "say": say}
        run = Run(folder, kept, doors, goal, space, parts, texts, collecting, form, judging)
        tuning = run.go(wanted=trials, timeout=timeout, seed=seed, max_kl=max_kl)
        told = {key: inputs[key] for key in ("objective", "space", "seed", "versions")}
        tuning.told.update(told, base=doors.base.name, splits=parts.to_json())
        on_main(lambda: reporting.write(tuning, folder.path))
    return tuning


def _begun(
    stack: ExitStack,
    folder: Folder,
    inputs: dict[str, Any],
    marks: Sequence[str],
    storage: str | None,
    study: str,
    say: Callable[[str], None],
) -> Trials:
    """The trials, in a folder that no other run is at work in until the stack ends."""
    stack.enter_context(folder.alone())
    folder.begin(inputs, marks)
    if storage is None:
        if (left := folder.path / UNSENT).exists():
            say(f"{left} stays: it is a trial of a search with --storage, and is sent when that is started here again")
        return Trials(folder.study())
    shared = Shared(storage, study, folder.path, say)
    stack.callback(shared.close)
    shared.begin(inputs)
    return shared


def _check_numbers(trials: int, timeout: float | None, max_kl: float, seed: int) -> None:
    if trials < 1:
        raise SettingError(f"trials = {trials} is less than 1")
    if timeout is not None and not 0 < timeout < math.inf:
        raise SettingError(f"timeout = {timeout} is not a number of seconds")
    if not 0 < max_kl < math.inf:
        raise SettingError(f"max_kl = {max_kl} is not a number above 0: it is in nats per token, such as 0.1")
    if seed < 0:
        raise SettingError(f"seed = {seed} is less than 0")
