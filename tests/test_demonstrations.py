"""Demonstrations: what each published format turns into, and what a user reads when a file is not what it should be."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from sea_bake.demonstrations import FORMATS, MIN_TRIPLES, Demonstration, builtin, digest, load, readers
from sea_bake.errors import DemonstrationError, MissingExtraError

DATA = Path(__file__).parents[2] / "shared" / "data"

TRIPLES = [
    {"prompt": f"What is {i} plus {i}?", "positive": f"It is {2 * i}.", "negative": f"It is {2 * i + 1}."}
    for i in range(1, 7)
]
HALUEVAL = [
    {
        "knowledge": "The Mole rises in Devon.",
        "question": "Where does the Mole rise?",
        "right_answer": "Devon",
        "hallucinated_answer": "It rises in Kent; It has no source. ;Cornwall",
    },
    {"knowledge": "-", "question": "Who ran?", "right_answer": "Ann. ", "hallucinated_answer": "Nobody ran"},
    {"knowledge": "-", "question": "Is it?", "right_answer": "Yes!", "hallucinated_answer": "No"},
]
TRUTHFULQA = [
    {
        "Type": "Adversarial",
        "Category": "Law",
        "Question": 'Is it "legal", then?',
        "Best Answer": "Yes, in most places",
        "Correct Answers": "Yes; Yes, it is",
        "Incorrect Answers": "No; No, never.; It was,\nonce;",
        "Source": "",
    },
    {
        "Type": "Non-Adversarial",
        "Category": "Health",
        "Question": "Do carrots heal?",
        "Best Answer": "No.",
        "Correct Answers": "No",
        "Incorrect Answers": "Yes",
        "Source": "https://example.org",
    },
]
BBQ = [
    {
        "example_id": i,
        "category": "Age",
        "context_condition": "ambig",
        "context": f"Row {i}: a baker met a miller.",
        "question": "Who was late?",
        "ans0": "The baker",
        "ans1": "Unknown.",
        "ans2": "The miller",
        "label": i % 3,
    }
    for i in range(6)
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def truthfulqa_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def refused(source: str | Path, **settings: Any) -> str:
    """The message ``load`` refuses the source with: one paragraph that ends in a cure."""
    with pytest.raises(DemonstrationError) as caught:
        load(source, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", ")"))
    return message


# --- the published formats -------------------------------------------------------------------------------------------


def with_period(text: str) -> str:
    text = text.strip()
    return text if text[-1] == "." else text + "."


def parts(text: str) -> list[str]:
    return [with_period(part) for part in text.split(";") if part.strip()]


def expect_halueval(row: dict[str, Any]) -> tuple[str, str, list[str]]:
    return row["question"], with_period(row["right_answer"]), parts(row["hallucinated_answer"])


def expect_truthfulqa(row: dict[str, Any]) -> tuple[str, str, list[str]]:
    return row["Question"], with_period(row["Best Answer"]), parts(row["Incorrect Answers"])


def expect_bbq(row: dict[str, Any]) -> tuple[str, str, list[str]]:
    wrong = [with_period(row[f"ans{i}"]) for i in range(3) if i != row["label"]]
    return f"{row['context']} {row['question']}", with_period(row[f"ans{row['label']}"]), wrong


PUBLISHED: list[tuple[str, Callable[[dict[str, Any]], tuple[str, str, list[str]]], list[dict[str, Any]], str]] = [
    ("halueval_qa", expect_halueval, HALUEVAL, ""),
    ("truthfulqa", expect_truthfulqa, TRUTHFULQA, ""),
    ("bbq", expect_bbq, BBQ, ""),
    ("halueval_qa", expect_halueval, [], "halueval/qa_one-turn_500.jsonl"),
    ("halueval_qa", expect_halueval, [], "halueval/qa_multi-turn_500.jsonl"),
    ("truthfulqa", expect_truthfulqa, [], "truthfulqa/TruthfulQA.dev.csv"),
    ("bbq", expect_bbq, [], "bbq/bbq_lite_2700.jsonl"),
]
# The real files are lent to development and are no part of the repository: without them the samples remain.
PRESENT = [case for case in PUBLISHED if not case[3] or (DATA / case[3]).exists()]


@pytest.mark.parametrize(("name", "expect", "rows", "real"), PRESENT, ids=lambda value: value if value else None)
def test_published_format(name: str, expect: Any, rows: Any, real: str, tmp_path: Path) -> None:
    if real:
        path = DATA / real
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(csv.DictReader(text.splitlines(keepends=True))) if path.suffix == ".csv" else None
        rows = rows or [json.loads(line) for line in text.split("\n") if line]
    elif name == "truthfulqa":
        path = truthfulqa_csv(tmp_path / "t.csv", rows)
    else:
        path = jsonl(tmp_path / "t.jsonl", rows)
    loaded = load(path, seed=3)
    assert loaded == load(path, format=name, seed=3)
    assert len(loaded) == len(rows)
    for index, (demonstration, row) in enumerate(zip(loaded, rows)):
        prompt, positive, negatives = expect(row)
        assert demonstration.prompt == prompt.strip()
        assert demonstration.positive == positive
        assert demonstration.negative == random.Random(f"3:{index}").choice(negatives)
        assert demonstration.neutral is None
    if any(len(expect(row)[2]) > 1 for row in rows):
        assert any(load(path, seed=seed) != loaded for seed in range(4, 30))  # the seed does choose


def test_both_answers_are_closed_so_that_the_period_tells_nothing(tmp_path: Path) -> None:
    for demonstration in load(jsonl(tmp_path / "h.jsonl", HALUEVAL)):
        assert demonstration.positive.endswith(".")
        assert demonstration.negative.endswith(".")
        assert not demonstration.positive.endswith("..")


@pytest.mark.parametrize(("name", "rows"), [("halueval_qa", HALUEVAL), ("bbq", BBQ)])
def test_a_negative_does_not_depend_on_the_other_rows(name: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    ours = load(jsonl(tmp_path / "a.jsonl", rows), seed=5)
    others = load(jsonl(tmp_path / "b.jsonl", [rows[0], *([rows[-1]] * (len(rows) - 1))]), seed=5)
    longer = load(jsonl(tmp_path / "c.jsonl", rows + rows[::-1]), seed=5, shuffle_seed=1)
    assert others[0] == ours[0]
    assert others[-1] == ours[-1]
    assert all(longer.count(demonstration) for demonstration in ours)


def test_bbq_label_may_be_text_and_must_be_an_answer(tmp_path: Path) -> None:
    as_text = [{**row, "label": str(row["label"])} for row in BBQ]
    assert load(jsonl(tmp_path / "t.jsonl", as_text)) == load(jsonl(tmp_path / "i.jsonl", BBQ))
    for wrong in (3, -1, True, None, "one"):
        path = jsonl(tmp_path / "w.jsonl", [BBQ[0], {**BBQ[1], "label": wrong}])
        assert f"{path}:2: 'label' is" in refused(path)


# --- the noun and its digest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"prompt": ""}, "'prompt' is empty"),
        ({"positive": " \n"}, "'positive' is empty"),
        ({"negative": None}, "'negative' is empty"),
        ({"negative": 7}, "'negative' is not a string but int"),
        ({"neutral": "\t"}, "'neutral' is empty"),
        ({"neutral": b"x"}, "'neutral' is not a string but bytes"),
        ({"prompt": "half \ud83d"}, "'prompt' holds half of a surrogate pair"),
    ],
)
def test_demonstration_refuses(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(DemonstrationError, match=problem):
        Demonstration(**{"prompt": "p", "positive": "a", "negative": "b", **changed})


def test_demonstration_is_a_frozen_value() -> None:
    one = Demonstration("p", "a", "b")
    assert one == pickle.loads(pickle.dumps(one))
    assert len({one, Demonstration("p", "a", "b", None)}) == 1
    assert not hasattr(one, "__dict__")
    with pytest.raises(FrozenInstanceError):
        one.prompt = "q"  # type: ignore[misc]


def test_digest_is_stable_and_ordered() -> None:
    one, two = Demonstration("p", "a", "b"), Demonstration("é", "a", "b", "n")
    encoded = b'[["p","a","b",null],["\\u00e9","a","b","n"]]'
    assert digest([one, two]) == digest(iter((one, two))) == hashlib.sha256(encoded).hexdigest()
    different = [[one, two], [two, one], [one], [], [Demonstration("p", "b", "a"), two], [one, one, two]]
    assert len({digest(several) for several in different}) == len(different)
    assert digest([Demonstration("p", "a", "b", "null")]) != digest([one])


# --- the built-in set ------------------------------------------------------------------------------------------------


def test_builtin_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtin()
    assert len(found) >= 100
    assert len({demonstration.prompt for demonstration in found}) == len(found)
    assert all(demonstration.positive != demonstration.negative for demonstration in found)
    monkeypatch.chdir(tmp_path)  # from the package, wherever we stand
    (tmp_path / "builtin").mkdir()
    assert load("builtin") == found
    assert load("builtin", limit=7) == found[:7]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_the_same_rows_through_every_file_type(tmp_path: Path) -> None:
    expected = [Demonstration(**row) for row in TRIPLES]
    lines = jsonl(tmp_path / "a.jsonl", TRIPLES)
    blank = tmp_path / "blank.jsonl"
    blank.write_text("\ufeff\n" + lines.read_text().replace("\n", "\r\n  \r\n\n"), encoding="utf-8")
    array = tmp_path / "array.JSON"
    array.write_text("\n" + json.dumps(TRIPLES, indent=2))
    lines_called_json = jsonl(tmp_path / "lines.json", TRIPLES)
    comma, tab = tmp_path / "a.csv", tmp_path / "a.tsv"
    comma.write_text("prompt,positive,negative\n" + "".join(",".join(row.values()) + "\n\n" for row in TRIPLES))
    tab.write_text(
        "negative\tprompt\tpositive\n" + "".join(f"{n}\t{p}\t{a}\n" for p, a, n in map(dict.values, TRIPLES))
    )
    for path in (lines, blank, array, lines_called_json, comma, tab):
        assert load(path) == load(str(path)) == expected, path.name


def test_triples_are_stripped_and_may_have_a_neutral(tmp_path: Path) -> None:
    rows = [{**TRIPLES[0], "neutral": " Well. "}, {**TRIPLES[1], "positive": "\tx \n", "neutral": None, "other": 1}]
    first, second = load(jsonl(tmp_path / "a.jsonl", rows))
    assert first.neutral == "Well."
    assert (second.positive, second.neutral) == ("x", None)
    sheet = tmp_path / "a.csv"
    sheet.write_text('prompt,positive,negative,neutral\np,a,b,\n"q, q","a\n\na",b,"He said ""n"""\n')
    assert load(sheet) == [Demonstration("p", "a", "b"), Demonstration("q, q", "a\n\na", "b", 'He said "n"')]


