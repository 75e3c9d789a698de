"""Bases that are not plain checkpoints: a base and its PEFT adapter, and quantised weights.

The judge of a merge is PEFT's own ``merge_and_unload``; of an edit on top, the hooks on the living model.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
import transformers
from conftest import Workshop, load
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig

from sea_bake import Edit, bake, fit, verify
from sea_bake.baking import plan, unbake
from sea_bake.baking.open_base import opened
from sea_bake.edit import live
from sea_bake.errors import CheckpointError
from sea_bake.model.checkpoint import Checkpoint, MergedCheckpoint, merge
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.model.source import ModelSource

pytestmark = pytest.mark.usefixtures("every_processor_alike")
IDS = torch.randint(7, families.VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
# PEFT adds in float32 what is added here in float64 and rounded once: one or two roundings of weights up to 2 (2^-24
# each) apart. The factors drawn below move a weight by 0.1 or so.
MERGED, MOVED = 1e-6, 1e-2
# Hooks and artefact do the same operations on the same numbers; a fold rounds its weights, in float32, elsewhere.
SAME, FOLDED, SEEN = 1e-4, 1e-4, 5e-2


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits.float()


def gap(a: Tensor, b: Tensor) -> float:
    """max |a - b|; infinite when anything is NaN."""
    value = float((a.double() - b.double()).abs().max())
    return value if value == value else float("inf")


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(gap(a[name], b[name]) for name in a)


def edit_of(model: Path, **settings: Any) -> Edit:
    settings = {"layers": [1, 3], "K": 0.9, "neutral": "prompt", "merge": "sum", "budget": None, **settings}
    return fit(model, families.demonstrations(), **settings)


def assert_edited(artefact: Path, edit: Edit, base: Any, room: float) -> None:
    """The reloaded artefact is the hook-edited base, and not the base."""
    with live([edit], base):
        expected = logits(base)
    found = logits(load(artefact))
    assert gap(found, expected) <= room
    assert SEEN < gap(found, logits(base)) < float("inf")


# ------------------------------------------------------------------------------------------- a base and its adapter


def adapt(base: Path, folder: Path, config: Any = None, **settings: Any) -> Path:
    """A PEFT adapter of a checkpoint, its factors drawn at random, written by PEFT."""
    model = load(base)
    config = config or LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings})
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    for parameter in (p for name, p in adapted.named_parameters() if p.requires_grad or "modules_to_save" in name):
        parameter.data = torch.randn_like(parameter) * 0.2
    adapted.save_pretrained(folder)
    return folder


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ["q_proj", "o_proj", "down_proj"]}),
    "scaled by rank and pattern": (
        "llama",
        {
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "use_rslora": True,
            "rank_pattern": {"o_proj": 2, "layers.1.mlp.up_proj": 7},
            "alpha_pattern": {"down_proj": 3, "layers.2.self_attn.q_proj": 11},
            "layers_to_transform": [0, 1, 2],
        },
    ),
    "parts retrained": (
        "llama",
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "layers.3.mlp.up_proj"]},
    ),
    "Conv1D and biases": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "lora_bias": True}),
    "half precision": ("llama", {"target_modules": ["gate_proj", "down_proj"]}),
}


def dtype_of(kind: str) -> torch.dtype:
    return torch.bfloat16 if kind == "half precision" else torch.float32


def adapter_of(workshop: Workshop, kind: str) -> Path:
    """One of KINDS, on a sharded base. Not to be changed."""
    family, settings = KINDS[kind]

    def make() -> Path:
        base = workshop.base(family, shards=True, dtype=dtype_of(kind)) if kind == "half precision" else None
        base = base or workshop.base(family, shards=True)
        return adapt(base, workshop.folder / f"lora-{kind.replace(' ', '-')}", **settings)

    return workshop.once(("adapter", kind), make)


def by_peft(adapter: Path, dtype: torch.dtype = torch.float32) -> Any:
    base = json.loads((adapter / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_is_pefts_own(workshop: Workshop, tmp_path: Path, kind: str):
    """On disk, as a view of the disk, and in memory alike; and every tensor without an adapter is the base's."""
    adapter = adapter_of(workshop, kind)
    source = ModelSource.parse(adapter)
    base = Checkpoint.open(source.base().folder())
    before = {name: base.tensor(name).read() for name in base.weight_map}
    with opened(source, None) as seen:
        assert isinstance(seen.checkpoint, MergedCheckpoint)
        view = {name: seen.checkpoint.tensor(name).read() for name in base.weight_map}
        changed = set(seen.checkpoint.changes)
        corner = {n: seen.checkpoint.tensor(n).element((1,) * view[n].dim()) for n in changed}
    with opened(source, tmp_path / "out") as plain:
        folder = plain.checkpoint.folder
        disk = {name: plain.checkpoint.tensor(name).read() for name in base.weight_map}
        on_disk = load(folder).state_dict()
        for shard in base.shards:  # an untouched one is the base's own file
            touched = any(base.weight_map[name] == shard for name in changed)
            assert (folder / shard).samefile(base.folder / shard) != touched
    assert not list(tmp_path.iterdir())
    living = load_model(adapter)
    assert all(torch.equal(view[n], disk[n]) for n in before)
    assert all(torch.equal(living.state_dict()[n], on_disk[n]) for n in on_disk)
    assert all(torch.equal(before[n], disk[n]) for n in set(before) - changed)
    assert min(gap(before[n], disk[n]) for n in changed) > MOVED
    for name, value in corner.items():
        assert gap(torch.tensor(value), view[name][(1,) * view[name].dim()]) <= 2.0**-7 * float(view[name].abs().max())
    if kind != "half precision":
        assert furthest(on_disk, by_peft(adapter).state_dict()) <= MERGED
        return
    # PEFT's merge in float64, rounded once. The control: an update that was rounded before it is added.
    exact = by_peft(adapter, torch.float64).state_dict()
    assert all(torch.equal(exact[n].to(torch.bfloat16), on_disk[n]) for n in on_disk)
    twice = {n: before[n] + (exact[n] - before[n]).to(torch.bfloat16) for n in changed}
    assert not any(torch.equal(twice[n], on_disk[n]) for n in changed)
    wide = load_model(adapter, dtype="float32").state_dict()
    assert all(torch.equal(wide[n], on_disk[n].float()) for n in on_disk)  # what the merged checkpoint would give


