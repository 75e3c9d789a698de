"""Results as the Hub reads them beside the card: ``.eval_results/*.yaml``, which feed badges and leaderboards.

One file for each data set, in the schema of https://huggingface.co/docs/hub/eval-results, and in it one value for each
task: its most telling share. The other measures stand on the card and in the evaluation that each entry leads to.
"""

from __future__ import annotations

import re

import yaml

from sea_bake.artefact.evaluation import Evaluation, Row
from sea_bake.artefact.names import EVAL_RESULTS, EVALUATION

_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def eval_results(evaluation: Evaluation | None, repo: str, *, revision: str | None) -> dict[str, str]:
    """Path in the repository -> text; empty where nothing was measured on a data set of the Hub.

    Args:
        repo: where they will be: "user/name".
        revision: the branch that they are published to; None: main.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    source = f"https://huggingface.co/{repo}/blob/{revision or 'main'}/{EVALUATION}"
    found: dict[str, list[EvalResultEntry]] = {}
    for row in _telling(evaluation) if evaluation else ():
        assert evaluation is not None
        entry = EvalResultEntry(
            dataset_id=row.dataset["type"],
            task_id=row.task,
            value=row.found.edited.value if row.found.edited else None,
            dataset_revision=row.dataset.get("revision"),
            date=evaluation.date or None,
            source_url=source,
            source_name="sea-bake eval",
            notes=_notes(row, evaluation),
        )
        found.setdefault(row.dataset["type"], []).append(entry)
    return {
        EVAL_RESULTS.format(name.replace("/", "--")): yaml.safe_dump(
            eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True
        )
        for name, entries in found.items()
    }


def _telling(evaluation: Evaluation) -> list[Row]:
    """Of each task on a data set of the Hub, the first share of all its examples: a task has its best measure first."""
    found: dict[str, Row] = {}
    for row in evaluation.headlines:
        measure, on_the_hub = row.measure, _ID.fullmatch(row.dataset["type"])
        if on_the_hub and row.found.edited and measure.unit == "%" and measure.judged and not measure.part:
            found.setdefault(row.task, row)
    return list(found.values())


def _notes(row: Row, evaluation: Evaluation) -> str:
    """What the number is, and what it must not be taken for: part of the examples is not all of them."""
    said = [
        f"{row.measure.name} of {row.found.n} examples",
        *(["from the start of the split, not all"] if evaluation.settings.get("limit") else []),
        f"unedited base {row.found.base.value:.4g}",
        "lm-evaluation-harness",
    ]
    return ", ".join(said)
