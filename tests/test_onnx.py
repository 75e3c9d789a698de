"""ONNX exports of every family that can be exported, in ONNX Runtime with its cache; and what is refused, by name.

The graph is held against the hooks on the living base: with an empty cache, through the cache in steps of one and of
several tokens, and in a left-padded batch. Every proof has a control: the same graph with one SEA node led past.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import exports
import families
import numpy as np
import onnx
import onnx_ir
import pytest
import tiny
import torch
from conftest import Workshop
from safetensors.torch import save_file
from torch import Tensor

from sea_bake import Edit, bake
from sea_bake.artefact import Artefact
from sea_bake.artefact.names import EXPORT
from sea_bake.edit import live
from sea_bake.errors import FamilyError
from sea_bake.exporting.onnx import checking, export_onnx, finishing, matching
from sea_bake.verification.bypass import bypass
from sea_bake.verification.onnx_answers import Decoder

Setting = tuple[str, str, str]  # site, merge, feature function
# The families of the promise: a linear edit and one with a feature function each, so that every site, merge and
# feature function meets several families.
LISTED: dict[str, tuple[Setting, Setting]] = {
    "llama": (("mlp", "l2", "identity"), ("attn", "l2", "squared-exponential")),
    "mistral": (("attn", "sum", "identity"), ("block", "average", "tanh")),
    "qwen2": (("block", "l2", "identity"), ("mlp", "l2", "elu")),
    "qwen3": (("mlp", "average", "identity"), ("attn", "sum", "tanh")),
    "gemma3_text": (("attn", "l2", "identity"), ("mlp", "l2", "squared-exponential")),
    "phi3": (("block", "sum", "identity"), ("mlp", "sum", "signed-square-root")),
    "olmo2": (("mlp", "l2", "identity"), ("block", "l2", "elu")),
    "gpt2": (("attn", "average", "identity"), ("block", "sum", "squared-exponential")),
    "mixtral": (("mlp", "l2", "identity"), ("attn", "average", "asinh")),
}
# More of them, with two edits in one artefact: the first linear, the second not.
MORE: dict[str, tuple[Setting, Setting]] = {
    "smollm3": (("mlp", "l2", "identity"), ("attn", "l2", "tanh")),
    "gemma2": (("attn", "sum", "identity"), ("mlp", "l2", "elu")),
    "granite": (("block", "l2", "identity"), ("mlp", "l2", "squared-exponential")),
    "cohere2": (("mlp", "sum", "identity"), ("attn", "l2", "elu")),
    "stablelm": (("attn", "l2", "identity"), ("mlp", "average", "tanh")),
    "starcoder2": (("mlp", "l2", "identity"), ("mlp", "l2", "elu")),
    "gpt_neox": (("attn", "l2", "identity"), ("block", "l2", "tanh")),
    "opt": (("mlp", "l2", "identity"), ("attn", "l2", "signed-square-root")),
    "falcon": (("block", "sum", "identity"), ("mlp", "l2", "asinh")),
    "qwen2_moe": (("mlp", "l2", "identity"), ("attn", "l2", "tanh")),
    "qwen3_moe": (("mlp", "l2", "identity"), ("block", "l2", "elu")),
    "gpt_oss": (("attn", "l2", "identity"), ("mlp", "l2", "elu")),
}
# Family, its edits, and which of them are held against the hooks together: the others' nodes are led past meanwhile.
CASES = [
    *(pytest.param(f, both, ((0,), (1,)), id=f) for f, both in LISTED.items()),
    *(pytest.param(f, both, ((0, 1),), id=f) for f, both in MORE.items()),
]
# 12 tokens are more than the sliding windows (8); the rows are padded on the left to 12.
IDS = torch.randint(7, families.VOCAB, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.stack([(torch.arange(12) >= 12 - n).long() for n in (12, 9, 5)])
PIECES = (0, 7, 8, 9, 12)  # what goes in at once: 7 tokens on an empty cache, one, one, three


def opened(graph: Path | bytes, folder: Path, strength: float | None = None) -> Decoder:
    """A graph in ONNX Runtime, as ``verify`` opens it; a changed one has the weights of ``folder``."""
    if isinstance(graph, bytes):
        path = folder / "changed.onnx"
        path.write_bytes(graph)
        graph = path
    return Decoder({"graph": str(graph), "weights": str(folder / "onnx"), "device": "cpu"}, strength)


def through(decoder: Decoder, ids: Tensor = IDS, mask: Tensor = MASK) -> Tensor:
    """Logits at the real positions, by pieces through the cache."""
    pieces, cache = [], None
    for begin, end in itertools.pairwise(PIECES):
        logits, cache = decoder(ids[:, begin:end].numpy(), mask[:, :end].numpy(), cache)
        pieces.append(logits)
    return torch.from_numpy(np.concatenate(pieces, axis=1))[mask.bool()]


@torch.inference_mode()
def said(model: Any, edits: Sequence[Edit] = ()) -> Tensor:
    """The same of a living model under hooks: each row by itself, without padding, mask or cache."""
    with live(edits, model, check=False):
        rows = [ids[mask.bool()][None] for ids, mask in zip(IDS, MASK)]
        return torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in rows])


def gap(a: Tensor, b: Tensor) -> float:
    """max |a - b|; infinite when anything is NaN."""
    value = float((a.double() - b.double()).abs().max())
    return value if value == value else float("inf")


def led_past(graph: Path, name: str) -> bytes:
    """The graph without one node: what it is given first goes on in place of what it gives."""
    model = onnx.load(str(graph), load_external_data=False)
    (node,) = (n for n in model.graph.node if n.name == name)
    for other in model.graph.node:
        other.input[:] = [node.input[0] if i == node.output[0] else i for i in other.input]
    return model.SerializeToString()


def sums(graph: Path, names: list[str]) -> list[str]:
    """Of each SEALayer, the first sum of two activations: where a projection is added to what it is given or gave.

    (Not the last node, which rescales a vector that a norm may stand behind.)
    """
    model = onnx.load(str(graph), load_external_data=False).graph
    given = {tensor.name for tensor in model.initializer}
    found: dict[str, str] = {}
    for node in model.node:
        if node.name in names and node.op_type == "Add" and not given & set(node.input):
            found.setdefault(node.name.rpartition("/")[0], node.name)
    return list(found.values())


def site_of(name: str) -> str:
    """Of a SEA node of the families of ``LISTED``, whose modules have such names."""
    module = name.rpartition("/")[0].rpartition("/sea.")[2]
    return "block" if module.startswith("block.") else "attn" if "attn." in module else "mlp"


# Sliding and full attention, with and without rotary positions, dense and experts.
ALTERNATING = {"gemma2", "gemma3_text", "cohere2", "smollm3", "qwen3_moe", "gpt_oss"}


class Short(Workshop):
    """Models of few layers, since a trace takes its time by layers. The last two are edited: of two that are alike; of
    three where a family alternates kinds of layers, so that both kinds are edited, behind one that is not.
    """

    def base(self, family: str, **how: Any) -> Path:
        return super().base(family, layers=2 + (family in ALTERNATING), **how)

    def layers(self, family: str, site: str) -> list[int]:
        return [0, 1] if family not in ALTERNATING else [1, 2]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Short:
    return Short(tmp_path_factory.mktemp("short"))


def test_both_kinds_of_layer_are_exported(short: Short) -> None:
    for family, key in (("gemma3_text", "layer_types"), ("cohere2", "layer_types"), ("smollm3", "no_rope_layers")):
        assert len(set(getattr(short.model(family).config, key)[1:])) == 2
    assert {type(layer.mlp).__name__ for layer in short.model("qwen3_moe").model.layers[1:]} == {
        "Qwen3MoeMLP",
        "Qwen3MoeSparseMoeBlock",
    }
    for family in {*LISTED, *MORE} - ALTERNATING:
        config = families.config(family)
        assert len({*(getattr(config, "layer_types", None) or ["one"])}) == 1, family
        assert not getattr(config, "mlp_only_layers", None), family


@pytest.mark.slow
@pytest.mark.parametrize(("family", "settings", "parts"), CASES)
def test_every_family_answers_like_the_hooks(
    short: Short, tmp_path: Path, family: str, settings: tuple[Setting, Setting], parts: tuple[tuple[int, ...], ...]
) -> None:
    """Both edits in one trace; a linear one that is held to the hooks alone has a bound of its own, the narrow one."""
    edits = [short.edit(family, *setting) for setting in settings]
    art = bake(short.base(family), edits, tmp_path / "art", how="insert").output
    report = export_onnx(art, tmp_path / "out")
    for part in parts:
        graph, names = tmp_path / "out" / "onnx" / "model.onnx", report.sea_nodes
        if len(part) < len(edits):
            (site,) = {settings[i][0] for i in part}
            names = [name for name in names if site_of(name) == site]
            whole, graph = graph, tmp_path / "out" / "part.onnx"
            graph.write_bytes(bypass(whole, [name for name in report.sea_nodes if name not in names]))
        answers_like_the_hooks(graph, tmp_path / "out", names, short.model(family), [edits[i] for i in part])


def answers_like_the_hooks(graph: Path, folder: Path, names: list[str], model: Any, edits: list[Edit]) -> None:
    """A graph with the weights of ``folder`` against hooks; each SEALayer of ``names`` led past must be seen."""
    hooks, base = said(model, edits), said(model)
    # A float64 model under the same hooks (whose SEALayers stay float32) shows how far rounding alone carries the
    # logits here: 1e-5 for linear edits, up to 1e-2 behind a φ⁻¹ near the ends of its range. The graph rounds in
    # another order, so it may be several times as far off. Below 1e-4 nothing is asked.
    wide = copy.deepcopy(model).double()
    wide.set_experts_implementation("eager")  # the others know no float64
    exact = said(wide, edits)
    limit = max(1e-4, 10 * gap(hooks, exact))
    found = through(opened(graph, folder))
    assert gap(found, exact) <= limit
    assert gap(found, base) > 10 * limit
    controls = sums(graph, names)
    assert len(controls) == sum(len(edit.layers) for edit in edits)
    for node in controls:
        changed = gap(through(opened(led_past(graph, node), folder)), exact)
        assert changed > 2 * limit


# ------------------------------------------------------------------------------------------------ what is in the folder


def two_layers(feature: str = "identity", how: str = "insert") -> tuple[Any, Edit]:
    """The living base of ``exports``, in float32, and the edit of one of its artefacts."""
    folder = exports.artefact(how, feature)
    return tiny_model(exports.base()), Edit.load(folder / "sea" / "edit-0.safetensors")


def tiny_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def graph_of(folder: Path, name: str = "model") -> Any:
    return onnx.load(str(folder / "onnx" / f"{name}.onnx"), load_external_data=False)


def axes(value: Any) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.slow
def test_the_graph_has_the_names_that_runtimes_expect() -> None:
    graph = graph_of(exports.plain()).graph
    cache = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    inputs = {value.name: axes(value) for value in graph.input}
    assert list(inputs) == [
        "input_ids",
        "attention_mask",
        "position_ids",
        *(f"past_key_values.{name}" for name in cache),
    ]
    assert inputs["input_ids"] == inputs["position_ids"] == ["batch_size", "sequence_length"]
    assert inputs["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert inputs["past_key_values.1.value"] == ["batch_size", 2, "past_sequence_length", 8]
    assert [value.name for value in graph.output] == ["logits", *(f"present.{name}" for name in cache)]
    assert axes(graph.output[0]) == ["batch_size", "sequence_length", tiny.VOCAB]
    assert {(o.domain, o.version) for o in graph_of(exports.plain()).opset_import} == {("", 18)}


@pytest.mark.slow
def test_no_path_of_this_machine_is_in_any_file() -> None:
    """Not in the graph either, where torch leaves the place of every operation; the control is such a graph."""
    folder = exports.plain()
    telling = [str(tiny.root()), str(Path(torch.__file__).parents[1]), str(Path(__file__).parents[1]), ".py"]
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not [word for word in telling if word.encode() in data], path
    graph = folder / "onnx" / "model.onnx"
    model = onnx_ir.load(graph)
    for place in (model.graph, next(iter(model.graph)), model.graph.inputs[0], next(iter(model.graph)).outputs[0]):
        place.metadata_props["pkg.torch.onnx.stack_trace"] = f'File "{torch.__file__}"'
        place.doc_string = torch.__file__
    assert torch.__file__ in str(onnx_ir.to_proto(model))
    finishing.strip(model)
    assert torch.__file__ not in str(onnx_ir.to_proto(model))


@pytest.mark.slow
def test_every_sea_node_has_a_name_that_says_where_it_is() -> None:
    folder = exports.plain()
    names = Artefact.open(folder).onnx.sea_nodes
    assert len(names) == len(set(names)) == 2 * 8
    assert all(re.fullmatch(r"/model/layers\.[01]/sea\.mlp\.0/[A-Z]\w+_\d", name) for name in names)
    nodes = {node.name: node.op_type for node in graph_of(folder).graph.node}
    assert [nodes[name] for name in names] == [name.rpartition("/")[2].partition("_")[0] for name in names]
    others = [node for node in graph_of(folder).graph.node if node.name not in names]
    assert others
    assert not any("sea" in node.name for node in others)


@pytest.mark.slow
def test_the_folder_is_the_bases_to_its_readers() -> None:
    folder, base = exports.plain(), exports.base()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    told = config.pop("transformers.js_config")
    assert config == json.loads((base / "config.json").read_text("utf-8"))  # no guard, no auto_map, its own model_type
    graphs = ("model.onnx", "model_q4.onnx", "model_quantized.onnx")
    assert told == {"use_external_data_format": dict.fromkeys(graphs, 1)}
    assert tiny.listing(folder / "onnx") == {*graphs, *(f"{name}_data" for name in graphs)}
    for graph in graphs:  # the name of the data stands in the graph too
        stored = graph_of(folder, graph.removesuffix(".onnx")).graph.initializer
        assert {e.value for t in stored for e in t.external_data if e.key == "location"} == {f"{graph}_data"}
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    assert tokenizer["chat_template"] == tiny.CHAT_TEMPLATE
    assert (folder / "chat_template.jinja").read_text("utf-8") == tiny.CHAT_TEMPLATE
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    genai = json.loads((folder / "genai_config.json").read_text("utf-8"))
    decoder = genai["model"]["decoder"]
    assert (folder / decoder["filename"]).is_file()
    assert {key: decoder[key] for key in ("num_hidden_layers", "num_key_value_heads", "head_size", "hidden_size")} == {
        "num_hidden_layers": 2, "num_key_value_heads": 2, "head_size": 8, "hidden_size": tiny.HIDDEN
    }  # fmt: skip
    assert genai["model"]["eos_token_id"] == 2
    assert not [
        path for path in folder.rglob("*") if path.suffix in (".py", ".safetensors") and "sea" not in path.parts
    ]


@pytest.mark.slow
def test_the_record_says_what_it_was_made_of() -> None:
    folder, art = exports.plain(), exports.artefact()
    assert (Artefact.open(folder).kind, Artefact.open(art).kind) == ("onnx", "insert")
    record = json.loads((folder / EXPORT).read_text("utf-8"))
    assert (record["format"], record["base"], record["how"]) == ("onnx", exports.base().name, "insert")
    assert record["bake"] == json.loads((art / "sea" / "bake.json").read_text("utf-8"))
    assert record["edits"] == ["sea/edit-0.safetensors"]
    assert (folder / "sea" / "edit-0.safetensors").read_bytes() == (art / "sea" / "edit-0.safetensors").read_bytes()
    assert record["files"] == {f"onnx/{p.name}": p.stat().st_size for p in (folder / "onnx").iterdir()}
    assert record["strength"] is None
    assert 0 < record["error"] < 1e-5
    assert {"onnx", "torch", "transformers", "sea-bake"} <= set(record["versions"])
    for kind in ("int8", "int4"):
        assert record["variants"][kind]["distance"]["mean_kl"] > 0


@pytest.mark.slow
def test_quick_matching_rewrites_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph as it was traced, rewritten with and without it: the same to the byte, and another one than before."""
    from onnxscript.optimizer import optimize_ir
    from onnxscript.rewriter._matcher import SimplePatternMatcher

    model = families.tiny("llama", layers=1)
    inputs = {"input_ids": IDS, "attention_mask": MASK, "use_cache": False}
    with torch.no_grad():
        program = torch.onnx.export(model, (), kwargs=inputs, dynamo=True, optimize=False, verbose=False)
    assert program is not None
    traced = program.model_proto
    whole, calls = SimplePatternMatcher.match, []
    counted = lambda *a, **options: (calls.append(1), whole(*a, **options))[1]  # noqa: E731
    monkeypatch.setattr(SimplePatternMatcher, "match", counted)

    def rewritten(way: Any) -> tuple[bytes, int]:
        copied = onnx_ir.from_proto(traced)
        calls.clear()
        with way():
            optimize_ir(copied)
        return onnx_ir.to_proto(copied).SerializeToString(), len(calls)

    (slow, tried), (quick, left) = rewritten(contextlib.nullcontext), rewritten(matching.quick_matching)
    assert quick == slow != traced.SerializeToString()
    assert left < tried / 10
    assert SimplePatternMatcher.match is counted  # and afterwards it is onnxscript's again


