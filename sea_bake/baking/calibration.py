"""Calibration texts through the base with all edits live: what a stand-in is fitted on, and what it is held against."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sea_bake.activations.generating import decoder_start
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import Tokens, encode
from sea_bake.activations.rendering import usable
from sea_bake.baking.linear import LinearEdit
from sea_bake.baking.regression import Moments
from sea_bake.demonstrations import Demonstration
from sea_bake.edit import Edit, live
from sea_bake.errors import ActivationError, DemonstrationError
from sea_bake.io import progress
from sea_bake.model.anatomy import Site
from sea_bake.model.hooks import hooked
from sea_bake.model.placing import input_device
from sea_bake.model.sites import site_modules, text_config

Place = tuple[Site, int]
HELD_OUT = 2  # the part of a text that nothing is fitted on; 0 and 1 are the two folds of the calibration half
_PROMPTS = 4  # fewer distinct prompts do not give two folds and a held-out half
_LOGITS = 512 << 20  # bytes of reference logits that are kept


@dataclass(frozen=True)
class Text:
    """One prompt with one answer.

    Attributes:
        tokens: ids.
        fresh: the first token that, with all before it, stands in no earlier text. What comes before is the same
            activation once more (a chat template, a prompt), so it is never counted as held out.
        part: 0 or 1 (folds of the calibration half) or ``HELD_OUT``.
    """

    tokens: Tokens
    fresh: int
    part: int

    @property
    def count(self) -> int:
        return len(self.tokens.ids) - self.fresh


def texts(
    model: Any, tokenizer: Any, demonstrations: Sequence[Demonstration], form: PromptFormat | None = None
) -> list[Text]:
    """Prompt + positive and prompt + negative of each demonstration; every second prompt is held out.

    Raises:
        DemonstrationError: too few prompts.
    """
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(d.prompt for d in demonstrations))}
    if len(prompts) < _PROMPTS:
        raise DemonstrationError(
            f"{len(prompts)} distinct calibration prompts: a stand-in needs at least {_PROMPTS} (it is fitted on one "
            "half and judged on the other), and gets better up to some hundreds"
        )
    form = usable(tokenizer, form)
    start, limit = decoder_start(model), getattr(text_config(model), "max_position_embeddings", None)
    seen: set[int] = set()
    found = []
    for part, demo in sorted(
        ((0, HELD_OUT, 1, HELD_OUT)[prompts[d.prompt] % 4], i) for i, d in enumerate(demonstrations)
    ):
        for answer in (demonstrations[demo].positive, demonstrations[demo].negative):
            tokens = encode(tokenizer, demonstrations[demo].prompt, answer, form, decoder_start=start)
            ids = tokens.ids[:limit]
            key, fresh = hash(tokens.encoder), 0
            for i, token in enumerate(ids):
                key = hash((key, token))
                if key in seen:
                    fresh = i + 1
                seen.add(key)
            if fresh < len(ids):
                found.append(Text(Tokens(ids, min(tokens.start, len(ids) - 1), tokens.encoder), fresh, part))
    return found


@torch.inference_mode()
def logits(model: Any, text: Text) -> Tensor:
    """[tokens, vocabulary] of one text."""
    device = input_device(model)
    ids = torch.tensor([text.tokens.ids], device=device)
    if text.tokens.encoder is None:
        return model(input_ids=ids, use_cache=False).logits[0]
    told = torch.tensor([text.tokens.encoder], device=device)
    return model(input_ids=told, decoder_input_ids=ids, use_cache=False).logits[0]


@contextlib.contextmanager
def watched(model: Any, edits: Sequence[Edit], places: Sequence[Place]) -> Iterator[dict[Place, list[Tensor]]]:
    """All edits live, and for each forward pass the input and the output of the edits at each place."""
    seen: dict[Place, list[Tensor]] = {}

    def note(site: Site, layer: int, output: Tensor, *, raw: bool) -> None:
        output = output.reshape(-1, output.shape[-1]).clone()  # a decoder layer may add to it in place
        if raw:
            seen[site, layer] = [output]
        else:
            seen[site, layer].append(output)

    with live(edits, model, check=False), contextlib.ExitStack() as stack:
        for site in sorted({site for site, _ in places}):
            modules = site_modules(model, site, [layer for place, layer in places if place is site])
            stack.enter_context(hooked(modules, partial(note, site, raw=True), first=True, inputs=site.is_input))
            stack.enter_context(hooked(modules, partial(note, site, raw=False), inputs=site.is_input))
        yield seen


def moments(
    model: Any, edits: Sequence[Edit], places: Sequence[Place], calibration: Sequence[Text]
) -> dict[Place, list[Moments]]:
    """Place -> the moments of h, the site's own output, and y, the edited one: of each fold's fresh tokens, and of the
    repeated ones.

    Repeated tokens count as often as they come: a stand-in is to be good where the model is used. On SmolLM2-135M (mlp,
    l2) KL over the chat template is 0.0004 so, and 0.0059 where each of its tokens counts once; the rest is the same.

    Raises:
        ActivationError: NaN or infinite activations.
    """
    widths = {(edit.site, layer): one.dim for edit in edits for layer, one in edit.maps.items()}
    found = {place: [Moments(widths[place]) for _ in range(3)] for place in places}
    with watched(model, edits, places) as seen, progress.bar("calibration", len(calibration), "text") as advance:
        for text in calibration:
            logits(model, text)
            for place, (h, y) in seen.items():
                _check_finite(y, place)
                found[place][text.part].add(h[text.fresh :], y[text.fresh :])
                found[place][2].add(h[: text.fresh], y[: text.fresh])
            advance(1)
    return found


def _check_finite(y: Tensor, place: Place) -> None:
    if not bool(torch.isfinite(y).all()):
        raise ActivationError(
            f"the edited {place[0].value} output of layer {place[1]} is NaN or infinite on a calibration text. "
            "float16 overflows in some models: convert the base to bfloat16 or float32."
        )


class Fit:
    """How well M h stands for y at one place, over held-out tokens."""

    def __init__(self, width: int) -> None:
        self.count, self.error, self.change, self.square = 0, 0.0, 0.0, 0.0
        self.total = torch.zeros(width, dtype=torch.float64)

    def add(self, h: Tensor, y: Tensor, M: LinearEdit) -> None:
        """h, y: [tokens, d]."""
        h, y = h.cpu().double(), y.cpu().double()
        self.count += len(h)
        self.error += float((y - M(h.T).T).square().sum())
        self.change += float((y - h).square().sum())
        self.square += float(y.square().sum())
        self.total += y.sum(0)

    @property
    def share(self) -> float:
        """Share of the edit's own change that is explained: 1 - Σ|y - M h|² / Σ|y - h|². Leaving h alone gives 0."""
        return 1 - self.error / self.change if self.change else 0.0

    @property
    def r2(self) -> float:
        """1 - Σ|y - M h|² / Σ|y - mean y|². Near 1 for any weak edit, for y is near h: look at ``share``."""
        spread = self.square - float(self.total.square().sum()) / self.count
        return 1 - self.error / spread if spread > 0 else 0.0


