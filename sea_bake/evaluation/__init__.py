"""Does the edit help, and what does it cost? Base and edited model on the same examples, every difference with its
interval and a paired test (extra ``eval``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sea_bake.activations import DEFAULT_BATCH_SIZE
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact import Artefact
from sea_bake.artefact.evaluation import Evaluation, Row
from sea_bake.artefact.names import EVALUATION
from sea_bake.edit import Edit
from sea_bake.errors import EvaluationError, SettingError, missing_extra, need
from sea_bake.evaluation import conditions, damage, matrix, units
from sea_bake.evaluation import rendering as reporting
from sea_bake.evaluation.doors import Doors
from sea_bake.evaluation.engines import TRANSFORMERS, check_backend
from sea_bake.evaluation.judge import Judge
from sea_bake.evaluation.keeping import Keeping
from sea_bake.evaluation.results import kind_of, rows_of, samples_of
from sea_bake.evaluation.running import run
from sea_bake.evaluation.tasks import TASKS, export_tasks, locate
from sea_bake.model.processes import is_main_process

DEFAULT_TASKS = ("truthfulqa_mc1", "truthfulqa_mc2", "bbq", "hellaswag")

__all__ = ["DEFAULT_TASKS", "TASKS", "Evaluation", "Judge", "Row", "evaluate", "export_tasks"]


def evaluate(
    model: str | Path | Artefact,
    *,
    edit: Edit | str | Path | Sequence[Edit | str | Path] | None = None,
    base: str | Path | None = None,
    revision: str | None = None,
    tasks: Sequence[str] = DEFAULT_TASKS,
    behaviours: Sequence[str] | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    offset: int = 0,
    fewshot: int | None = None,
    chat: bool = False,
    cost: bool = True,
    neutral_text: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    backend: str = "transformers",
    batch_size: int = DEFAULT_BATCH_SIZE,
    output: str | Path | None = None,
    overwrite: bool = False,
    write: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Run benchmarks on a base and on its edited form, and compare them example by example.

    The edited form is the base under live hooks (``edit``), or an artefact given as ``model``; a plain model without
    either is measured alone. One model is in memory at a time. Under ``torchrun`` or ``accelerate launch`` the
    processes share the batches, to the same figures; one of them speaks and writes.

    Args:
        model: base (folder, .gguf file, Hub id), or a folder written by sea-bake bake.
        edit: edit to act live on the base; several act in the order given.
        base: the base of an artefact. Default: what it records (Hub id, or the folder beside it).
        revision: see :func:`sea_bake.model.loading.load_model`.
        tasks: "truthfulqa_mc1", "truthfulqa_mc2", "bbq", "hellaswag", "gsm8k", "mathqa", "mmlu", "nq_open", "toxigen",
            "crows_pairs"; without ``data`` any task of lm-evaluation-harness.
        behaviours: "all", or built-in behaviours ("truthful", "fair", ...) whose kept-back parts are measured too, each
            with the base beside it, asked for it in the system prompt or shown it in examples. Default: none.
        data: folder with the benchmarks' files. Default: the harness' own, from the Hub.
        limit: maximum examples per task. Default: all.
        offset: skip this many rows of each task first: those that an edit was chosen on.
        fewshot: worked examples, where a task leaves their number open.
        chat: put prompts through the tokenizer's chat template, with the arguments, system prompt and date that the
            edit was fitted with.
        cost: also KL to the base, perplexity and repetition on neutral text; not for encoder-decoders.
        neutral_text: file of neutral paragraphs for KL and perplexity, separated by empty lines. Default: built-in.
        dtype, device: see :func:`sea_bake.model.loading.load_model`.
        backend: what answers: "transformers", or "vllm", which is handed folds and adapters, and answers tasks alone.
        batch_size: rows in one forward pass; halved when memory runs out.
        output: folder for JSON, Markdown, HTML and every example. A run that was stopped goes on there.
        overwrite: replace what other models, data or settings have left in the output.
        write: write sea/evaluation.json into the artefact, for its model card.
        say: called with sentences for people.

    Raises:
        MissingExtraError: the harness, or matplotlib for the HTML report, is not installed.
        EvaluationError: an unknown task, missing data, no chat template, NaN logits, no memory.
        SettingError: a number out of range.
        OutputError: the output holds something else.
        CheckpointError, EditError, WrongModelError: see ``load_model`` and ``Edit.live``.
    """
    if find_spec("lm_eval") is None:
        raise missing_extra("lm-eval", "eval", "Evaluation")
    if output is not None:
        need("eval", "Evaluation", "matplotlib.figure")
    for name, value, least in (("limit", limit, 1), ("offset", offset, 0), ("fewshot", fewshot, 0)):
        if value is not None and value < least:
            raise SettingError(f"{name} = {value} is less than {least}")
    if batch_size < 1:
        raise SettingError(f"batch size = {batch_size} is less than 1")
    local = None if data is None else locate(tasks, data)
    names = [task.name for task in local] if local is not None else list(dict.fromkeys(tasks))
    chosen = matrix.named(behaviours or ())
    if not names and not cost and not chosen:
        raise EvaluationError(f"nothing to evaluate: name some tasks out of {', '.join(TASKS)}")
    texts = damage.read_texts(neutral_text) if cost else []
    kept = Keeping(output, overwrite=overwrite)
    doors = Doors.of(model, edit=edit, base=base, revision=revision, dtype=dtype, device=device, backend=backend)
    check_backend(doors, cost=cost, behaviours=bool(chosen))
    if write and doors.artefact is None:
        raise SettingError(f"{model} is no artefact of sea_bake, so nothing can be written into it")
    tokenizer = doors.tokenizer()
    if chat and not getattr(tokenizer, "chat_template", None):
        raise EvaluationError(f"the tokenizer of '{doors.base.name}' has no chat template: drop --chat")
    sealed = doors.artefact.seal() if write and doors.artefact else {}
    remarks: list[str] = []

    def tell(text: str) -> None:
        remarks.append(text)
        if is_main_process():
            say(text)

    settings: dict[str, Any] = {"limit": limit, "offset": offset, "fewshot": fewshot, "chat": chat, "dtype": dtype}
    form = PromptFormat.shared([one.recipe for one in doors.all_edits()])
    asked = units.tasks(names, local, **settings, form=form, say=tell)
    if cost:
        asked += [units.neutral_text(tokenizer, texts), units.generation(form)]
    beside: dict[str, Any] = {"limit": limit, "prompts": doors.how is not None, "say": tell}
    asked += matrix.units(chosen, form, tokenizer, units.versions(), **beside)
    found = run(doors, asked, kept, tokenizer=tokenizer, batch_size=batch_size, cost=cost, say=tell)
    records = {name: {door: answers[0] for door, answers in by_door.items()} for name, by_door in found.items()}
    harness = {name: {door: answers[1] for door, answers in found[name].items()} for name in names}
    remarks += [text for text in conditions.sentences(harness) if text not in remarks]
    side = matrix.rows(records, doors.all_edits(), tell)
    by_kind = sorted(
        (name for name in records if not matrix.is_behaviour(name)), key=lambda name: kind_of(name) != "gain"
    )
    evaluation = Evaluation(
        model=doors.describe(),
        rows=[*(row for name in by_kind for row in rows_of(name, records[name])), *side],
        harness=harness,
        samples=samples_of(records[damage.GENERATION]) if cost else [],
        settings={"tasks": names, "data": "local" if local is not None else "hub", **settings}
        | ({"behaviours": chosen} if chosen else {})
        | ({} if backend == TRANSFORMERS else {"backend": backend})
        | {"prompt_format": form.to_json()},
        versions=units.versions() | ({} if backend == TRANSFORMERS else {backend: version(backend)}),
        records=records,
        remarks=remarks,
        date=f"{datetime.now(timezone.utc):%Y-%m-%d}",
    )
    if not is_main_process():
        return evaluation
    if kept.folder is not None:
        reporting.write(evaluation, kept.folder)
    if write and doors.artefact is not None:
        doors.artefact.write(EVALUATION, replace(evaluation, files=sealed).to_json())
    return evaluation
