"""Checkpoints in and out: every base tensor bit for bit, every other file byte for byte, nothing of this machine."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import real
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sea_bake import Edit, Projector, Site, bake
from sea_bake.artefact.record import RECORD
from sea_bake.baking import BakeRecord
from sea_bake.errors import CheckpointError
from sea_bake.exporting.gguf.header import GgufFile
from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.fingerprint import BaseModel

INDEX = "model.safetensors.index.json"
CARRIED = {
    "README.md": b"# A model card\n",
    "LICENSE": b"Apache-2.0\r\n",  # line ends are nobody's business
    "NOTICE.txt": b"",
    "merges.txt": b"#version: 0.2\na b\n",
    "chat_template.jinja": b"{{ messages }}",
    "generation_config.json": b'{"temperature":0.60, "top_p": 0.9}',  # 0.60 would not survive a JSON reader
    "picture.png": bytes(range(256)),
    "sub/folder/notes.txt": "Ångström".encode("utf-16"),
    ".gitattributes": b"*.safetensors filter=lfs\n",
}
LEFT_OUT = {
    "pytorch_model.bin": b"x",
    "pytorch_model.bin.index.json": b"{}",
    "model.onnx": b"x",
    "onnx/model.onnx_data": b"x",
    "model-q4.gguf": b"x",
    "other.safetensors": b"x",
    "tf_model.h5": b"x",
    "modeling_own.py": b"raise SystemExit",
    "kernel.so": b"x",
}

EDIT_COPY = "sea/edit-0.safetensors"


@functools.cache
def furnished(kind: str) -> Path:
    """A checkpoint with everything that may lie beside the weights."""
    base = tiny.changeable(tiny.single() if kind == "single" else tiny.sharded(), tiny.root() / f"furnished-{kind}")
    for name, content in {**CARRIED, **LEFT_OUT}.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content)
    (base / ".git").mkdir()
    (base / ".git" / "config").write_text("not for others")
    return base


def baked(kind: str, copy: bool = False) -> tuple[Path, BakeRecord]:
    return _baked(kind, copy)


@functools.cache
def _baked(kind: str, copy: bool) -> tuple[Path, BakeRecord]:
    output = tiny.root() / f"baked-{kind}-{copy}"
    before = tiny.snapshot(furnished(kind))
    report = bake(furnished(kind), tiny.edit_file(), output, copy=copy)
    assert tiny.snapshot(furnished(kind)) == before
    return output, report


def json_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


KINDS = pytest.mark.parametrize("kind", ["single", "sharded"])
COPIES = pytest.mark.parametrize("copy", [False, True])


@KINDS
@COPIES
def test_the_weights_are_the_bases_own(kind: str, copy: bool) -> None:
    """Shards whole (SHA-256), linked or copied; of a single file the name alone is another."""
    base, (output, report) = furnished(kind), baked(kind, copy)
    names = {"model.safetensors": "model-base.safetensors"} if kind == "single" else {}
    shards = sorted(p.name for p in base.glob("model*.safetensors"))
    assert len(shards) == (1 if kind == "single" else 6)
    for shard in shards:
        ours, theirs = output / names.get(shard, shard), base / shard
        assert tiny.sha256(ours) == tiny.sha256(theirs)
        assert (ours.stat().st_ino == theirs.stat().st_ino) == (not copy)
    size = sum((base / shard).stat().st_size for shard in shards)
    total = sum(p.stat().st_size for p in output.rglob("*") if p.is_file())
    assert report.bytes_linked == (0 if copy else size)
    assert report.bytes_written == total - report.bytes_linked
    assert {p.name for p in output.glob("*.safetensors")} == {
        *(names.get(shard, shard) for shard in shards),
        "model-sea.safetensors",
    }


@KINDS
def test_the_index_names_every_tensor_once(kind: str) -> None:
    base, (output, _) = furnished(kind), baked(kind)
    index = json_of(output / INDEX)
    held: dict[str, str] = {}
    for shard in output.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            assert not held.keys() & set(file.keys())
            held |= dict.fromkeys(file.keys(), shard.name)
    assert index["weight_map"] == held
    edit = Edit.load(tiny.edit_file())
    ours = {f"model.layers.{layer}.mlp.sea.0.{part}" for layer in edit.layers for part in "AB"}
    assert set(held) == set(Checkpoint.open(base).weight_map) | ours
    sea = load_file(output / "model-sea.safetensors")
    assert set(sea) == ours
    for layer in edit.layers:
        for part, tensor in edit.layer_tensors(layer).items():
            assert torch.equal(sea[f"model.layers.{layer}.mlp.sea.0.{part}"], tensor)
    before = (json_of(base / INDEX) if kind == "sharded" else {"metadata": {}})["metadata"]
    size = sum(t.numel() * 4 for t in sea.values())
    if kind == "sharded":
        assert index["metadata"]["total_size"] == before["total_size"] + size
        assert index["metadata"]["total_parameters"] == before["total_parameters"] + size // 4
    else:
        assert index["metadata"]["total_size"] == (base / "model.safetensors").stat().st_size + size


@KINDS
def test_transformers_loads_it(kind: str) -> None:
    """No key missing, none unexpected, every base tensor as it was, and the answers of the hook-edited base."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, _ = baked(kind)
    base = AutoModelForCausalLM.from_pretrained(tiny.single(), dtype=torch.float32).eval()
    model, found = AutoModelForCausalLM.from_pretrained(
        output, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = model.eval().state_dict()
    for name, tensor in base.state_dict().items():
        assert torch.equal(state.pop(name), tensor)
    assert all(".sea." in name for name in state)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        plain, edited = base(ids).logits, model(ids).logits
        with Edit.load(tiny.edit_file()).live(base):
            assert torch.equal(edited, base(ids).logits)  # the same operations in the same process
    assert float((edited - plain).abs().max()) > 1e-2
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert type(tokenizer) is type(AutoTokenizer.from_pretrained(tiny.single()))
    assert tokenizer("Is it so?")["input_ids"] == tiny.tokenizer()("Is it so?")["input_ids"]


@KINDS
@COPIES
def test_every_other_file_is_carried(kind: str, copy: bool) -> None:
    base, (output, report) = furnished(kind), baked(kind, copy)
    for name in (*CARRIED, "tokenizer.json", "tokenizer_config.json"):
        assert (output / name).read_bytes() == (base / name).read_bytes(), name
        assert (output / name).stat().st_ino != (base / name).stat().st_ino  # a copy: it may be edited
    assert report.left_out == sorted(LEFT_OUT)
    assert not any((output / name).exists() for name in LEFT_OUT)
    assert not (output / ".git").exists()
    expected = {*CARRIED, "tokenizer.json", "tokenizer_config.json", "config.json", INDEX, "modeling_sea.py"}
    expected |= {RECORD, EDIT_COPY, "sea/base/config.json"} | ({f"sea/base/{INDEX}"} if kind == "sharded" else set())
    found = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()}
    assert {name for name in found if not name.startswith("model-")} == expected


