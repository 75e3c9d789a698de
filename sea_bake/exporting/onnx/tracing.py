"""A living model becomes an ONNX graph: ``torch.export`` runs its real Python, so an SEALayer is traced like any other.

The wrapper takes keys and values as plain tuples. The example has two rows, two new tokens or more, two past tokens or
more, and padding on the left: a size of one would be taken for a constant, and a full mask for no mask.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sea_bake.errors import FamilyError, first_line_of
from sea_bake.exporting.onnx import experts
from sea_bake.exporting.onnx.lowering import quick_lowering
from sea_bake.exporting.onnx.matching import quick_matching
from sea_bake.modeling_sea import SEALayer

BATCH, NEW, PAST = 2, 3, 5
STRENGTH = "sea_strength"


@dataclass(frozen=True)
class Traced:
    """A traced model.

    Attributes:
        model: an ``onnx_ir.Model``.
        inputs: names of its inputs, in order.
        heads, head_size: of keys, the same in every layer.
        layers: number of pairs of keys and values.
    """

    model: Any
    inputs: list[str]
    heads: int
    head_size: int
    layers: int


class _Scaled(SEALayer):
    """An SEALayer whose strength is an input of the graph: h + strength (y - h)."""

    slot: SimpleNamespace  # its ``value`` is the strength of the running call

    def forward(self, h: Tensor) -> Tensor:
        x = h.to(torch.promote_types(next(self.parameters()).dtype, torch.float32))
        y = super().forward(x)
        return (x + self.slot.value * (y - x)).to(h.dtype)


class _Decoder(nn.Module):
    """Token ids, mask, positions and a flat cache -> logits and a flat cache."""

    def __init__(self, model: Any, slot: SimpleNamespace) -> None:
        super().__init__()
        self.model, self.slot = model, slot

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: list[tuple[Tensor, Tensor]],
        position_ids: Tensor | None = None,
        sea_strength: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        if sea_strength is not None:
            self.slot.value = sea_strength
        positions = {} if position_ids is None else {"position_ids": position_ids}
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=DynamicCache(past_key_values),
            use_cache=True,
            **positions,
        )
        return (result.logits, *(t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)))


def trace(model: Any, *, opset: int, strength: bool) -> Traced:
    """Trace a model with its cache.

    Args:
        model: a causal language model in evaluation mode.
        opset: version of the ONNX operators.
        strength: add the input ``sea_strength``, which scales every SEALayer.

    Raises:
        FamilyError: the model cannot be traced, or its cache is not one pair of equal shapes per layer.
    """
    shapes = cache_shapes(model)
    slot = SimpleNamespace()
    if strength:
        for layer in model.modules():
            if isinstance(layer, SEALayer):
                layer.__class__ = _Scaled
                cast(_Scaled, layer).slot = slot
    ids = torch.arange(BATCH * NEW).reshape(BATCH, NEW)
    mask = torch.ones(BATCH, PAST + NEW, dtype=torch.long)
    mask[0, :2] = 0
    dims = {n: torch.export.Dim(n) for n in ("batch_size", "sequence_length", "past_sequence_length")}
    batch, new, past = dims.values()
    total = torch.export.Dim("total_sequence_length")
    pairs = [tuple(torch.zeros(BATCH, s[0], PAST, s[1], dtype=model.dtype) for s in pair) for pair in shapes]
    # name of the input, in order -> its example, its axes
    inputs: dict[str, tuple[Any, Any]] = {
        "input_ids": (ids, {0: batch, 1: new}),
        "attention_mask": (mask, {0: batch, 1: total}),
    }
    if takes_positions(model):
        inputs["position_ids"] = ((mask.cumsum(-1) - 1).clamp_min(0)[:, -NEW:], {0: batch, 1: new})
    inputs["past_key_values"] = (pairs, [({0: batch, 2: past}, {0: batch, 2: past})] * len(pairs))
    if strength:
        inputs[STRENGTH] = (torch.ones(1), {})
    names = [n for name in inputs for n in ([name] if name != "past_key_values" else _pair_names(name, len(pairs)))]
    with torch.no_grad(), _silence(), quick_matching(), quick_lowering():
        try:
            program = torch.onnx.export(
                _Decoder(model, slot).eval(),
                (),
                kwargs={name: example for name, (example, _) in inputs.items()},
                dynamic_shapes={name: axes for name, (_, axes) in inputs.items()},
                input_names=names,
                output_names=["logits", *_pair_names("present", len(pairs))],
                custom_translation_table=experts.translations(),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise FamilyError(f"{type(model).__name__} cannot be traced for ONNX: {first_line_of(error)}") from error
    assert program is not None
    return Traced(program.model, names, *shapes[0][0], len(pairs))


def takes_positions(model: Any) -> bool:
    """Whether the family is told where a token stands; others count the mask (or need no positions)."""
    return "position_ids" in inspect.signature(model.forward).parameters


def cache_shapes(model: Any) -> list[tuple[tuple[int, int], ...]]:
    """Of each layer, (heads, head size) of keys and of values.

    Raises:
        FamilyError: the cache is no such thing, or the layers differ.
    """
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([[0, 1]]), use_cache=True).past_key_values
    try:
        shapes = [tuple((t.shape[1], t.shape[3]) for t in (layer.keys, layer.values)) for layer in cache.layers]
    except (AttributeError, IndexError, TypeError) as error:
        raise FamilyError(
            f"{type(model).__name__} cannot be exported: its cache is a {type(cache).__name__}"
        ) from error
    if len({*shapes}) != 1:
        raise FamilyError(f"{type(model).__name__} cannot be exported: its layers have caches of different shapes")
    return shapes


def _pair_names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{i}.{part}" for i in range(layers) for part in ("key", "value")]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Warnings about what is none of a user's business: packages that are not there, axes that got one name."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
