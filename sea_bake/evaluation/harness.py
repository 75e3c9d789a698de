"""lm-evaluation-harness as a library: its tasks and its scoring (extra ``eval``).

Nothing of a score is ours: the harness builds the requests and judges the answers. Only log-likelihoods are computed in
another order (:mod:`prefixes`), and where a model has no plain cache, in the harness' own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.errors import EvaluationError, SeaBakeError
from sea_bake.evaluation.language_model import SharedPrefixLM
from sea_bake.evaluation.tasks import HERE, TASKS, Local, unknown
from sea_bake.model.placing import out_of_memory

Record = dict[str, Any]
_FEWSHOT_SEED = 1234  # the harness' own default


def load_tasks(
    names: Sequence[str],
    local: Sequence[Local] | None,
    fewshot: int | None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Name -> what the harness calls a task dictionary: one task, or those of a group.

    Args:
        local: the files to read; None takes the harness' own tasks, whose data comes from the Hub.
        fewshot: number of worked examples, where the task leaves it open; None: its own default.
        say: told which tasks do not leave it open.

    Raises:
        EvaluationError: an unknown task; data that cannot be had; no task leaves ``fewshot`` open, or one has fewer
            worked examples.
    """
    files = {task.name: task for task in local or ()}
    found = {}
    with quiet():
        manager = TaskManager(include_path=[str(p) for p in _folders(names, local)], include_defaults=False)
        for name in names:
            spec = load_yaml(HERE / f"{name}.yaml") | _absolute(files[name]) if local else _stock(name)[1]
            if isinstance(spec, str) and spec not in manager.all_tasks:
                manager = _all_tasks()
                if spec not in manager.all_tasks:
                    raise unknown(name, list(dict.fromkeys([*TASKS, *manager.all_tasks])))
            paths = ", ".join(map(str, files[name].files.values())) if local else ""
            cure = f"check {paths}" if local else "give local files with --data DIR"
            with _told(f"the data of the task {name} cannot be had", cure):
                found[name] = manager.load([spec])
                _settle(name, found[name], fewshot)
    if fewshot:
        _check_fixed(found, fewshot, say, {name for name in files if set(TASKS[name].shots) - set(files[name].files)})
    return found


@functools.cache
def _all_tasks() -> TaskManager:
    """Of the harness, thousands: reading them takes up to a minute."""
    return TaskManager()


def _settle(name: str, tasks: dict[str, Any], fewshot: int | None) -> None:
    """Numbers of worked examples: what a task's definition sets to 0 stays so, as in the harness."""
    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        count = (own or 0) if fewshot is None or own == 0 else fewshot
        task.set_config(key="num_fewshot", value=count)
        most = _worked(task) if count else 0
        if most < count:
            raise EvaluationError(f"the task {name} has worked examples for --fewshot {most}, and not for {count}")


def _worked(task: Any) -> int:
    """How many worked examples each question can have."""
    if hasattr(task, "worked"):
        return min(map(len, task.worked.values()))
    own = task.fewshot_cfg.split == task.config.test_split  # then the question itself is left out
    return len(task.fewshot_docs() or ()) - own


def _check_fixed(tasks: dict[str, Any], fewshot: int, say: Callable[[str], None], lacking: set[str]) -> None:
    fixed = [n for n, t in tasks.items() if not any(leaf.get_config("num_fewshot") for leaf in t["tasks"].values())]
    if not fixed:
        return
    missing = [(name, TASKS[name].shots.values()) for name in fixed if name in lacking]
    why = f"{', '.join(fixed)}: always without worked examples"
    why += "".join(f"; {name} would read them from {' and '.join(files)}, which is missing" for name, files in missing)
    if len(fixed) == len(tasks):
        raise EvaluationError(f"--fewshot {fewshot} is for none of the tasks ({why}): drop it")
    say(f"--fewshot {fewshot} is not for all tasks ({why})")


@contextlib.contextmanager
def _told(what: str, cure: str) -> Iterator[None]:
    """Whatever the harness raises, on data that nobody has foreseen, as an error of ours."""
    try:
        yield
    except SeaBakeError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        root: BaseException = error
        while root.__cause__ is not None:  # ``datasets`` says what is wrong in the cause of a cause
            root = root.__cause__
        reason = str(root).strip().splitlines() or [""]
        raise EvaluationError(f"{what} ({type(root).__name__}: {reason[0]}): {cure}") from error


def _absolute(local: Local) -> dict[str, Any]:
    return Local(local.name, {split: path.absolute() for split, path in local.files.items()}).sources()


def _folders(names: Sequence[str], local: Sequence[Local] | None) -> list[Path]:
    if local:
        return []
    stock = Path(lm_eval.__file__).parent / "tasks"
    return [stock / place for place in sorted({_stock(name)[0] for name in names if name in TASKS})]


def _stock(name: str) -> tuple[str, str]:
    """Folder and name of the harness' own task."""
    return (TASKS[name].stock if name in TASKS else None) or (name, name)


def count_requests(tasks: dict[str, Any], limit: int | None, offset: int) -> int:
    """What a run of these tasks asks of a model: answers to score, or to write."""
    found = 0
    for task in tasks["tasks"].values():
        rows = _rows(len(task.eval_docs), limit, offset)
        scored = task.OUTPUT_TYPE == "multiple_choice"
        with _told(*_failed(tasks)):
            found += sum(len(task.doc_to_choice(task.eval_docs[i])) for i in rows) if scored else len(rows)
    return found


