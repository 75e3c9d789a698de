"""Families without a row: discovered, proved and then treated like any other; or refused with what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
import transformers
from conftest import Workshop
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sea_bake import Edit, Site, bake, collect, fit, plan
from sea_bake.errors import CheckpointError, FamilyError, NotExactError
from sea_bake.model.anatomy import FAMILIES
from sea_bake.model.discovery import _discovered, family_of
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.skeleton import skeleton, stack_of

# Not in ``anatomy``, or taken out of it; what makes each of them special is said beside it.
UNKNOWN: dict[str, Callable[[], Any]] = {
    "phi": lambda: transformers.PhiConfig(**{**families.GROUPED, "hidden_size": 64}),  # parallel, biases, mlp.fc2
    "olmo3": lambda: transformers.Olmo3Config(**families.GROUPED),  # norms behind
    "deepseek_v3": lambda: transformers.DeepseekV3Config(  # a dense layer first, then experts and a shared one
        **{**families.GROUPED, "num_key_value_heads": 4},
        moe_intermediate_size=32,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=2,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    ),
    "granitemoe": lambda: transformers.GraniteMoeConfig(  # all experts in one tensor on disk
        **families.GROUPED, num_local_experts=4, num_experts_per_tok=2
    ),
    # A Sequential of numbered linears, and projections inside the attention that are as wide as the residual stream.
    "ctrl": lambda: transformers.CTRLConfig(
        vocab_size=128, n_positions=64, n_embd=48, dff=96, n_layer=4, n_head=4, initializer_range=families.SPREAD
    ),
    "gptj": lambda: transformers.GPTJConfig(  # a buffer that no checkpoint holds; attention and MLP side by side
        vocab_size=128, n_positions=64, n_embd=48, n_layer=4, n_head=4, rotary_dim=8, initializer_range=families.SPREAD
    ),
    "xglm": lambda: transformers.XGLMConfig(  # linears of the MLP side by side in the layer, of one width
        vocab_size=128, d_model=48, ffn_dim=48, num_layers=4, attention_heads=4, init_std=families.SPREAD
    ),
    "lfm2": lambda: transformers.Lfm2Config(  # convolutions first and last, attention in layer 1 alone
        **families.GROUPED,
        layer_types=["conv", "full_attention", "conv", "conv"],
        block_auto_adjust_ff_dim=False,
    ),
    "falcon_h1": lambda: transformers.FalconH1Config(  # attention and Mamba side by side
        **families.GROUPED, mamba_d_ssm=96, mamba_n_heads=6, mamba_d_head=16, mamba_d_state=16, mamba_chunk_size=8
    ),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(  # two kinds of attention; experts and a shared one
        **families.GROUPED,
        **families.EXPERTS,
        head_dim=16,
        shared_expert_intermediate_size=40,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"],
    ),
    "olmo_hybrid": lambda: transformers.OlmoHybridConfig(  # refuses to be cut to layers without attention
        **{**families.GROUPED, "num_key_value_heads": 4},
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"],
    ),
    # The residual is added inside of both modules, behind their last linears.
    "bloom": lambda: transformers.BloomConfig(vocab_size=128, hidden_size=48, n_layer=4, n_head=4),
}
# Site -> (module, writers) in the layers that have it: what is edited, by name.
PLACES: dict[str, dict[str, dict[int, tuple[str, str]]]] = {
    "phi": {"mlp": {3: ("mlp", "mlp.fc2")}, "attn": {3: ("self_attn", "self_attn.dense")}},
    "olmo3": {"mlp": {3: ("mlp", "mlp.down_proj")}, "attn": {3: ("self_attn", "self_attn.o_proj")}},
    "deepseek_v3": {"mlp": {0: ("mlp", "mlp.down_proj"), 3: ("mlp", "mlp.experts.0.down_proj")}},
    "granitemoe": {"mlp": {3: ("block_sparse_moe", "block_sparse_moe.output_linear")}},
    "ctrl": {"mlp": {3: ("ffn", "ffn.2")}, "attn": {3: ("multi_head_attention", "multi_head_attention.dense")}},
    "gptj": {"mlp": {3: ("mlp", "mlp.fc_out")}, "attn": {3: ("attn", "attn.out_proj")}},
    "xglm": {"mlp": {3: ("fc2", "fc2")}, "attn": {3: ("self_attn", "self_attn.out_proj")}},
    "lfm2": {
        "mlp": {0: ("feed_forward", "feed_forward.w2"), 1: ("feed_forward", "feed_forward.w2")},
        "attn": {1: ("self_attn", "self_attn.out_proj")},
        "attn:conv": {0: ("conv", "conv.out_proj"), 2: ("conv", "conv.out_proj"), 3: ("conv", "conv.out_proj")},
    },
    "falcon_h1": {
        "mlp": {3: ("feed_forward", "feed_forward.down_proj")},
        "attn": {3: ("self_attn", "self_attn.o_proj")},
        "attn:mamba": {3: ("mamba", "mamba.out_proj")},
    },
    "qwen3_next": {
        "mlp": {0: ("mlp", "mlp.experts.0.down_proj"), 1: ("mlp", "mlp.experts.0.down_proj")},
        "attn": {0: ("linear_attn", "linear_attn.out_proj"), 1: ("self_attn", "self_attn.o_proj")},
    },
    "olmo_hybrid": {
        "mlp": {0: ("mlp", "mlp.down_proj"), 1: ("mlp", "mlp.down_proj")},
        "attn": {0: ("linear_attn", "linear_attn.o_proj"), 1: ("self_attn", "self_attn.o_proj")},
    },
    "bloom": {
        "mlp": {3: ("mlp.dense_4h_to_h", "mlp.dense_4h_to_h")},
        "attn": {3: ("self_attention.dense", "self_attention.dense")},
    },
}
T5 = {
    "vocab_size": 128,
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 5,
    "num_decoder_layers": 4,
    "num_heads": 4,
}
BART = {
    "vocab_size": 128, "d_model": 48, "encoder_layers": 3, "decoder_layers": 4, "encoder_attention_heads": 2,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 96, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 2, "max_position_embeddings": 128,
}  # fmt: skip
GEMMA = {**families.GEMMA, "model_type": "t5_gemma_module"}
# Decoders beside an encoder, with another number of layers than it; their sites, by name.
_BLOCKS = ("layer.0.SelfAttention", "layer.2.DenseReluDense")
ENCODED: dict[str, tuple[Callable[[], Any], str, tuple[str, str]]] = {
    "mt5": (lambda: transformers.MT5Config(**T5), "decoder.block", _BLOCKS),
    "umt5": (lambda: transformers.UMT5Config(**T5), "decoder.block", _BLOCKS),
    "bart": (lambda: transformers.BartConfig(**BART), "model.decoder.layers", ("self_attn", "fc2")),
    "mbart": (lambda: transformers.MBartConfig(**BART), "model.decoder.layers", ("self_attn", "fc2")),
    "pegasus": (lambda: transformers.PegasusConfig(**BART), "model.decoder.layers", ("self_attn", "fc2")),
    "marian": (lambda: transformers.MarianConfig(**BART), "model.decoder.layers", ("self_attn", "fc2")),
    "m2m_100": (lambda: transformers.M2M100Config(**BART), "model.decoder.layers", ("self_attn", "fc2")),
    "t5gemma": (
        lambda: transformers.T5GemmaConfig(
            encoder={**GEMMA, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, decoder=GEMMA
        ),
        "model.decoder.layers",
        ("self_attn", "mlp"),
    ),
}
# JetMoE's experts are asked for inside of its attention; Mamba has no attention and MLP side by side.
UNPROVABLE: dict[str, Callable[[], Any]] = {
    "jetmoe": lambda: transformers.JetMoeConfig(
        vocab_size=128,
        hidden_size=48,
        num_hidden_layers=4,
        num_key_value_heads=2,
        kv_channels=16,
        intermediate_size=64,
        num_local_experts=4,
    ),
    "mamba": lambda: transformers.MambaConfig(vocab_size=128, hidden_size=48, num_hidden_layers=4),
}
IDS = torch.randint(7, families.VOCAB, (2, 10), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


KNOWN = ["llama", "gemma2", "gpt2", "opt", "falcon", "mixtral", "qwen3_moe", "gpt_oss"]
LIFTED = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe", "qwen3_5", "qwen3_5_moe"),
    *("qwen3_next", "gemma3n_text", "gemma4", "llama4_text", "lfm2_vl", "lfm2_moe", "jamba", "bamba", "nemotron_h"),
    *("smolvlm", "idefics3", "ernie4_5_moe", "afmoe", "aria"),
)


@pytest.mark.parametrize("family", [*KNOWN, *(pytest.param(name, marks=pytest.mark.slow) for name in LIFTED)])
def test_known_rows_would_have_been_discovered(family: str):
    """The rows of ``anatomy`` were written by hand; the proof finds the same (T5 apart, which is no causal model)."""
    text = families.config(family).get_text_config(decoder=True)
    found = _discovered(text.model_type, json.dumps(text.to_dict(), default=str), type(text))
    known = replace(FAMILIES[text.model_type], bias_keys=())  # which are a configuration's, and not proved
    assert asdict(found) == asdict(known)


def made(config: Any, folder: Path) -> Path:
    """A tiny model of a configuration, whose biases and norms are no constants, and its tokenizer."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    return folder


