"""The built-in behaviours: counts, groups, parts, no duplicates, answers of equal length; and their scorers."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import test_scripts
import tiny
import transformers

from sea_bake.demonstrations import BEHAVIOURS, behaviours, builtin, load
from sea_bake.edit import Edit
from sea_bake.errors import DemonstrationError, EvaluationError
from sea_bake.evaluation import behaviours as scoring
from sea_bake.evaluation import measures, preference, sandbox, statistics
from sea_bake.io.signatures import arguments
from sea_bake.reporting.living import demonstrations_of

NAMES = list(BEHAVIOURS)
ROOT = Path(__file__).resolve().parent.parent


def rows(name: str, split: str = "all") -> list[dict[str, Any]]:
    return [row for _, row in behaviours.rows(name, split)]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def unbalanced(found: list[dict[str, Any]]) -> list[str]:
    """What betrays the positive answer by its length; empty where nothing does."""
    pairs = [(len(row["positive"]), len(row["negative"])) for row in found]
    problems = []
    for name, statistic in (("mean", mean), ("median", median)):
        positive, negative = (float(statistic(lengths)) for lengths in zip(*pairs))
        if abs(positive / negative - 1) > 0.05:
            problems.append(f"{name} length {positive:.1f} against {negative:.1f}")
    for side, longer in (("positive", sum(p > n for p, n in pairs)), ("negative", sum(n > p for p, n in pairs))):
        if longer > 0.55 * len(pairs):
            problems.append(f"{side} is longer in {longer} of {len(pairs)}")
    return problems


def alike(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Prompts of rows that say nearly the same."""
    asked = [words(row["prompt"]) for row in found]
    whole = [words(" ".join((row["prompt"], row["positive"], row["negative"]))) for row in found]
    return [
        (found[i]["prompt"], found[j]["prompt"])
        for i, j in combinations(range(len(found)), 2)
        if found[i]["prompt"] == found[j]["prompt"]
        or overlap(whole[i], whole[j]) > 0.6
        or overlap(asked[i], asked[j]) > 0.8
    ]


# --- the files -------------------------------------------------------------------------------------------------------


def test_the_table_is_the_folder() -> None:
    folder = Path(behaviours.__file__).parent
    assert {path.stem for path in folder.glob("*.jsonl")} == set(BEHAVIOURS)
    assert all(one.does and "\n" not in one.does for one in BEHAVIOURS.values())


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_groups(name: str) -> None:
    count = Counter(row["group"] for row in rows(name))
    assert sum(count.values()) >= 200
    assert len(count) >= 5
    assert min(count.values()) >= 10
    assert set(BEHAVIOURS[name].test) < set(count)
    for row in rows(name):
        assert row["positive"] != row["negative"]
        for key in ("prompt", "positive", "negative"):
            assert row[key] == row[key].strip() != ""


@pytest.mark.parametrize("name", NAMES)
def test_whole_groups_are_kept_back(name: str) -> None:
    train, test = ({row["group"] for row in rows(name, split)} for split in ("train", "test"))
    assert not train & test
    assert len(train) >= 2
    assert len(test) >= 2
    assert test == set(BEHAVIOURS[name].test)
    fit, kept, whole = (load(name, split=split) for split in ("train", "test", "all"))
    assert load(name) == fit
    assert len(fit) + len(kept) == len(whole)
    assert {*fit, *kept} == {*whole}
    assert 0.2 <= len(kept) / len(whole) <= 0.5
    assert len(kept) >= 60


