"""Which answer of a demonstration a model prefers: a measure that needs no benchmark, only triples kept back from the
fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import encode
from sea_bake.artefact.evaluation import Record
from sea_bake.demonstrations import Demonstration
from sea_bake.evaluation.finite import check_finite
from sea_bake.model.caches import can_share

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
    if can_share(session.model):
        totals = [score for score, _ in session.scorer(advance)(asked)]
    else:
        totals = [_alone(session.model, *one, advance) for one in asked]
    rates = [total / len(answer) for total, (_, answer) in zip(totals, asked, strict=True)]
    found = []
    for i, triple in enumerate(demonstrations):
        positive, negative = rates[2 * i : 2 * i + 2]
        values = {"positive": positive, "negative": negative, "margin": positive - negative}
        values["right"] = float(positive > negative)
        text = "\n".join((triple.prompt, triple.positive, triple.negative))
        key = hashlib.sha256(text.encode()).hexdigest()
        found.append({"task": DEMONSTRATIONS, "id": i, "hash": key, "values": values})
    return found


@torch.inference_mode()
def _alone(model: Any, prompt: Sequence[int], answer: Sequence[int], advance: Callable[[int], None]) -> float:
    """log p(answer | prompt) in nats by a pass of its own, for models whose caches cannot be shared."""
    ids = [*prompt, *answer]
    rows = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    logits = model(input_ids=rows, use_cache=False).logits
    check_finite(model, logits, [ids])
    logs = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    advance(1)
    return float(logs.gather(1, rows[0, len(prompt) :, None]).sum())
