"""The layers below an edit are computed once, and every family answers the same to the bit; where a model cannot be run
so, it is run whole."""

from __future__ import annotations

import itertools
from typing import Any

import families
import pytest
import torch
from torch import nn

from sea_bake import Edit
from sea_bake.edit import live
from sea_bake.evaluation.damage import Neutral
from sea_bake.evaluation.prefixes import Scorer
from sea_bake.evaluation.worth import Bench
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site
from sea_bake.model.caches import can_share
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.lower import LowerLayers
from sea_bake.model.sites import layers_with, site_modules, text_config

CAUSAL = [name for name in families.ALL if not getattr(families.config(name), "is_encoder_decoder", False)]
# Run whole: several residual streams, keys and values of lower layers, attention weights beside the output; mllama's
# layer 2 reads an image, if any.
WHOLE = {name: (2, 3) for name in ("gemma3n_text", "gemma4_text", "gemma4", "bloom")} | {"mllama": (3,)}
BEGIN = (2, 3, 4, 5, 6, 7, 8, 9)  # of every prompt
ASKED = [((*BEGIN, *range(20, 20 + n)), (30 + n, *range(40, 40 + m))) for n in (6, 9, 10) for m in (0, 2, 5)]


def edited(model: Any, first: int, seed: int = 0) -> Edit:
    """Adds something to the MLPs' outputs from one layer on."""
    drawn, size = torch.Generator().manual_seed(seed), text_config(model).hidden_size
    layers = [layer for layer in layers_with(model, Site.MLP) if layer >= first]
    maps = {layer: AffineMap(constant=torch.randn(size, generator=drawn)) for layer in layers}
    return Edit(maps, Site.MLP, BaseModel.of(model, "tiny"), merge="sum")


class Counted:
    """How often a part of a decoder layer computes something."""

    def __init__(self, model: Any, layer: int) -> None:
        self.count = 0
        for part in site_modules(model, Site.BLOCK, [layer])[layer].children():
            part.register_forward_pre_hook(self._called)

    def _called(self, *_: Any) -> None:
        self.count += 1


def answers(model: Any, lower: LowerLayers | None, *, shares: bool = True) -> Any:
    """Scores where a model's cache can be shared, else the logits of two texts."""
    if shares:
        return Scorer(model, lower=lower)(ASKED)
    found = []
    for start in (3, 40):
        with (lower or LowerLayers(model)).of(start), torch.inference_mode():
            found.append(model(input_ids=torch.arange(start, start + 7)[None], use_cache=False).logits.tolist())
    return found


@pytest.mark.parametrize("name", CAUSAL)
def test_answers_are_the_same_to_the_bit(name: str) -> None:
    model = families.tiny(name)
    lower, told, shares = LowerLayers(model), [], can_share(model)
    for seed, first in enumerate((2, 2, 3, 0)):
        lower.first = first
        with live([edited(model, first, seed)], model):
            told.append(answers(model, None, shares=shares))
            assert answers(model, lower, shares=shares) == told[-1]
    assert len(set(map(str, told))) == len(told)  # the control: the edits are edits
    assert lower._tried == {first: first not in WHOLE.get(name, ()) for first in (2, 3)}


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_the_layers_below_compute_nothing_again(name: str) -> None:
    model = families.tiny(name)
    lower, below, above = LowerLayers(model), Counted(model, 1), Counted(model, 2)
    lower.first = 2
    answers(model, lower)
    once, often = below.count, above.count
    for seed in (0, 1):
        with live([edited(model, 2, seed)], model):
            answers(model, lower)
    assert below.count == once
    assert above.count > often
    lower.first = 3  # higher up: what was kept for layer 2 serves, and layer 2 is run once more
    often = above.count
    for _ in range(3):
        answers(model, lower)
    assert below.count == once + _trial(below, model)
    assert above.count > often


def _trial(counted: Counted, model: Any) -> int:
    """What trying a new first layer takes of a lower one."""
    before = counted.count
    lower = LowerLayers(model)
    lower.first = 3
    lower._can(3)
    return counted.count - before


def test_what_is_kept_is_what_is_used() -> None:
    """The control: a lower layer that changes meanwhile is not seen, so nothing else can be what answers."""
    model = families.tiny("llama")
    lower = LowerLayers(model)
    lower.first = 2
    before = answers(model, lower)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(1.0)
    assert answers(model, lower) == before
    assert answers(model, None) != before


@pytest.mark.parametrize("why", ["reaches back", "elsewhere", "two outputs", "no room", "frequencies"])
def test_where_it_cannot_be_everything_is_run(why: str) -> None:
    model = families.tiny("llama")
    layers = model.model.layers
    lower = LowerLayers(model, most=0) if why == "no room" else LowerLayers(model)
    if why == "reaches back":  # a layer reads what a lower one keeps to itself
        layers[0].mlp.register_forward_hook(lambda module, given, output: setattr(module, "kept", output.mean()))
        layers[3].mlp.register_forward_hook(lambda module, given, output: output + layers[0].mlp.kept)
    if why == "frequencies":
        model.model.rotary_emb.rope_type = "dynamic"
    if why == "elsewhere":  # as accelerate has it
        layers[1].forward = layers[1].forward
    if why == "two outputs":
        layers[1].register_forward_hook(lambda module, given, output: (output, output))
        layers[2].register_forward_pre_hook(lambda module, given: (given[0][0], *given[1:]))
    lower.first = 2
    counted = Counted(model, 0)
    for _ in range(2):
        before = counted.count
        with live([edited(model, 2)], model):
            assert answers(model, lower) == answers(model, None)
        assert counted.count > before
    assert not lower._passes
    assert all(isinstance(layer, nn.Module) for layer in layers)


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = families.tiny("llama")
    lower = LowerLayers(model)
    lower.first = 2
    answers(model, lower)
    handle = model.model.layers[3].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers(model, lower)
    handle.remove()
    assert not any("forward" in vars(layer) or layer._forward_hooks for layer in model.model.layers)
    assert answers(model, lower) == answers(model, None)