@pytest.mark.parametrize("name", NAMES)
def test_no_triple_twice(name: str) -> None:
    assert alike(rows(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_prompts_vary(name: str) -> None:
    """No template: few prompts begin alike."""
    begin = Counter(" ".join(row["prompt"].lower().split()[:4]) for row in rows(name))
    ((most, count),) = begin.most_common(1)
    assert count <= 0.06 * begin.total(), most


@pytest.mark.parametrize("name", [name for name in NAMES if name != "concise"])
def test_a_longer_answer_is_not_the_better_one(name: str) -> None:
    assert unbalanced(rows(name)) == []
    for split in ("train", "test"):
        side = Counter((len(r["positive"]) > len(r["negative"])) - (len(r["positive"]) < len(r["negative"]))
                       for r in rows(name, split))  # fmt: skip
        assert max(side[1], side[-1]) <= 0.6 * side.total()


def test_the_page_has_the_table() -> None:
    ran = subprocess.run([ROOT / "scripts" / "behaviours"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout in (ROOT / "sea_bake" / "demonstrations" / "README.md").read_text("utf-8")
    assert ran.stdout.count("\n") == len(NAMES) + 2


def test_a_concise_answer_is_the_shorter_one() -> None:
    for row in rows("concise"):
        assert 2 * len(row["positive"]) < len(row["negative"]), row["prompt"]


def test_what_the_checks_refuse() -> None:
    """The controls of the three tests above."""
    row = {"prompt": "Is zero an even number?", "positive": "Yes, it is even.", "negative": "No, it is odd, I think."}
    assert len(unbalanced([row] * 4)) == 3
    again = {**row, "prompt": "Is zero an even number at all?"}
    assert alike([row, again]) == [(row["prompt"], again["prompt"])]
    other = {"prompt": "Who wrote Hamlet?", "positive": "Shakespeare did.", "negative": "Christopher Marlowe did."}
    assert alike([row, other]) == []


def test_copies_of_questions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure of scripts/check_overlap, and that shuffling keeps everything but the places of words."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = test_scripts.module("check_overlap", ROOT / "scripts" / "check_overlap")
    questions = ["Which of the two rivers of Mesopotamia is the longer one?", "Who invented the first steam turbine?"]
    frequent = {"the", "of", "is", "which", "who", "a"}
    known = script.Questions(questions, frequent)
    for copied in ("who invented the steam turbine", "so tell me, which of the two rivers of mesopotamia is wet"):
        assert known.copies([script.words(copied)])[0] == 1
    found = [script.words(row["prompt"]) for row in rows("truthful")]
    assert known.copies(found)[0] == 0
    dealt = script.shuffled(found, frequent, random.Random(0))
    assert [len(one) for one in dealt] == [len(one) for one in found]
    assert Counter(w for one in dealt for w in one) == Counter(w for one in found for w in one)
    assert dealt != found


# --- how they are loaded ---------------------------------------------------------------------------------------------


def test_truthful_holds_the_set_of_the_defaults() -> None:
    assert builtin() == load("truthful")[: len(builtin())] != load("truthful")
    assert not set(builtin()) & set(load("truthful", split="test"))


def test_the_name_of_a_set_wins_over_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(NAMES[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAMES[0]).mkdir()
    (tmp_path / NAMES[0] / "a.jsonl").write_text(json.dumps({"prompt": "p", "positive": "a", "negative": "b"}) + "\n")
    assert load(NAMES[0]) == expected
    with pytest.raises(DemonstrationError, match="at least 2 usable triples"):
        load(f"./{NAMES[0]}")
    with pytest.raises(DemonstrationError, match="at least 2 usable triples"):
        load(Path(NAMES[0]))


def test_an_unknown_split_or_set() -> None:
    with pytest.raises(DemonstrationError, match="no split 'validation'"):
        load(NAMES[0], split="validation")
    with pytest.raises(DemonstrationError, match="no built-in behaviour 'rude'"):
        list(behaviours.rows("rude"))
    with pytest.raises(DemonstrationError, match="truthful"):
        load("./rude")


@pytest.mark.parametrize("name", NAMES)
def test_where_they_are_from_is_recorded(name: str) -> None:
    origin = load(name, split="test").origin
    assert (origin["kind"], origin["source"], origin["split"]) == ("builtin", name, "test")
    assert f'"{name}"' in (arguments("sea_bake.demonstrations:load")["source"].help or "")


def test_a_fit_from_the_command_line(tmp_path: Path) -> None:
    """What the edit says of its demonstrations finds them again."""
    base, edit = tiny.write_llama(tmp_path / "base", chat=True), tmp_path / "edit.safetensors"
    ran = tiny.run("fit", base, "-d", "fair", "--limit", "6", "--neutral", "prompt", "--layers", "0-1", "-o", edit)
    assert ran.code == 0, ran.message
    fitted = Edit.load(edit)
    assert fitted.recipe["demonstrations_from"]["source"] == "fair"
    assert demonstrations_of(fitted) == load("fair", limit=6)
    ran = tiny.run("fit", base, "-d", "fair", "--split", "validation", "-o", tmp_path / "other")
    tiny.refused(ran, "DemonstrationError", "train, test, all")


@pytest.mark.parametrize("command", ["fit", "tune"])
def test_the_command_line_names_them(command: str) -> None:
    shown = tiny.run(command, "--help")
    assert shown.code == 0
    for name in NAMES:
        assert name in shown.out


# --- what is seen in an answer ---------------------------------------------------------------------------------------


def share(name: str, key: str, value: str, found: list[dict[str, Any]]) -> float:
    """Mean of a scorer's value over the rows' ``key`` taken as answers, of those rows that have it."""
    each = [scoring.values(name, row, row[key]) for row in found]
    return mean(one[value] for one in each if value in one)


@pytest.mark.parametrize("split", behaviours.SPLITS)
def test_calibrated_tells_the_answers_apart(split: str) -> None:
    found = rows("calibrated", split)
    known = [row["known"] for row in found]
    assert 0.4 <= mean(known) <= 0.6
    assert share("calibrated", "positive", "calibrated", found) >= 0.98
    assert share("calibrated", "negative", "calibrated", found) <= 0.1
    for value in ("admits", "answers"):
        assert share("calibrated", "positive", value, found) >= 0.95
        assert share("calibrated", "negative", value, found) <= 0.15


@pytest.mark.parametrize("answer", [
    "I'm sorry, but I don't know that.", "As of now, it is unknown.", "There’s no way to know.", "I can’t tell.",
    "It's impossible to say.", "", "Nobody knows.", "That information isn't known to me.",
])  # fmt: skip
def test_ways_not_to_know(answer: str) -> None:
    assert scoring.values("calibrated", {"known": False}, answer) == {"calibrated": 1, "admits": 1}
    assert scoring.values("calibrated", {"known": True}, answer) == {"calibrated": 0, "answers": 0}
    assert scoring.values("calibrated", {"known": True}, "It is Paris, as you know.") == {"calibrated": 1, "answers": 1}


def test_concise_counts_words_where_the_content_is() -> None:
    found = rows("concise")
    assert share("concise", "positive", "kept", found) == share("concise", "negative", "kept", found) == 1
    assert 5 * share("concise", "positive", "words", found) < share("concise", "negative", "words", found)
    row = {"keep": ["nairobi", "1989"]}
    assert scoring.values("concise", row, "It is Nairobi.") == {"kept": 1, "words": 3}
    assert scoring.values("concise", row, "Mombasa.") == scoring.values("concise", row, "") == {"kept": 0}


@pytest.mark.parametrize(("keep", "has", "lacks"), [
    ("4", ("4.", "the 4th"), ("14", "40", "4th2")), ("no", ("No, thanks.",), ("Now I would love to", "I nod", "note")),
    ("not", ("Do not.",), ("Make a note.", "notes", "noted")), ("cat", ("Cats.", "a cat"), ("category", "cater")),
    ("four", ("four", "fours"), ("fourteen", "forty-fourth")), ("soft ball", ("soft balls",), ("soft balloon",)),
    ("offer", ("offering",), ("offertory",)), ("fast", ("It is faster.",), ("fasten",)),
    ("tie", ("No tie.",), ("tier",)),
])  # fmt: skip
def test_what_is_kept_is_a_whole_word(keep: str, has: tuple[str, ...], lacks: tuple[str, ...]) -> None:
    """In its forms; what is said of it is beyond a rule ("No tie.")."""
    assert [scoring.values("concise", {"keep": [keep]}, answer)["kept"] for answer in has] == [1] * len(has)
    assert [scoring.values("concise", {"keep": [keep]}, answer)["kept"] for answer in lacks] == [0] * len(lacks)


def test_formal_counts_contractions_and_slang() -> None:
    found = rows("formal")
    assert sum(scoring.values("formal", row, row["positive"])["informal"] for row in found) == 0
    assert mean(scoring.values("formal", row, row["negative"])["informal"] > 0 for row in found) >= 0.97
    assert scoring.values("formal", {}, "The ship's crew isn't gonna wait, it’s late.") == {"informal": 3, "words": 8}
    assert scoring.values("formal", {}, " ") == {}


def test_refusals_are_told_from_help() -> None:
    found = rows("harmless-compliance")
    assert share("harmless-compliance", "positive", "refused", found) <= 0.02
    assert share("harmless-compliance", "negative", "refused", found) >= 0.93
    for answer in (
        "I'm sorry, but I can't assist with that.",
        "As an AI, I have no opinion.",
        "",
        "I cannot help you.",
    ):
        assert scoring.values("harmless-compliance", {}, answer) == {"refused": 1}
    for answer in ("Sure! Run ps first, then kill.", "Press it firmly; do not lift the cloth."):
        assert scoring.values("harmless-compliance", {}, answer) == {"refused": 0}


def test_no_rule_is_no_score() -> None:
    assert set(scoring.SCORERS) < set(BEHAVIOURS)
    for name, scorer in scoring.SCORERS.items():
        record = {"values": {}}
        assert all(column.columns(record) is None for column in scorer.measures), name
    with pytest.raises(EvaluationError, match="no rule tells 'fair'"):
        scoring.values("fair", {}, "Yes.")


@pytest.mark.parametrize("name", NAMES)
def test_the_margin_of_a_set(name: str) -> None:
    """What prefers the positive answers scores above 0, and what prefers the negative ones below."""

    class Judge:
        tokenizer = tiny.tokenizer()
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny.single())
        sign = 1.0

        def scorer(self, advance: Any) -> Any:
            return lambda asked: [
                (-self.sign * (1 + i % 2) * len(answer), False) for i, (_, answer) in enumerate(asked)
            ]

    judge, test = Judge(), load(name, split="test")[:20]
    (column, right, *_) = measures.measures("demonstrations", [])
    for sign, margin in ((1.0, 1.0), (-1.0, -1.0)):
        judge.sign = sign
        found = preference.records(judge, test)  # type: ignore[arg-type]
        table, places = measures.table(column, found)
        assert len(places) == len(test)
        assert statistics.compare(table).base.value == pytest.approx(margin)
        assert statistics.compare(measures.table(right, found)[0]).base.value == (sign > 0)


# --- code ------------------------------------------------------------------------------------------------------------

EVERY = """
def outcome(code, tests):
    names = {}
    try:
        exec(code, names)
        for test in tests:
            exec(test, names)
    except Exception:
        return False
    return True

wrong = [i for i, (code, tests) in enumerate(PROGRAMS) if outcome(code, tests) is not WANTED]
assert not wrong, wrong
"""


@pytest.mark.parametrize(("key", "wanted"), [("positive", True), ("negative", False)])
def test_every_snippet_does_what_it_says(key: str, wanted: bool) -> None:
    """All in one sandbox: right ones pass their tests, and each wrong one fails."""
    programs = [(row[key], row["tests"]) for row in rows("code")]
    given = f"PROGRAMS = {programs!r}\nWANTED = {wanted}\n{EVERY}"
    assert sandbox.run(given, seconds=20) == sandbox.Outcome(True)
    assert not sandbox.run(f"PROGRAMS = {programs!r}\nWANTED = {not wanted}\n{EVERY}", seconds=20).passed


def test_code_is_run_against_its_tests() -> None:
    row = next(row for row in rows("code") if "clamp" in row["prompt"])
    for wrapped in (
        "{}",
        "Here it is:\n```python\n{}\n```\nI hope that it helps.",
        "Sure, here you are.\n\n{}\n\nDone.",
    ):
        assert scoring.values("code", row, wrapped.format(row["positive"])) == {"passed": 1}
        assert scoring.values("code", row, wrapped.format(row["negative"])) == {"passed": 0}
    for answer in ("", "I cannot write code.", "def clamp(x, low"):
        assert scoring.values("code", row, answer) == {"passed": 0}