def origin(tasks: dict[str, Any]) -> str:
    """Where the rows of one entry of :func:`load_tasks` come from, as text to compare."""
    names = ("dataset_path", "dataset_name", "dataset_kwargs")
    return repr(sorted([repr(task.get_config(name)) for name in names] for task in tasks["tasks"].values()))


def _failed(tasks: dict[str, Any]) -> tuple[str, str]:
    return f"the task {next(iter(tasks['groups'] or tasks['tasks']))} failed in lm-evaluation-harness", "check its rows"


def _rows(count: int, limit: int | None, offset: int) -> list[int]:
    return list(range(count)[offset : None if limit is None else offset + limit])


def run(
    lm: SharedPrefixLM,
    tasks: dict[str, Any],
    *,
    limit: int | None = None,
    offset: int = 0,
    chat: bool = False,
    form: PromptFormat | None = None,
) -> tuple[list[Record], dict[str, dict[str, float]]]:
    """All examples of one entry of :func:`load_tasks`, as records, and the harness' own figures, with what
    :mod:`conditions` says of them.

    A record: "task" (leaf), "id" (row), "hash" of the row, "values" (metric -> number), "doc" (the row as the harness
    saw it), and for answers that were scored "choices", "loglikelihoods", "greedy", "tokens", else "response".

    Raises:
        EvaluationError: ``offset`` lies behind the last row; NaN logits; no memory.
    """
    chosen = {name: _rows(len(task.eval_docs), limit, offset) for name, task in tasks["tasks"].items()}
    empty = [name for name, rows in chosen.items() if not rows]
    if empty:
        rows = len(tasks["tasks"][empty[0]].eval_docs)
        raise EvaluationError(f"the task {empty[0]} has no rows after offset {offset}: there are {rows}")
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)  # or the second door would be shown other worked examples
    # Without an offset just as the harness' command line does it, to the same figures.
    which: dict[str, Any] = {"limit": limit} if not offset else {"samples": chosen}
    lm.form = form or PromptFormat()
    which |= {"system_instruction": lm.form.system} if chat else {}
    with quiet(), _told(*_failed(tasks)):
        out = evaluate(
            lm, tasks, bootstrap_iters=0, log_samples=True, apply_chat_template=chat, fewshot_as_multiturn=chat, **which
        )
        records = [record for name, samples in out["samples"].items() for record in _records(name, samples, lm)]
    figures = {name: _numbers(values) for name, values in out["results"].items()}
    for name, samples in out["samples"].items():
        shots = float(tasks["tasks"][name].get_config("num_fewshot") or 0)
        figures[name] = figures.get(name, {}) | {"num_fewshot": shots} | _cuts(samples, lm)
    return records, figures


def _cuts(samples: list[dict[str, Any]], lm: SharedPrefixLM) -> dict[str, float]:
    """How many requests there were, how many of them were cut, and by how many tokens at most."""
    asked = {sample["doc_id"]: sample["arguments"] for sample in samples}  # there is a sample for every filter
    texts = [
        tuple(part for part in told if isinstance(part, str)) for arguments in asked.values() for told in arguments
    ]
    cut = [lm.cut[told] for told in texts if told in lm.cut]
    return {"requests": float(len(texts)), "truncated": float(len(cut)), "tokens_cut": float(max(cut, default=0))}


def _records(name: str, samples: list[dict[str, Any]], lm: SharedPrefixLM) -> Iterator[Record]:
    found: dict[int, Record] = {}
    for sample in samples:
        record = found.setdefault(
            sample["doc_id"],
            {"task": name, "id": sample["doc_id"], "hash": sample["doc_hash"], "doc": sample["doc"], "values": {}},
        )
        tail = "" if sample["filter"] == "none" or len({s["filter"] for s in samples}) == 1 else f",{sample['filter']}"
        record["values"] |= {f"{m}{tail}": v for m, v in _numbers({m: sample[m] for m in sample["metrics"]}).items()}
        first = sample["resps"][0][0]
        if isinstance(first, str):
            record["response"] = first
        elif isinstance(first, tuple | list):
            record["choices"] = [arguments[1] for arguments in sample["arguments"]]
            record["loglikelihoods"] = [resps[0][0] for resps in sample["resps"]]
            record["greedy"] = [resps[0][1] for resps in sample["resps"]]
            record["tokens"] = [lm.lengths.get(tuple(arguments), 0) for arguments in sample["arguments"]]
    yield from found.values()


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """What is a number among them."""
    kept = {key: value for key, value in values.items() if isinstance(value, int | float) or hasattr(value, "item")}
    return {key: float(value) for key, value in kept.items() if getattr(value, "ndim", 0) == 0}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The harness and ``datasets`` say only what is wrong, and our bar is the only one."""
    import datasets
    from lm_eval.api import task as building

    bar, building.tqdm = building.tqdm, functools.partial(building.tqdm, disable=True)
    loggers = {name: logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers")}
    levels = {name: logger.level for name, logger in loggers.items()}
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        building.tqdm = bar
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
        if not bars:
            datasets.enable_progress_bars()