def test_limit_takes_the_first_after_a_seeded_shuffle(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", TRIPLES)
    everything = load(path)
    assert load(path, limit=3) == everything[:3]
    assert load(path, limit=99) == everything
    shuffled = everything.copy()
    random.Random(4).shuffle(shuffled)
    assert shuffled != everything
    assert load(path, shuffle_seed=4, limit=3) == shuffled[:3]
    assert load(path, shuffle_seed=4) == shuffled


# --- errors: what, where, cure ---------------------------------------------------------------------------------------

GOOD = json.dumps(TRIPLES[0]).encode()
LACKS = json.dumps({"prompt": "p", "positive": "a"}).encode()
DEEP = b'{"prompt": ' + b"[" * 200_000


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("a.jsonl", GOOD + b"\n\n{oops}\n", 3, "not valid JSON"),
        ("a.jsonl", GOOD + b"\n" + GOOD + b" " + GOOD, 2, "not valid JSON: Extra data"),
        ("a.jsonl", GOOD + b"\n" + DEEP, 2, "not valid JSON"),
        ("a.jsonl", GOOD + b'\n{"prompt": ' + b"9" * 5000 + b"}", 2, "not valid JSON|not a string but int"),
        ("a.jsonl", GOOD + b"\n" + b"x" * (readers.MAX_LINE_BYTES + 1), 2, "longer than 16 MiB"),
        ("a.jsonl", GOOD + b"\n\xff\xfe\n", 2, "not UTF-8 .byte 0xff.*Save the file as UTF-8"),
        ("a.jsonl", GOOD.decode().encode("utf-16"), 1, "not UTF-8"),
        ("a.jsonl", GOOD + b"\n[1]\n", 2, "a JSON object .* this is of type list"),
        ("a.jsonl", GOOD + b"\n" + LACKS + b"\n", 2, "the key 'negative' is missing; found: positive, prompt"),
        ("a.jsonl", GOOD + b"\n\n" + GOOD.replace(b"It is 2.", b"  "), 3, "'positive' is empty"),
        ("a.jsonl", GOOD + b"\n" + GOOD.replace(b'"It is 3."', b"3"), 2, "'negative' is not a string but int"),
        ("a.jsonl", GOOD + b"\n" + GOOD.replace(b"It is 3.", b"\\ud83d"), 2, "'negative' holds half of a surrogate"),
        ("a.jsonl", GOOD + b"\n" + GOOD[:-1] + b', "neutral": ""}', 2, "'neutral' is empty"),
        ("a.json", b"[\n" + GOOD + b",\n\n\n" + LACKS + b"\n]", 5, "the key 'negative' is missing"),
        ("a.json", json.dumps([TRIPLES[0], json.loads(LACKS)], indent=1).encode(), 7, "the key 'negative' is missing"),
        ("a.json", b"\n[" + GOOD + b",\n" + GOOD + b",\n]", 4, "not valid JSON"),
        ("a.json", b"[" + GOOD + b", " + GOOD + b",\n7]", 2, "a JSON object .* this is of type int"),
        ("a.json", b"[" * 200_000, 1, "not valid JSON"),
        ("a.csv", b"prompt,positive,negative\np,a,b\n\nq,a\n", 4, "2 fields, where the header has 3.*comma"),
        ("a.tsv", b"prompt\tpositive\tnegative\np\ta\tb\tc\n", 2, "4 fields, where the header has 3.*tab"),
        ("a.csv", b'prompt,positive,negative\n"p\np",a,b\n"q,a,b\nr,a,b\n', 4, "not a readable CSV record"),
        ("a.csv", b'prompt,positive,negative\np,"a"a,b\n', 2, "not a readable CSV record"),
        ("a.csv", b"prompt,positive,negative\np," + b"a" * 200_000 + b",b\n", 2, "not a readable CSV record"),
        ("a.csv", b"prompt,positive,prompt\np,a,b\n", 1, "the column 'prompt' appears twice"),
        ("a.csv", b'prompt,positive,negative\n"p\np",a,b\nq, ,b\n', 4, "'positive' is empty"),
        ("a.csv", b"prompt,positive,negative\np,a,\xe9\n", 2, "not UTF-8"),
    ],
)
def test_a_damaged_row_is_named_by_its_line(name: str, content: bytes, line: int, problem: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DemonstrationError, match=problem) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)


