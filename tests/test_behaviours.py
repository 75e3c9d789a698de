"""The built-in behaviours: counts, groups, parts, no duplicates, answers of equal length; and their scorers."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import tiny

from sea_bake.demonstrations import BEHAVIOURS, behaviours, builtin, load
from sea_bake.errors import DemonstrationError
from sea_bake.io.signatures import arguments

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


# --- how they are loaded ---------------------------------------------------------------------------------------------


def test_truthful_holds_the_set_of_the_defaults() -> None:
    assert set(builtin()) <= set(load("truthful"))
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


@pytest.mark.parametrize("command", ["fit", "tune"])
def test_the_command_line_names_them(command: str) -> None:
    shown = tiny.run(command, "--help")
    assert shown.code == 0
    for name in NAMES:
        assert name in shown.out