def test_a_plan_discovers_a_family_once(tmp_path: Path) -> None:
    """Though it sees its configuration as it lies on disk, and as a model has it that is built without memory."""
    base = made(UNKNOWN["olmo3"](), tmp_path / "base")
    _discovered.cache_clear()
    plan(base)
    assert _discovered.cache_info().misses == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_family_is_fitted_inserted_and_folded(tmp_path: Path, name: str, monkeypatch: Any):
    monkeypatch.delitem(FAMILIES, name, raising=False)
    base = made(UNKNOWN[name](), tmp_path / name)
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    assert name not in FAMILIES
    for site in {"mlp": 1, "attn": 1, **PLACES[name]}:
        saved = collect(
            model, families.tokenizer(), families.demonstrations(), source=name, site=site, neutral="prompt"
        )
        edit = fit(None, activations=saved, layers=Workshop.LAYERS, K=0.9, merge="sum")
        with edit.live(model):
            expected = logits(model)
        scale = float(expected.abs().max())
        assert float((expected - logits(model)).abs().max()) > 1e-3 * scale
        for how in ("insert", "fold"):
            folder = bake(base, edit, tmp_path / f"{site}-{how}", how=how).output
            trusted = {"trust_remote_code": how == "insert"}
            found = transformers.AutoModelForCausalLM.from_pretrained(folder, **trusted).eval()
            # As in test_folds: 1e-5 of the largest logit, for sums in another order.
            assert float((logits(found) - expected).abs().max()) < 1e-5 * scale, (site, how)
            if how == "insert":
                edited = {n.removesuffix(".sea.0.A") for n, _ in found.named_parameters() if n.endswith(".sea.0.A")}
                wanted = PLACES[name].get(site, {})
                inside = [re.split(r"\.(\d+)\.", path, maxsplit=1) for path in edited]
                seen = {int(number): module for _, number, module in inside}
                assert seen.keys() == set(edit.layers)
                assert all(seen[layer] == wanted[layer][0] for layer in wanted if layer in seen)
            else:
                before, after = (load_file(place / "model.safetensors") for place in (base, folder))
                changed = [n for n in before if not torch.equal(before[n], after[n])]
                for layer, (_, writer) in PLACES[name].get(site, {}).items():
                    assert layer not in edit.layers or any(f".{layer}.{writer}" in n for n in changed), (site, layer)


