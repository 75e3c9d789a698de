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
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.demonstrations import BEHAVIOURS, load
from sea_bake.errors import EvaluationError
from sea_bake.evaluation import Evaluation, evaluate, matrix, written
from sea_bake.evaluation.phrases import INFORMAL

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


@pytest.mark.parametrize(("split", "known"), [("test", True), ("all", True), ("train", False), (None, False)])
def test_items_that_the_edit_was_fitted_on_are_named_so(split: str | None, known: bool) -> None:
    edit = Edit.load(tiny.edit_file())
    origin = {"kind": "builtin", "source": "fair", "split": split}
    edit = replace(edit, recipe=edit.recipe | {"demonstrations_from": origin})
    margins = np.linspace(-1, 1, 40)
    found = {
        "behaviour-fair": {"base": records(margins), "live": records(margins + 0.2)},
        "behaviour-fair-asked": {"base": records(margins + 0.1)},
    }
    said: list[str] = []
    for row in matrix.rows(found, [edit], said.append):
        assert ("(fitted on these items)" in row.title) == (known and row.task == "behaviour-fair"), row.title
    assert ("(fitted on these items)" in said[0]) == known
    assert not any("fitted on" in row.title for row in matrix.rows(found, []))  # the control


def test_names() -> None:
    assert matrix.named(["all"]) == list(BEHAVIOURS)
    assert matrix.named(["fair", "fair"]) == ["fair"]
    with pytest.raises(EvaluationError, match=r"unknown behaviour 'fare': did you mean fair\?"):
        matrix.named(["fare"])
    assert all(one.asks.endswith(".") for one in BEHAVIOURS.values())
    assert len({one.asks for one in BEHAVIOURS.values()}) == len(BEHAVIOURS)


def test_worked_examples_come_from_what_is_fitted_on() -> None:
    form = PromptFormat(system="Be kind.", primer=(("Q", "A"),), primer_name="truthfulqa")
    for name in BEHAVIOURS:
        found = matrix.baselines(name, form)
        assert set(found) == set(matrix.PROMPTS)
        assert found["asked"].system == f"Be kind.\n{BEHAVIOURS[name].asks}"
        assert found["asked"].primer == form.primer
        (first, *shown) = found["shown"].primer
        assert (first, found["shown"].system, found["shown"].primer_name) == (("Q", "A"), "Be kind.", None)
        fitted = {(d.prompt, d.positive) for d in load(name)}
        kept = {d.prompt for d in load(name, split="test")}
        assert len(shown) == 4
        assert set(shown) <= fitted
        assert not {prompt for prompt, _ in shown} & kept


def test_what_is_written_is_compared_where_both_doors_say_something() -> None:
    """A short answer without the content is no concise one: its length counts at neither door."""

    def told(*values: tuple[float, float | None]) -> Records:
        return [
            {"task": "t", "id": i, "hash": str(i), "values": {"kept": kept} | ({} if n is None else {"words": n})}
            for i, (kept, n) in enumerate(values)
        ]

    base = told(*[(1.0, 30.0)] * 10, (0.0, None), (1.0, 90.0))
    edited = told(*[(1.0, 10.0)] * 10, (1.0, 5.0), (0.0, None))
    words, kept = written.rows("t", "as it writes", "gain", "concise", base, edited)
    assert (words.kind, words.measure.unit, words.found.n) == ("gain", "words", 10)
    assert (words.found.base.value, words.found.difference.value) == (30.0, -20.0)  # type: ignore[union-attr]
    assert (kept.kind, kept.found.n, kept.found.difference.value) == ("damage", 12, 0.0)  # type: ignore[union-attr]
    alone = written.rows("t", "as it writes", "gain", "concise", base, None)
    assert alone[0].found.n == 11
    assert alone[0].found.difference is None


