"""Every closed-form map through every exact door on real weights, SmolLM2-135M-Instruct: cut to its first layers for
each map and door by itself, and whole with all maps at once; against the dense float64 matrices of ``test_affine``.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ggufs
import pytest
import real
import torch
from conftest import load
from peft import PeftModel
from test_affine import CASES, EQUAL, VISIBLE, by_the_paper, difference, edit_of, logits, reloaded
from torch import Tensor

from sea_bake import Edit, bake, export_gguf, export_onnx
from sea_bake.baking import plan
from sea_bake.errors import NotExactError
from sea_bake.model.loading import load_tokenizer
from sea_bake.verification.onnx_answers import Decoder, cached, forced

pytestmark = [pytest.mark.slow, pytest.mark.smollm2]
ALPHA = 0.7
# By the table of maps: what has neither a constant nor a scale is a LoRA, and at the stream only a constant folds.
DOORS = {
    "insert": list(CASES),
    "fold": [name for name in CASES if name != "rank one at the stream"],
    "adapter": ["linear SEA", "ablation of attention", "Householder"],
}
# All maps in one model: two of a site never in one layer, and no layer without an edit behind it.
SHORT = {name: (i % 2,) for i, name in enumerate(CASES)}
DEEP = {name: (3 * i,) for i, name in enumerate(CASES)}


@pytest.fixture(scope="module")
def living() -> Callable[[int], Any]:
    return functools.cache(lambda depth: load(real.cut(depth), "float32"))


@pytest.fixture(scope="module")
def ids(smollm2: Path) -> Tensor:
    texts = ["Why is the sky so blue, and the sea?", "Goldfish remember things for months, not seconds."]
    return torch.tensor([load_tokenizer(smollm2)(text).input_ids[:9] for text in texts])


def by_the_papers(model: Any, ids: Tensor, layers: dict[str, tuple[int, ...]]) -> Tensor:
    """Logits under the maps' dense matrices: name -> its layers."""
    with contextlib.ExitStack() as stack:
        for name, where in layers.items():
            stack.enter_context(by_the_paper(model, "llama", CASES[name], ALPHA, where))
        return logits(model, ids)


def edits(model: Any, layers: dict[str, tuple[int, ...]]) -> list[Edit]:
    return [edit_of(model, "llama", CASES[name], ALPHA, layers=where) for name, where in layers.items()]


def all_are_seen(found: Tensor, model: Any, ids: Tensor, layers: dict[str, tuple[int, ...]], bound: float) -> None:
    """It answers as under all maps; and not as under all but one, whichever that is: the control of each."""
    assert difference(found, by_the_papers(model, ids, layers)) < bound
    for left_out in layers:
        rest = {name: where for name, where in layers.items() if name != left_out}
        assert difference(found, by_the_papers(model, ids, rest)) > 10 * bound, left_out


@pytest.mark.parametrize("name", CASES)
def test_every_map_through_every_exact_door(
    living: Callable[[int], Any], ids: Tensor, tmp_path: Path, name: str
) -> None:
    """live = baked = reloaded, != base; refused where it is not exact; and one layer left out is noticed."""
    base, model = real.cut(4), living(4)
    (edit,) = edits(model, {name: (1, 3)})
    expected, control = by_the_papers(model, ids, {name: (1, 3)}), by_the_papers(model, ids, {name: (1,)})
    with edit.live(model):
        assert difference(logits(model, ids), expected) < EQUAL
    assert difference(logits(model, ids), expected) > VISIBLE
    row = plan(base, [edit]).rows[0] | {"insert": True}
    assert [how for how in DOORS if row[how]] == [how for how in DOORS if name in DOORS[how]]
    for how, names in DOORS.items():
        if name not in names:
            with pytest.raises(NotExactError, match="--how insert"):
                bake(base, edit, tmp_path / how, how=how)
            continue
        bake(base, edit, tmp_path / how, how=how)
        found = logits(reloaded(tmp_path / how, how, model), ids)
        assert difference(found, expected) < EQUAL, how
        assert difference(found, control) > 10 * EQUAL, how


@pytest.mark.parametrize("how", DOORS)
def test_every_map_at_full_depth(smollm2: Path, ids: Tensor, tmp_path: Path, how: str) -> None:
    """All 30 layers, each map in one of them."""
    layers = {name: DEEP[name] for name in DOORS[how]}
    model = load(smollm2, "float32")
    bake(smollm2, edits(model, layers), tmp_path / how, how=how)
    if how == "adapter":
        baked = PeftModel.from_pretrained(load(smollm2, "float32"), tmp_path / how)
    else:
        baked = load(tmp_path / how, "float32")
    all_are_seen(logits(baked, ids), model, ids, layers, EQUAL)
    shutil.rmtree(tmp_path / how)


@pytest.mark.parametrize("how", ["insert", "fold"])
def test_every_map_in_onnx(living: Callable[[int], Any], ids: Tensor, tmp_path: Path, how: str) -> None:
    """All maps in one graph, in ONNX Runtime: in one pass, and through its cache."""
    base, model = real.cut(2), living(2)
    layers = {name: SHORT[name] for name in DOORS[how]}
    bake(base, edits(model, layers), tmp_path / "art", how=how)
    export_onnx(tmp_path / "art", tmp_path / "onnx")
    decoder = Decoder({"graph": str(tmp_path / "onnx" / "onnx" / "model.onnx"), "device": "cpu"})
    for answers in (forced, cached):
        found = torch.stack([torch.as_tensor(answers(decoder, row, len(row))) for row in ids.tolist()])
        all_are_seen(found, model, ids, layers, EQUAL)


def test_every_map_in_llama_cpp(living: Callable[[int], Any], ids: Tensor, tmp_path: Path) -> None:
    """The base's GGUF rewritten: the log-probabilities of its ten likeliest tokens. In other kernels: 6e-5."""
    model, layers = living(2), {name: SHORT[name] for name in DOORS["fold"]}
    file = ggufs.shortened(real.gguf(), tmp_path / "base.gguf", range(2))
    export_gguf(edits(model, layers), tmp_path / "edited.gguf", base=file)
    first = [answer[1] for answer in ggufs.llama_cpp(tmp_path / "edited.gguf", ids.tolist(), 1)]

    def apart(expected: Tensor) -> float:
        known = expected[:, -1].log_softmax(-1)
        return max(abs(float(row[token]) - value) for row, seen in zip(known, first) for token, value in seen.items())

    assert apart(by_the_papers(model, ids, layers)) < 2e-4
    for left_out in layers:
        rest = {name: where for name, where in layers.items() if name != left_out}
        assert apart(by_the_papers(model, ids, rest)) > 2e-3, left_out
