"""A shard is copied but for what is written anyway: by the kernel where it can, by hand elsewhere, whole always."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from sea_bake.errors import CheckpointError
from sea_bake.model.checkpoint import ranges
from sea_bake.model.checkpoint.ranges import copy_but

DATA = random.Random(0).randbytes(100_000)


def expected(spans: list[tuple[int, int]]) -> bytes:
    found = bytearray(DATA)
    for start, end in spans:
        found[start:end] = bytes(end - start)
    return bytes(found)


SPANS: list[list[tuple[int, int]]] = [
    [], [(0, 100_000)], [(0, 5)], [(99_990, 100_000)], [(10, 20), (20, 30)], [(70_000, 80_000), (8, 4096)],
    [(4096, 8192), (5000, 6000)],
]  # fmt: skip


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("kernel", ["copies", "does not know the call", "copies a little", "is another file system"])
def test_all_else_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spans: Any, kernel: str) -> None:
    (tmp_path / "source").write_bytes(DATA)
    real = getattr(os, "copy_file_range", None)

    def refuses(*_: Any) -> int:
        raise OSError(errno.EXDEV, "another file system")

    if kernel == "does not know the call":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif kernel == "copies a little":
        monkeypatch.setattr(os, "copy_file_range", lambda a, b, n, i, j: real(a, b, min(n, 777), i, j))
    elif kernel == "is another file system":
        monkeypatch.setattr(os, "copy_file_range", refuses)
    monkeypatch.setattr(ranges, "_STEP", 30_000)
    copy_but(tmp_path / "source", tmp_path / "target", spans)
    assert (tmp_path / "target").read_bytes() == expected(spans)
    assert (tmp_path / "source").read_bytes() == DATA


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(DATA)
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        copy_but(tmp_path / "source", tmp_path / "there", [])
    assert (tmp_path / "there").read_bytes() == b"mine"

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="no space"):
        copy_but(tmp_path / "source", tmp_path / "full", [])
    monkeypatch.delattr(os, "copy_file_range")
    original = os.pread

    def shortens(handle: int, count: int, where: int) -> bytes:
        os.truncate(tmp_path / "source", 10)
        return original(handle, count, where)

    monkeypatch.setattr(os, "pread", shortens)
    with pytest.raises(CheckpointError, match="became shorter"):
        copy_but(tmp_path / "source", tmp_path / "short", [])


def test_no_byte_is_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(DATA)
    counted: list[int] = []
    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda *a: (counted.append(n := real(*a)), n)[1])
    copy_but(tmp_path / "source", tmp_path / "target", [(1_000, 91_000)])
    assert sum(counted) == 10_000