def wide(name: str) -> Any:
    """The published width of a layout, with as many experts."""
    return {
        "deepseek_v3": lambda: transformers.DeepseekV3Config(),  # 256 experts: 45 GB a layer in float32
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            hidden_size=4096, num_attention_heads=64, num_key_value_heads=4, head_dim=128, num_hidden_layers=94
        ),
        "llama": lambda: transformers.LlamaConfig(
            hidden_size=8192,
            intermediate_size=28672,
            num_attention_heads=64,
            num_key_value_heads=8,
            num_hidden_layers=80,
        ),
        "falcon": lambda: transformers.FalconConfig(
            hidden_size=4544, num_attention_heads=71
        ),  # a prime number of heads
        "gpt_oss": lambda: transformers.GptOssConfig(),
    }[name]()


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "llama", "falcon", "gpt_oss"])
def test_a_layer_of_any_width_is_looked_at_in_little_memory(name: str):
    """The same row as of the tiny one, and no tensor as large as the real ones."""
    text, largest = wide(name), 0
    small = (UNKNOWN | families.CONFIGS)[name]()
    expected = _discovered(small.model_type, json.dumps(small.to_dict(), default=str), type(small))
    original = torch.randn_like

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return original(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", counted)
        found = _discovered(text.model_type, json.dumps(text.to_dict(), default=str), type(text))
    assert found == expected
    assert 0 < largest < 1 << 23


@pytest.mark.parametrize("name", PLACES)
def test_each_site_lies_in_the_module_of_that_name(name: str):
    """In the layers of each kind, and nowhere inside of another site's."""
    text = UNKNOWN[name]()
    row, stack = family_of(text), stack_of(skeleton(text), 4)
    assert stack is not None
    parts = [[n for n, _ in layer.named_parameters()] for layer in stack[1]]
    for site, places in PLACES[name].items():
        for layer, (module, writer) in places.items():
            place = row.place(Site(site), parts[layer])
            assert place is not None
            assert place.module == module
            stacked = row.experts and row.experts.format(0).removesuffix(".weight")
            assert writer in (place.writer, stacked)
    for own in parts:
        modules = [
            p.module
            for s in (*Site, *(Site(n) for n, _ in row.named))
            if s.value not in ("block", "heads")  # which lie around, and inside of, the others
            if (p := row.place(s, own)) is not None
        ]
        assert len(set(modules)) == len(modules)
        assert not any(a.startswith(f"{b}.") for a in modules for b in modules)


def test_layers_without_the_site_are_named(tmp_path: Path):
    base = made(UNKNOWN["lfm2"](), tmp_path / "base")
    tiny_demos = tiny.demonstrations_file()
    ran = tiny.run(
        "fit",
        base,
        "-d",
        tiny_demos,
        "--layers",
        "all",
        "-K",
        "4",
        "--neutral",
        "prompt",
        "--site",
        "attn",
        "--alpha",
        "0.77",
        "-o",
        tmp_path / "edit",
    )
    assert ran.code == 0, ran
    assert Edit.load(tmp_path / "edit").layers == (1,)
    assert "not edited, having no site attn: layers 0, 2-3" in " ".join(ran.out.split())
    for layers, words in (
        ("2,3", ["layers 2-3", "no site attn", "exists in 1"]),
        ("0", ["layer 0", "has no site attn"]),
    ):
        ran = tiny.run("fit", base, "-d", tiny_demos, "--layers", layers, "--site", "attn", "-o", tmp_path / "no")
        tiny.refused(ran, "SettingError", *words)
    ran = tiny.run("fit", base, "-d", tiny_demos, "--site", "attn:mamba", "-o", tmp_path / "no")
    tiny.refused(ran, "SettingError", "lfm2 has no site 'attn:mamba'", "attn:conv")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        (
            "lfm2",
            [
                {"layers": "0, 2-3", "mlp": "feed_forward", "attn": None, "heads": None, "attn:conv": "conv"},
                {"layers": "1", "mlp": "feed_forward", "attn": "self_attn", "heads": "self_attn.out_proj"},
            ],
        ),
        (
            "falcon_h1",
            [
                {
                    "layers": "0-3",
                    "mlp": "feed_forward",
                    "attn": "self_attn",
                    "heads": "self_attn.o_proj",
                    "attn:mamba": "mamba",
                }
            ],
        ),
        (
            "qwen3_next",
            [
                {"layers": "0, 2", "mlp": "mlp", "attn": "linear_attn", "heads": "linear_attn.out_proj"},
                {"layers": "1, 3", "mlp": "mlp", "attn": "self_attn", "heads": "self_attn.o_proj"},
            ],
        ),
    ],
)
def test_plan_says_what_each_kind_of_layer_has(tmp_path: Path, name: str, kinds: list[dict[str, Any]]):
    assert plan(made(UNKNOWN[name](), tmp_path / name)).kinds == kinds


