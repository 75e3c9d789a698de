"""Folds and adapters: live = folded = adapted = merged = reloaded, and none of them is the base; for every family.

Exactly where ``plan`` says so, and refused everywhere else. The controls: a fold with one writer skipped, an adapter
with one tensor lost, must fail the same comparison.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from conftest import Workshop, fork_doors
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, LlamaForCausalLM

from sea_bake import Edit, bake, fit, verify
from sea_bake.baking import plan
from sea_bake.baking.linear import linear_edit
from sea_bake.edit import live
from sea_bake.errors import CheckpointError, NotExactError, SeaBakeError, WrongModelError
from sea_bake.model import one_layer
from sea_bake.model.anatomy import FAMILIES
from sea_bake.model.checkpoint import Checkpoint

ALL = [*families.CONFIGS, *families.WRAPPERS]
BIASED = {  # their writers have biases, which no LoRA can change
    *("gpt2", "gpt_neox", "opt", "starcoder2", "gpt_oss", "bloom", "bart", "mbart", "pegasus", "marian", "m2m_100"),
}
NORMED = {  # an RMSNorm stands behind attention and MLP
    *("gemma2", "gemma3_text", "olmo2", "gemma3", "gemma3n_text", "gemma4_text", "gemma4", "glm4v", "afmoe", "t5gemma"),
}
IDS = torch.randint(7, families.VOCAB, (3, 12), generator=torch.Generator().manual_seed(0))

every_family = pytest.mark.parametrize("family", ALL)
both_sites = pytest.mark.parametrize("site", ["mlp", "attn"])


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, use_cache=False, **more).logits


def load_plain(folder: Path, family: str, dtype: Any = "auto") -> Any:
    """As any user would, without trusting any code; nothing missing, unexpected or mismatched."""
    model, info = families.auto(family).from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|; infinite when anything is NaN, so that no comparison passes by accident."""
    value = float((a - b).abs().max() / b.abs().max())
    return value if value == value else float("inf")


# float32: W' is rounded once to 6e-8 of its entries, and M (W x) and (M W) x are summed in different orders over a few
# hundred terms: measured 2e-7 to 2e-6 of the largest logit, over 4 layers of random weights (gpt_oss most).
EQUAL = 1e-5
# Of the gated delta rule of Qwen3-Next and Qwen3.5, which sums over tokens in float32: measured 1.1e-5.
RECURRENT = 3e-5
VISIBLE = 100 * EQUAL  # an edit moves the logits by at least so much


def exact_settings(family: str) -> list[tuple[str, str]]:
    """(site, merge) that fold exactly, by what is known of the family, not by what the package says."""
    merges = ["sum", "average", *(["l2"] if family in NORMED else [])]
    return [(site, merge) for site in ("mlp", "attn") for merge in merges]


def met(family: str) -> list[tuple[str, str]]:
    """Those of them that a family is folded by: both sites and all its merges, "sum" at both; the others in turn, so
    that every (site, merge) meets half of the families.
    """
    odd = ALL.index(family) % 2
    left_out = {("mlp" if odd else "attn", "average"), ("attn" if odd else "mlp", "l2")}
    return [setting for setting in exact_settings(family) if setting not in left_out]


def cases(family: str) -> list[tuple[tuple[str, str], ...]]:
    """What is folded together: "sum" at both sites, but in ``families.DEEP``; all else of ``met`` alone."""
    both = (("mlp", "sum"), ("attn", "sum"))
    others = [(setting,) for setting in met(family) if setting not in both]
    return [*([(setting,) for setting in both] if family in families.DEEP else [both]), *others]


def test_the_settings_are_shared_out():
    for family in ALL:
        every, some = exact_settings(family), met(family)
        for i in range(2):
            assert {setting[i] for setting in some} == {setting[i] for setting in every}
    for group in (NORMED, {*ALL} - NORMED):
        for setting in exact_settings(next(iter(group))):
            assert sum(setting in met(family) for family in group) > len(group) // 4
        for family in group:
            assert ("attn", "sum") in met(family)
            assert ("mlp", "sum") in met(family)
            assert sorted(sum(cases(family), ())) == sorted(met(family))


# ------------------------------------------------------------------------------------------------- one equality


