"""What the layers below an edit give is computed once: no edit changes it, whatever its strength and its directions.

A pass of a model is known by a key. The first one under it is run whole, and what enters the first edited layer is
kept, with the keys and values that the layers below put into a cache; later ones start from there, also those of an
edit that begins higher up. That a model can be run so, to the bit, is tried on it first: where it cannot (layers that
share modules, or pass more on than one tensor), every pass is run whole.
"""

from __future__ import annotations

import contextlib
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
        outputs: lower layer -> what it gave, of which the first part of the last one alone is wanted later.
        kept: the keys and values that each lower layer added to the cache, where there was one.
    """

    outputs: dict[int, Any] = field(default_factory=dict)
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        tensors = [first_of(output) for output in self.outputs.values()] + [t for pair in self.kept for t in pair]
        return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


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
        """One pass of the model. The key has all that decides what its lower layers give: tokens, and those before."""
        first = self.first
        if not first or not self._can(first):
            yield
            return
        blocks = list(site_modules(self.model, Site.BLOCK, range(first)).values())
        start = next((at for at in sorted(self._firsts, reverse=True) if at <= first and (at, key) in self._passes), 0)
        skipped = _passed_over(blocks[:start], self._passes[start, key]) if start else contextlib.nullcontext()
        if start == first or not self._room:
            with skipped:
                yield
            return
        with skipped, _watched(blocks) as (made, caches):
            yield
        try:
            whole = len(caches) == 1 and self._whole(made, caches[0])
        except RuntimeError as error:  # the pass itself had room
            if not out_of_memory(error):
                raise
            self._room, whole = 0, False
        if whole and made.bytes > self._room:
            self._room = 0
        elif whole:
            self._room -= made.bytes
            self._firsts.add(first)
            self._passes[first, key] = made

    def _whole(self, made: _Pass, cache: Any) -> bool:
        """Whether a pass is one that can be left out later; with what it put into its cache."""
        hidden = [first_of(output) for output in made.outputs.values()]
        if not all(isinstance(one, Tensor) and one.dim() == 3 for one in hidden):
            return False
        if any(isinstance(o, tuple) and any(part is not None for part in o[1:]) for o in made.outputs.values()):
            return False
        last, count = len(hidden) - 1, hidden[-1].shape[1]
        for i, output in made.outputs.items():  # of the others their form is enough
            kept = hidden[i].clone() if i == last else None
            made.outputs[i] = (kept, *output[1:]) if isinstance(output, tuple) else kept
        if cache is not None:
            pairs = [(cache.layers[i].keys, cache.layers[i].values) for i in range(last + 1)]
            if any(keys.shape[-2] < count for keys, _ in pairs):  # a window, and longer than it
                return False
            made.kept = [(keys[..., -count:, :].clone(), values[..., -count:, :].clone()) for keys, values in pairs]
        return True

    def _can(self, first: int) -> bool:
        if first == self._trying:
            return True
        if first not in self._tried:
            self._trying = first
            try:
                self._tried[first] = self._tries(first)
            except (SeaBakeError, *THEIRS):
                self._tried[first] = False
            finally:
                self._trying = None
                for i in (0, 1):
                    self._passes.pop((first, (_TRIAL, i)), None)
        return self._tried[first]

    @torch.inference_mode()
    def _tries(self, first: int) -> bool:
        """Whether two short texts, the second behind a cache where there is one, are answered the same to the bit."""
        blocks = list(site_modules(self.model, Site.BLOCK, range(first)).values())
        if any("forward" in vars(block) for block in blocks):  # of accelerate's: weights that lie elsewhere
            return False
        ids = torch.arange(1, 13, device=input_device(self.model)).view(2, 6)
        name, shares = cache_name(self.model), can_share(self.model)

        def answers(of: Callable[[Hashable], Any]) -> list[Tensor]:
            with of((_TRIAL, 0)):
                out = self.model(input_ids=ids, use_cache=shares)
            with of((_TRIAL, 1)):  # another text, so that what layers keep to themselves would be the wrong one
                following = {name: out[name]} if shares else {}
                more = self.model(input_ids=ids.flip(1)[:, :3], use_cache=shares, **following)
            return [out.logits, more.logits]

        whole, kept, short = (answers(of) for of in (lambda key: contextlib.nullcontext(), self.of, self.of))
        there = (first, (_TRIAL, 0)) in self._passes
        return there and all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(whole, kept, short))


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
            made.outputs[i] = output
            if i == 0:
                caches.append(_cache(args, given))

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
            output = known.outputs[i]
            if i == len(blocks) - 1:
                hidden = first_of(output).clone()
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return forward

    try:
        for i, block in enumerate(blocks):
            block.forward = forward_of(i)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