# ------------------------------------------------------------------------------------------------------- ways to export


@pytest.mark.slow
def test_a_fold_is_a_plain_graph() -> None:
    folder = exports.export(exports.artefact("fold"), "onnx")
    model, edit = two_layers(how="fold")
    found = through(opened(folder / "onnx" / "model.onnx", folder))
    assert Artefact.open(folder).onnx.sea_nodes == []
    assert gap(found, said(model, [edit])) < 1e-4  # the weights were rounded once
    assert gap(found, said(model)) > 1e-2


@pytest.mark.slow
def test_the_strength_is_the_edits_alpha() -> None:
    """Half as strong is alpha = 0.5, none is the base; a runtime that does not know of it gets the edit."""
    folder, graph = exports.strong(), exports.strong() / "onnx" / "model.onnx"
    model, edit = two_layers()
    assert gap(through(opened(graph, folder)), said(model, [edit])) < 1e-4
    for strength in (0.0, 0.5, 1.0, -1.0):
        found = through(opened(graph, folder, strength))
        assert gap(found, said(model, [edit.with_settings(alpha=strength)])) < 1e-4
        assert gap(found, said(model, [edit.with_settings(alpha=strength + 0.5)])) > 1e-2  # the control
    assert Artefact.open(folder).onnx.strength == "optional"