@pytest.mark.slow
@every_family
def test_live_is_folded_and_reloaded(workshop: Workshop, family: str):
    """What ``met`` names; a plain checkpoint, whose only changed tensors are those of the coverage report."""
    base, model = workshop.base(family), workshop.model(family)
    before = logits(model)
    for settings in cases(family):
        edits = [workshop.edit(family, *setting, "identity") for setting in settings]
        report = workshop.folded(family, *settings)
        folder = report.output
        with live(edits, model):
            expected = logits(model)
        folded = load_plain(folder, family)
        workshop.once(("weights of", folder), folded.state_dict)
        found = logits(folded)
        assert difference(expected, before) > VISIBLE, settings
        assert difference(found, expected) < EQUAL, settings
        for edit in edits if len(edits) > 1 else []:  # control: of two, neither could be left out
            with edit.live(model):
                assert difference(logits(model), expected) > VISIBLE, settings
        config, theirs = (json.loads((f / "config.json").read_text()) for f in (folder, base))
        assert (config["architectures"], config["model_type"]) == (theirs["architectures"], theirs["model_type"])
        assert not list(folder.glob("*.py"))
        assert changed_tensors(base, folder) == set(report.coverage["changed"])
        assert report.exact


def changed_tensors(base: Path, folder: Path) -> set[str]:
    before, after = Checkpoint.open(base), Checkpoint.open(folder)
    assert before.weight_map == after.weight_map
    same = [torch.equal(before.tensor(n).read(), after.tensor(n).read()) for n in before.weight_map]
    return {name for name, equal in zip(before.weight_map, same) if not equal}


@pytest.mark.slow
@every_family
def test_live_is_adapted_and_merged(workshop: Workshop, tmp_path: Path, family: str):
    base, model = workshop.base(family), workshop.model(family)
    before = logits(model)
    for settings in cases(family):
        edits = [workshop.edit(family, *setting, "identity") for setting in settings]
        folder = tmp_path / "-".join(map("-".join, settings))
        full = any(merge == "average" for _, merge in settings)
        if full or family in BIASED:
            for edit in edits:
                with pytest.raises(NotExactError, match="full rank" if full else "bias"):
                    bake(base, edit, folder, how="adapter")
                assert not folder.exists()
            continue
        report = bake(base, edits, folder, how="adapter")
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == report.details["rank"]
        assert not {"rank_pattern", "alpha_pattern", "use_rslora"} & set(config)
        with live(edits, model):
            expected = logits(model)
        adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder)
        equal = RECURRENT if family.startswith(("qwen3_next", "qwen3_5")) else EQUAL
        assert difference(logits(adapted), expected) < equal, settings
        with adapted.disable_adapter():
            assert difference(logits(adapted), before) == 0
        merged = adapted.merge_and_unload()
        assert difference(logits(merged), expected) < equal, settings
        fold = workshop.folded(family, *settings).output
        folded = workshop.once(("weights of", fold), lambda fold=fold: load_plain(fold, family).state_dict())
        for name, weight in merged.state_dict().items():  # the same weights, not only the same answers
            assert torch.allclose(weight, folded[name], rtol=0, atol=1e-6 * float(weight.abs().max())), name


