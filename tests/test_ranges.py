"""A shard is copied but for what is written anyway: by the kernel where it can, by hand elsewhere, whole always."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sea_bake.errors import CheckpointError
from sea_bake.io.flushing import flushing
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


# ---------------------------------------------------------------------------------------------- flushed behind the work


def test_what_is_flushed_behind_is_on_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another thread, in the order given; the work goes on meanwhile."""
    going, told = threading.Event(), []

    def sync(path: Path) -> None:
        assert going.wait(10)
        told.append((path.name, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr("sea_bake.io.flushing.sync", sync)
    with flushing() as flush:
        flush(tmp_path / "one")
        flush(tmp_path / "two")
        assert told == []
        going.set()
    assert told == [("one", False), ("two", False)]


def test_what_a_disk_says_of_a_file_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end at the latest; and what has not begun then does not begin where the work itself failed."""
    told: list[str] = []

    def sync(path: Path) -> None:
        told.append(path.name)
        if path.name == "bad":
            raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr("sea_bake.io.flushing.sync", sync)
    with pytest.raises(OSError, match="the disk"), flushing() as flush:
        flush(tmp_path / "bad")

    def go_on() -> None:
        with flushing() as flush:
            flush(tmp_path / "bad")
            while len(told) < 2:
                time.sleep(0.01)
            time.sleep(0.1)
            flush(tmp_path / "good")
            raise AssertionError("the next one was taken")

    with pytest.raises(OSError, match="the disk"):
        go_on()
    assert told == ["bad", "bad"]
    held = threading.Event()
    monkeypatch.setattr("sea_bake.io.flushing.sync", lambda path: (told.append(path.name), held.wait(10)))

    def fail() -> None:
        with flushing() as flush:
            flush(tmp_path / "begun")
            flush(tmp_path / "waiting")
            threading.Timer(0.2, held.set).start()
            raise ValueError("the work")

    with pytest.raises(ValueError, match="the work"):
        fail()
    assert told == ["bad", "bad", "begun"]
