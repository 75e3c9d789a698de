"""Gain and cost of an edit: base and edited model in one run, through every door the same, resumed, told in public."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import benchmarks
import families
import numpy as np
import pytest
import tiny
import torch
from conftest import Workshop

from sea_bake import Edit, bake, evaluate
from sea_bake.artefact import Artefact
from sea_bake.artefact.names import EVALUATION
from sea_bake.artefact.seal import broken, seal
from sea_bake.errors import (
    EvaluationError,
    MissingExtraError,
    OutputError,
    SettingError,
    WrongModelError,
)
from sea_bake.evaluation import Evaluation, damage
from sea_bake.evaluation import rendering as reporting
from sea_bake.evaluation.doors import Doors
from sea_bake.evaluation.prefixes import Scorer
from sea_bake.evaluation.statistics import compare

pytestmark = pytest.mark.usefixtures("short_answers")
TASKS = ["truthfulqa_mc2", "bbq"]
# Inserted layers are the module that the hooks run, so that only the order of sums may differ; a fold multiplies them
# into float32 weights, whose rounding (2e-6 of the largest logit) adds up over the few dozen tokens of an answer.
NOISE = {"insert": 1e-5, "fold": 2e-3, "adapter": 2e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmarks.write(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation") / "out"


@pytest.fixture(scope="module")
def found(data: Path, output: Path) -> Evaluation:
    """Base and live edit of the tiny model, with costs."""
    return evaluate(tiny.single(), edit=tiny.edit_file(), tasks=TASKS, data=data, output=output)


def scores(evaluation: Evaluation, task: str, door: str) -> list[float]:
    return [value for record in evaluation.records[task][door] for value in record["loglikelihoods"]]


def apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


# -------------------------------------------------------------------------------------------------------------- one run


@pytest.mark.slow
def test_every_difference_has_an_interval_and_a_test(found: Evaluation) -> None:
    assert [row.task for row in found.headlines][:1] == ["truthfulqa_mc2"]
    assert {row.kind for row in found.rows} == {"gain", "damage"}
    for row in found.rows:
        difference = row.found.difference
        assert difference is not None
        assert difference.low <= difference.value + 1e-12
        assert difference.value <= difference.high + 1e-12
        assert 0 < row.found.p <= 1
        assert row.found.test in ("McNemar", "randomisation")
        assert row.found.edited.value - row.found.base.value == pytest.approx(difference.value)
    keys = {(row.task, row.measure.key) for row in found.headlines}
    assert keys >= {
        ("truthfulqa_mc2", "acc"), ("truthfulqa_mc2", "margin"), ("truthfulqa_mc2", "pairs"), ("bbq", "acc"),
        ("bbq", "ambig.unknown"), ("bbq", "ambig.bias"), ("bbq", "disambig.bias"), ("bbq", "stereotypical"),
        ("neutral_text", "kl"), ("neutral_text", "perplexity"), ("generation", "repetition"),
    }  # fmt: skip
    assert {row.measure.part for row in found.rows if row.measure.detail} >= {"Age", "Age, ambiguous"}


@pytest.mark.slow
def test_the_live_door_is_the_edit_and_the_base_is_the_base(found: Evaluation, data: Path) -> None:
    alone = evaluate(tiny.single(), tasks=TASKS, data=data, cost=False)
    assert alone.model["how"] is None
    assert all(row.found.difference is None and row.to_json()["base"] is None for row in alone.rows)
    for task in TASKS:  # hooks that were on between the two change nothing
        assert scores(alone, task, "base") == scores(found, task, "base")
        assert apart(scores(found, task, "live"), scores(found, task, "base")) > 0.05


@pytest.mark.slow
def test_costs_against_dense_float64(found: Evaluation) -> None:
    """KL and perplexity once more, by a softmax in float64 over whole texts."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny.single()).eval(), tiny.tokenizer()
    edit = Edit.load(tiny.edit_file())
    kl = nll = tokens = 0.0
    with torch.inference_mode():
        for text in damage.TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"][:256]])
            p = model(input_ids=ids).logits[0, :-1].double().softmax(-1)
            with edit.live(model):
                q = model(input_ids=ids).logits[0, :-1].double().softmax(-1)
            kl += float((p * (p / q).log()).sum())
            nll -= float(q.log().gather(1, ids[0, 1:, None]).sum())
            tokens += len(p)
    assert found.row("neutral_text", "kl").found.edited.value == pytest.approx(kl / tokens, rel=1e-4)
    perplexity = torch.tensor(nll / tokens).exp().item()
    assert found.row("neutral_text", "perplexity").found.edited.value == pytest.approx(perplexity, rel=1e-4)
    assert found.row("neutral_text", "kl").found.base.value == 0


