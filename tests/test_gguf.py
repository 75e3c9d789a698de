"""GGUF: the base's own file with the edited tensors rewritten, the edit as a LoRA, and what llama.cpp answers then.

The numbers are held against dense float64 matrices of ``oracle.py``, not against the package's own thin product; the
files against themselves, byte for byte; the answers against transformers' from the Hugging Face artefact.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import gguf
import ggufs
import numpy as np
import oracle
import pytest
import real as smollm2_files
import tiny
import torch
from conftest import Workshop
from safetensors.torch import load_file

from sea_bake import Edit, Projector, Site, bake, export_gguf
from sea_bake.artefact import Artefact
from sea_bake.artefact.gguf_record import GgufRecord
from sea_bake.errors import CheckpointError, FamilyError, NotExactError, OutputError, SettingError, WrongModelError
from sea_bake.exporting.gguf.header import GgufFile
from sea_bake.exporting.gguf.names import ARCHITECTURES, tensor_name
from sea_bake.exporting.gguf.quantising import quantise_gguf
from sea_bake.exporting.gguf.rewriting import Rewrite, rewrite
from sea_bake.model.anatomy import family
from sea_bake.model.fingerprint import BaseModel

Type = gguf.GGMLQuantizationType
D, FF, EXPERTS, LAYERS = 256, 512, 3, 2  # whole blocks of 32 and of 256, so that every type fits
RANKS = (5, 3)

# ------------------------------------------------------------------------------------- tiny GGUFs, by gguf's own writer


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def weights(model_type: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of a file of the family: the writers of all sites, and some others around them. float32."""
    row, found = family(model_type), {"token_embd.weight": random(40, D, seed=seed)}
    for layer in range(LAYERS):
        mixed = row.fused is not None
        found[f"blk.{layer}.attn_norm.weight"] = random(D, seed=seed + 1)
        found[f"blk.{layer}.attn_output.weight"] = random(D, D, seed=seed + 10 + layer)
        found[f"blk.{layer}.ffn_up.weight"] = random(FF, D, seed=seed + 20 + layer)
        shape = (EXPERTS, D, FF) if mixed else (D, FF)
        found[f"blk.{layer}.ffn_down{'_exps' * mixed}.weight"] = random(*shape, seed=seed + 30 + layer)
        if row.shared:
            found[f"blk.{layer}.ffn_down_shexp.weight"] = random(D, 96, seed=seed + 40 + layer)
        if model_type in ("gpt2", "gpt_oss", "starcoder2"):
            found[f"blk.{layer}.attn_output.bias"] = random(D, seed=seed + 50 + layer)
            shape = (EXPERTS, D) if mixed else (D,)
            found[f"blk.{layer}.ffn_down{'_exps' * mixed}.bias"] = random(*shape, seed=seed + 60 + layer)
    found["output_norm.weight"] = random(D, seed=seed + 2)
    return found


