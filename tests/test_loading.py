"""An artefact is an ordinary model: whatever transformers can do with one, it does with the edit inside.

The reference is always the hook-edited base, put through the same treatment; and the base itself must differ.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import oracle
import pytest
import torch
from conftest import Workshop, load
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    pipeline,
)

import sea_bake.modeling_sea as modeling_sea
from sea_bake import bake
from sea_bake.model.anatomy import Site

a_third, another_third = (pytest.mark.parametrize("family", families.third(share)) for share in range(2))
# What transformers does with models of any kind is tried in the most different ones.
some_families = pytest.mark.parametrize("family", [*families.DEEP, "falcon", "gpt_oss", "gemma3"])
every_site = pytest.mark.parametrize("site", [site.value for site in Site])
every_feature = pytest.mark.parametrize("feature", oracle.FEATURES)

IDS = torch.randint(7, families.VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
# Hooks and artefact do the same operations on the same numbers: 0 here, with room for kernels that depend on where a
# tensor lies in memory. An edit moves these logits (of magnitude 8) by 0.09 to 10.
SAME, SEEN = 1e-4, 5e-2


@torch.inference_mode()
def logits(model: Any, **options: Any) -> Tensor:
    if model.config.is_encoder_decoder:
        options["decoder_input_ids"] = IDS.to(model.device)
    return model(input_ids=IDS.to(model.device), use_cache=False, **options).logits.float().cpu()


def gap(a: Tensor, b: Tensor) -> float:
    """max |a - b|; infinite when anything is NaN."""
    value = float((a.double() - b.double()).abs().max())
    return value if value == value else float("inf")


def assert_is_the_edit(found: Tensor, workshop: Workshop, family: str, *setting: str) -> None:
    """These logits are those of the hook-edited base, and not those of the base."""
    base = workshop.model(family)
    with workshop.edit(family, *setting).live(base):
        live = logits(base)
    assert gap(found, live) <= SAME
    seen = 0.02 if setting[0] == "heads" else SEEN  # those of a tiny GPT-2 move logits by 0.033
    assert seen < gap(found, logits(base)) < float("inf")


def run(script: str, *arguments: str | Path, flags: tuple[str, ...] = ("-I",), **env: str) -> Any:
    """A script in a fresh interpreter with a closed stdin, away from this repository."""
    return subprocess.run(
        [sys.executable, *flags, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=Path(sys.executable).parent,
        env={**os.environ, **env},
        timeout=300,
    )


# ---------------------------------------------------------------------------------------------- trust


REFUSE = """
import sys, transformers
for name in ("AutoModelForCausalLM", "AutoModel", "AutoConfig"):
    for options in ({}, {"trust_remote_code": False}):
        try:
            loaded = getattr(transformers, name).from_pretrained(sys.argv[1], **options)
        except ValueError as error:
            assert "trust_remote_code=True" in str(error), error
        else:
            sys.exit(f"{name} loaded a {type(loaded).__name__}")
print("refused 6 times")
"""


@pytest.mark.slow
def test_without_trust_nothing_is_loaded(workshop: Workshop):
    """Never the unedited base: the names in config.json belong to no model that transformers knows."""
    ran = run(REFUSE, workshop.artefact("llama", "mlp", "l2", "identity"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("refused 6 times\n")  # after transformers' own question, which nobody answers
    control = AutoModelForCausalLM.from_pretrained(workshop.base("llama"), trust_remote_code=False)
    assert type(control) is LlamaForCausalLM  # the base itself needs no trust


@pytest.mark.slow
@a_third
def test_a_plain_class_called_by_name_fails(workshop: Workshop, family: str):
    """``LlamaForCausalLM.from_pretrained(ARTEFACT)`` asks nobody, and would leave out tensors that it does not know."""
    base = workshop.model(family)
    # T5Gemma's decoder, whose configuration is a part of another one, cannot be loaded alone.
    for plain in (type(base), *([] if family == "t5gemma" else [type(base.get_decoder())])):
        assert torch.isfinite(plain.from_pretrained(workshop.base(family)).get_input_embeddings().weight).all()
        for site in ("mlp", families.sites(family)[-1]):
            with pytest.raises(StrictDataclassError, match="edited by sea_bake: load it with the Auto classes"):
                plain.from_pretrained(workshop.artefact(family, site, "l2", "identity"))


ALONE = """
import json, sys
sys.modules["sea_bake"] = None
try:
    import sea_bake
    sys.exit("sea_bake can be imported")
except ImportError:
    pass
