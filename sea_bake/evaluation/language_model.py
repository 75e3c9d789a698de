"""Our model behind the door of lm-evaluation-harness (extra ``eval``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from sea_bake.activations import DEFAULT_BATCH_SIZE
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.rendering import complete
from sea_bake.errors import EvaluationError
from sea_bake.evaluation.finite import check_known, not_finite, watched
from sea_bake.evaluation.prefixes import Scorer
from sea_bake.model.caches import can_share
from sea_bake.model.lower import LowerLayers
from sea_bake.model.processes import are_several, dealt, gathered, in_step


class SharedPrefixLM(HFLM):
    """The harness' Hugging Face model, with shared prefixes computed once and batches that give way when memory does.

    Args:
        model, tokenizer: living ones; hooks stay on.
        batch_size: largest number of rows in a forward pass.
        advance, say, lower: as in :class:`Scorer`.

    Attributes:
        lengths: (context, continuation) -> tokens of the continuation.
        form: how the chat template is used, where it is.
        cut: (context, continuation), or (context,) of an answer that is written -> tokens cut off the context's
            beginning, where the whole is longer than the model can read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        advance: Callable[[int], None] = lambda count: None,
        say: Callable[[str], None] = lambda text: None,
        lower: LowerLayers | None = None,
    ) -> None:
        backend = "seq2seq" if getattr(model.config, "is_encoder_decoder", False) else "causal"
        super().__init__(pretrained=model, tokenizer=tokenizer, backend=backend, batch_size=batch_size)
        self.advance = advance
        told: dict[str, Any] = {"batch_size": batch_size, "say": say, "lower": lower}
        self.scorer = Scorer(model, advance=lambda count: self.advance(count), **told)
        self.shares = can_share(model)
        self.lengths: dict[tuple[str, ...], int] = {}
        self.cut: dict[tuple[str, ...], int] = {}
        self.form = PromptFormat()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As fitting does: the same arguments, date, and end of an open block of reasoning."""
        if not add_generation_prompt:  # the answer is begun by the task itself
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        return complete(self.tokenizer, chat_history, self.form)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        check_known(self.model, self.tokenizer, (part for _, *pair in requests for part in pair))
        for texts, prompt, answer in requests:
            if texts is not None:
                self.lengths[texts] = len(answer)
                self._note(texts, len(prompt) - self._room(answer))
        # What the harness would cut on the left is left to it.
        ours = [self.shares and len(prompt) + len(answer) <= self.max_length for _, prompt, answer in requests]
        told = iter(self.scorer([(prompt, answer) for (_, prompt, answer), own in zip(requests, ours) if own]))
        rest = [request for request, own in zip(requests, ours) if not own]
        others = iter(self._dealt(rest, self._stock, self._scored) if rest else ())
        return [next(told) if own else next(others) for own in ours]

    def _room(self, answer: list[int]) -> int:
        """Tokens of a prompt that are read before this answer."""
        return self.max_length if self.backend == "seq2seq" else self.max_length + 1 - len(answer)

    def _dealt(self, requests: Any, answer: Any, order: Any) -> Any:
        """Answers to all requests, each process having given those to its own batches of them."""
        if not are_several():
            return answer(requests)
        own = [i for batch in dealt(order(requests)) for i in batch]
        with in_step():
            found = list(zip(own, answer([requests[i] for i in own]))) if own else []
        told = gathered(found)
        self.advance(len(told) - len(found))
        for cut in gathered([self.cut]):
            self.cut |= cut
        return [one for _, one in sorted(told, key=lambda item: item[0])]

    def _scored(self, requests: Any) -> list[list[int]]:
        """The batches in which the harness scores requests: by length, and in a causal model (where a batch of ours
        would be another one, since it answers alike contexts once) all in one.
        """
        if self.backend == "causal":
            return [list(range(len(requests)))]
        return self._batches(range(len(requests)), key=lambda i: tuple(requests[i][1] + requests[i][2]))

    def _written(self, requests: Any) -> list[list[int]]:
        """The batches in which the harness writes answers: by settings, then by length."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        texts = [request.args[0] for request in requests]
        lengths = {text: len(self.tok_encode(text)) for text in texts}
        return [
            batch
            for group in groups.values()
            for batch in self._batches(group, lambda i: texts[i], lambda i: lengths[texts[i]])
        ]

    def _batches(self, which: Any, key: Any, length: Any = None) -> list[list[int]]:
        """The longest first; then, as the harness does, by what they hold."""
        size = length or (lambda i: len(key(i)))
        ordered = sorted(which, key=lambda i: (-size(i), key(i)))
        step = self.scorer.batch_size
        return [ordered[i : i + step] for i in range(0, len(ordered), step)]

    def _stock(self, requests: Any) -> Any:
        while True:
            try:
                found = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=self.scorer.batch_size)
            except RuntimeError as error:
                self._halve(error)
                continue
            for (texts, prompt, answer), (value, _) in zip(requests, found):
                if math.isnan(value):
                    raise not_finite(self.model, **self._inputs(prompt, answer))
                if math.isinf(value):
                    raise EvaluationError(f"the model gives a log-likelihood of -infinity to {(texts or [''])[-1]!r}")
            self.advance(len(requests))
            return found

    def _inputs(self, prompt: list[int], answer: list[int]) -> dict[str, torch.Tensor]:
        """What the model was given."""
        if self.backend == "seq2seq":
            told = {"input_ids": prompt[-self.max_length :], "labels": answer[-self.max_length :]}
        else:
            told = {"input_ids": (prompt + answer)[-(self.max_length + 1) : -1]}
        return {name: torch.tensor([ids], device=self.device) for name, ids in told.items()}

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return self._dealt(requests, self._write, self._written)

    def _write(self, requests: Any) -> Any:
        while True:
            try:
                return super().generate_until(requests, disable_tqdm=True)
            except RuntimeError as error:
                self._halve(error)

    def tok_batch_encode(self, strings: Any, *args: Any, left_truncate_len: int | None = None, **options: Any) -> Any:
        """As the harness', which cuts on the left without counting."""
        ids, mask = super().tok_batch_encode(strings, *args, **options)
        check_known(self.model, self.tokenizer, [own[seen.bool()].tolist() for own, seen in zip(ids, mask)])
        if left_truncate_len is None:
            return ids, mask
        for text, length in zip(strings, mask.sum(1).tolist()):
            self._note((text,), length - left_truncate_len)
        return ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]

    def _note(self, texts: tuple[str, ...], tokens: int) -> None:
        if tokens > 0:
            self.cut[texts] = tokens

    def _model_generate(self, context: Any, **options: Any) -> Any:
        options |= watched(self.model, context, options["attention_mask"])
        # A generation config may ask for NaN to be replaced, which comes before any processor of ours.
        out = super()._model_generate(context, **options, remove_invalid_values=False)
        self.advance(len(context))
        return out

    def _halve(self, error: RuntimeError) -> None:
        self.scorer.halve(error)
        self.batch_size_per_gpu = self.scorer.batch_size
