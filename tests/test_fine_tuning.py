"""An edited model is trained further and exported by torch: PEFT's LoRA on an inserted artefact, and its graph"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Workshop, load
from peft import LoraConfig, PeftModel, get_peft_model

IDS = torch.tensor([[5, 9, 33, 2, 77, 41, 8]])
MERGED = 1e-4  # B A added to the weight, or beside it: another order of sums


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS, use_cache=False).logits)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b|; infinite when anything is NaN."""
    value = float((a.double() - b.double()).abs().max())
    return value if value == value else float("inf")


@pytest.fixture
def inserted(workshop: Workshop) -> Path:
    return workshop.artefact("llama", "mlp", "l2", "identity")


def trained(model: Any, steps: int = 4) -> list[float]:
    """Losses of a few steps on one text."""
    ids = torch.arange(5, 21)[None]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(float(loss.detach()))
    return found


def test_a_lora_trains_on_an_inserted_artefact_and_comes_back(workshop: Workshop, inserted: Path, tmp_path: Path):
    """Trained, saved, reloaded; merged, saved and loaded as an artefact is: the edit stays as it was all the while."""
    before = load(inserted)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=True)
    model = get_peft_model(load(inserted), config)
    assert gap(logits(model), logits(before)) == 0
    losses = trained(model.train())
    assert losses[-1] < losses[0]
    said = logits(model.eval())
    assert gap(said, logits(before)) > 100 * MERGED  # the control: training has moved it
    model.save_pretrained(tmp_path / "lora")
    again = PeftModel.from_pretrained(load(inserted), str(tmp_path / "lora")).eval()
    assert gap(logits(again), said) == 0
    merged = again.merge_and_unload()
    assert gap(logits(merged), said) <= MERGED
    edited = {name: t for name, t in before.state_dict().items() if ".sea." in name or "sea_" in name}
    assert edited, "no tensor of the edit is known by its name"
    assert all(torch.equal(merged.state_dict()[name], t) for name, t in edited.items())
    merged.save_pretrained(tmp_path / "merged")
    assert (tmp_path / "merged" / "modeling_sea.py").is_file()
    assert gap(logits(load(tmp_path / "merged")), said) <= MERGED


@pytest.mark.slow
def test_torch_exports_an_inserted_artefact(workshop: Workshop, inserted: Path):
    """One graph, in the same operations: the same numbers, at other lengths too."""
    model = load(inserted)

    class Logits(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.inner(input_ids=ids, use_cache=False).logits)

    length = torch.export.Dim("length", min=2, max=64)
    with torch.no_grad():
        graph = torch.export.export(Logits(model), (torch.arange(5, 12)[None],), dynamic_shapes=({1: length},)).module()
        for end in (12, 30):
            ids = torch.arange(5, end)[None]
            assert gap(graph(ids), Logits(model)(ids)) <= 1e-6
            assert gap(graph(ids), Logits(load(workshop.base("llama")))(ids)) > 1e-3  # the control
