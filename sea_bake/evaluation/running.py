"""Every unit of an evaluation through every door: what is kept is taken, what is missing is answered, one model at a
time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sea_bake.activations.generating import rows_of
from sea_bake.artefact.evaluation import Record
from sea_bake.errors import EvaluationError
from sea_bake.evaluation import damage, engines
from sea_bake.evaluation.doors import Doors
from sea_bake.evaluation.finite import check_finite
from sea_bake.evaluation.keeping import Keeping, digest
from sea_bake.evaluation.prefixes import Score, Scorer, no_memory, one_by_one
from sea_bake.io import progress
from sea_bake.model.caches import can_share
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.lower import LowerLayers
from sea_bake.model.placing import input_device, out_of_memory
from sea_bake.model.processes import are_several, check_alike, from_main, is_main_process

if TYPE_CHECKING:
    from sea_bake.evaluation.harness import SharedPrefixLM

Advance = Callable[[int], None]
Answers = tuple[list[Record], dict[str, Any]]  # records, and the harness' own figures


class Session:
    """One door, open: its model, and the harness' view of it; where they are known, its layers below all edits."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int,
        say: Callable[[str], None],
        lower: LowerLayers | None = None,
    ) -> None:
        self.model, self.tokenizer, self.lower = model, tokenizer, lower
        self._lm: SharedPrefixLM | None = None
        self._data = ""
        self._options: dict[str, Any] = {"batch_size": batch_size, "say": say, "lower": lower}

    def lm(self, advance: Advance, data: str) -> SharedPrefixLM:
        """The same for all tasks of the same data: answers that two share (MC1's are among MC2's) are scored once.

        Not for all tasks together: what was scored before decides how the rest is batched, and so the last bits.
        """
        from sea_bake.evaluation.harness import SharedPrefixLM, quiet

        if self._lm is None or data != self._data:
            self._data = data
            with quiet():
                self._lm = SharedPrefixLM(self.model, self.tokenizer, **self._options)
        self._lm.advance = advance
        return self._lm

    def scorer(self, advance: Advance) -> Callable[[Any], list[Score]]:
        """For answers that are no task of the harness: (prompt, answer), token ids -> (log p, is it the greedy one)."""
        if not can_share(self.model):
            return partial(one_by_one, self.model, advance)
        return Scorer(self.model, advance=advance, **self._options)

    @torch.inference_mode()
    def check(self, *, cost: bool) -> None:
        """Whether it can be evaluated at all, by one short text, before hours are spent on it.

        Raises:
            EvaluationError: NaN logits; an encoder-decoder, where costs on running text are asked for.
        """
        if getattr(self.model.config, "is_encoder_decoder", False):
            if cost:
                raise EvaluationError(
                    "the costs on running text (KL, perplexity, repetition) are not measured on encoder-decoders: "
                    "pass --no-cost"
                )
            return
        ids = list(self.tokenizer(damage.TEXTS[0], verbose=False)["input_ids"])[:64]
        ids = [token for token in ids if token < rows_of(self.model)]
        device = input_device(self.model)
        logits = self.model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
        check_finite(self.model, logits, [ids])


@dataclass(frozen=True)
class Unit:
    """What is answered and kept as a whole: a task, or a cost.

    Attributes:
        name: of the task.
        inputs: a digest of all that decides the answers, but for the door.
        answer: does the work.
        count, word: for the progress bar.
        against: measured against what the first door said in this very run.
        base_only: answered by the first door alone.
        data: a digest of where a task's rows come from: of those with the same, all are answered in one run or none.
    """

    name: str
    inputs: str
    answer: Callable[[Session, Advance], Answers]
    count: int
    word: str = "answer"
    against: bool = False
    base_only: bool = False
    data: str = ""


def answered(unit: Unit, session: Session, advance: Advance) -> Answers:
    """A unit's answers.

    Raises:
        EvaluationError: NaN logits; no memory, also where there is no batch to halve (a single text, an answer that is
            written).
    """
    try:
        return unit.answer(session, advance)
    except RuntimeError as error:
        if out_of_memory(error):
            raise no_memory() from error
        raise


@contextlib.contextmanager
def _opened(doors: Doors, door: str, tokenizer: Any, batch_size: int, say: Callable[[str], None]) -> Iterator[Any]:
    if doors.backend == engines.VLLM:
        with engines.opened(doors, door) as engine:
            yield engine
        return
    with doors.open(door) as model:
        if are_several():
            check_alike({"model": BaseModel.of(model, doors.base).to_json()})
        yield Session(model, tokenizer, batch_size, say)


def run(
    doors: Doors,
    units: Sequence[Unit],
    kept: Keeping,
    *,
    tokenizer: Any,
    batch_size: int,
    cost: bool,
    say: Callable[[str], None],
) -> dict[str, dict[str, Answers]]:
    """Unit -> door -> answers. Several processes share the work; what is kept, the main one reads and writes.

    Raises:
        SettingError: processes that do not have the same models, edits, data, settings and versions.
        EvaluationError: a door that cannot be evaluated.
        OutputError: the output holds answers of another run.
    """
    found: dict[str, dict[str, Answers]] = {unit.name: {} for unit in units}
    keeps = kept.folder is not None and is_main_process()
    identity = {door: doors.identity(door) if keeps else "" for door in doors.names}
    first = identity[doors.names[0]]

    def inputs(unit: Unit, door: str) -> str:
        return digest(unit.inputs, identity[door], first if unit.against else None)

    def doors_of(unit: Unit) -> list[str]:
        return doors.names[:1] if unit.base_only else doors.names

    for unit in units:
        ready = {door: kept.get(unit.name, door, inputs(unit, door)) if keeps else None for door in doors_of(unit)}
        if not unit.against or None not in ready.values():
            found[unit.name] = {door: answers for door, answers in ready.items() if answers is not None}
    settings = {f"settings of {unit.name}": unit.inputs for unit in units}
    check_alike({"edit or model": doors.describe(), **settings, **doors.here()})
    found = from_main(found)
    for door in doors.names:
        lacking = [unit for unit in units if door in doors_of(unit) and door not in found[unit.name]]
        begun = {unit.data for unit in lacking} - {""}
        missing = [unit for unit in units if unit in lacking or unit.data in begun]
        if not missing:
            continue
        with _opened(doors, door, tokenizer, batch_size, say) as session:
            session.check(cost=cost)
            for unit in missing:
                with progress.bar(f"{door}: {unit.name}", unit.count, unit.word) as advance:
                    answers = answered(unit, session, advance)
                if keeps:
                    kept.put(unit.name, door, inputs(unit, door), *answers)
                found[unit.name][door] = answers
    doors.close()
    return {unit.name: {door: found[unit.name][door] for door in doors_of(unit)} for unit in units}