def write(
    path: Path, model_type: str, kind: Type = Type.F32, *, seed: int = 0, alignment: int = 32, **keys: Any
) -> Path:
    """A GGUF of the family; its matrices are of one type where gguf can quantise to it, else zero bytes of it."""
    arch = ARCHITECTURES.get(model_type, model_type)
    writer = gguf.GGUFWriter(str(path), arch)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(D)
    writer.add_head_count(4)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "ü", ""])
    writer.add_array("tokenizer.ggml.scores", [0.0, float("nan"), 1.0])
    writer.add_array(f"{arch}.empty", [0, 1])
    for key, value in keys.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name, values in weights(model_type, seed).items():
        plain = values.ndim == 1 or name.endswith("bias")
        writer.add_tensor(name, *quantised(values, Type.F32 if plain else kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantised(values: np.ndarray, kind: Type) -> tuple[np.ndarray, Any, Any]:
    """What ``GGUFWriter.add_tensor`` takes: data, shape, type."""
    try:
        data = gguf.quants.quantize(values, kind)
    except NotImplementedError:  # a K-quant: its bytes are drawn, but for scales that would not be finite
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(0)
        data = rng.integers(0, 60, (*values.shape[:-1], values.shape[-1] // block * size), dtype=np.uint8)
    return data, None, kind if kind not in (Type.F32, Type.F16) else None


def edit(model_type: str, path: Path, site: Site = Site.MLP, layers: tuple[int, ...] = (1,), **settings: Any) -> Edit:
    """An edit with random projectors, whose fingerprint is that of the file at ``path``."""
    row, file = family(model_type), gguf.GGUFReader(path)
    by_name = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in file.tensors}
    samples = {}
    for layer in range(LAYERS):
        for where in (Site.ATTN, Site.MLP):
            mixed = where is Site.MLP and row.fused is not None
            weight = by_name[f"{tensor_name(where, layer, experts=mixed)}.weight"]
            matrix = weight[0] if weight.ndim == 3 else weight
            turned = row.fused in row.input_first if mixed else row.writer(where) in row.input_first
            matrix = matrix.T if turned else matrix  # as the checkpoint has it, which the fingerprint was taken from
            rows, columns = matrix.shape
            samples[f"{layer}.{row.writer(where)}"] = [
                float(matrix[i * (rows - 1) // 15, i * (columns - 1) // 15]) for i in range(16)
            ]
    config = {"model_type": model_type, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    base = BaseModel(
        "tiny",
        None,
        {**dict.fromkeys(("num_key_value_heads", "intermediate_size", "vocab_size")), **config},
        "float32",
        samples,
    )
    projectors = {}
    for layer in layers:
        rows = [
            torch.linalg.qr(torch.from_numpy(random(D, k, seed=99 + layer + k)).double())[0].T.float() for k in RANKS
        ]
        projectors[layer] = Projector(*rows, torch.ones(RANKS[0]), torch.ones(RANKS[1]))
    return Edit(projectors, site, base, **{"merge": "sum", **settings})


def dense(one: Edit, layer: int) -> np.ndarray:
    """M, d x d: what the oracle's edit makes of each unit vector."""
    up, un = (p.double().numpy() for p in (one.projectors[layer].positive, one.projectors[layer].negative))
    P_positive, P_negative = up.T @ up, np.eye(D) - un.T @ un
    return oracle.edit(np.eye(D), P_positive, P_negative, one.merge, "identity", one.parts, one.alpha).T


def read(path: Path) -> gguf.GGUFReader:
    """The file in gguf's own reader, which takes a second and a half for the vocabulary of SmolLM2."""
    return _reader(path, path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _reader(path: Path, *_: int) -> gguf.GGUFReader:
    return gguf.GGUFReader(path)


def values(path: Path) -> dict[str, np.ndarray]:
    """Tensor -> its numbers, by gguf's own reader."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64) for t in read(path).tensors}


def raw(path: Path) -> dict[str, bytes]:
    return {t.name: t.data.tobytes() for t in read(path).tensors}


def rounding(kind: Type, expected: np.ndarray) -> float:
    """The type's own error: the largest that gguf makes of the oracle's own numbers, as it rounds them."""
    if kind is Type.F32:
        return float(np.abs(expected).max()) * 2.0**-23
    back = gguf.dequantize(gguf.quants.quantize(expected.astype(np.float32), kind), kind)
    return float(np.abs(back - expected).max())


# ---------------------------------------------------------------------------------------------------- rewritten numbers


FAMILIES = ("llama", "gpt2", "qwen2", "gemma3_text", "mixtral", "qwen2_moe", "gpt_oss", "starcoder2")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("site", [Site.MLP, Site.ATTN])
def test_the_edited_tensors_are_the_oracles_and_no_other_byte_changes(
    model_type: str, site: Site, tmp_path: Path
) -> None:
    """Weights, biases, every expert and the shared one; of layer 1 alone."""
    base = write(tmp_path / "base.gguf", model_type, Type.F16)
    one = edit(model_type, base, site)
    report = export_gguf(one, tmp_path / "out.gguf", base=base, edited_type="f32")
    M, before, after = dense(one, 1), values(base), values(tmp_path / "out.gguf")
    written = ("attn_output",) if site is Site.ATTN else ("ffn_down",)
    expected = {name for name in before if name.startswith("blk.1.") and name.split(".")[2].startswith(written)}
    assert set(report.changed) == expected
    for name in expected:
        W = before[name]
        new = W @ M.T if name.endswith("bias") else M @ W
        # One rounding to float32, of sums that were made in float64.
        assert np.abs(after[name] - new).max() <= rounding(Type.F32, new)
        assert np.abs(after[name] - W).max() > 0.1  # the control: the edit is no rounding
    unedited = set(before) - expected
    assert {n: raw(base)[n] for n in unedited} == {n: raw(tmp_path / "out.gguf")[n] for n in unedited}
    assert header_keys(base) == header_keys(tmp_path / "out.gguf")


def header_keys(path: Path) -> bytes:
    """All bytes from the first key to the first tensor's name."""
    reader = read(path)
    return path.read_bytes()[8 : reader.tensors[0].field.offset]


KEPT = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q5_1, Type.Q5_0, Type.Q4_1, Type.Q4_0, Type.MXFP4]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEPT, ids=lambda k: k.name)
@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_every_type_that_gguf_can_quantise_is_kept(kind: Type, model_type: str, tmp_path: Path) -> None:
    base = write(tmp_path / "base.gguf", model_type, kind)
    one = edit(model_type, base)
    report = export_gguf(one, tmp_path / "out.gguf", base=base)
    (name,) = report.changed
    entry = report.changed[name]
    assert (entry["from"], entry["type"]) == (kind.name, kind.name)
    assert not any("cannot quantise" in note for note in report.notes)
    new = dense(one, 1) @ values(base)[name]
    found = values(tmp_path / "out.gguf")[name]
    # gguf rounds ours as it rounds the oracle's numbers; where these differ in the last bit of float32, by one step.
    assert np.abs(found - new).max() <= 2 * rounding(kind, new)
    relative = np.linalg.norm(found - new) / np.linalg.norm(new)
    assert relative <= 1.01 * entry["rounding"] + 1e-7
    assert entry["change"] == pytest.approx(
        np.linalg.norm(new - values(base)[name]) / np.linalg.norm(values(base)[name]), rel=1e-6
    )
    assert (tmp_path / "out.gguf").stat().st_size == base.stat().st_size


@pytest.mark.parametrize(
    ("kind", "wanted", "written"),
    [
        (Type.Q4_K, "keep", Type.Q8_0),
        (Type.IQ2_XXS, "keep", Type.Q8_0),
        (Type.Q4_K, "f16", Type.F16),
        (Type.Q4_0, "f32", Type.F32),
        (Type.F32, "q8_0", Type.Q8_0),
        (Type.F32, "f16", Type.F16),
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_other_types_are_said(kind: Type, wanted: str, written: Type, tmp_path: Path) -> None:
    """The file grows or shrinks; the tensors behind the edited one move, and stay the same."""
    base = write(tmp_path / "base.gguf", "llama", kind, alignment=64)
    one = edit("llama", base, layers=(0, 1))
    report = export_gguf(one, tmp_path / "out.gguf", base=base, edited_type=wanted)
    before, after = values(base), values(tmp_path / "out.gguf")
    for layer in (0, 1):
        name = f"blk.{layer}.ffn_down.weight"
        new = dense(one, layer) @ before[name]
        assert report.changed[name]["type"] == written.name
        assert np.abs(after[name] - new).max() <= 2 * rounding(written, new)
    assert {n: b for n, b in raw(base).items() if n not in report.changed} == {
        n: b for n, b in raw(tmp_path / "out.gguf").items() if n not in report.changed
    }
    starts = [t.data_offset for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors]
    assert all(start % 64 == 0 for start in starts)
    assert any(f"cannot quantise to {kind.name}" in note for note in report.notes) == (wanted == "keep")
    assert report.bytes_written == (tmp_path / "out.gguf").stat().st_size


@pytest.mark.parametrize("parts", ["both", "positive", "negative"])
@pytest.mark.parametrize("merge", ["sum", "average"])
@pytest.mark.parametrize("alpha", [1.0, -0.5])
def test_every_setting_that_folds(parts: str, merge: str, alpha: float, tmp_path: Path) -> None:
    base = write(tmp_path / "base.gguf", "llama")
    one = edit("llama", base, parts=parts, merge=merge, alpha=alpha)
    export_gguf(one, tmp_path / "out.gguf", base=base)
    new = dense(one, 1) @ values(base)["blk.1.ffn_down.weight"]
    assert np.abs(values(tmp_path / "out.gguf")["blk.1.ffn_down.weight"] - new).max() <= rounding(Type.F32, new)


def test_several_edits_act_in_their_order(tmp_path: Path) -> None:
    base = write(tmp_path / "base.gguf", "llama")
    first, second = edit("llama", base), edit("llama", base, parts="positive")
    other = edit("llama", base, layers=(0, 1))
    second = Edit({1: other.projectors[1]}, Site.MLP, second.base, merge="average", alpha=0.7)
    third = edit("llama", base, Site.ATTN)
    export_gguf([first, second, third], tmp_path / "out.gguf", base=base)
    before, after = values(base), values(tmp_path / "out.gguf")
    new = dense(second, 1) @ (dense(first, 1) @ before["blk.1.ffn_down.weight"])
    assert np.abs(after["blk.1.ffn_down.weight"] - new).max() <= 2 * rounding(Type.F32, new)
    new = dense(third, 1) @ before["blk.1.attn_output.weight"]
    assert np.abs(after["blk.1.attn_output.weight"] - new).max() <= rounding(Type.F32, new)


def test_an_l2_edit_folds_where_a_norm_stands_behind(tmp_path: Path) -> None:
    base = write(tmp_path / "base.gguf", "gemma3_text")
    one = edit("gemma3_text", base, merge="l2")
    export_gguf(one, tmp_path / "out.gguf", base=base)
    new = dense(edit("gemma3_text", base), 1) @ values(base)["blk.1.ffn_down.weight"]  # of the sum merge
    assert np.abs(values(tmp_path / "out.gguf")["blk.1.ffn_down.weight"] - new).max() <= rounding(Type.F32, new)
    plain = write(tmp_path / "llama.gguf", "llama")
    with pytest.raises(NotExactError, match="rescales each token"):  # the control
        export_gguf(edit("llama", plain, merge="l2"), tmp_path / "no.gguf", base=plain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Type.F32, Type.Q4_1, Type.Q4_K], ids=lambda k: k.name)
@pytest.mark.parametrize("alignment", [32, 256])
def test_without_an_edit_the_file_is_the_same_byte_for_byte(kind: Type, alignment: int, tmp_path: Path) -> None:
    base = write(tmp_path / "base.gguf", "mixtral", kind, alignment=alignment)
    with open(base, "ab") as file:
        file.write(b"what stands behind the last tensor stays too")
    report = export_gguf(edit("mixtral", base, alpha=0.0), tmp_path / "out.gguf", base=base)
    assert report.changed == {}
    assert (tmp_path / "out.gguf").read_bytes() == base.read_bytes()
    export_gguf(edit("mixtral", base, alpha=0.01), tmp_path / "edited.gguf", base=base, edited_type="f32")
    assert (tmp_path / "edited.gguf").read_bytes() != base.read_bytes()  # the control


@pytest.mark.slow
def test_memory_is_one_matrix_and_not_the_file(tmp_path: Path) -> None:
    """64 experts, 67 MB in float32: the peak of Python's and numpy's memory is some times one of them, 1 MB."""
    import tracemalloc

    count, shape = 64, (256, 1024)
    base = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(str(base), "llama")
    writer.add_tensor("blk.0.ffn_down_exps.weight", random(count, *shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile.open(base)
    tracemalloc.start()
    rewrite(file, {"blk.0.ffn_down_exps.weight": Rewrite(None, Type.Q8_0)}, tmp_path / "out.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 4 * shape[0] * shape[1] < file.size / 5


# ------------------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_the_adapter_is_the_fold(model_type: str, kind: str, tmp_path: Path) -> None:
    """W + (alpha / rank) B A is M W: one rank, alpha equal to it, and per expert in the layout of the weights."""
    base = write(tmp_path / "base.gguf", model_type, Type.Q8_0)
    small = edit(model_type, base, Site.ATTN, layers=(0,))
    thin = Projector(small.projectors[0].positive[:2], small.projectors[0].negative[:0], torch.ones(2), torch.ones(0))
    small = Edit({0: thin}, Site.ATTN, small.base, merge="sum")
    large = edit(model_type, base)
    report = export_gguf([small, large], tmp_path / "lora.gguf", base=base, lora=True, edited_type=kind)
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert keys == {
        "general.architecture": ARCHITECTURES[model_type],
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(sum(RANKS)),
    }
    assert report.rank == sum(RANKS)
    found, before = values(tmp_path / "lora.gguf"), values(base)
    assert {name.rpartition(".")[0] for name in found} == set(report.changed)
    assert len(report.changed) == (3 if model_type == "qwen2_moe" else 2)
    for name in report.changed:
        A, B = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        assert A.shape[-2] == B.shape[-1] == report.rank
        one, layer = (small, 0) if "attn" in name else (large, 1)
        W = before[name]
        error = np.abs(W + B @ A - dense(one, layer) @ W).max() / np.abs(B @ A).max()
        # Two factors, each rounded once to 24 or 11 bits, and a product of up to 8 terms.
        assert error < (1e-6 if kind == "f32" else 4e-3)
        assert np.abs(B @ A).max() > 0.1  # the control


def test_what_no_adapter_carries(tmp_path: Path) -> None:
    biased = write(tmp_path / "biased.gguf", "gpt2")
    with pytest.raises(NotExactError, match="bias changes too"):
        export_gguf(edit("gpt2", biased), tmp_path / "out.gguf", base=biased, lora=True)
    base = write(tmp_path / "base.gguf", "llama")
    with pytest.raises(NotExactError, match="full rank"):
        export_gguf(edit("llama", base, merge="average"), tmp_path / "out.gguf", base=base, lora=True)
    with pytest.raises(SettingError, match="f32 or f16"):
        export_gguf(edit("llama", base), tmp_path / "out.gguf", base=base, lora=True, edited_type="q8_0")
    with pytest.raises(SettingError, match="made from the base's weights"):
        export_gguf(edit("llama", base), tmp_path / "out.gguf", lora=True)
    assert tiny.listing(tmp_path) == {"biased.gguf", "base.gguf"}


# ---------------------------------------------------------------------------------------------------- artefacts of ours


@pytest.fixture(scope="module")
def artefacts(workshop: Workshop) -> Callable[[str], Path]:
    """What ``bake`` writes of the tiny Llama, by how it was baked."""

    def make(how: str) -> Path:
        one = workshop.edit("llama", "mlp", "l2" if how == "insert" else "sum")
        return workshop.once(
            f"gguf-{how}", lambda: bake(workshop.base("llama"), one, workshop.folder / f"gguf-{how}", how=how).output
        )

    return make


def llama_gguf(path: Path, folder: Path, kind: Type = Type.F32) -> Path:
    """The tiny Llama as llama.cpp's converter names and stores it, but for its vocabulary."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in tensors.items():
        data = tensor.numpy()
        plain = data.ndim == 1 or data.shape[-1] % 32
        writer.add_tensor(names.get_name(name, (".weight",)), *quantised(data, Type.F32 if plain else kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Type.F32, Type.BF16, Type.Q8_0, Type.Q5_0, Type.Q4_0], ids=lambda k: k.name)
def test_a_folded_artefact_and_a_gguf_quantised_from_its_base(
    kind: Type, artefacts: Callable[[str], Path], workshop: Workshop, tmp_path: Path
) -> None:
    """The names of the map that llama.cpp's converter uses; the weights known again behind their quantisation."""
    base = llama_gguf(tmp_path / "base.gguf", workshop.base("llama"), kind)
    report = export_gguf(artefacts("fold"), tmp_path / "out.gguf", base=base, edited_type="f32")
    assert report.weights_compared == 4  # two writers of each of two layers
    assert report.base == workshop.base("llama").name
    folded, original = (load_file(f / "model.safetensors") for f in (artefacts("fold"), workshop.base("llama")))
    for layer in Workshop.LAYERS:
        theirs = folded[f"model.layers.{layer}.mlp.down_proj.weight"].double().numpy()
        found = values(tmp_path / "out.gguf")[f"blk.{layer}.ffn_down.weight"]
        if kind is Type.F32:
            assert np.abs(found - theirs).max() <= rounding(Type.F32, theirs)
        # What quantisation took from the base is missing here too, and no more: M makes it 2 times larger at most.
        before = values(base)[f"blk.{layer}.ffn_down.weight"]
        lost = np.linalg.norm(before - original[f"model.layers.{layer}.mlp.down_proj.weight"].double().numpy())
        assert np.linalg.norm(found - theirs) <= 2 * lost + 1e-6 * np.linalg.norm(theirs)
    other = llama_gguf(tmp_path / "other.gguf", families.save("llama", tmp_path / "other"), kind)
    assert export_gguf(artefacts("fold"), tmp_path / "same.gguf", base=other).weights_compared == 4  # the same seed
    families.tiny("llama", seed=1).save_pretrained(tmp_path / "stranger")
    stranger = llama_gguf(tmp_path / "stranger.gguf", tmp_path / "stranger", kind)
    with pytest.raises(WrongModelError, match="differ by more than quantisation explains"):
        export_gguf(artefacts("fold"), tmp_path / "no.gguf", base=stranger)
    with pytest.raises(WrongModelError, match="edited already"):  # a second time on top of the first
        export_gguf(artefacts("fold"), tmp_path / "no.gguf", base=tmp_path / "out.gguf")


def test_an_adapter_artefact_needs_no_gguf(
    artefacts: Callable[[str], Path], workshop: Workshop, tmp_path: Path
) -> None:
    base = llama_gguf(tmp_path / "base.gguf", workshop.base("llama"))
    export_gguf(artefacts("adapter"), tmp_path / "alone.gguf")
    report = export_gguf(artefacts("adapter"), tmp_path / "with.gguf", base=base)
    assert (tmp_path / "alone.gguf").read_bytes() == (
        tmp_path / "with.gguf"
    ).read_bytes()  # of the same float32 weights
    assert (report.route, report.weights_compared) == ("adapter", 4)
    config = json.loads((artefacts("adapter") / "adapter_config.json").read_text("utf-8"))
    assert report.rank == config["r"]
    quantised_base = llama_gguf(tmp_path / "q8.gguf", workshop.base("llama"), Type.Q8_0)
    export_gguf(artefacts("adapter"), tmp_path / "q8-lora.gguf", base=quantised_base)
    name = "blk.1.ffn_down.weight"
    W, after = values(quantised_base)[name], values(tmp_path / "q8-lora.gguf")
    own = values(tmp_path / "with.gguf")
    assert not np.array_equal(after[f"{name}.lora_a"], own[f"{name}.lora_a"])  # made from that file's own weights
    export_gguf(artefacts("fold"), tmp_path / "fold.gguf", base=quantised_base, edited_type="f32")
    new = values(tmp_path / "fold.gguf")[name]
    assert np.abs(W + after[f"{name}.lora_b"] @ after[f"{name}.lora_a"] - new).max() <= 1e-6 * np.abs(new).max()


def test_the_command_line(artefacts: Callable[[str], Path], workshop: Workshop, tmp_path: Path) -> None:
    base = llama_gguf(tmp_path / "base.gguf", workshop.base("llama"), Type.Q8_0)
    args = ("export", "gguf", artefacts("fold"), "--base", base)
    ran = tiny.run(*args, "-o", tmp_path / "out.gguf", "--json")
    assert ran.code == 0, ran
    said = json.loads(ran.out)
    assert (said["route"], said["gguf"], said["architecture"]) == ("rewritten", "base.gguf", "llama")
    assert str(tmp_path) not in json.dumps({**said, "output": ""})
    ran = tiny.run(*args, "-o", tmp_path / "f16.gguf", "--edited-type", "f16")
    assert "2 tensors rewritten" in ran.out
    assert "edited tensors written as F16" in ran.out
    ran = tiny.run(*args, "-o", tmp_path / "lora.gguf", "--lora")
    assert "LoRA of rank" in ran.out
    assert "--lora" in ran.out
    assert tiny.run(*args, "-o", tmp_path / "out.gguf", "--quiet", "--overwrite").out == ""
    ran = tiny.run("export", "gguf", "--help")
    for word in ("--base", "--lora", "--converter", "--edited-type", "sea-bake export gguf smollm2-truthful"):
        assert word in ran.out
    text = b"".join(path.read_bytes() for path in tmp_path.glob("*.gguf"))
    assert str(tmp_path).encode() not in text


# ------------------------------------------------------------------------------------------------------------ bad input


def patched(source: Path, target: Path, change: Callable[[bytearray], Any]) -> Path:
    data = bytearray(source.read_bytes())
    found = change(data)
    target.write_bytes(data if found is None else found)
    return target


def put(form: str, at: int, *values: Any) -> Callable[[bytearray], Any]:
    return lambda data: struct.pack_into(form, data, at, *values)


def in_first_info(form: str, skip: int, *values: Any) -> Callable[[bytearray], Any]:
    """Write into the first tensor's entry, ``skip`` bytes behind its name: dimensions, sizes, type, offset."""

    def change(data: bytearray) -> None:
        at = data.index(b"token_embd.weight") + len("token_embd.weight")
        struct.pack_into(form, data, at + skip, *values)

    return change


def behind(key: bytes, form: str, *values: Any, skip: int = 4) -> Callable[[bytearray], Any]:
    """Write a key's value, which stands behind its 4 bytes of type."""
    return lambda data: struct.pack_into(form, data, data.index(key) + len(key) + skip, *values)


def doubled(name: bytes, other: bytes) -> Callable[[bytearray], Any]:
    return lambda data: data.replace(name, other)


HOSTILE: dict[str, tuple[Callable[[bytearray], Any], str]] = {
    "no GGUF": (put("<4s", 0, b"GGML"), "is no GGUF"),
    "empty": (lambda data: b"", "is no GGUF"),
    "four letters": (lambda data: data[:4], "truncated or damaged"),
    "version 1": (put("<I", 4, 1), "version 1 is not known"),
    "version 9": (put("<I", 4, 9), "version 9 is not known"),
    "big-endian": (put(">I", 4, 3), "gguf-convert-endian"),
    "more keys than bytes": (put("<Q", 16, 1 << 60), "damaged"),
    "more tensors than bytes": (put("<Q", 8, 1 << 60), "damaged"),
    "an array of 2^60 numbers": (behind(b"tokenizer.ggml.scores", "<Q", 1 << 60, skip=8), "truncated or damaged"),
    "an array of 2^60 strings": (behind(b"tokenizer.ggml.tokens", "<Q", 1 << 60, skip=8), "damaged"),
    "an array of arrays": (behind(b"tokenizer.ggml.scores", "<I", 9), "unknown type 9"),
    "a value of no type": (behind(b"llama.block_count", "<I", 77, skip=0), "unknown type 77"),
    "a key of 2^63 bytes": (put("<Q", 24, 1 << 63), "holds a name of"),
    "no dimensions": (in_first_info("<I", 0, 0), "0 dimensions"),
    "a thousand dimensions": (in_first_info("<I", 0, 1000), "1000 dimensions"),
    "no rows": (in_first_info("<Q", 12, 0), "cannot be F32"),
    "2^62 columns": (in_first_info("<Q", 4, 1 << 62), "behind the end of the file"),
    "an unknown tensor type": (in_first_info("<I", 20, 99), "type 99"),
    "an offset that is not aligned": (in_first_info("<Q", 24, 8), "not aligned"),
    "an offset behind the end": (in_first_info("<Q", 24, 1 << 40), "behind the end of the file"),
    "tensors that overlap": (in_first_info("<Q", 24, 1 << 12), "overlap"),
    "a tensor twice": (doubled(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"), "twice"),
    "truncated": (lambda data: data[:-40_000], "truncated"),
    "cut in its header": (lambda data: data[:200], "truncated or damaged"),
    "no architecture": (doubled(b"general.architecture", b"general.architecturx"), "general.architecture"),
    "a writer missing": (doubled(b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight"), "lacks the tensor blk.1.ffn"),
    "a name that is one byte short": (doubled(b"blk.1.ffn_up.weight", b"blk.1.ffn_up.weigh"), "damaged"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_gguf_is_one_clear_error(name: str, tmp_path: Path) -> None:
    change, words = HOSTILE[name]
    good = write(tmp_path / "good.gguf", "llama")
    one = edit("llama", good)
    bad = patched(good, tmp_path / "bad.gguf", change)
    with tiny.nothing_happens(tmp_path), pytest.raises(CheckpointError, match=words):
        export_gguf(one, tmp_path / "out.gguf", base=bad)
    export_gguf(one, tmp_path / "out.gguf", base=good)  # the control


def test_splits_adapters_and_strange_tensors_are_refused_with_the_cure(tmp_path: Path) -> None:
    good = write(tmp_path / "good.gguf", "llama")
    one = edit("llama", good)
    split = write(tmp_path / "split.gguf", "llama", split__count=3)
    with pytest.raises(CheckpointError, match="llama-gguf-split --merge"):
        export_gguf(one, tmp_path / "out.gguf", base=split)
    export_gguf(one, tmp_path / "lora.gguf", base=good, lora=True)
    with pytest.raises(CheckpointError, match="of type 'adapter'"):
        export_gguf(one, tmp_path / "out.gguf", base=tmp_path / "lora.gguf")
    scaled = patched(good, tmp_path / "scaled.gguf", doubled(b"blk.1.attn_norm.weight", b"blk.1.ffn_down.scales_"))
    with pytest.raises(CheckpointError, match=r"holds blk\.1\.ffn_down\.scales_ beside"):
        export_gguf(one, tmp_path / "out.gguf", base=scaled)


def test_the_wrong_model_is_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base.gguf", "llama")
    one = edit("llama", base)
    for kind in (Type.F32, Type.Q8_0, Type.Q4_0):
        for name, other, words in (
            ("weights", {"model_type": "llama", "seed": 1000}, "by more than quantisation explains"),
            ("architecture", {"model_type": "qwen2"}, "is 'llama' in a GGUF"),
            ("experts", {"model_type": "mixtral"}, "has experts"),
        ):
            wrong = write(tmp_path / f"{name}-{kind.name}.gguf", kind=kind, **other)
            with pytest.raises(WrongModelError, match=words):
                export_gguf(one, tmp_path / "out.gguf", base=wrong)
        same = write(tmp_path / f"same-{kind.name}.gguf", "llama", kind)
        assert export_gguf(one, tmp_path / f"out-{kind.name}.gguf", base=same).weights_compared == 2  # the control
    deeper = BaseModel("tiny", None, {**one.base.config, "num_hidden_layers": 3}, "float32")
    sizes = Edit(one.projectors, one.site, deeper, merge="sum")
    with pytest.raises(WrongModelError, match="num_hidden_layers = 3"):
        export_gguf(sizes, tmp_path / "out.gguf", base=base)
    unsampled = Edit(one.projectors, one.site, BaseModel("tiny", None, one.base.config, "float32"), merge="sum")
    report = export_gguf(unsampled, tmp_path / "unsampled.gguf", base=base)
    assert any("could not be held against" in note for note in report.notes)


def test_edits_that_do_not_fold_are_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base.gguf", "llama")
    one = edit("llama", base)
    with tiny.nothing_happens(tmp_path):
        for wrong, words in (
            (edit("llama", base, Site.BLOCK), "residual stream"),
            (edit("llama", base, merge="l2"), "--approximate"),
            (Edit(one.projectors, one.site, one.base, merge="sum", feature="tanh"), "not linear"),
        ):
            with pytest.raises(NotExactError, match=words):
                export_gguf(wrong, tmp_path / "out.gguf", base=base)
        unknown = BaseModel("tiny", None, {**one.base.config, "model_type": "opt"}, "float32")
        with pytest.raises(FamilyError, match="--converter"):
            export_gguf(Edit(one.projectors, one.site, unknown, merge="sum"), tmp_path / "out.gguf", base=base)
        with pytest.raises(CheckpointError, match="too weak for Q8_0"):
            export_gguf(edit("llama", base, alpha=1e-9), tmp_path / "out.gguf", base=base, edited_type="q8_0")
    huge = write(tmp_path / "huge.gguf", "llama")
    big = edit("llama", huge, alpha=1e5)
    with pytest.raises(CheckpointError, match="does not fit into F16"):
        export_gguf(big, tmp_path / "out.gguf", base=huge, edited_type="f16")
    assert tiny.listing(tmp_path) == {"base.gguf", "huge.gguf"}


END_TO_END = {"kl": 1e-3, "base_kl": 1e-2, "top1": 0.9, "base_top1": 0.8, "kl_of_all_tokens": 1e-3}
APPROXIMATION = {"layers": [{"share": 0.9}], "end_to_end": END_TO_END}


@pytest.mark.slow
def test_artefacts_that_are_none_of_these(artefacts: Callable[[str], Path], workshop: Workshop, tmp_path: Path) -> None:
    """At the door: exit code 2, one paragraph, nothing written."""
    base = llama_gguf(tmp_path / "base.gguf", workshop.base("llama"))
    stand_in = tiny.changeable(artefacts("fold"), tmp_path / "stand-in")
    record = json.loads((stand_in / "sea" / "bake.json").read_text("utf-8"))
    tiny.patch_json(stand_in / "sea" / "bake.json", details={**record["details"], "approximation": APPROXIMATION})
    (tmp_path / "old.gguf").write_bytes(b"old")
    (tmp_path / "folder.gguf").mkdir()
    no_edit = tmp_path / "no-edit.safetensors"
    no_edit.write_bytes(b"not an edit")
    output, fold = tmp_path / "out.gguf", artefacts("fold")
    with tiny.nothing_happens(tmp_path, artefacts("fold"), artefacts("adapter")):
        for args, kind, words in (
            ((artefacts("insert"), "--base", base), "CheckpointError", ("inserted layers", "--how fold")),
            ((artefacts("insert"),), "CheckpointError", ("inserted layers",)),
            ((stand_in, "--base", base), "NotExactError", ("linear stand-in", "--converter")),
            ((workshop.base("llama"), "--base", base), "CheckpointError", ("is not an artefact",)),
            ((tmp_path / "nowhere", "--base", base), "EditError", ("no such file",)),
            ((no_edit, "--base", base), "EditError", ("cannot be read",)),
            ((fold, "--base", tmp_path / "nowhere.gguf"), "CheckpointError", ("no such GGUF",)),
            ((fold, fold, "--base", base), "SettingError", ("name one folder",)),
            ((fold,), "SettingError", ("--base", "convert_hf_to_gguf.py")),
            ((fold, "--converter", tmp_path), "SettingError", ("no convert_hf_to_gguf.py",)),
            ((fold, "--base", base, "--converter", tmp_path), "SettingError", ("not both",)),
            ((fold, "--base", base, "--edited-type", "q2_k"), "SettingError", ("keep, f32, f16, q8_0",)),
            ((fold, "--edited-type", "f16"), "SettingError", ("--outtype",)),
            ((fold, "--base", base, "--outtype", "f16"), "SettingError", ("--edited-type",)),
            ((fold, "--outtype", "q3"), "SettingError", ("unknown type",)),
            ((fold, "--base", base, "--unedited"), "SettingError", ("--unedited",)),
            ((fold, "--unedited", "--converter", tmp_path), "CheckpointError", ("is not unedited",)),
        ):
            tiny.refused(tiny.run("export", "gguf", *args, "-o", output), kind, *words)
        for place, words in (
            (tmp_path / "old.gguf", "--overwrite"),
            (tmp_path / "folder.gguf", "is not a file"),
            (tmp_path / "out.bin", "should end in .gguf"),
        ):
            ran = tiny.run("export", "gguf", fold, "--base", base, "-o", place)
            tiny.refused(ran, "SettingError" if place.suffix == ".bin" else "OutputError", words)
        ran = tiny.run("export", "gguf", fold, "--base", base, "-o", base, "--overwrite")
        tiny.refused(ran, "OutputError", "is read, and lies in the output")


def test_a_missing_extra(artefacts: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    ran = tiny.run("export", "gguf", artefacts("adapter"), "-o", tmp_path / "out.gguf")
    tiny.refused(ran, "MissingExtraError", "pip install 'sea-bake[gguf]'")
    assert tiny.listing(tmp_path) == set()


def test_a_disk_without_space_and_a_file_cut_on_the_way(tmp_path: Path) -> None:
    """A limit on the size of files (EFBIG) is met in writing; that a sparse file cannot be copied is said before."""
    base = write(tmp_path / "base.gguf", "llama")
    edit("llama", base).save(tmp_path / "edit.safetensors")
    args = ("export", "gguf", tmp_path / "edit.safetensors", "--base", base, "-o", tmp_path / "out.gguf")
    before = tiny.listing(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        ran = tiny.run(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tiny.refused(ran, "OutputError", "no space on disk")
    assert tiny.listing(tmp_path) == before
    sparse = tmp_path / "sparse.gguf"
    shutil.copyfile(base, sparse)
    os.truncate(sparse, shutil.disk_usage(tmp_path).free + (1 << 40))
    ran = tiny.run(*args[:-3], sparse, "-o", tmp_path / "out.gguf")
    tiny.refused(ran, "OutputError", "no space on disk", "MB free")
    sparse.unlink()
    assert tiny.listing(tmp_path) == before
    assert tiny.run(*args).code == 0  # the control


CONVERTER = """import argparse, shutil, sys
parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--outtype")
parser.add_argument("--outfile")
args = parser.parse_args()
{body}
"""


def test_a_converter_is_run_as_llama_cpps_and_its_failures_are_told(
    artefacts: Callable[[str], Path], workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs in its place, with its arguments. (llama.cpp's own is run by scripts/check_llamacpp.)"""
    ready = llama_gguf(tmp_path / "ready.gguf", artefacts("fold"))
    home = tmp_path / "llama.cpp"
    home.mkdir()
    script = home / "convert_hf_to_gguf.py"
    script.write_text(
        CONVERTER.format(body=f"assert args.outtype == 'f16'; shutil.copyfile({str(ready)!r}, args.outfile)")
    )
    monkeypatch.setenv("LLAMA_CPP", str(home))
    report = export_gguf(artefacts("fold"), tmp_path / "out.gguf", outtype="f16")
    assert (report.route, report.architecture) == ("converted", "llama")
    assert (tmp_path / "out.gguf").read_bytes() == ready.read_bytes()
    monkeypatch.delenv("LLAMA_CPP")
    for body, words in (
        ("sys.exit('Model XForCausalLM is not supported')", "is not supported"),
        ("import a_module_that_is_not_there", "pip install"),
        ("sys.exit(f'no room for {args.outfile}')", "no room for its output"),
        ("open(args.outfile, 'wb').write(b'GGUF')", "what it wrote is truncated or damaged"),
        ("open(args.outfile, 'wb').write(b'tea')", "what it wrote is no GGUF"),
        ("", "made no GGUF"),
    ):
        script.write_text(CONVERTER.format(body=body))
        with tiny.nothing_happens(tmp_path), pytest.raises(CheckpointError, match=words) as told:
            export_gguf(artefacts("fold"), tmp_path / "no.gguf", converter=home)
        assert str(artefacts("fold")) in str(told.value)  # what the user named,
        assert "no.gguf" not in str(told.value)  # and not the hidden place beside the output


@pytest.mark.parametrize("link", ["itself", "symbolic", "hard"])
def test_no_file_is_written_over_what_it_is_made_from(tmp_path: Path, link: str) -> None:
    """By no function, whichever name the target goes by; and a target that is there already stays."""
    ready = ggufs.llama(tmp_path / "ready.gguf")
    target = tmp_path / "ready.gguf" if link == "itself" else tmp_path / "link.gguf"
    if link == "symbolic":
        target.symlink_to(ready)
    elif link == "hard":
        target.hardlink_to(ready)
    file = GgufFile.open(ready)
    with tiny.nothing_happens(tmp_path):
        for call in (
            lambda: quantise_gguf(ready, target, "q8_0"),
            lambda: rewrite(file, {name: Rewrite(None, Type.F16) for name in file.tensors}, target),
        ):
            with pytest.raises(OutputError, match="is read"):
                call()
    other = tmp_path / "other.gguf"
    other.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        quantise_gguf(ready, other, "q8_0")
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(ready.read_bytes()[:-5000])
    with tiny.nothing_happens(tmp_path), pytest.raises(CheckpointError, match=r"quantise torn\.gguf to q4_0"):
        quantise_gguf(torn, tmp_path / "never.gguf", "q4_0")
    quantise_gguf(ready, tmp_path / "eight.gguf", "q8_0")  # the control
    assert GgufFile.open(tmp_path / "eight.gguf").size < file.size


# ------------------------------------------------------------------------------------- SmolLM2 in llama.cpp, and back

PROMPTS = (
    "What is the capital of France?",
    "Is it dangerous to wake a sleepwalker?",
    "Why do we have seasons on Earth?",
)
TOKENS = 24


@dataclass(frozen=True)
class Answer:
    """Greedy tokens of one prompt, and the log-probabilities of the ten likeliest first tokens."""

    tokens: list[int]
    first: dict[int, float]


def llama_cpp(model: Path, prompts: list[list[int]], lora: Path | None = None) -> list[Answer]:
    """llama.cpp's own server in this process. KV cache in float32 and no flash attention: else it rounds to half."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_parallel, settings.warmup = 256, 128, 128, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if lora is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    server = xllamacpp.Server(settings)
    found = []
    for ids in prompts:
        request = {"prompt": ids, "max_tokens": TOKENS, "temperature": 0, "logprobs": 10, "ignore_eos": True}
        (choice,) = server.handle_completions({**request, "cache_prompt": False})["choices"]
        steps = choice["logprobs"]["content"]
        first = {entry["id"]: entry["logprob"] for entry in steps[0]["top_logprobs"]}
        found.append(Answer([step["id"] for step in steps], first))
    return found


def transformers_answers(folder: Path, prompts: list[list[int]]) -> list[Answer]:
    from sea_bake.model.loading import load_model

    return living_answers(load_model(folder, dtype="float32"), prompts)


def living_answers(model: Any, prompts: list[list[int]]) -> list[Answer]:
    found = []
    for ids in prompts:
        whole = torch.tensor([ids])
        with torch.inference_mode():
            first = model(input_ids=whole).logits[0, -1].log_softmax(-1)
            whole = model.generate(
                input_ids=whole, attention_mask=torch.ones_like(whole), do_sample=False, min_new_tokens=TOKENS,
                max_new_tokens=TOKENS,
            )  # fmt: skip
        found.append(Answer(whole[0, len(ids) :].tolist(), dict(enumerate(first.tolist()))))
    return found


def apart(ours: list[Answer], theirs: list[Answer]) -> float:
    """Largest difference of a log-probability among the first tokens that ours has: llama.cpp's ten likeliest."""
    return max(abs(value - t.first[token]) for o, t in zip(ours, theirs) for token, value in o.first.items())


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


@dataclass(frozen=True)
class Real:
    """SmolLM2, its own GGUF, and the prompts as token ids; an edit and what is made of it, when it is wanted."""

    base: Path
    gguf: Path
    folder: Path
    prompts: list[list[int]]

    @functools.cached_property
    def layers(self) -> int:
        """How many are edited: two thirds."""
        return 2 * int(GgufFile.open(self.gguf).keys["llama.block_count"]) // 3

    @functools.cached_property
    def edit(self) -> Path:
        from sea_bake import fit
        from sea_bake.demonstrations import builtin

        one = fit(self.base, builtin()[:16], neutral="prompt", K=0.9, **tiny.PAPER)
        assert len(one.layers) == self.layers
        # On so few texts P+ and P- nearly cancel: the second alone, weakened, changes every answer and still speaks, if
        # all layers are there to speak.
        one.with_settings(merge="sum", parts="negative", alpha=0.3 if self.layers == 20 else 1.0).save(
            self.folder / "edit.safetensors"
        )
        return self.folder / "edit.safetensors"

    @functools.cached_property
    def fold(self) -> Path:
        return bake(self.base, self.edit, self.folder / "fold", how="fold").output

    @functools.cached_property
    def in_f32(self) -> GgufRecord:
        """The base's file, float32 where the fold edits it."""
        return export_gguf(self.fold, self.folder / "f32.gguf", base=self.gguf, edited_type="f32")

    @functools.cached_property
    def hf_base(self) -> list[Answer]:
        return transformers_answers(self.base, self.prompts)

    @functools.cached_property
    def hf_fold(self) -> list[Answer]:
        return transformers_answers(self.fold, self.prompts)


@pytest.fixture(scope="module")
def real(short_smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    from sea_bake.model.loading import load_tokenizer

    folder = tmp_path_factory.mktemp("gguf-smollm2")
    tokenizer = load_tokenizer(short_smollm2)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True)
        for text in PROMPTS
    ]
    yield Real(short_smollm2, smollm2_files.short_gguf(), folder, [ids["input_ids"] for ids in prompts])
    shutil.rmtree(folder)


def in_float32(source: Path, target: Path) -> Path:
    """The same file with every tensor in float32."""
    file = GgufFile.open(source)
    rewrite(file, {name: Rewrite(None, Type.F32) for name, t in file.tensors.items() if t.type != Type.F32}, target)
    return target


@pytest.mark.slow
@pytest.mark.smollm2
def test_llama_cpp_answers_like_the_artefact_in_float32(real: Real) -> None:
    """Rewritten, and the base with the LoRA: transformers' greedy tokens, from its own weights in float32."""
    export_gguf(real.edit, real.folder / "lora.gguf", base=real.gguf, lora=True)
    edited = in_float32(real.in_f32.output, real.folder / "all-f32.gguf")
    base = in_float32(real.gguf, real.folder / "base-f32.gguf")
    rewritten, plain = llama_cpp(edited, real.prompts), llama_cpp(base, real.prompts)
    adapted = llama_cpp(base, real.prompts, real.folder / "lora.gguf")
    for found in (rewritten, adapted):
        assert tokens(found) == tokens(real.hf_fold)
        # Other kernels sum in another order; measured 5e-5. The edit moves these numbers by whole units.
        assert apart(found, real.hf_fold) < 1e-3
    assert tokens(plain) == tokens(real.hf_base)
    assert apart(plain, real.hf_base) < 1e-3
    for ours, theirs in zip(tokens(rewritten), tokens(plain)):  # the control: the edit is in all that was compared
        assert ours != theirs
    assert apart(plain, real.hf_fold) > 0.1
    for name in ("all-f32.gguf", "base-f32.gguf"):
        (real.folder / name).unlink()


@pytest.mark.slow
@pytest.mark.smollm2
def test_the_demo_models_own_gguf_shows_the_edit(real: Real) -> None:
    """Q4_1 as it comes from PyPI: its tensors rewritten in their own type or in 8 bits, or left alone under a LoRA."""
    plain = llama_cpp(real.gguf, real.prompts)
    noise = apart(plain, real.hf_base)  # the quantisation's own error: llama.cpp rounds activations to 8 bits here
    eight = export_gguf(real.fold, real.folder / "q8_0.gguf", base=real.gguf, edited_type="q8_0")
    export_gguf(real.fold, real.folder / "lora.gguf", base=real.gguf, lora=True, overwrite=True)
    for found in (
        llama_cpp(real.folder / "q8_0.gguf", real.prompts),
        llama_cpp(real.gguf, real.prompts, real.folder / "lora.gguf"),
    ):
        assert tokens(found) != tokens(plain)
        assert apart(found, real.hf_fold) < 3 * noise  # measured 0.17 and 0.24, with noise 0.24
        assert apart(found, real.hf_base) > 3 * apart(found, real.hf_fold)  # measured 2.5
    assert apart(plain, real.hf_fold) > 3 * noise  # the control: the base's own file does not pass

    report = export_gguf(real.fold, real.folder / "q4_1.gguf", base=real.gguf)
    assert {(entry["from"], entry["type"]) for entry in report.changed.values()} == {("Q4_1", "Q4_1")}
    assert (len(report.changed), report.weights_compared) == (real.layers, 2 * real.layers)
    assert any("--edited-type q8_0" in note for note in report.notes)
    assert tokens(llama_cpp(real.folder / "q4_1.gguf", real.prompts)) != tokens(plain)
    # Weights on the grid of 4 bits, moved by less than half a step, fall back: what is left of the edit is told.
    before, after = values(real.gguf), values(real.folder / "q4_1.gguf")
    folded = {name: value for file in real.fold.glob("*.safetensors") for name, value in load_file(file).items()}
    for name, entry in report.changed.items():
        W, new = before[name], folded[f"model.layers.{name.split('.')[1]}.mlp.down_proj.weight"].double().numpy()
        kept = np.sum((after[name] - W) * (new - W)) / np.sum((new - W) ** 2)
        assert entry["kept"] == pytest.approx(kept, abs=1e-3)
        assert kept > 0
    assert min(entry["kept"] for entry in report.changed.values()) < 0.9  # the control: and q8_0 keeps it
    assert all(abs(entry["kept"] - 1) < 0.1 for entry in eight.changed.values())
    assert eight.notes == []


@pytest.mark.slow
@pytest.mark.smollm2
def test_transformers_reads_the_rewritten_file_as_the_artefact(real: Real) -> None:
    """Float32 where edited, so nothing is rounded: the same model. And no byte of the rest is another."""
    report, path = real.in_f32, real.in_f32.output
    found = transformers_answers(path, real.prompts)
    assert tokens(found) == tokens(real.hf_fold)
    # The same float64 product, rounded once; a last bit may differ where blocks of columns are others.
    assert apart(found, real.hf_fold) < 1e-4
    assert apart(found, real.hf_base) > 0.1  # the control
    before, after = raw(real.gguf), raw(path)
    assert {n for n in before if before[n] != after[n]} == set(report.changed)
    assert len(report.changed) == real.layers
    assert header_keys(real.gguf) == header_keys(path)


@pytest.mark.slow
@pytest.mark.smollm2
def test_the_demo_models_file_is_the_same_without_an_edit(real: Real) -> None:
    nothing = Edit.load(real.edit).with_settings(alpha=0.0)
    export_gguf(nothing, real.folder / "same.gguf", base=real.gguf)
    assert tiny.sha256(real.folder / "same.gguf") == tiny.sha256(real.gguf)


def test_a_gguf_is_an_artefact_too(artefacts: Callable[[str], Path], workshop: Workshop, tmp_path: Path) -> None:
    """Its record lies beside it, and tells whether the file is still the one that was written."""
    base = llama_gguf(tmp_path / "base.gguf", workshop.base("llama"))
    made = export_gguf(artefacts("fold"), tmp_path / "edited.gguf", base=base)
    assert tiny.listing(tmp_path) == {"base.gguf", "edited.gguf", "edited.gguf.sea.json"}
    found = Artefact.open(made.output)
    assert (found.kind, found.how, found.record.base) == ("gguf", "rewritten", made.base)
    assert found.seal() == {"edited.gguf": tiny.sha256(made.output)}
    assert (
        GgufRecord.from_json(json.loads((tmp_path / "edited.gguf.sea.json").read_text("utf-8"))).changed == made.changed
    )
    assert str(tmp_path) not in (tmp_path / "edited.gguf.sea.json").read_text("utf-8")
    shown = tiny.run("inspect", made.output)
    assert shown.code == 0
    assert f"{made.output}: " in shown.out
    assert "as it was written" in shown.out
    for command, kind, words in (
        (("verify", made.output), "VerificationError", "is a GGUF"),
        (("publish", made.output, "ada/x", "--dry-run"), "PublishError", "is a GGUF"),
        (("report", made.output, "-o", tmp_path / "out"), "EditError", "holds no copy of its edits"),
        (("unbake", made.output, "-o", tmp_path / "out"), "CheckpointError", "edited.gguf is an export"),
        (("serve-web", made.output, "-o", tmp_path / "out"), "CheckpointError", "edited.gguf is a GGUF: give the ONNX"),
        (
            ("export", "onnx", made.output, "-o", tmp_path / "out"),
            "CheckpointError",
            "edited.gguf is an export already",
        ),
        (("plan", base), "CheckpointError", "sea-bake bake takes it"),
        (("inspect", base), "CheckpointError", "is not an artefact"),
    ):
        tiny.refused(tiny.run(*command), kind, words)
    with open(made.output, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert str(Artefact.open(made.output).doubt) == "changed since it was written"
    assert ", changed since it was written" in tiny.run("inspect", made.output).out
    assert json.loads(tiny.run("inspect", made.output, "--json").out)["doubt"] == "changed since it was written"
    with pytest.raises(OutputError, match="exists already"):
        export_gguf(artefacts("fold"), tmp_path / "edited.gguf", base=base)
