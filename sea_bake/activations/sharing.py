"""All roles of a demonstration from one reading of its prompt, and the neutral text's vectors while it is written.

What all prompts have in common (a chat template's beginning) is computed once, and so is each prompt: the keys and
values of both are kept, and the answers go on from them. A generated token's activation is caught when it is read for
the next one, so the neutral text is not run again. Up to rounding these are the vectors of one pass per text, which is
tried on one demonstration of each collection: where it does not hold, in a family that counts positions otherwise, each
text is run by itself.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from sea_bake.activations.batches import distributed, padded
from sea_bake.activations.generating import generate, rows_of, stop_ids
from sea_bake.activations.prompts import Tokens, pad_id
from sea_bake.model.anatomy import Site
from sea_bake.model.caches import cache_name, can_share
from sea_bake.model.hooks import hooked
from sea_bake.model.placing import input_device
from sea_bake.model.running import explained
from sea_bake.model.sites import site_modules
from sea_bake.model.skeleton import decoder_of

_SHORT = 8  # a common beginning of fewer tokens is not worth a pass of its own

# How far a vector may lie from that of a pass of its own, as a share of its largest entry: rounding, and not another
# position or mask, which moves it by the size of itself.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

Span = tuple[int, int]
Vectors = dict[Site, Tensor]


@dataclass(frozen=True)
class Job:
    """One demonstration.

    Attributes:
        texts: role -> its text; of the neutral one the prompt alone, where it is still to be written.
        writes: whether it is.
        span: (role, its whole text) -> the span [first, end) of tokens whose mean is taken.
    """

    texts: Mapping[str, Tokens]
    writes: bool
    span: Callable[[str, Tokens], Span]

    @property
    def answers(self) -> dict[str, Tokens]:
        """The texts that are there already."""
        return {role: text for role, text in self.texts.items() if not (self.writes and role == "neutral")}

    @cached_property
    def prompt(self) -> tuple[int, ...]:
        """What is read once: all of the prompt where it is to be continued, else what the texts have in common."""
        return self.texts["neutral"].ids if self.writes else common([text.ids for text in self.texts.values()])

    @cached_property
    def again(self) -> int:
        """Tokens at the prompt's end that the answers read again: where one parts earlier, or is no longer than it."""
        read = self.prompt
        parting = (common([read, text.ids]) for text in self.answers.values())
        firsts = (self.span(role, text)[0] for role, text in self.answers.items())
        return max(len(read) - min((*map(len, parting), *firsts)), 0)


