"""Bakes that somebody else made, proved without a record of ours: right ones pass, and every kind of wrong bake that is
known from the field is made here on purpose, and caught
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ggufs
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from sea_bake import Edit, verify
from sea_bake.errors import CheckpointError, SeaBakeError, VerificationError
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site
from sea_bake.model.fingerprint import BaseModel

LAYERS = (1, 2)
Weights = dict[str, Tensor]


@cache
def vectors(strength: float = 1.0) -> dict[int, Tensor]:
    """A direction for each edited layer, [d]: the heads are as wide as the stream, so no shape gives a mistake away."""
    made = torch.Generator().manual_seed(7)
    return {layer: strength * torch.randn(tiny.HIDDEN, generator=made) for layer in LAYERS}


@cache
def edit_of(kind: str, strength: float) -> Path:
    """``heads``, ``block``: a constant there. ``ablation-attn``, ``ablation-mlp``: r r^T taken out there."""
    path = tiny.root() / f"wrong-bakes-{kind}-{strength:g}.safetensors"
    base = BaseModel.of(AutoModelForCausalLM.from_pretrained(tiny.single()), tiny.single().name)
    if kind.startswith("ablation"):
        unit = {layer: v / v.norm() for layer, v in vectors().items()}
        maps = {layer: AffineMap(A=r[None], B=-r[:, None]) for layer, r in unit.items()}
        site = Site.parse(kind.partition("-")[2])
    else:
        maps = {layer: AffineMap(constant=v) for layer, v in vectors(strength).items()}
        site = Site.parse(kind)
    return Edit(maps, site, base, merge="sum").save(path)


def edits_of(kind: str, strength: float = 1.0) -> list[Path]:
    sites = ("ablation-attn", "ablation-mlp") if kind == "ablation" else (kind,)
    return [edit_of(site, strength) for site in sites]


# ------------------------------------------------------------------------- other people's tools, written independently


def writer(layer: int, which: str) -> str:
    return f"model.layers.{layer}." + {"o": "self_attn.o_proj", "down": "mlp.down_proj"}[which]


def granted(weights: Weights, config: dict[str, Any]) -> None:
    """All biases that a Llama can be given by its configuration, zero."""
    config |= {"attention_bias": True, "mlp_bias": True}
    for name in [n for n in weights if n.endswith("_proj.weight")]:
        weights[name.replace(".weight", ".bias")] = torch.zeros(len(weights[name]))


def with_biases(weights: Weights, config: dict[str, Any], which: str, added: dict[int, Tensor]) -> None:
    granted(weights, config)
    for layer, vector in added.items():
        weights[f"{writer(layer, which)}.bias"] += vector


def heads_right(weights: Weights, config: dict[str, Any]) -> None:
    added = {n: (weights[f"{writer(n, 'o')}.weight"].double() @ v.double()).float() for n, v in vectors().items()}
    with_biases(weights, config, "o", added)


def heads_as_they_are(weights: Weights, config: dict[str, Any]) -> None:
    """The head-space vector, written where its product with W_o belongs."""
    with_biases(weights, config, "o", vectors())


def block_right(weights: Weights, config: dict[str, Any]) -> None:
    with_biases(weights, config, "down", vectors())


def block_strong(weights: Weights, config: dict[str, Any]) -> None:
    with_biases(weights, config, "down", vectors(8.0))


def twice_per_layer(weights: Weights, config: dict[str, Any]) -> None:
    """The same vector at both writers of a layer, which both add to the stream."""
    with_biases(weights, config, "o", vectors())
    for layer, vector in vectors().items():
        weights[f"{writer(layer, 'down')}.bias"] += vector


def twice_and_strong(weights: Weights, config: dict[str, Any]) -> None:
    with_biases(weights, config, "o", vectors(8.0))
    for layer, vector in vectors(8.0).items():
        weights[f"{writer(layer, 'down')}.bias"] += vector


def smeared(weights: Weights, config: dict[str, Any]) -> None:
    """Without a bias: v spread over all columns, so that the shift is v times the sum of the inputs, for each token."""
    for layer, vector in vectors().items():
        weight = weights[f"{writer(layer, 'down')}.weight"]
        weight += vector[:, None] / weight.shape[1]


def one_layer_late(weights: Weights, config: dict[str, Any]) -> None:
    """``hidden_states[i]`` is the input of layer i, and was taken for its output."""
    with_biases(weights, config, "down", {layer + 1: v for layer, v in vectors().items()})


def one_layer_early(weights: Weights, config: dict[str, Any]) -> None:
    with_biases(weights, config, "down", {layer - 1: v for layer, v in vectors().items()})


def ablation_right(weights: Weights, config: dict[str, Any]) -> None:
    for layer, v in vectors().items():
        r = (v / v.norm()).double()
        for which in ("o", "down"):
            name = f"{writer(layer, which)}.weight"
            W = weights[name].double()
            weights[name] = (W - torch.outer(r, r @ W)).float()


def projection_as_a_vector(weights: Weights, config: dict[str, Any]) -> None:
    """A loader of additive vectors takes the direction that was to be taken out, and adds it."""
    with_biases(weights, config, "down", {layer: v / v.norm() for layer, v in vectors().items()})


def ablation_halved(weights: Weights, config: dict[str, Any]) -> None:
    """At one writer of two."""
    for layer, v in vectors().items():
        r, name = (v / v.norm()), f"{writer(layer, 'down')}.weight"
        weights[name] = weights[name] - torch.outer(r, r @ weights[name])


def base_alone(weights: Weights, config: dict[str, Any]) -> None:
    """Saved before the edit, or with a key that nothing reads."""


def base_with_empty_biases(weights: Weights, config: dict[str, Any]) -> None:
    granted(weights, config)


Tool = Callable[[Weights, dict[str, Any]], None]
RIGHT: dict[str, tuple[str, Tool]] = {
    "heads": ("heads", heads_right),
    "block": ("block", block_right),
    "ablation": ("ablation", ablation_right),
}
WRONG: dict[str, tuple[str, Tool]] = {
    "a head-space vector without W_o": ("heads", heads_as_they_are),
    "twice per layer": ("block", twice_per_layer),
    "smeared over columns": ("block", smeared),
    "one layer late": ("block", one_layer_late),
    "one layer early": ("block", one_layer_early),
    "a projection added as a vector": ("ablation", projection_as_a_vector),
    "at one writer of two": ("ablation", ablation_halved),
    "silently the base, of a constant": ("block", base_alone),
    "silently the base, with empty biases": ("heads", base_with_empty_biases),
    "silently the base, of a projection": ("ablation", base_alone),
}


def merged(tool: Tool, folder: Path, dtype: torch.dtype = torch.float32, base: Path | None = None) -> Path:
    """What such a tool leaves: a plain checkpoint, and no word of sea_bake in it."""
    shutil.copytree(base or tiny.single(), folder)
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text("utf-8"))
    weights = {name: tensor.float() for name, tensor in weights.items()}
    tool(weights, config)
    config["dtype"] = str(dtype).removeprefix("torch.")
    weights = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def proved(model: Path, kind: str, **more: Any) -> Any:
    return verify(model, **{"base": tiny.single(), "edit": edits_of(kind), "max_new_tokens": 6, **more})


# --------------------------------------------------------------------------------------------------------- what is held


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_bake_by_other_tools_is_verified(name: str, tmp_path: Path) -> None:
    """The control of all below. Nothing is written into a stranger's folder."""
    kind, tool = RIGHT[name]
    model = merged(tool, tmp_path / "model")
    before = tiny.snapshot(model)
    found = proved(model, kind)
    assert found.passed, found.failures
    assert (found.verdict, found.how, found.artefact, found.files) == ("verified", "checkpoint", "model", {})
    assert tiny.snapshot(model) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_bake_of_the_field_is_caught(name: str, tmp_path: Path) -> None:
    kind, tool = WRONG[name]
    found = proved(merged(tool, tmp_path / "model"), kind)
    assert not found.passed
    assert any("logits differ from the hook-edited base" in failure for failure in found.failures)
    assert any("unedited base" in failure for failure in found.failures) == name.startswith("silently")
    assert "points where the edit's change does" in found.failures[-1]
    assert not any("artefact" in failure or "record" in failure for failure in found.failures)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_too(dtype: torch.dtype, tmp_path: Path) -> None:
    """Base and bakes of the same dtype, an edit that is stronger than its rounding."""
    base = merged(base_alone, tmp_path / "single-0", dtype)
    settings = {"base": base, "edit": edits_of("block", 8.0)}
    right, wrong = (
        proved(merged(tool, tmp_path / tool.__name__, dtype, base), "block", **settings)
        for tool in (block_strong, twice_and_strong)
    )
    assert right.passed, right.failures
    assert not wrong.passed
    assert right.tolerance == wrong.tolerance > 1e-3