@pytest.mark.slow
@pytest.mark.parametrize("family", families.third(1))
def test_a_fold_that_skips_one_writer_is_noticed(workshop: Workshop, tmp_path: Path, family: str):
    """The control of the equality: one of the folded tensors of each site, the base's again."""
    base, model, settings = workshop.base(family), workshop.model(family), (("mlp", "sum"), ("attn", "sum"))
    report = workshop.folded(family, *settings)
    fold = report.output
    with live([workshop.edit(family, *setting, "identity") for setting in settings], model):
        expected = logits(model)
    weights = [name for name in report.coverage["changed"] if not name.endswith("bias")]
    layers = {name: int(re.findall(r"\.(\d+)\.", name)[0]) for name in weights}
    having = workshop.edit(family, "attn", "sum", "identity").layers
    inside = {layer: f".{families.module(family, 'attn', layer)}." for layer in having}
    attention = [name for name in weights if inside.get(layers[name], "none") in name]
    rest = [name for name in weights if name not in attention]
    original, path = load_file(base / "model.safetensors"), fold / "model.safetensors"
    for skipped in (rest[0], rest[-1], attention[0], attention[-1]):
        tensors = load_file(path)
        tensors[skipped] = original[skipped]
        shutil.copytree(fold, tmp_path / "skipped", dirs_exist_ok=True)
        save_file(tensors, tmp_path / "skipped" / "model.safetensors", metadata={"format": "pt"})
        assert difference(logits(load_plain(tmp_path / "skipped", family)), expected) > 10 * EQUAL, skipped


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe"])
def test_an_adapter_that_lost_a_tensor_is_noticed(workshop: Workshop, tmp_path: Path, family: str):
    model, edit = workshop.model(family), workshop.edit(family, "mlp", "sum", "identity")
    bake(workshop.base(family), edit, tmp_path / "lora", how="adapter")
    with edit.live(model):
        expected = logits(model)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    for lost in load_file(path):
        tensors = load_file(path)
        shutil.copytree(tmp_path / "lora", tmp_path / "lost", dirs_exist_ok=True)
        save_file({**tensors, lost: tensors[lost] * 0}, tmp_path / "lost" / path.name, metadata={"format": "pt"})
        adapted = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lost")
        assert difference(logits(adapted), expected) > 10 * EQUAL, lost


# ------------------------------------------------------------------------------------------------- what is exact


