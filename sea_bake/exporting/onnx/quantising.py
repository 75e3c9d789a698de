"""Weights of a graph in 8 or 4 bits: MatMulNBits, block by block, with the edit's own nodes left as they are.

Only matrices that activations are multiplied with are rounded; activations, embeddings, norms and the edit stay float.
The rounding is ONNX Runtime's own. The graph is rewritten here, one weight at a time, because ONNX Runtime's quantiser
holds the whole model in memory, and passes over a head that is tied to the embedding (it stands behind a Transpose) and
over the Gemm of GPT-2.

"int4" is a mixture, as llama.cpp's Q4_K_M is: the head, and matrices with more inputs than outputs (the last one of an
MLP; keys and values where they are shared by queries), which write what all later layers read, have 8 bits. With
everything at 4 bits, what an l2 edit of 20 layers of SmolLM2-135M changes correlates by 0.75 with what it changes in
float32, and other roundings mend little of that (zero points 0.73, k-quants 0.72; blocks of 16: 0.78, with zero points
0.82; the head at 8 bits: 0.76); the mixture has 0.94, for 229 MB instead of 198.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sea_bake.errors import CheckpointError, SettingError
from sea_bake.exporting.onnx import finishing
from sea_bake.io.apart import check_apart

BITS = {"int8": 8, "int4": 4}
BLOCK = 32  # inputs of a weight that share one scale: the finest that every runtime has kernels for
_DOMAIN = "com.microsoft"
_BEHIND_HEAD = 32  # nodes between the head and the logits: a cap, a scale, a cast; none at all in most families
# Activations are rounded to 8 bits inside the product. ONNX Runtime's kernels for float ones are 20 times slower on the
# CPU (SmolLM2, per token: 244 ms against 12 ms at 8 bits), and they would lower the mean KL from 0.015 to 0.004 only.
_ACCURACY_LEVEL = 4


def quantise(source: Path, target: Path, kind: str, keep: Sequence[str]) -> dict[str, Any]:
    """Write ``source`` with its weights in 8 or 4 bits to ``target``, and the weights to ``target`` + "_data".

    A weight that several products share is rounded once. Where an embedding serves as the head too, the head gets a
    rounded copy and the embedding stays float: WebAssembly has no kernel that looks up rounded rows.

    Args:
        source: a graph with float32 weights.
        target: the graph to write.
        kind: "int8" or "int4".
        keep: names of nodes to leave as they are, to the bit.

    Returns:
        "kind"; "weights", bits -> number of weights that were rounded to them; "block_size", number of inputs of a
        weight that share one scale; "kept", number of products with a weight that were left alone as asked; "bytes" of
        graph and weights; of these "bytes_float", weights that stay float: embeddings, the edit, and what is no matrix
        (stacked experts); and "bytes_before", of the graph that was read.

    Raises:
        SettingError: another kind.
        CheckpointError: a node to keep is not in the graph, or nothing in it can be rounded.
        OutputError: the target is the source itself, or its weights are the source's.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    if kind not in BITS:
        raise SettingError(f"unknown kind {kind!r}: use {' or '.join(BITS)}")
    read = [source, *source.parent.glob(f"{source.name}_data*")]
    for path in (target, target.with_name(f"{target.name}_data")):
        check_apart(path, read, folder=False)
    model = onnx_ir.load(source)  # the weights stay on disk until they are looked at
    nodes = list(model.graph.all_nodes())
    missing = sorted({*keep} - {node.name for node in nodes})
    if missing:
        raise CheckpointError(f"{source.name} has no node {missing[0]}, which was to be kept as it is")
    rewriting, kept = _Rewriting(), 0
    head = model.graph.outputs[0]
    for node in nodes:
        found = _weight(node)
        if found is not None and node.name in keep:
            kept += 1
        elif found is not None:
            weight, turned = found
            inputs, outputs = reversed(weight.shape) if turned else weight.shape
            rewriting.replace(node, weight, turned, 8 if outputs < inputs or _leads_to(node, head) else BITS[kind])
    if not rewriting.rounded:
        raise CheckpointError(f"{source.name} multiplies with no float32 matrix: there is nothing to quantise")
    model.opset_imports[_DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    finishing.save(model, target)
    weights = [value.const_value for value in model.graph.initializers.values()]
    floats = sum(tensor.nbytes for tensor in weights if tensor.dtype.is_floating_point()) - rewriting.scales
    return {
        "kind": kind,
        "weights": dict(sorted(Counter(bits for _, _, bits in rewriting.rounded).items())),
        "block_size": BLOCK,
        "kept": kept,
        "bytes": size(target),
        "bytes_float": floats,
        "bytes_before": size(source),
    }


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


def _leads_to(node: Any, output: Any) -> bool:
    """Whether a product is the last one before an output; a head may be scaled, capped or widened behind it."""
    values, seen = [output], 0
    while values and seen < _BEHIND_HEAD:
        producer, seen = values.pop(0).producer(), seen + 1
        if producer is node:
            return True
        if producer is not None and producer.op_type not in ("MatMul", "Gemm"):
            values += [value for value in producer.inputs if value is not None]
    return False


class _Rewriting:
    """Products become MatMulNBits, each weight rounded once.

    Attributes:
        rounded: (weight, whether transposed, bits) -> what takes its place in the graph.
        scales: bytes of all scales.
    """

    def __init__(self) -> None:
        self.rounded: dict[tuple[str, bool, int], list[Any]] = {}
        self.scales = 0

    def replace(self, node: Any, weight: Any, turned: bool, bits: int) -> None:
        """Put a MatMulNBits (and an Add for the bias of a Gemm) in the place of a node."""
        import onnx_ir

        (old,) = node.outputs
        k, n = weight.const_value.shape[::-1] if turned else weight.const_value.shape
        settings = {"K": k, "N": n, "bits": bits, "block_size": BLOCK, "accuracy_level": _ACCURACY_LEVEL}
        inputs = [node.inputs[0], *self._tensors(weight, turned, bits)]
        made = [onnx_ir.node("MatMulNBits", inputs, settings, domain=_DOMAIN, name=f"{node.name}_Q{bits}")]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            made.append(onnx_ir.node("Add", [made[0].outputs[0], node.inputs[2]], name=f"{node.name}_bias"))
        new = made[-1].outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        onnx_ir.convenience.replace_nodes_and_values(node.graph, node, [node], made, [old], [new])

    def _tensors(self, weight: Any, turned: bool, bits: int) -> list[Any]:
        """Packed integers [N, K / block, bytes] and scales [N, K / block]; the zero point is the middle."""
        import onnx_ir

        key = (weight.name, turned, bits)
        if key not in self.rounded:
            matrix = weight.const_value.numpy()
            packed, scales, _ = _round(np.ascontiguousarray(matrix.T if turned else matrix), bits)
            self.scales += scales.nbytes
            self.rounded[key] = []
            for part, array in ((f"Q{bits}", packed), (f"Q{bits}_scales", scales)):
                value = onnx_ir.val(f"{weight.name}{'_T' * turned}_{part}", const_value=onnx_ir.tensor(array))
                weight.graph.register_initializer(value)
                self.rounded[key].append(value)
        return self.rounded[key]


def _round(matrix: np.ndarray, bits: int) -> Any:
    """ONNX Runtime's rounding of a matrix [K, N]: packed integers, scales, zero points.

    The import alone would set up logging for the whole process, were nobody there who did so before.
    """
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        from onnxruntime.quantization import matmul_nbits_quantizer as quantizer
    finally:
        logging.root.removeHandler(handler)
    config = quantizer.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=bits)
    return quantizer.DefaultWeightOnlyQuantizer(config).qbits_block_quant(matrix)