@pytest.mark.slow
def test_half_precision_leaves_the_edit_in_float32(tmp_path: Path) -> None:
    """Also: what lies in an artefact as code is not run."""
    art = tiny.changeable(exports.artefact(feature="tanh"), tmp_path / "art")
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    (art / "modeling_sea.py").unlink()
    (art / "modeling_sea.py").write_text(trap)
    report = export_onnx(art, tmp_path / "out", dtype="fp16", opset=21)
    assert not (tmp_path / "sprung").exists()
    kinds = {}
    model = onnx_ir.load(tmp_path / "out" / "onnx" / "model_fp16.onnx")
    for node in model.graph:
        if node.name in report.sea_nodes:
            kinds.setdefault(node.op_type, set()).update(o.dtype.name for o in node.outputs)
    assert kinds["Tanh"] == kinds["MatMul"] == kinds["Atanh"] == kinds["Clip"] == {"FLOAT"}
    assert kinds["Cast"] == {"FLOAT", "FLOAT16"}  # in and out again
    assert {v.dtype.name for v in model.graph.inputs if "past" in v.name} == {"FLOAT16"}
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["transformers.js_config"] == {
        "use_external_data_format": {"model_fp16.onnx": 1},
        "kv_cache_dtype": {"fp16": "float16"},
    }
    base, edit = two_layers("tanh")
    hooks = said(base, [edit])
    found = through(opened(tmp_path / "out" / "onnx" / "model_fp16.onnx", tmp_path / "out"))
    assert gap(found, hooks) < 0.05 * float(hooks.abs().max()) < gap(found, said(base))


