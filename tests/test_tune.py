"""Settings found on one part of the data and compared on another: parts kept apart, kills survived, nulls told."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmarks
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sea_bake import Demonstration, Edit, bake, reproduce, tune
from sea_bake.activations.prompts import encode
from sea_bake.errors import (
    ActivationError,
    DemonstrationError,
    EvaluationError,
    MissingExtraError,
    OutputError,
    SeaBakeError,
    SettingError,
)
from sea_bake.evaluation import statistics
from sea_bake.evaluation.damage import TEXTS
from sea_bake.evaluation.doors import Doors
from sea_bake.fitting.tuning import Objective, Range, Space, Trial, Tuning, searching, splits, untuned
from sea_bake.fitting.tuning import trials as kept
from sea_bake.fitting.tuning.folder import EDIT, FITTED_ON, JOURNAL, RESULT, Folder
from sea_bake.fitting.tuning.results import DEFAULT, choose
from sea_bake.fitting.tuning.space import parse_space
from sea_bake.fitting.tuning.trials import LOOKS
from sea_bake.io import leases

TRIPLES = 48  # few: three parts, of which one is fitted on, by SEA too
COUNT = 14  # ten trials by chance, as many as TPE wants before it proposes, and four that it proposes
SETTINGS: dict[str, Any] = {"neutral": "prompt", "trials": COUNT, "seed": 5}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning") / "out"


@pytest.fixture(scope="module")
def found(output: Path) -> Tuning:
    """One search on the tiny model, never interrupted."""
    return tune(tiny.single(), tiny.demonstrations(TRIPLES), output=output, **SETTINGS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows enough for two parts."""
    folder = benchmarks.write(tmp_path_factory.mktemp("benchmarks"))
    many = {
        "truthfulqa/truthful_qa_multiple_choice.test.jsonl": questions(35),
        "bbq/bbq_rows.jsonl": scenarios(40),
        "hellaswag/hellaswag_val.jsonl": [
            row | {"ctx_a": f"{row['ctx_a']} ({i})"} for i in range(20) for row in benchmarks.HELLASWAG
        ],
    }
    for name, rows in many.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def questions(count: int) -> list[dict[str, Any]]:
    """Rows of TruthfulQA, no two of which ask the same."""
    rows = benchmarks.TRUTHFULQA
    return [{**rows[i % 5], "question": f"{rows[i % 5]['question']}{f' ({i})' * (i > 4)}"} for i in range(count)]


def scenarios(count: int) -> list[dict[str, Any]]:
    """Rows of BBQ: ten scenarios without what tells the answer, the same ten with it and other names, then new ones."""

    def row(scenario: int, condition: str) -> dict[str, Any]:
        names = ("Ann", "Bea") if condition == "ambig" else ("Cid", "Dan")
        groups = ((names[0], "old"), (names[1], "nonOld"), ("Unknown", "unknown"))
        found = benchmarks.bbq(groups, 2 if condition == "ambig" else 0, condition=condition)
        return found | {"question_index": str(scenario), "question": f"Who forgot name {scenario}?"}

    known = [row(i, condition) for condition in ("ambig", "disambig") for i in range(10)]
    return known + [row(i, condition) for i in range(10, count) for condition in ("ambig", "disambig")]


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULT).read_text("utf-8"))


def timeless(trials: list[Any]) -> list[dict[str, Any]]:
    """Trials without what the clock has said."""
    plain = [trial.to_json() if isinstance(trial, Trial) else trial for trial in trials]
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in plain]


def margins(model: Any, triples: list[Demonstration]) -> list[float]:
    """log p per token of the positive answer minus the negative one's, by whole texts and a softmax in float64."""
    found = []
    for triple in triples:
        rates = []
        for answer in (triple.positive, triple.negative):
            tokens = encode(tiny.tokenizer(), triple.prompt, answer)
            with torch.inference_mode():
                logs = model(input_ids=torch.tensor([tokens.ids])).logits[0].double().log_softmax(-1)
            rows = range(tokens.start - 1, len(tokens.ids) - 1)
            rates.append(sum(float(logs[i, tokens.ids[i + 1]]) for i in rows) / len(rows))
        found.append(rates[0] - rates[1])
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ----------------------------------------------------------------------------------------------------------- one search


@pytest.mark.slow
def test_every_search_holds_the_untuned_default(found: Tuning) -> None:
    first = found.trial(DEFAULT)
    assert first.settings == untuned() == {
        "method": "sea", "site": "attn", "layers": "last:0.66", "K_positive": 0.95, "K_negative": 0.95,
        "merge": "sum", "feature": "identity", "centre": True, "alpha": 0.77, "parts": "both",
    }  # fmt: skip
    assert [trial.number for trial in found.trials] == list(range(COUNT))
    assert len({json.dumps(trial.settings) for trial in found.trials}) > COUNT // 2
    elsewhere = Space(site=("mlp",), feature=("tanh",)).check()  # the default is none of these
    assert elsewhere.drawn(untuned()).keys() & {"site", "feature"} == set()
    assert elsewhere.settings({"1-K_positive": 0.1, "1-K_negative": 0.1, "alpha": 1.0})["site"] == "mlp"