def test_an_intact_hybrid_is_complete_and_a_damaged_one_is_not(tmp_path: Path):
    base = made(UNKNOWN["lfm2"](), tmp_path / "base")
    assert plan(base).family == "lfm2"
    tensors = load_file(base / "model.safetensors")
    lost = "model.layers.2.conv.out_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != lost}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks the tensor {lost}"):
        plan(base)


class Inner(nn.Module):
    """An attention whose own output is no linear's, around modules whose output is."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first, *others = self.whole(*args, **kwargs)
        return (torch.tanh(first), *others)


def test_nothing_inside_of_an_unprovable_module_takes_its_place(monkeypatch: Any):
    """What falls through to a part of the attention, or of the MLP, is refused."""
    from transformers.models.ctrl.modeling_ctrl import EncoderLayer
    from transformers.models.phi.modeling_phi import PhiMLP

    original = EncoderLayer.__init__

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.multi_head_attention = Inner(self.multi_head_attention)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderLayer, "__init__", wrapped)
        _discovered.cache_clear()
        with pytest.raises(FamilyError, match="no module could be proved to be its attn"):
            family_of(UNKNOWN["ctrl"]())
    forward = PhiMLP.forward
    with monkeypatch.context() as patch:
        patch.setattr(PhiMLP, "forward", lambda self, x: torch.tanh(forward(self, x)))
        _discovered.cache_clear()
        with pytest.raises(FamilyError, match="no module could be proved to be its mlp"):
            family_of(UNKNOWN["phi"]())
    _discovered.cache_clear()


@pytest.mark.parametrize("name", UNPROVABLE)
def test_what_cannot_be_proved_is_refused_with_what_was_found(name: str):
    with pytest.raises(FamilyError) as error:
        family_of(UNPROVABLE[name]())
    for word in (f"'{name}'", "could be proved", "Found: stack of layers:", "sea_bake/model/anatomy.py"):
        assert word in str(error.value)


def test_a_row_that_is_wrong_is_noticed_by_measuring(workshop: Workshop, tmp_path: Path, monkeypatch: Any):
    """The control of the measurement before a fold: a row that names another tensor, or forgets the shared expert."""
    from dataclasses import replace

    for family, wrong in (("llama", {"mlp_writer": "self_attn.o_proj"}), ("qwen2_moe", {"shared": None})):
        edit = workshop.edit(family, "mlp", "sum", "identity")
        assert bake(workshop.base(family), edit, tmp_path / f"right-{family}", how="fold").how == "fold"
        monkeypatch.setitem(FAMILIES, family, replace(FAMILIES[family], **wrong))
        monkeypatch.setattr(BaseModel, "check", lambda *_, **__: None)  # it would notice the first of them, too
        for how in ("fold", "adapter"):
            with pytest.raises(NotExactError, match="measured on the real weights"):
                bake(workshop.base(family), edit, tmp_path / "wrong", how=how)
            assert not (tmp_path / "wrong").exists()
        monkeypatch.undo()


@pytest.mark.parametrize("damage", ["a norm behind", "a bias behind", "a scale behind"])
def test_the_measurement_notices_what_stands_behind_the_writer(workshop: Workshop, tmp_path: Path, damage: str):
    """Models that answer otherwise than their family: the real module is run, so it is seen."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    def spoiled(self: nn.Module, x: Tensor) -> Tensor:
        y = original(self, x)
        ramp = torch.linspace(0.5, 1.5, y.shape[-1])
        return {
            "a norm behind": y / y.norm(dim=-1, keepdim=True),
            "a bias behind": y + 0.1,
            "a scale behind": y * ramp,
        }[damage]

    edit, original = workshop.edit("llama", "mlp", "sum", "identity"), LlamaMLP.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaMLP, "forward", spoiled)
        with pytest.raises(NotExactError, match="measured on the real weights"):
            bake(workshop.base("llama"), edit, tmp_path / "no", how="fold")
    assert not (tmp_path / "no").exists()
    assert isinstance(edit, Edit)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODED)
