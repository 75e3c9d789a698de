"""The dtypes of tensors on disk, by their names in a header: known without torch, which is imported for values."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dtype:
    """A dtype as a header knows it.

    Attributes:
        name: torch's, such as "bfloat16".
        itemsize: bytes of one element.
        is_floating_point: as torch's.
    """

    name: str
    itemsize: int
    is_floating_point: bool = False

    @property
    def torch(self) -> torch.dtype:
        """The same of torch."""
        import torch

        found: torch.dtype = getattr(torch, self.name)
        return found

    def __str__(self) -> str:
        return self.name


_DTYPES = {
    "F64": Dtype("float64", 8, True),
    "F32": Dtype("float32", 4, True),
    "F16": Dtype("float16", 2, True),
    "BF16": Dtype("bfloat16", 2, True),
    "F8_E4M3": Dtype("float8_e4m3fn", 1, True),
    "F8_E5M2": Dtype("float8_e5m2", 1, True),
    "I64": Dtype("int64", 8),
    "I32": Dtype("int32", 4),
    "I8": Dtype("int8", 1),
    "BOOL": Dtype("bool", 1),
}
FLOATS = tuple(_DTYPES[code] for code in ("F64", "F32", "BF16", "F16"))
"""Those that an edit can be written in."""
BOOL, INT32 = _DTYPES["BOOL"], _DTYPES["I32"]
_FORMATS = {"float64": "<d", "float32": "<f", "float16": "<e"}


def dtype_of(code: str) -> Dtype:
    """By its name in a header; bytes, where there is no such dtype here."""
    return _DTYPES.get(code, Dtype("uint8", 1))


def number(data: bytes, dtype: Dtype) -> float:
    """The value of one element, little-endian."""
    if dtype.name == "bfloat16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if dtype.name in _FORMATS:
        return float(struct.unpack(_FORMATS[dtype.name], data)[0])
    import torch

    return float(torch.frombuffer(bytearray(data), dtype=dtype.torch)[0])