def test_damage_beyond_the_limit_is_still_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*TRIPLES, {"prompt": "p"}])
    assert f"{path}:7: the key 'positive' is missing" in refused(path, limit=2)


@pytest.mark.parametrize(
    ("format", "rows", "key"),
    [
        ("halueval_qa", HALUEVAL, "right_answer"),
        ("halueval_qa", HALUEVAL, "question"),
        ("truthfulqa", TRUTHFULQA, "Incorrect Answers"),
        ("bbq", BBQ, "ans2"),
        ("bbq", BBQ, "context"),
    ],
)
def test_every_format_names_the_key_it_misses(format: str, rows: Any, key: str, tmp_path: Path) -> None:
    missing = [rows[0], {name: value for name, value in rows[1].items() if name != key}]
    path = jsonl(tmp_path / "a.jsonl", missing)
    assert f"{path}:2: the key '{key}' is missing" in refused(path)
    jsonl(path, [rows[0], {**rows[1], key: ["x"]}])
    assert f"{path}:2: '{key}' is not a string but list" in refused(path, format=format)


def test_answers_that_are_only_semicolons(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [HALUEVAL[0], {**HALUEVAL[1], "hallucinated_answer": " ; ;"}])
    assert f"{path}:2: 'hallucinated_answer' holds nothing but semicolons" in refused(path)


