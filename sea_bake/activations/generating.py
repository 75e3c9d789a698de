"""The model's own answer: greedy generation that is ours alone, whatever a checkpoint's generation_config says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sea_bake.activations.batches import distributed, padded
from sea_bake.activations.prompts import Tokens, pad_id
from sea_bake.errors import CheckpointError
from sea_bake.model.placing import input_device
from sea_bake.model.running import explained
from sea_bake.model.source import ModelSource

# Lists of token ids that a model must not say.
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")


def decoder_start(model: Any) -> int | None:
    """The token that the decoder of an encoder-decoder starts with; None where there is no encoder.

    Raises:
        CheckpointError: neither generation_config.json nor config.json names one.
    """
    return _start(model.config, model.generation_config)


def start_token(source: ModelSource) -> int | None:
    """The same of a model that is not loaded, from its configuration."""
    from transformers import AutoConfig, GenerationConfig

    if source.is_gguf:
        return None  # none of an encoder-decoder is read
    source = source.base() if source.is_adapter else source
    name = str(source.path or source.name)
    where: dict[str, Any] = {"revision": source.revision} if source.path is None and source.revision else {}
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
    except Exception as error:
        raise CheckpointError(f"the configuration of '{source.name}' cannot be read: {error}") from error
    try:
        return _start(config, GenerationConfig.from_pretrained(name, **where))
    except OSError:  # it has none
        return _start(config, config)


def _start(config: Any, generation: Any) -> int | None:
    if not getattr(config, "is_encoder_decoder", False):
        return None
    places = (generation, config)
    for name in ("decoder_start_token_id", "bos_token_id"):
        for place in places:
            if isinstance(start := getattr(place, name, None), int):
                return start
    raise CheckpointError(
        "this encoder-decoder does not say which token its decoder starts with: write decoder_start_token_id into its "
        "generation_config.json (of a T5 that is the id of the padding token, 0)"
    )


def rows_of(model: Any) -> int:
    """Rows of the embedding: ids from there on are unknown to the model."""
    return int(model.get_input_embeddings().weight.shape[0])


def generate(model: Any, tokenizer: Any, ids: Tensor, mask: Tensor, *, max_new_tokens: int, **more: Any) -> Tensor:
    """The most likely token, again and again: [rows, tokens], the prompts in front where there is no encoder.

    Of the checkpoint's generation_config only token ids are taken: where a text ends, how a decoder starts, and what is
    never said. Penalties, beams, stop strings, caches and other forms of output are not.

    Args:
        ids, mask: padded prompts, [rows, tokens].
        more: further arguments of transformers' ``generate``.

    Raises:
        CheckpointError: a model that transformers cannot run so.
    """
    from transformers import GenerationConfig

    theirs, ids_alone = model.generation_config, _token_ids(model, tokenizer)
    own = GenerationConfig(**ids_alone, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    model.generation_config = GenerationConfig(**ids_alone)  # where ``generate`` looks for what is not given to it
    try:
        with explained(model):
            out: Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=own, **more)
    finally:
        model.generation_config = theirs
    return out


def _token_ids(model: Any, tokenizer: Any) -> dict[str, Any]:
    theirs, rows = model.generation_config, rows_of(model)
    known = {name: getattr(theirs, name, None) for name in _SUPPRESSED}
    found: dict[str, Any] = {
        name: kept for name, ids in known.items() if (kept := [i for i in _listed(ids) if i < rows])
    }
    banned = [list(ids) for ids in _rows(getattr(theirs, "bad_words_ids", None)) if all(i < rows for i in _listed(ids))]
    found |= {"bad_words_ids": banned} if banned else {}
    ends = sorted(stop_ids(model, tokenizer))
    return found | {
        "pad_token_id": pad_id(tokenizer, rows),
        "eos_token_id": ends or None,
        "bos_token_id": getattr(theirs, "bos_token_id", None),
        "decoder_start_token_id": decoder_start(model),
    }


def _listed(ids: Any) -> list[int]:
    """Token ids out of one id, a list of them, or something else."""
    found = ids if isinstance(ids, list | tuple) else [ids]
    return [i for i in found if isinstance(i, int) and not isinstance(i, bool) and i >= 0]


def _rows(value: Any) -> list[Any]:
    return [row for row in value if isinstance(row, list) and row] if isinstance(value, list) else []


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text: those of the checkpoint and of the tokenizer."""
    places = (model.generation_config, tokenizer)
    return {i for place in places for i in _listed(getattr(place, "eos_token_id", None))}


def greedy(
    model: Any, tokenizer: Any, prompts: Sequence[Tokens], *, max_new_tokens: int, batch_size: int
) -> list[Tokens]:
    """The prompts with the model's greedy continuation, from batches sorted by length.

    They are padded on the left; for an encoder on the right, since its positions count from the left.
    """
    stops, pad = stop_ids(model, tokenizer), pad_id(tokenizer, rows_of(model))

    def run(batch: list[Tokens]) -> list[Tokens]:
        ids, mask = padded([t.encoder or t.ids for t in batch], pad, left=batch[0].encoder is None)
        prompt_length = ids.shape[1] if batch[0].encoder is None else 1  # a decoder of its own gives its start token
        device = input_device(model)
        out = generate(model, tokenizer, ids.to(device), mask.to(device), max_new_tokens=max_new_tokens)
        continued = []
        for tokens, row in zip(batch, out[:, prompt_length:].tolist()):
            cut = next((i for i, token in enumerate(row) if token in stops), len(row))
            continued.append(Tokens((*tokens.ids, *row[:cut]), len(tokens.ids), tokens.encoder))
        return continued

    return distributed("neutral texts", prompts, batch_size, run)
