"""Both sides in transformers: hooks on one model, an insert with its edit switched off and on, or two models."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import TextStreamer

from sea_bake.activations.generating import decoder_start, generate, stop_ids
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.rendering import rendered
from sea_bake.edit import Edit, live
from sea_bake.io import interrupts
from sea_bake.model.placing import input_device
from sea_bake.model.sites import text_config
from sea_bake.modeling_sea import SEALayer
from sea_bake.serving.pair import BASE, EDITED, Pair, Reply, Say, Turns, room_for, tokens_of
from sea_bake.serving.sampling import Sampling

Acting = Callable[[Any, float], contextlib.AbstractContextManager[Any]]


class Streamer(TextStreamer):
    """Text as it grows, without the prompt; Ctrl-C that a library has swallowed is heard at the next token."""

    def __init__(self, tokenizer: Any, say: Say) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.say = say
        self.text = ""

    def put(self, value: Any) -> None:
        interrupts.check()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        if text:
            self.say(text)


class Living(Pair):
    """Living models of transformers.

    Args:
        edited: the model that the edit acts on; of a base alone, that.
        acting: gives the edited model at a strength, for as long as a context lasts; None where the edit is in the
            weights, and None of a base alone.
        load_base: gives the base where the edit is in the weights.
        stored: strengths that the edits have of their own.
    """

    runtime = "transformers"

    def __init__(
        self,
        name: str,
        how: str | None,
        tokenizer: Any,
        edited: Any,
        *,
        acting: Acting | None = None,
        load_base: Callable[[], Any] | None = None,
        lacking: str = "",
        form: PromptFormat | None = None,
        stored: Sequence[float] = (),
    ) -> None:
        self.name, self.how, self.tokenizer, self.lacking = name, how, tokenizer, lacking
        self.form, self.stored = form or PromptFormat(), stored
        self._edited, self._acting, self._load_base, self._base = edited, acting, load_base, None
        both = how is not None and (acting is not None or load_base is not None)
        self.sides = (BASE, EDITED) if both else (BASE,) if how is None else (EDITED,)
        self._lock = threading.RLock()
        if how is not None and acting is None:
            self.fixed = (
                f"the edit is in the weights of {name}, so its strength is fixed: give the base with --edit, or bake "
                "the edit with --how insert, and its strength can be changed"
            )

    @contextlib.contextmanager
    def model(self, side: str, strength: float = 1.0) -> Iterator[Any]:
        """The living model of a side, for as long as the context lasts; one at a time, since hooks change a model."""
        self.check(side, strength)
        with self._lock:
            if self.how is None:
                yield self._edited
            elif self._acting is not None:
                with self._acting(self._edited, strength if side == EDITED else 0.0) as model:
                    yield model
            else:
                yield self._edited if side == EDITED and strength != 0 else self.base

    @property
    def base(self) -> Any:
        """The model without its edit, where that is another one; loaded when it is wanted."""
        if self._base is None and self._load_base is not None:
            self._base = self._load_base()
        return self._edited if self._base is None else self._base

    @property
    def any_model(self) -> Any:
        """One of them, whose configuration speaks for both."""
        return self._edited

    @property
    def positions(self) -> int | None:
        """How many tokens a conversation may have; None: no limit is known."""
        return getattr(text_config(self._edited), "max_position_embeddings", None) or None

    def check_format(self, form: PromptFormat) -> None:
        rendered(self.tokenizer, "Is it so?", form)

    def reply(
        self, side: str, prompt: str, *, before: Turns = (), strength: float = 1.0, sampling: Sampling, say: Say
    ) -> Reply:
        streamer = Streamer(self.tokenizer, say)
        with self.model(side, strength) as model, torch.random.fork_rng(enabled=sampling.temperature > 0):
            tokens = tokens_of(self.tokenizer, prompt, before, self.form, decoder_start(model))
            ids = torch.tensor([tokens.encoder or tokens.ids], device=input_device(model))
            count = room_for(ids.shape[1], self.positions, sampling.max_new_tokens)
            more: dict[str, Any] = {"streamer": streamer}
            if sampling.temperature > 0:
                torch.manual_seed(sampling.seed + len(before))
                more |= {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
            try:
                out = generate(model, self.tokenizer, ids, torch.ones_like(ids), max_new_tokens=count, **more)
            except KeyboardInterrupt:
                streamer.end()  # what it holds back of a last word
                raise
            said = out[0, ids.shape[1] if tokens.encoder is None else 1 :].tolist()
            ended = bool(said) and said[-1] in stop_ids(model, self.tokenizer)
        return Reply(streamer.text, len(said), ended)

    def close(self) -> None:
        self._edited = self._base = None


def hooks(edits: Sequence[Edit]) -> Acting:
    """Edits acting live: each at its own strength times the one that is wanted; at 0 no hook is there at all."""

    @contextlib.contextmanager
    def acting(model: Any, strength: float) -> Iterator[Any]:
        if strength == 0:
            yield model
            return
        scaled = [e if strength == 1 else replace(e, alpha=e.alpha * strength) for e in edits]
        with live(scaled, model, check=False):
            yield model

    return acting


@contextlib.contextmanager
def inserted(model: Any, strength: float) -> Iterator[Any]:
    """An inserted artefact's layers at their own strength times the one that is wanted; at 0 each is led past."""
    layers = inserted_layers(model)
    stored = [layer.alpha for layer in layers]
    with contextlib.ExitStack() as stack:
        for layer, alpha in zip(layers, stored):
            if strength == 0:
                stack.callback(layer.register_forward_hook(lambda _module, given, _output: given[0]).remove)
            else:
                stack.callback(setattr, layer, "alpha", alpha)
                layer.alpha = alpha * strength
        yield model


def inserted_layers(model: Any) -> list[SEALayer]:
    return [module for module in model.modules() if isinstance(module, SEALayer)]