def test_repetition_counts_what_was_there_before() -> None:
    assert damage.repetition(list(range(20))) == 0
    assert damage.repetition([1, 2, 3, 4] * 5) == pytest.approx(1 - 4 / 17)
    assert damage.repetition([1, 2, 3]) == 0


# ----------------------------------------------------------------------------------------------------------- every door


@pytest.mark.slow
@pytest.mark.parametrize("how", ["insert", "fold", "adapter"])
def test_the_artefact_answers_like_the_live_edit_example_by_example(data: Path, tmp_path: Path, how: str) -> None:
    base = tiny.single()
    edit = Edit.load(tiny.edit_file()).with_settings(merge="l2" if how == "insert" else "sum")
    artefact = bake(base, edit, tmp_path / how, how=how).output
    settings: dict[str, Any] = {"tasks": TASKS, "data": data, "cost": False}
    live = evaluate(base, edit=edit, **settings)
    baked = evaluate(artefact, base=base, **settings)
    assert baked.model["how"] == how
    assert baked.model["edited"] == how  # the folder's name
    for task in TASKS:
        assert scores(baked, task, "base") == scores(live, task, "base")
        difference = apart(scores(baked, task, how), scores(live, task, "live"))
        moved = apart(scores(baked, task, how), scores(baked, task, "base"))
        assert difference <= NOISE[how]
        assert moved > 20 * NOISE[how]  # the control: the base itself is nowhere near
        for a, b in zip(baked.records[task][how], live.records[task]["live"]):
            assert (a["id"], a["hash"], a["greedy"]) == (b["id"], b["hash"], b["greedy"])


@pytest.mark.slow
def test_an_encoder_decoder_is_evaluated_without_costs(workshop: Workshop, data: Path) -> None:
    base, edit = workshop.base("t5"), workshop.edit("t5")
    found = evaluate(base, edit=edit, tasks=["bbq"], data=data, cost=False)
    assert apart(scores(found, "bbq", "live"), scores(found, "bbq", "base")) > 1e-3
    with pytest.raises(EvaluationError, match="--no-cost"):
        evaluate(base, edit=edit, tasks=["bbq"], data=data)


@pytest.mark.slow
def test_the_chat_template_is_used_when_asked_for(data: Path) -> None:
    base = tiny.single(chat=True)
    settings: dict[str, Any] = {"tasks": ["bbq"], "data": data, "cost": False}
    plain, chat = evaluate(base, **settings), evaluate(base, chat=True, **settings)
    assert apart(scores(plain, "bbq", "base"), scores(chat, "bbq", "base")) > 1e-2
    with pytest.raises(EvaluationError, match="has no chat template: drop --chat"):
        evaluate(tiny.single(), chat=True, **settings)


# ------------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.slow
def test_a_stopped_run_goes_on(found: Evaluation, data: Path, output: Path) -> None:
    """Each file is whole or not there, so a run that was killed is one that lacks some."""
    examples = output / "examples"
    names = {f"{task}.{door}.jsonl" for task in (*TASKS, "neutral_text", "generation") for door in ("base", "live")}
    assert tiny.listing(examples) == names
    report = (output / "evaluation.json").read_text("utf-8")
    lost = [examples / "bbq.live.jsonl", examples / "neutral_text.live.jsonl"]
    times = {name: (examples / name).stat().st_mtime_ns for name in names}
    for path in (*lost, output / "evaluation.json"):
        path.unlink()
    again = evaluate(tiny.single(), edit=tiny.edit_file(), tasks=TASKS, data=data, output=output)
    assert (output / "evaluation.json").read_text("utf-8") == report
    assert [row.to_json() for row in again.rows] == [row.to_json() for row in found.rows]
    made = {name for name in names if (examples / name).stat().st_mtime_ns != times[name]}
    # KL is measured against what the base says in the same run, so its two halves are made together.
    assert made == {"bbq.live.jsonl", "neutral_text.live.jsonl", "neutral_text.base.jsonl"}


