"""Families without a row: discovered, proved and then treated like any other; or refused with what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers
from conftest import Workshop
from torch import Tensor, nn

from sea_bake import Edit, bake, collect, fit
from sea_bake.errors import FamilyError, NotExactError
from sea_bake.model.anatomy import FAMILIES
from sea_bake.model.discovery import _discovered, family_of
from sea_bake.model.fingerprint import BaseModel

# Not in ``anatomy``; what makes each of them special is said beside it.
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
}
# Bloom adds the residual inside its modules; Mamba has no attention and MLP side by side.
UNPROVABLE: dict[str, Callable[[], Any]] = {
    "bloom": lambda: transformers.BloomConfig(vocab_size=128, hidden_size=48, n_layer=4, n_head=4),
    "mamba": lambda: transformers.MambaConfig(vocab_size=128, hidden_size=48, num_hidden_layers=4),
}
IDS = torch.randint(7, families.VOCAB, (2, 10), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "falcon", "mixtral", "qwen3_moe", "gpt_oss"])
def test_known_rows_would_have_been_discovered(family: str):
    """The rows of ``anatomy`` were written by hand; the proof finds the same (T5 apart, which is no causal model)."""
    text = families.CONFIGS[family]()
    found = _discovered(text.model_type, json.dumps(text.to_dict(), default=str), type(text))
    assert asdict(found) == asdict(FAMILIES[family])


def made(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(UNKNOWN[name](), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_family_is_fitted_inserted_and_folded(tmp_path: Path, name: str):
    base = made(name, tmp_path / name)
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    assert name not in FAMILIES
    for site in ("mlp", "attn"):
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
