"""ONNX in 8 and 4 bits: the rounding is what it says, the edit stays as it is to the bit, and its effect survives."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import exports
import numpy as np
import onnx
import pytest
import real
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from sea_bake import Edit
from sea_bake.activations.prompts import encode
from sea_bake.artefact import Artefact
from sea_bake.demonstrations import builtin
from sea_bake.errors import CheckpointError, OutputError, SettingError
from sea_bake.exporting.onnx.distance import _texts, answers, divergence, measure
from sea_bake.exporting.onnx.quantising import quantise
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.verification.bypass import bypass
from sea_bake.verification.onnx_answers import Decoder, cached, continued, forced

FILES = {"int8": "model_quantized.onnx", "int4": "model_q4.onnx"}
KINDS = pytest.mark.parametrize("kind", FILES)


def graph_of(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Nodes by name, and initialisers."""
    graph = onnx.load(path).graph
    return {node.name: node for node in graph.node}, {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def restored(node: Any, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The weight [K, N] that a MatMulNBits stands for, and the scale of each of its entries: written here anew."""
    said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    packed, scales = (tensors[name] for name in node.input[1:3])
    if said["bits"] == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1)  # the lower half of a byte comes first
    blocks = -(-said["K"] // said["block_size"])
    whole = packed.reshape(said["N"], blocks, said["block_size"]).astype(np.float64) - 2 ** (said["bits"] - 1)
    steps = np.broadcast_to(scales.reshape(said["N"], blocks, 1), whole.shape)
    matrix, steps = ((x.reshape(said["N"], -1)[:, : said["K"]]).T for x in (whole * steps, np.abs(steps)))
    return matrix, steps


# ------------------------------------------------------------------------------------------------- a graph made by hand


def weight(*shape: int) -> np.ndarray:
    """Of such a spread that products keep the size of what goes in."""
    return (np.random.default_rng(sum(shape)).normal(size=shape) / 8).astype(np.float32)


def by_hand(folder: Path) -> Path:
    """Every way in which a weight can stand in a graph: a tied head, Gemm, shared, kept, stacked; weights beside it."""
    tensors = {
        "embedding": weight(96, 64),
        "square": weight(64, 64),
        "narrow": weight(64, 40),
        "turned": weight(64, 40),
        "bias": weight(64),
        "kept": weight(64, 64),
        "stacked": weight(2, 64, 64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["h0"], "look_up"),
        helper.make_node("MatMul", ["h0", "square"], ["h1"], "first"),
        helper.make_node("MatMul", ["h1", "square"], ["h2"], "second"),
        helper.make_node("MatMul", ["h2", "kept"], ["h3"], "edit"),
        helper.make_node("MatMul", ["h3", "narrow"], ["h4"], "narrowing"),
        helper.make_node("Gemm", ["h4", "turned", "bias"], ["h5"], "gemm", transB=1),
        helper.make_node("MatMul", ["h5", "stacked"], ["h6"], "experts"),
        helper.make_node("ReduceMean", ["h6"], ["h7"], "mean", axes=[0], keepdims=0),
        helper.make_node("Transpose", ["embedding"], ["head"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["h7", "head"], ["raw"], "last"),
        helper.make_node("Tanh", ["raw"], ["logits"], "cap"),
    ]
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 96])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    return path


@KINDS
def test_every_weight_is_rounded_where_it_stands(kind: str, tmp_path: Path) -> None:
    report = quantise(by_hand(tmp_path), tmp_path / "out.onnx", kind, ["edit"])
    nodes, tensors = graph_of(tmp_path / "out.onnx")
    _, before = graph_of(tmp_path / "model.onnx")
    wide, small = 8, 8 if kind == "int8" else 4
    expected = {"first": small, "second": small, "narrowing": wide, "gemm": small, "last": wide}
    made = {name.rpartition("_Q")[0]: node for name, node in nodes.items() if node.op_type == "MatMulNBits"}
    assert {name: int(node.name.rpartition("_Q")[2]) for name, node in made.items()} == expected
    originals = {
        "first": before["square"],
        "narrowing": before["narrow"],
        "gemm": before["turned"].T,
        "last": before["embedding"].T,
    }
    for name, original in originals.items():
        matrix, steps = restored(made[name], tensors)
        assert matrix.shape == original.shape
        # Half a step; one whole step where an end of the range has no level of its own: -8..7 times the step.
        assert (np.abs(matrix - original) <= steps * (1 + 1e-5)).all()
        assert np.abs(matrix - original).mean() < 0.3 * steps.mean()
        assert not (np.abs(matrix - np.roll(original, 1, axis=0)) <= steps).all()  # the control: rows in another order
    assert made["first"].input[1:] == made["second"].input[1:]  # shared before, and shared now
    for name in ("embedding", "kept", "stacked", "bias"):
        assert tensors[name].tobytes() == before[name].tobytes()
    assert set(tensors) & {"square", "narrow", "turned"} == set()
    assert (nodes["look_up"].op_type, nodes["edit"].op_type, nodes["experts"].op_type) == ("Gather", "MatMul", "MatMul")
    assert "turn" not in nodes
    assert report["weights"] == ({8: 4} if kind == "int8" else {4: 2, 8: 2})
    assert report["kept"] == 1
    assert report["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("out.onnx*")) < report["bytes_before"]
    assert report["bytes_float"] == sum(before[n].nbytes for n in ("embedding", "kept", "stacked", "bias"))


@KINDS
def test_the_graph_computes_what_its_weights_say(kind: str, tmp_path: Path) -> None:
    """ONNX Runtime against float64 and the restored weights: activations are rounded to 8 bits on the way."""
    import onnxruntime

    quantise(by_hand(tmp_path), tmp_path / "out.onnx", kind, ["edit"])
    nodes, tensors = graph_of(tmp_path / "out.onnx")
    made = {
        n.rpartition("_Q")[0]: restored(node, tensors)[0] for n, node in nodes.items() if "_Q" in n and "bias" not in n
    }
    ids = np.arange(5)
    h = tensors["embedding"][ids].astype(np.float64) @ made["first"] @ made["second"] @ tensors["kept"]
    h = (h @ made["narrowing"] @ made["gemm"] + tensors["bias"]) @ tensors["stacked"].mean(0)
    expected = np.tanh(h @ made["last"])
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"ids": ids})
    # Five times a rounding of 1/254 of the largest of 32 activations, which is some 2.5 times their spread.
    assert np.abs(found - expected).max() < 5 * 2.5 / 254
    assert np.abs(found - np.roll(expected, 1, axis=0)).max() > 0.3  # the control: another token's row


# ---------------------------------------------------------------------------------------------------- a tiny real model


@pytest.mark.slow
@KINDS
def test_the_edit_stays_as_it_is_to_the_bit(kind: str) -> None:
    folder = exports.plain()
    names = Artefact.open(folder).onnx.sea_nodes
    before, floats = graph_of(folder / "onnx" / "model.onnx")
    after, tensors = graph_of(folder / "onnx" / FILES[kind])
    products = 0
    for name in names:
        assert after[name].SerializeToString() == before[name].SerializeToString()
        for used in after[name].input:
            assert (used in tensors) == (used in floats)
            assert used not in tensors or tensors[used].tobytes() == floats[used].tobytes()
        products += after[name].op_type == "MatMul"
    assert products == Artefact.open(folder).onnx.variants[kind]["kept"] == 4  # two layers, two products each
    others = [n for n, node in after.items() if node.op_type == "MatMul" and n not in names]
    assert all(used not in tensors for n in others for used in after[n].input)  # of attention: no weight in them
    assert {node.op_type for node in after.values()} >= {"Gather", "MatMulNBits"}
    assert "GatherBlockQuantized" not in {node.op_type for node in after.values()}  # WebAssembly has none


@pytest.mark.slow
@KINDS
def test_the_files_are_as_their_readers_want_them(kind: str) -> None:
    folder = exports.plain()
    path = folder / "onnx" / FILES[kind]
    graph = onnx.load(path, load_external_data=False).graph
    places = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {f"{path.name}_data"}
    for private in (str(Path.home()), str(folder.parent), "site-packages", "/work/"):
        assert private.encode() not in path.read_bytes()
    told = json.loads((folder / "config.json").read_text("utf-8"))["transformers.js_config"]
    assert told["use_external_data_format"][path.name] == 1


@pytest.mark.slow
@KINDS
def test_a_variant_generates_with_its_cache(kind: str) -> None:
    decoder = Decoder({"graph": str(exports.plain() / "onnx" / FILES[kind]), "weights": None, "device": "cpu"})
    rows = [[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]
    mask = [[0, 0, 1, 1, 1], [1] * 5]
    batch = continued(decoder, rows, mask, 8)[0]
    alone = [continued(decoder, [ids], np.ones((1, len(ids)), int), 8)[0][0] for ids in ([5, 6, 7], rows[1])]
    assert [row.tolist() for row in batch] == [row.tolist() for row in alone]


@pytest.mark.slow
def test_how_far_a_variant_is_from_float32(tmp_path: Path) -> None:
    folder = exports.plain()
    main, tokenizer = folder / "onnx" / "model.onnx", load_tokenizer(folder)
    paths = {kind: folder / "onnx" / name for kind, name in FILES.items()} | {"same": main}
    found = measure(main, paths, tokenizer, Artefact.open(folder).onnx.sea_nodes)
    assert found["same"]["mean_kl"] < 1e-9
    assert found["same"]["top1"] == 1.0
    assert 1e-6 < found["int8"]["mean_kl"] < found["int4"]["mean_kl"]
    assert found["int8"]["top1"] > found["int4"]["top1"]
    assert found["int8"]["tokens"] >= 256
    assert Artefact.open(folder).onnx.variants["int8"]["distance"] == pytest.approx(found["int8"], rel=1e-3)
    # Without the edit: what the precision alone does to the base, and what the edit does to it, in torch.
    assert found["same"]["base_kl"] < 1e-9
    assert found["int8"]["base_kl"] < found["int4"]["base_kl"]
    model, rows = load_model(exports.base()), []
    for ids in _texts(tokenizer):
        base = model(torch.tensor([ids])).logits[0]
        with Edit.load(folder / "sea" / "edit-0.safetensors").live(model):
            rows.append(divergence(base.detach().numpy(), model(torch.tensor([ids])).logits[0].detach().numpy()))
    assert found["int8"]["edit_kl"] == found["int4"]["edit_kl"] == pytest.approx(np.concatenate(rows).mean(), rel=1e-3)
    a, b = (torch.tensor(answers(path, [[5, 6, 7]])[0]).double() for path in (main, folder / "onnx" / FILES["int4"]))
    expected = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert np.allclose(divergence(a.numpy(), b.numpy()), expected, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    source, target = by_hand(tmp_path), tmp_path / "out.onnx"
    with pytest.raises(SettingError, match="unknown kind 'int3': use int8 or int4"):
        quantise(source, target, "int3", [])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "link.onnx").symlink_to(source)
    for same in (source, tmp_path / "link.onnx"):
        with pytest.raises(OutputError, match="is read"):
            quantise(source, same, "int8", [])
    (tmp_path / "link.onnx").unlink()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(CheckpointError, match=r"model\.onnx has no node nobody, which was to be kept"):
        quantise(source, target, "int4", ["edit", "nobody"])
    every = ["first", "second", "edit", "narrowing", "gemm", "last"]
    with pytest.raises(CheckpointError, match="there is nothing to quantise"):
        quantise(source, target, "int4", every)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_nobodys_logging_is_touched(tmp_path: Path) -> None:
    """The import of ONNX Runtime's quantiser calls logging.basicConfig; not when it is made here."""
    script = (
        "import logging, sys; from pathlib import Path; from sea_bake.exporting.onnx.quantising import quantise\n"
        "quantise(Path(sys.argv[1]), Path(sys.argv[2]), 'int4', ['edit'])\n"
        "print(logging.root.handlers, logging.root.level)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, by_hand(tmp_path), tmp_path / "out.onnx"], capture_output=True, text=True
    )
    assert ran.stdout.strip() == f"[] {logging.WARNING}", ran.stderr
    assert ran.stderr == ""


# --------------------------------------------------------------------------------------------------------- real weights


@dataclass(frozen=True)
class Real:
    """SmolLM2 with an l2 edit of 20 MLPs, exported with its variants.

    Attributes:
        logits: (kind, edited or not) -> logits of all texts [tokens, vocabulary]; "fp32", "int8", "int4".
        said: kind -> the record's own words.
    """

    folder: Path
    texts: list[list[int]]
    logits: dict[tuple[str, bool], np.ndarray]
    said: dict[str, Any]

    def kl(self, p: tuple[str, bool], q: tuple[str, bool]) -> float:
        return float(divergence(self.logits[p], self.logits[q]).mean())

    def effect(self, kind: str) -> np.ndarray:
        """What the edit changes at this precision."""
        return self.logits[kind, True] - self.logits[kind, False]


def decoder(graph: Path) -> Decoder:
    return Decoder({"graph": str(graph), "weights": None, "device": "cpu"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """One trace: the base at each precision is the same graph with its edit led past; no weight of it is another."""
    export = Path(
        shutil.copytree(real.l2() / "onnx", tmp_path_factory.mktemp("quantised") / "onnx", copy_function=os.link)
    )
    tokenizer = load_tokenizer(export)
    # None of which the edit was fitted on.
    texts = [list(encode(tokenizer, d.prompt, d.positive).ids) for d in builtin()[100:105]]
    record, logits = Artefact.open(export).onnx, {}
    for kind, name in {"fp32": "model.onnx", **FILES}.items():
        graph = export / "onnx" / name
        bare = graph.with_name(f"bare-{name}")
        bare.write_bytes(bypass(graph, record.sea_nodes))
        for path, edited in ((graph, True), (bare, False)):
            run = decoder(path)
            logits[kind, edited] = np.concatenate([forced(run, ids, len(ids)) for ids in texts])
    return Real(export, texts, logits, record.variants)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson, over all logits."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.slow
@pytest.mark.smollm2
def test_8_bits_stay_with_the_edit(world: Real) -> None:
    edited, base = ("fp32", True), ("fp32", False)
    price, distance = world.kl(edited, ("int8", True)), world.kl(base, ("int8", True))
    print(f"\nint8: {world.said['int8']['bytes'] / 1e6:.0f} MB, KL from fp32 {price:.4f}, from the base {distance:.4f}")
    assert price < distance
    assert correlation(world.effect("int8"), world.effect("fp32")) > 0.95  # half of the bits cost more than this
    assert world.kl(edited, ("int8", False)) > world.kl(base, ("int8", False))  # the control: the base is with the base


@pytest.mark.slow
@pytest.mark.smollm2
def test_at_4_bits_the_effect_survives(world: Real) -> None:
    """The bound is the promise: rounding moves a 135M model further than many edits do, and yet it is seen."""
    found = correlation(world.effect("int4"), world.effect("fp32"))
    price = world.kl(("fp32", True), ("int4", True))
    print(f"\nint4: {world.said['int4']['bytes'] / 1e6:.0f} MB, KL from fp32 {price:.4f}, effect {found:.3f}")
    assert found > 0.8
    # The controls, with the rounded base in the place of the rounded edited model: all that it changes is rounding.
    for other in ("fp32", "int8"):
        rounding = world.logits["int4", False] - world.logits[other, False]
        assert abs(correlation(rounding, world.effect("fp32"))) < 0.5


@pytest.mark.slow
@pytest.mark.smollm2
def test_size_and_distance_are_in_the_record(world: Real) -> None:
    for kind, name in FILES.items():
        said = world.said[kind]
        assert said["bytes"] == sum((world.folder / "onnx" / f).stat().st_size for f in (name, f"{name}_data"))
        assert said["kept"] == 40  # 20 layers, two products each
        # Other texts, as few: within a factor of two.
        assert 0.5 < said["distance"]["mean_kl"] / world.kl(("fp32", True), (kind, True)) < 2
    sizes = [world.said[kind]["bytes"] / world.said[kind]["bytes_before"] for kind in FILES]
    assert sizes[1] < sizes[0] < 0.55  # the embedding alone, which stays float, is 0.21


@pytest.mark.slow
@pytest.mark.smollm2
@KINDS
def test_a_real_variant_generates_with_its_cache(kind: str, world: Real) -> None:
    graph, tokenizer = world.folder / "onnx" / FILES[kind], load_tokenizer(world.folder)
    run, bare = decoder(graph), decoder(graph.with_name(f"bare-{graph.name}"))
    unlike = fluent = 0
    for prompt in ("Why is the sky blue?", "Do goldfish forget everything after a few seconds?", "Is glass a liquid?"):
        ids = list(encode(tokenizer, prompt).ids)
        told, base = (continued(d, [ids], np.ones((1, len(ids)), int), 24)[0][0].tolist() for d in (run, bare))
        print(f"\n{kind}: {tokenizer.decode(told)!r}")
        fluent += len(set(told)) > 8  # no stammer
        unlike += told != base
    assert unlike > 0
    assert fluent >= 2  # of three: near ties of eight bits turn with the last bit of the edit
    # Step by step as in one pass, but for activations that fall on the other side of a rounding: that is far less than
    # what rounding costs at all.
    text = world.texts[0]
    apart = divergence(forced(run, text, 8), cached(run, text, 8)).mean()
    assert apart < 0.5 * world.kl(("fp32", True), (kind, True))