@pytest.mark.slow
def test_a_resumed_run_equals_a_clean_one_byte_for_byte(data: Path, output: Path, tmp_path: Path) -> None:
    """Whichever unit was lost: MC2 takes over what MC1 has scored, and what is left is batched by what is there."""
    tasks = ["truthfulqa_mc1", "truthfulqa_mc2", "bbq"]
    settings: dict[str, Any] = {"edit": tiny.edit_file(), "tasks": tasks, "data": data, "batch_size": 3}
    evaluate(tiny.single(), output=tmp_path / "out", **settings)
    clean = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for path in clean:
        path.unlink()
        evaluate(tiny.single(), output=tmp_path / "out", **settings)
        different = [p.name for p in clean if p.read_bytes() != clean[p]]
        assert different == [], f"after {path.name} was lost"


@pytest.mark.slow
def test_answers_of_other_inputs_are_never_taken(found: Evaluation, data: Path, output: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"edit": tiny.edit_file(), "tasks": ["bbq"], "data": data, "cost": False}
    for changes in ({"limit": 2}, {"offset": 1}, {"edit": tiny.edit_file(site="attn")}, {"dtype": "bfloat16"}):
        with pytest.raises(OutputError, match="answers of another run"):
            evaluate(tiny.single(), output=output, **{**settings, **changes})
    kept = (output / "examples" / "bbq.live.jsonl").read_bytes()
    other = tmp_path / "out"
    evaluate(tiny.single(), output=other, limit=2, **settings)
    fewer = evaluate(tiny.single(), output=other, limit=3, overwrite=True, **settings)
    assert len(fewer.records["bbq"]["live"]) == 3
    assert (output / "examples" / "bbq.live.jsonl").read_bytes() == kept
    path = other / "examples" / "bbq.base.jsonl"
    path.write_text(path.read_text("utf-8")[:-200], "utf-8")
    with pytest.raises(OutputError, match=r"bbq\.base\.jsonl is damaged"):
        evaluate(tiny.single(), output=other, limit=3, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["base", "artefact", "edit inside"])
def test_one_byte_in_the_middle_makes_another_model(what: str, tmp_path: Path) -> None:
    """Neither names nor sizes nor the ends of a file would show it: answers of the old model must not be taken."""
    base = tiny.changeable(tiny.large(), tmp_path / "base")
    artefact = bake(base, tiny.edit_file(tiny.large()), tmp_path / "artefact", how="insert", copy=True).output
    before = [Doors.of(artefact).identity(door) for door in ("base", "insert")]
    assert before == [Doors.of(artefact).identity(door) for door in ("base", "insert")]
    inside = sorted((artefact / "sea").glob("edit-*.safetensors"))
    path = {"base": sorted(base.glob("*.safetensors"))[3], "artefact": sorted(artefact.glob("model-*"))[3]}
    with open({**path, "edit inside": inside[0]}[what], "r+b") as file:
        middle = file.seek(0, 2) // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
    after = [Doors.of(artefact).identity(door) for door in ("base", "insert")]
    assert [a == b for a, b in zip(before, after)] == [what != "base", what == "base"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["insert", "fold", "adapter"])
def test_the_base_of_an_artefact_has_to_be_its_own(how: str, data: Path, tmp_path: Path) -> None:
    edit = Edit.load(tiny.edit_file()).with_settings(merge="sum")
    artefact = bake(tiny.single(), edit, tmp_path / "artefact", how=how).output
    settings: dict[str, Any] = {"tasks": ["bbq"], "data": data, "limit": 2, "cost": False}
    with tiny.nothing_happens(tmp_path, artefact), pytest.raises(WrongModelError, match="its weights differ"):
        evaluate(artefact, base=tiny.single(seed=1), write=True, **settings)
    assert evaluate(artefact, base=tiny.single(), **settings).model["how"] == how  # the control


# ------------------------------------------------------------------------------------------------------ what is claimed


def pairs_of(values: list[float]) -> Any:
    return np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)


@pytest.mark.slow
def test_a_handful_of_examples_proves_nothing(found: Evaluation) -> None:
    """Their bootstrap interval may leave 0 out, and has no width at all for one: the paired test speaks against it."""
    for base, edited in (([0.5], [0.4]), ([0.1, 0.2], [0.2, 0.35]), ([0, 0, 0], [1, 1, 1])):
        few = compare(pairs_of(base), pairs_of(edited))
        assert not few.difference.low <= 0 <= few.difference.high
        assert few.p > 0.05
        row = replace(found.row("truthfulqa_mc2", "acc"), found=few)
        assert (few.shown, reporting.verdict(row)) == (False, "")
        assert "below 10" in " ".join(reporting.notes(replace(found, rows=[row])))
    many = compare(pairs_of([0.0] * 40), pairs_of([0.1] * 30 + [-0.1] * 10))
    assert many.shown  # the control