@pytest.mark.slow
@every_family
def test_the_plan_is_what_baking_obeys(workshop: Workshop, tmp_path: Path, family: str):
    """Every site and merge: what the plan calls exact is baked so, all else is refused with the two ways out, as a fold
    or as an adapter by turns: every refusal in ``families.DEEP``, one of the layer's and one of the other sites' by
    turns in all others.
    """
    base, row = workshop.base(family), FAMILIES[families.text_type(family)]
    verdicts = {(r["site"], r["merge"]): r for r in plan(base).rows}
    expected = set(exact_settings(family))
    expected |= {(named, merge) for named, _ in row.named for site, merge in expected if site == "mlp"}
    heads = {("heads", "sum"), ("heads", "average")}  # the writer's input: a norm or bias behind it does not matter
    assert {key for key, r in verdicts.items() if r["fold"]} == expected | heads
    adapters = {key for key in expected if key[1] != "average" and family not in BIASED} | {("heads", "sum")}
    assert {key for key, r in verdicts.items() if r["adapter"]} == adapters
    for site, merge in refused(family, expected):
        edit = workshop.edit(family, site, merge, "identity")
        assert plan(base, [edit]).how == "insert"
        how = ("fold", "adapter")[(families.ALL.index(family) // 2 + len(site + merge)) % 2]
        with pytest.raises(NotExactError) as error:
            bake(base, edit, tmp_path / "no", how=how)
        for word in (f"site {site}", f"merge {merge}", f"family {row.model_type}", "--how insert"):
            assert word in str(error.value)
        assert not (tmp_path / "no").exists()
        assert ("--approximate" in str(error.value)) == (site != "block")


def refused(family: str, exact: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is asked of a family's bakes, of all that its plan calls not exact."""
    every = [(site, merge) for site in families.sites(family) for merge in ("sum", "l2", "average")]
    every = [setting for setting in every if setting not in exact]
    if family in families.DEEP:
        return every
    kinds = [[s for s in every if (s[0] == "block") == whole] for whole in (False, True)]
    return [kind[families.ALL.index(family) % len(kind)] for kind in kinds if kind]


@pytest.mark.parametrize("feature", ["squared-exponential", "asinh", "signed-square-root"])
@both_sites
def test_no_feature_function_folds(workshop: Workshop, tmp_path: Path, site: str, feature: str):
    for family in ("llama", "gemma3_text"):
        edit = workshop.edit(family, site, "sum", feature)
        assert plan(workshop.base(family), [edit]).how == "insert"
        with pytest.raises(NotExactError, match="not linear"):
            bake(workshop.base(family), edit, tmp_path / "no", how="fold")


@pytest.mark.parametrize(
    ("parts", "alpha"), [("both", 0.5), ("both", -1.0), ("positive", 1.0), ("negative", 1.0), ("positive", 0.3)]
)
@pytest.mark.parametrize("merge", ["sum", "average"])
def test_parts_and_strengths_fold_too(workshop: Workshop, tmp_path: Path, merge: str, parts: str, alpha: float):
    base, model = workshop.base("llama"), workshop.model("llama")
    edit = workshop.edit("llama", "attn", merge, "identity").with_settings(parts=parts, alpha=alpha)
    bake(base, edit, tmp_path / "fold", how="fold")
    with edit.live(model):
        expected = logits(model)
    assert difference(expected, logits(model)) > VISIBLE
    assert difference(logits(load_plain(tmp_path / "fold", "llama")), expected) < EQUAL
    low_rank = parts == "negative" or (parts == "both" and merge == "sum")
    assert plan(base, [edit]).rows[0]["adapter"] == low_rank


@pytest.mark.parametrize("family", sorted(NORMED - {*families.WRAPPERS}))
def test_l2_with_another_strength_is_not_linear(workshop: Workshop, tmp_path: Path, family: str):
    edit = workshop.edit(family, "mlp", "l2", "identity").with_settings(alpha=0.5)
    with pytest.raises(NotExactError, match="alpha"):
        bake(workshop.base(family), edit, tmp_path / "no", how="fold")


def test_auto_folds_where_it_is_exact_and_says_why(workshop: Workshop, tmp_path: Path):
    base = workshop.base("llama")
    folded = bake(base, workshop.edit("llama", "mlp", "sum", "identity"), tmp_path / "sum")
    inserted = bake(base, workshop.edit("llama", "mlp", "l2", "identity"), tmp_path / "l2")
    assert (folded.how, inserted.how) == ("fold", "insert")
    assert "linear" in folded.why
    assert "rescales each token" in inserted.why


@pytest.mark.parametrize("merge", ["sum", "average"])
@pytest.mark.parametrize("parts", ["both", "positive", "negative"])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_the_thin_matrix_is_the_dense_one(workshop: Workshop, merge: str, parts: str, alpha: float):
    """M against dense float64 projectors, and two in a row against the product."""
    edit = workshop.edit("llama", "mlp", merge, "identity").with_settings(parts=parts, alpha=alpha)

    def dense(edit: Edit, layer: int) -> Tensor:
        p, eye = edit.projectors[layer], torch.eye(48, dtype=torch.float64)
        positive = p.positive.double().T @ p.positive.double()
        negative = eye - p.negative.double().T @ p.negative.double()
        y = {"both": positive + negative, "positive": positive, "negative": negative}[edit.parts]
        y = y / 2 if edit.merge == "average" and edit.parts == "both" else y
        return eye + edit.alpha * (y - eye)

    W = torch.randn(48, 20, generator=torch.Generator().manual_seed(0)).double()
    first, second = dense(edit, 1), dense(edit.with_settings(alpha=0.7), 3)
    assert torch.allclose(linear_edit(edit, 1)(W), first @ W, rtol=0, atol=1e-12)
    both = linear_edit(edit, 1).then(linear_edit(edit.with_settings(alpha=0.7), 3))
    assert torch.allclose(both(W), second @ first @ W, rtol=0, atol=1e-12)
    assert not torch.allclose(both(W), first @ second @ W, rtol=0, atol=1e-3)  # control: order matters


# ------------------------------------------------------------------------------------------------- several edits


def pair(workshop: Workshop, family: str, *settings: tuple[str, str]) -> list[Edit]:
    """Edits that differ: the second has its two layers exchanged."""
    first, second = (workshop.edit(family, site, merge, "identity") for site, merge in settings)
    swapped = dict(zip(second.layers, (second.projectors[layer] for layer in second.layers[::-1])))
    return [first, replace(second, maps=swapped)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["insert", "fold", "adapter"])
@pytest.mark.parametrize("settings", [(("mlp", "sum"), ("mlp", "sum")), (("attn", "sum"), ("mlp", "sum"))])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text"])
def test_two_edits_are_both_there_in_their_order(
    workshop: Workshop, tmp_path: Path, family: str, settings: Any, how: str
):
    base, model, edits = workshop.base(family), workshop.model(family), pair(workshop, family, *settings)
    report = bake(base, edits, tmp_path / "art", how=how)
    assert report.sites == [site for site, _ in settings]
    with live(edits, model):
        expected = logits(model)
    if how == "adapter":
        found = logits(PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "art"))
    else:
        trusted = {"trust_remote_code": how == "insert"}
        found = logits(families.auto(family).from_pretrained(tmp_path / "art", **trusted).eval())
    assert difference(found, expected) < EQUAL
    for others in ([edits[0]], [edits[1]]):  # controls: neither alone
        with live(others, model):
            assert difference(found, logits(model)) > 10 * EQUAL
    if settings[0] == settings[1]:
        with live(edits[::-1], model):
            assert difference(found, logits(model)) > 2 * EQUAL  # nor in the other order


def test_one_inexact_edit_of_two_is_inserted(workshop: Workshop, tmp_path: Path):
    base, model = workshop.base("llama"), workshop.model("llama")
    edits = [workshop.edit("llama", "mlp", "sum", "identity"), workshop.edit("llama", "block", "l2", "tanh")]
    assert bake(base, edits, tmp_path / "art").how == "insert"
    with live(edits, model):
        expected = logits(model)
    found = logits(families.auto("llama").from_pretrained(tmp_path / "art", trust_remote_code=True).eval())
    assert difference(found, expected) < EQUAL


def test_adapters_are_switched_and_weighted(workshop: Workshop, tmp_path: Path):
    model, edits = workshop.model("llama"), pair(workshop, "llama", ("mlp", "sum"), ("attn", "sum"))
    for name, edit in zip(("truthful", "fair"), edits):
        bake(workshop.base("llama"), edit, tmp_path / name, how="adapter")
    adapted = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "truthful", adapter_name="truthful")
    adapted.load_adapter(tmp_path / "fair", adapter_name="fair")
    for name, edit in zip(("truthful", "fair"), edits):
        adapted.set_adapter(name)
        with edit.live(model):
            assert difference(logits(adapted), logits(model)) < EQUAL
    adapted.add_weighted_adapter(["truthful", "fair"], [0.5, 1.0], "mixture", combination_type="cat")
    adapted.set_adapter("mixture")
    with live([edits[0].with_settings(alpha=0.5), edits[1]], model):
        assert difference(logits(adapted), logits(model)) < EQUAL
    with live(edits, model):
        assert difference(logits(adapted), logits(model)) > 10 * EQUAL  # control: not at full strength


# ------------------------------------------------------------------------------------------------- bad input


def spoiled(base: Path, folder: Path, change: Any) -> Path:
    """A copy of a single-file checkpoint whose tensors went through ``change(tensors)``."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


EXPERT = "model.layers.3.block_sparse_moe.experts.2.w2.weight"
DOWN = "model.layers.3.mlp.down_proj.weight"
SPOILED: dict[str, tuple[str, Any, str]] = {
    "a missing expert": ("mixtral", lambda t: t.pop(EXPERT), f"lacks the tensor {EXPERT}"),
    "fp8": ("llama", lambda t: t.update({DOWN: t[DOWN].to(torch.float8_e4m3fn)}), "holds quantised weights"),
    "a writer that two layers share": ("llama", lambda t: t.pop(DOWN), "shares this tensor between layers"),
}


@pytest.mark.parametrize("how", ["fold", "adapter"])
@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_base_is_refused(workshop: Workshop, tmp_path: Path, name: str, how: str):
    family, change, words = SPOILED[name]
    edit = workshop.edit(family, "mlp", "sum", "identity")
    bake(workshop.base(family), edit, tmp_path / "fine", how=how)  # control
    base = spoiled(workshop.base(family), tmp_path / "spoiled", change)
    with pytest.raises(SeaBakeError, match=words):
        bake(base, edit, tmp_path / "no", how=how)
    assert not (tmp_path / "no").exists()


def test_a_writer_of_an_unexpected_shape_is_refused(workshop: Workshop, tmp_path: Path):
    edit, name = workshop.edit("gpt2", "mlp", "sum", "identity"), "transformer.h.3.mlp.c_proj.bias"
    sampled = {key: one for key, one in edit.base.rest.items() if key != "3.mlp.c_proj.bias"}
    assert len(sampled) == len(edit.base.rest) - 1
    edit = replace(edit, base=replace(edit.base, rest=sampled))  # whose samples already tell the two apart
    base = spoiled(workshop.base("gpt2"), tmp_path / "spoiled", lambda t: t.update({name: torch.zeros(50)}))
    with pytest.raises(CheckpointError, match=rf"other shapes .* {name} is \(50,\) and should be \(48,\)"):
        bake(base, edit, tmp_path / "no", how="fold")
    assert not (tmp_path / "no").exists()


def test_a_result_that_the_dtype_cannot_hold_is_refused(workshop: Workshop, tmp_path: Path):
    """float16 ends at 65504, and this edit makes everything a million times larger."""
    base = workshop.base("llama", dtype=torch.float16)
    edit = workshop.edit("llama", "mlp", "sum", "identity").with_settings(alpha=9e5)
    with pytest.raises(CheckpointError, match="does not fit into torch"):
        bake(base, edit, tmp_path / "no", how="fold")
    assert list(tmp_path.iterdir()) == []


def test_an_edit_too_weak_for_the_dtype_is_refused(workshop: Workshop, tmp_path: Path):
    """A fold that rounds to the base would be the base."""
    base = workshop.base("llama", dtype=torch.bfloat16)
    edit = workshop.edit("llama", "mlp", "sum", "identity").with_settings(alpha=1e-7)
    with pytest.raises(CheckpointError, match="too weak for the dtype"):
        bake(base, edit, tmp_path / "no", how="fold")
    assert list(tmp_path.iterdir()) == []


def test_an_edit_of_another_model_is_refused(workshop: Workshop, tmp_path: Path):
    for how in ("fold", "adapter"):
        with pytest.raises(WrongModelError):
            bake(workshop.base("mistral"), workshop.edit("llama", "mlp", "sum", "identity"), tmp_path / "no", how=how)


# ------------------------------------------------------------------------------------------------- on disk


def reloaded(folder: Path, how: str, family: str, model: Any) -> Any:
    """A bake as its users load it: an adapter onto a copy of its base."""
    if how == "adapter":
        return PeftModel.from_pretrained(copy.deepcopy(model), folder)
    return families.auto(family).from_pretrained(folder, trust_remote_code=how == "insert").eval()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fold", "adapter", "insert"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_fused_on_disk(workshop: Workshop, tmp_path: Path, family: str, how: str):
    """As some tools save them with transformers 5: all experts of a layer in one 3-D tensor, named as in memory."""
    model, base = workshop.model(family), tmp_path / "fused"
    shutil.copytree(workshop.base(family), base)
    save_file({n: t.clone() for n, t in model.state_dict().items()}, base / "model.safetensors", {"format": "pt"})
    assert Checkpoint.open(base).tensor("model.layers.3.mlp.experts.down_proj").dim() == 3
    edit = workshop.edit(family, "mlp", "sum", "identity")
    report = bake(base, edit, tmp_path / how, how=how)
    with edit.live(model):
        expected = logits(model)
    found = reloaded(tmp_path / how, how, family, model)
    assert difference(logits(found), expected) < EQUAL
    if how == "fold":
        assert "model.layers.3.mlp.experts.down_proj" in report.coverage["changed"]
        assert changed_tensors(base, tmp_path / how) == set(report.coverage["changed"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fold", "adapter", "insert"])
def test_experts_that_lie_the_other_way_on_disk(workshop: Workshop, tmp_path: Path, how: str):
    """As Qwen3-VL's are published: [experts, ff, d], where transformers keeps and saves [experts, d, ff]."""
    family = "qwen3_vl_moe"
    base = spoiled(
        workshop.base(family),
        tmp_path / "base",
        lambda t: t.update({n: x.transpose(1, 2).contiguous() for n, x in t.items() if ".experts." in n}),
    )
    model, edit = workshop.model(family), workshop.edit(family, "mlp", "sum", "identity")
    bake(base, edit, tmp_path / how, how=how)
    with edit.live(model):
        expected = logits(model)
    found = reloaded(tmp_path / how, how, family, model)
    assert difference(logits(found), expected) < EQUAL
    assert difference(logits(model), expected) > VISIBLE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_half_precision_is_rounded_once(workshop: Workshop, tmp_path: Path, family: str, dtype: torch.dtype):
    """Against dense float64. Working in float32 instead turns a tie in fewer than one entry of a thousand (measured:
    4e-5 of them in bfloat16); merging in the half precision itself, as a control, turns more than one in ten.
    """
    base, edit = workshop.base(family, dtype=dtype), workshop.edit(family, "mlp", "sum", "identity")
    report = bake(base, edit, tmp_path / "fold", how="fold")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "fold" / "model.safetensors")
    wrong = sloppy = total = 0
    for name, relative in report.coverage["changed"].items():
        W = before[name].double().T if family == "gpt2" and before[name].dim() == 2 else before[name].double()
        layer = int(name.split("layers." if "layers." in name else "h.")[1].split(".")[0])
        p = edit.projectors[layer]
        up, un = p.positive.double(), p.negative.double()
        M = torch.eye(48, dtype=torch.float64) + up.T @ up - un.T @ un
        expected, half = M @ W, (M.to(dtype) @ W.to(dtype))
        if W.shape != before[name].shape:
            expected, half = expected.T, half.T
        wrong += int((after[name] != expected.to(dtype)).sum())
        sloppy += int((half != expected.to(dtype)).sum())
        total += W.numel()
        found = float((after[name].double() - before[name].double()).norm() / before[name].double().norm())
        assert found == pytest.approx(relative, rel=1e-3)
    assert wrong < total / 1000
    assert sloppy > total / 10