@pytest.mark.slow
def test_a_newer_opset_uses_its_operators(tmp_path: Path) -> None:
    report = export_onnx(exports.artefact(), tmp_path / "out", opset=23)
    kinds = {node.op_type for node in graph_of(tmp_path / "out").graph.node}
    assert {"Attention", "RMSNormalization"} <= kinds
    assert report.nodes < Artefact.open(exports.plain()).onnx.nodes
    model, edit = two_layers()
    assert gap(through(opened(tmp_path / "out" / "onnx" / "model.onnx", tmp_path / "out")), said(model, [edit])) < 1e-4


# ------------------------------------------------------------------------------------ a wrong graph is never written


@pytest.mark.slow
def test_a_graph_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    """The look that every export takes: the base is seen, and so is an edited model that lost its padding."""
    folder, (model, edit) = exports.plain(), two_layers()
    graph = folder / "onnx" / "model.onnx"
    with edit.live(model), torch.no_grad():
        asked = checking.probe(model)
        ids, mask = torch.tensor(asked.ids), torch.tensor(asked.mask)
        places = 2 * (mask.cumsum(-1) - 1).clamp_min(0)
        elsewhere = model(input_ids=ids, attention_mask=mask, position_ids=places).logits.numpy()
    assert checking.check(graph, asked, "LlamaForCausalLM") < 1e-5
    bare = checking.probe(model)
    unmasked = checking.Probe(asked.ids, np.ones_like(asked.mask), asked.logits)
    late = checking.Probe(asked.ids, asked.mask, elsewhere)
    for wrong in (bare, unmasked, late):
        with pytest.raises(FamilyError, match="does not answer like the model"):
            checking.check(graph, wrong, "LlamaForCausalLM")


