"""Vectors of all roles: from shared passes where the model allows it, else one pass per text; nothing else is kept."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from sea_bake.activations.batches import distributed, padded
from sea_bake.activations.generating import greedy, rows_of
from sea_bake.activations.prompts import Tokens, pad_id
from sea_bake.activations.sharing import Job, shared
from sea_bake.activations.texts import DEFAULT_BATCH_SIZE, DEFAULT_NEW_TOKENS, ROLES
from sea_bake.errors import ActivationError
from sea_bake.model.anatomy import Site
from sea_bake.model.hooks import hooked
from sea_bake.model.placing import input_device
from sea_bake.model.running import explained
from sea_bake.model.sites import site_modules
from sea_bake.model.skeleton import decoder_of

Position = Literal["last", "mean", "random"]
DEFAULT_POSITION: Position = "last"
DEFAULT_SEED = 0


def read(
    model: Any,
    tokenizer: Any,
    roles: dict[str, list[Tokens]],
    open_ended: list[int],
    *,
    sites: Sequence[Site],
    layers: Sequence[int],
    position: Position = DEFAULT_POSITION,
    seed: int = DEFAULT_SEED,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> dict[Site, dict[str, Tensor]]:
    """:func:`vectors`, from as few tokens as the model allows; neutral texts are written into ``roles`` on the way.

    Args:
        open_ended: the demonstrations whose neutral text is to be written; none are left over.
    """
    writes = set(open_ended)
    jobs = [
        Job({role: roles[role][i] for role in ROLES}, i in writes, partial(_span, position, seed, i))
        for i in range(len(roles["neutral"]))
    ]
    options: dict[str, Any] = {"sites": sites, "layers": layers, "batch_size": batch_size}
    made = None
    if not any(tokens.encoder for tokens in roles["neutral"]):
        made = shared(model, tokenizer, jobs, max_new_tokens=max_new_tokens, **options)
    if made is None:
        prompts = [roles["neutral"][i] for i in open_ended]
        texts = greedy(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
        _write(roles, open_ended, texts)
        return vectors(model, tokenizer, roles, position=position, seed=seed, **options)
    _write(roles, open_ended, [made[i][0] for i in open_ended])
    stacked: dict[Site, dict[str, Tensor]] = {site: {} for site in sites}
    single: dict[tuple[Tokens, tuple[int, int]], dict[Site, Tensor]] = {}
    for role in ROLES:
        spans = [job.span(role, tokens) for job, tokens in zip(jobs, roles[role])]
        # Of one text, one vector: not two that differ by a batch's rounding.
        rows = [single.setdefault(key, one[1][role]) for key, one in zip(zip(roles[role], spans), made)]
        for site in sites:
            stacked[site][role] = torch.stack([row[site] for row in rows], dim=1)
    for of_site in stacked.values():
        check_finite(of_site, layers)
    return stacked


def _span(position: Position, seed: int, number: int, role: str, tokens: Tokens) -> tuple[int, int]:
    return picked(tokens, position, f"{seed}:{role}:{number}")


def _write(roles: dict[str, list[Tokens]], open_ended: list[int], texts: Sequence[Tokens]) -> None:
    for i, tokens in zip(open_ended, texts):
        roles["neutral"][i] = tokens
    open_ended.clear()


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
    picks = [_span(position, seed, i, role, tokens) for role, i, tokens in wanted]
    jobs = [(tokens, pick) for (_, _, tokens), pick in zip(wanted, picks)]
    single = list(dict.fromkeys(jobs))  # of one text, one vector: not two that differ by a batch's rounding
    backbone = decoder_of(model)
    pad = pad_id(tokenizer, rows_of(backbone))

    def run(batch: list[tuple[Tokens, tuple[int, int]]]) -> list[Tensor]:
        ids, mask = padded([t.ids for t, _ in batch], pad, left=False)
        spans = torch.tensor([pick for _, pick in batch])
        caught: dict[tuple[Site, int], Tensor] = {}

        def catch(site: Site, layer: int, output: Tensor) -> None:
            output = output.reshape(*ids.shape, -1)  # OPT's MLP flattens
            caught[site, layer] = _mean_over(output, spans.to(output.device))

        device = input_device(model)
        with torch.inference_mode(), contextlib.ExitStack() as hooks:
            for site, at in modules.items():
                hooks.enter_context(hooked(at, partial(catch, site), inputs=site.is_input))
            hooks.enter_context(explained(model))
            read = _read(model, [t.encoder for t, _ in batch if t.encoder], pad_id(tokenizer, rows_of(model)))
            backbone(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **read)
        by_site = [torch.stack([caught[site, layer].cpu() for layer in layers]) for site in sites]
        return list(torch.stack(by_site).movedim(2, 0))  # B x [sites, L, d]

    named = ", ".join(site.value for site in sites)
    once = distributed(f"activations ({named})", single, batch_size, run, key=lambda job: len(job[0].ids))
    by_job = dict(zip(single, once))
    found = [by_job[job] for job in jobs]
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
    ids, mask = (t.to(input_device(model)) for t in padded(prompts, pad, left=False))
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


def picked(tokens: Tokens, position: Position, seed: str) -> tuple[int, int]:
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