def test_a_share_of_none_or_all_is_not_certain() -> None:
    none, every = compare(pairs_of([0] * 20)), compare(pairs_of([1] * 20))
    assert (none.base.low, none.base.high) == (0, pytest.approx(3 / 20))
    assert (every.base.low, every.base.high) == (pytest.approx(17 / 20), 1)


@pytest.mark.slow
def test_what_was_said_on_the_way_stays(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out once: the batch is halved, and the results say so, whoever heard it."""
    score, failed = Scorer._score, []

    def scarce(self: Any, *told: Any) -> Any:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(self, *told)

    monkeypatch.setattr(Scorer, "_score", scarce)
    said: list[str] = []
    made = evaluate(tiny.single(), tasks=["bbq"], data=data, cost=False, batch_size=4, say=said.append)
    assert said == made.remarks == made.to_json()["remarks"] == ["out of memory: batches of 2 from here on"]
    assert "Out of memory: batches of 2 from here on." in reporting.notes(made)


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.slow
def test_markdown_holds_no_html(found: Evaluation) -> None:
    evil = "<script>alert(1)</script> | <b>"
    row = replace(found.rows[0], dataset={"type": "x", "name": evil})
    text = reporting.markdown(
        replace(found, rows=[row, *found.rows[1:]], samples=[{"prompt": evil, "base": evil, "edited": evil}])
    )
    assert "<script" not in text
    assert "<b>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4


class Seen(HTMLParser):
    """Tags, and every reference to something outside."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "srcset")]


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_names_no_path(found: Evaluation, output: Path) -> None:
    page = (output / "evaluation.html").read_text("utf-8")
    seen = Seen()
    seen.feed(page)
    assert seen.tags.count("img") == 3  # differences, BBQ by category, TruthfulQA's margins
    assert seen.tags.count("table") == 4
    assert "script" not in seen.tags
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in seen.references)
    markdown = (output / "evaluation.md").read_text("utf-8")
    value = r"[\d.]+ ± [\d.]+"
    assert re.search(rf"\| BBQ \| accuracy \(%\) \| 6 \| {value} \| {value} \| [+-]{value} \|", markdown)
    for path in output.rglob("*"):
        if path.is_file():
            assert str(tiny.root()) not in path.read_text("utf-8"), path.name
            assert str(output) not in path.read_text("utf-8"), path.name


@pytest.mark.slow
def test_the_command_line(data: Path, output: Path, found: Evaluation) -> None:
    told = ("--edit", tiny.edit_file(), "--data", data, "--tasks", ",".join(TASKS), "-o", output)
    ran = tiny.run("eval", tiny.single(), *told)
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"margin per token \(nats\) .* [+-]\d\.\d+ ± \d\.\d+", ran.out)
    assert "KL from base" in ran.out
    ran = tiny.run("eval", tiny.single(), *told, "--json")
    assert json.loads(ran.out) == json.loads((output / "evaluation.json").read_text("utf-8"))


@pytest.mark.slow
def test_the_artefact_carries_its_evaluation_to_the_model_card(data: Path, tmp_path: Path) -> None:
    artefact = bake(tiny.single(), [tiny.edit_file()], tmp_path / "artefact", how="insert").output
    sealed = seal(artefact)
    ran = tiny.run("eval", artefact, "--base", tiny.single(), "--data", data, "--tasks", "bbq", "--no-cost", "--write")
    assert (ran.code, ran.err) == (0, "")
    assert broken(artefact, sealed) == []  # it is no part of what was verified
    kept = Artefact.open(artefact).evaluation
    assert kept is not None
    assert kept.files == sealed
    results = [row for row in kept.headlines if not row.measure.part]
    (accuracy,) = [row for row in results if row.measure.key == "acc"]
    assert (accuracy.dataset["type"], accuracy.kind, accuracy.found.n) == ("oskarvanderwal/bbq", "gain", 6)
    difference = accuracy.found.difference
    assert difference is not None
    assert difference.low <= difference.value <= difference.high
    assert len(results) < 12  # headlines only
    assert (artefact / EVALUATION).is_file()
    with pytest.raises(SettingError, match="no artefact"):
        evaluate(tiny.single(), data=data, write=True)