def test_unedited_shards_are_linked_and_the_base_is_untouched(workshop: Workshop, tmp_path: Path):
    base, edit = workshop.base("llama", shards=True, chat=True), workshop.edit("llama", "mlp", "sum", "identity")
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in base.iterdir()}
    report = bake(base, edit, tmp_path / "fold", how="fold")
    touched = {Checkpoint.open(base).weight_map[name] for name in report.coverage["changed"]}
    shards = {p.name for p in base.glob("*.safetensors")}
    assert 0 < len(touched) < len(shards)
    for name in shards:
        ours, theirs = tmp_path / "fold" / name, base / name
        assert (ours.stat().st_ino == theirs.stat().st_ino) == (name not in touched)
        assert ours.stat().st_size == theirs.stat().st_size
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in base.iterdir()} == before
    for name in before.keys() - shards:  # configuration, tokenizer, index: byte for byte
        assert hashlib.sha256((tmp_path / "fold" / name).read_bytes()).hexdigest() == before[name]
    layers = Workshop.LAYERS
    assert report.coverage["unchanged_writers"] == [f"model.layers.{i}.self_attn.o_proj.weight" for i in layers]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fold", pytest.param("adapter", marks=pytest.mark.own_processes)])
def test_verify_proves_it_in_fresh_processes(
    workshop: Workshop, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
):
    base, edit = workshop.base("llama"), workshop.edit("llama", "mlp", "sum", "identity")
    folder = bake(base, edit, tmp_path / how, how=how).output
    report = verify(folder, base=base, max_new_tokens=4)
    assert report.passed, report.failures
    assert (report.how, report.verdict, report.dtype) == (how, "verified", "float32")
    file = folder / ("adapter_model.safetensors" if how == "adapter" else "model.safetensors")
    tensors = load_file(file)
    name = next(n for n in tensors if "layers.3.mlp.down_proj" in n)
    tensors[name] = tensors[name] * 1.02  # control: 2 % too strong in one layer
    save_file(tensors, file, metadata={"format": "pt"})
    fork_doors(monkeypatch)
    assert not verify(folder, base=base, max_new_tokens=4).passed