def test_what_was_interrupted_while_it_was_tried_is_tried_again() -> None:
    model = families.tiny("llama")
    lower = LowerLayers(model)
    lower.first = 2
    calls = itertools.count()

    def interrupt(*_: Any) -> None:
        if next(calls) == 2:  # the trial's second pass; before it, whether a cache can be shared
            raise KeyboardInterrupt

    handle = model.model.layers[3].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Scorer(model, lower=lower)(ASKED)
    handle.remove()
    assert not lower._tried
    assert not lower._passes
    assert answers(model, lower) == answers(model, None)
    assert lower._tried == {2: True}


def test_memory_that_runs_out_for_what_is_kept_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.tiny("llama")
    lower = LowerLayers(model)
    lower.first = 2
    assert lower._can(2)

    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "clone", full)
    assert answers(model, lower) == answers(model, None)
    assert not lower._passes
    monkeypatch.undo()
    assert answers(model, lower) == answers(model, None)
    assert not lower._passes  # and nothing more is kept


def test_memory_that_runs_out_in_a_pass_is_that_of_what_was_kept() -> None:
    model = families.tiny("llama")
    lower, expected = LowerLayers(model), answers(model, None)
    texts = Neutral(Tokenizer(), ["1 2 3 4", "1 2 3", "5 6 7 8 9"])
    told = texts.records(model)

    def full(*_: Any) -> None:
        if lower._passes:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for act, wanted in ((lambda: answers(model, lower), expected), (lambda: texts.records(model, lower=lower), told)):
        lower._room, lower.first = 1 << 20, 2
        act()
        assert lower._passes
        handle = model.model.layers[3].register_forward_pre_hook(full)
        assert act() == wanted
        handle.remove()
        assert not lower._passes


def test_other_batches_are_other_passes() -> None:
    """The last bits of a cache depend on what else was in its batch, and so does what stands behind it."""
    model = families.tiny("mixtral").to(torch.bfloat16)
    lower = LowerLayers(model)
    lower.first = 3
    Scorer(model, lower=lower)(ASKED)
    others = ASKED[:3], ASKED[3:], [pair for pair in ASKED if len(pair[1]) > 1]
    for some in others:
        for size in (1, 16):
            assert Scorer(model, lower=lower, batch_size=size)(some) == Scorer(model, batch_size=size)(some)


def test_a_trial_takes_none_of_the_room() -> None:
    model = families.tiny("llama")
    lower = LowerLayers(model, most=1)
    lower.first = 2
    assert lower._can(2)
    assert lower._room == 1
    assert answers(model, lower) == answers(model, None)
    assert not lower._room


def test_a_measured_edit_is_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = families.tiny("llama"), families.tokenizer()
    asked, edit = families.demonstrations(), edited(model, 2)
    found = Bench(model, tokenizer, asked).measured(edit, controls=0, budget=0.1)
    counted = Counted(model, 0)
    monkeypatch.setattr(LowerLayers, "_can", lambda self, first: False)
    assert Bench(model, tokenizer, asked).measured(edit, controls=0, budget=0.1) == found
    assert counted.count


class Tokenizer:
    """Texts of words that are numbers."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma3_text", "mixtral", "opt", "jamba", "qwen3_next"])
def test_texts_read_together_answer_as_each_alone(name: str) -> None:
    """Padding lies behind a text's end, where no causal model looks."""
    model = families.tiny(name)
    texts = [" ".join(str(2 + (7 * i + 3 * j) % 60) for j in range(4 + 5 * i)) for i in range(5)]
    neutral = Neutral(Tokenizer(), texts)
    assert len(neutral._passes(range(5), families.VOCAB)) == 1
    found = neutral.records(model)
    with torch.inference_mode():
        logs = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double() for ids in neutral.ids]
    nll = [
        -float(one.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum())
        for one, ids in zip(logs, neutral.ids)
    ]
    told = [record["values"]["nll"] for record in found]
    assert told == pytest.approx(nll, rel=1e-5)
    assert told != pytest.approx(nll[::-1], rel=1e-5)  # the control


def test_a_large_vocabulary_is_read_text_by_text() -> None:
    neutral = Neutral(Tokenizer(), ["1 2 3 4", "1 2 3", "5 6 7 8 9"])
    assert neutral._passes(range(3), 100) == [[2, 0, 1]]  # the longest first
    assert neutral._passes(range(3), 1 << 24) == [[2], [0], [1]]
    assert neutral._passes([1, 2], 100) == [[2, 1]]
