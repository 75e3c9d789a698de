"""Log-likelihoods of answers to prompts, where what many prompts have in common is computed once.

The keys and values of the common beginning of all prompts are kept, then those of each prompt; the answers are rows of
a batch that starts from them. No masks and no padding before an answer: prompts are batched only with prompts of their
own length, and an answer is padded behind its end, where a causal model does not look. So every family that has a plain
key-value cache gives what it would give to the whole text, up to rounding.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sea_bake.activations import DEFAULT_BATCH_SIZE
from sea_bake.errors import EvaluationError
from sea_bake.evaluation.finite import check_finite
from sea_bake.model.caches import cache_name
from sea_bake.model.lower import LowerLayers
from sea_bake.model.placing import input_device, out_of_memory
from sea_bake.model.processes import dealt, gathered, in_step

Ids = tuple[int, ...]
Score = tuple[float, bool]
_PASS = 8  # tokens whose arithmetic takes as long as reading the weights once more (135M parameters, float32, a CPU)
_SHORT = 8  # a common beginning of fewer tokens is not worth a pass of its own


class Scorer:
    """Scores answers with one model, and remembers what it has scored.

    Args:
        model: a living causal model, hooks and all.
        batch_size: largest number of rows in a forward pass; halved when memory runs out.
        advance: called with the number of requests that were answered.
        say: called with a sentence for people, when the batch is halved.
        lower: the model's layers below all edits, which are then computed once for all scorers that have them.
    """

    def __init__(
        self,
        model: Any,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        advance: Callable[[int], None] = lambda count: None,
        say: Callable[[str], None] = lambda text: None,
        lower: LowerLayers | None = None,
    ) -> None:
        self.model, self.batch_size, self.advance, self.say = model, batch_size, advance, say
        self._lower = lower or LowerLayers(model)
        self._device = input_device(model)
        self._cache = cache_name(model)
        self._keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._known: dict[tuple[Ids, Ids], Score] = {}

    @torch.inference_mode()
    def __call__(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """(prompt, answer), both token ids and neither empty -> (log p(answer | prompt) in nats, is it the greedy one).

        Raises:
            EvaluationError: NaN or infinite logits (the message names the first layer that gives them), or no memory
                even for one row.
        """
        asked = [(tuple(prompt), tuple(answer)) for prompt, answer in requests]
        answers: dict[Ids, set[Ids]] = {}
        for prompt, answer in asked:
            if (prompt, answer) not in self._known:
                answers.setdefault(prompt, set()).add(answer)
        told = len(asked) - sum(map(len, answers.values()))
        if answers:
            self.batch_size = min(gathered([self.batch_size]))  # where one has halved it, all deal with that
            shared = _common(answers)
            common = min(answers)[:shared]
            begin = partial(self._forward, [common], [common], None, 1, ())
            start = self._lower.spared(begin)[1] if shared else None
            batches: list[list[Ids]] = []
            # The longest first: what does not fit into memory is seen at once.
            for _, group in groupby(sorted(answers, key=len, reverse=True), key=len):
                prompts = list(group)
                batches += [prompts[i : i + self.batch_size] for i in range(0, len(prompts), self.batch_size)]
            found: list[tuple[tuple[Ids, Ids], Score]] = []
            with in_step():
                for batch in dealt(batches):
                    found += self._in_batches(
                        start, shared, {prompt: sorted(answers[prompt], key=len) for prompt in batch}
                    )
            everything = gathered(found)
            self._known |= dict(everything)
            told += len(everything) - len(found)  # by other processes
        self.advance(told)
        return [self._known[pair] for pair in asked]

    def _in_batches(
        self, start: Any, shared: int, answers: dict[Ids, list[Ids]]
    ) -> Iterator[tuple[tuple[Ids, Ids], Score]]:
        prompts = list(answers)
        while prompts:
            batch = prompts[: self.batch_size]
            try:
                found = self._score(start, shared, {prompt: answers[prompt] for prompt in batch})
            except RuntimeError as error:
                self.halve(error)
                continue  # outside of the handler nothing holds on to the tensors that did not fit
            yield from found.items()
            prompts = prompts[len(batch) :]
            self.advance(len(found))

    def halve(self, error: RuntimeError) -> None:
        """Halve the batch if this error says that memory ran out, or first let go of what the lower layers gave; raise
        it again if it does not.

        Raises:
            EvaluationError: the batch was one row already.
        """
        if not out_of_memory(error):
            raise error
        if self._lower.forget():
            return
        if self.batch_size <= 1:
            raise no_memory() from error
        self.batch_size //= 2
        self.say(f"out of memory: batches of {self.batch_size} from here on")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _score(self, start: Any, shared: int, answers: dict[Ids, list[Ids]]) -> dict[tuple[Ids, Ids], Score]:
        """All answers to a batch of prompts that have the same length."""
        begun = copy.deepcopy(start)
        if begun is not None:
            begun.batch_repeat_interleave(len(answers))
        made = (shared, *answers)  # what the cache was made by
        first, after = self._forward([prompt[shared:] for prompt in answers], list(answers), begun, 1, made)
        found: dict[tuple[Ids, Ids], Score] = {}
        longer: list[tuple[int, Ids, Ids, float, bool]] = []
        for row, (prompt, given) in enumerate(answers.items()):
            best = int(first[row, -1].argmax())
            for answer in given:
                value, greedy = float(first[row, -1, answer[0]]), best == answer[0]
                if len(answer) == 1:
                    found[prompt, answer] = value, greedy
                else:
                    longer.append((row, prompt, answer, value, greedy))
        longer.sort(key=lambda item: len(item[2]))
        for piece in _pieces(longer, [len(item[2]) for item in longer], self.batch_size):
            cache = copy.deepcopy(after)
            # On no device of its own: the cache's layers may lie on several.
            cache.batch_select_indices(torch.tensor([row for row, *_ in piece]))
            width = len(piece[-1][2]) - 1
            padded = [answer[:-1] + (0,) * (width - len(answer) + 1) for _, _, answer, _, _ in piece]
            texts = [prompt + answer for _, prompt, answer, _, _ in piece]
            logs, _ = self._forward(padded, texts, cache, width, made)
            for row, (_, prompt, answer, value, greedy) in enumerate(piece):
                rest = torch.tensor(answer[1:], device=logs.device)
                told = logs[row, : len(rest)]
                rest_value = float(told.gather(1, rest[:, None]).sum())
                found[prompt, answer] = value + rest_value, greedy and bool((told.argmax(-1) == rest).all())
        return found

    def _forward(
        self, rows: Sequence[Ids], texts: Sequence[Ids], cache: Any, keep: int, made: Hashable
    ) -> tuple[Tensor, Any]:
        """[rows, keep, vocabulary] log-probabilities in float32 (or finer), and the cache that holds these rows too.

        ``texts``: each row with all that stands before it, to look at if its logits are NaN; ``made``: what the cache
        was made by, which decides the last bits.
        """
        ids = torch.tensor(rows, device=self._device)
        only = {"logits_to_keep": keep} if self._keeps else {}  # the head costs as much as several layers
        key = (made, *rows, *texts, 0 if cache is None else cache.get_seq_length())
        with self._lower.of(key):
            out = self.model(input_ids=ids, use_cache=True, **{self._cache: cache}, **only)
        logits = out.logits[:, -keep:]
        check_finite(self.model, logits, texts)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return F.log_softmax(logits, dim=-1, dtype=dtype), out[self._cache]


@torch.inference_mode()
def one_by_one(
    model: Any, advance: Callable[[int], None], requests: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[Score]:
    """What a :class:`Scorer` gives, by a pass of its own for each: of models whose caches cannot be shared.

    Raises:
        EvaluationError: NaN or infinite logits.
    """
    device = input_device(model)
    mine: list[tuple[int, Score]] = []
    with in_step():
        for i, (prompt, answer) in dealt(list(enumerate(requests))):
            ids = [*prompt, *answer]
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
            check_finite(model, logits, [ids])
            logs = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            told = torch.tensor(list(answer), device=logs.device)
            score = float(logs.gather(1, told[:, None]).sum()), bool((logs.argmax(-1) == told).all())
            mine.append((i, score))
            advance(1)
    everything = sorted(gathered(mine))
    advance(len(everything) - len(mine))  # by other processes
    return [score for _, score in everything]


def no_memory() -> EvaluationError:
    """The error for a single row that does not fit."""
    return EvaluationError(
        "out of memory with a batch of one: use a smaller dtype (--dtype bfloat16), another --device, or leave out the "
        "tasks with long prompts"
    )


def _common(prompts: dict[Ids, Any]) -> int:
    """Length of the common beginning of all prompts, at least one token short of each; 0 when it is not worth it."""
    low, high = min(prompts), max(prompts)  # in dictionary order all others lie between these two
    shorter = min(map(len, prompts)) - 1
    shared = next((i for i, (a, b) in enumerate(zip(low[:shorter], high)) if a != b), shorter)
    return shared if len(prompts) > 1 and shared >= _SHORT else 0


def _pieces(items: list[Any], lengths: list[int], size: int) -> Iterator[list[Any]]:
    """Consecutive items, at most ``size`` of them, parted where padding would cost more than another pass does."""
    start = 0
    for i in range(1, len(items) + 1):
        if i == len(items) or i - start == size or (lengths[i] - lengths[i - 1]) * (i - start) > _PASS:
            yield items[start:i]
            start = i