@pytest.mark.slow
def test_verify_of_half_precision_folds(workshop: Workshop, tmp_path: Path):
    base, edit = workshop.base("llama", dtype=torch.bfloat16), workshop.edit("llama", "mlp", "average", "identity")
    folder = bake(base, edit, tmp_path / "fold", how="fold").output
    report = verify(folder, base=base, max_new_tokens=4)
    assert report.passed, report.failures
    shutil.copyfile(base / "model.safetensors", folder / "model.safetensors")  # control: silently the base
    assert any("like the unedited base" in failure for failure in verify(folder, base=base, max_new_tokens=4).failures)


@pytest.mark.slow
def test_verify_of_a_half_precision_fold_of_every_layer(tmp_path: Path):
    """Each layer is rounded, and enlarges what the one before it rounded; a lost layer is more than that."""
    base = tmp_path / "base"
    tiny.new_llama(5).to(torch.bfloat16).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    edit = fit(base, tiny.demonstrations(), layers="all", neutral="prompt", K=0.9, **{**tiny.PAPER, "merge": "sum"})
    folder = bake(base, edit, tmp_path / "fold", how="fold").output
    report = verify(folder, base=base, max_new_tokens=4)
    assert report.passed, report.failures
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.down_proj.weight"
    tensors[name] = load_file(base / "model.safetensors")[name]  # control
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert any("logits differ" in failure for failure in verify(folder, base=base, max_new_tokens=4).failures)