def test_the_decoder_beside_an_encoder_is_edited_and_folded(tmp_path: Path, name: str):
    """Its own layers, whatever the encoder's number; what is loaded again says what the module does under a hook."""
    made_of, stem, modules = ENCODED[name]
    torch.manual_seed(0)
    base = tmp_path / "base"
    model = transformers.AutoModelForSeq2SeqLM.from_config(made_of(), dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(base)
    families.tokenizer().save_pretrained(base)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    told = {"input_ids": IDS[:, :7], "decoder_input_ids": IDS}
    for site, module in zip(("attn", "mlp"), modules):
        edit = fit(
            base, families.demonstrations(), site=site, layers=[1, 3], neutral="prompt", K=0.9, merge="sum", alpha=1
        )
        with torch.inference_mode():
            plain = model(**told, use_cache=False).logits
            handles = []
            for layer, projector in edit.projectors.items():
                P, N = (f.double().T @ f.double() for f in (projector.positive, projector.negative))
                M = torch.eye(len(P)).double() + P - N

                def act(_m: Any, _a: Any, out: Any, M: Tensor = M) -> Any:
                    first = out[0] if isinstance(out, tuple) else out
                    new = (first.double() @ M).float()
                    return (new, *out[1:]) if isinstance(out, tuple) else new

                handles.append(model.get_submodule(f"{stem}.{layer}.{module}").register_forward_hook(act))
            expected = model(**told, use_cache=False).logits
            for handle in handles:
                handle.remove()
            for how in ("insert", "fold"):
                target = bake(base, edit, tmp_path / f"{site}-{how}", how=how).output
                cls = transformers.AutoModelForSeq2SeqLM
                baked = cls.from_pretrained(target, trust_remote_code=how == "insert").eval()
                gap = (baked(**told, use_cache=False).logits - expected).abs().max()
                assert gap < 1e-4 * expected.abs().max() < (plain - expected).abs().max()
