"""Where a GGUF keeps what, read without trust and without the package ``gguf``: its keys, and where each tensor begins;
and a digest of parts of it, by which a file of gigabytes is known again within a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError

_VERSIONS = (2, 3)
# GGUFValueType -> how struct reads it; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_NAME = 1 << 12
_MAX_DIMS = 4
_PIECE = 1 << 14  # bytes


@dataclass(frozen=True)
class Layout:
    """What a header says, and where that leads.

    Attributes:
        keys: with their values; None for an array.
        starts: where each tensor begins in the file, in ascending order.
        size: of the file.
    """

    keys: dict[str, Any]
    starts: list[int]
    size: int

    @property
    def context(self) -> int | None:
        """How many tokens the model reads; None where it does not say."""
        found = self.keys.get(f"{self.keys.get('general.architecture')}.context_length")
        return found if isinstance(found, int) and found > 0 else None


def layout_of(path: Path) -> Layout:
    """Of a model or an adapter, whole or the first of several parts.

    Raises:
        CheckpointError: no GGUF, truncated, damaged, big-endian, or of a version that is not known.
    """
    with seen(path) as view:
        scan = Scan(path, view)
        count, keys = scan.keys()
        alignment = scan.alignment(keys)
        begun = [scan.entry()[-1] for _ in range(count)]
        data = -(-scan.at // alignment) * alignment
        starts = sorted(data + start for start in begun)
        if starts and starts[-1] > len(view):
            raise scan.damaged("a tensor begins behind the end of the file")
        return Layout(keys, starts, len(view))


def parts_digest(path: Path) -> str:
    """SHA-256 of a GGUF's size, of its header, and of the first, the middle and the last 16 KiB of each tensor.

    What was fitted, edited or quantised otherwise differs all over a tensor, so it differs here; a single byte that was
    changed in the middle of a large one does not show (``sha256`` of the record is of all bytes).

    Raises:
        CheckpointError: see :func:`layout_of`.
    """
    layout = layout_of(path)
    found = hashlib.sha256(str(layout.size).encode())
    with open(path, "rb") as file:
        for block in _blocks(file, 0, layout.starts[0] if layout.starts else layout.size):
            found.update(block)
        for start, end in itertools.pairwise([*layout.starts, layout.size]):
            size = end - start
            middle = start + max(0, size - _PIECE) // 2
            for at in sorted({start, middle, max(start, end - _PIECE)}):
                file.seek(at)
                found.update(file.read(min(_PIECE, end - at)))
    return found.hexdigest()


def _blocks(file: Any, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    for at in range(start, end, 1 << 22):
        yield file.read(min(1 << 22, end - at))


@contextlib.contextmanager
def seen(path: Path) -> Iterator[mmap.mmap]:
    """A file that begins as a GGUF does. Raises CheckpointError for another."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} is no GGUF: it does not begin with the letters GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            yield view


class Scan:
    """One pass over a header; every read is checked against the end of the file."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.view, self.at = path, view, 4

    def keys(self) -> tuple[int, dict[str, Any]]:
        """The number of tensors, and all keys."""
        version, tensor_count, key_count = self._version(), self._number("Q"), self._number("Q")
        if version not in _VERSIONS:
            raise self.damaged(f"version {version} is not known (2 and 3 are)")
        keys: dict[str, Any] = {}
        for _ in range(key_count):
            name = self._string(_LONGEST_NAME)
            if name in keys:
                raise self.damaged(f"it has the key {name!r} twice")
            keys[name] = self._value(self._number("I"))
        return tensor_count, keys

    def alignment(self, keys: dict[str, Any]) -> int:
        """Of every tensor's offset."""
        found = keys.get("general.alignment", 32)
        if not isinstance(found, int) or found < 1 or found & (found - 1):
            raise self.damaged(f"general.alignment is {found!r}, not a power of two")
        return found

    def entry(self) -> tuple[str, tuple[int, ...], int, int, int]:
        """The next one of the table of tensors: name, shape, where its type stands, its type, and where it begins,
        counted from where the data do.
        """
        name, dims = self._string(_LONGEST_NAME), self._number("I")
        if not 1 <= dims <= _MAX_DIMS:
            raise self.damaged(f"{name!r} has {dims} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(dims)]))
        info = self.at
        return name, shape, info, self._number("I"), self._number("Q")

    def _version(self) -> int:
        version = self._number("I")
        if version and not version & 0xFFFF:
            raise CheckpointError(
                f"{self.path} is big-endian: turn a copy of it round first (gguf-convert-endian COPY little, a command "
                "of the package gguf)"
            )
        return version

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
            raise self.damaged(f"it holds a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _number(self, code: str) -> Any:
        start = self.at
        self._skip(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self.view, start)[0]

    def _string(self, longest: int | None = None) -> str:
        length = self._number("Q")
        if longest is not None and length > longest:
            raise self.damaged(f"it holds a name of {length} bytes")
        start = self.at
        self._skip(length)
        return self.view[start : self.at].decode("utf-8", "replace")

    def _skip(self, count: int) -> None:
        if count > len(self.view) - self.at:
            raise CheckpointError(f"{self.path} is truncated or damaged: its header leads behind the end of the file")
        self.at += count

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged or no GGUF that can be read here: {what}")
