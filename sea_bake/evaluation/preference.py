"""Which answer of a demonstration a model prefers: a measure that needs no benchmark, only triples kept back from the
fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import encode
from sea_bake.artefact.evaluation import Record
from sea_bake.demonstrations import Demonstration
from sea_bake.evaluation.finite import check_known

if TYPE_CHECKING:
    from sea_bake.evaluation.running import Session

DEMONSTRATIONS = "demonstrations"


def records(
    session: Session,
    demonstrations: Sequence[Demonstration],
    advance: Callable[[int], None] = lambda count: None,
    *,
    form: PromptFormat | None = None,
) -> list[Record]:
    """Per triple, under the template that fitting uses: "positive" and "negative", the log-likelihood per token of
    either answer in nats; "margin", their difference; "right", 1 where the positive one is the likelier (per token).

    Raises:
        EvaluationError: NaN logits, no memory.
    """
    asked = []
    for triple in demonstrations:
        for continuation in (triple.positive, triple.negative):
            tokens = encode(session.tokenizer, triple.prompt, continuation, form)
            asked.append((tokens.ids[: tokens.start], tokens.ids[tokens.start :]))
    check_known(session.model, session.tokenizer, (part for pair in asked for part in pair))
    scores = session.scorer(advance)(asked)
    rates = [score[0] / len(answer) for score, (_, answer) in zip(scores, asked, strict=True)]
    found = []
    for i, triple in enumerate(demonstrations):
        positive, negative = rates[2 * i : 2 * i + 2]
        values = {"positive": positive, "negative": negative, "margin": positive - negative}
        values["right"] = float(positive > negative)
        text = "\n".join((triple.prompt, triple.positive, triple.negative))
        key = hashlib.sha256(text.encode()).hexdigest()
        found.append({"task": DEMONSTRATIONS, "id": i, "hash": key, "values": values})
    return found