def test_help_teaches() -> None:
    ran = tiny.run("eval", "--help")
    assert (ran.code, ran.err) == (0, "")
    for words in ("truthful.safetensors --limit 200", "--json", "95 % interval", "crows_pairs", "--overwrite"):
        assert words in " ".join(ran.out.split()), words


@pytest.mark.slow
def test_a_recipe_evaluates_what_it_baked(data: Path, tmp_path: Path) -> None:
    """``eval:`` takes the arguments of ``evaluate``; the second run does nothing, and its own output is taken up."""
    told = {
        "model": str(tiny.single()),
        "output": "out",
        "fit": {"demonstrations": str(tiny.demonstrations_file()), "layers": "all", "K": 0.9, "neutral": "prompt"},
        "bake": {"how": "insert"},
        "eval": {"tasks": ["bbq"], "data": str(data), "cost": False, "limit": 4},
    }
    file = tmp_path / "sea_bake.yaml"
    file.write_text(json.dumps(told), "utf-8")  # JSON is YAML
    assert tiny.run("run", file, "--quiet").code == 0
    report = json.loads((tmp_path / "out-evaluation" / "evaluation.json").read_text("utf-8"))
    assert (report["model"]["how"], report["results"][0]["n"]) == ("insert", 4)
    assert json.loads((tmp_path / "out" / EVALUATION).read_text("utf-8"))["results"] == report["results"]
    again = json.loads(tiny.run("run", file, "--json").out)
    assert [step["status"] for step in again["steps"]] == ["kept"] * 4
    (tmp_path / "out-evaluation" / "examples" / "bbq.insert.jsonl").unlink()
    again = json.loads(tiny.run("run", file, "--overwrite", "--json").out)
    assert [step["status"] for step in again["steps"]] == ["kept"] * 3 + ["done"]
    file.write_text(json.dumps(told | {"eval": {"task": ["bbq"]}}), "utf-8")
    tiny.refused(tiny.run("run", file), "RecipeError", "Did you mean 'tasks'?")


def test_export_tasks_writes_what_the_harness_reads(data: Path, tmp_path: Path) -> None:
    ran = tiny.run("eval", "x", "--data", data, "--tasks", "bbq,truthfulqa_mc2", "--export-tasks", tmp_path / "tasks")
    assert (ran.code, ran.err) == (0, "")
    assert tiny.listing(tmp_path / "tasks") == {"bbq.yaml", "truthfulqa_mc1.yaml", "truthfulqa_mc2.yaml", "scoring.py"}
    tiny.refused(tiny.run("eval", "x", "--export-tasks", tmp_path / "other"), "SettingError", "--data")


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told", "words"),
    [
        ("EvaluationError", ["--tasks", "bqb", "--data", "DATA"], ["unknown task 'bqb'", "did you mean bbq"]),
        ("EvaluationError", ["--data", "EMPTY"], ["truthfulqa", "columns question, mc1_targets"]),
        ("EvaluationError", ["--data", "DATA", "--chat"], ["no chat template"]),
        ("SettingError", ["--data", "DATA", "--limit", "0"], ["limit = 0"]),
        ("SettingError", ["--data", "DATA", "--batch-size", "0"], ["batch size = 0"]),
        ("SettingError", ["--data", "DATA", "--quiet"], ["--quiet would show nothing", "--json"]),
        ("SettingError", ["--data", "DATA", "--dtype", "float8"], ["unknown dtype 'float8'"]),
        ("EvaluationError", ["--data", "DATA", "--base", "BASE"], ["belongs to an artefact"]),
        ("EvaluationError", ["--data", "DATA", "--neutral-text", "NOWHERE"], ["cannot be read as text"]),
        ("OutputError", ["--data", "DATA", "-o", "FOREIGN"], ["holds no evaluation"]),
        ("EditError", ["--data", "DATA", "--edit", "NOWHERE"], ["no such file"]),
        ("EvaluationError", ["--tasks", "hellaswag"], ["data of the task hellaswag", "--data DIR"]),
        (
            "EvaluationError",
            ["--tasks", "helaswag"],
            ["unknown task 'helaswag'", "mean hellaswag or hellaswag_"],
        ),
    ],
)
def test_bad_input(data: Path, tmp_path: Path, kind: str, told: list[str], words: list[str]) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine", "utf-8")
    (tmp_path / "empty").mkdir()
    places = {
        "DATA": data, "EMPTY": tmp_path / "empty", "BASE": tiny.single(), "NOWHERE": tmp_path / "nowhere",
        "FOREIGN": foreign,
    }  # fmt: skip
    with tiny.nothing_happens(tmp_path, tiny.single(), foreign):
        tiny.refused(tiny.run("eval", tiny.single(), *(places.get(word, word) for word in told)), kind, *words)


