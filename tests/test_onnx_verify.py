"""``verify`` of ONNX exports, on a tiny model: what it proves, and what it must not let pass."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import exports
import onnx
import pytest
import tiny
import torch

from sea_bake import ask, verify
from sea_bake.artefact.names import EXPORT
from sea_bake.artefact.seal import broken
from sea_bake.errors import CheckpointError, MissingExtraError, SettingError, VerificationError
from sea_bake.verification.bypass import bypass
from sea_bake.verification.effect import NOTHING_CHANGED, effect_correlation, likeness
from sea_bake.verification.verdict import Comparison, judge_reduced

GRAPH = Path("onnx/model.onnx")


def changed(folder: Path, target: Path, graph: bytes | None = None, **record: Any) -> Path:
    """A copy of an export beside its base, with another graph or other words in its record."""
    copy = tiny.changeable(folder, target)
    if not (target.parent / exports.base().name).exists():
        (target.parent / exports.base().name).symlink_to(exports.base())
    if graph is not None:
        (copy / GRAPH).write_bytes(graph)
    tiny.patch_json(copy / EXPORT, **record)
    return copy


def sea_nodes(folder: Path, layer: int | None = None) -> list[str]:
    names = json.loads((folder / EXPORT).read_text("utf-8"))["sea_nodes"]
    return [name for name in names if layer is None or f"/layers.{layer}/" in name]


# ------------------------------------------------------------------------------------------------------------- equality


@pytest.mark.slow
@pytest.mark.own_processes
def test_an_export_is_verified_in_onnx_runtime(tmp_path: Path) -> None:
    folder = changed(exports.plain(), tmp_path / "export")
    ran = tiny.run("verify", folder, "--json")
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    assert (report["verdict"], report["dtype"], report["how"]) == ("verified", "float32", "insert")
    equality, effect = report["equality"], report["effect"]
    # Two layers of width 32 in float32: measured 1e-5 for whole texts, through the cache, and in the padded batch.
    for way in ("max_abs", "cached_max_abs", "padded_max_abs"):
        assert 0 < equality[way] < 1e-4
        assert effect[way] > 1e-2
    assert equality["greedy_equal"] == equality["padded_equal"] == equality["prompts"] == 6
    assert effect["greedy_equal"] < 6
    facts = report["facts"]
    assert facts["providers"][-1] == "CPUExecutionProvider"
    assert facts["sea_nodes"] == len(sea_nodes(folder))
    stored = json.loads((folder / "sea_verification.json").read_text("utf-8"))
    assert str(tmp_path) not in json.dumps(stored)
    assert broken(folder, stored.pop("files")) == []
    assert stored == report


@pytest.mark.slow
def test_other_precisions_are_never_called_verified(tmp_path: Path) -> None:
    report = verify(exports.plain(), write=False)
    assert (report.verdict, set(report.variants)) == ("verified", {"int8", "int4"})
    eight, four = report.variants["int8"], report.variants["int4"]
    assert eight.verdict == four.verdict == "approximate"
    assert report.equality.mean_kl < eight.equality.mean_kl < four.equality.mean_kl < eight.effect.mean_kl
    assert eight.effect_correlation > four.effect_correlation > 0.8
    assert eight.bytes > 0
    half = exports.export(exports.artefact(), "fp16", dtype="fp16")
    report = verify(half, write=False)
    assert (report.verdict, report.dtype, report.passed) == ("approximate", "float16", True)
    assert report.variants["fp16"].effect_correlation > 0.99
    text = tiny.run("verify", changed(half, tmp_path / "half")).out
    assert "approximate: not equal to the hook-edited base (float16)" in text
    assert "verified:" not in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["optional", "required"])
def test_a_strength_is_held_at_both_ends(kind: str) -> None:
    folder = exports.strong() if kind == "optional" else exports.export(exports.artefact(), "req", strength="required")
    report = verify(folder, write=False)
    assert report.verdict == "verified"
    assert 0 < report.facts["strength_0"] < 1e-4


@pytest.mark.slow
def test_folds_and_feature_functions_are_verified() -> None:
    fold = verify(exports.export(exports.artefact("fold"), "onnx"), write=False)
    assert (fold.verdict, fold.how, fold.facts["sea_nodes"]) == ("verified", "fold", 0)
    tanh = verify(exports.export(exports.artefact("insert", "tanh"), "onnx"), write=False)
    assert tanh.verdict == "verified"
    assert tanh.tolerance == 1e-2 > fold.tolerance == 1e-3


# ------------------------------------------------------------------------------------------------------------- controls


@pytest.mark.slow
def test_a_bypassed_layer_fails(tmp_path: Path) -> None:
    graph = exports.plain() / GRAPH
    one = changed(exports.plain(), tmp_path / "one", bypass(graph, sea_nodes(exports.plain(), 1)), variants={})
    report = verify(one)
    assert not report.passed
    told = " ".join(report.failures)
    for words in ("logits differ", "through the cache", "left-padded batch", "greedy text differs"):
        assert words in told
    assert "like the unedited base" not in told
    both = changed(exports.plain(), tmp_path / "both", bypass(graph, sea_nodes(exports.plain())), variants={})
    ran = tiny.run("verify", both)
    assert (ran.code, "NOT verified" in ran.out) == (1, True)
    assert "like the unedited base" in ran.out


@pytest.mark.slow
def test_a_crossed_cache_fails_in_steps_alone(tmp_path: Path) -> None:
    """A whole text is answered as it should be; what is kept of it is not."""
    model = onnx.load(exports.plain() / GRAPH, load_external_data=False)
    first, second = (next(o for o in model.graph.output if o.name == f"present.{i}.key") for i in (0, 1))
    first.name, second.name = second.name, first.name
    for node in model.graph.node:
        other = {"present.0.key": "present.1.key", "present.1.key": "present.0.key"}
        for k, name in enumerate(node.output):
            node.output[k] = other.get(name, name)
        for k, name in enumerate(node.input):
            node.input[k] = other.get(name, name)
    report = verify(changed(exports.plain(), tmp_path / "crossed", model.SerializeToString(), variants={}))
    assert report.equality.max_abs < report.tolerance < report.equality.cached_max_abs
    assert any("steps through the cache" in failure for failure in report.failures)


@pytest.mark.slow
def test_a_variant_without_its_edit_fails(tmp_path: Path) -> None:
    folder = changed(exports.plain(), tmp_path / "export")
    graph = folder / "onnx" / "model_q4.onnx"
    model = onnx.load_from_string(bypass(graph, sea_nodes(folder)))
    # The edit's nodes stay, and lead nowhere: nothing but answers can tell.
    graph.write_bytes(model.SerializeToString())
    report = verify(folder)
    assert not report.passed
    assert report.variants["int8"].passed
    assert any("int4: what the edit changes correlates by" in failure for failure in report.failures)


@pytest.mark.slow
def test_a_strength_that_is_not_zero_at_zero_fails(tmp_path: Path) -> None:
    model = onnx.load(exports.strong() / GRAPH, load_external_data=False)
    (multiply, *_) = [n for n in model.graph.node if "sea_strength" in n.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(torch.ones(1).numpy(), "one"))
    multiply.input[[*multiply.input].index("sea_strength")] = "one"
    report = verify(changed(exports.strong(), tmp_path / "stuck", model.SerializeToString()))
    assert [failure.partition(" logits")[0] for failure in report.failures] == ["at strength 0"]


def test_the_verdict_on_a_variant() -> None:
    def comparison(kl: float) -> Comparison:
        return Comparison(1.0, 0.1, kl, 0.9, 1.0, 0, 0, 6)

    assert judge_reduced(comparison(0.1), comparison(0.5), 0.9, 8) == []
    assert judge_reduced(comparison(0.6), comparison(0.5), 0.9, 4) == []  # its own noise is larger than the edit
    assert len(judge_reduced(comparison(0.6), comparison(0.5), 0.9, 8)) == 1
    assert len(judge_reduced(comparison(0.6), comparison(0.5), None, 4)) == 1
    assert len(judge_reduced(comparison(0.1), comparison(0.5), 0.8, 4)) == 1
    assert len(judge_reduced(comparison(float("nan")), comparison(0.5), float("nan"), 8)) == 2
    generator = torch.Generator().manual_seed(0)
    base, change, noise = (torch.randn(5, 40, generator=generator) for _ in range(3))
    doors = [{"logits.0": x} for x in (base + noise + change, base + noise, base + change, base)]
    assert effect_correlation(*doors) == pytest.approx(1)
    assert abs(effect_correlation(doors[0], doors[3], {"logits.0": noise}, {"logits.0": -change}) or 1) < 1
    # No number, where there is nothing to compare with; and none of it, where nothing is changed.
    assert effect_correlation(doors[0], doors[1], doors[3], doors[3]) is None
    assert likeness(doors[0], doors[3], doors[3]) == NOTHING_CHANGED
    assert effect_correlation(doors[1], doors[1], doors[2], doors[3]) == 0


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.slow
def test_bad_input_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(exports.strong(), tmp_path / "export")
    with pytest.raises(SettingError, match="drop --dtype"):
        verify(folder, dtype="float16")
    for words, record in (
        ("an export to 'gguf'", {"format": "gguf"}),
        ("there is no edit in it", {"how": "unedited"}),
    ):
        with pytest.raises((CheckpointError, VerificationError), match=words):
            verify(changed(exports.strong(), tmp_path / words, **record))
    for record in ({"how": "melt"}, {"dtype": "fp8"}, {"edits": ["../x"]}, {"base": None}):
        spoilt = changed(exports.strong(), tmp_path / str(len(list(tmp_path.iterdir()))), **record)
        with pytest.raises((CheckpointError, VerificationError), match=r"damaged|not list the edits|names no base"):
            verify(spoilt)
        assert not (spoilt / "sea_verification.json").exists()
    (folder / GRAPH).write_bytes(b"no graph")
    tiny.refused(tiny.run("verify", folder), "VerificationError", "fp32 graph's door could not be opened")
    (folder / GRAPH).unlink()
    with pytest.raises(VerificationError, match=r"onnx/model\.onnx is missing"):
        verify(folder)
    shutil.copy(exports.strong() / GRAPH, folder / GRAPH)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else find(name, *a))
    with pytest.raises(MissingExtraError, match=r"pip install 'sea-bake\[onnx\]'"):
        verify(folder)
    assert not (folder / "sea_verification.json").exists()


@pytest.mark.slow
def test_what_cannot_be_bypassed_is_said(tmp_path: Path) -> None:
    graph, names = exports.plain() / GRAPH, sea_nodes(exports.plain())
    with pytest.raises(CheckpointError, match="has no node"):
        bypass(graph, ["/model/layers.9/sea.mlp.0/Add_0"])
    with pytest.raises(CheckpointError, match="inputs and"):
        bypass(graph, [name for name in names if "/layers.0/" in name][3:5])


# ------------------------------------------------------------------------------------------------------------ questions


@pytest.mark.slow
def test_an_export_answers_questions_as_the_artefact_does() -> None:
    """With a strength as an input; and without one, its nodes led past."""

    def said(what: Path, **options: Any) -> dict[str, str]:
        found = ask(what, ["Can bats see?"], max_new_tokens=12, **options)
        assert (found.runtime == "onnxruntime") == (what != exports.artefact())
        return {side: reply.text for side, reply in found.turns[0].replies.items()}

    expected, other = said(exports.artefact()), said(exports.artefact(), alpha=-2.0)
    assert len({*expected.values(), other["edited"]}) == 3
    assert said(exports.strong()) == said(exports.plain()) == expected
    assert said(exports.strong(), alpha=-2.0) == other
    assert said(exports.strong(), alpha=0.0) == dict.fromkeys(expected, expected["base"])
    assert said(exports.strong(), temperature=2.0, seed=1) != expected
    with pytest.raises(SettingError, match="--strength"):
        ask(exports.plain(), ["?"], alpha=0.5)
    odd: list[dict[str, Any]] = [{"dtype": "float32"}, {"runtime": "transformers"}, {"edit": tiny.edit_file()}]
    for options in odd:
        with pytest.raises(SettingError, match="drop"):
            ask(exports.plain(), ["?"], **options)
