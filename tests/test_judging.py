"""Many edits judged on one living model: as evaluate judges them one by one, with the base asked once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import benchmarks
import pytest
import tiny
import torch

from sea_bake import Demonstration, Edit, evaluate
from sea_bake.activations.prompts import encode
from sea_bake.errors import EvaluationError, SettingError
from sea_bake.evaluation import Judge
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.model.source import ModelSource

TRIPLES = [
    Demonstration("Is rain wet?", "Yes, it is.", "No."),
    Demonstration("What do bees make?", "Honey.", "They make cheese and wax and wine."),
    Demonstration("Is rain wet?", "No.", "Yes, it is."),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmarks.write(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def living() -> tuple[Any, Any]:
    source = ModelSource.parse(tiny.single())
    return load_model(source), load_tokenizer(source)


@pytest.mark.slow
def test_it_says_what_evaluate_says_and_leaves_the_model_alone(living: tuple[Any, Any], data: Path) -> None:
    edit = Edit.load(tiny.edit_file())
    judge = Judge(*living, tasks=["truthfulqa_mc2", "bbq"], data=data)
    found = judge(edit)
    told = evaluate(tiny.single(), edit=edit, tasks=["truthfulqa_mc2", "bbq"], data=data)
    for unit in ("truthfulqa_mc2", "bbq", "neutral_text"):
        # The same calls on the same weights, in the same order.
        assert judge.base[unit] == told.records[unit]["base"], unit
        assert found[unit] == told.records[unit]["live"], unit
        assert found[unit] != judge.base[unit], unit
    # Headlines alone, unless more is asked for; gain and cost as in the evaluation.
    ours = {(row.task, row.measure.key): row.found for row in judge.rows(found)}
    theirs = {(row.task, row.measure.key): row.found for row in told.headlines if row.task != "generation"}
    assert ours == theirs
    assert len(judge.rows(found, detail=True)) > len(ours)
    # No hook is left: without edits it is the base again. And an edit against itself has no gain, but still its cost.
    assert judge([]) == judge.base
    same = {(row.task, row.measure.key): row.found for row in judge.rows(found, found)}
    assert all(one.difference is not None and one.difference.value == 0 for one in same.values())


def test_demonstrations_against_a_plain_forward_pass(living: tuple[Any, Any]) -> None:
    model, tokenizer = living
    judge = Judge(model, tokenizer, demonstrations=TRIPLES, texts=())
    edit = Edit.load(tiny.edit_file())
    for found, edits in ((judge.base, []), (judge(edit), [edit])):
        for triple, record in zip(TRIPLES, found["demonstrations"], strict=True):
            expected = [_rate(model, tokenizer, edits, triple.prompt, a) for a in (triple.positive, triple.negative)]
            # float32 sums in another order, over a few dozen tokens.
            assert record["values"]["positive"] == pytest.approx(expected[0], abs=1e-4)
            assert record["values"]["negative"] == pytest.approx(expected[1], abs=1e-4)
            assert record["values"]["margin"] == pytest.approx(expected[0] - expected[1], abs=2e-4)
            assert record["values"]["right"] == float(expected[0] > expected[1])
        first, _, mirrored = (record["values"]["margin"] for record in found["demonstrations"])
        assert first == pytest.approx(-mirrored, abs=1e-6)
        assert first != 0
    rows = {row.measure.key: row for row in judge.rows(judge(edit))}
    assert rows["margin"].kind == "gain"
    assert rows["margin"].found.n == len(TRIPLES)
    assert rows["margin"].found.difference is not None
    assert rows["margin"].found.difference.value != 0


def _rate(model: Any, tokenizer: Any, edits: list[Edit], prompt: str, answer: str) -> float:
    """Log-likelihood per token in float64, from one pass over the whole text."""
    from sea_bake.edit import live

    tokens = encode(tokenizer, prompt, answer)
    with torch.inference_mode(), live(edits, model):
        logits = model(input_ids=torch.tensor([tokens.ids]), use_cache=False).logits[0].double()
    logs = logits.log_softmax(-1)
    rest = tokens.ids[tokens.start :]
    return sum(float(logs[tokens.start + i - 1, token]) for i, token in enumerate(rest)) / len(rest)


def test_bad_input(living: tuple[Any, Any], data: Path) -> None:
    with pytest.raises(SettingError, match="nothing to measure"):
        Judge(*living, texts=())
    with pytest.raises(EvaluationError, match="did you mean truthfulqa_mc2"):
        Judge(*living, tasks=["truthfulqa_mc"], data=data)