import torch, transformers
from safetensors.torch import save_file
found, names = {}, json.loads(sys.argv[1])
for name, (auto, folder) in names.items():
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    ids = torch.tensor(json.loads(sys.argv[2]))
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        found[name] = model(ids, use_cache=False, **more).logits
        found[name + ".text"] = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
save_file(found, sys.argv[3])
assert not [m for m in sys.modules if m.split(".")[0] == "sea_bake" and sys.modules[m] is not None]
"""


@pytest.mark.slow
def test_a_process_without_sea_bake_gives_the_same_answers(workshop: Workshop, tmp_path: Path):
    few = [
        ("mlp", "l2", "identity"),
        ("attn", "l2", "identity"),
        ("block", "l2", "identity"),
        ("block", "average", "tanh"),
    ]
    settings = dict(zip(families.ALL, itertools.cycle(few)))
    settings |= {family: few[1] for family in families.STREAMS}
    settings |= {family: few[3] for family in families.DROWNED}  # the others move them by half of SEEN
    folders = {
        family: (families.auto(family).__name__, str(workshop.artefact(family, *setting)))
        for family, setting in settings.items()
    }
    request = (json.dumps(folders), json.dumps(IDS.tolist()), tmp_path / "out")
    ran = run(ALONE, *request, HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert ran.returncode == 0, ran.stderr
    found = load_file(tmp_path / "out")
    for family, setting in settings.items():
        assert_is_the_edit(found[family], workshop, family, *setting)
        base = workshop.model(family)
        with workshop.edit(family, *setting).live(base), torch.inference_mode():
            text = base.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(found[family + ".text"], text)


def test_the_code_that_travels_imports_torch_and_transformers_only(workshop: Workshop):
    artefact = workshop.artefact("llama", "mlp", "l2", "identity")
    code = artefact / "modeling_sea.py"
    assert code.read_bytes() == Path(modeling_sea.__file__).read_bytes()
    assert [p.name for p in artefact.rglob("*.py")] == ["modeling_sea.py"]
    lines = [line.split() for line in code.read_text("utf-8").splitlines()]
    imported = {words[1].split(".")[0] for words in lines if words[:1] in (["import"], ["from"])}
    assert imported == {"torch", "transformers"}


def test_a_model_made_from_the_configuration_alone_is_nan(workshop: Workshop):
    """No weights, no edit: nothing that could be taken for one."""
    config = AutoConfig.from_pretrained(workshop.artefact("llama", "mlp", "l2", "identity"), trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True).eval()
    assert torch.isnan(logits(model)).all()
    plain = LlamaForCausalLM(families.CONFIGS["llama"]())  # control
    assert torch.isfinite(logits(plain.eval())).all()


# ---------------------------------------------------------------------------------------------- dtypes


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@some_families
def test_sea_tensors_stay_float32_in_half_precision(workshop: Workshop, family: str, dtype: torch.dtype):
    for site in ("mlp", "block"):
        model = load(workshop.artefact(family, site, "l2", "identity"), dtype)
        kinds = {".sea." in name: p.dtype for name, p in model.named_parameters()}
        assert kinds == {True: torch.float32, False: dtype}
        base = workshop.model(family, dtype)
        with workshop.edit(family, site, "l2", "identity").live(base):
            live = logits(base)
        assert gap(logits(model), live) <= SAME
        # One rounding of the largest logit is what half precision itself costs; the edit is above that.
        assert gap(logits(base), live) > torch.finfo(dtype).eps * float(live.abs().max())


@pytest.mark.parametrize("how", [{}, {"dtype": torch.bfloat16}], ids=["float32 on disk", "bfloat16 on disk"])
def test_auto_dtype_is_the_bases(workshop: Workshop, tmp_path: Path, how: dict[str, Any]):
    """float32 SEA tensors in a bfloat16 checkpoint do not make the model float32."""
    base = workshop.base("llama", **how)
    bake(base, workshop.edit("llama"), tmp_path / "art", how="insert")
    for dtype in ("auto", None):
        options = {} if dtype is None else {"dtype": dtype}
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "art", trust_remote_code=True, **options)
        assert model.dtype == how.get("dtype", torch.float32)
        assert {p.dtype for name, p in model.named_parameters() if ".sea" in name} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_feature
def test_a_model_cast_afterwards_still_works(workshop: Workshop, feature: str, dtype: torch.dtype):
    """``.to(dtype)``, and servers that know no float32 exceptions, cast the SEA tensors too: coarser, but the edit.

    The factors lose digits, the arithmetic does not: in half precision the clamps of φ⁻¹ would round to 1, and its
    inverse is infinite.
    """
    setting = ("mlp", "l2", feature)
    model = load(workshop.artefact("llama", *setting))
    exact = logits(model)
    coarse = logits(model.to(dtype))
    assert {p.dtype for p in model.parameters()} == {dtype}
    base = logits(workshop.model("llama", dtype))
    assert (coarse - exact).abs().mean() < 0.5 * (coarse - base).abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize("parts", oracle.PARTS)
@every_feature
def test_autocast(workshop: Workshop, tmp_path: Path, feature: str, parts: str):
    """Under autocast products come out in bfloat16; what is done with them does not."""
    edit = workshop.edit("llama", "mlp", "l2", feature).with_settings(parts=parts, alpha=0.5)
    model = load(bake(workshop.base("llama"), edit, tmp_path / "art", how="insert").output)
    exact, base = logits(model), workshop.model("llama")
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = logits(model), logits(base)
        with edit.live(base):
            live = logits(base)
    assert gap(found, live) <= SAME
    assert (found - exact).abs().mean() < 0.5 * (found - plain).abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantisation",
    [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}],
    ids=["8 bit", "nf4"],
)
@pytest.mark.usefixtures("every_processor_alike")
@every_site
def test_quantised_loading_leaves_the_edit_alone(workshop: Workshop, site: str, quantisation: dict[str, Any]):
    """Everything that is a linear gets quantised, except the SEA tensors; the hooks on the quantised base agree."""
    setting = (site, "l2", "identity")
    options = {"device_map": "cpu", "quantization_config": BitsAndBytesConfig(**quantisation)}
    base = AutoModelForCausalLM.from_pretrained(workshop.base("llama"), **options)
    model = AutoModelForCausalLM.from_pretrained(
        workshop.artefact("llama", *setting), trust_remote_code=True, **options
    )
    quantised = {n for n, p in model.named_parameters() if p.dtype in (torch.int8, torch.uint8)}
    assert quantised == {n for n, p in base.named_parameters() if p.dtype in (torch.int8, torch.uint8)}
    assert len(quantised) == 4 * 7  # the linears of four layers
    assert {p.dtype for name, p in model.named_parameters() if ".sea" in name} == {torch.float32}
    plain, found = logits(base), logits(model)
    with workshop.edit("llama", *setting).live(base):
        live = logits(base)
    assert gap(found, live) <= SAME
    assert SEEN < gap(found, plain) < float("inf")


# ---------------------------------------------------------------------------------------------- devices


@pytest.mark.slow
@every_site
@some_families
def test_device_map_auto_gives_the_same(workshop: Workshop, family: str, site: str):
    setting = (site, "l2", "identity")
    model = load(workshop.artefact(family, *setting), device_map="auto")
    assert_is_the_edit(logits(model), workshop, family, *setting)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@every_site
def test_layers_on_disk_give_the_same(workshop: Workshop, tmp_path: Path, family: str, site: str):
    """Half of the model in memory, the rest read from disk layer by layer; an edited layer is never split in two."""
    setting = (site, "sum", "identity")
    artefact = workshop.artefact(family, *setting)
    size = sum(p.numel() * 4 for p in load(artefact).parameters())
    model = load(
        artefact, torch.float32, device_map="auto", max_memory={"cpu": size // 2}, offload_folder=tmp_path / "offload"
    )
    places = model.hf_device_map
    assert {"cpu", "disk"} == set(places.values())
    assert not [name for name in places if ".sea" in name or ".mlp" in name or "attn" in name]
    assert_is_the_edit(logits(model), workshop, family, *setting)


# ---------------------------------------------------------------------------------------------- what models do


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        ("mlp", "l2", "identity"),
        ("attn", "sum", "asinh"),
        ("block", "l2", "elu"),
        ("block", "average", "squared-exponential"),
    ],
    ids="-".join,
)
def test_compiles_in_one_graph(workshop: Workshop, setting: tuple[str, str, str]):
    """No graph breaks. "aot_eager" traces all that Inductor would and needs no C++ compiler."""
    model = load(workshop.artefact("llama", *setting))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    # Traced operations may be split up into others (norms, powers), which round differently: 1e-7, enlarged by φ⁻¹ in
    # two layers.
    room = {"identity": 1e-4, "squared-exponential": 1e-3, "asinh": 1e-3, "elu": 1e-2}[setting[-1]]
    found = logits(compiled)
    assert gap(found, logits(model)) <= room
    assert gap(found, logits(workshop.model("llama"))) > 10 * room


GENERATE: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "do_sample": False},
    "beam sampling": {"num_beams": 2, "do_sample": True},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 20, "num_return_sequences": 3},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "no cache": {"do_sample": False, "use_cache": False},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("how", GENERATE)
@some_families
def test_every_way_to_generate(workshop: Workshop, family: str, how: str):
    setting = ("block", "average", "tanh")  # strong enough to change the text
    options = {"max_new_tokens": 8, "pad_token_id": 0, **GENERATE[how]}
    ids = IDS[:1] if how == "prompt lookup" else IDS

    def generate(model: Any) -> Tensor:
        torch.manual_seed(0)
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    base = workshop.model(family)
    plain = generate(base)
    with workshop.edit(family, *setting).live(base):
        live = generate(base)
    assert torch.equal(generate(load(workshop.artefact(family, *setting))), live)
    assert not torch.equal(plain, live)


@pytest.mark.slow
@some_families
def test_chat_pipeline(workshop: Workshop, tmp_path: Path, family: str):
    """``pipeline("text-generation", model=ARTEFACT, trust_remote_code=True)``, with the tokenizer's chat template."""
    setting = ("block", "average", "tanh")  # strong enough to change the text
    base = workshop.base(family, chat=True)
    bake(base, workshop.edit(family, *setting), tmp_path / "art", how="insert")
    options = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}

    def answer(door: Any) -> list[str]:
        plain = door("the moon goes", **options)[0]["generated_text"]
        chat = door([{"role": "user", "content": "is the sun a star?"}], **options)[0]["generated_text"]
        return [plain, chat]

    edited = pipeline("text-generation", model=str(tmp_path / "art"), trust_remote_code=True, device="cpu")
    original = pipeline("text-generation", model=str(base), device="cpu")
    before = answer(original)
    with workshop.edit(family, *setting).live(original.model):
        live = answer(original)
    assert answer(edited) == live
    assert before != live


