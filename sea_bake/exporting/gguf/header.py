"""A GGUF file, seen through its header, without trust: how it names itself, and where and how each tensor lies.

gguf's own reader makes an array of every entry of a vocabulary (seconds, and gigabytes, for a large one) and believes
every length that it is told. This one steps over the arrays, and believes nothing that leaves the file. What a type is,
how large its blocks are and what its numbers mean is asked of the package ``gguf`` alone.
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import CheckpointError, need
from sea_bake.exporting.gguf.layout import Scan, seen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class GgufTensor:
    """A tensor on disk.

    Attributes:
        name: such as "blk.3.ffn_down.weight".
        shape: as numpy has it: [..., rows, columns]; blocks of a quantised type lie along the columns.
        type: gguf's GGMLQuantizationType.
        start, size: where its bytes lie in the file.
        info: where the header says of which type it is (4 bytes); its offset (8 bytes) stands behind that.
    """

    name: str
    shape: tuple[int, ...]
    type: Any
    start: int
    size: int
    info: int

    @property
    def row_size(self) -> int:
        return self.size * self.shape[-1] // math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """A little-endian GGUF of version 2 or 3, whole in one file.

    Attributes:
        path: where it lies.
        size: of the file.
        keys: its keys with their values; None for an array.
        tensors: in the order of the header.
        data: where the first tensor may begin; offsets in the header count from there.
        alignment: of every tensor's offset.
        table: where the table of the tensors ends.
    """

    path: Path
    size: int
    keys: dict[str, Any]
    tensors: dict[str, GgufTensor] = field(repr=False)
    data: int
    alignment: int
    table: int

    @property
    def architecture(self) -> str:
        return str(self.keys.get("general.architecture"))

    @classmethod
    def open(cls, path: str | Path) -> GgufFile:
        """Read the header.

        Raises:
            CheckpointError: no GGUF, truncated, damaged, one of several parts, big-endian, an adapter, or of a version
                or tensor type that the installed ``gguf`` does not know.
            MissingExtraError: the package ``gguf`` is not installed.
        """
        need("gguf", "Reading a GGUF", "gguf")
        path = Path(os.path.expanduser(path))
        if not path.is_file():
            raise CheckpointError(f"no such GGUF: {path}")
        with seen(path) as view:
            return _Reader(path, view).read()

    def rows(self, tensor: GgufTensor, first: int, count: int) -> NDArray[np.float32]:
        """Dequantised rows of a tensor (counted through all its matrices): float32 [count, columns].

        Raises:
            CheckpointError: a type that ``gguf`` cannot dequantise, or a file that has been cut meanwhile.
        """
        import numpy as np
        from gguf import quants

        with open(self.path, "rb") as file:
            file.seek(tensor.start + first * tensor.row_size)
            data = file.read(count * tensor.row_size)
        if len(data) != count * tensor.row_size:
            raise CheckpointError(f"{self.path} is truncated: {tensor.name} is not whole")
        try:
            found = quants.dequantize(np.frombuffer(data, np.uint8).reshape(count, -1), tensor.type)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{tensor.name} of {self.path.name} is {tensor.type.name}, which the package gguf cannot dequantise: "
                "take a GGUF of the same model in another type"
            ) from error
        return np.array(found, dtype=np.float32).reshape(count, tensor.shape[-1])


def new_tensor(name: str, width: int) -> GgufTensor:
    """A vector in float32 that no file holds yet."""
    from gguf import GGMLQuantizationType

    return GgufTensor(name, (width,), GGMLQuantizationType.F32, -1, 4 * width, -1)


class _Reader(Scan):
    """A whole header, and what its tensors are."""

    def read(self) -> GgufFile:
        tensor_count, keys = self.keys()
        self._refuse_kinds(keys)
        alignment = self.alignment(keys)
        found = [self._tensor() for _ in range(tensor_count)]
        table, data = self.at, -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for tensor in found:
            name, end = tensor.name, data + tensor.start + tensor.size
            if end > len(self.view):
                raise CheckpointError(f"{self.path} is truncated: {name} ends behind the end of the file")
            if name in tensors:
                raise self.damaged(f"it has the tensor {name!r} twice")
            if tensor.start % alignment:
                raise self.damaged(f"{name} is not aligned")
            tensors[name] = replace(tensor, start=data + tensor.start)
        order = sorted(tensors.values(), key=lambda t: t.start)
        for one, other in itertools.pairwise(order):
            if one.start + one.size > other.start:
                raise self.damaged(f"{one.name} and {other.name} overlap")
        return GgufFile(self.path, len(self.view), keys, tensors, data, alignment, table)

    def _refuse_kinds(self, keys: dict[str, Any]) -> None:
        parts = keys.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise CheckpointError(
                f"{self.path} is one of {parts} parts: join them first, with llama.cpp's llama-gguf-split "
                "--merge FIRST-PART WHOLE.gguf"
            )
        kind = keys.get("general.type", "model")
        if kind != "model":
            raise CheckpointError(f"{self.path} holds no model, but a GGUF of type {kind!r}")
        if not isinstance(keys.get("general.architecture"), str):
            raise self.damaged("it does not name its general.architecture")

    def _tensor(self) -> GgufTensor:
        """The next one of the table; its start counts from where the data begin."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, shape, info, kind, start = self.entry()
        try:
            known = GGMLQuantizationType(kind)
            block, block_size = GGML_QUANT_SIZES[known]
        except (ValueError, KeyError):
            raise CheckpointError(
                f"{name} of {self.path} has the type {kind}, which the installed gguf does not know: is there a newer "
                "one (pip install --upgrade gguf), or is the file damaged?"
            ) from None
        elements = math.prod(shape)
        if not elements or shape[-1] % block:
            raise self.damaged(f"{name} of shape {shape} cannot be {known.name}")
        return GgufTensor(name, shape, known, start, elements // block * block_size, info)