# ------------------------------------------------------------------------------------------------- a real model


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_with_real_text(short_smollm2: Path, tmp_path: Path):
    """Most layers: fold, adapter, merged and insert answer like the hooks, in a process that trusts no code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sea_bake import collect
    from sea_bake.demonstrations import builtin

    smollm2 = short_smollm2
    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), load_plain(smollm2, "llama", torch.float32)
    saved = collect(model, tokenizer, builtin()[:16], source=smollm2.name, site="mlp", neutral="prompt")
    edit = fit(None, activations=saved, merge="sum")
    ids = tokenizer("Why is the sky so blue when the sun is low, and what do goldfish remember?", return_tensors="pt")

    @torch.inference_mode()
    def answer(model: Any) -> tuple[Tensor, list[int]]:
        text = model.generate(**ids, max_new_tokens=12, do_sample=False)
        return model(**ids).logits, text[0].tolist()

    with edit.live(model):
        expected, said = answer(model)
    before, _ = answer(model)
    assert difference(before, expected) > VISIBLE
    for how in ("fold", "adapter", "insert"):
        report = bake(smollm2, edit, tmp_path / how, how=how)
        if how == "adapter":
            found = PeftModel.from_pretrained(load_plain(smollm2, "llama", torch.float32), tmp_path / how)
            assert difference(answer(found)[0], expected) < EQUAL
            found = found.merge_and_unload()
        else:
            found = AutoModelForCausalLM.from_pretrained(tmp_path / how, trust_remote_code=how == "insert").eval()
        logits, text = answer(found)
        assert difference(logits, expected) < EQUAL, how
        assert text == said, how
        if how == "fold":
            assert changed_tensors(smollm2, tmp_path / how) == set(report.coverage["changed"])
            assert len(report.coverage["changed"]) == 2 * model.config.num_hidden_layers // 3
    script = (
        "import sys, transformers; m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "print(type(m).__name__, type(m).__module__, m.config.model_type, 'sea_bake' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script, tmp_path / "fold"], capture_output=True, text=True)
    assert ran.stdout.split() == ["LlamaForCausalLM", "transformers.models.llama.modeling_llama", "llama", "False"]


# ------------------------------------------------------------------------------------------- a model of one layer, made


def test_where_no_numbers_are_none_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a checkpoint lacks is random, and the same as where torch draws for every weight (the control)."""
    drawn: list[bool] = []
    reset = torch.nn.Linear.reset_parameters

    def counted(self: torch.nn.Linear) -> None:
        drawn.append(self.weight.is_meta)
        reset(self)

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", counted)
    state = {name: t for name, t in load_file(tiny.single() / "model.safetensors").items() if "o_proj" not in name}

    def made() -> dict[str, Tensor]:
        model, info = one_layer.load_state(LlamaForCausalLM, AutoConfig.from_pretrained(tiny.single()), state)
        assert any("o_proj" in name for name in info["missing_keys"])
        return dict(model.state_dict())

    ours = made()
    assert torch.nn.Linear.reset_parameters is counted
    assert not any(drawn)
    monkeypatch.setattr(one_layer, "_empty_ones_left", contextlib.nullcontext)
    theirs = made()
    assert any(drawn)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