def test_a_merge_that_skips_one_module_is_noticed(workshop: Workshop, tmp_path: Path):
    """The control of the comparison with PEFT; and of the counting: an adapter whose file lacks a factor is refused."""
    adapter = adapter_of(workshop, "plain")
    with opened(ModelSource.parse(adapter), None) as base:
        full = base.checkpoint
    skipped = dict(list(full.changes.items())[1:])
    (tmp_path / "skipped").mkdir()
    merge(replace(full, changes=skipped), tmp_path / "skipped")
    assert furthest(load(tmp_path / "skipped").state_dict(), by_peft(adapter).state_dict()) > MOVED
    (tmp_path / "full").mkdir()
    merge(full, tmp_path / "full")
    assert furthest(load(tmp_path / "full").state_dict(), by_peft(adapter).state_dict()) <= MERGED


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "Conv1D and biases"])
def test_an_edit_of_a_merged_base(workshop: Workshop, tmp_path: Path, kind: str):
    """Fitted, inserted and folded; what it edits is the merged model and not the bare base."""
    adapter = adapter_of(workshop, kind)
    edit = edit_of(adapter)
    assert edit.base.name == adapter.name
    model = load_model(adapter)
    assert_edited(bake(adapter, edit, tmp_path / "insert", how="insert").output, edit, model, SAME)
    report = bake(adapter, edit, tmp_path / "fold")
    assert report.how == "fold"
    assert_edited(report.output, edit, model, FOLDED)
    bare = load(ModelSource.parse(adapter).base().folder())
    with live([edit], bare, check=False):
        assert gap(logits(load(report.output)), logits(bare)) > SEEN


