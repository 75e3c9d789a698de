"""One forward pass per batch; only the wanted vectors are kept."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from sea_bake.activations.prompts import Tokens, encode, pad_id
from sea_bake.demonstrations import Demonstration
from sea_bake.errors import ActivationError
from sea_bake.io import progress
from sea_bake.model.anatomy import Site
from sea_bake.model.hooks import hooked
from sea_bake.model.loading import processes
from sea_bake.model.sites import site_modules, text_config

Position = Literal["last", "mean", "random"]
Neutral = Literal["generate", "prompt"]
# One default each, for all who collect activations.
DEFAULT_POSITION: Position = "last"
DEFAULT_NEUTRAL: Neutral = "generate"
DEFAULT_NEW_TOKENS = 32
DEFAULT_SEED = 0
DEFAULT_BATCH_SIZE = 16
# Arguments of ``generate`` that leave nothing to chance, whatever a model's own generation settings say.
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
ROLES = ("neutral", "positive", "negative")


def sequences(
    model: Any,
    tokenizer: Any,
    demonstrations: Sequence[Demonstration],
    *,
    neutral: Neutral = DEFAULT_NEUTRAL,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    system: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> dict[str, list[Tokens]]:
    """Token ids of the three roles of each demonstration, in its order.

    The neutral text is the demonstration's own if it has one; else the model's greedy continuation ("generate", as in
    the paper; a trailing end-of-sequence token is dropped), or nothing ("prompt": the prompt alone).
    """
    start = decoder_start(model)

    def encoded(prompt: str, continuation: str | None) -> Tokens:
        return encode(tokenizer, prompt, continuation, system, decoder_start=start)

    found = {
        "positive": [encoded(d.prompt, d.positive) for d in demonstrations],
        "negative": [encoded(d.prompt, d.negative) for d in demonstrations],
        "neutral": [encoded(d.prompt, d.neutral) for d in demonstrations],
    }
    _check_lengths(model, found, max_new_tokens if neutral == "generate" else 0)
    if neutral == "generate":
        open_ended = [i for i, d in enumerate(demonstrations) if d.neutral is None]
        prompts = [found["neutral"][i] for i in open_ended]
        texts = greedy(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
        for i, tokens in zip(open_ended, texts):
            found["neutral"][i] = tokens
    return found


def decoder_start(model: Any) -> int | None:
    """The token that the decoder of an encoder-decoder starts with; None where there is no encoder."""
    if not model.config.is_encoder_decoder:
        return None
    start = model.generation_config.decoder_start_token_id
    return int(model.generation_config.bos_token_id if start is None else start)


def greedy(
    model: Any, tokenizer: Any, prompts: Sequence[Tokens], *, max_new_tokens: int, batch_size: int
) -> list[Tokens]:
    """The prompts with the model's greedy continuation, from batches sorted by length.

    They are padded on the left; for an encoder on the right, since its positions count from the left.
    """
    stops = _stop_ids(model, tokenizer)
    pad = pad_id(tokenizer)

    def run(batch: list[Tokens]) -> list[Tokens]:
        ids, mask = _pad([t.encoder or t.ids for t in batch], pad, left=batch[0].encoder is None)
        prompt_length = ids.shape[1] if batch[0].encoder is None else 1  # a decoder of its own gives its start token
        device = _input_device(model)
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            **GREEDY,
            pad_token_id=pad,
        )
        continued = []
        for tokens, row in zip(batch, out[:, prompt_length:].tolist()):
            cut = next((i for i, token in enumerate(row) if token in stops), len(row))
            continued.append(Tokens((*tokens.ids, *row[:cut]), len(tokens.ids), tokens.encoder))
        return continued

    return _distributed("neutral texts", prompts, batch_size, run)


def vectors(
    model: Any,
    tokenizer: Any,
    roles: dict[str, list[Tokens]],
    *,
    sites: Sequence[Site],
    layers: Sequence[int],
    position: Position = DEFAULT_POSITION,
    seed: int = DEFAULT_SEED,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> dict[Site, dict[str, Tensor]]:
    """Activations: site -> role -> [L, n, d] float32 on the CPU, L in the order of ``layers``.

    All sites are read in the same passes. Batches are padded on the right, where a causal decoder cannot see the
    padding. Under ``accelerate launch`` or ``torchrun`` the same batches are dealt out to the processes, so every
    process returns the same tensors.

    Raises:
        ActivationError: NaN or infinite activations, with the first layer, role and demonstration.
    """
    modules = {site: site_modules(model, site, layers) for site in sites}
    wanted = [(role, i, tokens) for role in ROLES for i, tokens in enumerate(roles[role])]
    picks = [_pick(tokens, position, f"{seed}:{role}:{i}") for role, i, tokens in wanted]
    jobs = [(tokens, pick) for (_, _, tokens), pick in zip(wanted, picks)]
    backbone = model.get_decoder()
    pad = pad_id(tokenizer)

    def run(batch: list[tuple[Tokens, tuple[int, int]]]) -> list[Tensor]:
        ids, mask = _pad([t.ids for t, _ in batch], pad, left=False)
        spans = torch.tensor([pick for _, pick in batch])
        caught: dict[tuple[Site, int], Tensor] = {}

        def catch(site: Site, layer: int, output: Tensor) -> None:
            output = output.reshape(*ids.shape, -1)  # OPT's MLP flattens
            caught[site, layer] = _mean_over(output, spans.to(output.device))

        device = _input_device(model)
        with torch.inference_mode(), contextlib.ExitStack() as hooks:
            for site, at in modules.items():
                hooks.enter_context(hooked(at, partial(catch, site)))
            read = _read(model, [t.encoder for t, _ in batch if t.encoder], pad)
            backbone(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **read)
        by_site = [torch.stack([caught[site, layer].cpu() for layer in layers]) for site in sites]
        return list(torch.stack(by_site).movedim(2, 0))  # B x [sites, L, d]

    told = ", ".join(site.value for site in sites)
    found = _distributed(f"activations ({told})", jobs, batch_size, run, key=lambda job: len(job[0].ids))
    n = len(roles["neutral"])
    stacked = {
        site: {role: torch.stack([t[s] for t in found[r * n : (r + 1) * n]], dim=1) for r, role in enumerate(ROLES)}
        for s, site in enumerate(sites)
    }
    for of_site in stacked.values():
        check_finite(of_site, layers)
    return stacked


def _read(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """What a decoder is told about the prompts that an encoder read; nothing where there is no encoder."""
    if not prompts:
        return {}
    ids, mask = (t.to(_input_device(model)) for t in _pad(prompts, pad, left=False))
    states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def check_finite(stacked: dict[str, Tensor], layers: Sequence[int]) -> None:
    """Raises ActivationError naming the first layer, role and demonstration (from 1) that is NaN or infinite."""
    for role, tensor in stacked.items():
        bad = (~torch.isfinite(tensor)).any(-1).nonzero()
        if len(bad):
            layer, demo = int(bad[0, 0]), int(bad[0, 1])
            raise ActivationError(
                f"the {role} activation of demonstration {demo + 1} is NaN or infinite at layer {layers[layer]} "
                f"({len(bad)} such vectors). float16 overflows in some models: try --dtype bfloat16 or float32."
            )


def _pick(tokens: Tokens, position: Position, seed: str) -> tuple[int, int]:
    """[first, end) of the tokens whose mean is taken: one token, or the whole continuation."""
    length, start = len(tokens.ids), min(tokens.start, len(tokens.ids) - 1)
    if position == "mean":
        return start, length
    if position == "random":
        digest = int(hashlib.sha256(seed.encode()).hexdigest(), 16)
        index = random.Random(digest).randrange(start, length)
        return index, index + 1
    return length - 1, length


def _mean_over(output: Tensor, spans: Tensor) -> Tensor:
    """[B, T, d] -> [B, d] in float32: the mean over each row's span. A span of one token is that token's vector."""
    first, end = spans[:, 0], spans[:, 1]
    if bool((end - first == 1).all()):
        return output[torch.arange(len(output), device=output.device), first].float()
    index = torch.arange(output.shape[1], device=output.device)
    inside = (index >= first[:, None]) & (index < end[:, None])
    return torch.stack([row[keep].float().mean(0) for row, keep in zip(output, inside)])


def _pad(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


def _distributed(
    description: str,
    jobs: Sequence[Any],
    batch_size: int,
    run: Callable[[list[Any]], list[Any]],
    key: Callable[[Any], int] = lambda tokens: len(tokens.ids),
) -> list[Any]:
    """``run`` over batches of similar length, dealt out to all processes; results in the order of ``jobs`` on each.

    The batches do not depend on the number of processes, so neither do the results.
    """
    from accelerate.utils import gather_object

    state = processes()
    order = sorted(range(len(jobs)), key=lambda i: -key(jobs[i]))  # longest first: out of memory shows at once
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    mine: list[tuple[int, Any]] = []
    own = batches[state.process_index :: state.num_processes]
    with progress.bar(description, sum(map(len, own)), "seq") as advance:
        for batch in own:
            mine += zip(batch, run([jobs[i] for i in batch]))
            advance(len(batch))
    everything = gather_object(mine) if state.num_processes > 1 else mine
    results: list[Any] = [None] * len(jobs)
    for i, result in everything:
        results[i] = result
    return results


def _check_lengths(model: Any, roles: dict[str, list[Tokens]], extra: int) -> None:
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if not limit:
        return
    for role, sequences_of_role in roles.items():
        for i, tokens in enumerate(sequences_of_role):
            length = max(len(tokens.ids) + (extra if role == "neutral" else 0), len(tokens.encoder or ()))
            if length > limit:
                raise ActivationError(
                    f"the {role} text of demonstration {i + 1} takes {length} tokens, and the model has positions for "
                    f"{limit}: shorten it, leave it out, or lower --max-new-tokens"
                )


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    stops: set[int] = set()
    for value in (getattr(model.generation_config, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        stops |= {value} if isinstance(value, int) else set(value or ())
    return stops


def _input_device(model: Any) -> torch.device:
    device = model.get_input_embeddings().weight.device
    return device if device.type != "meta" else torch.device("cpu")  # offloaded: accelerate's hooks move the inputs
