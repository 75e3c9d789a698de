"""An evaluation in vLLM, by lm-evaluation-harness' own model: the figures of transformers, for folds and adapters."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmarks
import pytest
import tiny

from sea_bake import Edit, bake
from sea_bake.artefact import Artefact

STAND_IN = Path(__file__).parent / "vllm_stand_in"
TASKS = ("truthfulqa_mc2", "gsm8k")


@pytest.fixture(scope="module")
def vllm() -> Iterator[Any]:
    """What stands in for vLLM, importable until the end of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STAND_IN))
        yield importlib.import_module("vllm")
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm" or name.endswith("vllm_causallms")]:
        del sys.modules[name]
    if "lm_eval.models" in sys.modules:
        vars(sys.modules["lm_eval.models"]).pop("vllm_causallms", None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmarks.write(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, edit = tmp_path_factory.mktemp("artefacts"), Edit.load(tiny.edit_file()).with_settings(merge="sum")
    return {how: bake(tiny.single(), edit, folder / how, how=how).output for how in ("fold", "adapter", "insert")}


def command(model: Path, data: Path, output: Path, *more: Any) -> list[Any]:
    base = ("--base", tiny.single()) if model != tiny.single() else ()
    return ["eval", model, *base, "--data", data, "--tasks", ",".join(TASKS), "-o", output, *more]


def answers(output: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted((output / "examples").glob("*.jsonl"))
    return {file.name: [json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_named(artefacts: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Before what stands in for it is there."""
    ran = tiny.run(*command(artefacts["fold"], data, tmp_path / "out", "--no-cost", "--backend", "vllm"))
    tiny.refused(ran, "MissingExtraError", "pip install 'lm-eval[vllm]'")


@pytest.mark.slow
def test_an_artefact_of_another_base_is_refused(
    artefacts: dict[str, Path], data: Path, vllm: Any, tmp_path: Path
) -> None:
    """By the headers, before vLLM is asked for anything; the control is every other test here."""
    vllm.LLM.given.clear()
    words = ["eval", artefacts["fold"], "--base", tiny.single(seed=1), "--data", data, "--tasks", ",".join(TASKS)]
    ran = tiny.run(*words, "-o", tmp_path / "out", "--no-cost", "--backend", "vllm")
    tiny.refused(ran, "WrongModelError", "it is another model, a fine-tune or a quantised copy")
    assert not vllm.LLM.given


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fold", "adapter"])
def test_vllm_gives_the_figures_of_transformers(
    how: str, artefacts: dict[str, Path], data: Path, vllm: Any, tmp_path: Path
) -> None:
    plain = tiny.run(*command(artefacts[how], data, tmp_path / "plain", "--no-cost"))
    assert plain.code == 0, plain
    vllm.LLM.given.clear()
    ran = tiny.run(*command(artefacts[how], data, tmp_path / "out", "--no-cost", "--backend", "vllm", "--json"))
    assert ran.code == 0, ran
    result = json.loads(ran.out)
    assert (result["settings"]["backend"], result["versions"]["vllm"]) == ("vllm", "0.32.0")
    base, edited = vllm.LLM.given
    assert (base["model"], base["enable_lora"]) == (str(tiny.single()), False)
    assert edited["model"] == str(artefacts["fold"] if how == "fold" else tiny.single())
    assert edited["enable_lora"] == (how == "adapter")
    if how == "adapter":
        flags = Artefact.open(artefacts[how]).record.details["flags"]["vLLM"]
        assert flags.endswith(f" {edited['max_lora_rank']}")
    found, expected = answers(tmp_path / "out"), answers(tmp_path / "plain")
    assert found.keys() == expected.keys()
    moved = 0.0
    for name in expected:
        for one, other in zip(found[name], expected[name], strict=True):
            assert one.get("response") == other.get("response")
            assert one.get("tokens") == other.get("tokens")
            # Another order of float32 sums.
            assert one.get("loglikelihoods", []) == pytest.approx(other.get("loglikelihoods", []), abs=1e-3)
        first = name.replace(how, "base")
        for one, other in zip(found[name], found[first], strict=True):
            pairs = zip(one.get("loglikelihoods", ()), other.get("loglikelihoods", ()))
            moved = max([moved, *(abs(a - b) for a, b in pairs)])
    assert moved > 0.1  # the control: the edit is there


@pytest.mark.slow
def test_what_vllm_cannot_do_is_refused_at_once(
    artefacts: dict[str, Path], data: Path, vllm: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    vllm.LLM.given.clear()
    for model, more, words in (
        (artefacts["fold"], ("--backend", "vllm"), "pass --no-cost"),
        (artefacts["insert"], ("--backend", "vllm", "--no-cost"), "no insert: bake it as one of them"),
        (tiny.single(), ("--edit", tiny.edit_file(), "--backend", "vllm", "--no-cost"), "no hooks"),
        (artefacts["fold"], ("--backend", "vllm", "--no-cost", "--behaviours", "concise"), "drop --behaviours"),
        (artefacts["fold"], ("--backend", "vllm", "--no-cost", "--device", "cpu"), "drop --device"),
    ):
        tiny.refused(tiny.run(*command(model, data, output, *more)), "EvaluationError", words)
    ran = tiny.run(*command(artefacts["fold"], data, output, "--no-cost", "--backend", "llama.cpp"))
    tiny.refused(ran, "SettingError", "use one of transformers, vllm")
    assert not output.exists()
    assert vllm.LLM.given == []