@pytest.mark.slow
def test_verify_proves_a_merged_base(workshop: Workshop, tmp_path: Path):
    """Found beside the artefact, as any base; the bare base instead fails the proof."""
    adapter = tiny.changeable(adapter_of(workshop, "plain"), tmp_path / "lora")
    edit = edit_of(adapter)
    artefact = bake(adapter, edit, tmp_path / "fold").output
    report = verify(artefact, prompts=["is the sun a star?"], max_new_tokens=4)
    assert report.passed, report.failures


def test_an_adapter_of_a_merged_base_is_refused(workshop: Workshop, tmp_path: Path):
    """It would need the merged model on disk; plan says so too, and what can be done instead."""
    adapter = adapter_of(workshop, "plain")
    edit = edit_of(adapter)
    with pytest.raises(CheckpointError, match=r"belong to the two merged.*--how fold"):
        bake(adapter, edit, tmp_path / "out", how="adapter")
    found = plan(adapter, [edit])
    assert (found.how, found.rank, found.rows[0]["adapter"]) == ("fold", None, False)
    bare = ModelSource.parse(adapter).base().folder()
    assert plan(bare, [edit_of(bare)]).rows[0]["adapter"]  # the control


def test_where_the_base_is_and_whose_tokenizer(workshop: Workshop, tmp_path: Path):
    """What the configuration says, or the folder of that name beside the adapter; its own tokenizer, if any."""
    source = adapter_of(workshop, "plain")
    adapter = tiny.changeable(source, tmp_path / "lora")
    assert ModelSource.parse(adapter).base().path == ModelSource.parse(source).base().path
    tiny.patch_json(adapter / "adapter_config.json", base_model_name_or_path="/gone/mine")
    with pytest.raises(CheckpointError, match=r"put its folder at .*mine, or correct base_model_name_or_path"):
        load_model(adapter)
    shutil.copytree(ModelSource.parse(source).base().folder(), tmp_path / "mine")
    (tmp_path / "mine" / "chat_template.jinja").write_text("{{ messages }}")
    assert ModelSource.parse(adapter).base().path == tmp_path / "mine"
    assert load_tokenizer(adapter).chat_template == "{{ messages }}"
    families.tokenizer(chat=True).save_pretrained(adapter)
    assert load_tokenizer(adapter).chat_template == families.CHAT_TEMPLATE
    with opened(ModelSource.parse(adapter), tmp_path / "out") as base:
        assert load_tokenizer(base.checkpoint.folder).chat_template == families.CHAT_TEMPLATE
        names = tiny.listing(base.checkpoint.folder)
    assert names == tiny.listing(tmp_path / "mine") - {"adapter_config.json"}
    tiny.patch_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="does not name the adapter's base"):
        load_model(adapter)


def set_config(**changes: Any) -> Callable[[Path], None]:
    return lambda adapter: tiny.patch_json(adapter / "adapter_config.json", **changes)


def set_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def act(adapter: Path) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, adapter / "adapter_model.safetensors")

    return act


def only_pickles(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def truncate(adapter: Path) -> None:
    data = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])


def two_in_one(adapter: Path) -> None:
    shutil.copytree(ModelSource.parse(adapter).base().folder(), adapter, dirs_exist_ok=True)