@pytest.mark.slow
def test_the_command_line_says_it_with_its_exit_code(tmp_path: Path) -> None:
    """As the front page prints it; ``--json`` too. Without base and edit the cure is named."""
    right, wrong = (merged(tool, tmp_path / tool.__name__) for tool in (block_right, one_layer_late))
    (edit,) = edits_of("block")
    told = ("--base", tiny.single(), "--edit", edit, "--max-new-tokens", 4)
    ran = tiny.run("verify", right, *told)
    assert (ran.code, "verified: equal to the hook-edited base" in ran.out) == (0, True)
    ran = tiny.run("verify", wrong, *told, "--json")
    data = json.loads(ran.out)
    assert (ran.code, data["verdict"], data["how"]) == (1, "NOT verified", "checkpoint")
    nothing = Edit.load(edit).with_settings(alpha=0.0).save(tmp_path / "nothing.safetensors")
    for other, words in ((nothing, "its strength alpha is 0"), (tmp_path, "is a folder, and no edit file")):
        ran = tiny.run("verify", right, "--base", tiny.single(), "--edit", other)
        tiny.refused(ran, "EditError", words)
    for missing in ((), told[:2], told[2:]):
        ran = tiny.run("verify", right, *missing)
        tiny.refused(ran, "CheckpointError", "is not an artefact of sea_bake", "name both (--base, --edit)")


