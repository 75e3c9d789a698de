"""Edits of other tools: what is imported answers as under the tool itself, layer for layer, and bad files are refused.

The tools' formulas are written a second time in ``foreign.py``; concept-erasure and PEFT run themselves, llama.cpp in
``test_control_vectors.py``, and repeng in ``scripts/check_repeng``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import tiny
import torch
from conftest import Workshop
from foreign import TOOLS

from sea_bake import Edit, bake, import_edit, verify
from sea_bake.errors import SeaBakeError, SettingError, WrongModelError
from sea_bake.importing import FORMATS

FAMILIES = ("llama", "qwen3", "gpt2", "gemma3_text", "mixtral")
IDS = torch.tensor([[1, 5, 9, 40, 77, 3]])
APART = 1e-2  # of logits that are not the same; those that are, differ by rounding


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits.double()


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, as a share of the largest logit."""
    return float((one - other).abs().max() / one.abs().max())


@functools.cache
def llama() -> Any:
    from sea_bake.model.loading import load_model

    return load_model(tiny.single())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TOOLS)
def test_an_imported_edit_does_what_its_tool_does(name: str, family: str, workshop: Workshop, tmp_path: Path) -> None:
    """And one layer later is something else: no test here would pass with another count of layers."""
    tool, model = TOOLS[name], workshop.model(family)
    (tmp_path / "files").mkdir()
    files = tool.write(tmp_path / "files", model)
    edit = import_edit(files, workshop.base(family), **tool.options)
    assert (edit.recipe["import"]["format"], edit.site.value, edit.layers) == (name, tool.site, tool.layers)
    assert edit.alpha == tool.alpha
    plain = logits(model)
    with tool.acts(model, 0):
        reference = logits(model)
    with tool.acts(model, 1):
        late = logits(model)
    with edit.live(model):
        found = logits(model)
    assert gap(found, reference) < 2e-6  # float32, summed in another order
    assert gap(found, plain) > APART
    assert gap(found, late) > APART
    assert gap(logits(model), plain) == 0
    edit.save(tmp_path / "edit.safetensors")
    assert Edit.load(tmp_path / "edit.safetensors", model).recipe == edit.recipe


def test_every_format_is_tried() -> None:
    assert set(FORMATS) == {*TOOLS, "lora", "dense"}


@pytest.mark.parametrize("name", ["control-vector", "iti", "glp", "act", "leace"])
@pytest.mark.slow
def test_an_imported_edit_is_baked_and_verified(name: str, tmp_path: Path) -> None:
    """Through the command line, into a checkpoint."""
    model, tool = llama(), TOOLS[name]
    (tmp_path / "files").mkdir()
    files = tool.write(tmp_path / "files", model)
    options = [word for key, value in tool.options.items() for word in (f"--{key}", value)]
    ran = tiny.run("import", *files, "--base", tiny.single(), *options, "-o", tmp_path / "edit.safetensors")
    assert ran.code == 0, ran
    assert f"sea-bake bake {tiny.single()} {tmp_path / 'edit.safetensors'} -o OUT" in ran.out
    bake(tiny.single(), tmp_path / "edit.safetensors", tmp_path / "out")
    assert verify(tmp_path / "out", base=tiny.single(), prompts=["Why?"], max_new_tokens=4, write=False).passed


# ----------------------------------------------------------------------------------------------------------------- LoRA