def base_in_base(adapter: Path) -> None:
    shutil.copytree(adapter, adapter.parent / "first")
    tiny.patch_json(adapter / "adapter_config.json", base_model_name_or_path="first")


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "DoRA": (set_config(use_dora=True), "use_dora"),
    "another kind": (set_config(peft_type="VERA"), "a VERA adapter, and only LoRA"),
    "experts": (set_config(target_parameters=["mlp.experts.down_proj"]), "target_parameters"),
    "trained tokens": (set_config(trainable_token_indices=[1, 2]), "trainable_token_indices"),
    "trained biases": (set_config(bias="all"), "(bias)"),
    "a changed base": (set_config(init_lora_weights="pissa"), "init_lora_weights=pissa"),
    "repeated layers": (set_config(layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
    "a setting of the future": (set_config(twisted=0.5), "twisted"),
    "configuration no JSON": (lambda a: (a / "adapter_config.json").write_text("{") and None, "cannot be read as JSON"),
    "other modules": (set_config(target_modules=["wq"]), "PEFT cannot load the adapter"),
    "one module less": (set_config(target_modules=["q_proj", "o_proj"]), "has no place"),
    "one module more": (set_config(target_modules=["q_proj", "o_proj", "down_proj", "v_proj"]), "lacks"),
    "another rank": (set_config(r=3), "should have the shape"),
    "a lost factor": (set_tensors(lambda t: t.pop(FIRST)), f"lacks {FIRST}"),
    "a foreign tensor": (set_tensors(lambda t: t.update({"base_model.model.extra": torch.ones(1)})), "has no place"),
    "a misshapen factor": (set_tensors(lambda t: t.update({FIRST: torch.ones(4, 9)})), "should have the shape"),
    "not a number": (set_tensors(lambda t: t[FIRST].fill_(float("nan"))), "takes the merged weight out of"),
    "pickles": (only_pickles, "pickles are never loaded"),
    "cut off": (truncate, "truncated"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "has no weights"),
    "an adapter on an adapter": (base_in_base, "itself an adapter"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_lora_of_this_base_is_refused(workshop: Workshop, tmp_path: Path, case: str):
    """By ``bake`` and by loading alike, in one clear paragraph, and nothing is left behind."""
    spoil, words = REFUSED[case]
    adapter = tiny.changeable(adapter_of(workshop, "plain"), tmp_path / "lora")
    spoil(adapter)
    edit = workshop.once("edit file", lambda: workshop.edit("llama").save(workshop.folder / "edit.safetensors"))
    with tiny.nothing_happens(tmp_path, adapter):
        tiny.refused(tiny.run("bake", adapter, edit, "-o", tmp_path / "out"), "CheckpointError", words)
        with pytest.raises(CheckpointError, match=re.escape(words)):
            load_model(adapter)


def test_a_model_and_an_adapter_in_one_folder_are_refused(workshop: Workshop, tmp_path: Path):
    adapter = tiny.changeable(adapter_of(workshop, "plain"), tmp_path / "lora")
    two_in_one(adapter)
    with pytest.raises(CheckpointError, match="both a model and an adapter"):
        ModelSource.parse(adapter)


@pytest.mark.slow
def test_adapters_that_peft_can_and_we_cannot_are_refused(workshop: Workshop, tmp_path: Path):
    """As PEFT itself writes them: of embeddings, of a tied head, another method, of a quantised base."""
    llama, tied = workshop.base("llama"), workshop.base("qwen2")
    cases = [
        (adapt(llama, tmp_path / "embeddings", target_modules=["embed_tokens"]), "only linears"),
        (adapt(tied, tmp_path / "tied", target_modules=["lm_head"]), "shares between input and output"),
        (adapt(tied, tmp_path / "saved", target_modules=["q_proj"], modules_to_save=["embed_tokens"]), "shares"),
        (adapt(llama, tmp_path / "ia3", IA3Config(task_type="CAUSAL_LM")), "a IA3 adapter"),
        (adapt(llama, tmp_path / "dora", target_modules=["q_proj"], use_dora=True), "use_dora"),
    ]
    quantised = tiny.changeable(adapter_of(workshop, "plain"), tmp_path / "on-four-bits")
    tiny.patch_json(quantised / "adapter_config.json", base_model_name_or_path=str(in_bits(workshop, "llama", 4)))
    cases.append((quantised, "merged into unquantised weights"))
    other = tiny.changeable(adapter_of(workshop, "plain"), tmp_path / "of-another")
    tiny.patch_json(other / "adapter_config.json", base_model_name_or_path=str(workshop.base("gpt2")))
    cases.append((other, "PEFT cannot load the adapter"))
    for adapter, words in cases:
        for attempt in (lambda a=adapter: load_model(a), lambda a=adapter: plan(a)):
            with pytest.raises(CheckpointError, match=words):
                attempt()


# --------------------------------------------------------------------------------------------------- quantised weights

BITS = {8: {"load_in_8bit": True}, 4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}


def in_bits(workshop: Workshop, family: str, bits: int) -> Path:
    """A checkpoint whose linears bitsandbytes has quantised, saved by transformers. Not to be changed."""

    def make() -> Path:
        folder = workshop.folder / f"{family}-in-{bits}-bits"
        options = {"device_map": "cpu", "quantization_config": BitsAndBytesConfig(**BITS[bits])}
        AutoModelForCausalLM.from_pretrained(workshop.base(family), **options).save_pretrained(folder)
        families.tokenizer().save_pretrained(folder)
        return folder

    return workshop.once(("bits", family, bits), make)


def in_fp8(workshop: Workshop) -> Path:
    """A Llama in FP8 with block scales, as DeepSeek's and Qwen's are published."""

    def make() -> Path:
        folder, block = shutil.copytree(workshop.base("llama"), workshop.folder / "llama-in-fp8"), 8
        tensors = load_file(folder / "model.safetensors")
        for name in [name for name in tensors if "_proj" in name]:
            weight = tensors[name]
            blocks = weight.view(len(weight) // block, block, weight.shape[1] // block, block)
            scale = blocks.abs().amax((1, 3)) / 448  # the largest float8_e4m3fn
            tensors[name] = (blocks / scale[:, None, :, None]).view(weight.shape).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = {"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"}
        tiny.patch_json(folder / "config.json", quantization_config=config)
        return Path(folder)

    return workshop.once("fp8", make)


def in_mxfp4(workshop: Workshop) -> Path:
    """A gpt-oss whose experts are blocks of 32 four-bit numbers with a scale, as it is published."""

    def make() -> Path:
        folder, size = workshop.folder / "gpt-oss-in-mxfp4", {"hidden_size": 64, "intermediate_size": 64}
        config = GptOssConfig(
            **{**families.COMMON, **size, "initializer_range": 0.1},
            num_key_value_heads=2,
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        for name in [name for name in tensors if name.endswith(("experts.down_proj", "experts.gate_up_proj"))]:
            experts, rows, columns = tensors.pop(name).shape
            shape = (experts, columns, rows // 32)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(122, 125, shape, dtype=torch.uint8)  # 2^-5 to 2^-3
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
        method = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
        tiny.patch_json(folder / "config.json", quantization_config=method)
        families.tokenizer().save_pretrained(folder)
        return folder

    return workshop.once("mxfp4", make)


QUANTISED: dict[str, Callable[[Workshop], Path]] = {
    "llama in 4 bits": lambda w: in_bits(w, "llama", 4),
    "llama in 8 bits": lambda w: in_bits(w, "llama", 8),
    "opt in 4 bits": lambda w: in_bits(w, "opt", 4),
    "opt in 8 bits": lambda w: in_bits(w, "opt", 8),
    "gpt2 in 4 bits": lambda w: in_bits(w, "gpt2", 4),
    "llama in fp8": in_fp8,
    "gpt-oss in mxfp4": in_mxfp4,
}


def stored(model: Any) -> dict[str, torch.dtype]:
    return {n: p.dtype for n, p in model.named_parameters() if ".sea." not in n}


@pytest.mark.slow
@pytest.mark.parametrize("source", QUANTISED)
def test_insert_works_on_quantised_weights(workshop: Workshop, tmp_path: Path, source: str):
    """``--how auto`` inserts; the base stays as it is stored, the edit in float32; OPT's mlp is a bare linear."""
    folder = QUANTISED[source](workshop)
    edit = edit_of(folder)
    report = bake(folder, edit, tmp_path / "out")
    assert report.how == "insert"
    assert "quantised" in report.why
    base, model = AutoModelForCausalLM.from_pretrained(folder), load(report.output)
    assert stored(model) == stored(base)
    narrow = {dtype for dtype in stored(model).values() if dtype in (torch.int8, torch.uint8)}
    assert len(narrow) == (1 if "bits" in source else 0)  # without a GPU, transformers dequantises FP8 and MXFP4
    assert {p.dtype for name, p in model.named_parameters() if ".sea." in name} == {torch.float32}
    assert len([name for name, _ in model.named_parameters() if ".sea." in name]) == 2 * len(edit.layers)
    # Hooks and artefact do the same on the same numbers, in bfloat16 (gpt-oss) up to two roundings of a logit.
    with live([edit], base.eval()):
        expected = logits(base)
    room = SAME if base.dtype == torch.float32 else 2.0**-7 * float(expected.abs().max())
    assert gap(logits(model), expected) <= room
    assert max(SEEN, 2 * room) < gap(logits(model), logits(base)) < float("inf")
    if "4 bits" in source:
        assert gap(logits(pickle.loads(pickle.dumps(model))), expected) <= room


def test_a_bare_linear_keeps_its_edit_when_it_is_quantised_on_loading(workshop: Workshop, tmp_path: Path):
    """OPT's fc2: the quantiser puts a linear of its own in its place. The control: without our care, it is noticed."""
    edit = workshop.edit("opt", "mlp", "sum")
    artefact = tiny.changeable(workshop.artefact("opt", "mlp", "sum"), tmp_path / "opt-artefact")
    for bits, setting in BITS.items():
        options = {"device_map": "cpu", "quantization_config": BitsAndBytesConfig(**setting)}
        base = AutoModelForCausalLM.from_pretrained(workshop.base("opt"), **options)
        with live([edit], base, check=False):
            expected = logits(base)
        model = AutoModelForCausalLM.from_pretrained(artefact, trust_remote_code=True, **options)
        assert gap(logits(model), expected) <= SAME
        assert gap(logits(model), logits(base)) > SEEN
        assert type(model.model.decoder.layers[1].fc2) is type(base.model.decoder.layers[1].fc2), bits
    code = (artefact / "modeling_sea.py").read_text("utf-8")
    assert "def set_submodule" in code
    careless = tiny.changeable(artefact, tmp_path / "careless")
    (careless / "modeling_sea.py").write_text(code.replace("def set_submodule", "def unused"))
    lost = AutoModelForCausalLM.from_pretrained(careless, trust_remote_code=True, **options)
    assert gap(logits(lost), logits(base)) <= SAME  # silently the base


def test_a_bare_linear_is_refused_where_the_quantiser_is_unknown(workshop: Workshop, tmp_path: Path):
    base = tiny.changeable(workshop.base("opt"), tmp_path / "opt")
    tiny.patch_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    tensors = load_file(base / "model.safetensors")
    groups = {
        name.replace(".weight", ".g_idx"): torch.zeros(4, dtype=torch.int32) for name in tensors if ".fc1.w" in name
    }
    save_file(tensors | groups, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"quantised \(gptq\).*fc2 itself.*--site attn or block"):
        bake(base, workshop.edit("opt", "mlp", "sum"), tmp_path / "out", how="insert")
    assert bake(base, workshop.edit("opt", "attn", "sum"), tmp_path / "out").how == "insert"  # the control


def renamed(tensors: dict[str, Tensor], *ends: str) -> dict[str, Tensor]:
    """Linears as a quantiser stores them: only the names and types matter, nobody computes with them."""
    found = {}
    for name, tensor in tensors.items():
        if "_proj.weight" in name:
            stem = name.removesuffix(".weight" if ends[0].startswith(".") else "")
            found |= {f"{stem}{end}": torch.zeros(4, dtype=torch.int32) for end in ends}
        else:
            found[name] = tensor
    return found


def narrowed(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.to(dtype) if "_proj" in name else t for name, t in tensors.items()}


SCHEMES: dict[str, tuple[dict[str, Any] | None, Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "gptq": ({"quant_method": "gptq"}, lambda t: renamed(t, ".qweight", ".qzeros", ".scales", ".g_idx"), "gptq"),
    "gptq unsaid": (None, lambda t: renamed(t, ".qweight", ".qzeros", ".scales", ".g_idx"), "gptq"),
    "awq": ({"quant_method": "awq"}, lambda t: renamed(t, ".qweight", ".qzeros", ".scales"), "awq"),
    "compressed": ({"quant_method": "compressed-tensors"}, lambda t: renamed(t, ".weight_packed"), "compressed"),
    "torchao": ({"quant_method": "torchao"}, lambda t: narrowed(t, torch.int8), "torchao"),
    "bitsandbytes of old": ({"load_in_4bit": True}, lambda t: narrowed(t, torch.uint8), "bitsandbytes"),
    "bitnet, which quantises as it goes": ({"quant_method": "bitnet"}, lambda t: t, "bitnet"),
    "of its cache alone": (
        {"quant_method": "compressed-tensors"},
        lambda t: t | {"model.layers.0.self_attn.k_scale": torch.ones(1)},
        "compressed",
    ),
    "fp8 unsaid": (
        None,
        lambda t: narrowed(t, torch.float8_e4m3fn),
        "fp8",
    ),
    "int8 unsaid": (None, lambda t: narrowed(t, torch.int8), "as int8"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_recognised(workshop: Workshop, tmp_path: Path, scheme: str):
    """By its configuration, or by its tensors where that says nothing: plan goes through, and fold says what to do."""
    config, change, words = SCHEMES[scheme]
    base = tiny.changeable(workshop.base("llama"), tmp_path / "base")
    tensors = change(load_file(base / "model.safetensors"))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    tiny.patch_json(base / "config.json", quantization_config=config)
    edit = workshop.edit("llama", "mlp", "sum")
    assert {row["fold"] for row in plan(base).rows} == {False}
    found = plan(base, [edit])
    assert found.how == "insert"
    assert "quantised weights" in found.why
    for how in ("fold", "adapter"):
        with pytest.raises(CheckpointError, match=rf"quantised weights \({words}.*quantised from.*--how insert"):
            bake(base, edit, tmp_path / "out", how=how)
    assert bake(base, edit, tmp_path / "out").how == "insert"
    assert plan(workshop.base("llama"), [edit]).how == "fold"  # the control


@pytest.mark.slow
@pytest.mark.parametrize("source", ["llama in 4 bits", "llama in fp8", "gpt-oss in mxfp4"])
def test_the_cure_in_the_message_works(workshop: Workshop, tmp_path: Path, source: str):
    """What the refusal says, run as it stands, gives a checkpoint that folds."""
    folder = QUANTISED[source](workshop)
    edit = edit_of(folder, site="attn")
    with pytest.raises(CheckpointError) as error:
        bake(folder, edit, tmp_path / "out", how="fold")
    cure = re.search(r"Or get plain weights back from it: (.*)\.$", str(error.value))
    assert cure is not None
    names = {name: getattr(transformers, name) for name in re.findall(r"\b[A-Z]\w+(?=[.(])", cure.group(1))}
    names |= {"SOURCE": str(folder), "OUT": str(tmp_path / "plain")}
    eval(cure.group(1), names)
    families.tokenizer().save_pretrained(tmp_path / "plain")
    plain = load(tmp_path / "plain")
    assert {p.dtype for p in plain.parameters()} <= {torch.float32, torch.bfloat16}
    room = SAME if plain.dtype == torch.float32 else 0.0
    assert gap(logits(plain), logits(AutoModelForCausalLM.from_pretrained(folder))) <= room
    edit = edit_of(tmp_path / "plain", site="attn")
    report = bake(tmp_path / "plain", edit, tmp_path / "out")
    assert report.how == "fold"
    with live([edit], plain):
        expected = logits(plain)
    room = FOLDED if plain.dtype == torch.float32 else 2.0**-5 * float(expected.abs().max())  # weights rounded again
    assert gap(logits(load(report.output)), expected) <= room


# --------------------------------------------------------------------- a quantisation that is named, and not there

LEFT_OVER: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes of old": {"load_in_8bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    "mxfp4, dequantised": {"quant_method": "mxfp4", "dequantize": True},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": "int8_weight_only"}},
    "a method of the future": {"quant_method": "brand_new"},
}


def left_over(base: Path, folder: Path, entry: dict[str, Any], part: str | None = None) -> Path:
    """A copy of a plain base whose config.json names a quantisation."""
    copy = tiny.changeable(base, folder)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    changed = {"quantization_config": entry} if part is None else {part: config[part] | {"quantization_config": entry}}
    tiny.patch_json(copy / "config.json", **changed)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT_OVER)
def test_a_quantisation_that_no_tensor_shows_is_none(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
):
    """Fitted, folded and inserted like the plain base, to the bit; what is left over is said, and not carried along."""
    plain, base = workshop.base("llama"), left_over(workshop.base("llama"), tmp_path / "base", LEFT_OVER[name])
    edit, expected = edit_of(base), edit_of(plain)
    (said,) = [record.message for record in caplog.records if record.name == "sea_bake"]
    assert "'base': config.json names a quantisation" in said
    assert "that no tensor shows: it is left over" in said
    for layer in edit.layers:
        assert torch.equal(edit.projectors[layer].positive, expected.projectors[layer].positive)
    assert plan(base, [edit]).how == plan(plain, [expected]).how == "fold"
    for how in ("fold", "insert"):
        report = bake(base, edit, tmp_path / how, how=how)
        assert "it is left over, and the weights are taken as they are" in report.why
        assert "quantization_config" not in json.loads((report.output / "config.json").read_text("utf-8"))
        assert_edited(report.output, edit, load(plain), SAME if how == "insert" else FOLDED)
        again = unbake(report.output, tmp_path / f"{how}-base", base=base)
        assert tiny.sha256(again.output / "config.json") == tiny.sha256(base / "config.json")  # the base as it was
    # An adapter is loaded on the base as it stands. The cure, followed:
    with pytest.raises(CheckpointError, match=r"take quantization_config out of its config.json first, or .* fold"):
        bake(base, edit, tmp_path / "adapter", how="adapter")
    tiny.patch_json(base / "config.json", quantization_config=None)
    assert bake(base, edit, tmp_path / "adapter", how="adapter").how == "adapter"
    assert "left over" not in bake(plain, edit, tmp_path / "clean").why  # the control


def test_what_is_left_over_in_the_text_part(workshop: Workshop, tmp_path: Path):
    """A wrapper names it for its decoder; an adapter of such a base is merged as into a plain one."""
    base = left_over(workshop.base("llava"), tmp_path / "base", LEFT_OVER["gptq"], "text_config")
    edit = edit_of(base, site="attn")
    for how in ("fold", "insert"):
        report = bake(base, edit, tmp_path / how, how=how)
        assert "gptq" not in (report.output / "config.json").read_text("utf-8")
        assert_edited(report.output, edit, load(workshop.base("llava")), SAME if how == "insert" else FOLDED)


def test_an_adapter_on_such_a_base(workshop: Workshop, tmp_path: Path):
    adapter = tiny.changeable(adapter_of(workshop, "plain"), tmp_path / "adapter")
    base = left_over(workshop.base("llama"), tmp_path / "base", LEFT_OVER["bitsandbytes"])
    tiny.patch_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    edit = edit_of(adapter)
    report = bake(adapter, edit, tmp_path / "out")
    assert report.how == "fold"
    assert "quantization_config" not in json.loads((report.output / "config.json").read_text("utf-8"))
    assert_edited(report.output, edit, load_model(adapter), FOLDED)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fold", "insert"])
def test_verify_proves_what_was_baked_of_one(workshop: Workshop, tmp_path: Path, how: str):
    base = left_over(workshop.base("llama"), tmp_path / "base", LEFT_OVER["bitsandbytes"])
    report = bake(base, edit_of(base), tmp_path / "out", how=how)
    assert verify(report.output, base=base).passed


def test_a_snapshot_in_the_hubs_cache_is_that_hub_id(tmp_path: Path) -> None:
    """Else an artefact would name a commit's hash as its base, and be found by nobody."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--owner--my-model" / "snapshots" / commit
    shutil.copytree(tiny.single(), place)
    for path in (place, f"{place}/"):
        found = ModelSource.parse(path)
        assert (found.name, found.path, found.revision) == ("owner/my-model", place, commit)
    for how in ("fold", "insert", "adapter"):
        edit = Edit.load(tiny.edit_file()).with_settings(merge="sum")
        record = bake(place, edit, tmp_path / how, how=how)
        assert (record.base, record.revision) == ("owner/my-model", commit)
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert (named["base_model_name_or_path"], named.get("revision")) == ("owner/my-model", commit)
    shutil.copytree(tiny.single(), other := tmp_path / "snapshots" / "models")  # the control
    assert ModelSource.parse(other).name == "models"