# -------------------------------------------------------------------------------------------------- adapters and GGUFs


def lora(folder: Path, sign: float) -> Path:
    """Directional ablation of the attention, as a rank-1 LoRA by PEFT itself."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(tiny.single())
    config = LoraConfig(r=1, lora_alpha=1, target_modules=["o_proj"], layers_to_transform=list(LAYERS))
    adapted = get_peft_model(model, config)
    for layer, v in vectors().items():
        target = adapted.base_model.model.model.layers[layer].self_attn.o_proj
        r = v / v.norm()
        with torch.no_grad():
            target.lora_A["default"].weight.copy_((r @ target.base_layer.weight)[None])
            target.lora_B["default"].weight.copy_(sign * r[:, None])
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_an_adapter_of_somebody_elses(tmp_path: Path) -> None:
    right, wrong = lora(tmp_path / "right", -1.0), lora(tmp_path / "wrong", 1.0)
    found = proved(right, "ablation-attn")
    assert found.passed, found.failures
    assert found.how == "adapter"
    assert not proved(wrong, "ablation-attn").passed
    config = right / "adapter_config.json"
    tiny.patch_json(config, megatron_config={"tensor_model_parallel_size": 1}, megatron_core="os")
    with pytest.raises(CheckpointError, match="more than a plain LoRA"):  # PEFT would import that module
        proved(right, "ablation-attn")


@pytest.mark.slow
def test_a_gguf_of_somebody_elses(tmp_path: Path) -> None:
    """In float32, on a base that is a GGUF itself. Biases that transformers' reader drops are no base for a verdict."""
    base = ggufs.single()
    model = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name)
    fingerprint = BaseModel.of(model, base.name)
    edits = []
    for i, path in enumerate(edits_of("ablation")):
        edit = Edit.load(path)
        edits.append(Edit(edit.maps, edit.site, fingerprint, merge="sum").save(tmp_path / f"edit-{i}.safetensors"))
    found = {}
    for tool in (ablation_right, base_alone, ablation_halved):
        file = ggufs.llama(tmp_path / f"{tool.__name__}.gguf", merged(tool, tmp_path / tool.__name__))
        found[tool.__name__] = verify(file, base=base, edit=edits, max_new_tokens=4)
    assert found["ablation_right"].passed, found["ablation_right"].failures
    assert found["ablation_right"].how == "gguf"
    assert not found["base_alone"].passed
    assert not found["ablation_halved"].passed
    biased = ggufs.llama(tmp_path / "biased.gguf", merged(block_right, tmp_path / "biased"))
    with pytest.raises(VerificationError, match="biases, and transformers reads"):
        verify(biased, base=base, edit=edits, max_new_tokens=4)


