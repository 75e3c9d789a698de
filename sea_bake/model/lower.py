"""What the layers below an edit give is computed once: no edit changes it, whatever its strength and its directions.

A pass of a model is known by a key. The first one under it is run whole, and what enters the first edited layer is
kept, with the keys and values that the layers below put into a cache; later ones start from there, also those of an
edit that begins higher up. That a model can be run so, to the bit, is tried on it first: where it cannot (layers that
share modules, or pass more on than one tensor), every pass is run whole.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sea_bake.errors import SeaBakeError
from sea_bake.model.anatomy import Site
from sea_bake.model.caches import cache_name, can_share
from sea_bake.model.hooks import first_of
from sea_bake.model.placing import input_device, out_of_memory
from sea_bake.model.running import THEIRS
from sea_bake.model.sites import site_modules

_MOST = 1 << 30  # bytes that are kept of one model
_TRIAL = "trial"


@dataclass
class _Pass:
    """One pass through the lower layers.

    Attributes:
        others: lower layer -> what it gave behind the residual stream: a tuple of None, or None where it gave that
            alone.
        hidden: what the last of them gave.
        kept: the keys and values that each added to the cache, where there was one.
        plain: they gave nothing else, once each.
    """

    others: dict[int, tuple[None, ...] | None] = field(default_factory=dict)
    hidden: Tensor | None = None
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    plain: bool = True


class LowerLayers:
    """The layers of a living causal model below the first that is edited.

    Args:
        model: hooks may come and go, but none below ``first`` may change anything.
        most: bytes to keep.

    Attributes:
        first: the first layer that may be edited. 0: every pass is run whole.
    """

    def __init__(self, model: Any, *, most: int = _MOST) -> None:
        self.model, self.first, self._room = model, 0, most
        self._passes: dict[tuple[int, Hashable], _Pass] = {}
        self._firsts: set[int] = set()
        self._tried: dict[int, bool] = {}
        self._trying: int | None = None

    @contextlib.contextmanager
    def of(self, key: Hashable) -> Iterator[None]:
        """One pass of the model. The key has all that decides what its lower layers give, to the last bit: the tokens,
        those before, and the batches that these were read in.
        """
        first = self.first
        blocks = list(site_modules(self.model, Site.BLOCK, range(first)).values()) if self._can(first) else []
        if not blocks or any("forward" in vars(block) for block in blocks):  # accelerate's: weights that lie elsewhere
            yield
            return
        start = next((at for at in sorted(self._firsts, reverse=True) if at <= first and (at, key) in self._passes), 0)
        skipped = _passed_over(blocks[:start], self._passes[start, key]) if start else contextlib.nullcontext()
        if start == first or not (self._room or self._trying):
            with skipped:
                yield
            return
        with skipped, _watched(blocks) as (made, caches):
            yield
        if made.plain and len(caches) == 1:
            self._keep(first, key, made, caches[0])

    def forget(self) -> bool:
        """Let go of all that is kept, and keep no more: the memory is needed. Whether there was anything."""
        there = bool(self._passes)
        self._passes.clear()
        self._room = 0
        return there

    def spared(self, act: Callable[[], Any]) -> Any:
        """What ``act`` gives; where memory runs out, once more without what is kept here."""
        try:
            return act()
        except RuntimeError as error:
            if not (out_of_memory(error) and self.forget()):
                raise
        return act()

    def _keep(self, first: int, key: Hashable, made: _Pass, cache: Any) -> None:
        assert made.hidden is not None
        count, pairs = made.hidden.shape[1], []
        if cache is not None:
            pairs = [(cache.layers[i].keys, cache.layers[i].values) for i in range(first)]
            if any(keys.shape[-2] < count for keys, _ in pairs):  # a window, and longer than it
                return
        kept = [(keys[..., -count:, :], values[..., -count:, :]) for keys, values in pairs]
        size = sum(tensor.nbytes for tensor in (made.hidden, *(tensor for pair in kept for tensor in pair)))
        if self._trying is None and size > self._room:
            self._room = 0
            return
        try:
            made.hidden, made.kept = made.hidden.clone(), [(keys.clone(), values.clone()) for keys, values in kept]
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self._room = 0  # the pass itself had room
            return
        self._room -= 0 if self._trying else size
        self._firsts.add(first)
        self._passes[first, key] = made

    def _can(self, first: int) -> bool:
        if not first or first == self._trying:
            return bool(first)
        if first not in self._tried:
            self._trying = first
            try:
                self._tried[first] = self._tries(first)
            except (SeaBakeError, *THEIRS):
                self._tried[first] = False
            finally:
                self._trying = None
                for i in range(3):
                    self._passes.pop((first, (_TRIAL, i)), None)
        return self._tried[first]

    @torch.inference_mode()
    def _tries(self, first: int) -> bool:
        """Whether short texts are answered the same to the bit: behind a cache, where there is one, and without."""
        if any(getattr(module, "rope_type", "") == "dynamic" for module in self.model.modules()):
            return False  # its frequencies depend on the texts before
        ids = torch.arange(1, 13, device=input_device(self.model)).view(2, 6)
        name, shares = cache_name(self.model), can_share(self.model)
        keeps = "logits_to_keep" in inspect.signature(type(self.model).forward).parameters

        def answers(of: Callable[[Hashable], Any]) -> list[Tensor]:
            with of((_TRIAL, 0)):
                out = self.model(input_ids=ids, use_cache=shares)
            with of((_TRIAL, 1)):  # another text, so that what layers keep to themselves would be the wrong one
                more: dict[str, Any] = {name: out[name]} if shares else {}
                more |= {"logits_to_keep": 2} if keeps else {}
                following = self.model(input_ids=ids.flip(1)[:, :3], use_cache=shares, **more)
            with of((_TRIAL, 2)):
                alone = self.model(input_ids=ids.flip(0), use_cache=False)
            return [out.logits, following.logits, alone.logits]

        whole, kept, short = (answers(of) for of in (lambda key: contextlib.nullcontext(), self.of, self.of))
        there = all((first, (_TRIAL, i)) in self._passes for i in range(3))
        return there and all(_same(a, b) and _same(a, c) for a, b, c in zip(whole, kept, short))


def _same(a: Tensor, b: Tensor) -> bool:
    """To the bit; NaN, which an edit may give, is NaN."""
    return torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def _cache(args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """The cache among what a layer is called with."""
    from transformers import Cache

    return next((value for value in (*args, *given.values()) if isinstance(value, Cache)), None)


@contextlib.contextmanager
def _watched(blocks: list[nn.Module]) -> Iterator[tuple[_Pass, list[Any]]]:
    """What these layers give, and the cache of every pass."""
    made, caches = _Pass(), []

    def hook_of(i: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
            hidden, others = first_of(output), output[1:] if isinstance(output, tuple) else ()
            made.plain &= isinstance(hidden, Tensor) and hidden.dim() == 3 and not any(o is not None for o in others)
            made.others[i] = others if isinstance(output, tuple) else None
            if i == 0:
                caches.append(_cache(args, given))
            if i == len(blocks) - 1:
                made.hidden = hidden

        return hook

    with contextlib.ExitStack() as stack:
        for i, block in enumerate(blocks):
            stack.callback(block.register_forward_hook(hook_of(i), with_kwargs=True).remove)
        yield made, caches


@contextlib.contextmanager
def _passed_over(blocks: list[nn.Module], known: _Pass) -> Iterator[None]:
    """These layers give what they gave before, and compute nothing."""

    def forward_of(i: int) -> Callable[..., Any]:
        def forward(*args: Any, **given: Any) -> Any:
            cache = _cache(args, given)
            if cache is not None and known.kept:
                cache.update(*known.kept[i], i)
            hidden = args[0] if args else given["hidden_states"]
            if i == len(blocks) - 1:
                assert known.hidden is not None
                hidden = known.hidden.clone()
            others = known.others[i]
            return hidden if others is None else (hidden, *others)

        return forward

    try:
        for i, block in enumerate(blocks):
            block.forward = forward_of(i)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