@pytest.mark.slow
def test_an_edit_of_another_model_and_an_edit_for_an_artefact(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tasks": ["bbq"], "data": data, "cost": False}
    with pytest.raises(WrongModelError):
        evaluate(tiny.single(seed=1), edit=tiny.edit_file(), **settings)
    artefact = bake(tiny.single(), [tiny.edit_file()], tmp_path / "artefact", how="insert").output
    with pytest.raises(EvaluationError, match="with its edits in it"):
        evaluate(artefact, edit=tiny.edit_file(), **settings)
    (tmp_path / "export" / "sea").mkdir(parents=True)
    (tmp_path / "export" / "sea" / "export.json").write_text(
        '{"format": "onnx", "base": "x", "how": "unedited"}', "utf-8"
    )
    with pytest.raises(EvaluationError, match="evaluate the artefact that it was made from"):
        evaluate(tmp_path / "export", **settings)


@pytest.mark.slow
def test_nan_is_told_before_any_task(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    model = tiny.new_llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    ran = tiny.run("eval", folder, "--data", data, "--tasks", "bbq", "-o", tmp_path / "out")
    tiny.refused(ran, "EvaluationError", "NaN or infinite logits", "decoder layer 1 (of 0-3)")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("module", "package"), [("lm_eval", "lm-eval"), ("matplotlib", "matplotlib")])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*pip install 'sea-bake\[eval\]'"):
        evaluate(tiny.single(), data=data, output=tmp_path / "out")


@pytest.mark.slow
def test_half_precision_and_a_small_batch(data: Path) -> None:
    """bfloat16 answers near float32, and the batch decides nothing."""
    settings: dict[str, Any] = {"tasks": ["bbq"], "data": data, "cost": False}
    whole, half = evaluate(tiny.single(), **settings), evaluate(tiny.single(), dtype="bfloat16", **settings)
    small = evaluate(tiny.single(), batch_size=1, **settings)
    assert apart(scores(whole, "bbq", "base"), scores(small, "bbq", "base")) < 5e-5
    assert 1e-4 < apart(scores(whole, "bbq", "base"), scores(half, "bbq", "base")) < 3  # 8 bits, sums of a dozen tokens


def test_families_speak_the_tests_language() -> None:
    """The rows above are English for both tokenizers of the tests: no answer is empty in either."""
    for tokenizer in (tiny.tokenizer(), families.tokenizer()):
        for row in benchmarks.BBQ:
            assert len(tokenizer(" " + row["ans0"], add_special_tokens=False)["input_ids"]) > 0


@pytest.mark.slow
def test_what_a_task_was_asked_under_is_told_and_kept(data: Path, tmp_path: Path) -> None:
    """Worked examples of each task, and requests that are longer than the model: also by a run that only reads them."""
    model, names = tiny.write_llama(tmp_path / "short", max_position_embeddings=200), ["truthfulqa_mc1", "mmlu"]
    told: dict[str, Any] = {"edit": tiny.edit_file(), "tasks": names, "data": data, "cost": False, "fewshot": 2}
    said: list[str] = []
    first = evaluate(model, output=tmp_path / "out", say=said.append, **told)
    assert len(said) == len(set(said)) == 3  # each once, though two doors are asked
    assert said[0] == "--fewshot 2 is not for all tasks (truthfulqa_mc1: always without worked examples)"
    figures = {name: first.harness[name]["live"][name] for name in names}
    assert [figures[name]["num_fewshot"] for name in names] == [0, 2]
    for name, sentence in zip(names, said[1:]):
        cut, asked, most = (int(figures[name][key]) for key in ("truncated", "requests", "tokens_cut"))
        assert 0 < cut <= asked
        assert sentence.startswith(f"{cut} of {asked} requests of {name} are longer than the model can read")
        assert f"up to {most} tokens of their beginnings" in sentence
    assert first.remarks == [*said, "worked examples: truthfulqa_mc1 0, mmlu 2"]
    text = (tmp_path / "out" / "evaluation.md").read_text("utf-8")
    assert all(f"{remark[:1].upper()}{remark[1:]}." in text for remark in first.remarks)
    again = evaluate(model, output=tmp_path / "out", **told)
    assert set(again.to_json()["remarks"]) == set(first.remarks)
    assert again.harness == first.harness