@pytest.mark.slow
def test_a_quantised_gguf_is_refused(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "q.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    values = gguf.quants.quantize(torch.ones(4, 32).numpy(), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_output.weight", values, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(VerificationError, match=r"is quantised \(Q8_0\)"):
        proved(path, "block")


# ------------------------------------------------------------------------------------------------------ what is refused


def other(folder: Path, **changes: Any) -> Path:
    return tiny.write_llama(folder, **changes)


def without_weights(folder: Path) -> Path:
    merged(base_alone, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def of_custom_code(folder: Path) -> Path:
    merged(base_alone, folder)
    told = {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    tiny.patch_json(folder / "config.json", architectures=["MineForCausalLM"], auto_map=told)
    (folder / "modeling_mine.py").write_text("raise SystemExit('it was run')")
    return folder


def quantised(folder: Path) -> Path:
    merged(base_alone, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] = torch.ones(3, 3, dtype=torch.int8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tiny.patch_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    return folder


def of_another_tokenizer(folder: Path) -> Path:
    """Two letters have changed places."""
    merged(base_alone, folder)
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    words = data["model"]["vocab"]
    words["e"], words["t"] = words["t"], words["e"]
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "another width": (lambda folder: other(folder, hidden_size=48), "48 width, and the base has 32"),
    "another depth": (lambda folder: other(folder, num_hidden_layers=5), "5 layers, and the base has 4"),
    "another vocabulary": (lambda folder: other(folder, vocab_size=600), "600 tokens in its vocabulary"),
    "another tokenizer": (of_another_tokenizer, "the model's tokenizer does not encode like the base's"),
    "pickles alone": (without_weights, "pytorch_model.bin"),
    "code of its own": (of_custom_code, "no code of somebody else's"),
    "quantised": (quantised, "is quantised"),
    "nothing there": (lambda folder: folder, "no such model|neither a folder|did not give it"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_the_edited_base_is_refused(name: str, tmp_path: Path) -> None:
    """Before any model is loaded, in one clear sentence. The control: the same folder without the flaw is judged."""
    make, says = REFUSED[name]
    with pytest.raises(SeaBakeError, match=says) as error:
        proved(make(tmp_path / "model"), "block")
    assert "artefact's" not in str(error.value)


@pytest.mark.slow
def test_a_checkpoint_without_a_tokenizer_is_given_its_bases(tmp_path: Path) -> None:
    model = merged(block_right, tmp_path / "model")
    for path in model.glob("*token*"):
        path.unlink()
    assert proved(model, "block").passed
    assert LlamaConfig.from_pretrained(model).attention_bias


@pytest.mark.slow
def test_the_edit_has_to_belong_to_the_base_that_is_named(tmp_path: Path) -> None:
    model = merged(block_right, tmp_path / "model")
    with pytest.raises(VerificationError, match="built like 'single-0', but its weights differ"):
        proved(model, "block", base=tiny.single(seed=1))