@dataclass
class Distance:
    """A model against the edited one, over tokens of the held-out texts.

    Attributes:
        tokens, total, agreed: over fresh tokens, their number, Σ KL(edited ‖ model) in nats, and how many have the same
            most likely next token.
        all_tokens, all_total: the same with the tokens before them, which calibration texts share (a chat template).
    """

    tokens: int = 0
    total: float = 0.0
    agreed: int = 0
    all_tokens: int = 0
    all_total: float = 0.0

    def add(self, reference: Tensor, found: Tensor, fresh: Tensor) -> None:
        """Both log-probabilities, [tokens, vocabulary]; which tokens are fresh, [tokens]."""
        p, q = reference.double(), found.double()
        kl = (p.exp() * (p - q)).sum(-1)
        self.all_tokens += len(kl)
        self.all_total += float(kl.sum())
        self.tokens += int(fresh.sum())
        self.total += float(kl[fresh].sum())
        self.agreed += int((p.argmax(-1) == q.argmax(-1))[fresh].sum())

    @property
    def kl(self) -> float:
        return self.total / self.tokens

    @property
    def all_kl(self) -> float:
        return self.all_total / self.all_tokens

    @property
    def top1(self) -> float:
        return self.agreed / self.tokens


class Reference:
    """The edited model's answers to the held-out texts, and the base's distance from them.

    Log-probabilities are kept at evenly spread tokens: all of them, or as many as fit into 512 MiB, so that the model
    can be given up before its stand-in is loaded.
    """

    def __init__(
        self, model: Any, edits: Sequence[Edit], held: Sequence[Text], changes: dict[Place, LinearEdit]
    ) -> None:
        self.fits = {place: Fit(len(M.B)) for place, M in changes.items()}
        self.base = Distance()
        self.kept: list[tuple[Text, list[int], Tensor]] = []
        total, passed = sum(len(text.tokens.ids) for text in held), 0
        with progress.bar("held out", len(held), "text") as advance:
            for text in held:
                with watched(model, edits, list(changes)) as seen:
                    answer = logits(model, text)
                for place, (h, y) in seen.items():
                    _check_finite(y, place)
                    self.fits[place].add(h[text.fresh :], y[text.fresh :], changes[place])
                stride = -(-total * answer.shape[-1] * 4 // _LOGITS)
                at = [i for i in range(len(text.tokens.ids)) if (passed + i) % stride == 0]
                passed += len(text.tokens.ids)
                if at:
                    self.kept.append((text, at, answer[at].float().log_softmax(-1).cpu()))
                    self._compare(self.base, model, *self.kept[-1])
                advance(1)

    def distance(self, model: Any) -> Distance:
        """Of a stand-in, reloaded from its files."""
        found = Distance()
        with progress.bar("stand-in", len(self.kept), "text") as advance:
            for text, at, reference in self.kept:
                self._compare(found, model, text, at, reference)
                advance(1)
        return found

    def _compare(self, found: Distance, model: Any, text: Text, at: list[int], reference: Tensor) -> None:
        answer = logits(model, text)[at].float().log_softmax(-1).cpu()
        found.add(reference, answer, torch.tensor(at) >= text.fresh)