def lora(folder: Path, base: Path, targets: list[str], *, rank: int = 3, dtype: torch.dtype = torch.float32) -> Path:
    """As PEFT writes it, with factors that are not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, layers_to_transform=[1, 2])
    made = get_peft_model(model, config)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.to(dtype).save_pretrained(folder)
    return folder


def with_peft(folder: Path, base: Path) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    return logits(model.eval())


@pytest.mark.parametrize(("family", "target"), [("llama", "o_proj"), ("gpt2", "attn.c_proj"), ("qwen3", "o_proj")])
def test_a_lora_of_the_attentions_writer_is_an_edit(
    family: str, target: str, workshop: Workshop, tmp_path: Path
) -> None:
    """A square writer turns every change of itself into one of its output; a wide one into one of its input."""
    base, model = workshop.base(family), workshop.model(family)
    folder = lora(tmp_path / "lora", base, [target])
    edit = import_edit(folder, base)
    W = foreign.writer(model, 1).weight
    square = W.shape[0] == W.shape[1]
    assert edit.site.value == ("attn" if square else "heads")
    assert {edit.maps[i].rank for i in edit.layers} == {3}
    with edit.live(model):
        found = logits(model)
    assert gap(found, with_peft(folder, base)) < 1e-4  # through the inverse of a random matrix
    assert gap(found, logits(model)) > APART
    heads = import_edit(folder, base, site="heads")
    with heads.live(model):
        assert gap(logits(model), found) < 1e-4


def test_a_lora_of_an_mlps_writer_is_one_where_its_rows_are_the_writers(workshop: Workshop, tmp_path: Path) -> None:
    """Our own adapters are; a trained one is not, and is a base as it stands."""
    base, model = workshop.base("llama"), workshop.model("llama")
    folder = lora(tmp_path / "trained", base, ["down_proj"])
    with pytest.raises(
        SeaBakeError, match=r"of its change lies outside .* a LoRA that names its base is a base itself"
    ):
        import_edit(folder, base)
    known = workshop.edit("llama", "mlp", merge="sum")
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        made = tmp_path / name
        bake(base, known, made, how="adapter")
        weights = made / "adapter_model.safetensors"
        if dtype is torch.bfloat16:
            from safetensors.torch import load_file, save_file

            save_file({k: v.to(dtype) for k, v in load_file(weights).items()}, weights, {"format": "pt"})
        edit = import_edit(made, base)
        assert edit.site.value == "mlp"
        with edit.live(model):
            found = logits(model)
        with known.live(model):
            # An adapter in bfloat16 is another one: what is imported is what it is, rounding and all.
            assert gap(found, logits(model)) < (1e-5 if dtype is torch.float32 else 0.1)
        assert gap(found, logits(model)) > APART


def test_a_lora_of_two_sites_is_two_edits(workshop: Workshop, tmp_path: Path) -> None:
    base, model = workshop.base("llama"), workshop.model("llama")
    made = tmp_path / "both"
    bake(base, [workshop.edit("llama", site, merge="sum") for site in ("attn", "mlp")], made, how="adapter")
    with pytest.raises(SettingError, match="an edit has one site"):
        import_edit(made, base)
    from sea_bake.edit import live

    with live([import_edit(made, base, site=site) for site in ("attn", "mlp")], model):
        found = logits(model)
    assert gap(found, with_peft(made, base)) < 1e-5
    with pytest.raises(SettingError, match="drop --site"):
        import_edit(made, base, site="block")
    odd = lora(tmp_path / "odd", base, ["q_proj", "o_proj"])
    with pytest.raises(SeaBakeError, match=r"q_proj\.weight, which writes no site's output"):
        import_edit(odd, base)


# -------------------------------------------------------------------------------------------------- layers and strength


def test_layers_are_chosen_and_moved(tmp_path: Path) -> None:
    model = llama()
    rows = foreign.vectors(model, 4)
    (file,) = foreign.control_vector(tmp_path / "v.gguf", dict(enumerate(rows)))
    assert import_edit(file, tiny.single()).layers == (0, 1, 2, 3)
    some = import_edit(file, tiny.single(), layers="1-2", alpha=-0.5)
    assert (some.layers, some.alpha) == ((1, 2), -0.5)
    assert torch.equal(some.maps[2].constant, rows[2])
    (late,) = foreign.control_vector(tmp_path / "late.gguf", {i + 1: v for i, v in enumerate(rows)})
    with pytest.raises(WrongModelError, match=r"has layer 4, and 'single-0' has the layers 0 to 3.*--shift -1"):
        import_edit(late, tiny.single())
    back = import_edit(late, tiny.single(), shift=-1)
    assert back.layers == (0, 1, 2, 3)
    assert torch.equal(back.maps[2].constant, rows[2])
    with pytest.raises(SettingError, match="has nothing for layer 3: it has 0-2"):
        import_edit(
            foreign.control_vector(tmp_path / "few.gguf", dict(enumerate(rows[:3]))), tiny.single(), layers="2,3"
        )


def test_where_a_steering_vector_was_seen(tmp_path: Path) -> None:
    """IBM's direction N was seen behind layer N, and is added in front of it: ``shift`` puts it back."""
    (file,) = foreign.write_svec(tmp_path, llama())
    rows = foreign.vectors(llama(), 4, seed=2)
    assert torch.allclose(import_edit(file, tiny.single(), layers="1").maps[1].constant, rows[2])
    assert torch.allclose(import_edit(file, tiny.single(), layers="0,1", shift=1).maps[1].constant, rows[1])


