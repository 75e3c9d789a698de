"""Checkpoints whose files disagree: what transformers loads is edited and proved, or they are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sea_bake import Edit, bake, fit, verify
from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.loading import load_model

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
WRITER = "model.layers.1.self_attn.o_proj.weight"


def put(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def whole() -> dict[str, Tensor]:
    return load_file(tiny.single() / SINGLE)


def fitted(base: Path, **settings: Any) -> Edit:
    settings = {"layers": "1,3", "K": 4, "budget": None, **settings}
    return fit(base, tiny.demonstrations(), site="attn", neutral="prompt", **settings)


def loaded(folder: Path) -> dict[str, Tensor]:
    """What transformers itself makes of a folder."""
    from transformers import AutoModelForCausalLM

    found: dict[str, Tensor] = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).state_dict()
    return found


# -------------------------------------------------------------------------------------------- a tensor in two shards


@pytest.mark.parametrize("indexed", ["first", "last"])
def test_a_tensor_in_two_shards_is_refused(tmp_path: Path, indexed: str):
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    listed = read_json(base / INDEX)["weight_map"]
    last = max(listed.values())
    assert listed[WRITER] != last
    put(base / last, load_file(base / last) | {WRITER: load_file(base / listed[WRITER])[WRITER]})
    if indexed == "last":
        tiny.patch_json(base / INDEX, weight_map=listed | {WRITER: last})
    edit = Edit.load(tiny.edit_file(site="attn"))
    with tiny.nothing_happens(tmp_path, base):
        for work in (lambda: bake(base, edit, tmp_path / "no"), lambda: fitted(base)):
            with pytest.raises(CheckpointError, match=f"holds {WRITER} twice") as error:
                work()
            assert listed[WRITER] in str(error.value)
            assert f"loads the one in {last}" in str(error.value)


def test_a_tensor_that_the_index_forgets_is_edited_all_the_same(tmp_path: Path):
    """transformers loads whole shards, and so a writer that no line of the index names."""
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    listed = read_json(base / INDEX)["weight_map"]
    tiny.patch_json(base / INDEX, weight_map={name: shard for name, shard in listed.items() if name != WRITER})
    before, edit = loaded(base), Edit.load(tiny.edit_file(site="attn")).with_settings(merge="sum")
    assert torch.equal(before[WRITER], whole()[WRITER])
    for how in ("fold", "insert"):
        folder = bake(base, edit, tmp_path / how, how=how).output
        after = loaded(folder)
        assert torch.equal(after[WRITER], before[WRITER]) == (how == "insert")
    assert WRITER in read_json(tmp_path / "insert" / INDEX)["weight_map"]


# ----------------------------------------------------------------------------------------- a single file and an index


@pytest.mark.parametrize("shards", ["there", "gone"])
@pytest.mark.parametrize("how", ["fold", "insert"])
def test_a_single_file_is_taken_before_an_index(tmp_path: Path, how: str, shards: str):
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    put(base / SINGLE, {name: 1.25 * t if "o_proj" in name else t for name, t in whole().items()})
    if shards == "gone":
        for shard in base.glob("model-*.safetensors"):
            shard.unlink()
    edit = fitted(base)
    folder = bake(base, edit, tmp_path / how, how=how).output
    before, after = loaded(base), loaded(folder)
    assert torch.equal(before[WRITER], 1.25 * whole()[WRITER])
    assert Checkpoint.open(base).weight_map == dict.fromkeys(before, SINGLE)
    assert torch.equal(after[WRITER], before[WRITER]) == (how == "insert")
    kept = [name for name in before if "o_proj" not in name]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert not list(folder.glob("model-0*.safetensors"))


def test_weights_of_another_name_are_refused(tmp_path: Path):
    """transformers loads the file that ``transformers_weights`` names, which is none of those that are read here."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    (base / "other.safetensors").write_bytes((base / SINGLE).read_bytes())
    tiny.patch_json(base / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(CheckpointError, match=r"transformers_weights.*remove that line"):
        bake(base, Edit.load(tiny.edit_file()), tmp_path / "no")
    tiny.patch_json(base / "config.json", transformers_weights=SINGLE)
    assert Checkpoint.open(base).weight_map


# ------------------------------------------------------------------------------------------------------------- dtypes


def everything(_: str) -> bool:
    return True


# (dtype in config.json, dtype of most tensors, dtype of the others, which those are) -> dtype that it is loaded in
DTYPES: dict[str, tuple[str, torch.dtype, torch.dtype, Callable[[str], bool], torch.dtype]] = {
    "float32 called bfloat16": ("bfloat16", torch.float32, torch.float32, everything, torch.float32),
    "bfloat16 called float32": ("float32", torch.bfloat16, torch.bfloat16, everything, torch.bfloat16),
    "float32 called float16": ("float16", torch.float32, torch.float32, everything, torch.float32),
    "bfloat16 and its norms in float32": (
        "bfloat16", torch.bfloat16, torch.float32, lambda name: "norm" in name, torch.bfloat16,
    ),
    "bfloat16 but the writers": (
        "bfloat16", torch.bfloat16, torch.float32, lambda name: "o_proj" in name, torch.bfloat16,
    ),
    "float32 but the writers": (
        "float32", torch.float32, torch.bfloat16, lambda name: "o_proj" in name, torch.float32,
    ),
    "float64 throughout": ("float64", torch.float64, torch.float64, everything, torch.float64),
    "float64 called bfloat16": ("bfloat16", torch.float64, torch.float64, everything, torch.float64),
}  # fmt: skip


def odd(folder: Path, kind: str) -> Path:
    named, most, other, which, _ = DTYPES[kind]
    base = tiny.changeable(tiny.single(), folder)
    put(base / SINGLE, {name: t.to(other if which(name) else most) for name, t in whole().items()})
    tiny.patch_json(base / "config.json", dtype=named)
    return base


@pytest.mark.parametrize("kind", DTYPES)
def test_a_model_is_loaded_in_the_dtype_of_its_tensors(tmp_path: Path, kind: str):
    base = odd(tmp_path / "base", kind)
    assert load_model(base, device="cpu").dtype == DTYPES[kind][4]
    assert load_model(base, device="cpu", dtype="float32").dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fold", "insert"])
@pytest.mark.parametrize("kind", DTYPES)
def test_a_right_bake_is_verified_whatever_the_configuration_says(tmp_path: Path, kind: str, how: str):
    base = odd(tmp_path / "base", kind)
    folder = bake(base, fitted(base), tmp_path / how, how=how).output
    report = verify(folder, base=base, max_new_tokens=4)
    assert report.passed, report.failures
    if how == "fold":
        writers = load_file(folder / SINGLE)
        put(folder / SINGLE, writers | {WRITER: whole()[WRITER].to(writers[WRITER].dtype)})
        assert not verify(folder, base=base, max_new_tokens=4).passed  # control: one layer is the base's


# ------------------------------------------------------------------------------------- tensors that nobody has use for

UNUSED: dict[str, dict[str, Tensor]] = {
    "a value head": {"value_head.weight": torch.ones(1, tiny.HIDDEN)},
    "a layer for several tokens at once": {
        f"model.layers.{tiny.LAYERS}.{part}": torch.ones(tiny.HIDDEN, tiny.HIDDEN)
        for part in ("self_attn.o_proj.weight", "eh_proj.weight")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fold", "insert"])
@pytest.mark.parametrize("kind", UNUSED)
def test_what_the_base_does_not_use_is_said_and_not_held_against_the_artefact(tmp_path: Path, kind: str, how: str):
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    put(base / SINGLE, whole() | UNUSED[kind])
    folder = bake(base, fitted(base), tmp_path / how, how=how).output
    ran = tiny.run("verify", folder, "--base", base, "--max-new-tokens", "4")
    assert ran.code == 0, ran
    said = " ".join(ran.out.split())
    assert f"tensors that the base does not use either: {', '.join(sorted(UNUSED[kind]))}" in said
    if how == "fold":  # control: one that the artefact alone has no use for
        put(folder / SINGLE, load_file(folder / SINGLE) | {"own_head.weight": torch.ones(2, 2)})
        report = verify(folder, base=base, max_new_tokens=4)
        assert any("unexpected keys on loading, such as own_head.weight" in why for why in report.failures)