@pytest.mark.slow
def test_the_front_is_what_nothing_beats(found: Tuning, output: Path) -> None:
    """By brute force over all pairs; and by Optuna, of those trials that keep to the KL that is allowed."""
    points = {trial.number: (trial.gain.value, -trial.kl) for trial in found.trials if not trial.failure}
    beaten = {
        a for (a, p), (_, q) in itertools.permutations(points.items(), 2)
        if all(y >= x for x, y in zip(p, q)) and p != q
    }  # fmt: skip
    assert found.front == sorted(set(points) - beaten)
    assert beaten  # the control: not all are on it
    within = [n for n in found.front if found.trial(n).kl <= found.max_kl]
    best = Folder(output).study().best_trials
    assert sorted(trial.user_attrs[kept.RECORD]["number"] for trial in best) == within
    assert found.chosen == max(within, key=lambda n: found.trial(n).gain.value)


def test_the_choice_of_a_front() -> None:
    from sea_bake.evaluation.statistics import Estimate

    def at(number: int, gain: float, kl: float) -> Trial:
        return Trial(number, {}, gain=Estimate(gain, gain, gain), kl=kl)

    front = [at(0, 0.1, 0.01), at(1, 0.3, 0.05), at(2, 0.9, 0.5)]
    assert choose(front, 0.1).number == 1
    assert choose(front, 1.0).number == 2
    assert choose(front, 0.001).number == 0  # none is within: the cheapest
    assert choose([at(3, 0.3, 0.05), at(1, 0.3, 0.05), at(2, 0.3, 0.04)], 0.1).number == 2


@pytest.mark.slow
def test_the_chosen_edit_is_worth_what_the_result_says(found: Tuning, output: Path) -> None:
    """Once more from the file, without the package's scoring: dense, in float64, no shared prefixes, no batches."""
    result, triples = told(output), tiny.demonstrations(TRIPLES)
    edit, model = Edit.load(output / EDIT), AutoModelForCausalLM.from_pretrained(tiny.single()).eval()
    assert edit.recipe["tuning"]["trial"] == result["chosen"] == found.chosen
    assert edit.recipe["tuning"]["seed"] == 5
    assert {k: getattr(edit, k) for k in ("merge", "feature", "alpha", "parts")}.items() <= found.trial(
        found.chosen
    ).settings.items()
    trial = result["trials"][found.chosen]
    rows = {(row["task"], row["metric"]["type"]): row for row in result["held_back"]["base to chosen"]}
    held = rows["demonstrations", "margin"]
    for name, value, base in (
        ("selection", trial["value"], trial["base"]),
        ("held_back", held["value"], held["base"]),
    ):
        part = [triples[i] for i in result["splits"][name]["places"]]
        with edit.live(model):
            edited = mean(margins(model, part))
        # Sums of a dozen float32 log-probabilities in another order: 1e-6 each.
        assert value == pytest.approx(edited, abs=2e-5)
        assert base == pytest.approx(mean(margins(model, part)), abs=2e-5)
        assert abs(edited - base) > 1e-3  # the control: the base alone is not it
    for texts, kl in ((TEXTS[::2], trial["kl"]), (TEXTS[1::2], rows["neutral_text", "kl"]["value"])):
        assert kl == pytest.approx(divergence(model, edit, texts), rel=1e-4)


def divergence(model: Any, edit: Edit, texts: Any) -> float:
    """KL(base ‖ edited) per predicted token, dense and in float64."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tiny.tokenizer()(text)["input_ids"][:256]])
        with torch.inference_mode():
            p = model(input_ids=ids).logits[0, :-1].double().softmax(-1)
            with edit.live(model):
                q = model(input_ids=ids).logits[0, :-1].double().softmax(-1)
        total, count = total + float((p * (p / q).log()).sum()), count + len(p)
    return total / count


@pytest.mark.slow
def test_a_baked_choice_can_be_reproduced(found: Tuning, output: Path, tmp_path: Path) -> None:
    """The recipe holds more than a fit's, and what it was fitted on lies beside it."""
    baked = bake(tiny.single(), output / EDIT, tmp_path / "art", how="insert").output
    again = reproduce(baked, model=tiny.single(), demonstrations=output / FITTED_ON)
    assert again.reproduced
    with pytest.raises(DemonstrationError, match="other demonstrations"):  # the control
        reproduce(baked, model=tiny.single(), demonstrations=tiny.demonstrations_file())


