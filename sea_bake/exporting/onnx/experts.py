"""Mixtures of experts in standard operators: each expert multiplies its own tokens, with a matrix of its own.

transformers keeps the experts' weights in one stack [experts, in, out] and multiplies tokens that are sorted by expert;
ONNX has no such operator. Gathering a matrix per token, the other way to trace it, would copy a matrix for every token.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch


def translations() -> dict[Any, Any]:
    """torch operator -> function that writes it in ONNX, for ``torch.onnx.export``."""
    operators = [getattr(torch.ops.aten, "_grouped_mm", None)]
    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):  # what transformers does itself where torch does not
        operators.append(torch.ops.transformers.grouped_mm_fallback)
    return {operator.default: _grouped for operator in operators if operator is not None}


def _grouped(rows: Any, stack: Any, ends: Any, bias: Any = None, out_dtype: Any = None) -> Any:
    """rows [n, in], sorted by expert; stack [experts, in, out]; ends [experts], where each expert's rows end.

    Rows are taken by number and not by ``Slice``: the optimiser compares every pair of slices.
    """
    from onnxscript import opset18 as op

    assert bias is None
    assert out_dtype is None
    count = int(stack.shape[0])
    axis, one = op.Constant(value_ints=[0]), op.Constant(value_int=1)
    stops = op.Split(op.Cast(ends, to=7), axis=0, num_outputs=count) if count > 1 else [op.Cast(ends, to=7)]
    start = op.Constant(value_int=0)
    products = []
    for expert in range(count):
        stop = op.Squeeze(stops[expert], axis)
        own = op.Gather(rows, op.Range(start, stop, one), axis=0)
        products.append(op.MatMul(own, op.Gather(stack, op.Constant(value_int=expert), axis=0)))
        start = stop
    return op.Concat(*products, axis=0)


def part_experts(model: Any) -> None:
    """Make every matrix that a graph takes out of a stack of weights a weight of its own.

    Runtimes would do so on loading, in memory; and quantisers know matrices, not stacks. None is copied before it is
    written.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = model.graph
    for node in list(graph):
        found = _part(node)
        if found is None:
            continue
        stack, number, transposed = found
        rows, columns = stack.shape[1:]
        name = f"{stack.name}.{number}"
        if name not in graph.initializers:
            tensor = onnx_ir.LazyTensor(
                functools.partial(_matrix, stack.const_value, number, transposed),
                dtype=stack.dtype,
                shape=onnx_ir.Shape((columns, rows) if transposed else (rows, columns)),
                name=name,
            )
            graph.initializers[name] = onnx_ir.Value(
                name=name, type=onnx_ir.TensorType(stack.dtype), shape=tensor.shape, const_value=tensor
            )
        node.outputs[0].replace_all_uses_with(graph.initializers[name])
    RemoveUnusedNodesPass()(model)


def _part(node: Any) -> tuple[Any, int, bool] | None:
    """(stack, number, transposed) of a ``Gather`` that takes one matrix out of a stack of weights."""
    if node.op_type != "Gather" or node.inputs[1] is None or node.inputs[1].const_value is None:
        return None
    stack, index = node.inputs[0], node.inputs[1].const_value.numpy()
    maker = stack.producer()
    transposed = maker is not None and maker.op_type == "Transpose"
    if transposed:
        if list(maker.attributes["perm"].as_ints()) != [0, 2, 1]:
            return None
        stack = maker.inputs[0]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if index.ndim or axis or not stack.is_initializer() or stack.const_value is None or len(stack.shape) != 3:
        return None
    return stack, int(index), transposed


def _matrix(stack: Any, number: int, transposed: bool) -> Any:
    import onnx_ir

    matrix = stack.numpy()[number]
    return onnx_ir.tensor(np.ascontiguousarray(matrix.T if transposed else matrix))
