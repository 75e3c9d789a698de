"""Models that lie on several devices, or on disk: fitted, proved and known again as if they were in one place."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch

from sea_bake import Edit, collect, fit
from sea_bake.activations.texts import ROLES
from sea_bake.errors import CheckpointError, SettingError
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.loading import load_model
from sea_bake.model.placing import Offloaded, input_device, rooms, weights


@pytest.fixture(autouse=True)
def offloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Path]]]:
    """The folders of weights that were taken off: of models that are still there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield lambda: sorted(tmp_path.glob("sea-bake-offload-*"))
    gc.collect()
    assert not list(tmp_path.glob("sea-bake-offload-*"))


def test_room_is_named_in_bytes() -> None:
    assert rooms("auto:0=20GB,cpu=1.5MB,12=3kB") == {0: 20_000_000_000, "cpu": 1_500_000, 12: 3000}
    assert rooms("auto:cpu=0B") == {"cpu": 0}
    assert [rooms(device) for device in ("auto", "cpu", "cuda:1", "")] == [None] * 4
    for wrong in ("auto:", "auto:cpu", "auto:gpu=2GB", "auto:0=2GiB", "auto:0=2", "auto:cpu=-1GB"):
        with pytest.raises(SettingError, match=r"auto:0=20GB,cpu=8GB"):
            rooms(wrong)


def on_the_processor(folder: Path) -> Any:
    """Weights in memory that accelerate hands over module by module, as it does to a GPU."""
    from accelerate import cpu_offload

    return cpu_offload(load_model(folder, device="cpu"), execution_device="cpu")


def halves(folder: Path) -> Path:
    """bfloat16, and one matrix that is both embedding and head."""
    tiny.new_llama(tie_word_embeddings=True).bfloat16().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


SPREAD: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "half on disk": (lambda _: tiny.single(), lambda base: load_model(base, device="auto:cpu=150kB")),
    "all on disk": (lambda _: tiny.single(), lambda base: load_model(base, device="auto:cpu=0B")),
    "in memory": (lambda _: tiny.single(), on_the_processor),
    "tied, in bfloat16": (halves, lambda base: load_model(base, device="auto:cpu=60kB")),
    "widened": (halves, lambda base: load_model(base, device="auto:cpu=120kB", dtype="float32")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREAD)
def test_a_fit_is_the_same(name: str, tmp_path: Path) -> None:
    """Vectors, strength, cost and fingerprint, to the bit: the same operations on one device."""
    make, load = SPREAD[name]
    base = make(tmp_path / "base")
    model, found = load(base), []
    dtype = str(model.dtype).removeprefix("torch.")
    assert any(p.is_meta for p in model.parameters())
    assert any(isinstance(one, Offloaded) for one in weights(model).values())
    assert input_device(model) == torch.device("cpu")
    for one in (load_model(base, device="cpu", dtype=dtype), model):
        edit = fit(
            one,
            tiny.demonstrations(),
            tokenizer=tiny.tokenizer(),
            source="base",
            layers="all",
            batch_size=4,
            max_new_tokens=4,
            controls=0,
        )
        found.append(edit)
    assert len(found[0].base.samples) > 0
    assert found[1].base == found[0].base
    plain, other = (edit.save(tmp_path / str(i)).read_bytes() for i, edit in enumerate(found))
    assert plain == other


def test_experts_that_are_stacked_are_written_again(tmp_path: Path, offloads: Callable[[], list[Path]]) -> None:
    """They lie one by one on disk. To rounding: a matrix in a file lies otherwise than one in memory."""
    base = families.save("mixtral", tmp_path / "base", layers=2)
    plain, spread = (load_model(base, device=device) for device in ("cpu", "auto:cpu=0B"))
    assert [len(list(folder.iterdir())) for folder in offloads()] == [4]  # two matrices of each layer
    found = [
        collect(model, families.tokenizer(), families.demonstrations(), source="base", max_new_tokens=4)
        for model in (plain, spread)
    ]
    assert found[1].base == found[0].base
    for role in ROLES:
        one, other = (getattr(activations, role) for activations in found)
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * float(one.abs().max()))


def test_another_model_is_told_from_what_lies_on_disk(tmp_path: Path) -> None:
    """The control: one value of a layer that stays on disk is another one, and the fingerprint says so."""
    from safetensors.torch import load_file, save_file

    folder = tiny.changeable(tiny.single(), tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.3.mlp.down_proj.weight"
    tensors[name][0, 0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(folder, device="auto:cpu=150kB")
    assert model.get_parameter(name).is_meta
    plain = BaseModel.of(load_model(tiny.single(), device="cpu"), "base")
    with pytest.raises(Exception, match=r"mlp\.down_proj\.weight of layer 3|mlp\.down_proj of layer 3"):
        plain.check(BaseModel.of(model, "other"), [3])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["insert", "fold"])
def test_a_proof_is_the_same(how: str, tmp_path: Path) -> None:
    edit = fit(tiny.single(), tiny.demonstrations(), layers="all", neutral="prompt", alpha=1.0, measure=False)
    file, out = edit.save(tmp_path / "edit"), tmp_path / how
    assert tiny.run("bake", tiny.single(), file, "-o", out, "--how", how).code == 0
    plain, spread = (
        tiny.run("verify", out, "--base", tiny.single(), "--device", device, "--json")
        for device in ("cpu", "auto:cpu=150kB")
    )
    assert plain.code == spread.code == 0, spread
    both = [json.loads(ran.out) for ran in (plain, spread)]
    assert {key for key in both[0] if both[0][key] != both[1][key]} == {"device"}


@pytest.mark.slow
def test_an_adapter_needs_its_base_in_memory(tmp_path: Path) -> None:
    """PEFT would copy the base's files for it, to below the folder that one works in."""
    edit = Edit.load(tiny.edit_file(site="attn"))
    sums = Edit(edit.maps, edit.site, edit.base, merge="sum")
    file, out = sums.save(tmp_path / "edit"), tmp_path / "adapter"
    assert tiny.run("bake", tiny.single(), file, "-o", out, "--how", "adapter").code == 0
    check = ("verify", out, "--base", tiny.single())
    with tiny.nothing_happens(tmp_path):
        tiny.refused(
            tiny.run(*check, "--device", "auto:cpu=150kB"),
            "VerificationError",
            "stays on disk",
            "--device cpu",
            "a fold",
        )
    assert tiny.run(*check, "--device", "auto:cpu=9MB").code == 0


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offloads: Callable[[], list[Path]]) -> None:
    from transformers import LlamaForCausalLM

    errors: list[Exception] = []

    def fails(*_: Any, **__: Any) -> None:
        raise errors[-1]

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", fails)
    errors.append(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(CheckpointError, match=r"CUDA out of memory.*--device auto"):
        load_model(tiny.single(), device="cuda")
    with pytest.raises(CheckpointError, match="name less room"):
        load_model(tiny.single(), device="auto:0=2GB")
    errors.append(OSError(28, "No space left on device"))
    with pytest.raises(CheckpointError, match=f"{tmp_path}: set TMPDIR"):
        load_model(tiny.single(), device="auto")
    assert not offloads()
    tiny.refused(
        tiny.run("fit", tiny.single(), "--device", "auto:cpu=2X", "-o", tmp_path / "e"), "SettingError", "cpu=2X"
    )
    tiny.refused(tiny.run("verify", tmp_path / "no", "--device", "auto:x"), "SettingError", "'x'")
