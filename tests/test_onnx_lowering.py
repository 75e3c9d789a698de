"""Exports without a second trace: a program that was rewritten in place answers like its model, to the bit; what is not
known stays as it is, for torch.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn

from sea_bake.exporting.onnx import lowering, tracing

pytestmark = pytest.mark.slow
WAYS: dict[str, Callable[[Tensor], Any]] = {
    "casts": lambda x: (x.to(torch.float32).to(torch.float64) * 2).to(torch.float16).to("cpu"),
    "views": lambda x: (x.transpose(1, 2).reshape(x.shape[0], -1), x[:, :, None].expand(-1, -1, 3, -1).flatten(1, 2)),
    "flat": lambda x: (x.flatten(), x.flatten(-2), x.transpose(0, 1).contiguous().view(-1)),
    "parts": lambda x: x.chunk(3, -1)[1] + x.chunk(2, dim=-1)[0][..., :1],
    "and": lambda x: (x > 0) & (x < 1),
    "constants": lambda x: torch.cat([torch.tensor([[1.0, 2.0]]).expand(x.shape[0], 2).detach(), x[:, 0]], -1),
    "nothing": lambda x: torch.dropout(x * 1, 0.5, False),
    "written": lambda x: (x * 2).add_(1),
    "written after it was read": lambda x: [(y := x * 2).exp(), y.div_(3), y - 1],
    "written at places": lambda x: torch.zeros(2, 4).index_put_((torch.tensor([1]),), x[0, 0]) + x[0, 0],
}
LEFT: dict[str, Callable[[Tensor], Any]] = {
    "an input is written": lambda x: x.add_(1) * 2,
    "a view is written": lambda x: [(y := x * 2), y[:, 0].add_(1), y][2],
    "it was seen through a view": lambda x: [(y := x * 2), (z := y[:, 0]), y.add_(1), z.exp()][3],
    "it may have been seen through a view": lambda x: [(y := x * 2), (z := y.reshape(-1)), y.add_(1), z.exp()][3],
    "it is written twice": lambda x: (x * 2).add_(1).mul_(3),
    "an operator that ONNX lacks": lambda x: torch.special.bessel_j0(x),
    "a condition": lambda x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)),
}


class Model(nn.Module):
    def __init__(self, way: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Any:
        return self.way(x)


def exported(way: Callable[[Tensor], Any]) -> Any:
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    return torch.export.export(Model(way), (torch.randn(3, 5, 4),), dynamic_shapes=(dims,), strict=False)


@functools.cache
def known() -> set[Any]:
    from torch.onnx._internal.exporter import _decomp, _registration

    return set(_decomp.get_onnx_implemented_overloads(_registration.ONNXRegistry.from_torchlib()))


def operators(program: Any) -> list[Any]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def test_it_answers_like_the_model() -> None:
    """Of another size than it was traced with; and nothing is left that ONNX has not."""
    every = lambda x: {name: way(x) for name, way in WAYS.items()}  # noqa: E731
    program = exported(every)
    assert {*operators(program)} - known()
    assert lowering.lower(program, known())
    assert {*operators(program)} - known() == set()
    x = torch.randn(2, 7, 4)
    found, expected = program.module(check_guards=False)(x), every(x)
    assert [*found] == [*WAYS]
    for name in WAYS:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", LEFT)
def test_the_rest_is_left_to_torch(name: str) -> None:
    program = exported(LEFT[name])
    before = operators(program)
    assert not lowering.lower(program, known())
    assert operators(program) == before


def test_a_mixture_of_experts_becomes_the_same_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operator by operator as with torch's second trace, but for sizes that are computed elsewhere."""
    made, seen = [], []
    lower = lowering.lower
    monkeypatch.setattr(lowering, "lower", lambda *a: seen.append(lower(*a)) or seen[-1])
    for way in (lowering.quick_lowering, contextlib.nullcontext):
        monkeypatch.setattr(tracing, "quick_lowering", way)
        model = tracing.trace(families.tiny("mixtral", layers=1), opset=18, strength=False).model
        made.append(Counter(node.op_type for node in model.graph if node.op_type not in ("Concat", "Shape")))
    assert seen == [True]
    assert made[0] == made[1]
    assert made[0]["MatMul"] > 3