@pytest.mark.slow
def test_what_is_written_is_for_people_too_and_tells_no_secrets(found: Tuning, output: Path) -> None:
    names = {
        "run.json", JOURNAL, FITTED_ON, EDIT, RESULT, "tune.md", "pareto.png", "pareto.svg",
        *(f"activations-{site}.safetensors" for site in ("mlp", "attn")),
    }  # fmt: skip
    assert tiny.listing(output) == names
    assert (output / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert b"untuned default" in (output / "pareto.svg").read_bytes() or b"<svg" in (output / "pareto.svg").read_bytes()
    page = (output / "tune.md").read_text("utf-8")
    for words in (found.verdict[1:], "default to chosen", "KL from base, per token", f"| {found.chosen} |", "untuned"):
        assert words in page
    for name in names:
        content = (output / name).read_bytes()
        assert str(output.parent).encode() not in content, name
        assert str(tiny.root()).encode() not in content, name


# ---------------------------------------------------------------------------------------------------------- three parts


@pytest.mark.slow
def test_no_question_is_in_two_parts(output: Path, found: Tuning) -> None:
    parts = told(output)["splits"]
    places = [parts[name]["places"] for name in ("fit", "selection", "held_back")]
    assert sorted(itertools.chain(*places)) == list(range(TRIPLES))
    fitted = [json.loads(line)["prompt"] for line in (output / FITTED_ON).read_text("utf-8").splitlines()]
    assert fitted == [tiny.demonstrations(TRIPLES)[i].prompt for i in places[0]]


@pytest.mark.slow
@given(st.lists(st.integers(0, 19), min_size=40, max_size=60), st.integers(0, 5))
def test_the_triples_of_a_question_stay_together(questions: list[int], seed: int) -> None:
    """Whatever its case and white space: a question asked twice is one question."""
    triples = [
        Demonstration(f"{'Is' if i % 2 else 'is '}  it {q}?", f"yes {i}", f"no {i}") for i, q in enumerate(questions)
    ]
    try:
        found = splits.by_question(triples, None, None, seed)
    except DemonstrationError:
        assert len(set(questions)) < len(questions) / 2  # a few questions asked again and again cannot be parted
        return
    parts = [found.fit, found.selection, found.held_back]
    asked = [{" ".join(t.prompt.split()).casefold() for t in part} for part in parts]
    assert sum(map(len, asked)) == len(set.union(*asked))
    assert sorted(t.positive for part in parts for t in part) == sorted(t.positive for t in triples)
    assert all(len(part) >= least for part, least in zip(parts, (2, 10, 20)))


@pytest.mark.parametrize("fewest", [2, 3, 10])
def test_as_many_demonstrations_as_a_refusal_asks_for_are_enough(fewest: int) -> None:
    enough = fewest + 10 + 20
    with pytest.raises(DemonstrationError, match=f"{fewest} or more for the fit.*Give at least {enough},"):
        splits.by_question(tiny.demonstrations(enough - 1), None, None, 0, fewest)
    assert len(splits.by_question(tiny.demonstrations(enough), None, None, 0, fewest).fit) == fewest


@pytest.mark.parametrize(("count", "select", "confirm"), [(130, 110, None), (100, 100, None), (100, None, 90)])
def test_so_they_are_beside_a_part_that_is_given(count: int, select: int | None, confirm: int | None) -> None:
    """The other part is a quarter of what is there then."""
    with pytest.raises(DemonstrationError) as found:
        splits.by_question(tiny.demonstrations(count), select, confirm, 0, 3)
    (enough,) = re.findall(r"Give at least (\d+),", str(found.value))
    with pytest.raises(DemonstrationError):
        splits.by_question(tiny.demonstrations(int(enough) - 1), select, confirm, 0, 3)
    assert splits.by_question(tiny.demonstrations(int(enough)), select, confirm, 0, 3).fit


def test_of_few_questions_others_are_asked_for() -> None:
    some = [Demonstration(f"Is it {i % 11}?", f"yes {i}", f"no {i}") for i in range(33)]
    with pytest.raises(DemonstrationError, match="one question stay together, so give some of other questions"):
        splits.by_question(some, None, None, 0, 3)
    with pytest.raises(DemonstrationError, match="Give at least 33, and more questions: those of one stay together"):
        splits.by_question(some[:30], None, None, 0, 3)


@pytest.mark.slow
def test_a_benchmarks_questions_are_not_fitted_on(data: Path) -> None:
    asked = Demonstration("can  BATS see?", "Yes.", "No.")  # the first row of the benchmark
    triples = [*tiny.demonstrations(4), asked]
    goal = Objective("truthfulqa_mc2")
    found = splits.by_rows(goal, data, triples, 10, 20)
    assert found.rows == ((0, 10), (10, 30))
    assert (found.left_out, list(found.fit)) == ([4], tiny.demonstrations(4))
    assert (found.repeated, found.by, len(found.marks)) == (frozenset(), "question", 20)
    fewer = splits.by_rows(goal, data, [*tiny.demonstrations(4)], 10, 20)
    assert fewer.left_out == []


@pytest.mark.slow
def test_rows_that_come_again_do_not_count(tmp_path: Path) -> None:
    rows = questions(30)
    path = tmp_path / "truthfulqa" / "multiple_choice.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:10], rows[0], *rows[10:]]), "utf-8")
    triples = tiny.demonstrations(6)
    tuned = tune(
        tiny.single(), triples, output=tmp_path / "out", objective="truthfulqa_mc2:margin", data=tmp_path, select=10,
        confirm=20, trials=2, neutral="prompt", space=Space(site=("mlp",)),
    )  # fmt: skip
    assert told(tmp_path / "out")["splits"]["held_back"]["rows"] == [10, 31]
    assert told(tmp_path / "out")["splits"]["held_back"]["left_out"] == [10]
    assert tuned.objective["base to chosen"].found.n == 20  # of 21
    assert tuned.objective["base to chosen"].measure.key == "margin"
    page = (tmp_path / "out" / "tune.md").read_text("utf-8")
    for words in ("rows 11-31 (but 1 that ask", "no question is in two of these", "Other searches on this benchmark"):
        assert words in page


@pytest.mark.slow
def test_a_scenario_of_bbq_is_in_one_part_only(data: Path) -> None:
    """With other names, and with what tells the answer, it is the same scenario: as a demonstration too."""
    rows = scenarios(40)
    strange = Demonstration("Eve met Fay in the rain. Who forgot name 3?", "Eve.", "Fay.")
    unseen = Demonstration("Eve met Fay in the rain. Who forgot name 39?", "Eve.", "Fay.")
    found = splits.by_rows(Objective("bbq"), data, [*tiny.demonstrations(4), strange, unseen], 10, 20)
    assert found.rows == ((0, 10), (10, 40))
    assert found.repeated == frozenset(range(10, 20))  # by their texts they are new: the control
    assert not {(row["context"], row["question"]) for row in rows[:10]} & {
        (row["context"], row["question"]) for row in rows[10:20]
    }
    held = [i for i in range(10, 40) if i not in found.repeated]
    keys = [{(rows[i]["category"], rows[i]["question_index"]) for i in part} for part in (range(10), held)]
    assert not keys[0] & keys[1]
    assert (found.left_out, found.by, len(found.marks)) == ([4], "scenario", len(keys[1]))
    with pytest.raises(EvaluationError, match=r"bbq:disambig.acc looks at 10 of 20 rows, and needs 20: .*--confirm"):
        splits.by_rows(Objective("bbq", "disambig.acc"), data, tiny.demonstrations(4), 20, 20)


# ------------------------------------------------------------------------------------------------------------- resuming


def command(output: Path, *more: Any) -> list[str]:
    arguments = ("-o", output, "-d", tiny.demonstrations_file(TRIPLES), "--neutral", "prompt", "--seed", "5", *more)
    return [sys.executable, "-m", "sea_bake", "tune", str(tiny.single()), *map(str, arguments)]


@pytest.mark.slow
def test_a_killed_search_goes_on_as_if_nothing_had_happened(found: Tuning, output: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a trial; then, worse, a half-written line and the lock of the dead."""
    folder, journal = tmp_path / "out", tmp_path / "out" / JOURNAL
    process = subprocess.Popen(command(folder, "--trials", COUNT), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and ended(journal) < 4:
        time.sleep(0.002)
    time.sleep(0.02)  # into the next trial
    process.send_signal(signal.SIGKILL)
    _, complaint = process.communicate()
    assert process.returncode == -signal.SIGKILL, complaint
    assert 4 <= ended(journal) < COUNT
    assert not (folder / EDIT).exists()
    with open(journal, "ab") as file:
        file.write(b'{"op_code":4,"wor')
    (folder / f"{JOURNAL}.lock").symlink_to(journal)
    marks = {path: path.stat().st_mtime_ns for path in folder.glob("activations-*")}
    again = tiny.run(*command(folder, "--trials", COUNT, "--json")[3:])
    assert again.code == 0, again
    result = json.loads(again.out)
    assert timeless(result["trials"]) == timeless(found.trials)
    assert result["trials"][0]["seconds"] > 0
    assert (result["chosen"], result["front"], result["looks"]) == (found.chosen, found.front, [found.chosen])
    assert result["held_back"] == json.loads(json.dumps(found.to_json()["held_back"]))
    one, other = Edit.load(folder / EDIT), Edit.load(output / EDIT)
    assert all(torch.equal(one.projectors[i].positive, other.projectors[i].positive) for i in other.layers)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("activations-*")} == marks  # taken again
    assert len(Folder(folder).study().trials) == COUNT  # and none that was cut off


def ended(journal: Path) -> int:
    """Trials that were carried through."""
    return journal.read_bytes().count(b'"record"') if journal.exists() else 0


@pytest.mark.slow
def test_a_finished_search_can_be_enlarged_and_says_that_it_looked_twice(
    found: Tuning, output: Path, tmp_path: Path
) -> None:
    triples, folder = tiny.demonstrations(TRIPLES), tmp_path / "out"
    first = tune(tiny.single(), triples, output=folder, **SETTINGS | {"trials": 2})
    assert len(first.trials) == 2
    assert first.looks == [first.chosen]
    second = tune(tiny.single(), triples, output=folder, **SETTINGS)
    assert timeless(second.trials) == timeless(found.trials)
    assert second.chosen != first.chosen
    assert second.looks == [first.chosen, second.chosen]
    assert any("decided on 2 choices" in note for note in second.notes)
    assert "compared, once, on" in (output / "tune.md").read_text("utf-8")
    assert "compared on" in (folder / "tune.md").read_text("utf-8")
    third = tune(tiny.single(), triples, output=folder, timeout=1e-9, **SETTINGS | {"trials": 99})
    assert len(third.trials) == COUNT  # no time for another one
    with pytest.raises(OutputError, match=r"another search \(other model, space, max kl\).*--overwrite"):
        tune(
            tiny.single(seed=1), triples, output=folder, space=Space(merge=("l2",)), max_kl=0.2,
            **SETTINGS | {"trials": 1},
        )  # fmt: skip
    assert told(folder)["chosen"] == second.chosen  # untouched
    with Folder(folder).alone(), pytest.raises(OutputError, match="another search is at work"):
        tune(tiny.single(), triples, output=folder, **SETTINGS)
    other = tune(
        tiny.single(seed=1), triples, output=folder, overwrite=True, space=Space(merge=("l2",)),
        **SETTINGS | {"trials": 1},
    )  # fmt: skip
    assert len(other.trials) == 1
    assert told(folder)["trials"][0]["value"] != told(output)["trials"][0]["value"]
    assert (other.looks, other.looks_before) == ([0], 2)  # at the very same demonstrations: --overwrite does not forget
    assert any("decided on 3 choices" in note for note in other.notes)
    Edit.load(folder / EDIT).check(AutoModelForCausalLM.from_pretrained(tiny.single(seed=1)))  # new activations too


def test_what_was_looked_at_is_not_forgotten(tmp_path: Path) -> None:
    """Question by question: whatever is searched, and whatever is held back in between."""
    looked: list[int] = []
    for held_back in (["a", "b"], ["b", "c"], ["c"], ["a"], ["d"]):
        folder = Folder(tmp_path / "out", overwrite=True)
        with folder.alone():
            folder.begin({"search": len(looked)}, held_back)
            study = folder.study()
            study.set_user_attr(LOOKS, [0])
        looked.append(folder.looks_before)
    assert looked == [0, 1, 1, 1, 0]
    again = Folder(tmp_path / "out")
    with again.alone():
        again.begin({"search": 0}, ["b"])  # no trial has ended there, so that nothing is lost
    assert again.looks_before == 2


def test_what_another_search_found_stays_until_something_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the worst moment, with --overwrite: as the old trials go. What was looked at is counted by then."""
    folder = Folder(tmp_path / "out")
    with folder.alone():
        folder.begin({"search": 0}, ["a"])
        folder.study().set_user_attr(LOOKS, [0])
        for name in (EDIT, RESULT):
            (folder.path / name).write_text("found")

    def killed(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    other = Folder(tmp_path / "out", overwrite=True)
    with other.alone(), monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            other.begin({"search": 1}, ["a"])
    other = Folder(tmp_path / "out", overwrite=True)
    with other.alone():
        other.begin({"search": 1}, ["a"])
    assert other.looks_before >= 1
    assert [(other.path / name).read_text() for name in (EDIT, RESULT)] == ["found", "found"]
    assert not (other.path / JOURNAL).exists()


def test_a_search_that_was_killed_at_its_first_step_is_none(tmp_path: Path) -> None:
    """And what a kill has left beside any of its files goes with the next run."""
    (tmp_path / "out").mkdir()
    pid = os.fork()
    if pid == 0:
        leases.make(tmp_path / "out" / "run.json")
        os._exit(0)
    os.waitpid(pid, 0)
    folder = Folder(tmp_path / "out")
    assert tiny.listing(tmp_path / "out") == set()
    folder.path.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        leases.make(tmp_path / "out" / EDIT)
        leases.make(tmp_path / "out" / "activations-mlp.safetensors")
        os._exit(0)
    os.waitpid(pid, 0)
    (folder.path / "activations-mlp.safetensors").write_text("kept")
    with folder.alone():
        folder.begin({"search": 0})
        folder.study()
    assert tiny.listing(folder.path) == {"run.json", JOURNAL, "activations-mlp.safetensors"}


@pytest.mark.slow
def test_a_base_that_was_changed_in_place_is_noticed(tmp_path: Path) -> None:
    """In the middle of its file, where neither its ends nor the sample of its weights show it."""
    triples = tiny.demonstrations(TRIPLES)
    base, options = tiny.changeable(tiny.single(), tmp_path / "base"), SETTINGS | {"trials": 1}
    path = base / "model.safetensors"
    tune(base, triples, output=tmp_path / "out", **options)
    kept = tmp_path / "out" / "activations-attn.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.gate_proj.weight"][5:9] *= -1
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(OutputError, match=r"another search \(other model\)"):
        tune(base, triples, output=tmp_path / "out", **options)
    assert kept.exists()
    folder = Folder(tmp_path / "out", overwrite=True)
    folder.begin({"model": Doors.of(base).identity("base")})
    assert not kept.exists()  # what the old weights gave is not fitted on


# ------------------------------------------------------------------------------------------ what can, and cannot be won

ALIKE = [Demonstration(d.prompt, "Yes.", "No.") for d in tiny.demonstrations(40)]


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose last MLP always adds what speaks for "No." and against "Yes.".

    That direction has nearly all of the variance, so an untuned fit (one share K for both projections) keeps it once,
    drops it once, and does nothing; an edit that only drops it takes the bias away, on every question alike.
    """
    folder = tmp_path_factory.mktemp("biased") / "biased"
    model, tokenizer = tiny.new_llama(mlp_bias=True), tiny.tokenizer()
    said = [encode(tokenizer, ALIKE[0].prompt, answer).ids for answer in ("Yes.", "No.")]
    yes, no = next((a, b) for a, b in zip(*said) if a != b)
    rows = model.lm_head.weight.data
    model.model.layers[-1].mlp.down_proj.bias.data += 20 * (rows[no] - rows[yes])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PLANTED = (
    "--site", "mlp", "--layers", "3", "--merge", "sum", "--feature", "identity", "--centre", "no", "--max-kl", "9",
    "--neutral", "prompt",
)  # fmt: skip


def alike(path: Path, positive: str, negative: str) -> Path:
    rows = ({"prompt": d.prompt, "positive": positive, "negative": negative} for d in ALIKE)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.slow
def test_a_gain_that_is_there_is_found_and_confirmed(biased: Path, tmp_path: Path) -> None:
    ran = tiny.run(
        "tune", biased, "-o", tmp_path / "out", "-d", alike(tmp_path / "a.jsonl", "Yes.", "No."), *PLANTED,
        "--layers", "all", "--K-positive", "0,1", "--K-negative", "0,1", "--alpha", "0.1:1", "--trials", COUNT,
        "--seed", 5,
    )  # fmt: skip
    assert ran.code == 0, ran
    result = told(tmp_path / "out")
    own = next(row for row in result["held_back"]["default to chosen"] if row["metric"]["type"] == "margin")
    assert own["interval"][0] > 0.1
    assert (result["beats"], result["helps"]) == (True, True)
    assert f"trial {result['chosen']} beats the untuned default on held-back data" in result["verdict"]
    assert "and it beats the base" in result["verdict"]
    assert "Next: sea-bake bake" in ran.out
    settings = result["trials"][result["chosen"]]["settings"]
    assert (settings["K_positive"], settings["K_negative"]) == (0, 1)  # what was planted


@pytest.mark.slow
def test_an_edit_that_hurts_is_not_recommended(monkeypatch: pytest.MonkeyPatch, biased: Path, tmp_path: Path) -> None:
    """The same edit where the bias is wanted: less of it hurts less than all of it does, and hurts all the same."""
    hurts = {"site": "mlp", "layers": "3", "K_positive": 0, "K_negative": 1, "centre": False, "alpha": 1.0}
    monkeypatch.setattr(searching, "starts", lambda space: [untuned() | hurts])
    ran = tiny.run(
        "tune", biased, "-o", tmp_path / "out", "-d", alike(tmp_path / "a.jsonl", "No.", "Yes."), *PLANTED,
        "--K-positive", "0", "--K-negative", "1", "--alpha", "0.5", "--trials", 2,
    )  # fmt: skip
    assert ran.code == 0, ran
    result = told(tmp_path / "out")
    assert (result["chosen"], result["beats"], result["helps"]) == (1, True, False)
    assert "trial 1 beats the untuned default on held-back data" in result["verdict"]
    assert "but it is below the base" in result["verdict"]
    assert any("gains nothing over the base" in note for note in result["notes"])
    assert "is shown to help on held-back data" in ran.out
    assert "Next:" not in ran.out


@pytest.mark.slow
def test_an_edit_that_does_nothing_is_told_as_such(tmp_path: Path) -> None:
    found = tune(
        tiny.single(), tiny.demonstrations(TRIPLES), output=tmp_path / "out", space=Space(site=("mlp",), alpha=(0,)),
        trials=2, neutral="prompt", max_kl=1e-9,
    )  # fmt: skip
    assert found.chosen == 1
    assert found.verdict == "trial 1 changes nothing (its alpha is 0): no edit that was found helps"
    assert (found.beats, found.helps) == (False, False)


@pytest.mark.slow
def test_an_interval_alone_proves_nothing(found: Tuning) -> None:
    """Of two examples, both better, the interval lies above 0 by necessity, and p is 0.5."""
    ones = np.ones((20, 1))

    def verdict(n: int) -> tuple[Tuning, statistics.Comparison]:
        base = np.hstack([np.linspace(0, 1, 20)[:, None], ones])[:n]
        compared = statistics.compare(base, base + np.array([0.1, 0]))
        rows = {name: replace(row, found=compared) for name, row in found.objective.items()}
        return replace(found, chosen=1, objective=rows), compared

    few, two = verdict(2)
    assert two.difference.low > 0
    assert two.p > 0.4
    assert (few.beats, few.helps) == (False, False)
    assert "is not shown to beat the untuned default" in few.verdict
    assert "lies above 0, but p is not below 0.05" in few.verdict
    many, _ = verdict(20)  # the control: just as much better, on more of them
    assert (many.beats, many.helps) == (True, True)
    assert "beats the untuned default" in many.verdict


@pytest.mark.slow
def test_where_nothing_can_be_gained_the_output_says_so(tmp_path: Path) -> None:
    """Every edit has the strength 0, so that its gain is zero: the control of the test above."""
    path = alike(tmp_path / "same.jsonl", "Yes.", "No.")
    ran = tiny.run(
        "tune", tiny.single(), "-o", tmp_path / "out", "-d", path, "--neutral", "prompt", "--trials", 4,
        "--site", "mlp", "--merge", "l2", "--feature", "identity", "--centre", "no", "--alpha", "0",
    )  # fmt: skip
    assert ran.code == 0, ran
    assert "Nothing that was found is shown to help on held-back data" in ran.out
    gains = [trial["gain"] for trial in told(tmp_path / "out")["trials"] if trial["settings"]["alpha"] == 0]
    assert len(gains) >= 3
    assert set(gains) == {0}
    assert told(tmp_path / "out")["beats"] is False


@pytest.mark.slow
def test_a_space_of_one_point_gives_the_default_back(tmp_path: Path) -> None:
    only = Space(**{name: (value,) for name, value in untuned().items()})
    assert only.distributions() == {}
    found = tune(
        tiny.single(), tiny.demonstrations(TRIPLES), output=tmp_path / "out", space=only, trials=3, neutral="prompt"
    )
    assert [trial.settings for trial in found.trials] == [untuned()] * 3
    assert (found.chosen, found.beats) == (DEFAULT, False)
    assert "tuning found nothing better" in found.verdict
    assert found.objective["default to chosen"].found.difference.value == 0


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.slow
def test_a_trial_that_fails_does_not_end_the_search(tmp_path: Path) -> None:
    space = Space(site=("mlp",), K_positive=(0,), K_negative=(0, 3))
    found = tune(
        tiny.single(), tiny.demonstrations(TRIPLES), output=tmp_path / "out", space=space, trials=6, neutral="prompt"
    )
    failed = [trial for trial in found.trials if trial.failure]
    assert 0 < len(failed) < 5
    for trial in failed:
        assert trial.settings["K_negative"] == 0
        assert "no direction at all" in trial.failure
        assert trial.number not in found.front
    assert any(f"{len(failed)} trials failed" in note for note in found.notes)
    again = tune(
        tiny.single(), tiny.demonstrations(TRIPLES), output=tmp_path / "out", space=space, trials=6, neutral="prompt"
    )
    assert timeless(again.trials) == timeless(found.trials)  # failed ones are done, too


@pytest.mark.slow
def test_a_default_that_fails_leaves_the_base_to_beat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(searching, "starts", lambda space: [untuned() | {"K_positive": 0, "K_negative": 0}])
    space = Space(site=("mlp",), K_positive=(2,), K_negative=(2,))
    options: dict[str, Any] = {"trials": 3, "neutral": "prompt"}
    found = tune(tiny.single(), tiny.demonstrations(TRIPLES), output=tmp_path / "out", space=space, **options)
    assert found.against == "base to chosen"
    assert "the untuned default failed" in found.verdict
    assert list(found.held_back) == ["base to chosen"]
    with pytest.raises(EvaluationError, match=r"all 1 trials failed; the first: .*no direction"):
        tune(tiny.single(), tiny.demonstrations(TRIPLES), output=tmp_path / "b", space=space, **options | {"trials": 1})


@pytest.mark.slow
def test_what_ails_the_model_ends_it_at_once(tmp_path: Path) -> None:
    broken = tiny.changeable(tiny.single(), tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(broken)
    model.model.layers[2].self_attn.o_proj.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    with pytest.raises(ActivationError, match="NaN or infinite at layer 2"):
        tune(broken, tiny.demonstrations(TRIPLES), output=tmp_path / "out", neutral="prompt", trials=2)
    assert not (tmp_path / "out" / RESULT).exists()
    assert ended(tmp_path / "out" / JOURNAL) == 0
    Folder(tmp_path / "out").begin({"search": "another"})  # it holds no trial that could be lost
    with pytest.raises(EvaluationError, match="edited already"):
        tune(
            bake(tiny.single(), tiny.edit_file(), tmp_path / "art").output,
            tiny.demonstrations(TRIPLES),
            output=tmp_path / "other",
        )


ROWS = ("--data", "{data}", "--select", "10", "--confirm", "20", "--objective")
MISTAKES: dict[str, tuple[tuple[Any, ...], type[SeaBakeError], str]] = {
    "objective": (("--objective", "truthfulqa_mc3"), EvaluationError, "did you mean truthfulqa_mc"),
    "measure": (("--objective", "demonstrations:margins"), EvaluationError, "did you mean margin"),
    "data folder": (("--objective", "bbq:acc", "--data", "nowhere"), EvaluationError, "no such data folder"),
    "data file": (("--objective", "toxigen", "--data", "{lacking}"), EvaluationError, "the data folder lacks"),
    "measure of rows": ((*ROWS, "bbq:ambg.acc"), EvaluationError, "no measure 'ambg.acc': did you mean ambig.acc"),
    "measure of the harness": ((*ROWS, "hellaswag:accc"), EvaluationError, "did you mean acc"),
    "data of no benchmark": (("--data", "{data}"), SettingError, "drop --data"),
    "too few rows": (("--objective", "bbq", "--data", "{data}"), EvaluationError, "bbq has 80 rows, and behind the"),
    "too few triples": (("--limit", "5"), DemonstrationError, "too few for three parts"),
    "more than there are": (("--select", "30", "--confirm", "20"), DemonstrationError, "Give at least 53"),
    "few to select by": (("--select", "9"), SettingError, "select = 9 is less than 10"),
    "few to confirm by": (("--confirm", "2"), SettingError, "confirm = 2 is less than 20"),
    "feature": (("--feature", "identity,tan"), SettingError, "did you mean tanh"),
    "site": (("--site", "mpl"), SettingError, "did you mean mlp"),
    "merge": (("--merge", ""), SettingError, "no value to try"),
    "centre": (("--centre", "maybe"), SettingError, "use no, yes"),
    "alpha": (("--alpha", "strong"), SettingError, "give a number, several (0.5,1), or a range"),
    "half a range": (("--alpha", "0.5:"), SettingError, "cannot be read"),
    "range reversed": (("--alpha", "1:0.5"), SettingError, "the smaller number first"),
    "share of more than all": (("--K-positive", "0.5:1.5"), SettingError, "between 0 and 1"),
    "one share": (("--K-negative", "1.5"), SettingError, "outside (0, 1]"),
    "layers": (("--layers", "last:9"), SettingError, "the model has 4 layers"),
    "trials": (("--trials", "0"), SettingError, "trials = 0"),
    "KL": (("--max-kl", "0"), SettingError, "max_kl = 0.0"),
    "endless KL": (("--max-kl", "inf"), SettingError, "max_kl = inf"),
    "no KL": (("--max-kl", "nan"), SettingError, "max_kl = nan"),
    "timeout": (("--timeout", "-1"), SettingError, "timeout = -1.0"),
    "endless timeout": (("--timeout", "inf"), SettingError, "timeout = inf"),
    "position": (("--position", "first"), SettingError, "unknown token position"),
    "texts": (("--neutral-text", "{texts}"), EvaluationError, "cannot be halved"),
    "output": (("-o", "{lacking}"), OutputError, "holds no search"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input_is_one_clear_error_before_the_model_is_loaded(mistake: str, data: Path, tmp_path: Path) -> None:
    options, kind, words = MISTAKES[mistake]
    lacking, texts = tmp_path / "lacking", tmp_path / "texts.txt"
    lacking.mkdir()
    (lacking / "diary.txt").write_text("dear diary")
    texts.write_text("One paragraph here.\n\nAnd another one.")
    filled = [str(word).format(data=data, lacking=lacking, texts=texts) for word in options]
    with tiny.nothing_happens(tmp_path, lacking):
        ran = tiny.run("tune", tiny.single(), "-o", tmp_path / "out", "-d", tiny.demonstrations_file(TRIPLES), *filled)
        tiny.refused(ran, kind.__name__, words)


@pytest.mark.parametrize(("module", "package"), [("optuna", "optuna"), ("lm_eval", "lm-eval")])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*pip install 'sea-bake\[tune\]'"):
        tune(tiny.single(), output=tmp_path / "out")


RUN = '{"format": "sea_bake.tuning-run", "inputs": {"a": 1}'


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": "x", "inputs": {}}', f'{RUN}, "spent": 5}}', f'{RUN}, "spent": {{"x": "y"}}}}',
     f'{RUN}, "held_back": 5}}', f'{RUN}, "held_back": [1]}}', RUN.replace('{"a": 1}', "[1]") + "}", RUN[:-18] + "}"],
)  # fmt: skip
def test_a_damaged_run_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(OutputError, match="is damaged"):
        tune(tiny.single(), tiny.demonstrations(TRIPLES), output=tmp_path, neutral="prompt", trials=1)


# ------------------------------------------------------------------------------------------------------------- the door


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    arguments = ("tune", tiny.single(), "-o", tmp_path / "out", "-d", tiny.demonstrations_file(TRIPLES))
    fixed = ("--site", "mlp", "--layers", "all", "--layers", "2,3", "--alpha", "0.5:1", "--K-positive", "2,4")
    ran = tiny.run(*arguments, *fixed, "--neutral", "prompt", "--trials", 3)
    assert ran.code == 0, ran
    for words in ("Pareto front", "default to chosen", "untuned", "fitted on 16 demonstrations"):
        assert words in ran.out
    trials = told(tmp_path / "out")["trials"]
    assert {trial["settings"]["K_positive"] for trial in trials[1:]} <= {2, 4}
    assert {trial["settings"]["layers"] for trial in trials[1:]} <= {"all", "2,3"}
    assert all(0.5 <= trial["settings"]["alpha"] <= 1 for trial in trials)
    text = tiny.run("tune", "--help").out
    for word in ("--objective", "--max-kl", "nats per token", "identity,tanh", "held-back", "-o tuning"):
        assert word in text


@pytest.mark.slow
def test_the_search_space_from_texts() -> None:
    found = parse_space(site="mlp, attn", alpha="0.25:1", K_positive="8,0.95", centre="yes", layers=["3,5", "last:2"])
    assert (found.site, found.alpha, found.centre) == (("mlp", "attn"), Range(0.25, 1), (True,))
    assert found.K_positive == (8, 0.95)
    assert [type(value) for value in found.K_positive] == [int, float]
    assert found.layers == ("3,5", "last:2")
    assert found.merge == Space().merge
    for settings in (untuned(), untuned() | {"K_negative": 0.998, "feature": "tanh", "alpha": 0.1}):
        assert Space().settings(Space().drawn(settings)) == settings  # there and back
    with pytest.raises(SettingError, match="layers 3"):
        Space(layers=(3,)).check()  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="has no range"):
        Space(site=Range(0, 1)).check()  # type: ignore[arg-type]
