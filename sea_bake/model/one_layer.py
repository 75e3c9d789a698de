"""A model of one decoder layer: small enough to be run on the side, whatever the size of the whole."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sea_bake.model.checkpoint.reader import own_pages
from sea_bake.model.skeleton import numberless, stack_of


def alone(cls: Any, layer: int, *, tuples: int = 0) -> Any:
    """A class of transformers with one decoder layer that is whole, at its own place; the others pass on what they get.

    Args:
        tuples: they pass it on in a tuple of this length, as the layers of some families do; 0: by itself.
    """

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        stack = stack_of(self, decoder_depth(config))
        if stack is None:
            raise ValueError(f"{cls.__name__} has no one stack of {decoder_depth(config)} layers")
        encoder = self.get_encoder().children() if config.is_encoder_decoder else ()
        others = [module for i, module in enumerate(stack[1]) if i != layer]
        others = [module for module in others if not _lends(module, stack[1][layer])]
        for module in (*others, *(m for part in encoder if isinstance(part, nn.ModuleList) for m in part)):
            module.forward = functools.partial(_pass_in_tuple, tuples) if tuples else _pass
            inner: Any
            for inner in module.modules():  # which stay: some models reach into all of their layers
                inner._is_hf_initialized = True
                for name in (name for name, p in inner._parameters.items() if p is not None):
                    inner._parameters[name] = nn.Parameter(torch.empty(0), requires_grad=False)

    return type(cls.__name__, (cls,), {"__init__": init, "__module__": cls.__module__})


def decoder_depth(config: Any) -> int:
    """The number of decoder layers; T5's two stacks may differ."""
    depths = (getattr(config, key, None) for key in ("num_decoder_layers", "decoder_layers", "num_hidden_layers"))
    return int(next(filter(None, depths)))


def _pass(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def _pass_in_tuple(count: int, *args: Any, **kwargs: Any) -> Any:
    return (_pass(*args, **kwargs), *[None] * (count - 1))


def _lends(module: nn.Module, layer: nn.Module) -> bool:
    """Whether a layer's attention has no keys and values but another layer's (Gemma 3n and 4)."""
    if not any(getattr(m, "is_kv_shared_layer", False) for m in layer.modules()):
        return False
    return any(getattr(m, "store_full_length_kv", False) for m in module.modules())


def load_state(cls: Any, config: Any, state: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A model from tensors under their on-disk names, through transformers' own loader and its conversions.

    Args:
        state: tensors, or what gives one for ``[...]``: each is then read when its turn comes, and not kept.

    Returns:
        The model in evaluation mode, and transformers' loading info. What ``state`` lacks is random, always the same.
    """
    with quiet(), _one_by_one(), _backwards(state), _empty_ones_left(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, info = cls.from_pretrained(
            None, config=config, state_dict=dict(state), dtype=dtype, output_loading_info=True
        )
    return model.eval(), info


@contextlib.contextmanager
def _one_by_one() -> Iterator[None]:
    """transformers reads ahead with several threads, and then holds a layer twice."""
    key = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextlib.contextmanager
def _empty_ones_left() -> Iterator[None]:
    """A weight without numbers (meta) needs no random ones: drawing none takes torch a millisecond for each."""
    reset = nn.Linear.reset_parameters

    def where_there_are_numbers(self: nn.Linear) -> None:
        if not self.weight.is_meta:
            reset(self)

    nn.Linear.reset_parameters = where_there_are_numbers  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Linear.reset_parameters = reset  # type: ignore[method-assign]


@contextlib.contextmanager
def _backwards(names: Iterable[str]) -> Iterator[None]:
    """Experts are stacked in the order of their names: down, then gate and up, for which transformers holds 4/3 of a
    layer, beside it. Backwards these come first, and nothing is beside them. Where a release of it has no such order,
    it only takes more memory.
    """
    from transformers import core_model_loading as theirs

    natural = getattr(theirs, "dot_natural_key", None)
    if natural is None:
        yield
        return
    kinds = sorted({numberless(name) for name in names}, reverse=True)
    places = {kind: place for place, kind in enumerate(kinds)}
    theirs.dot_natural_key = lambda name: (places.get(numberless(name), len(places)), natural(name))
    try:
        yield
    finally:
        theirs.dot_natural_key = natural


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing said by transformers but errors, and no bars of it."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class Shifted:
    """A tensor that is read when transformers asks for it; multiplied by Q where an axis is given, or raised by 1."""

    def __init__(self, tensor: Any, axis: int | None, *, raised: bool = False) -> None:
        self.tensor, self._axis, self._raised = tensor, axis, raised

    def __getitem__(self, _: object) -> Tensor:
        read: Tensor = self.tensor.read()
        if self._raised:
            return read.add_(1)
        if self._axis is None:
            return read
        pages = own_pages(read.numel() * read.itemsize)
        rolled, last = torch.frombuffer(pages, dtype=read.dtype).view(read.shape), read.shape[self._axis] - 1
        rolled.narrow(self._axis, 1, last).copy_(read.narrow(self._axis, 0, last))
        rolled.narrow(self._axis, 0, 1).copy_(read.narrow(self._axis, last, 1))
        return rolled.mul_(-2)

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)
