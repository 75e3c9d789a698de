"""The edit as a file and as a context: what comes back, what is refused, and what is left of it afterwards."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import Workshop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sea_bake import Edit, SeaBakeError, Site, bake, fit
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.baking.open_base import opened
from sea_bake.errors import ActivationError, EditError, SettingError, WrongModelError
from sea_bake.model import samples
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.loading import load_model
from sea_bake.model.source import ModelSource

IDS = torch.arange(3, 40)[None]


@functools.cache
def llama() -> Any:
    return load_model(tiny.single(), device="cpu")


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["sea_bake"])


def write(path: Path, header: Any = None, **changes: torch.Tensor | None) -> Path:
    """The valid edit with another header (a text is taken as it is) or other tensors; None removes one."""
    source = tiny.edit_file()
    text = header if isinstance(header, str) else json.dumps(header_of(source) if header is None else header)
    tensors = {k: v.contiguous() for k, v in {**load_file(source), **changes}.items() if v is not None}
    save_file(tensors, path, metadata={"sea_bake": text})
    return path


# ----------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("site", list(Site))
def test_what_is_saved_comes_back(tmp_path: Path, site: Site) -> None:
    edit = fit(
        llama(),
        tiny.demonstrations(5),
        tokenizer=tiny.tokenizer(),
        source="owner/name",
        site=site,
        layers="1-2",
        K=0.8,
        K_negative=2,
        neutral="prompt",
        merge="sum",
        feature="tanh",
        parts="positive",
        alpha=0.25,
        centre=True,
        prompt_format=PromptFormat(system="Be [/brief]."),
    )
    back = Edit.load(edit.save(tmp_path / "edit"), llama())
    for layer in edit.layers:
        for name in ("positive", "negative"):
            assert torch.equal(getattr(back.projectors[layer], name), getattr(edit.projectors[layer], name))
            spectrum = getattr(edit.projectors[layer], f"{name}_spectrum")
            # Spectra are for people: seven digits of each singular value are kept.
            found = getattr(back.projectors[layer], f"{name}_spectrum")
            assert torch.allclose(found, spectrum, rtol=5e-7, atol=0)
    for name in ("layers", "ranks", "site", "merge", "feature", "parts", "alpha", "recipe"):
        assert getattr(back, name) == getattr(edit, name), name
    assert back.base == edit.base
    assert back.recipe["K_negative"] == 2
    assert back.save(tmp_path / "again").read_bytes() == (tmp_path / "edit").read_bytes()


def test_the_file_says_where_it_comes_from() -> None:
    header = header_of(tiny.edit_file())
    assert (header["format"], header["version"]) == ("sea_bake.edit", 2)
    assert header["base"]["name"] == tiny.single().name
    assert (header["family"], header["site"], header["merge"], header["layers"]) == ("llama", "mlp", "l2", [0, 1, 2, 3])
    recipe = header["recipe"]
    assert (recipe["demonstrations"], recipe["K_positive"]) == (8, 0.9)
    assert len(recipe["demonstrations_sha256"]) == 64
    assert set(recipe["versions"]) == {"sea_bake", "torch", "transformers", "python"}
    assert str(tiny.root()) not in json.dumps(header)  # no path of this machine


# -------------------------------------------------------------------------------------------------------------- refused


def changed(**keys: Any) -> dict[str, Any]:
    return {**header_of(tiny.edit_file()), **keys}


def without(key: str) -> dict[str, Any]:
    header = header_of(tiny.edit_file())
    del header[key]
    return header


def first_rows() -> torch.Tensor:
    return load_file(tiny.edit_file())["layers.1.positive"]


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "other version": (lambda p: write(p, changed(version=3)), "version 3, and this sea_bake reads version 1 and 2"),
    "other form": (lambda p: write(p, changed(format="other")), "holds 'other', not 'sea_bake.edit'"),
    "other file": (lambda p: tiny.single() / "model.safetensors", "not one of sea_bake's"),
    "a text": (lambda p: tiny.demonstrations_file(), "cannot be read"),
    "a folder": (lambda p: tiny.single(), "is a folder, and no edit file"),
    "no JSON": (lambda p: write(p, "{"), "cannot be read"),
    "a list": (lambda p: write(p, "[]"), "not one of sea_bake's"),
    "deep JSON": (lambda p: write(p, "[" * 100_000), "cannot be read"),
    "much JSON": (lambda p: write(p, json.dumps({"format": "x" * 10_000_000})), "not 'sea_bake.edit'"),
    "infinite layer": (lambda p: write(p, changed(layers=[float("inf")])), "Out of range float values"),
    "half a layer": (lambda p: write(p, changed(layers=[0.5, 1, 2, 3])), "0.5, which is no whole number"),
    "a layer of truth": (lambda p: write(p, changed(layers=[False, 1, 2, 3])), "False, which is no whole number"),
    "a truthful rank": (lambda p: write(p, changed(ranks={str(i): [True, 1] for i in range(4)})), "True, which is no"),
    "a number of 400 digits": (lambda p: write(p, changed(ranks={str(i): [10**400, 1] for i in range(4)})), "is "),
    "a float of 400 digits": (
        lambda p: write(p, changed(spectra={str(i): {"positive": [10**400], "negative": []} for i in range(4)})),
        "lacks or garbles",
    ),
    "wrong shape": (lambda p: write(p, **{"layers.1.positive": first_rows()[:, :-1]}), "layers.1.positive is"),
    "wrong rank": (lambda p: write(p, **{"layers.1.positive": first_rows()[:-1]}), "layers.1.positive is"),
    "wrong dtype": (lambda p: write(p, **{"layers.1.positive": first_rows().half()}), "float32"),
    "one dimension": (lambda p: write(p, **{"layers.1.positive": first_rows()[0]}), "layers.1.positive is"),
    "NaN": (lambda p: write(p, **{"layers.1.positive": first_rows() * float("nan")}), "not orthonormal"),
    "no unit rows": (lambda p: write(p, **{"layers.1.positive": first_rows() * 1.001}), "not orthonormal"),
    "no right angles": (
        lambda p: write(p, **{"layers.1.positive": first_rows()[:1].expand_as(first_rows())}),
        "not orthonormal",
    ),
    "a tensor too few": (lambda p: write(p, **{"layers.2.negative": None}), "lacks or garbles 'layers.2.negative'"),
    "a tensor too many": (lambda p: write(p, **{"layers.9.negative": first_rows()}), "do not match its list of layers"),
    "layer out of range": (lambda p: write(p, changed(layers=[0, 1, 2, 4])), "layer 4 is out of range"),
    "negative layer": (lambda p: write(p, changed(layers=[0, 1, 2, -1])), "layer -1 is out of range"),
    "layer twice": (lambda p: write(p, changed(layers=[0, 1, 2, 3, 3])), "a layer is listed twice"),
    "no layers": (lambda p: write(p, changed(layers=[])), "at least one layer"),
    "unknown site": (lambda p: write(p, changed(site="nose")), "unknown site 'nose'"),
    "unknown merge": (lambda p: write(p, changed(merge="max")), "unknown merge 'max'"),
    "alpha is a text": (lambda p: write(p, changed(alpha="1")), "alpha = '1'"),
    "alpha is NaN": (lambda p: write(p, changed(alpha=float("nan"))), "Out of range float values"),
    "no model size": (lambda p: write(p, changed(base={**changed()["base"], "config": {}})), "base.config.hidden_size"),
}
for key in ("base", "site", "layers", "merge", "feature", "parts", "alpha", "ranks", "spectra", "recipe"):
    REFUSED[f"without {key}"] = (lambda p, key=key: write(p, without(key)), f"lacks or garbles '{key}'")


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    path = make(tmp_path / "edit")
    with pytest.raises(EditError) as caught:
        Edit.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_valid_one_is_not_refused(tmp_path: Path) -> None:
    """The control: what ``write`` changes nothing about is an edit."""
    assert Edit.load(write(tmp_path / "edit")).layers == (0, 1, 2, 3)


# ----------------------------------------------------------------------------------------------------------------- fuzz

FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, "[/x]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def read_something(path: Path) -> Edit | None:
    """An edit that can be used, or None where the reader refused. Anything else is raised."""
    try:
        edit = Edit.load(path)
    except SeaBakeError:
        return None
    for layer in edit.layers:
        assert torch.isfinite(edit.layer(layer)(torch.randn(2, edit.projectors[layer].dim))).all()
    return edit


@pytest.mark.slow
@FUZZ
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=6), st.integers(0), st.binary(max_size=3))
@example([], 0, b"")
def test_bytes_that_were_changed(tmp_path: Path, changes: list[tuple[int, int]], cut: int, more: bytes) -> None:
    data = bytearray(tiny.edit_file().read_bytes())
    for where, value in changes:
        data[where % len(data)] = value
    data = data[: len(data) - cut % len(data)] if cut % 4 == 1 else data
    path = tmp_path / "edit"
    path.write_bytes(bytes(data) + more)
    edit = read_something(path)
    if not changes and not cut and not more:
        assert edit is not None


@pytest.mark.slow
@settings(FUZZ, max_examples=150)
@given(st.data())
def test_headers_that_were_changed(tmp_path: Path, data: st.DataObject) -> None:
    """One value anywhere in the header becomes another JSON value."""
    header = header_of(tiny.edit_file())
    parent: Any = header
    while True:
        keys = sorted(parent) if isinstance(parent, dict) else range(len(parent))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(parent[key], dict | list) or not parent[key] or data.draw(st.booleans()):
            break
        parent = parent[key]
    parent[key] = data.draw(JSON)
    path = write(tmp_path / "edit", header)
    refused = read_something(path) is None
    assert tiny.run("inspect", path).code == (2 if refused else 0)  # what can be read can be shown


@pytest.mark.slow
@FUZZ
@given(st.binary(max_size=200), st.integers(0, 300))
def test_bytes_that_never_were_an_edit(tmp_path: Path, junk: bytes, length: int) -> None:
    """Junk under a safetensors header's own length field, so that it is read as one."""
    (tmp_path / "edit").write_bytes(length.to_bytes(8, "little") + junk)
    assert read_something(tmp_path / "edit") is None