def test_a_base_as_gguf(tmp_path: Path) -> None:
    import ggufs

    (file,) = foreign.control_vector(tmp_path / "v.gguf", dict(enumerate(foreign.vectors(llama(), 4))))
    edit = import_edit(file, ggufs.single())
    assert edit.base.samples.keys() == import_edit(file, tiny.single()).base.samples.keys()
    edit.check(llama())


def test_a_projection_of_several_directions(tmp_path: Path) -> None:
    model = llama()
    rows = foreign.unit(model, 7, rank=3)
    keys = {**foreign.GLP, "dspark.rank": 3, "dspark.layer_ids_zero_based": "2", "dspark.alpha_default": 1.0}
    (file,) = foreign.control_vector(tmp_path / "v.gguf", {2: rows.numpy()}, **keys)
    h = torch.randn(5, rows.shape[1])
    found = import_edit(file, tiny.single()).layer(2)(h)
    assert float((found @ rows.T).abs().max()) < 1e-5
    assert torch.allclose(found, h - h @ rows.T @ rows, atol=1e-5)


def test_files_of_sigma_and_directions(tmp_path: Path) -> None:
    """What ``get_com_directions`` gives, and a spread of one's own, in the place of activations."""
    model = llama()
    H, D = foreign.heads_of(model)
    rng = np.random.default_rng(5)
    directions, sigma = rng.standard_normal((4 * H, D)), rng.random((4, H))
    for name, array in (("d", directions), ("s", sigma), ("h", np.array([(3, 1)]))):
        np.save(tmp_path / f"{name}.npy", array)
    edit = import_edit(sorted(tmp_path.iterdir()), tiny.single(), alpha=2.0)
    expected = np.zeros((H, D))
    unit = directions[3 * H + 1] / np.linalg.norm(directions[3 * H + 1])
    expected[1] = sigma[3, 1] * unit
    assert edit.layers == (3,)
    assert np.abs(edit.maps[3].constant.numpy() - expected.reshape(-1)).max() < 1e-6


def test_leace_equals_the_package(tmp_path: Path) -> None:
    """On vectors, to 1e-6 of their size; thin, with and without a mean, in both kinds of file, for several layers."""
    from safetensors.torch import save_file

    one = foreign.eraser(llama())
    x = torch.randn(50, 32)
    parts = {"proj_left": one.proj_left, "proj_right": one.proj_right, "bias": one.bias}
    several = {f"{i}.{name}": tensor.clone().contiguous() for i in (0, 3) for name, tensor in parts.items()}
    save_file(several, tmp_path / "v.safetensors")
    edit = import_edit(tmp_path / "v.safetensors", tiny.single(), site="attn")
    assert (edit.layers, edit.maps[0].rank) == ((0, 3), 1)
    assert float((edit.layer(3)(x) - one(x)).abs().max()) < 1e-6 * float(x.abs().max())
    assert float((edit.layer(3)(x) - x).abs().max()) > 0.1  # the control
    torch.save({**parts, "bias": None}, tmp_path / "v.pt")
    bare = import_edit(tmp_path / "v.pt", tiny.single(), site="attn", layers="1")
    expected = x - (x @ one.proj_right.mH) @ one.proj_left.mH
    assert float((bare.layer(1)(x) - expected).abs().max()) < 1e-6 * float(x.abs().max())


@pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned round"])
def test_dense_projections_answer_as_the_oracle(turned: bool, tmp_path: Path) -> None:
    """By the names of the files, in whatever order; dense float64 beside it."""
    rng = np.random.default_rng(1)
    U = [[np.linalg.qr(rng.standard_normal((32, k)))[0] for k in (4, 3)] for _ in range(4)]
    torch.save(torch.from_numpy(np.stack([u @ u.T for u, _ in U])).float(), tmp_path / "no_mean_sub_uu_positive.pt")
    torch.save(
        torch.from_numpy(np.stack([np.eye(32) - u @ u.T for _, u in U])).float(),
        tmp_path / "no_mean_sub_uu_negative.pt",
    )
    files = sorted(tmp_path.iterdir(), reverse=not turned)
    assert ("negative" in files[0].name) == turned
    edit = import_edit(files, tiny.single(), layers="all")
    assert (edit.merge, edit.site.value) == ("l2", "mlp")
    h = rng.standard_normal((5, 32))
    for i, (up, un) in enumerate(U):
        summed = h @ up @ up.T + h - h @ un @ un.T
        expected = summed * np.linalg.norm(h, axis=1, keepdims=True) / np.linalg.norm(summed, axis=1, keepdims=True)
        found = edit.layer(i)(torch.from_numpy(h).float()).double().numpy()
        assert np.abs(found - expected).max() < 1e-5