def test_unknown_columns_are_told_with_every_known_format(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "p", "chosen": "a", "rejected": "b"}] * 2)
    message = refused(path)
    assert message.startswith(f"{path}:1: ")
    assert "(chosen, instruction, rejected)" in message
    assert "Rename the columns to prompt, positive, negative" in message
    for name, known in FORMATS.items():
        assert f"{name} needs {', '.join(known.needs)}" in message


def test_an_unknown_format_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    message = refused(tmp_path / "absent.jsonl", format="haluevil")
    assert "no demonstration format 'haluevil'" in message
    assert all(name in message for name in ("auto", *FORMATS))


@pytest.mark.parametrize("content", ["", "\n \n", "[]", "prompt,positive,negative\n"])
def test_an_empty_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.csv" if "," in content else "a.json")
    path.write_text(content)
    assert f"{path}: it is empty" in refused(path)


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one(limit: int) -> None:
    assert f"limit is {limit}" in refused("builtin", limit=limit)


def test_fewer_than_two_triples(tmp_path: Path) -> None:
    assert MIN_TRIPLES == 2
    path = jsonl(tmp_path / "a.jsonl", TRIPLES[:1])
    assert "at least 2 usable triples" in refused(path)
    jsonl(path, TRIPLES)
    assert "limit=1 leaves 1 of 6" in refused(path, limit=1)
    assert len(load(path, limit=2)) == 2