@pytest.mark.slow
def test_an_edit_that_left_no_trace_is_noticed() -> None:
    names = Artefact.open(exports.plain()).onnx.sea_nodes
    finishing.check_sea_nodes(names, {0, 1}, "LlamaForCausalLM")
    with pytest.raises(FamilyError, match="layer 1 left no trace in the ONNX graph of LlamaForCausalLM"):
        finishing.check_sea_nodes([n for n in names if "layers.1/" not in n], {0, 1}, "LlamaForCausalLM")


# ------------------------------------------------------------------------------------------------------------ bad input


def refused(kind: str, words: str, *args: Any) -> None:
    tiny.refused(tiny.run("export", "onnx", *args), kind, words)


@pytest.mark.parametrize(
    ("family", "words"), [("t5", "it has an encoder"), ("llava", "reads images"), ("gemma3", "reads images")]
)
def test_families_that_are_no_plain_decoder(workshop: Workshop, tmp_path: Path, family: str, words: str) -> None:
    art = workshop.artefact(family, "block", "sum", "identity")
    name = type(workshop.model(family)).__name__
    with tiny.nothing_happens(tmp_path, art):
        tiny.refused(tiny.run("export", "onnx", art, "-o", tmp_path / "out"), "FamilyError", f"{name} cannot be", words)


