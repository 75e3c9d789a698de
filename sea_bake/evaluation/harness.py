"""lm-evaluation-harness as a library: its tasks and its scoring (extra ``eval``).

Nothing of a score is ours: the harness builds the requests and judges the answers. Only log-likelihoods are computed in
another order (:mod:`prefixes`), and where a model has no plain cache, in the harness' own.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from sea_bake.errors import EvaluationError
from sea_bake.evaluation.language_model import SharedPrefixLM
from sea_bake.evaluation.tasks import HERE, TASKS, Local, unknown

Record = dict[str, Any]
_FEWSHOT_SEED = 1234  # the harness' own default


def load_tasks(names: Sequence[str], local: Sequence[Local] | None, fewshot: int | None) -> dict[str, dict[str, Any]]:
    """Name -> what the harness calls a task dictionary: one task, or those of a group.

    Args:
        local: the files to read; None takes the harness' own tasks, whose data comes from the Hub.
        fewshot: number of worked examples, where the task leaves it open; None: its own default.

    Raises:
        EvaluationError: an unknown task, or data that cannot be had.
    """
    files = {task.name: task for task in local or ()}
    found = {}
    with quiet():
        manager = TaskManager(include_path=[str(p) for p in _folders(names, local)], include_defaults=False)
        for name in names:
            spec = load_yaml(HERE / f"{name}.yaml") | _absolute(files[name]) if local else _stock_name(name)
            if isinstance(spec, str) and spec not in manager.all_tasks:
                manager = TaskManager()  # all of the harness' thousands: a minute
                if spec not in manager.all_tasks:
                    raise unknown(name, list(dict.fromkeys([*TASKS, *manager.all_tasks])))
            try:
                found[name] = manager.load([spec])
            except Exception as error:
                cure = "check the file" if local else "give local files with --data DIR"
                reason = str(error).strip().splitlines() or [""]
                raise EvaluationError(
                    f"the data of the task {name} cannot be had ({type(error).__name__}: {reason[0]}): {cure}"
                ) from error
            for task in found[name]["tasks"].values():
                shots = task.get_config("num_fewshot")
                task.set_config(key="num_fewshot", value=(shots or 0) if fewshot is None or shots == 0 else fewshot)
    return found


def _absolute(local: Local) -> dict[str, Any]:
    return Local(local.name, {split: path.absolute() for split, path in local.files.items()}).sources()


def _folders(names: Sequence[str], local: Sequence[Local] | None) -> list[Path]:
    if local:
        return []
    stock = Path(lm_eval.__file__).parent / "tasks"
    places = {TASKS[name].stock[0] if TASKS[name].stock else name for name in names if name in TASKS}  # type: ignore[index]
    return [stock / place for place in sorted(places)]


def _stock_name(name: str) -> str:
    stock = TASKS[name].stock if name in TASKS else None
    return stock[1] if stock else name


def count_requests(tasks: dict[str, Any], limit: int | None, offset: int) -> int:
    """What a run of these tasks asks of a model: answers to score, or to write."""
    found = 0
    for task in tasks["tasks"].values():
        rows = _rows(len(task.eval_docs), limit, offset)
        scored = task.OUTPUT_TYPE == "multiple_choice"
        found += sum(len(task.doc_to_choice(task.eval_docs[i])) for i in rows) if scored else len(rows)
    return found


def _rows(count: int, limit: int | None, offset: int) -> list[int]:
    return list(range(count))[offset : None if limit is None else offset + limit]


def run(
    lm: SharedPrefixLM, tasks: dict[str, Any], *, limit: int | None = None, offset: int = 0, chat: bool = False
) -> tuple[list[Record], dict[str, dict[str, float]]]:
    """All examples of one entry of :func:`load_tasks`, as records, and the harness' own figures.

    A record: "task" (leaf), "id" (row), "hash" of the row, "values" (metric -> number), "doc" (the row as the harness
    saw it), and for answers that were scored "choices", "loglikelihoods", "greedy", "tokens", else "response".

    Raises:
        EvaluationError: ``offset`` lies behind the last row; NaN logits; no memory.
    """
    chosen = {name: _rows(len(task.eval_docs), limit, offset) for name, task in tasks["tasks"].items()}
    empty = [name for name, rows in chosen.items() if not rows]
    if empty:
        raise EvaluationError(f"the task {empty[0]} has no rows behind offset {offset}: it has fewer than that")
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)  # or the second door would be shown other worked examples
    with quiet():
        # Without an offset just as the harness' command line does it, to the same figures.
        rows = {"limit": limit} if not offset else {"samples": chosen}
        out = evaluate(
            lm, tasks, bootstrap_iters=0, log_samples=True, apply_chat_template=chat, fewshot_as_multiturn=chat, **rows
        )
    records = [record for name, samples in out["samples"].items() for record in _records(name, samples, lm)]
    return records, {name: _numbers(values) for name, values in out["results"].items()}


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

    bar, building.tqdm = building.tqdm, partial(building.tqdm, disable=True)
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