@pytest.mark.parametrize(
    "name", ["absent.jsonl", "absent.JSON", "a.csv", "b.tsv", "./owner/name", "/no/where", "a b", ""]
)
def test_no_such_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)  # a path is never looked for on the hub
    assert f"{name!r}: no such file" in refused(name)
    assert "no such file" in refused(tmp_path / "owner")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    assert "'.parquet' is none of them" in refused(path)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", TRIPLES)

    def locked(*_: Any, **__: Any) -> None:  # by hand: the superuser may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", locked)
    assert f"{path}: cannot be read: Permission denied" in refused(path)


# --- datasets --------------------------------------------------------------------------------------------------------


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    expected = [Demonstration(**row) for row in TRIPLES]
    datasets.Dataset.from_list(TRIPLES).save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one") == load(tmp_path / "one", split="test") == expected
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(TRIPLES), test=datasets.Dataset.from_list(HALUEVAL, split="test")
    )
    both.save_to_disk(tmp_path / "two")
    assert load(str(tmp_path / "two")) == expected
    assert load(tmp_path / "two", split="test") == load(jsonl(tmp_path / "h.jsonl", HALUEVAL))
    assert "no split 'dev'. Take one of its own: train, test" in refused(tmp_path / "two", split="dev")
    both["test"].save_to_disk(tmp_path / "named")
    assert load(tmp_path / "named") == load(tmp_path / "named", split="test")
    assert "no split 'dev'. Take one of its own: train, test" in refused(tmp_path / "named", split="dev")
    datasets.Dataset.from_list([TRIPLES[0], {**TRIPLES[1], "negative": None}]).save_to_disk(tmp_path / "hole")
    assert f"{tmp_path / 'hole'}, split 'train', row 2: 'negative' is empty" in refused(tmp_path / "hole")


def test_a_folder_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl(folder / "train.jsonl", TRIPLES)
    jsonl(folder / "test.jsonl", TRIPLES[:2])
    assert load(folder) == [Demonstration(**row) for row in TRIPLES]
    assert len(load(folder, split="test")) == 2
    assert "split 'dev', cannot be loaded" in refused(folder, split="dev")
    (tmp_path / "nothing").mkdir()
    assert "cannot be loaded" in refused(tmp_path / "nothing")


def test_a_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list(TRIPLES).save_to_disk("owner/name")
    assert len(load("owner/name")) == len(TRIPLES)


def test_hub_id_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def hub(*names: Any, split: str) -> Any:
        asked.append((*names, split))
        return datasets.Dataset.from_list(HALUEVAL)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert load("owner/name") == load("owner/name:qa", split="data")
    assert asked == [("owner/name", None, "train"), ("owner/name", "qa", "data")]


@pytest.mark.slow
def test_a_hub_id_that_cannot_be_reached(tmp_path: Path) -> None:
    program = "from sea_bake.demonstrations import load; load('no-such-owner/no-such-name')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_DATASETS_CACHE": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1
    assert last.startswith("sea_bake.errors.DemonstrationError: 'no-such-owner/no-such-name', split 'train', cannot be")
    assert "download it and give the folder" in last


def test_without_datasets_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (tmp_path, "owner/name"):
        with pytest.raises(MissingExtraError, match=r"pip install 'sea-bake\[datasets\]'"):
            load(source)
    assert len(load(jsonl(tmp_path / "a.jsonl", TRIPLES))) == len(TRIPLES)  # files need nothing


def test_the_room_imports_the_standard_library_only() -> None:
    program = "import sys, sea_bake.demonstrations as d; d.builtin(); print({'torch', 'datasets'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
