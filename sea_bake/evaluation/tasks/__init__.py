"""The benchmarks: what they are called, where their rows lie, and what is checked before any model is loaded.

A new one is a row in ``TASKS``, a YAML file beside this one, a check in ``rows``, and its measures in ``measures``.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sea_bake.errors import EvaluationError
from sea_bake.evaluation.tasks import rows
from sea_bake.io.apart import check_apart
from sea_bake.io.staging import staged_folder

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        title: for people, with the revision of its data, which decides what a number means.
        hub: id of the data set that the harness' own task reads.
        files: split -> pattern of the one file below ``--data`` that holds it.
        columns: what every row must have.
        check: what else there is to a row.
        kind: "gain" (what SEA is for) or "damage" (a control: what an edit should leave alone).
        stock: folder and name of the harness' own task, where it goes by another one.
        shots: split -> pattern of a file of worked examples, which may be missing: then there are none.
        split: the split that is measured.
    """

    title: str
    hub: str
    files: Mapping[str, str]
    columns: tuple[str, ...]
    check: rows.Check
    kind: str = "damage"
    stock: tuple[str, str] | None = None
    shots: Mapping[str, str] = field(default_factory=dict)

    @property
    def split(self) -> str:
        return next(iter(self.files))


_TRUTHFULQA = {"validation": "truthfulqa/*multiple_choice*.jsonl"}
TASKS: dict[str, Benchmark] = {
    "truthfulqa_mc1": Benchmark(
        "TruthfulQA v0, MC1", "truthfulqa/truthful_qa", _TRUTHFULQA, ("question", "mc1_targets"),
        rows.truthfulqa_mc1, "gain", ("truthfulqa", "truthfulqa_mc1"),
    ),
    "truthfulqa_mc2": Benchmark(
        "TruthfulQA v0, MC2", "truthfulqa/truthful_qa", _TRUTHFULQA, ("question", "mc2_targets"),
        rows.truthfulqa_mc2, "gain", ("truthfulqa", "truthfulqa_mc2"),
    ),
    "bbq": Benchmark(
        "BBQ", "oskarvanderwal/bbq", {"test": "bbq/*.jsonl"},
        ("context", "question", "ans0", "ans1", "ans2", "label", "answer_info", "additional_metadata", "category",
         "context_condition", "question_polarity"), rows.bbq, "gain",
    ),
    "hellaswag": Benchmark(
        "HellaSwag", "Rowan/hellaswag", {"validation": "hellaswag/*val*.jsonl"},
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"), rows.hellaswag,
    ),
    "gsm8k": Benchmark(
        "GSM8K", "openai/gsm8k", {"test": "gsm8k/test*.jsonl", "train": "gsm8k/train*.jsonl"}, ("question", "answer"),
        rows.gsm8k,
    ),
    "mathqa": Benchmark(
        "MathQA (options derived)", "regisss/math_qa", {"test": "mathqa/*test*.jsonl"},
        ("question", "choices", "label"), rows.mathqa,
    ),
    "mmlu": Benchmark(
        "MMLU", "cais/mmlu", {"test": "mmlu/*test*.jsonl"}, ("question", "subject", "choices", "answer"),
        rows.mmlu, stock=("mmlu/default", "mmlu"), shots={"dev": "mmlu/*dev*.jsonl"},
    ),
    "nq_open": Benchmark(
        "NQ-open", "google-research-datasets/nq_open", {"validation": "nq_open/*validation*.jsonl"},
        ("question", "answer"), rows.nq_open,
    ),
    "toxigen": Benchmark(
        "ToxiGen", "skg/toxigen-data", {"test": "toxigen/*.jsonl"}, ("text", "toxicity_ai", "toxicity_human"),
        rows.toxigen,
    ),
    "crows_pairs": Benchmark(
        "CrowS-Pairs", "jannalu/crows_pairs_multilingual", {"test": "crows_pairs/*crows*"}, ("sent_more", "sent_less"),
        rows.crows_pairs, stock=("crows_pairs", "crows_pairs_english"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Local:
    """A benchmark on this disk.

    Attributes:
        name: as in ``TASKS``.
        files: split -> file, as the user's ``--data`` names it.
        digest: SHA-256 over the files and the task's own definition.
    """

    name: str
    files: dict[str, Path]
    digest: str = field(default="", compare=False)

    def sources(self) -> dict[str, Any]:
        """What the harness is told about the files. Relative ones it would look for in the working directory."""
        form = "csv" if next(iter(self.files.values())).suffix == ".csv" else "json"
        files = {split: str(path) for split, path in self.files.items()}
        found: dict[str, Any] = {"dataset_path": form, "dataset_kwargs": {"data_files": files}}
        for split in TASKS[self.name].shots:
            found |= {"fewshot_split": split} if split in self.files else {"num_fewshot": 0}
        return found


def unknown(name: str, names: Sequence[str]) -> EvaluationError:
    """The error for a task that is not among ``names``."""
    return EvaluationError(f"unknown task '{name}': {near(name, names)}")


def near(name: str, names: Sequence[str]) -> str:
    """ "did you mean gsm8k?", or what there is where nothing is like it."""
    found = difflib.get_close_matches(name, names, n=4, cutoff=0.5) or [n for n in names if name and name in n][:4]
    return f"did you mean {' or '.join(found)}?" if found else f"there are {', '.join(names[:12])}"


def locate(names: Sequence[str], data: str | Path) -> list[Local]:
    """Find each task's files below a folder, and check their rows, before anything is loaded.

    Raises:
        EvaluationError: no task, or an unknown one (the message names the near ones), no such folder, a file that
            is missing or there twice, or a row that the task cannot use.
    """
    folder = Path(os.path.expanduser(data))
    chosen = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not chosen:
        raise EvaluationError(f"no task was named: use --tasks with some of {', '.join(TASKS)}")
    for name in chosen:
        if name not in TASKS:
            raise unknown(name, list(TASKS))
    if not os.path.isdir(folder):
        raise EvaluationError(f"no such data folder: {folder}")
    found = []
    for name in chosen:
        benchmark = TASKS[name]
        there = {split: pattern for split, pattern in benchmark.shots.items() if any(folder.glob(pattern))}
        wanted = {**benchmark.files, **there}
        files = {split: _file(name, folder, pattern, benchmark.columns) for split, pattern in wanted.items()}
        digest = hashlib.sha256((HERE / f"{name}.yaml").read_bytes() + (HERE / "scoring.py").read_bytes())
        for path in files.values():
            rows.check_rows(name, path, benchmark.columns, benchmark.check)
            digest.update(path.read_bytes())
        found.append(Local(name, files, digest.hexdigest()))
    return found


def _file(name: str, folder: Path, pattern: str, columns: tuple[str, ...]) -> Path:
    matches = sorted(p for p in folder.glob(pattern) if p.is_file() and p.suffix in (".jsonl", ".csv"))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise EvaluationError(
            f"the task {name} reads one file {folder / pattern}, and there are {len(matches)}: "
            f"{', '.join(p.name for p in matches)}. Leave one there."
        )
    raise EvaluationError(
        f"the data folder lacks {folder / pattern}, which the task {name} reads: rows with the columns "
        f"{', '.join(columns)}, as JSON Lines. Leave the task out, or --data, to take it from the Hub."
    )


def export_tasks(names: Sequence[str], data: str | Path, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the tasks as YAML for the harness' own command line; they name the data by its absolute path.

    ``lm_eval run --include_path FOLDER --tasks ...`` then asks the same questions of a model as ``evaluate`` does.

    Raises:
        EvaluationError: as :func:`locate`.
        OutputError: the folder exists.
    """
    import yaml

    found = locate(names, Path(os.path.expanduser(data)).absolute())
    check_apart(folder, [data])
    with staged_folder(folder, overwrite=overwrite) as stage:
        for name in {local.name for local in found} | {"truthfulqa_mc1"}:  # which the other TruthfulQA task includes
            text = (HERE / f"{name}.yaml").read_text("utf-8")
            sources = next((local.sources() for local in found if local.name == name), {})
            (stage / f"{name}.yaml").write_text(text + (yaml.safe_dump(sources) if sources else ""), "utf-8")
        (stage / "scoring.py").write_text((HERE / "scoring.py").read_text("utf-8"), "utf-8")
    return Path(folder)
