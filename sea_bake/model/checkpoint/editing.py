"""Write single tensors of a shard anew, by their on-disk names: every header and every other byte stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sea_bake.errors import CheckpointError
from sea_bake.model.checkpoint.reader import LazyTensor

_BLOCK = 1 << 22  # elements in float64 at a time: 32 MiB


def edit_in_place(
    path: Path, name: str, tensor: LazyTensor, change: Callable[[Tensor], Tensor], axis: int, *, whole: bool = False
) -> float:
    """Replace a tensor by ``change`` of it along one axis, in a wider dtype, rounded once to its own.

    Wider: float32 for half precisions (65536 times finer than bfloat16), float64 for the others. Peak memory is one
    matrix of the tensor (one expert of a stack) in its own dtype, and a block of it in the wider one.

    Args:
        path: a private copy of the shard; the tensor is written there, where it lies in its own file.
        tensor: read from its own file, which may be the same: 1-D, 2-D, or a stack of those.
        change: [d, columns] in the wider dtype -> the same; has to act on each column by itself.
        axis: -1 or -2: where d lies in each matrix of the stack.
        whole: ``change`` needs all columns of a matrix at once.

    Returns:
        ‖W' - W‖ / ‖W‖, with W' as it was rounded; 1 where W was zero, and is not now.

    Raises:
        CheckpointError: a result that the dtype cannot hold, or a file that is shorter than its header says.
    """
    shape = tensor.shape[-2:] if axis == -2 else (math.prod(tensor.shape[-2:-1]), tensor.shape[-1])
    size = math.prod(shape) * tensor.dtype.itemsize
    wide = torch.float32 if tensor.dtype.itemsize == 2 else torch.float64
    before = changed = 0.0
    with open(tensor.path, "rb") as source, open(path, "r+b") as file:
        for start in range(tensor.offset, tensor.offset + tensor.nbytes, size):
            source.seek(start)
            buffer = bytearray(size)
            if source.readinto(buffer) != size:
                raise CheckpointError(f"{tensor.path} is truncated: {name} is not whole")
            matrix = torch.frombuffer(buffer, dtype=tensor.dtype).view(shape)
            columns = matrix if axis == -2 else matrix.T
            step = columns.shape[1] if whole else max(1, _BLOCK // len(columns))
            for i in range(0, columns.shape[1], step):
                old = columns[:, i : i + step].to(wide, copy=True)  # a view of float64 would change with it
                new = change(old).to(tensor.dtype)
                columns[:, i : i + step] = new
                before += float(torch.linalg.vector_norm(old)) ** 2
                changed += float(torch.linalg.vector_norm(new.to(wide).sub_(old))) ** 2
            if not math.isfinite(changed):
                raise CheckpointError(f"{name}: the edited weight does not fit into {tensor.dtype}")
            file.seek(start)
            file.write(buffer)
    return math.sqrt(changed / before) if before else float(changed > 0)