def test_the_configuration_keeps_every_key() -> None:
    """But those that name the model, and the guard in front of its number of heads."""
    base, output = furnished("single"), baked("single")[0]
    before, after = json_of(base / "config.json"), json_of(output / "config.json")
    changed = {key for key in before if after[key] != before[key]}
    assert changed == {"architectures", "model_type", "num_attention_heads"}
    assert set(after) - set(before) == {"auto_map", "sea"}
    assert (after["model_type"], after["architectures"]) == ("sea_llama", ["SEALlamaForCausalLM"])
    assert after["sea"]["guard"] == {"num_attention_heads": before["num_attention_heads"]}
    assert set(after["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert after["sea"]["edits"][0]["ranks"] == {str(k): list(v) for k, v in Edit.load(tiny.edit_file()).ranks.items()}


def test_keys_that_transformers_would_drop_are_kept(tmp_path: Path) -> None:
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    tiny.patch_json(base / "config.json", rope_theta=12345.0, n_ctx=77, _own={"deep": [1, None]})
    bake(base, tiny.edit_file(), tmp_path / "out")
    after = json_of(tmp_path / "out" / "config.json")
    assert (after["rope_theta"], after["n_ctx"], after["_own"]) == (12345.0, 77, {"deep": [1, None]})


@COPIES
def test_files_are_readable_to_others(tmp_path: Path, copy: bool) -> None:
    old = os.umask(0o022)
    try:
        base = tiny.changeable(tiny.sharded(), tmp_path / "base")
        bake(base, tiny.edit_file(), tmp_path / "out", copy=copy)
        edit = Edit.load(tiny.edit_file()).save(tmp_path / "edit")
    finally:
        os.umask(old)
    linked = {p.name for p in base.glob("*.safetensors")} if not copy else set()
    for path in [edit, *(tmp_path / "out").rglob("*")]:
        if path.name not in linked:  # a linked file is the base's own, and keeps its mode
            assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_links_are_resolved(tmp_path: Path) -> None:
    """The Hub's cache: every file of a snapshot is a link to a blob."""
    base, blobs = tmp_path / "snapshots" / "0123abc", tmp_path / "blobs"
    base.mkdir(parents=True)
    blobs.mkdir()
    for path in tiny.sharded().iterdir():
        blob = blobs / hashlib.sha256(path.name.encode()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (base / path.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    report = bake(base, tiny.edit_file(), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert report.bytes_linked == sum(p.stat().st_size for p in tiny.sharded().glob("*.safetensors"))
    for shard in tiny.sharded().glob("*.safetensors"):
        assert (tmp_path / "out" / shard.name).samefile(base / shard.name)


def test_another_file_system_gets_copies() -> None:
    """/dev/shm is memory: nothing there can be a link to a file on disk."""
    output = Path("/dev/shm") / f"sea-bake-tests-{os.getpid()}"
    assert output.parent.stat().st_dev != tiny.sharded().stat().st_dev
    try:
        report = bake(tiny.sharded(), tiny.edit_file(), output)
        assert report.bytes_linked == 0
        for shard in tiny.sharded().glob("*.safetensors"):
            assert tiny.sha256(output / shard.name) == tiny.sha256(shard)
    finally:
        for path in sorted(output.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        output.rmdir()


@KINDS
def test_the_artefact_says_nothing_of_this_machine(kind: str) -> None:
    base, (output, report) = furnished(kind), baked(kind)
    private = (str(tiny.root()).encode(), str(Path.home()).encode() + b"/", os.uname().nodename.encode())
    linked = {p.name for p in base.glob("*.safetensors")} | {"model-base.safetensors"}
    texts = [p for p in output.rglob("*") if p.is_file() and p.name not in linked]
    assert len(texts) > len(CARRIED)
    for path in texts:
        # Of safetensors files the header says all that is text; the whole is looked at all the same.
        found = [word for word in private if len(word) > 3 and word in path.read_bytes()]
        assert not found, (path, found)
    assert report.base == base.name
    assert json_of(output / RECORD)["base"] == base.name
    assert private[0] in str(base).encode()  # the control: this is what would have been found


def test_the_record_is_enough_to_do_it_again(tmp_path: Path) -> None:
    """The edit inside the artefact is the edit: baked again it gives the same SEA shard, byte for byte."""
    output, _ = baked("sharded")
    record = json_of(output / RECORD)
    assert (record["how"], record["sites"], record["layers"]) == ("insert", ["mlp"], [0, 1, 2, 3])
    assert (output / EDIT_COPY).read_bytes() == tiny.edit_file().read_bytes()
    bake(furnished("sharded"), output / EDIT_COPY, tmp_path / "again")
    for path in sorted(p.relative_to(output) for p in output.rglob("*") if p.is_file()):
        assert (tmp_path / "again" / path).read_bytes() == (output / path).read_bytes(), path


# -------------------------------------------------------------------------------------------------------------- reading


def test_a_checkpoint_is_read_by_name(tmp_path: Path) -> None:
    tensors = load_file(tiny.single() / "model.safetensors")
    for folder in (tiny.single(), tiny.sharded()):
        checkpoint = Checkpoint.open(folder)
        assert set(checkpoint.weight_map) == set(tensors)
        assert checkpoint.size() == sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        for name, tensor in tensors.items():
            lazy = checkpoint.tensor(name)
            assert lazy is not None
            assert (lazy.shape, lazy.dtype, lazy.dim()) == (tuple(tensor.shape), tensor.dtype, tensor.dim())
            corner = tuple(length - 1 for length in tensor.shape)
            assert lazy.element(corner) == float(tensor[corner])
        assert checkpoint.tensor("nothing") is None


@pytest.mark.slow
def test_reading_does_not_load(tmp_path: Path) -> None:
    """Peak memory of a bake stays far below the base's size, in a process that has already read one."""
    script = (
        "import sys, resource; from sea_bake import bake\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "bake(sys.argv[1], sys.argv[2], sys.argv[3]); before = peak()\n"
        "bake(sys.argv[4], sys.argv[5], sys.argv[6], copy=True); print(peak() - before)\n"
    )
    import subprocess
    import sys

    large, edit = tiny.large(), tiny.edit_file(tiny.large())
    args = (tiny.single(), tiny.edit_file(), tmp_path / "a", large, edit, tmp_path / "b")
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert ran.returncode == 0, ran.stderr
    # A page of a mapped file counts while it is looked at, and the allocator keeps a little: a sixth has to do.
    assert int(ran.stdout) < Checkpoint.open(large).size() / 6


def test_an_unlisted_tensor_is_not_believed(tmp_path: Path) -> None:
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    weight_map = json_of(base / INDEX)["weight_map"]
    tiny.patch_json(base / INDEX, weight_map={**weight_map, "model.layers.0.own": "model-00001-of-00006.safetensors"})
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.layers\.0\.own"):
        Checkpoint.open(base)


# ----------------------------------------------------------------------------------------------------------------- GGUF


@pytest.mark.slow
@pytest.mark.smollm2
def test_a_gguf_bakes_directly(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct as its package ships it, its first layers: dequantised on the way, and nothing of that is
    left beside it.

    The reference for the values is the package ``gguf``'s own dequantisation.
    """
    import gguf

    source = real.short_gguf()
    before, (dim, layer) = tiny.sha256(source), (576, 6)
    depth = GgufFile.open(source).keys["llama.block_count"]
    torch.manual_seed(0)
    rows = torch.linalg.qr(torch.randn(dim, 3, dtype=torch.float64))[0].T.float().contiguous()
    spectrum = torch.ones(2, dtype=torch.float64)
    config = {"model_type": "llama", "hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": 9}
    config |= {"num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152}
    weight = next(t for t in gguf.GGUFReader(source).tensors if t.name == f"blk.{layer}.ffn_down.weight")
    expected = torch.from_numpy(gguf.dequantize(weight.data, weight.tensor_type))
    step = [(i * (dim - 1) // 15, i * (1536 - 1) // 15) for i in range(16)]
    samples = {f"{layer}.mlp.down_proj": [float(expected[i, j]) for i, j in step]}
    edit = Edit(
        {layer: Projector(rows[:1], rows[1:], spectrum, spectrum)},
        Site.MLP,
        BaseModel("SmolLM2", None, config, "float32", samples),
        recipe={"made": "by hand"},
    )
    ran = tiny.run("bake", source, edit.save(tmp_path / "edit"), "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran
    assert tiny.listing(tmp_path) == {"edit", "out"}
    assert tiny.sha256(source) == before
    with safe_open(tmp_path / "out" / "model-base.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor(f"model.layers.{layer}.mlp.down_proj.weight"), expected)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.config["rope_theta"] == 100_000  # spelt for older readers, too
    assert checkpoint.config["sea"]["edits"][0]["ranks"] == {str(layer): [1, 2]}
    assert checkpoint.tensor(f"model.layers.{layer}.mlp.sea.0.A").shape == (3, dim)
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
    # And is held against the GGUF itself, which transformers opens as a model that cannot be widened.
    proof = tiny.run("verify", tmp_path / "out", "--base", source, "--max-new-tokens", 4, "-p", "Bats are", "--json")
    assert proof.code == 0, proof
    assert json.loads(proof.out)["passed"]