# ---------------------------------------------------------------------------------------------------------- fingerprint


def test_the_same_model_in_another_dtype_is_accepted(tmp_path: Path) -> None:
    edit = Edit.load(tiny.edit_file())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        living = load_model(tiny.single(), dtype=dtype, device="cpu")
        living.save_pretrained(folder)
        edit.check(living)
        edit.base.check(on_disk(folder), edit.layers)
        # And the other way round: fitted in a half precision, applied in float32.
        BaseModel.of(living, "x").check(BaseModel.of(llama(), "y"), range(tiny.LAYERS))


def on_disk(folder: Path) -> BaseModel:
    """The fingerprint of a checkpoint that is not loaded."""
    from transformers import AutoConfig

    from sea_bake.model.checkpoint import Checkpoint
    from sea_bake.model.discovery import family_of

    base = Checkpoint.open(folder)
    config = AutoConfig.from_pretrained(folder)
    return BaseModel.of_checkpoint(ModelSource.parse(folder), config, family_of(config), base, "model.layers")


def test_a_fine_tune_is_refused() -> None:
    """Weights moved by 1 % of themselves, as a short fine-tune does; by a rounding of float32, they are the same."""
    edit = Edit.load(tiny.edit_file())
    for scale, same in ((1e-2, False), (1e-8, True)):
        tuned = tiny.new_llama()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.mul_(1 + scale * torch.randn_like(parameter))
        if same:
            edit.check(tuned)
        else:
            with pytest.raises(WrongModelError, match="weights differ"):
                edit.check(tuned)
            with pytest.raises(WrongModelError), edit.live(tuned):
                raise AssertionError("not reached")
            with edit.live(tuned, check=False):
                pass


