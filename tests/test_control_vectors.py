"""Control vectors out of us and into us, in llama.cpp itself: on SmolLM2, logits and greedy answers."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import ggufs
import pytest
import tiny
import torch
from test_gguf import Answer, Real, apart, in_float32, living_answers, real, tokens  # noqa: F401  (a fixture)

from sea_bake import Edit, Site, export_control_vector, export_gguf, import_edit
from sea_bake.errors import EditError, NotExactError, OutputError, SettingError
from sea_bake.exporting.gguf.header import GgufFile
from sea_bake.methods.affine import AffineMap
from sea_bake.model.fingerprint import BaseModel

TOKENS = 24
SCALE = 1.5
D = 32


def base(**changes: Any) -> BaseModel:
    config = {"model_type": "llama", "hidden_size": D, "num_hidden_layers": 4, "num_attention_heads": 4}
    rest = dict.fromkeys(("num_key_value_heads", "intermediate_size", "vocab_size"))
    return BaseModel("tiny", None, {**rest, **config, **changes}, "float32", {})


def constants(*layers: int, site: Site = Site.BLOCK, alpha: float = 1.0, seed: int = 0) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    maps = {i: AffineMap(constant=torch.randn(D, generator=generator)) for i in layers}
    return Edit(maps, site, base(), merge="sum", alpha=alpha)


def test_what_is_written(tmp_path: Path) -> None:
    """By gguf's own reader: the strength is in the vectors, and several edits add up."""
    import gguf

    one, other = constants(1, 3, alpha=-2.0), constants(3, seed=1)
    one.save(tmp_path / "one.safetensors")
    record = export_control_vector([tmp_path / "one.safetensors", other], tmp_path / "x.gguf")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    found = {t.name: torch.tensor(t.data) for t in reader.tensors}
    assert set(found) == {"direction.1", "direction.3"}
    assert torch.equal(found["direction.1"], -2 * one.maps[1].constant)
    assert torch.allclose(found["direction.3"], -2 * one.maps[3].constant + other.maps[3].constant)
    keys = GgufFile.open(tmp_path / "x.gguf").keys
    assert {k: v for k, v in keys.items() if not k.startswith("GGUF")} == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
    }
    assert (record.route, sorted(record.changed), record.types) == ("control-vector", sorted(found), {"F32": 2})
    shown = tiny.run("inspect", tmp_path / "x.gguf")
    assert shown.code == 0, shown
    assert "as it was written" in shown.out


def test_out_and_in_again(tmp_path: Path) -> None:
    model = foreign.vectors  # the same widths as the tiny Llama's
    rows = torch.stack([model(_llama(), 1, seed=i)[0] for i in range(4)])
    (file,) = foreign.control_vector(tmp_path / "in.gguf", {i: rows[i] for i in (1, 2)})
    edit = import_edit(file, tiny.single(), alpha=0.5)
    edit.save(tmp_path / "edit.safetensors")
    ran = tiny.run("export", "control-vector", tmp_path / "edit.safetensors", "-o", tmp_path / "out.gguf")
    assert ran.code == 0, ran
    assert "llama-cli -m BASE.gguf --control-vector" in ran.out
    again = import_edit(tmp_path / "out.gguf", tiny.single())
    assert again.layers == (1, 2)
    assert torch.allclose(again.maps[2].constant, 0.5 * rows[2])


def _llama() -> Any:
    import test_importing

    return test_importing.llama()


