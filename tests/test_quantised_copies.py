"""Quantised copies of a fold, by other tools: what is left of the edit is told, and other models are called out"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from conftest import Workshop
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sea_bake import verify
from sea_bake.errors import VerificationError
from sea_bake.verification.copies import Copy, _bits, judge
from sea_bake.verification.effect import NOTHING_CHANGED

FILE, META = "model.safetensors", {"format": "pt"}
BITS = {8: {"load_in_8bit": True}, 4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}


def copied(source: Path, folder: Path, bits: int = 8) -> Path:
    """As anybody quantises: transformers and bitsandbytes."""
    options: dict[str, Any] = {"device_map": "cpu", "quantization_config": BitsAndBytesConfig(**BITS[bits])}
    AutoModelForCausalLM.from_pretrained(source, **options).save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def fold(workshop: Workshop) -> Path:
    return Path(workshop.folded("llama", ("mlp", "sum")).output)


@pytest.mark.slow
def test_what_is_left_of_the_edit_is_told(workshop: Workshop, fold: Path, tmp_path: Path):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in fold.iterdir())
    report = verify(fold, base=workshop.base("llama"), quantised=copied(fold, tmp_path / "copy"), max_new_tokens=4)
    variant = report.variants["copy"]
    assert report.passed
    assert variant.passed
    assert variant.bits == 8
    assert 0.95 < variant.effect_correlation < 1
    assert report.facts["copy_against"] == "the base, quantised likewise"
    assert sorted((path.name, path.stat().st_mtime_ns) for path in fold.iterdir()) == before  # nothing was written


@pytest.mark.slow
def test_a_copy_of_the_base_is_called_out(workshop: Workshop, fold: Path, tmp_path: Path):
    """The commonest mistake: the model that was edited is quantised again, and its edit was never in it."""
    base, copy = workshop.base("llama"), copied(workshop.base("llama"), tmp_path / "copy")
    ran = tiny.run("verify", fold, "--base", base, "--quantised", copy, "--max-new-tokens", 4)
    assert ran.code == 1
    assert "the edit is not in it" in ran.out
    assert "0.00 times" in ran.out


@pytest.mark.slow
def test_a_copy_of_another_model_is_called_out(workshop: Workshop, fold: Path, tmp_path: Path):
    other = shutil.copytree(workshop.base("llama"), tmp_path / "other")
    tensors = load_file(other / FILE)
    drawn = torch.Generator().manual_seed(1)
    save_file(
        {n: torch.randn(t.shape, generator=drawn) * t.std(correction=0) for n, t in tensors.items()}, other / FILE, META
    )
    copy = copied(other, tmp_path / "copy")
    report = verify(fold, base=workshop.base("llama"), quantised=copy, max_new_tokens=4)
    assert not report.passed
    assert any("copy: " in failure for failure in report.failures)


def test_of_an_edit_that_changes_no_logit_nothing_is_measured(tmp_path: Path):
    """In words, and without a number that is none."""
    door = {f"logits.{i}": torch.randn(5, 40, generator=torch.Generator().manual_seed(i)) for i in range(2)}
    door |= {"padded_logits": torch.ones(1, 40), "greedy.0": torch.arange(4), "padded.0": torch.arange(4)}
    save_file(door, tmp_path / "copy.safetensors")
    found = judge(Copy("copy", tmp_path, 8, 0, None, has_tokenizer=False), tmp_path, door, door, "the base in float32")
    assert (found.passed, found.failures, found.effect_correlation) == (False, [NOTHING_CHANGED], None)


def test_what_is_no_quantised_copy_is_refused(workshop: Workshop, fold: Path, tmp_path: Path):
    base = workshop.base("llama")
    plain = shutil.copytree(base, tmp_path / "plain")
    with pytest.raises(VerificationError, match="is not quantised: prove it as"):
        verify(fold, base=base, quantised=plain)
    inserted = workshop.artefact("llama", "mlp", "l2", "identity")
    with pytest.raises(VerificationError, match="is no fold"):
        verify(inserted, base=base, quantised=plain)


@pytest.mark.parametrize(
    ("entry", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4}, 4),
        ({"load_in_8bit": True, "load_in_4bit": False}, 8),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, 4),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 8),
        ({"quant_method": "quanto", "weights": "int2"}, 2),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
    ],
)
def test_how_many_bits_a_configuration_names(entry: dict[str, Any], bits: int):
    assert _bits(entry) == bits