@pytest.mark.slow
@every_site
@some_families
def test_hidden_states_are_those_under_hooks(workshop: Workshop, family: str, site: str):
    setting = (site, "sum", "identity")
    base, model = workshop.model(family), load(workshop.artefact(family, *setting))
    with torch.inference_mode():
        plain = base(IDS, output_hidden_states=True).hidden_states
        found = model(IDS, output_hidden_states=True).hidden_states
        with workshop.edit(family, *setting).live(base):
            live = base(IDS, output_hidden_states=True).hidden_states
        fresh = load(workshop.base(family))  # on which transformers has not put its recorders yet
        with workshop.edit(family, *setting).live(fresh):
            assert all(torch.equal(a, b) for a, b in zip(live, fresh(IDS, output_hidden_states=True).hidden_states))
    assert len(found) == len(live) == 5
    assert [gap(a, b) <= SAME for a, b in zip(found, live)] == [True] * 5
    # The embeddings and layer 0 stand before the first edited layer, 1.
    assert [gap(a, b) > SAME for a, b in zip(found, plain)] == [False, False, True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@every_site
@some_families
def test_gradients_are_those_under_hooks(workshop: Workshop, family: str, site: str, checkpointing: bool):
    setting = (site, "l2", "identity")
    edit = workshop.edit(family, *setting)

    def gradients(model: Any) -> dict[str, Tensor]:
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return {
            name: p.grad for name, p in model.named_parameters() if "vision" not in name and "multi_modal" not in name
        }

    plain = gradients(load(workshop.base(family)))
    hooked = load(workshop.base(family))
    with edit.live(hooked):
        live = gradients(hooked)
    found = gradients(load(workshop.artefact(family, *setting)))
    scale = max(float(g.abs().max()) for g in live.values())
    for name, gradient in live.items():
        # Sums over tokens may run in another order: a few float32 roundings of the largest gradient.
        assert gap(found[name], gradient) <= 1e-5 * scale, name
    # The heads of a tiny GPT-2 move little: 5.6e-3.
    assert max(gap(plain[name], live[name]) for name in live) > (3e-3 if site == "heads" else 1e-2) * scale
    sea = {name: g for name, g in found.items() if name not in live}
    assert len(sea) == 2 * len(Workshop.LAYERS)  # and the SEA tensors can be trained, by those who want to
    assert all(g is not None and float(g.abs().max()) > 0 for g in sea.values())


def test_attention_implementations(workshop: Workshop):
    setting = ("attn", "l2", "identity")
    for implementation in ("eager", "sdpa"):
        model = load(workshop.artefact("llama", *setting), attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
        assert_is_the_edit(logits(model), workshop, "llama", *setting)


# ---------------------------------------------------------------------------------------------- saving and copying


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "site"),
    [(f, s) for f in families.third(2) for s in ("mlp", "attn", "block") if s == "mlp" or f in families.DEEP],
)
def test_saved_again_and_reloaded(workshop: Workshop, tmp_path: Path, family: str, site: str):
    """``save_pretrained`` of a loaded artefact is an artefact again: edit, code file and SEA dtype."""
    setting = (site, "l2", "identity")
    first = load(workshop.artefact(family, *setting), torch.bfloat16)
    first.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_sea.py").read_bytes() == Path(modeling_sea.__file__).read_bytes()
    again = load(tmp_path / "again")
    assert again.dtype == torch.bfloat16
    assert {p.dtype for name, p in again.named_parameters() if ".sea." in name} == {torch.float32}
    before, after = first.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(again), logits(first))
    assert gap(logits(again), logits(workshop.model(family, torch.bfloat16))) > SEEN / 4
    ran = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert any(".sea." in name for name in ran.state_dict())
    with pytest.raises(StrictDataclassError, match="edited by sea_bake"):
        type(workshop.model(family)).from_pretrained(tmp_path / "again")


