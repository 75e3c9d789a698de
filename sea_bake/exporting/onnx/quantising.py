"""Weights of a graph in 8 or 4 bits: MatMulNBits, block by block, with the edit's own nodes left as they are.

Only matrices that activations are multiplied with are rounded; activations, embeddings, norms and the edit stay float.
The rounding is ONNX Runtime's own. The graph is rewritten here, one weight at a time, because ONNX Runtime's quantiser
holds the whole model in memory, and passes over a head that is tied to the embedding (it stands behind a Transpose) and
over the Gemm of GPT-2.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sea_bake.errors import CheckpointError, SettingError
from sea_bake.exporting.onnx import finishing

BITS = {"int8": 8, "int4": 4}
BLOCK = 32  # inputs of a weight that share one scale: the finest that every runtime has kernels for
_DOMAIN = "com.microsoft"
SYMMETRIC = True
ACCURACY = 0


@dataclass(frozen=True)
class QuantisedReport:
    """What was done to a graph.

    Attributes:
        kind: "int8" or "int4".
        bits, block_size: of a weight; so many of its inputs share one scale.
        quantised: number of weights that were rounded.
        kept: names of the products with a weight that were left alone as asked.
        bytes: graph and weights.
        bytes_float: of these, weights that stay float: embeddings, the edit, and what is no matrix (stacked experts).
        bytes_before: graph and weights of the graph that was read.
    """

    kind: str
    bits: int
    block_size: int
    quantised: int
    kept: list[str]
    bytes: int
    bytes_float: int
    bytes_before: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def quantise(source: Path, target: Path, kind: str, keep: Sequence[str]) -> QuantisedReport:
    """Write ``source`` with its weights in 8 or 4 bits to ``target``, and the weights to ``target`` + "_data".

    A weight that several products share is rounded once. Where an embedding serves as the head too, the head gets a
    rounded copy and the embedding stays float: WebAssembly has no kernel that looks up rounded rows.

    Args:
        source: a graph with float32 weights.
        target: the graph to write.
        kind: "int8" or "int4".
        keep: names of nodes to leave as they are, to the bit.

    Raises:
        SettingError: another kind.
        CheckpointError: a node to keep is not in the graph, or nothing in it can be rounded.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    if kind not in BITS:
        raise SettingError(f"unknown kind {kind!r}: use {' or '.join(BITS)}")
    model = onnx_ir.load(source)  # the weights stay on disk until they are looked at
    nodes = list(model.graph.all_nodes())
    missing = sorted({*keep} - {node.name for node in nodes})
    if missing:
        raise CheckpointError(f"{source.name} has no node {missing[0]}, which was to be kept as it is")
    rewriting, kept = _Rewriting(BITS[kind]), []
    for node in nodes:
        found = _weight(node)
        if found is not None and node.name in keep:
            kept.append(node.name)
        elif found is not None:
            rewriting.replace(node, *found)
    if not rewriting.rounded:
        raise CheckpointError(f"{source.name} multiplies with no float32 matrix: there is nothing to quantise")
    model.opset_imports[_DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    finishing.save(model, target)
    weights = [value.const_value for value in model.graph.initializers.values()]
    floats = sum(tensor.nbytes for tensor in weights if tensor.dtype.is_floating_point()) - rewriting.scales
    return QuantisedReport(kind, BITS[kind], BLOCK, len(rewriting.rounded), kept, size(target), floats, size(source))


def size(graph: Path) -> int:
    """Bytes of a graph and of the weights beside it."""
    return sum(path.stat().st_size for path in (graph, *graph.parent.glob(f"{graph.name}_data*")))


def _weight(node: Any) -> tuple[Any, bool] | None:
    """The float32 matrix that a node multiplies its input with, and whether it lies there transposed."""
    import onnx_ir

    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    value, turned = node.inputs[1], False
    if node.op_type == "Gemm":
        settings = {name: attribute.value for name, attribute in node.attributes.items()}
        if settings.get("transA", 0) or settings.get("alpha", 1) != 1 or settings.get("beta", 1) != 1:
            return None
        turned = bool(settings.get("transB", 0))
    above = value.producer()
    if above is not None and above.op_type == "Transpose":
        value, turned = above.inputs[0], not turned
    tensor = value.const_value if value.is_initializer() else None
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype != onnx_ir.DataType.FLOAT:
        return None
    return value, turned


class _Rewriting:
    """Products become MatMulNBits, each weight rounded once.

    Attributes:
        rounded: (weight, whether transposed) -> what takes its place in the graph.
        scales: bytes of all scales.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.rounded: dict[tuple[str, bool], list[Any]] = {}
        self.scales = 0
        self._round = _rounding(bits)

    def replace(self, node: Any, weight: Any, turned: bool) -> None:
        """Put a MatMulNBits (and an Add for the bias of a Gemm) in the place of a node."""
        import onnx_ir

        (old,) = node.outputs
        k, n = weight.const_value.shape[::-1] if turned else weight.const_value.shape
        product = onnx_ir.node(
            "MatMulNBits",
            [node.inputs[0], *self._tensors(weight, turned)],
            {"K": k, "N": n, "bits": self.bits, "block_size": BLOCK, **({"accuracy_level": ACCURACY} if ACCURACY else {})},
            domain=_DOMAIN,
            name=f"{node.name}_Q{self.bits}",
        )
        made = [product]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            made.append(onnx_ir.node("Add", [product.outputs[0], node.inputs[2]], name=f"{node.name}_bias"))
        new = made[-1].outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        onnx_ir.convenience.replace_nodes_and_values(node.graph, node, [node], made, [old], [new])

    def _tensors(self, weight: Any, turned: bool) -> list[Any]:
        import onnx_ir

        key = (weight.name, turned)
        if key not in self.rounded:
            matrix = weight.const_value.numpy()
            packed, scales, zeros = self._round(np.ascontiguousarray(matrix.T if turned else matrix))
            self.scales += scales.nbytes
            parts = {f"Q{self.bits}": packed, "scales": scales}
            if not SYMMETRIC:
                parts["zero_points"] = zeros
            values = []
            for part, array in parts.items():
                value = onnx_ir.val(f"{weight.name}{'_T' * turned}_{part}", const_value=onnx_ir.tensor(array))
                weight.graph.register_initializer(value)
                values.append(value)
            self.rounded[key] = values
        return self.rounded[key]


def _rounding(bits: int) -> Any:
    """[K, N] float32 -> packed integers [N, K / block, bytes], scales [N, K / block], zero points.

    The import alone sets up logging for the whole process, unless somebody has done so before.
    """
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        from onnxruntime.quantization import matmul_nbits_quantizer as quantizer
    finally:
        logging.root.removeHandler(handler)
    config = quantizer.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=SYMMETRIC, bits=bits)
    return quantizer.DefaultWeightOnlyQuantizer(config).qbits_block_quant