def test_what_no_control_vector_can_be(tmp_path: Path) -> None:
    rank = Edit({1: AffineMap(A=torch.ones(1, D), B=torch.ones(D, 1))}, Site.BLOCK, base(), merge="sum")
    both = Edit(
        {1: AffineMap(A=torch.ones(1, D), B=torch.ones(D, 1), constant=torch.ones(D))}, Site.BLOCK, base(), "sum"
    )
    other = Edit({1: AffineMap(constant=torch.ones(48))}, Site.BLOCK, base(hidden_size=48), merge="sum")
    (tmp_path / "there.gguf").write_bytes(b"x")
    before = tiny.listing(tmp_path)
    for edits, error, words in (
        (rank, NotExactError, r"does more .*rank 1, .*sea-bake export gguf OUT"),
        (both, NotExactError, "does more"),
        (constants(1, site=Site.MLP), NotExactError, "adds its vectors at mlp"),
        (constants(0, 1), NotExactError, "behind layer 0, .*--layers 1-3"),
        (constants(1, alpha=0.0), EditError, "changes nothing"),
        ([constants(1), other], EditError, "hidden_size = 32"),
        ([], SettingError, "nothing to export"),
        (tmp_path, EditError, "is a folder"),
        (Edit.load(tiny.edit_file()), NotExactError, "merge l2"),
    ):
        with pytest.raises(error, match=words):
            export_control_vector(edits, tmp_path / "x.gguf")
    with pytest.raises(OutputError, match="exists already"):
        export_control_vector(constants(1), tmp_path / "there.gguf")
    with pytest.raises(SettingError, match=r"should end in \.gguf"):
        export_control_vector(constants(1), tmp_path / "x.bin")
    assert tiny.listing(tmp_path) == before
    normed = replace(constants(1), base=base(model_type="gemma2"))
    with pytest.raises(NotExactError, match="sea-bake export control-vector"):  # the way out of GGUF's refusal
        export_gguf(normed, tmp_path / "m.gguf", base=ggufs.single())


# ------------------------------------------------------------------------------------------------- SmolLM2 in llama.cpp


def in_llama_cpp(model: Path, prompts: list[list[int]], *arguments: object) -> list[Answer]:
    return [Answer(*one) for one in ggufs.llama_cpp(model, prompts, TOKENS, *arguments)]


def under_hooks(model: Any, edit: Edit | None, prompts: list[list[int]]) -> list[Answer]:
    with edit.live(model) if edit else contextlib.nullcontext():
        return living_answers(model, prompts)


@pytest.mark.slow
@pytest.mark.smollm2
def test_llama_cpp_adds_it_where_we_do(real: Real, tmp_path: Path) -> None:  # noqa: F811
    """A file goes into llama.cpp and into us, and out of us into llama.cpp again: the same answers, and in all layers.

    The control: the same vectors one layer later, and no vectors.
    """
    from sea_bake.model.loading import load_model

    model = load_model(real.base, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    count = model.config.num_hidden_layers - 1
    scale = torch.linspace(0.2, 1.0, count)[:, None]
    rows = scale * torch.randn(count, model.config.hidden_size, generator=generator)
    (file,) = foreign.control_vector(tmp_path / "in.gguf", {i + 1: v for i, v in enumerate(rows)})
    edit = import_edit(file, real.base, alpha=SCALE)
    assert edit.layers == tuple(range(1, count + 1))
    export_control_vector(edit, tmp_path / "out.gguf")
    moved = foreign.control_vector(tmp_path / "late.gguf", {i + 2: v for i, v in enumerate(rows[:-1])})
    late = import_edit(moved, real.base, alpha=SCALE)
    plain = in_float32(real.gguf, tmp_path / "base-f32.gguf")
    hooks, one_late, unedited = (under_hooks(model, one, real.prompts) for one in (edit, late, None))
    for arguments in (
        ("--control-vector-scaled", f"{file}:{SCALE}"),
        ("--control-vector", tmp_path / "out.gguf"),
    ):
        found = in_llama_cpp(plain, real.prompts, *arguments)
        assert tokens(found) == tokens(hooks)
        assert apart(found, hooks) < 1e-3  # other kernels sum in another order
        assert apart(found, one_late) > 0.1
        assert apart(found, unedited) > 0.1
    assert tokens(hooks) != tokens(unedited)
    assert apart(in_llama_cpp(plain, real.prompts), unedited) < 1e-3
