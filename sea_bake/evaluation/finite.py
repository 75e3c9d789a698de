"""NaN logits are an error that says where they come from, never a score and never an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sea_bake.activations.generating import rows_of
from sea_bake.errors import EvaluationError, FamilyError
from sea_bake.model.anatomy import Site
from sea_bake.model.hooks import hooked
from sea_bake.model.sites import model_family, site_modules, text_config


def check_finite(model: Any, logits: Tensor, texts: Sequence[Sequence[int]]) -> None:
    """Raise EvaluationError for logits that are NaN or infinite, naming the first layer at fault.

    Args:
        logits: [rows, tokens, vocabulary]; minus infinity is how some models forbid a token.
        texts: the token ids that gave each row, to look for the layer with.
    """
    bad = _bad(logits)
    if bool(bad.any()):
        ids = torch.tensor([texts[int(bad.nonzero()[0])]], device=logits.device)
        raise not_finite(model, input_ids=ids)


class _Watch:
    """Looks at the logits of every step of ``generate``, and gives them on as they are."""

    def __init__(self, model: Any, prompts: Tensor, mask: Tensor) -> None:
        self._model, self._prompts, self._mask = model, prompts, mask
        self._start: int | None = None  # of the answers: in a decoder of its own they begin with a token of it
        stops = model.generation_config.eos_token_id
        self._stops = torch.tensor([] if stops is None else stops, dtype=torch.long, device=prompts.device).flatten()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._start = input_ids.shape[1] if self._start is None else self._start
        over = torch.isin(input_ids[:, self._start :], self._stops).any(1)  # what follows an end is never read
        bad = _bad(scores).to(over.device) & ~over
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            prompt = row // (len(input_ids) // len(self._prompts))  # of a beam
            kept = self._mask[prompt].bool()
            if self._model.config.is_encoder_decoder:
                told = {"input_ids": self._prompts[prompt][kept], "decoder_input_ids": input_ids[row]}
            else:
                told = {"input_ids": torch.cat([self._prompts[prompt][kept], input_ids[row, len(kept) :]])}
            raise not_finite(self._model, **{name: ids[None] for name, ids in told.items()})
        return scores


def watched(model: Any, prompts: Tensor, mask: Tensor) -> dict[str, Any]:
    """What ``generate`` is told so that NaN logits end it, where it would else take the first token and go on.

    Args:
        prompts, mask: [rows, tokens], as ``generate`` gets them.
    """
    from transformers import LogitsProcessorList

    return {"logits_processor": LogitsProcessorList([_Watch(model, prompts, mask)])}


def not_finite(model: Any, **inputs: Tensor) -> EvaluationError:
    """The error for inputs, as the model takes them, whose logits are NaN or infinite."""
    where = first_bad_layer(model, **inputs)
    return EvaluationError(
        f"the model answers NaN or infinite logits{f': the first bad values come out of {where}' if where else ''}. "
        "float16 overflows in some models (try --dtype float32); an edit that was lost on loading is NaN on purpose."
    )


@torch.inference_mode()
def first_bad_layer(model: Any, **inputs: Tensor) -> str | None:
    """ "decoder layer 12 (of 0-29)": the first whose output is not finite; the input embeddings and the output head
    are named too. None where this cannot be told.
    """
    reads = model.get_encoder() if model.config.is_encoder_decoder else model
    try:
        places = {"the input embeddings": reads.get_input_embeddings()} | _layers(model)
    except FamilyError:
        return None
    fine = [True] * len(places)

    def look(place: int, output: Tensor) -> None:
        fine[place] &= bool(torch.isfinite(output).all())

    with hooked(dict(enumerate(places.values())), look):
        logits = model(**inputs, use_cache=False).logits
    if all(fine):
        return "the output head" if bool(_bad(logits).any()) else None
    return list(places)[fine.index(False)]


def _layers(model: Any) -> dict[str, Any]:
    """Name -> layer, in the order they act; those of an encoder come first."""
    found = {}
    if model.config.is_encoder_decoder:
        stack = getattr(model.get_encoder(), model_family(model).layers, ())
        found = {f"encoder layer {i} (of 0-{len(stack) - 1})": layer for i, layer in enumerate(stack)}
    count = text_config(model).num_hidden_layers
    blocks = site_modules(model, Site.BLOCK, range(count))
    return found | {f"decoder layer {i} (of 0-{count - 1})": layer for i, layer in blocks.items()}


def _bad(logits: Tensor) -> Tensor:
    """[rows, ..., vocabulary] -> which rows."""
    return (logits.isnan() | logits.eq(float("inf"))).flatten(1).any(1)


def check_known(model: Any, tokenizer: Any, texts: Iterable[Sequence[int]]) -> None:
    """Raise EvaluationError where one of these texts, as token ids, holds one that the model's embedding lacks."""
    rows = rows_of(model)
    unknown = next((token for ids in texts for token in ids if token >= rows), None)
    if unknown is not None:
        raise EvaluationError(
            f"a text holds the token {tokenizer.convert_ids_to_tokens(unknown)!r} (id {unknown}), and the model's "
            f"embedding has {rows} rows: the tokenizer has tokens that this model was never given. Take it out of the "
            "data, or use the tokenizer that belongs to these weights"
        )
