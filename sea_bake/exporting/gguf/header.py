"""A GGUF file, seen through its header, without trust: how it names itself, and where and how each tensor lies.

gguf's own reader makes an array of every entry of a vocabulary (seconds, and gigabytes, for a large one) and believes
every length that it is told. This one steps over the arrays, and believes nothing that leaves the file. What a type is,
how large its blocks are and what its numbers mean is asked of the package ``gguf`` alone.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import CheckpointError, need

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_VERSIONS = (2, 3)
# GGUFValueType -> how struct reads it; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_NAME = 1 << 12
_MAX_DIMS = 4


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
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"{path} is no GGUF: it does not begin with the letters GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
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


class _Reader:
    """One pass over a header; every read is checked against the end of the file."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.view, self.at = path, view, 4

    def read(self) -> GgufFile:
        version, tensor_count, key_count = self._version(), self._number("Q"), self._number("Q")
        if version not in _VERSIONS:
            raise self._damaged(f"version {version} is not known (2 and 3 are)")
        keys: dict[str, Any] = {}
        for _ in range(key_count):
            name = self._string(_LONGEST_NAME)
            if name in keys:
                raise self._damaged(f"it has the key {name!r} twice")
            keys[name] = self._value(self._number("I"))
        self._refuse_kinds(keys)
        alignment = keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}, not a power of two")
        found = [self._tensor() for _ in range(tensor_count)]
        table, data = self.at, -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for tensor in found:
            name, end = tensor.name, data + tensor.start + tensor.size
            if end > len(self.view):
                raise CheckpointError(f"{self.path} is truncated: {name} ends behind the end of the file")
            if name in tensors:
                raise self._damaged(f"it has the tensor {name!r} twice")
            if tensor.start % alignment:
                raise self._damaged(f"{name} is not aligned")
            tensors[name] = replace(tensor, start=data + tensor.start)
        order = sorted(tensors.values(), key=lambda t: t.start)
        for one, other in itertools.pairwise(order):
            if one.start + one.size > other.start:
                raise self._damaged(f"{one.name} and {other.name} overlap")
        return GgufFile(self.path, len(self.view), keys, tensors, data, alignment, table)

    def _version(self) -> int:
        version = self._number("I")
        if version and not version & 0xFFFF:
            raise CheckpointError(
                f"{self.path} is big-endian: turn a copy of it round first (gguf-convert-endian COPY little, a command "
                "of the package gguf)"
            )
        return version

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
            raise self._damaged("it does not name its general.architecture")

    def _tensor(self) -> GgufTensor:
        """The next entry of the table; its start counts from where the data begin."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, dims = self._string(_LONGEST_NAME), self._number("I")
        if not 1 <= dims <= _MAX_DIMS:
            raise self._damaged(f"{name!r} has {dims} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(dims)]))
        info = self.at
        kind, start = self._number("I"), self._number("Q")
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
            raise self._damaged(f"{name} of shape {shape} cannot be {known.name}")
        return GgufTensor(name, shape, known, start, elements // block * block_size, info)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(self._code(kind))
        item, count = self._number("I"), self._number("Q")
        if item == _STRING:
            for _ in range(count):
                self._skip(self._number("Q"))
        else:
            self._skip(count * struct.calcsize(self._code(item)))
        return None

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self._damaged(f"it holds a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _number(self, code: str) -> Any:
        start = self.at
        self._skip(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self.view, start)[0]

    def _string(self, longest: int | None = None) -> str:
        length = self._number("Q")
        if longest is not None and length > longest:
            raise self._damaged(f"it holds a name of {length} bytes")
        start = self.at
        self._skip(length)
        return self.view[start : self.at].decode("utf-8", "replace")

    def _skip(self, count: int) -> None:
        if count > len(self.view) - self.at:
            raise CheckpointError(f"{self.path} is truncated or damaged: its header leads behind the end of the file")
        self.at += count

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged or no GGUF that can be read here: {what}")
