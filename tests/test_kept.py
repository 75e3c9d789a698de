"""The base's answers are kept between verifications: taken where all that decides them is the same, and never else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from sea_bake import Edit, bake, verify
from sea_bake.model.source import ModelSource
from sea_bake.verification import kept as module
from sea_bake.verification.kept import Kept, kept

SHORT: dict[str, Any] = {"prompts": ["One two", "Three"], "max_new_tokens": 4, "positions": 4}
REQUEST = {
    "teacher": [[1, 2]],
    "prompts": [[1]],
    "max_new_tokens": 4,
    "positions": 4,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEA_BAKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "answers"


def baked(tmp_path: Path) -> Path:
    bake(tiny.single(), Edit.load(tiny.edit_file()), tmp_path / "out", how="insert")
    return tmp_path / "out"


@pytest.mark.slow
def test_a_second_verification_takes_them(tmp_path: Path, cache: Path) -> None:
    out = baked(tmp_path)
    first, second, fresh = (
        verify(out, base=tiny.single(), write=False, fresh=again, **SHORT) for again in (False, False, True)
    )
    assert [v.facts.pop("base_kept") for v in (first, second, fresh)] == [False, True, False]
    assert first.passed
    assert first.to_json() == second.to_json() == fresh.to_json()
    assert len(list(cache.iterdir())) == 1
    longer = verify(out, base=tiny.single(), write=False, **SHORT | {"max_new_tokens": 5})
    assert not longer.facts["base_kept"]
    other = verify(out, base=tiny.single(), write=False, dtype="bfloat16", **SHORT)
    assert not other.facts["base_kept"]


@pytest.mark.slow
def test_what_has_to_fail_fails_with_them(tmp_path: Path, cache: Path) -> None:
    """An artefact that is the base, and one whose edit is damaged, against answers that were kept."""
    out = baked(tmp_path)
    assert verify(out, base=tiny.single(), write=False, **SHORT).passed
    shard = next(p for p in out.glob("*.safetensors") if "sea" in p.name)
    tensors = load_file(shard)
    for scale, words in ((0.0, "differ from the hook-edited base"), (1.1, "differ from the hook-edited base")):
        shard.unlink()
        save_file({n: t * scale if n.endswith(".B") else t for n, t in tensors.items()}, shard, {"format": "pt"})
        found = verify(out, base=tiny.single(), write=False, **SHORT)
        assert found.facts["base_kept"]
        assert not found.passed
        assert any(words in failure for failure in found.failures)
        assert scale or any("like the unedited base" in failure for failure in found.failures)


@pytest.mark.slow
def test_nothing_is_lost_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder", "utf-8")
    monkeypatch.setenv("SEA_BAKE_CACHE", str(tmp_path / "file"))
    out = baked(tmp_path)
    assert verify(out, base=tiny.single(), write=False, **SHORT).passed
    assert (tmp_path / "file").read_text("utf-8") == "no folder"


# --------------------------------------------------------------------------------------------------------- the key


def key(source: Path, **changes: Any) -> str:
    found = kept(ModelSource.parse(source), {**REQUEST, **changes})
    assert found is not None
    return found.key


def test_all_that_decides_is_in_the_key(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    keys = [key(base)]
    assert key(base) == keys[0]
    assert key(tiny.changeable(base, tmp_path / "copy")) == keys[0]  # wherever it lies
    keys += [key(base, **{name: value}) for name, value in (
        ("teacher", [[1, 3]]), ("prompts", [[2]]), ("max_new_tokens", 5), ("positions", 5), ("dtype", "bfloat16"),
        ("device", "cuda"), ("bare", True), ("pad", 1), ("decoder_start", 1), ("auto_class", "AutoModelForCausalLM"),
    )]  # fmt: skip
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] += 2.0**-20
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    keys.append(key(base))
    tiny.patch_json(base / "config.json", rms_norm_eps=1e-5)
    keys.append(key(base))
    (base / "generation_config.json").write_text('{"eos_token_id": 7}', "utf-8")
    keys.append(key(base))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    keys.append(key(base))
    monkeypatch.setattr(module, "_version", lambda name: "9.9")
    keys.append(key(base))
    monkeypatch.setattr(module, "_code", lambda: "other code")
    keys.append(key(base))
    assert len(set(keys)) == len(keys)


def test_every_line_of_our_code_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "sea_bake" / "verification" / "kept.py"
    shutil.copytree(Path(module.__file__).parent.parent, tmp_path / "sea_bake")
    monkeypatch.setattr(module, "__file__", str(copy))
    module._code.cache_clear()
    try:
        before = module._code()
        (tmp_path / "sea_bake" / "edit.py").open("a").write("\n")
        module._code.cache_clear()
        assert module._code() != before
    finally:
        module._code.cache_clear()


def test_an_adapters_base_is_in_it(tmp_path: Path, cache: Path) -> None:
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}', "utf-8")
    before = key(adapter)
    tiny.patch_json(base / "config.json", rms_norm_eps=1e-5)
    assert key(adapter) != before


# -------------------------------------------------------------------------------------------------------- the entry


def entry(cache: Path, tmp_path: Path) -> tuple[Kept, Path]:
    save_file({"logits.0": torch.ones(2)}, tmp_path / "answers")
    place = Kept(cache, "k" * 64)
    place.keep(tmp_path / "answers")
    return place, next(cache.iterdir())


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def linked(path: Path) -> None:
    path.rename(path.with_suffix(".away"))
    path.symlink_to(path.with_suffix(".away"))


BENT: dict[str, Callable[[Path], Any]] = {
    "a bit is another": flipped,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "another's content under this name": lambda path: path.write_bytes(b"x" * 100),
    "others may write to it": lambda path: path.chmod(0o666),
    "others may write beside it": lambda path: path.parent.chmod(0o777),
    "a link": linked,
}


def test_it_comes_back_as_it_was(cache: Path, tmp_path: Path) -> None:
    place, path = entry(cache, tmp_path)
    assert place.give(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "answers").read_bytes()
    assert (cache.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    assert not Kept(cache, "o" * 64).give(tmp_path / "other")


@pytest.mark.parametrize("how", BENT)
def test_an_entry_that_cannot_be_trusted_is_not_taken(cache: Path, tmp_path: Path, how: str) -> None:
    place, path = entry(cache, tmp_path)
    BENT[how](path)
    assert not place.give(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not path.exists()  # and made anew
    cache.chmod(0o700)
    place.keep(tmp_path / "answers")
    assert place.give(tmp_path / "again")


def test_another_users_entry_is_not_taken(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _ = entry(cache, tmp_path)
    monkeypatch.setattr(module.os, "getuid", lambda: 12345)
    assert not place.give(tmp_path / "again")


def test_room_is_made_for_new_ones(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    place, path = entry(cache, tmp_path)
    size = path.stat().st_size
    monkeypatch.setattr(module, "_MOST", 2 * size + 1)
    os.utime(path, (1, 1))
    second = Kept(cache, "s" * 64)
    second.keep(tmp_path / "answers")
    os.utime(next(cache.glob("s*")), (2, 2))
    assert place.give(tmp_path / "again")  # used: it is younger now
    Kept(cache, "t" * 64).keep(tmp_path / "answers")
    assert {p.name[0] for p in cache.iterdir()} == {"k", "t"}
    monkeypatch.setattr(module, "_MOST", size - 1)
    Kept(cache, "u" * 64).keep(tmp_path / "answers")
    assert {p.name[0] for p in cache.iterdir()} == {"k", "t"}


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEA_BAKE_CACHE", "")
    assert kept(ModelSource.parse(tiny.single()), REQUEST) is None
    monkeypatch.delenv("SEA_BAKE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = kept(ModelSource.parse(tiny.single()), REQUEST)
    assert found is not None
    assert found.folder == tmp_path / "xdg" / "sea_bake" / "answers"


def test_an_entry_that_is_no_file_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name, a file that nobody may read; and one that goes while it is looked at."""
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    (tmp_path / "answers").write_bytes(b"said")
    place = Kept(cache, "v" * 64)
    place.keep(tmp_path / "answers")
    (entry,) = cache.iterdir()
    assert place.give(tmp_path / "given")  # the control
    right = entry.read_bytes()
    entry.unlink()
    entry.mkdir(mode=0o700)
    assert not place.give(tmp_path / "given")
    assert not (tmp_path / "given").exists()
    entry.rmdir()
    entry.write_bytes(right)
    entry.chmod(0o600)
    lstat = Path.lstat

    def gone(path: Path) -> object:
        if path == entry:
            entry.unlink(missing_ok=True)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", gone)
    assert not place.give(tmp_path / "given")