@pytest.mark.slow
@another_third
def test_the_plain_class_never_gives_the_base(workshop: Workshop, family: str):
    """``LlamaForCausalLM.from_pretrained`` and ``LlamaModel`` ignore unknown tensors: only the guard stops them."""
    artefact = workshop.artefact(family, "mlp", "l2", "identity")
    plain = workshop.model(family)
    for cls in (type(plain), type(plain.get_decoder())):
        with pytest.raises(StrictDataclassError, match=r"edited by sea_bake: load it with the Auto classes and trust"):
            cls.from_pretrained(artefact)
    config = json.loads((artefact / "config.json").read_text())
    key, value = next(iter(config["sea"]["guard"].items()))
    found = load(artefact).config
    if isinstance(value, dict):  # in the decoder's part of a wrapper's configuration
        config, found, (key, value) = config[key], getattr(found, key), next(iter(value.items()))
    assert config[key].startswith(f"{value} (edited by sea_bake")
    assert getattr(found, key) == value  # ours puts it back


@pytest.mark.slow
@pytest.mark.parametrize(
    "copied", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
@some_families
def test_copies_keep_the_edit(workshop: Workshop, family: str, copied: Callable[[Any], Any]):
    for site in ("mlp", "attn", "block"):
        setting = (site, "l2", "tanh")
        found = copied(load(workshop.artefact(family, *setting)))
        assert type(found).__name__.startswith("SEA")
        assert_is_the_edit(logits(found), workshop, family, *setting)


# ---------------------------------------------------------------------------------------------- tokenizers


# The own classes of these take no BPE, which the tests' tokenizer is, or transformers has none for them.
PIECES = ("t5", "mt5", "mbart", "pegasus", "marian", "m2m_100")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "named"), [(f, named) for f in families.third(0) for named in (True, False) if named or f not in PIECES]
)
def test_the_tokenizer_is_the_bases(workshop: Workshop, tmp_path: Path, family: str, named: bool):
    """Where tokenizer_config.json names no class, AutoTokenizer goes by model_type, and ours is unknown to it."""
    base = families.save(family, tmp_path / "base", chat=True)
    path = base / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    if not named:
        del config["tokenizer_class"]
        path.write_text(json.dumps(config))
    bake(base, workshop.edit(family), tmp_path / "art", how="insert")
    original, found = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "art")
    assert type(found) is type(original)
    for text in ("is the sun a star?", "Water boils at a lower temperature,\n  on a mountain!", "</s><pad>"):
        assert found(text)["input_ids"] == original(text)["input_ids"]
        assert found.decode(found(text)["input_ids"]) == original.decode(original(text)["input_ids"])
    assert found.chat_template == original.chat_template
    assert found.special_tokens_map == original.special_tokens_map


def test_a_tokenizer_without_any_configuration(workshop: Workshop, tmp_path: Path):
    """GPT-2's own repository once held a vocabulary, merges and tokenizer.json, and nothing that names a class."""
    base = families.save("gpt2", tmp_path / "base")
    (base / "tokenizer_config.json").unlink()
    bake(base, workshop.edit("gpt2"), tmp_path / "art", how="insert")
    original, found = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "art")
    assert type(found) is type(original)
    assert found("is the sun a star?")["input_ids"] == original("is the sun a star?")["input_ids"]