def hybrid(folder: Path, config: Any) -> Path:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    return folder


def test_caches_that_are_more_than_keys_and_values(tmp_path: Path) -> None:
    from transformers import Lfm2Config, MambaConfig

    sizes = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    for config, words in (
        (MambaConfig(**sizes, state_size=4), "MambaForCausalLM cannot be exported to ONNX"),
        (
            Lfm2Config(**sizes, intermediate_size=32, num_key_value_heads=2, layer_types=["conv", "full_attention"]),
            "its cache is more than keys and values (conv)",
        ),
    ):
        base = hybrid(tmp_path / config.model_type, config)
        with tiny.nothing_happens(tmp_path, base):
            refused("FamilyError", words, base, "-o", tmp_path / "out", "--unedited")


SETTINGS: dict[str, tuple[list[str], str]] = {
    "opset too low": (["--opset", "17"], "opset 17 is out of range: use 18 to 23"),
    "opset too high": (["--opset", "40"], "opset 40 is out of range"),
    "dtype": (["--dtype", "bf16"], "use fp32 or fp16"),
    "variant": (["--quantize", "int2"], "use int8 or int4"),
    "variant of fp16": (["--dtype", "fp16", "--quantize", "int8"], "quantised from the fp32 graph"),
    "strength of a fold": (["--strength"], "bake with --how insert"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SETTINGS)
def test_settings_out_of_range(case: str, tmp_path: Path) -> None:
    art = exports.artefact("fold" if case == "strength of a fold" else "insert")
    options, words = SETTINGS[case]
    with tiny.nothing_happens(tmp_path, art):
        refused("SettingError", words, art, "-o", tmp_path / "out", *options)


def changed(**values: Any) -> Callable[[Path], None]:
    return lambda folder: tiny.patch_json(folder / "config.json", **values)


@functools.cache
def adapter() -> Path:
    edit = two_layers(how="fold")[1]
    return bake(exports.base(), edit, tiny.root() / "two-adapter", how="adapter").output


def in_gptq(folder: Path) -> None:
    """The mark of a quantiser in every layer, and its name in config.json."""
    changed(quantization_config={"quant_method": "gptq"})(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    marks = {name.replace(".weight", ".g_idx"): torch.zeros(4, dtype=torch.int32) for name in index["weight_map"]
             if "o_proj.weight" in name}  # fmt: skip
    save_file(marks, folder / "marks.safetensors", metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(marks, "marks.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


INPUTS: dict[str, tuple[Callable[[], Path], Callable[[Path], None], list[str], str]] = {
    "a base": (exports.base, lambda folder: None, [], "--unedited"),
    "an artefact as a base": (exports.artefact, lambda folder: None, ["--unedited"], "Drop --unedited"),
    "an export": (exports.plain, lambda folder: None, [], "is an export already"),
    "an adapter": (adapter, lambda folder: None, [], "--how fold"),
    "quantised": (exports.artefact, in_gptq, [], "is quantised (gptq)"),
    "quantised by its word alone": (
        exports.artefact, changed(quantization_config={"quant_method": "gptq"}), [],
        "names a quantisation (gptq) that no tensor shows",
    ),
    "no guard": (exports.artefact, changed(sea={}), [], "not as sea_bake writes it"),
    "another class": (exports.artefact, changed(architectures=["Elsewhere"]), [], "not as sea_bake writes it"),
    "no such class": (exports.artefact, changed(architectures=["SEANoneForCausalLM"]), [], "has no class None"),
    "code of its own": (
        exports.base, changed(auto_map={"AutoConfig": "x.Y"}, architectures=["Y"]), ["--unedited"], "custom code"
    ),
    "a shard less": (
        exports.artefact, lambda folder: (folder / "model-sea.safetensors").unlink(), [], "model-sea.safetensors"
    ),
    "nothing": (exports.artefact, shutil.rmtree, [], "is not an artefact"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case == "an export")) for case in INPUTS]
)
def test_inputs_that_cannot_be_exported(case: str, tmp_path: Path) -> None:
    make, spoil, options, words = INPUTS[case]
    source = tiny.changeable(make(), tmp_path / "source")
    spoil(source)
    with tiny.nothing_happens(tmp_path):
        refused("CheckpointError", words, source, "-o", tmp_path / "out", *options)


@pytest.mark.slow
def test_outputs_obey_the_house_rules(tmp_path: Path) -> None:
    art = tiny.changeable(exports.artefact(), tmp_path / "art")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    done = tiny.changeable(exports.plain(), tmp_path / "done")
    with tiny.nothing_happens(tmp_path, art, done, tmp_path / "mine"):
        for output, options, words in (
            (done, [], "pass --overwrite"),
            (tmp_path / "mine", ["--overwrite"], "remove it yourself"),
            (art / "new", [], "which is read: choose an output outside"),
            (art, ["--overwrite"], "is read, and lies in the output"),
        ):
            refused("OutputError", words, art, "-o", output, *options)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnx_ir", "onnxruntime"])
def test_a_missing_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    art = exports.artefact()
    for name in (package, *(name for name in sys.modules if name.startswith(f"{package}."))):
        monkeypatch.setitem(sys.modules, name, None)
    with tiny.nothing_happens(tmp_path, art):
        refused(
            "MissingExtraError",
            f"'{package}'. Install it with: pip install 'sea-bake[onnx]'",
            art,
            "-o",
            tmp_path / "o",
        )


def test_no_space_is_seen_before_anything_is_loaded(tmp_path: Path) -> None:
    """A base with more weights than the disk has bytes left (a sparse file)."""
    base = tiny.changeable(tiny.sharded(), tmp_path / "base")
    size = shutil.disk_usage(tmp_path).free // 4 * 4 + (10 << 30)
    header = json.dumps({"big.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with open(base / "model-big.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    index = base / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
    tiny.patch_json(index, weight_map={**weight_map, "big.weight": "model-big.safetensors"})
    with tiny.nothing_happens(tmp_path, base):
        refused("OutputError", "no space on disk", base, "-o", tmp_path / "out", "--unedited")


# ---------------------------------------------------------------------------------------------------------- interrupted


@pytest.fixture(scope="module")
def seconds() -> float:
    """How long a small export takes in the nursery, which has then imported all that it needs."""
    args = ("export", "onnx", exports.artefact(), "-o", tiny.root() / "nursery-export")
    ran, took = tiny.nursery().run(*args, warm=True)
    assert ran.code == 0, ran
    return took


def stopped(output: Path, delay: float, with_signal: int = signal.SIGKILL) -> tiny.Ran:
    """An export that was ended after ``delay`` seconds, or sooner where it had ended by then: this machine may be less
    busy than when it was timed.
    """
    for _ in range(5):
        ran = tiny.nursery().killed(delay, "export", "onnx", exports.artefact(), "-o", output, with_signal=with_signal)
        if ran.code != 0:
            return ran
        shutil.rmtree(output)
        delay /= 2
    raise AssertionError(f"an export that takes less than {delay} s")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_an_interrupted_export_leaves_nothing(seconds: float, share: float, tmp_path: Path) -> None:
    art, output = exports.artefact(), tmp_path / "out"
    with tiny.nothing_happens(tmp_path, art):
        ran = stopped(output, share * seconds, signal.SIGINT)
    assert (ran.code, ran.err.strip()) == (130, "interrupted: nothing half-written was left behind")


@pytest.mark.slow
def test_a_killed_export_leaves_no_output_and_a_full_disk_is_told(seconds: float, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ran = stopped(output, 0.5 * seconds)
    assert ran.code == -signal.SIGKILL
    assert not output.exists()
    assert all(name.startswith(".out.sea-bake-") for name in tiny.listing(tmp_path))
    ran, _ = tiny.nursery().run(
        "export", "onnx", exports.artefact(), "-o", output, limit=50_000
    )  # less than the weights
    tiny.refused(ran, "OutputError", "no space on disk while writing", "nothing was left behind")
    assert tiny.listing(tmp_path) == set()  # what the killed run left was swept


# ---------------------------------------------------------------------------------------------------- the door as it is


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", tiny.run("export", "onnx", "--help").out).split())
    for word in (
        "onnxruntime-genai",
        "ORTModelForCausalLM",
        "transformers.js",
        "sea-bake export onnx smollm2-truthful",
    ):
        assert word in text
    ran = tiny.run(
        "export", "onnx", exports.base(), "-o", tmp_path / "out", "--unedited", "--quantize", "int8", "--json"
    )
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    assert (report["how"], report["sea_nodes"], report["layers"]) == ("unedited", [], [])
    assert set(report["seconds"]) == {"load", "trace", "finish", "check", "int8"}
    assert set(report["variants"]["int8"]["weights"]) == {"8"}
    assert tiny.run("export", "onnx", exports.base(), "-o", tmp_path / "out", "--unedited").code == 2  # it is there
    found = through(opened(tmp_path / "out" / "onnx" / "model.onnx", tmp_path / "out"))
    assert gap(found, said(tiny_model(exports.base()))) < 1e-4