class Sharing:
    """One collection on a living decoder, of one width.

    Args:
        modules: site -> layer -> the module whose output (or input) is wanted.
        begin: what all prompts begin with.
    """

    def __init__(
        self, model: Any, tokenizer: Any, modules: Mapping[Site, Mapping[int, Any]], begin: tuple[int, ...], tokens: int
    ) -> None:
        self.model, self.tokenizer, self.modules = model, tokenizer, modules
        self.begin, self.max_new_tokens = begin, tokens
        self.backbone, self.device = decoder_of(model), input_device(model)
        self.stops, self.pad = stop_ids(model, tokenizer), pad_id(tokenizer, rows_of(model))
        self.name = cache_name(self.backbone)
        self.counts = "position_ids" in inspect.signature(type(self.backbone).forward).parameters
        self.begun = self._begun()

    def _begun(self) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        if self.begin:
            self._forward(torch.tensor([self.begin]), torch.ones(1, len(self.begin), dtype=torch.long), cache)
        return cache

    def run(self, jobs: list[Job]) -> list[tuple[Tokens, dict[str, Vectors]]]:
        """Of each job its neutral text, and role -> site -> [L, d] float32; all of them write, or none does."""
        count, begin = len(jobs), len(self.begin)
        rest, mask = padded([job.prompt[begin:] for job in jobs], self.pad, left=True)
        mask = torch.cat([torch.ones(count, begin, dtype=torch.long), mask], dim=1)
        cache = copy.deepcopy(self.begun)
        if begin:
            cache.batch_repeat_interleave(count)
        found: list[tuple[Tokens, dict[str, Vectors]]] = [(job.texts["neutral"], {}) for job in jobs]
        if jobs[0].writes:
            found = self._written(jobs, rest, mask, cache)
        else:
            self._forward(rest, mask, cache)
        again = max(job.again for job in jobs)
        _cut(cache, mask.shape[1] - again)
        for role in jobs[0].answers:
            texts = [job.texts[role] for job in jobs]
            starts = [len(job.prompt) - again for job in jobs]
            ids, own = padded([text.ids[start:] for text, start in zip(texts, starts)], self.pad, left=False)
            seen = torch.cat([mask[:, : mask.shape[1] - again], own], dim=1)
            passes = self._caught(count, partial(self._forward, ids, seen, cache))
            _cut(cache, mask.shape[1] - again)
            for row, (job, text, start) in enumerate(zip(jobs, texts, starts)):
                found[row][1][role] = _means(passes[0], row, job.span(role, text), start)
        return found

    def holds(self, job: Job, neutral: Tokens, found: Mapping[str, Vectors]) -> bool:
        """Whether passes of their own give a demonstration's texts the same vectors, up to rounding."""
        for role, text in {**job.texts, "neutral": neutral}.items():
            ids = torch.tensor([text.ids], device=self.device)
            passes = self._caught(1, partial(self.backbone, input_ids=ids, use_cache=False))
            for site, alone in _means(passes[0], 0, job.span(role, text), 0).items():
                room = _ROUNDING.get(self.model.dtype, 1e-1) * float(alone.abs().max())
                if not float((alone - found[role][site]).abs().max()) <= room:
                    return False
        return True

    def _written(
        self, jobs: list[Job], rest: Tensor, mask: Tensor, cache: Any
    ) -> list[tuple[Tokens, dict[str, Vectors]]]:
        whole = torch.cat([torch.tensor([self.begin] * len(jobs), dtype=torch.long).view(len(jobs), -1), rest], dim=1)
        written: list[Tensor] = []

        def write() -> None:  # one token more than is kept: the last one's activation is there when it has been read
            more = {cache_name(self.model): cache, "max_new_tokens": self.max_new_tokens + 1}
            written.append(generate(self.model, self.tokenizer, whole.to(self.device), mask.to(self.device), **more))

        passes = self._caught(len(jobs), write, last=True)
        steps = {
            site: torch.cat([one[site] for one in passes], dim=2) for site in self.modules
        }  # [L, B, 1 + tokens, d]
        found = []
        for row, (job, ids) in enumerate(zip(jobs, written[0][:, whole.shape[1] :].tolist())):
            ids = ids[: self.max_new_tokens]
            kept = ids[: next((i for i, token in enumerate(ids) if token in self.stops), len(ids))]
            text = Tokens((*job.prompt, *kept), len(job.prompt))
            found.append((text, {"neutral": _means(steps, row, job.span("neutral", text), len(job.prompt) - 1)}))
        return found

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any) -> None:
        """One pass over [rows, tokens] behind the cache; ``mask`` covers both."""
        places = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        more: dict[str, Any] = {"position_ids": places.to(self.device)} if self.counts else {}
        more[self.name] = cache
        with explained(self.model):
            self.backbone(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=True, **more)

    def _caught(self, rows: int, run: Callable[[], None], *, last: bool = False) -> list[dict[Site, Tensor]]:
        """Of each pass site -> [L, rows, tokens, d]; ``last``: of its last token alone."""
        seen: dict[tuple[Site, int], list[Tensor]] = {}

        def catch(site: Site, layer: int, output: Tensor) -> None:
            output = output.reshape(rows, -1, output.shape[-1])  # OPT's MLP flattens
            seen.setdefault((site, layer), []).append(output[:, -1:].clone() if last else output.clone())

        with ExitStack() as hooks:
            for site, at in self.modules.items():
                hooks.enter_context(hooked(dict(at), partial(catch, site), inputs=site.is_input))
            run()
        passes = len(next(iter(seen.values())))
        return [
            {site: torch.stack([seen[site, layer][i].to("cpu") for layer in at]) for site, at in self.modules.items()}
            for i in range(passes)
        ]


def shared(
    model: Any,
    tokenizer: Any,
    jobs: Sequence[Job],
    *,
    sites: Sequence[Site],
    layers: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
) -> list[tuple[Tokens, dict[str, Vectors]]] | None:
    """Of each job its neutral text, and role -> site -> [L, d] float32 on the CPU; None where a model cannot share."""
    if not can_share(model, cut=True):
        return None
    prompts, again = [job.prompt for job in jobs], max(job.again for job in jobs)
    short = min(map(len, prompts)) - 1 - again  # of each prompt something is left for its own pass
    if short < 0:
        return None
    begin = common(prompts)[:short]
    begin = begin if len(begin) >= _SHORT and len(jobs) > 1 else ()
    modules = {site: site_modules(model, site, layers) for site in sites}
    found: list[Any] = [None] * len(jobs)
    with torch.inference_mode():
        one = Sharing(model, tokenizer, modules, begin, max_new_tokens)
        for writes, what in ((True, "neutral texts, activations"), (False, "activations")):
            own = [i for i, job in enumerate(jobs) if job.writes is writes]
            if own:
                made = distributed(what, [jobs[i] for i in own], batch_size, one.run, key=lambda job: len(job.prompt))
                for i, result in zip(own, made):
                    found[i] = result
        padded_most = min(range(len(jobs)), key=lambda i: len(prompts[i]))
        if not one.holds(jobs[padded_most], *found[padded_most]):
            return None
    return found


def common(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all rows begin with."""
    low, high = min(rows), max(rows)  # in dictionary order all others lie between these two
    return low[: next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))]


def _means(outputs: Mapping[Site, Tensor], row: int, span: Span, start: int) -> Vectors:
    """Site -> [L, d] float32 on the CPU: a row's mean over a span, of [L, rows, tokens, d] from token ``start`` on."""
    first, end = (place - start for place in span)
    return {site: output[:, row, first:end].float().mean(1).cpu() for site, output in outputs.items()}


def _cut(cache: Any, length: int) -> None:
    """Leave the first ``length`` tokens: a negative number is what every version of transformers understands."""
    more = cache.get_seq_length() - length
    if more > 0:
        cache.crop(-more)
