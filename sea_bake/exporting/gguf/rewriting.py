"""Rewrite single tensors inside a GGUF: every key, the order, the alignment and every other byte stay as they are.

Nothing of the header changes but the types and offsets of tensors; without a change the output is the input, byte for
byte. New values: the file's own tensor, dequantised, multiplied in float64, quantised once. So a quantised model keeps
its own weights, and only the edited ones are rounded again.

A weight that lies on its type's grid already, and is moved by less than half a step, is rounded back to where it was: a
type of few bits may take most of a small edit away. So what is left of each edit is measured ("kept").
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from sea_bake.baking.linear import Change
from sea_bake.errors import CheckpointError
from sea_bake.exporting.gguf.header import GgufFile, GgufTensor, new_tensor
from sea_bake.io import progress
from sea_bake.io.apart import check_apart

EDITED_TYPES = ("keep", "f32", "f16", "q8_0")
# What gguf can quantise, but for ternary types: they hold ternary weights, which edited ones no longer are.
_KEPT = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4")
_BLOCK = 1 << 22  # elements in float64 at a time: 32 MiB
_COUNT = 8  # where a GGUF says how many tensors it holds: behind its four letters and its version
_COPY = 1 << 24  # bytes copied at a time


@dataclass(frozen=True)
class Rewrite:
    """What becomes of one tensor.

    Attributes:
        change: what becomes of its writer; None leaves the values as they are.
        type: gguf's GGMLQuantizationType to write.
        is_bias: the output dimension is the last one.
        is_new: the file holds no such tensor yet: it is one of zeros, and comes behind all others.
        weight: of a bias, the weight that it stands beside.
    """

    change: Change | None
    type: Any
    is_bias: bool = False
    weight: GgufTensor | None = None
    is_new: bool = False


def edited_type(tensor: GgufTensor, wanted: str, *, is_bias: bool = False) -> Any:
    """The type that an edited tensor is written in; a bias keeps its own, since llama.cpp adds it in that.

    "keep": its own where gguf can quantise that; else Q8_0, or F16 where the rows are no whole blocks.
    """
    from gguf import GGMLQuantizationType as Type

    if is_bias:
        return tensor.type
    if wanted == "keep" and tensor.type.name in _KEPT:
        return tensor.type
    if wanted in ("f32", "f16"):
        return Type[wanted.upper()]
    return Type.Q8_0 if tensor.shape[-1] % 32 == 0 else Type.F16


def new_places(file: GgufFile, rewrites: Mapping[str, Rewrite]) -> tuple[dict[str, tuple[int, int]], int]:
    """Tensor -> (start, size) in the new file, and the size of that file."""
    places: dict[str, tuple[int, int]] = {}
    shift = _data(file, rewrites) - file.data
    for tensor in sorted(file.tensors.values(), key=lambda t: t.start):
        size = _size(tensor, rewrites[tensor.name].type) if tensor.name in rewrites else tensor.size
        places[tensor.name] = tensor.start + shift, size
        if size != tensor.size:
            shift += _aligned(size, file.alignment) - _aligned(tensor.size, file.alignment)
    end = max((start + _aligned(size, file.alignment) for start, size in places.values()), default=0)
    end = max(file.size + shift, end)
    for name, new in _added(rewrites).items():
        end = _aligned(end, file.alignment)
        places[name] = end, new.size
        end += _aligned(new.size, file.alignment)
    return places, end


def rewrite(file: GgufFile, rewrites: Mapping[str, Rewrite], target: Path) -> dict[str, dict[str, Any]]:
    """Write the new file; peak memory is one matrix (one expert of a stack) in float32, and blocks of it in float64.

    Returns:
        Changed tensor -> its types ("from", "type"), ‖W' - W‖ / ‖W‖ ("change"), the new type's own rounding,
        ‖Q(W') - W'‖ / ‖W'‖ ("rounding"), and the share of the edit that is left, <Q(W') - W, W' - W> / ‖W' - W‖²
        ("kept": 1 for floats).

    Raises:
        CheckpointError: a value that the type cannot hold, an edit that the type rounds away, a file cut meanwhile.
        OutputError: the target is the file itself.
    """
    check_apart(target, [file.path], folder=False)
    places, _ = new_places(file, rewrites)
    found: dict[str, dict[str, Any]] = {}
    with (
        open(file.path, "rb") as source,
        open(target, "wb") as out,
        progress.bar("gguf", len(rewrites), "tensor") as advance,
    ):
        out.write(_header(file, rewrites, places, source))
        at = min(file.data, file.size)
        for tensor in sorted(file.tensors.values(), key=lambda t: t.start):
            _copy(source, out, at, tensor.start - at)
            start, size = places[tensor.name]
            assert out.tell() == start
            at = tensor.start + tensor.size
            if tensor.name not in rewrites:
                _copy(source, out, tensor.start, tensor.size)
                continue
            found[tensor.name] = _edit(file, tensor, rewrites[tensor.name], out)
            if size != tensor.size:
                out.write(bytes(_aligned(size, file.alignment) - size))
                at = min(tensor.start + _aligned(tensor.size, file.alignment), file.size)
            advance(1)
        _copy(source, out, at, file.size - at)
        for name, tensor in _added(rewrites).items():
            start, size = places[name]
            out.write(bytes(start - out.tell()))
            found[name] = _edit(file, tensor, rewrites[name], out)
            out.write(bytes(_aligned(size, file.alignment) - size))
            advance(1)
    return found


def _added(rewrites: Mapping[str, Rewrite]) -> dict[str, GgufTensor]:
    """The tensors that the file lacks: vectors, each beside a weight."""
    found = {name: new.weight for name, new in rewrites.items() if new.is_new}
    return {name: new_tensor(name, weight.shape[-2]) for name, weight in found.items() if weight is not None}


def _entries(rewrites: Mapping[str, Rewrite]) -> list[bytes]:
    """Their lines in the table of tensors, but for the offsets."""
    added = _added(rewrites).values()
    names = [(tensor, tensor.name.encode()) for tensor in added]
    return [
        struct.pack("<Q", len(name)) + name + struct.pack("<IQI", 1, tensor.shape[0], int(tensor.type))
        for tensor, name in names
    ]


def _data(file: GgufFile, rewrites: Mapping[str, Rewrite]) -> int:
    """Where the tensors begin in the new file."""
    more = sum(len(entry) + 8 for entry in _entries(rewrites))
    return _aligned(file.table + more, file.alignment) if more else file.data


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _size(tensor: GgufTensor, kind: Any) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    return int(math.prod(tensor.shape) // block * size)


def _header(
    file: GgufFile, rewrites: Mapping[str, Rewrite], places: Mapping[str, tuple[int, int]], source: BinaryIO
) -> bytearray:
    header, data = bytearray(source.read(min(file.data, file.size))), _data(file, rewrites)
    for tensor in file.tensors.values():
        kind = rewrites[tensor.name].type if tensor.name in rewrites else tensor.type
        struct.pack_into("<IQ", header, tensor.info, int(kind), places[tensor.name][0] - data)
    added = _added(rewrites)
    if added:
        struct.pack_into("<Q", header, _COUNT, len(file.tensors) + len(added))
        starts = [struct.pack("<Q", places[name][0] - data) for name in added]
        header = header[: file.table] + b"".join(map(b"".join, zip(_entries(rewrites), starts)))
        header += bytes(data - len(header))
    return header


def _copy(source: BinaryIO, out: BinaryIO, start: int, count: int) -> None:
    source.seek(start)
    while count > 0:
        data = source.read(min(count, _COPY))
        if not data:
            raise CheckpointError(f"{source.name} has been cut while it was read")
        out.write(data)
        count -= len(data)


def _edit(file: GgufFile, tensor: GgufTensor, new: Rewrite, out: BinaryIO) -> dict[str, Any]:
    """Write one tensor anew, matrix by matrix."""
    from gguf import quants

    rows = 1 if len(tensor.shape) == 1 else tensor.shape[-2]
    step = max(1, _BLOCK // tensor.shape[-1])
    sums = np.zeros(5)
    # A product may leave a bias alone, which may be 0; a constant may not.
    moved = new.change is None or not (new.change.constant if new.is_bias else not new.change.is_identity)
    for first in range(0, math.prod(tensor.shape[:-1]), rows):
        matrix = np.empty((rows, tensor.shape[-1]), np.float32)
        for i in range(0, rows, step):
            matrix[i : i + step] = 0 if new.is_new else file.rows(tensor, first + i, min(step, rows - i))
        if new.change is not None and new.is_bias:
            bias = new.change.of_bias(torch.from_numpy(matrix.T.astype(np.float64)), partial(_weight, file, new.weight))
            matrix[:] = bias.numpy().T
        elif new.change is not None:
            _multiply(matrix, new.change)
        for i in range(0, rows, step):
            part = matrix[i : i + step]
            original = np.zeros_like(part) if new.is_new else file.rows(tensor, first + i, len(part))
            with np.errstate(over="ignore"):  # told below
                data = quants.quantize(part, new.type)
                moved = moved or data.tobytes() != quants.quantize(original, new.type).tobytes()
            back = quants.dequantize(np.ascontiguousarray(data).view(np.uint8), new.type).reshape(part.shape)
            if not np.isfinite(back).all():
                raise CheckpointError(
                    f"{tensor.name}: the edited weight does not fit into {new.type.name}. Take --edited-type f32."
                )
            out.write(data.tobytes())
            change, lost = (np.subtract(*pair, dtype=np.float64) for pair in ((part, original), (back, part)))
            squares = [np.square(values, dtype=np.float64).sum() for values in (original, change, part, lost)]
            sums += [*squares, np.vdot(lost, change)]
    if not moved:
        raise CheckpointError(
            f"the edit leaves {tensor.name} as it is: it is too weak for {new.type.name}. Take a finer --edited-type."
        )
    before, changed, after, missed, pulled = sums.tolist()
    return {
        "from": tensor.type.name,
        "type": new.type.name,
        "change": math.sqrt(changed / before) if before else float(changed > 0),
        "rounding": math.sqrt(missed / after) if after else 0.0,
        "kept": 1 + pulled / changed if changed else 1.0,
    }


def _weight(file: GgufFile, tensor: GgufTensor | None) -> torch.Tensor:
    assert tensor is not None
    return torch.from_numpy(file.rows(tensor, 0, tensor.shape[-2]))


def _multiply(matrix: NDArray[np.float32], change: Change) -> None:
    """M W in place, for W [d, columns]."""
    step = max(1, _BLOCK // len(matrix)) if change.before is None else matrix.shape[1]
    for i in range(0, matrix.shape[1], step):
        matrix[:, i : i + step] = change.of_weight(torch.from_numpy(matrix[:, i : i + step].astype(np.float64))).numpy()
