"""A file is hashed once for as long as it stays what it is: over a whole recipe each byte of an artefact once."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import benchmarks
import pytest
import tiny

from sea_bake.artefact.seal import seal
from sea_bake.io import files
from sea_bake.publishing import publish
from sea_bake.recipes.running import run


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """(device, inode) -> bytes that were read of it to be hashed, from now on."""
    found: Counter[tuple[int, int]] = Counter()
    read = files._sha256
    monkeypatch.setattr(files, "_digests", {})

    def counted(path: str | Path) -> str:
        stat = os.stat(path)
        found[stat.st_dev, stat.st_ino] += stat.st_size
        return read(path)

    monkeypatch.setattr(files, "_sha256", counted)
    return found


@pytest.mark.slow
def test_a_recipe_with_every_step_reads_each_byte_once(tmp_path: Path, hashed: Counter[tuple[int, int]]) -> None:
    """Fit, bake, verify, evaluate, report, export and publish: the weights of artefact and base are read once."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    recipe: dict[str, Any] = {
        "model": str(base),
        "output": "out",
        "fit": {"demonstrations": str(tiny.demonstrations_file()), "layers": "all", "K": 0.9, "neutral": "prompt"},
        "bake": {"how": "fold", "copy": True},
        "verify": {"max_new_tokens": 4},
        "eval": {"tasks": ["bbq"], "data": str(benchmarks.write(tmp_path / "data")), "limit": 2, "cost": False},
        "report": True,
        "export": {"onnx": True},
    }
    assert run(recipe, folder=tmp_path).passed
    artefact = tmp_path / "out"
    publish(artefact, "ada/x", dry_run=True, license="mit", base_model="ada/base")
    sealed = [folder / name for folder in (artefact, base) for name in seal(folder)]
    assert sum(path.suffix == ".safetensors" for path in sealed) >= 3
    for path in sealed:
        assert hashed[path.stat().st_dev, path.stat().st_ino] == path.stat().st_size, f"{path} was not read just once"
    for path in artefact.rglob("*"):  # papers too, at the most
        assert path.is_dir() or hashed[path.stat().st_dev, path.stat().st_ino] <= path.stat().st_size, path


def test_a_changed_file_is_read_again(tmp_path: Path, hashed: Counter[tuple[int, int]]) -> None:
    """The control: the same size and the same times of change hide nothing."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"a" * 1000)
    os.utime(path, ns=(10**18, 10**18))  # long ago: only the inode's own time tells
    first = seal(tmp_path)
    assert seal(tmp_path) == first
    path.write_bytes(b"b" + b"a" * 999)
    os.utime(path, ns=(10**18, 10**18))
    assert seal(tmp_path) != first
    assert sum(hashed.values()) >= 2000


def test_a_file_that_settles_is_read_once(tmp_path: Path, hashed: Counter[tuple[int, int]]) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"a" * 1000)
    time.sleep(0.1)  # the file system's clock has ticked: what changes now changes its times
    assert files.file_digest(path) == files.file_digest(path)
    assert sum(hashed.values()) == 1000
