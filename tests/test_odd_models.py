"""Models that are odd in their configuration or their layout: baked right, or refused before anything is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import doors
import families
import pytest
import test_discovery
import tiny
import torch
import transformers
from conftest import Workshop
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import sea_bake.modeling_sea as modeling_sea
from sea_bake import Edit, bake, collect, fit
from sea_bake.baking import shift_test
from sea_bake.baking.insert import class_name
from sea_bake.baking.open_base import open_folder
from sea_bake.errors import CheckpointError, NotExactError
from sea_bake.model import running
from sea_bake.model.checkpoint import LazyTensor
from sea_bake.model.source import ModelSource

MOE: dict[str, Any] = {**families.EXPERTS, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}
HEADS: dict[str, Any] = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
# Their model classes are other families', with other configuration classes.
BORROWED: dict[str, Callable[[], Any]] = {
    "internlm3": lambda: CONFIG_MAPPING["internlm3"](**families.GROUPED),
    "iquestcoder": lambda: CONFIG_MAPPING["iquestcoder"](**families.GROUPED),
    "sarvam_moe": lambda: CONFIG_MAPPING["sarvam_moe"](**families.GROUPED, **MOE, head_dim=16),
    "sarvam_mla": lambda: CONFIG_MAPPING["sarvam_mla"](
        **{**families.GROUPED, "num_key_value_heads": 4}, **MOE, **HEADS, q_lora_rank=None
    ),
}
MODULES = {
    "internlm3": ("self_attn", "mlp"),
    "iquestcoder": ("self_attn", "mlp"),
    "sarvam_moe": ("self_attn", "mlp"),
    "sarvam_mla": ("self_attn", "mlp"),
}


def fitted(base: Path, site: str) -> tuple[Any, Edit]:
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    options: dict[str, Any] = {"source": base.name, "site": site, "neutral": "prompt"}
    found = collect(model, families.tokenizer(), families.demonstrations(), **options)
    return model, fit(None, activations=found, layers=Workshop.LAYERS, K=0.9, merge="sum")


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def assert_baked_is_live(base: Path, site: str, folder: Path) -> None:
    """Inserted and folded, an edit answers as it does under hooks."""
    model, edit = fitted(base, site)
    with edit.live(model):
        expected = test_discovery.logits(model)
    for how in ("insert", "fold"):
        out = bake(base, edit, folder / how, how=how).output
        found = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=how == "insert").eval()
        assert largest(test_discovery.logits(found), expected) < 1e-5, how


@pytest.mark.slow
@pytest.mark.parametrize("name", BORROWED)
def test_a_model_class_of_another_family_is_inserted_and_folded(tmp_path: Path, name: str):
    base = test_discovery.made(BORROWED[name](), tmp_path / name)
    for site, module in zip(("attn", "mlp"), MODULES[name]):
        model, edit = fitted(base, site)
        before = test_discovery.logits(model)
        with edit.live(model):
            expected = test_discovery.logits(model)
        assert largest(before, expected) > 1e-3
        for how in ("insert", "fold"):
            folder = bake(base, edit, tmp_path / f"{site}-{how}", how=how).output
            for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
                found = auto.from_pretrained(folder, trust_remote_code=how == "insert").eval()
                if auto is transformers.AutoModelForCausalLM:
                    assert largest(test_discovery.logits(found), expected) < 1e-5, (site, how)
                edited = {n.split(".sea.")[0].split(".")[-1] for n, _ in found.named_parameters() if ".sea." in n}
                assert edited == ({module} if how == "insert" else set())
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{site}-insert", trust_remote_code=True)
        again.save_pretrained(tmp_path / f"{site}-again")
        saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{site}-again", trust_remote_code=True)
        assert largest(test_discovery.logits(saved.eval()), expected) < 1e-5


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ("ShieldGemma2Config", "Gemma3ForConditionalGeneration"),
        ("GlmgaConfig", "Glm46VForConditionalGeneration"),
        ("PPChart2TableConfig", "GotOcr2ForConditionalGeneration"),
        ("InternLM3Config", "LlamaForCausalLM"),
    ],
)
def test_the_class_of_an_insert_is_configured_as_the_auto_classes_ask(config: str, model: str):
    assert getattr(transformers, model).config_class.__name__ != config  # or there would be nothing to see

    assert getattr(modeling_sea, class_name(model, config)).config_class is getattr(modeling_sea, f"SEA{config}")
    plain = getattr(modeling_sea, f"SEA{model}")
    assert plain.config_class.__name__ == f"SEA{getattr(transformers, model).config_class.__name__}"


def test_a_bake_that_cannot_be_loaded_is_noticed_before_it_is_written(tmp_path: Path, monkeypatch: Any):
    base = test_discovery.made(BORROWED["internlm3"](), tmp_path / "base")
    edit = fitted(base, "attn")[1]
    monkeypatch.setattr(sys.modules["sea_bake.baking.insert"], "class_name", lambda name, _: f"SEA{name}")
    words = "is configured by a SEALlamaConfig"
    with tiny.nothing_happens(tmp_path, base), pytest.raises(CheckpointError, match=words):
        bake(base, edit, tmp_path / "no", how="insert")


@pytest.mark.parametrize("how", ["fold", "insert", "adapter"])
@pytest.mark.parametrize("lost", ["lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_a_base_that_lacks_a_tensor_outside_of_its_layers_is_refused(tmp_path: Path, lost: str, how: str):
    """transformers would make one up, and say so in passing."""
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    file = base / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if n != lost}, file, metadata={"format": "pt"})
    edit = Edit.load(tiny.edit_file()).with_settings(merge="sum")
    with tiny.nothing_happens(tmp_path, base), pytest.raises(CheckpointError, match=f"lacks {lost}"):
        bake(base, edit, tmp_path / "no", how=how)


@pytest.mark.slow
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("site", ["mlp", "attn"])
def test_embeddings_of_another_width(tmp_path: Path, site: str, norm_first: bool):
    """As OPT-350m: 512 wide, projected to 1024, with its norms behind."""
    config = transformers.OPTConfig(
        vocab_size=families.VOCAB,
        hidden_size=48,
        word_embed_proj_dim=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        ffn_dim=96,
        max_position_embeddings=256,
        init_std=families.SPREAD,
        do_layer_norm_before=norm_first,
    )
    base = test_discovery.made(config, tmp_path / "base")
    assert_baked_is_live(base, site, tmp_path)


@pytest.mark.parametrize(("name", "site"), [("falcon_h1", "attn:mamba"), ("sarvam_moe", "attn")])
def test_what_peft_cannot_adapt_is_refused_in_our_words(tmp_path: Path, name: str, site: str):
    base = test_discovery.made((BORROWED | test_discovery.UNKNOWN)[name](), tmp_path / name)
    edit = fitted(base, site)[1]
    with pytest.raises(NotExactError, match=r"PEFT takes no adapter.*Bake with --how fold"):
        bake(base, edit, tmp_path / "no", how="adapter")
    assert not (tmp_path / "no").exists()
    assert bake(base, edit, tmp_path / "fold", how="fold").how == "fold"  # the cure


# config.json with these changes -> what each command says; None: nothing is wrong for it
ODD: dict[str, tuple[dict[str, Any], str]] = {
    "a rope that nobody knows": ({"rope_parameters": {"rope_type": "own", "rope_theta": 1e4}}, "does not know 'own'"),
    "an activation that nobody knows": ({"hidden_act": "own"}, "does not know 'own'"),
    "heads that do not divide the width": ({"num_attention_heads": 5}, "not a multiple of the number of attention"),
    "no heads": ({"num_attention_heads": 0}, "modulo by zero"),
    "a width in words": ({"hidden_size": "32"}, "expected int"),
    "a part of another family": ({"text_config": {"hidden_size": 32}}, "text_config"),
    "a whole part of another family": (
        {"text_config": {"hidden_size": 32, "num_hidden_layers": 4, "model_type": "llama"}}, "text_config",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_a_configuration_that_cannot_be_is_refused_with_its_cause(tmp_path: Path, kind: str):
    changes, words = ODD[kind]
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    tiny.patch_json(base / "config.json", **changes)
    edit, demos = tiny.edit_file(), tiny.demonstrations_file()
    with tiny.nothing_happens(tmp_path, base):
        no = ("-o", tmp_path / "no")
        for args in (("plan", base), ("bake", base, edit, *no), ("fit", base, "-d", demos, *no)):
            tiny.refused(tiny.run(*args), "Error", words)


@pytest.mark.parametrize("neutral", ["prompt", "generate"])
def test_a_model_that_does_not_run_says_so(tmp_path: Path, neutral: str):
    """Three numbers of each head are turned, and turning takes pairs: transformers builds and loads it all the same."""
    config = transformers.StableLmConfig(**families.GROUPED, partial_rotary_factor=0.25)
    base = test_discovery.made(config, tmp_path / "base")
    with tiny.nothing_happens(tmp_path, base):
        ran = tiny.run(
            "fit", base, "-d", tiny.demonstrations_file(), "--neutral", neutral, "--alpha", 1, "-o", tmp_path / "no"
        )
        tiny.refused(
            ran, "CheckpointError", "cannot run this StableLmForCausalLM", "size of tensor a (3)", "config.json"
        )


@pytest.mark.parametrize(("room", "error"), [("sea_bake.a_hook", IndexError), ("theirs", CheckpointError)])
def test_an_error_out_of_a_hook_of_ours_is_not_said_to_be_transformers(room: str, error: type[Exception]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny.single())
    model.model.layers[1].mlp.register_forward_hook(eval("lambda *_: [][0]", {"__name__": room}))
    with pytest.raises(error), running.explained(model):
        model(input_ids=torch.zeros(1, 2, dtype=torch.long))


def test_a_hybrid_without_attention_keeps_nothing_to_share(tmp_path: Path):
    """Layers that are all convolutions: transformers runs them, though not with a cache."""
    config = transformers.Lfm2Config(**families.GROUPED, layer_types=["conv"] * 4, block_auto_adjust_ff_dim=False)
    base = test_discovery.made(config, tmp_path / "base")
    assert_baked_is_live(base, "mlp", tmp_path)


def test_shapes_that_are_not_the_configurations(tmp_path: Path):
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    tiny.patch_json(base / "config.json", intermediate_size=65)
    ran = tiny.run("fit", base, "-d", tiny.demonstrations_file(), "-o", tmp_path / "no")
    tiny.refused(ran, "CheckpointError", "mlp.down_proj.weight is (32, 64) and should be (32, 65)", "configuration")


# ------------------------------------------------------------------------------------------------ memory of measuring


def test_measuring_reads_each_tensor_once_and_no_expert_for_the_attention(workshop: Workshop, monkeypatch: Any):
    base = open_folder(workshop.base("mixtral"), ModelSource("mixtral"))
    read: list[LazyTensor] = []
    original = LazyTensor.read
    monkeypatch.setattr(LazyTensor, "read", lambda self: (read.append(self), original(self))[1])
    for site, has_experts in (("attn", False), ("mlp", True)):
        read.clear()
        shift_test.measure(base, [workshop.edit("mixtral", site, "sum", "identity")])
        offsets = [tensor.offset for tensor in read]
        assert all(offsets.count(offset) == 2 for offset in offsets)  # as it is, and turned
        experts = [n for n in base.layer_parts(1) if ".experts." in n]
        stacked = {base.checkpoint.tensor(f"{base.stem}.1.{n}").offset for n in experts}
        assert bool(stacked & {*offsets}) == has_experts


# In a process of its own: one that has freed as much before would take that again, unseen.
MEASURED = """
import re, sys
from pathlib import Path

from sea_bake.baking import shift_test
from sea_bake.baking.open_base import open_folder
from sea_bake.model.anatomy import Site
from sea_bake.model.source import ModelSource

def memory(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

base = open_folder(Path(sys.argv[1]), ModelSource("experts"))
shift_test.layer_output(base, 0)  # what libraries take once
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = memory("VmRSS")
shift_test._measure(base, Site.MLP, 0, lengths=False)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_measuring_a_layer_of_128_experts_takes_less_than_one_and_a_half_of_it(tmp_path: Path):
    config = transformers.Qwen3MoeConfig(
        vocab_size=tiny.VOCAB, hidden_size=512, moe_intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    base = open_folder(tmp_path, ModelSource("experts"))
    size = sum(base.checkpoint.tensor(f"{base.stem}.0.{part}").nbytes for part in base.layer_parts(0))
    assert size > 100e6

    ran = doors.forked([sys.executable, "-c", MEASURED, str(tmp_path)], {**os.environ})
    assert ran.returncode == 0, ran.stderr
    assert size < int(ran.stdout) < 1.5 * size