def test_another_architecture_is_refused() -> None:
    edit = Edit.load(tiny.edit_file())
    for changes, words in (
        ({"num_hidden_layers": 5}, "num_hidden_layers = 4; this model has num_hidden_layers = 5"),
        ({"vocab_size": 500}, "vocab_size"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
    ):
        with pytest.raises(WrongModelError, match=words):
            edit.check(tiny.new_llama(**changes))
    with pytest.raises(WrongModelError):
        Edit.load(tiny.edit_file(), tiny.new_llama(seed=1))
    assert Edit.load(tiny.edit_file(), llama()).layers == (0, 1, 2, 3)


# Where a model can move while the layers that are edited stay as they are.
MOVED = {
    "embed_tokens.weight": "model.embed_tokens",
    "norm.weight": "model.norm",
    "lm_head.weight": "lm_head",
    "mlp.down_proj of layer 0": "model.layers.0.mlp.down_proj",
    "self_attn.q_proj.weight of layer 0": "model.layers.0.self_attn.q_proj",
    "input_layernorm.weight of layer 3": "model.layers.3.input_layernorm",
    "mlp.up_proj.weight of layer 2": "model.layers.2.mlp.up_proj",  # in an edited layer, beside its writers
}


@pytest.mark.parametrize("place", MOVED)
def test_a_model_that_moved_elsewhere_is_another(tmp_path: Path, place: str) -> None:
    """Embeddings, norms, head and unedited layers count: living, in a file, and back from one."""
    tiny.write_llama(tmp_path / "base", tie_word_embeddings=False)
    model = load_model(tmp_path / "base")
    edit = fit(model, tiny.demonstrations(8), tokenizer=tiny.tokenizer(), layers=[2], neutral="prompt", budget=None)
    back = Edit.load(edit.save(tmp_path / "edit"), model)  # the control: it is the base
    with torch.no_grad():
        model.get_submodule(MOVED[place]).weight.mul_(1.01)
    model.save_pretrained(tmp_path / "moved")
    for check in (
        lambda: edit.check(model),
        lambda: back.check(model),
        lambda: back.base.check(on_disk(tmp_path / "moved"), back.layers),
        lambda: bake(tmp_path / "moved", back, tmp_path / "no"),
    ):
        with pytest.raises(WrongModelError, match=rf"weights differ \(first seen in {re.escape(place)}:"):
            check()
    assert not (tmp_path / "no").exists()


def test_what_an_older_release_sampled_is_what_counts() -> None:
    """The edited layers' writers, in its edits: another model elsewhere is not seen, and one there is."""
    edit = fit(llama(), tiny.demonstrations(8), tokenizer=tiny.tokenizer(), layers=[2], neutral="prompt", budget=None)
    older = {key: values for key, values in edit.base.samples.items() if key.startswith("2.")}
    data = {k: v for k, v in edit.base.to_json().items() if k != "rest"} | {"samples": older}
    old = replace(edit, base=BaseModel.from_json(data))
    other = tiny.new_llama()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(2)
    old.check(other)
    with torch.no_grad():
        other.model.layers[2].mlp.down_proj.weight.mul_(2)
    with pytest.raises(WrongModelError, match=r"mlp\.down_proj of layer 2"):
        old.check(other)


def test_norms_say_nothing_beside_quantised_weights() -> None:
    """Some ways of quantising move factors from a norm into the weights behind it."""
    edit = fit(llama(), tiny.demonstrations(8), tokenizer=tiny.tokenizer(), layers=[2], neutral="prompt", budget=None)
    found = BaseModel.of(llama(), "x")
    moved = found.rest | {"1.input_layernorm.weight": [9.0] * 4}
    quantised = {key: values for key, values in found.samples.items() if not key.startswith("1.")}
    edit.base.check(replace(found, samples=quantised, rest=moved), edit.layers)
    with pytest.raises(WrongModelError, match=r"input_layernorm\.weight of layer 1"):  # the control
        edit.base.check(replace(found, rest=moved), edit.layers)
    with pytest.raises(WrongModelError, match=r"embed_tokens\.weight"):
        edit.base.check(replace(found, samples={}, rest=moved | {"embed_tokens.weight": [9.0] * 16}), edit.layers)


def test_disk_and_memory_give_one_fingerprint() -> None:
    living = BaseModel.of(llama(), ModelSource.parse(tiny.single()))
    assert on_disk(tiny.single()) == living
    assert on_disk(tiny.sharded()).samples == living.samples
    assert on_disk(tiny.sharded()).rest == living.rest
    assert on_disk(tiny.single(seed=1)).samples != living.samples  # the control
    assert on_disk(tiny.single(seed=1)).rest != living.rest
    assert len(living.samples) == 2 * tiny.LAYERS
    assert {len(values) for values in living.samples.values()} == {16}
    assert living.rest.keys() == {"embed_tokens.weight", "norm.weight", "lm_head.weight"} | {
        f"{layer}.{part}.weight"
        for layer in range(tiny.LAYERS)
        for part in (
            "input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj",
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
        )
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3_text", "mixtral", "bart", "qwen3_next"])
def test_files_and_memory_share_the_embeddings_name(workshop: Workshop, family: str) -> None:
    """However they are called, and wherever the decoder lies in the model."""
    folder, model = workshop.base(family), workshop.model(family)
    with opened(ModelSource.parse(folder), None) as base:
        found = BaseModel.of_checkpoint(base.source, base.numbers, base.row, base.checkpoint, base.stem)
    living = BaseModel.of(model, "x")
    living.check(found, [1])
    found.check(living, [1])
    embeddings = model.get_input_embeddings().weight
    expected = samples.values(embeddings, samples.WRITER)
    assert [key for key in living.rest.keys() & found.rest.keys() if found.rest[key] == expected]


# ----------------------------------------------------------------------------------------------------------------- live


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def hooks(model: Any) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.fixture
def untouched() -> Iterator[Any]:
    """A model that has to be found as it was: weights, modules, hooks, answers."""
    model = tiny.new_llama()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes, answers = [type(m) for m in model.modules()], logits(model)
    yield model
    assert hooks(model) == 0
    assert [type(m) for m in model.modules()] == classes
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert torch.equal(logits(model), answers)


@pytest.mark.parametrize("site", list(Site))
def test_live_is_undone(untouched: Any, site: Site) -> None:
    edit, base = Edit.load(tiny.edit_file(site=site.value)), logits(untouched)
    with edit.live(untouched) as same:
        assert same is untouched
        assert hooks(untouched) == len(edit.layers)
        edited = logits(untouched)
        assert float((edited - base).abs().max()) > 1e-2  # the edit is seen
        assert torch.equal(logits(untouched), edited)
    assert torch.equal(logits(untouched), base)


def test_live_is_undone_after_an_exception(untouched: Any) -> None:
    edit = Edit.load(tiny.edit_file())
    with pytest.raises(ZeroDivisionError), edit.live(untouched):
        logits(untouched)[0] / (1 // 0)
    # Within a forward pass: three layers' hooks have run when the fourth fails.
    untouched.model.layers[3].self_attn.forward = lambda **_: 1 / 0
    with pytest.raises(ZeroDivisionError), edit.live(untouched):
        logits(untouched)
    del untouched.model.layers[3].self_attn.forward
    outside = Edit({**edit.projectors, 9: edit.projectors[0]}, edit.site, edit.base)
    with pytest.raises(SettingError, match="layer 9 is out of range"), outside.live(untouched, check=False):
        pass


def test_live_nests(untouched: Any) -> None:
    """Both edits apply. The inner one's hook comes first: each stands as near to its module as it can get."""
    outer = Edit.load(tiny.edit_file()).with_settings(merge="sum")
    inner = outer.with_settings(alpha=0.5, parts="negative")
    with outer.live(untouched):
        once = logits(untouched)
        with inner.live(untouched):
            twice = logits(untouched)
            assert hooks(untouched) == 2 * len(outer.layers)
        assert torch.equal(logits(untouched), once)
    assert float((twice - once).abs().max()) > 1e-3
    handles = []
    for i in outer.layers:
        pair = (inner.layer(i), outer.layer(i))
        module = untouched.model.layers[i].mlp
        handles.append(module.register_forward_hook(lambda _, __, out, pair=pair: pair[1](pair[0](out))))
    by_hand = logits(untouched)
    for handle in handles:
        handle.remove()
    assert torch.equal(by_hand, twice)


def test_a_strength_of_zero_is_the_base(untouched: Any) -> None:
    edit, base = Edit.load(tiny.edit_file()), logits(untouched)
    for alpha, equal in ((0.0, True), (0.5, False), (-1.0, False)):
        with edit.with_settings(alpha=alpha).live(untouched):
            # lerp(x, y, 0) = x + 0 (y - x): the base to the last bit.
            assert torch.equal(logits(untouched), base) == equal


def test_what_cannot_be_changed_afterwards() -> None:
    edit = Edit.load(tiny.edit_file())
    with pytest.raises(SettingError, match="site cannot be changed without fitting again"):
        edit.with_settings(site="attn")
    for bad in ({"merge": "max"}, {"parts": "none"}, {"alpha": float("inf")}, {"alpha": True}):
        with pytest.raises(SettingError):
            edit.with_settings(**bad)
    with pytest.raises(SettingError, match="at least one layer"):
        Edit({}, edit.site, edit.base)


# ---------------------------------------------------------------------------------------- the authors' dense projectors


def dense(layers: int = tiny.LAYERS) -> tuple[torch.Tensor, torch.Tensor]:
    """uu_positive = U+ U+ᵀ and uu_negative = I - U- U-ᵀ of the tiny edit, as the released code stores them."""
    edit = Edit.load(tiny.edit_file())
    rows = [edit.projectors[i] for i in range(layers)]
    identity = torch.eye(tiny.HIDDEN)
    return (
        torch.stack([p.positive.T @ p.positive for p in rows]),
        torch.stack([identity - p.negative.T @ p.negative for p in rows]),
    )


def import_files(folder: Path, positive: Any, negative: Any, *more: object) -> tiny.Ran:
    for name, tensor in (("uu_positive.pt", positive), ("uu_negative.pt", negative)):
        torch.save(tensor, folder / name)
    files = (folder / "uu_positive.pt", folder / "uu_negative.pt")
    return tiny.run("import", *files, "--base", tiny.single(), "-o", folder / "edit", "--layers", "all", *more)


def test_dense_projections_are_imported(tmp_path: Path) -> None:
    assert import_files(tmp_path, *dense()).code == 0
    found, expected = Edit.load(tmp_path / "edit", llama()), Edit.load(tiny.edit_file())
    assert found.ranks == expected.ranks
    with torch.inference_mode(), expected.live(llama()):
        reference = logits(llama())
    with torch.inference_mode(), found.live(llama()):
        # Projectors of float32 precision, through an eigendecomposition: 1e-6 each, on logits of magnitude 10.
        assert float((logits(llama()) - reference).abs().max()) < 1e-4
    assert float((logits(llama()) - reference).abs().max()) > 1e-2  # the control


def test_dense_projections_of_the_selected_layers_alone(tmp_path: Path) -> None:
    positive, negative = dense()
    assert import_files(tmp_path, positive[2:], negative[2:], "--layers", "last:2").code == 0
    found, expected = Edit.load(tmp_path / "edit"), Edit.load(tiny.edit_file())
    assert found.ranks == {layer: expected.ranks[layer] for layer in (2, 3)}


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda p, n: (p * 1.1, n), "ActivationError", ("positive projection has eigenvalues other than 0 and 1",)),
        (lambda p, n: (p, n + torch.rand(4, 32, 32)), "ActivationError", ("negative projection is not symmetric",)),
        (lambda p, n: (p * float("nan"), n), "ActivationError", ("positive projection holds NaN",)),
        (lambda p, n: (p[:, :-1, :-1], n[:, :-1, :-1]), "SettingError", ("[layers, 32, 32]", "(4, 31, 31)")),
        (lambda p, n: (p[0], n[0]), "SettingError", ("[layers, 32, 32]",)),
        (lambda p, n: (p, n[:2]), "SettingError", ("[layers, 32, 32]",)),
        (lambda p, n: (p[:3], n[:3]), "SettingError", ("3 dense projections for 4 layers",)),
        (lambda p, n: ({"uu": p}, n), "EditError", ("uu_positive.pt holds a dict",)),
    ],
    ids=["eigenvalues", "asymmetric", "nan", "width", "one matrix", "unlike", "count", "a dict"],
)
def test_what_is_no_dense_projection(tmp_path: Path, change: Any, kind: str, words: tuple[str, ...]) -> None:
    tiny.refused(import_files(tmp_path, *change(*dense())), kind, *words)
    assert tiny.listing(tmp_path) == {"uu_positive.pt", "uu_negative.pt"}


class Malicious:
    """Unpickled, it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    ran = import_files(tmp_path, Malicious(mark), dense()[1])
    tiny.refused(ran, "EditError", "uu_positive.pt cannot be read as a plain tensor file")
    (tmp_path / "uu_positive.pt").write_bytes(pickle.dumps(Malicious(mark)))  # without torch's archive around it
    files = (tmp_path / "uu_positive.pt", tmp_path / "uu_negative.pt")
    ran = tiny.run("import", *files, "--base", tiny.single(), "-o", tmp_path / "edit")
    tiny.refused(ran, "EditError", "uu_positive.pt")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists()  # the control: it is malicious


def test_an_activation_error_is_ours() -> None:
    assert issubclass(ActivationError, SeaBakeError)
