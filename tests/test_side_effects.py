"""Side effects by default: an edit on every behaviour's kept-back part, with the system prompt beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from sea_bake import Edit
from sea_bake.demonstrations import BEHAVIOURS, load
from sea_bake.errors import EvaluationError
from sea_bake.evaluation import Evaluation, evaluate, matrix

Records = list[dict[str, Any]]


def records(margins: Any) -> Records:
    return [{"task": "behaviour-fair", "id": i, "hash": str(i), "values": {"margin": float(m), "right": float(m > 0)}}
            for i, m in enumerate(margins)]  # fmt: skip


def measured(base: Records, edited: Records, edits: list[Edit] | None = None) -> dict[str, Any]:
    found = {"behaviour-fair": {"base": base, "live": edited}}
    return {row.measure.key: row.found for row in matrix.rows(found, edits or [])}


def test_damage_alone_moves_the_margin_and_not_the_balanced_one() -> None:
    """Flattening takes margins towards 0: a base that is mostly wrong seems to gain."""
    rng = np.random.default_rng(0)
    base = np.concatenate([np.abs(rng.normal(1, 0.2, 20)), -np.abs(rng.normal(1, 0.2, 60))])
    flat = measured(records(base), records(0.7 * base))
    assert flat["margin"].difference.low > 0.05
    assert flat["balanced"].difference.low <= 0 <= flat["balanced"].difference.high
    assert flat["right.margin"].difference.high < 0 < flat["wrong.margin"].difference.low
    assert (flat["right.margin"].n, flat["wrong.margin"].n) == (20, 60)
    better = measured(records(base), records(base + 0.2))  # the control: a gain of every item
    assert better["balanced"].difference.value == pytest.approx(0.2)
    assert better["balanced"].difference.low > 0.1
    dense = (base[:20] + 0.2).mean() / 2 + (base[20:] + 0.2).mean() / 2
    assert better["balanced"].edited.value == pytest.approx(dense)


def test_a_behaviour_with_one_kind_alone_is_not_balanced() -> None:
    found = measured(records([1.0] * 12), records([1.1] * 12))
    assert "balanced" not in found
    assert set(found) == {"margin", "right.margin", "pairs"}


def test_what_prompting_does_is_said() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, 60)
    edit = Edit.load(tiny.edit_file())
    edit = replace(edit, recipe=edit.recipe | {"demonstrations_from": {"kind": "builtin", "source": "fair"}})
    for gain, prompt, words in ((0.1, 0.4, "does more than the edit"), (0.4, 0.1, "the edit does more"),
                                (0.1, 0.1, "not told apart")):  # fmt: skip
        said: list[str] = []
        noisy = records(base + prompt + rng.normal(0, 0.05, 60))
        for one, other in zip(noisy, base):
            one["values"]["right"] = float(other > 0)
        found = {
            "behaviour-fair": {"base": records(base), "live": records(base + gain)},
            "behaviour-fair-asked": {"base": noisy},
        }
        rows = matrix.rows(found, [edit], said.append)
        assert len(said) == 1
        assert words in said[0]
        assert {row.kind for row in rows} == {"gain"}
        (asked,) = [row for row in rows if row.task == "behaviour-fair-asked"]
        assert "asked for in the system prompt" in asked.title
        assert asked.found.difference is not None
        assert asked.found.difference.value == pytest.approx(prompt, abs=0.05)
    assert {row.kind for row in matrix.rows(found, [])} == {"damage"}  # the control: fitted for nothing of it


def test_names() -> None:
    assert matrix.named(["all"]) == list(BEHAVIOURS)
    assert matrix.named(["fair", "fair"]) == ["fair"]
    with pytest.raises(EvaluationError, match=r"unknown behaviour 'fare': did you mean fair\?"):
        matrix.named(["fare"])
    assert all(one.asks.endswith(".") for one in BEHAVIOURS.values())
    assert len({one.asks for one in BEHAVIOURS.values()}) == len(BEHAVIOURS)


@pytest.mark.slow
def test_an_edit_is_measured_on_behaviours(tmp_path: Path) -> None:
    output = tmp_path / "found"
    args = ("--tasks", "", "--behaviours", "fair,code", "--limit", 12, "--no-cost", "-o", output, "--json")
    ran = tiny.run("eval", tiny.single(chat=True), "--edit", tiny.edit_file(tiny.single(chat=True)), *args)
    assert ran.code == 0, ran.err
    found = Evaluation.from_json(json.loads(ran.out))
    tasks = [row.task for row in found.headlines]
    assert set(tasks) == {"behaviour-fair", "behaviour-fair-asked", "behaviour-code", "behaviour-code-asked"}
    assert {row.found.n for row in found.headlines if row.measure.key == "margin"} == {12}
    assert found.settings["behaviours"] == ["fair", "code"]
    kept = sorted(path.name for path in (output / "examples").iterdir())
    assert "behaviour-fair-asked.base.jsonl" in kept
    assert "behaviour-fair-asked.live.jsonl" not in kept
    assert "behaviour fair, asked for in the system prompt" in (output / "evaluation.md").read_text("utf-8")
    again = tiny.run("eval", tiny.single(chat=True), "--edit", tiny.edit_file(tiny.single(chat=True)), *args)
    assert json.loads(again.out)["results"] == json.loads(ran.out)["results"]
    # An oracle: the margin of one row, by passes of their own.
    import torch

    from sea_bake.activations.prompts import encode
    from sea_bake.model.loading import load_model, load_tokenizer

    model, tokenizer = load_model(tiny.single(chat=True)), load_tokenizer(tiny.single(chat=True))
    total = 0.0
    for triple in list(load("code", split="test"))[:12]:
        rates = []
        for answer in (triple.positive, triple.negative):
            tokens = encode(tokenizer, triple.prompt, answer)
            with torch.inference_mode():
                logs = model(torch.tensor([tokens.ids])).logits[0].double().log_softmax(-1)
            picked = [float(logs[i - 1, tokens.ids[i]]) for i in range(tokens.start, len(tokens.ids))]
            rates.append(sum(picked) / len(picked))
        total += rates[0] - rates[1]
    assert found.row("behaviour-code", "margin").found.base.value == pytest.approx(total / 12, abs=1e-4)


def test_bad_names_are_refused_before_any_model() -> None:
    with pytest.raises(EvaluationError, match="unknown behaviour"):
        evaluate("no/such", tasks=[], behaviours=["nice"])