@pytest.mark.slow
def test_answers_without_and_with_an_edit() -> None:
    """They are those of ``generate``, and the living edit's; without strength (the control) nothing is shown."""
    from sea_bake.activations.generating import greedy
    from sea_bake.activations.prompts import encode
    from sea_bake.model.loading import load_model, load_tokenizer

    source = str(tiny.single(chat=True))
    edit = Edit.load(tiny.edit_file(tiny.single(chat=True)))
    found = written.beside(source, edit, "formal", 3)
    prompts = [one.prompt for one in load("formal", split="test")[:3]]
    model, tokenizer = load_model(source), load_tokenizer(source)
    asked = [encode(tokenizer, prompt, form=PromptFormat.from_json(edit.recipe)) for prompt in prompts]

    def said() -> list[tuple[str, str]]:
        told = greedy(model, tokenizer, asked, max_new_tokens=48, batch_size=1)
        return [(p, tokenizer.decode(one.ids[one.start :], skip_special_tokens=True)) for p, one in zip(prompts, told)]

    assert found.base == said()
    with edit.live(model):
        assert found.edited == said()
    assert found.base != found.edited
    assert found.lines(shown=1, width=20)[0] in prompts
    assert all(len(line) <= 24 for line in found.lines(shown=1, width=20)[1:3])
    assert found.lines()[-1].startswith("contractions and slang, per word (%): ")
    same = written.beside(source, replace(edit, alpha=0.0), "formal", 3)
    assert len(same.lines()) == 1


@pytest.mark.slow
def test_an_edit_is_measured_on_behaviours(tmp_path: Path) -> None:
    output = tmp_path / "found"
    args = ("--tasks", "", "--behaviours", "fair,formal", "--limit", 12, "--no-cost", "-o", output, "--json")
    ran = tiny.run("eval", tiny.single(chat=True), "--edit", tiny.edit_file(tiny.single(chat=True)), *args)
    assert ran.code == 0, ran.err
    found = Evaluation.from_json(json.loads(ran.out))
    tasks = [row.task for row in found.headlines]
    prompted = {f"behaviour-{name}{kind}" for name in ("fair", "formal") for kind in ("", "-asked", "-shown")}
    assert set(tasks) == {*prompted, "behaviour-formal-written"}  # no rule tells fairness in a text
    assert {row.found.n for row in found.headlines if row.measure.key == "margin"} == {12}
    assert found.settings["behaviours"] == ["fair", "formal"]
    kept = sorted(path.name for path in (output / "examples").iterdir())
    assert "behaviour-fair-asked.base.jsonl" in kept
    assert not {"behaviour-fair-asked.live.jsonl", "behaviour-fair-shown.live.jsonl"} & set(kept)
    examples = (output / "examples" / "behaviour-formal-written.base.jsonl").read_text("utf-8").splitlines()
    wrote = [json.loads(line) for line in examples[1:]]
    assert [record["prompt"] for record in wrote] == [one.prompt for one in load("formal", split="test")[:12]]
    counts = [len(INFORMAL.findall(record["response"])) for record in wrote]
    rate = sum(counts) / sum(len(record["response"].split()) for record in wrote)
    assert found.row("behaviour-formal-written", "informal").found.base.value == pytest.approx(rate)
    assert "behaviour fair, asked for in the system prompt" in (output / "evaluation.md").read_text("utf-8")
    again = tiny.run("eval", tiny.single(chat=True), "--edit", tiny.edit_file(tiny.single(chat=True)), *args)
    assert json.loads(again.out)["results"] == json.loads(ran.out)["results"]
    # An oracle: the margin of one row, by passes of their own.
    import torch

    from sea_bake.activations.prompts import encode
    from sea_bake.model.loading import load_model, load_tokenizer

    model, tokenizer = load_model(tiny.single(chat=True)), load_tokenizer(tiny.single(chat=True))
    total = 0.0
    for triple in list(load("formal", split="test"))[:12]:
        rates = []
        for answer in (triple.positive, triple.negative):
            tokens = encode(tokenizer, triple.prompt, answer)
            with torch.inference_mode():
                logs = model(torch.tensor([tokens.ids])).logits[0].double().log_softmax(-1)
            picked = [float(logs[i - 1, tokens.ids[i]]) for i in range(tokens.start, len(tokens.ids))]
            rates.append(sum(picked) / len(picked))
        total += rates[0] - rates[1]
    assert found.row("behaviour-formal", "margin").found.base.value == pytest.approx(total / 12, abs=1e-4)


def test_bad_names_are_refused_before_any_model() -> None:
    with pytest.raises(EvaluationError, match="unknown behaviour"):
        evaluate("no/such", tasks=[], behaviours=["nice"])
