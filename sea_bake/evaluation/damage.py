"""What an edit costs beyond tasks: on neutral text, and in what the model writes.

- KL(base ‖ edited) per token, teacher-forced over every position of each text: damage that only shows after some
  tokens is hidden from the first-token KL that many reports give;
- perplexity of the same texts;
- repetition of greedy answers: share of 4-grams that were there before (seq-rep-4 of Welleck et al. 2020,
  arXiv 1908.04319).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sea_bake.activations.generating import generate, rows_of
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import encode
from sea_bake.artefact.evaluation import Record
from sea_bake.errors import EvaluationError
from sea_bake.evaluation.finite import check_finite, check_known, watched
from sea_bake.evaluation.measures import Column, read
from sea_bake.evaluation.neutral import PROMPTS, TEXTS
from sea_bake.io.regular import MAX_JSON, read_text
from sea_bake.model.lower import LowerLayers
from sea_bake.model.placing import input_device
from sea_bake.model.processes import dealt, gathered, in_step

NEUTRAL, GENERATION = "neutral_text", "generation"
TITLES = {NEUTRAL: "neutral text", GENERATION: "greedy answers"}
_MOST_TOKENS = 256  # of each neutral text
_LOGITS = 512 << 20  # bytes of the base's log-probabilities that are kept
_PASS = 64 << 20  # bytes of the logits of one pass: some texts of a vocabulary of 50,000
_GRAM = 4


def read_texts(path: str | Path | None) -> list[str]:
    """Neutral texts: those of the package, or a file's paragraphs (parted by empty lines).

    Raises:
        EvaluationError: the file cannot be read as text, or has fewer than two paragraphs.
    """
    if path is None:
        return list(TEXTS)
    try:
        text = read_text(os.path.expanduser(path), limit=MAX_JSON)
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read as text: {error}") from error
    found = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    if len(found) < 2:
        raise EvaluationError(f"{path} holds {len(found)} paragraphs, parted by empty lines: an interval needs two")
    return found


class Neutral:
    """Neutral texts through one door after the other; the base comes first, and its log-probabilities are kept.

    All positions, or evenly spread ones where more than 512 MiB would have to be kept.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        encoded = [list(tokenizer(text, verbose=False)["input_ids"])[:_MOST_TOKENS] for text in texts]
        self.ids = [ids for ids in encoded if len(ids) > 1]
        if len(self.ids) < 2:
            raise EvaluationError("fewer than two neutral texts have two tokens")
        self._kept: dict[int, Tensor] = {}
        self._stride = 1

    @torch.inference_mode()
    def records(
        self, model: Any, advance: Callable[[int], None] = lambda count: None, lower: LowerLayers | None = None
    ) -> list[Record]:
        """Per text: "nll" in nats over "tokens" predicted tokens; behind the base also "kl" over "compared" ones.

        Args:
            lower: the model's layers below all edits, which are then computed once.

        Raises:
            EvaluationError: NaN or infinite logits; an embedding that lacks the tokens of nearly all texts.
        """
        base = not self._kept
        if base:
            self._cut(rows_of(model))
        found: list[Record] = []
        with in_step():
            for i, logs in self._logs(model, dealt(self._passes(range(len(self.ids)), rows_of(model))), lower):
                ids = self.ids[i]
                told = logs.gather(1, torch.tensor(ids[1:], device=logs.device)[:, None]).squeeze(1)
                if base and not self._kept:
                    total = sum(len(ids) - 1 for ids in self.ids) * logs.shape[-1] * 4
                    self._stride = -(-total // _LOGITS)
                values = {"nll": -float(told.double().sum()), "tokens": float(len(told))}
                at = logs[:: self._stride].cpu()
                if base:
                    self._kept[i] = at
                kl, same = _divergence(self._kept[i], at)
                values |= {"kl": kl, "agreed": same, "compared": float(len(at))}
                found.append({"task": NEUTRAL, "id": i, "hash": f"{len(ids)} tokens", "values": values})
                advance(1)
        return together(found)

    @torch.inference_mode()
    def kl(self, model: Any, places: Sequence[int], lower: LowerLayers | None = None) -> float:
        """Mean KL per token from the base, whose records have been taken, on the texts at these places alone.

        Raises:
            EvaluationError: NaN or infinite logits.
        """
        found = []
        with in_step():
            read = self._passes(range(len(self.ids)), rows_of(model))  # each by the process that has kept its texts
            own = [[i for i in one if i in places and i in self._kept] for one in read]
            for i, logs in self._logs(model, [one for one in own if one], lower):
                at = logs[:: self._stride].cpu()
                found.append((i, _divergence(self._kept[i], at)[0], len(at)))
        everything = sorted(gathered(found))
        return sum(kl for _, kl, _ in everything) / sum(count for _, _, count in everything)

    def _cut(self, rows: int) -> None:
        """Each text ends before its first token that an embedding of this number of rows lacks."""
        known = [list(itertools.takewhile(lambda token: token < rows, ids)) for ids in self.ids]
        self.ids = [ids for ids in known if len(ids) > 1]
        if len(self.ids) < 2:
            raise EvaluationError(
                f"the model's embedding has {rows} rows, and the tokenizer has tokens beyond it in all but "
                f"{len(self.ids)} of the neutral texts: use the tokenizer that belongs to these weights"
            )

    def _passes(self, places: Iterable[int], vocabulary: int) -> list[list[int]]:
        """Places of texts of about one length, read together: as many as their logits are not too large for."""
        found: list[list[int]] = []
        for i in sorted(places, key=lambda i: (-len(self.ids[i]), i)):
            width = len(self.ids[found[-1][0]]) if found else 0
            if found and (len(found[-1]) + 1) * width * vocabulary * 4 <= _PASS:
                found[-1].append(i)
            else:
                found.append([i])
        return found

    def _logs(
        self, model: Any, passes: Sequence[Sequence[int]], lower: LowerLayers | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Text -> [its tokens - 1, vocabulary] log-probabilities in float32. Texts that are shorter than the others of
        a pass are padded behind their end, where a causal model does not look.
        """
        lower = lower or LowerLayers(model)
        for places in passes:
            texts = [self.ids[i] for i in places]
            width = len(texts[0])
            rows = torch.tensor([ids + [0] * (width - len(ids)) for ids in texts], device=input_device(model))
            logits = lower.spared(partial(_run, model, rows, lower))
            for i, ids, told in zip(places, texts, logits):
                check_finite(model, told[None, : len(ids)], [ids])
                yield i, told[: len(ids) - 1].float().log_softmax(-1)


def _run(model: Any, rows: Tensor, lower: LowerLayers) -> Tensor:
    with lower.of((NEUTRAL, *map(tuple, rows.tolist()))):
        return model(input_ids=rows, use_cache=False).logits


def _divergence(base: Tensor, other: Tensor) -> tuple[float, float]:
    """Σ KL(base ‖ other) over positions, and how many have the same most likely token; log-probabilities in."""
    kl = 0.0
    for p, q in zip(base.split(32), other.split(32)):  # what stays in a processor's cache is five times as fast
        kl += float(F.kl_div(q, p, log_target=True, reduction="none").sum(-1).double().sum())
    return max(kl, 0.0), float((base.argmax(-1) == other.argmax(-1)).sum())


@torch.inference_mode()
def generations(
    model: Any,
    tokenizer: Any,
    *,
    prompts: Sequence[str] = PROMPTS,
    max_new_tokens: int = 64,
    form: PromptFormat | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Record]:
    """Greedy answers to prompts, one by one and rendered in this format, and how much each repeats itself.

    Raises:
        EvaluationError: NaN or infinite logits.
    """
    device = input_device(model)
    found: list[Record] = []
    with in_step():
        for i, prompt in dealt(list(enumerate(prompts))):
            asked = encode(tokenizer, prompt, form=form).ids
            check_known(model, tokenizer, [asked])
            ids = torch.tensor([asked], device=device)
            mask = torch.ones_like(ids)
            out = generate(
                model,
                tokenizer,
                ids,
                mask,
                max_new_tokens=max_new_tokens,
                **watched(model, ids, mask),
            )
            new = out[0, ids.shape[1] :].tolist()
            values = {"repeated": repetition(new), "length": float(len(new))}
            response = tokenizer.decode(new, skip_special_tokens=True)
            record = {
                "task": GENERATION,
                "id": i,
                "hash": prompt,
                "prompt": prompt,
                "response": response,
                "values": values,
            }
            found.append(record)
            advance(1)
    return together(found)


def together(mine: list[Record]) -> list[Record]:
    """The records of all processes, in their order."""
    return sorted(gathered(mine), key=lambda record: record["id"])


def repetition(ids: Sequence[int]) -> float:
    """1 - distinct 4-grams / all 4-grams; 0 for an answer that is too short to have one."""
    grams = [tuple(ids[i : i + _GRAM]) for i in range(len(ids) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


MEASURES = {
    NEUTRAL: [
        Column("kl", "KL from base, per token", read("kl", "compared"), better="lower", unit="nats", judged=False),
        Column("perplexity", "perplexity", read("nll", "tokens"), "perplexity", better="lower", unit=""),
        Column("top1", "same top token as base", read("agreed", "compared"), judged=False),
    ],
    GENERATION: [
        Column("repetition", "repeated 4-grams", read("repeated", "one"), better="lower"),
        Column("length", "tokens, at most 64", read("length", "one"), unit="", judged=False),
    ],
}
