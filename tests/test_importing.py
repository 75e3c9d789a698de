"""Edits of other tools: what is imported answers as under the tool itself, layer for layer, and bad files are refused.

The tools' formulas are written a second time in ``foreign.py``; concept-erasure and PEFT run themselves, llama.cpp in
``test_control_vectors.py``, and repeng in ``scripts/check_repeng``.
"""

from __future__ import annotations

import functools
import json
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
from sea_bake.exporting.edits import FORMATS

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


# ------------------------------------------------------------------------------------------------------------ bad files


def written(path: Path, value: Any) -> Path:
    """By the tool that the suffix names."""
    if path.suffix == ".npy":
        np.save(path, value)
    elif path.suffix == ".svec":
        path.write_text(json.dumps(value))
    elif path.suffix == ".gguf":
        foreign.control_vector(path, *value[:1], **(value[1] if len(value) > 1 else {}))
    elif isinstance(value, bytes):
        path.write_bytes(value)
    else:
        torch.save(value, path)
    return path


V = torch.ones(32)
UNIT = np.eye(32, dtype=np.float32)[0]
BANK = np.ones((6, 4, 32), dtype=np.float32)
MOMENTS = dict.fromkeys(("mu1", "mu2", "std1", "std2"), V)
ERASER = {"proj_left": torch.ones(32, 1), "proj_right": torch.ones(1, 32), "bias": V}
BAD: dict[str, tuple[dict[str, Any], tuple[str, ...], str, str]] = {
    # width, depth, family
    "a vector of another width": ({"v.gguf": ({1: np.ones(48)},)}, (), "WrongModelError", "48 wide in layer 1"),
    "a vector of another depth": ({"v.gguf": ({31: np.ones(32)},)}, (), "WrongModelError", "has layer 31"),
    "a vector of another family": (
        {"v.gguf": ({1: np.ones(32)}, {"controlvector.model_hint": "qwen2"})}, (), "WrongModelError", "'qwen2'",
    ),
    "a CAA vector of another depth": ({"vec_layer_9_x.pt": V}, (), "WrongModelError", "has layer 9"),
    "persona vectors one row short": ({"p.pt": torch.ones(4, 32)}, ("-l", "1"), "EditError", "row 0 is the embeddings"),
    "persona vectors of another depth": ({"p.pt": torch.ones(33, 32)}, ("-l", "1"), "WrongModelError", "33 rows"),
    "a svec of another family": (
        {"s.svec": {"model_type": "gemma2", "directions": {"1": [1.0]}}}, ("-l", "0"), "WrongModelError", "'gemma2'",
    ),
    "an eraser of another width": (
        {"e.pt": {"proj_left": torch.ones(8, 1), "proj_right": torch.ones(1, 8)}}, ("-l", "1", "-s", "mlp"),
        "WrongModelError", "8 wide",
    ),
    "heads of another model": (
        {"a.npy": np.ones((6, 4, 64), dtype=np.float32), "h.npy": np.ones((1, 2), int)}, (), "WrongModelError",
        "activations are [n, 4, 32]",
    ),
    "a head that is not there": (
        {"a.npy": BANK, "l.npy": np.arange(6) % 2, "h.npy": np.array([(1, 4)])}, (), "WrongModelError", "head 4",
    ),
    "an AcT map of another depth": (
        {"model.layers.7.mlp.statedict": {"net.w1": V, "net.b1": V}}, (), "WrongModelError", "has layer 7",
    ),
    # NaN, and what is no number
    "a NaN": ({"v.gguf": ({1: np.full(32, np.nan)},)}, (), "EditError", "NaN or infinity"),
    "a NaN in a .pt": ({"vec_layer_1.pt": V * float("inf")}, (), "EditError", "NaN or infinity"),
    "a NaN in JSON": (
        {"s.svec": {"model_type": "llama", "directions": {"1": [float("nan")] * 32}}}, ("-l", "0"), "EditError", "NaN",
    ),
    "a number that no float holds": (
        {"s.svec": {"model_type": "llama", "directions": {"1": [10**400] * 32}}}, ("-l", "0"), "EditError", "no float",
    ),
    "whole numbers": ({"vec_layer_1.pt": torch.ones(32, dtype=torch.int64)}, (), "EditError", "int64"),
    "words": ({"s.svec": {"model_type": "llama", "directions": {"1": ["x"]}}}, ("-l", "0"), "EditError", "no list"),
    "all labels alike": (
        {"a.npy": BANK, "l.npy": np.ones(6, int), "h.npy": np.array([(1, 1)])}, (), "EditError", "labels are the same",
    ),
    "heads that all are alike": (
        {"a.npy": BANK, "l.npy": np.arange(6) % 2, "h.npy": np.array([(1, 1)])}, (), "EditError", "NaN",
    ),
    "labels of other texts": (
        {"a.npy": BANK, "l.npy": np.arange(5) % 2, "h.npy": np.array([(1, 1)])}, (), "EditError", "5 labels for 6",
    ),
    # what is not said
    "layers to be chosen": ({"p.pt": torch.ones(5, 32)}, (), "SettingError", "choose them (--layers 2"),
    "a layer in no name": ({"happy.pt": V}, (), "SettingError", "--layers 13"),
    "an eraser without a layer": ({"e.pt": ERASER}, ("-s", "mlp"), "SettingError", "name it (--layers 13)"),
    "an eraser that is moved": (
        {"e.pt": ERASER}, ("-l", "1", "-s", "mlp", "--shift", "1"), "SettingError", "drop --shift",
    ),
    "a direction behind a layer that is not there": (
        {"s.svec": {"model_type": "llama", "directions": {"4": [1.0] * 32}}}, ("-l", "3"), "WrongModelError", "layer 4",
    ),
    **{
        f"a vector as {kind}": (
            {"vec_layer_1.pt": V}, ("-l", "1", "-s", "mlp", "--format", kind), "EditError", "vec_layer_1.pt",
        )
        for kind in ("svec", "steering-vectors", "iti", "leace", "persona", "act")
    },
    "an eraser without a site": ({"e.pt": ERASER}, ("-l", "1"), "SettingError", "--site block"),
    "heads that nobody named": ({"a.npy": BANK, "l.npy": np.arange(6) % 2}, (), "SettingError", "'heads.npy'"),
    "no spread": ({"d.npy": np.ones((16, 8)), "h.npy": np.array([(1, 1)])}, (), "SettingError", "give sigma"),
    "Gaussian or of means": ({"model.layers.1.statedict": MOMENTS}, (), "EditError", "--format act-gaussian"),
    "a merge of a vector": ({"vec_layer_1.pt": V}, ("--merge", "l2"), "SettingError", "dense projections alone"),
    "an unknown format": ({"vec_layer_1.pt": V}, ("--format", "pickle"), "SettingError", "use auto, control-vector"),
    "an unknown site": ({"vec_layer_1.pt": V}, ("-s", "resid"), "SettingError", "unknown site"),
    "a strength that is none": ({"vec_layer_1.pt": V}, ("--alpha", "nan"), "SettingError", "alpha"),
    "a strength beyond all": ({"vec_layer_1.pt": V}, ("--alpha", "1e9"), "SettingError", "between -1e6 and 1e6"),
    "a base without a name": ({"vec_layer_1.pt": V}, ("--base", ""), "CheckpointError", "the model has no name"),
    # nothing
    "zeros": ({"vec_layer_1.pt": 0 * V}, (), "EditError", "changes nothing in the layers 1"),
    "zeros in the layers that are chosen": (
        {"p.pt": torch.eye(5, 32) * torch.tensor([1, 1, 0, 0, 1])[:, None]}, ("-l", "1,2"), "EditError", "layers 1-2",
    ),
    "projections of a deeper model": (
        {"uu_positive.pt": torch.eye(32).repeat(4, 1, 1), "uu_negative.pt": torch.eye(32).repeat(4, 1, 1)}, (),
        "SettingError", "--layers all",
    ),
    "projections of other layers": (
        {"uu_positive.pt": torch.eye(32).repeat(3, 1, 1), "uu_negative.pt": torch.eye(32).repeat(3, 1, 1)},
        ("-l", "all"), "SettingError", "to 3 of its layers (then name these: --layers)",
    ),
    # damaged, or something else
    "no such file": ({}, (), "EditError", "no such file"),
    "an empty file": ({"v.pt": b""}, (), "EditError", "no file that can be imported"),
    "text": ({"v.pt": b"hello"}, (), "EditError", "no file that can be imported"),
    "half an archive": ({"vec_layer_1.pt": b"PK\x03\x04" + b"\0" * 60}, (), "EditError", "cannot be read as a plain"),
    "half a GGUF": ({"v.gguf.pt": b"GGUF\x03\0\0\0"}, (), "CheckpointError", "truncated"),
    "half an array": ({"a.npy.pt": b"\x93NUMPY\x01\0"}, (), "EditError", "cannot be read as a NumPy array"),
    "an array of objects": ({"a.npy": np.array([{}])}, (), "EditError", "Pickles are never loaded"),
    "half a safetensors": ({"e.pt": b"\x10\0\0\0\0\0\0\0{}"}, (), "EditError", "cannot be read"),
    "a dict of nothing known": ({"v.pt": {"x": V}}, (), "EditError", "no known format"),
    "two widths in one eraser": (
        {"e.pt": {**ERASER, "bias": torch.ones(31)}}, ("-l", "1", "-s", "mlp"), "EditError", "bias is 31 wide",
    ),
    "half an eraser": ({"e.pt": {"proj_left": V[:, None]}}, ("-l", "1", "-s", "mlp"), "EditError", "lacks proj_right"),
    "two vectors for a layer": (
        {"vec_layer_1_a.pt": V, "vec_layer_1_b.pt": V}, (), "EditError", "the second vector for layer 1",
    ),
    "an empty control vector": ({"v.gguf": ({},)}, (), "EditError", "no tensor direction.N"),
    "a norm's map": (
        {"model.layers.1.input_layernorm.statedict": {"net.w1": V, "net.b1": V}}, (), "EditError", "no site of a llama",
    ),
    "maps of two sites": (
        {f"model.layers.1.{name}.statedict": {"net.w1": V, "net.b1": V} for name in ("mlp", "self_attn")}, (),
        "EditError", "one edit has one site",
    ),
    "a map of no module": ({"x.statedict": {"net.w1": V, "net.b1": V}}, (), "EditError", "layers.3.mlp.down_proj"),
    # GLP
    "an unknown mode": ({"v.gguf": ({1: UNIT}, {**foreign.GLP, "dspark.mode": "rotate"})}, (), "EditError", "'rotate'"),
    "another hook": (
        {"v.gguf": ({1: UNIT}, {**foreign.GLP, "dspark.hook_point": "attn"})}, (), "EditError", "dspark.hook_point",
    ),
    "a newer contract": ({"v.gguf": ({1: UNIT}, {**foreign.GLP, "dspark.spec_version": 2})}, (), "EditError", "spec"),
    "layers off by one": ({"v.gguf": ({2: UNIT, 3: UNIT}, foreign.GLP)}, (), "EditError", "layers 1,2"),
    "no unit vector": ({"v.gguf": ({1: 2 * UNIT, 2: UNIT}, foreign.GLP)}, (), "EditError", "is no unit vector"),
    "directions that were changed": (
        {"v.gguf": ({1: UNIT, 2: UNIT}, {**foreign.GLP, "dspark.content_sha256": "0" * 64})}, (),
        "EditError", "changed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str, tmp_path: Path) -> None:
    """One paragraph, exit code 2, and nothing is written."""
    files, options, kind, words = BAD[name]
    (tmp_path / "files").mkdir()
    paths = [written(tmp_path / "files" / file, value) for file, value in files.items()] or [tmp_path / "nothing.pt"]
    long = {"-l": "--layers", "-s": "--site"}
    with tiny.nothing_happens(tmp_path, tmp_path / "files"):
        ran = tiny.run(
            "import",
            *paths,
            "--base",
            tiny.single(),
            *(long.get(word, word) for word in options),
            "-o",
            tmp_path / "out",
        )
        tiny.refused(ran, kind, words)


class Pickled:
    """As steering-vectors and concept-erasure pickle theirs."""

    def __init__(self) -> None:
        self.layer_activations, self.layer_type = {1: V}, "decoder_block"


def test_the_cure_of_a_pickle_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very lines that the refusal names, for objects, for dataclasses, and for probes of scikit-learn."""
    import pickle
    import re
    import shlex

    from sklearn.linear_model import LogisticRegression

    monkeypatch.chdir(tmp_path)

    def cured(path: Path) -> None:
        ran = tiny.run("import", path, "--base", tiny.single(), "-o", tmp_path / "out")
        tiny.refused(ran, "EditError", "Pickles are never loaded here", "If you trust whoever made it")
        (line,) = re.findall(r"yourself: (python -c .*)", ran.err)
        exec(shlex.split(line)[2], {})

    torch.save(Pickled(), tmp_path / "object.pt")
    cured(tmp_path / "object.pt")
    assert import_edit(tmp_path / "object_plain.pt", tiny.single()).layers == (1,)
    torch.save(foreign.eraser(llama()), tmp_path / "eraser.pt")
    cured(tmp_path / "eraser.pt")
    assert import_edit(tmp_path / "eraser_plain.pt", tiny.single(), layers="1", site="mlp").maps[1].rank == 1
    # Arrays: one alone, several, in the archives of torch, in its older files, and pickled as they are.
    row = np.arange(32, dtype=np.float32)
    several = {"layer_activations": {np.int64(1): row, 2: [row, row][0]}, "layer_type": "decoder_block"}
    torch.save(row, tmp_path / "vec_layer_1.pt")
    torch.save(several, tmp_path / "several.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "vec_layer_2_x.pkl").write_bytes(pickle.dumps(row))
    (tmp_path / "vec_layer_3.pt").write_bytes(pickle.dumps({"v": row}["v"], protocol=2))
    for name, layers in (
        ("vec_layer_1.pt", (1,)),
        ("several.pt", (1, 2)),
        ("vec_layer_2_x.pkl", (2,)),
        ("vec_layer_3.pt", (3,)),
    ):
        cured(tmp_path / name)
        found = import_edit((tmp_path / name).with_name(f"{Path(name).stem}_plain.pt"), tiny.single())
        assert found.layers == layers
        assert all(torch.equal(one.constant, torch.tensor(row)) for one in found.maps.values())
    x = np.random.default_rng(0).standard_normal((20, 8))
    probes = [LogisticRegression().fit(x, np.arange(20) % 2) for _ in range(16)]
    (tmp_path / "probes.pkl").write_bytes(pickle.dumps(probes))
    cured(tmp_path / "probes.pkl")
    np.save("heads.npy", np.array([(1, 2)]))
    np.save("sigma.npy", np.ones((4, 4)))
    made = import_edit([tmp_path / f"{name}.npy" for name in ("directions", "heads", "sigma")], tiny.single())
    theta = probes[1 * 4 + 2].coef_[0] / np.linalg.norm(probes[6].coef_[0])
    assert np.abs(made.maps[1].constant.numpy()[16:24] - theta).max() < 1e-6


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    """A zip may hold gigabytes in a few bytes, and a tensor may say that it is larger than what it stands on."""
    import zipfile

    torch.save(torch.ones(32), tmp_path / "vec_layer_1.pt")
    with (
        zipfile.ZipFile(tmp_path / "vec_layer_1.pt") as before,
        zipfile.ZipFile(tmp_path / "vec_layer_2.pt", "w", zipfile.ZIP_DEFLATED) as after,
    ):
        for entry in before.namelist():
            after.writestr(entry, before.read(entry))
    torch.save(torch.zeros(1).expand(1 << 40), tmp_path / "vec_layer_3.pt")
    assert import_edit(tmp_path / "vec_layer_1.pt", tiny.single()).layers == (1,)  # the control
    for name, words in (("vec_layer_2.pt", "is compressed"), ("vec_layer_3.pt", "larger than the file")):
        ran = tiny.run("import", tmp_path / name, "--base", tiny.single(), "-o", tmp_path / "out")
        tiny.refused(ran, "EditError", words)
