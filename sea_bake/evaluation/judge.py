"""Many edits on one living model: the base answers once, and each edit costs its own answers only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sea_bake.activations import DEFAULT_BATCH_SIZE
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact.evaluation import Record, Row
from sea_bake.demonstrations import Demonstration
from sea_bake.edit import Edit, live
from sea_bake.errors import SettingError
from sea_bake.evaluation import units
from sea_bake.evaluation.neutral import TEXTS
from sea_bake.evaluation.results import rows_of
from sea_bake.evaluation.running import Advance, Session, Unit, answered
from sea_bake.evaluation.tasks import locate
from sea_bake.model.lower import LowerLayers

Found = dict[str, list[Record]]  # unit -> records


class Judge:
    """Measures edits on the same examples, one after the other.

    Args:
        model, tokenizer: a living model without any edit, and its tokenizer.
        tasks: names of ``evaluation.TASKS``.
        data: folder with their files.
        limit, offset: maximum rows per task, after the first ``offset``.
        demonstrations: triples whose positive answer should be preferred ("demonstrations").
        form: how prompts are rendered.
        texts: neutral ones, for KL and perplexity ("neutral_text"); empty: not measured.
        generation: also greedy answers, and their repetition ("generation").
        batch_size: largest number of rows in a forward pass; halved when memory runs out.
        say: called with sentences for people.

    Raises:
        EvaluationError: an unknown task, or data that is missing.
        SettingError: nothing to measure.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        tasks: Sequence[str] = (),
        data: str | Path | None = None,
        limit: int | None = None,
        offset: int = 0,
        demonstrations: Sequence[Demonstration] = (),
        form: PromptFormat | None = None,
        texts: Sequence[str] = TEXTS,
        generation: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._lower = LowerLayers(model)
        self._session: dict[str, Any] = {"batch_size": batch_size, "say": say, "lower": self._lower}
        local = locate(tasks, data) if tasks and data is not None else None
        self.units = units.tasks(list(tasks), local, limit=limit, offset=offset, say=say) if tasks else []
        if demonstrations:
            self.units.append(units.demonstrations(demonstrations, form or PromptFormat()))
        if texts:
            self.units.append(units.neutral_text(tokenizer, texts))
        if generation:
            self.units.append(units.generation(form or PromptFormat()))
        if not self.units:
            raise SettingError("nothing to measure: name a task, demonstrations or neutral texts")
        self._base: Found = {}

    @property
    def count(self) -> int:
        """Answers per edit, for a progress bar."""
        return sum(unit.count for unit in self.units)

    @property
    def base(self) -> Found:
        """The unedited model's records, unit by unit; answered at the first use."""
        missing = [unit for unit in self.units if unit.name not in self._base]
        self._base |= self._answer(missing, lambda count: None)
        return self._base

    def __call__(self, edits: Edit | Sequence[Edit], advance: Advance = lambda count: None) -> Found:
        """Records under live hooks; no edits at all: the base's.

        Raises:
            WrongModelError: an edit belongs to another model.
            EvaluationError: NaN logits, no memory.
        """
        first = [unit for unit in self.units if unit.against and unit.name not in self._base]
        self._base |= self._answer(first, lambda count: None)  # what KL is measured against
        edits = [edits] if isinstance(edits, Edit) else list(edits)
        self._lower.first = min((layer for edit in edits for layer in edit.layers), default=0)
        with live(edits, self.model):
            return self._answer(self.units, advance)

    def rows(self, found: Found, against: Found | None = None, *, detail: bool = False) -> list[Row]:
        """Every measure of ``found`` with its paired difference from the base, or from what another edit gave.

        KL and agreement are of the base in either case. ``detail``: also BBQ's categories.
        """
        start = self.base if against is None else against
        return [
            row
            for unit in self.units
            for row in rows_of(unit.name, {"base": start[unit.name], "edited": found[unit.name]}, detail=detail)
        ]

    def _answer(self, asked: Sequence[Unit], advance: Advance) -> Found:
        session = Session(self.model, self.tokenizer, **self._session)  # a new one: it remembers what it has scored
        return {unit.name: answered(unit, session, advance)[0] for unit in asked}
