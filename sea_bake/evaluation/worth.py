"""What an edit is worth, on the model at hand: its strength for a KL, its gain on demonstrations held back, and random
edits of the same KL beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

from sea_bake.activations import DEFAULT_BATCH_SIZE
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact.evaluation import Record, edit_digest
from sea_bake.demonstrations import Demonstration, digest
from sea_bake.edit import Edit
from sea_bake.edit.measured import CLAIM, NOISE, Measured
from sea_bake.errors import EvaluationError, first_line_of
from sea_bake.evaluation import damage, preference
from sea_bake.evaluation.controls import Drawing, compared, kinds_of, lengths_of
from sea_bake.evaluation.elsewhere import best, elsewhere
from sea_bake.evaluation.keeping import digest as digest_of
from sea_bake.evaluation.neutral import TEXTS
from sea_bake.evaluation.results import rows_of
from sea_bake.evaluation.running import Session
from sea_bake.evaluation.strength import CLOSE, find
from sea_bake.io import progress
from sea_bake.io.cache import cache_folder
from sea_bake.model.lower import LowerLayers

DEFAULT_CONTROLS = 1  # of each kind: enough to look at, too few to say anything
_FEW, _SOME = 4, 10  # of the neutral texts: enough to search on; and where a claim hangs on it
_BASE = "it changes nothing: this is the base model"
_NO_KL = "KL on running text is not measured on encoder-decoders"


class Bench:
    """One living model without any edit, and what edits of it are measured on.

    Args:
        model, tokenizer: the model, and its tokenizer.
        held_back: demonstrations that no fit has seen; empty: no gain is measured.
        form: how prompts are rendered.
        texts: neutral ones.
        batch_size: rows in a forward pass; halved when memory runs out.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        held_back: Sequence[Demonstration] = (),
        *,
        form: PromptFormat | None = None,
        texts: Sequence[str] = TEXTS,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        self.model, self.tokenizer, self.held_back, self.form = model, tokenizer, list(held_back), form
        self.batch_size, self._texts = batch_size, list(texts)
        self.can_measure = not getattr(model.config, "is_encoder_decoder", False)
        self.lower = LowerLayers(model)
        self._neutral = damage.Neutral(tokenizer, texts) if self.can_measure else None
        self._records: dict[str, list[Record]] = {}  # by edit; "" is the base

    def spread(self, wanted: int) -> list[int]:
        """Places of so many of the neutral texts."""
        count = len(self.neutral.ids)
        return sorted({i * count // wanted for i in range(wanted)})

    def _graded(self, wanted: int) -> list[int]:
        """Places of so many of them, from such as the base finds easy to such as it finds hard: KL follows that."""
        count = len(self.neutral.ids)  # which the base has answered
        found = [record["values"] for record in self._records[""]]
        order = sorted(range(count), key=lambda i: found[i]["nll"] / found[i]["tokens"])
        return sorted({order[(2 * i + 1) * len(order) // (2 * wanted)] for i in range(wanted)})

    def _begin(self, edit: Edit) -> None:
        """Where passes start from here on; said before the base answers, so that its own are kept too."""
        self.lower.first = min(edit.layers)

    @contextlib.contextmanager
    def edited(self, edit: Edit | None) -> Iterator[None]:
        """While it lasts, the model has this edit; the layers below its first are passed over where they are known."""
        if edit is None:
            yield
            return
        self._begin(edit)
        with edit.live(self.model, check=False):
            yield

    @property
    def neutral(self) -> damage.Neutral:
        """The neutral texts; the base has answered them.

        Raises:
            EvaluationError: an encoder-decoder, or NaN logits.
        """
        if self._neutral is None:
            raise EvaluationError(_NO_KL)
        if "" not in self._records:
            self._records[""] = self._neutral.records(self.model, lower=self.lower)
        return self._neutral

    def strength(self, edit: Edit, budget: float) -> Edit:
        """The edit with the strength whose KL is the budget, on all neutral texts: found on a few of them first.

        Raises:
            UnreachedError: no strength reaches it.
            EvaluationError: NaN logits.
        """
        self._begin(edit)
        few = self._graded(_FEW)
        first = find(lambda alpha: self.kl(edit, alpha, few), budget, start=edit.alpha or 1.0, close=0.03)
        best = find(lambda alpha: self.kl(edit, alpha), budget, start=first.alpha, close=CLOSE)
        return replace(edit, alpha=best.alpha, measured=None)

    def kl(self, edit: Edit, alpha: float, places: Sequence[int] | None = None) -> float:
        """Mean per token from the base, at a strength; on these neutral texts alone."""
        at = replace(edit, alpha=alpha)
        self._begin(edit)
        neutral = self.neutral
        if places is not None:
            with self.edited(at):
                return neutral.kl(self.model, places, self.lower)
        values = [record["values"] for record in self._costs(at)]
        return float(sum(v["kl"] for v in values) / sum(v["compared"] for v in values))

    def measured(self, edit: Edit, *, controls: int = DEFAULT_CONTROLS, budget: float | None = None) -> Measured:
        """KL, gain on the demonstrations held back, and random edits. What cannot be measured is said, not raised."""
        if edit.changes_nothing:
            return Measured(budget=budget, why=_BASE)
        try:
            return self._measured(edit, controls, budget)
        except EvaluationError as error:
            return Measured(budget=budget, why=first_line_of(error))

    def cost(self, edit: Edit, budget: float | None = None, why: str = "") -> Measured:
        """KL alone."""
        (row,) = [r for r in self._rows(damage.NEUTRAL, self._costs(edit)) if r.measure.key == "kl"]
        return Measured(row.found.edited, budget, texts=len(self.neutral.ids), why=why)

    def _measured(self, edit: Edit, controls: int, budget: float | None) -> Measured:
        found = self.cost(edit, budget)
        if not self.held_back:
            return found
        places = self.spread(_FEW if controls < CLAIM else _SOME)
        goal = self.kl(edit, edit.alpha, places) if controls else 0.0
        drawings, why = {}, ""
        if controls and goal < NOISE:
            why = f"KL {goal:.1g}: there are no random edits of that KL"
        elif controls:
            drawings = self._drawings(edit, goal, places, far=controls >= CLAIM)
        with progress.bar("measured", 2 + controls * len(drawings), "edit") as advance:
            base = self._base
            advance(1)
            edited = self._margins(edit)
            advance(1)
            (row,) = [
                r for r in rows_of(preference.DEMONSTRATIONS, {"base": base, "edited": edited})
                if r.measure.key == "margin"
            ]  # fmt: skip
            own = self._gains(edited)
            chosen = {kind: best(kind, tried) for kind, tried in drawings.items()}
            drawn = {kind: one.draws(kind, controls, advance) for kind, one in chosen.items()}
        beside = {kind: compared(kind, own, draws, chosen[kind].where) for kind, draws in drawn.items()}
        return replace(
            found,
            gain=row.found.difference,
            base=row.found.base.value,
            held_back=len(self.held_back),
            held_back_sha256=digest(self.held_back),
            controls=[one for one in beside.values() if one is not None],
            asked=controls,
            missing={kind: len(drawn[kind]) for kind, one in beside.items() if one is None},
            why=why,
        )

    def _drawings(self, edit: Edit, goal: float, places: Sequence[int], *, far: bool) -> dict[str, list[Drawing]]:
        """Kind of random edit -> how it may be drawn; ``far``: at other sites too."""
        inputs = [digest(self.held_back), (self.form or PromptFormat()).to_json(), str(self.model.dtype)]
        texts = [self.neutral.ids[i] for i in places]

        own = Drawing(
            edit,
            goal,
            lambda other: self.kl(other, other.alpha, places),
            lambda other: self._gains(self._margins(other)),
            cache(lambda: lengths_of(self.model, edit, texts)),
            [*inputs, digest_of(self._texts), list(places)],
            cache_folder("controls"),
        )
        found = {kind: [own] for kind in kinds_of(edit)}
        if far and (others := elsewhere(self.model, edit)):
            found["elsewhere"] = [
                replace(own, edit=one, lengths=cache(lambda one=one: lengths_of(self.model, one, texts)), where=where)
                for one, where in others
            ]
        return found

    def _costs(self, edit: Edit) -> list[Record]:
        key = edit_digest(edit)
        self._begin(edit)
        if key not in self._records:
            neutral = self.neutral
            with self.edited(edit):
                self._records[key] = neutral.records(self.model, lower=self.lower)
        return self._records[key]

    def _rows(self, task: str, edited: list[Record]) -> Any:
        return rows_of(task, {"base": self._records[""], "edited": edited})

    @cached_property
    def _base(self) -> list[Record]:
        return self._margins(None)

    def _gains(self, edited: list[Record]) -> list[float]:
        """Of each demonstration held back."""
        pairs = zip(edited, self._base, strict=True)
        return [after["values"]["margin"] - before["values"]["margin"] for after, before in pairs]

    def _margins(self, edit: Edit | None) -> list[Record]:
        session = Session(self.model, self.tokenizer, self.batch_size, lambda text: None, self.lower)
        with self.edited(edit):
            return preference.records(session, self.held_back, form=self.form)
