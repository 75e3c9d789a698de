"""Rows of the benchmarks' files, read one by one and held against what the tasks make of them.

All before any model is loaded: of a label that is out of range the harness would make a wrong answer.
"""

from __future__ import annotations

import csv
import io
import json
import reprlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sea_bake.errors import EvaluationError
from sea_bake.io.files import has_utf8
from sea_bake.io.regular import open_regular

Row = dict[str, Any]
Check = Callable[[Row], None]  # raises ValueError, which says what is wrong


def check_rows(name: str, path: Path, columns: Sequence[str], check: Check) -> None:
    """All rows of a task's file.

    Raises:
        EvaluationError: there are none, or one that cannot be used; the message names its line.
    """
    count = 0
    for number, row in _read(path):
        missing = [c for c in columns if not isinstance(row, dict) or row.get(c) is None]
        if missing:
            has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise EvaluationError(
                f"{path}, line {number}: the task {name} needs the column {', '.join(missing)} (there are: {has})"
            )
        try:
            check(row)
        except ValueError as error:
            raise EvaluationError(f"{path}, line {number}: the task {name} cannot use this row: {error}") from error
        count += 1
    if not count:
        raise EvaluationError(f"{path} holds no rows")


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and row. Lines end at a line feed alone: JSON may hold the other ends that Unicode knows."""
    number = 0
    try:
        if path.suffix == ".csv":
            with open_regular(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as table:
                reader = csv.DictReader(table)
                for row in reader:
                    number = reader.line_num
                    yield number, row
            return
        with open_regular(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip(b" \t\r\n"):
                    yield number, json.loads(line.decode("utf-8").rstrip("\n"))
    except UnicodeDecodeError as error:
        place = f", line {number}" if path.suffix != ".csv" else ""
        raise EvaluationError(f"{path}{place}: not UTF-8 ({error}): save the file as UTF-8") from error
    except csv.Error as error:
        raise EvaluationError(f"{path}, behind line {number}: not CSV ({error})") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}, line {number}: not JSON ({error})") from error
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from error


def _want(fine: bool, column: str, value: Any, wanted: str) -> None:
    if not fine:
        raise ValueError(f"{column} is {reprlib.repr(value)}, and has to be {wanted}")


def _is_text(value: Any, *, blank: bool) -> bool:
    """Half a surrogate pair, which JSON can spell, is no text: it has no UTF-8."""
    if not isinstance(value, str) or not has_utf8(value):
        return False
    return blank or bool(value.strip())


def _texts(row: Row, *columns: str, blank: bool = True) -> None:
    for column in columns:
        _want(_is_text(row[column], blank=blank), column, row[column], "text" if blank else "text, and not empty")


def _list(value: Any, column: str, wanted: str, *, least: int = 1, most: int | None = None, blank: bool = False) -> int:
    """Length of a list of texts."""
    fine = isinstance(value, list) and least <= len(value) <= (len(value) if most is None else most)
    _want(fine and all(_is_text(text, blank=blank) for text in value), column, value, wanted)
    return len(value)


def _choices(value: Any, column: str) -> int:
    return _list(value, column, "a list of two texts or more, none of them empty", least=2)


def _index(row: Row, column: str, count: int) -> None:
    value = row[column]
    fine = type(value) is int and 0 <= value < count
    _want(fine, column, value, f"the number of the right answer, from 0 to {count - 1}")


def _targets(row: Row, column: str) -> tuple[Any, int]:
    """Labels, one for each choice, and their number."""
    targets = row[column]
    _want(isinstance(targets, dict), column, targets, "choices with their labels")
    count = _choices(targets.get("choices"), f"{column}.choices")
    labels = targets.get("labels")
    fine = isinstance(labels, list) and len(labels) == count and all(type(x) is int and x in (0, 1) for x in labels)
    _want(fine, f"{column}.labels", labels, f"{count} labels, 1 (true) or 0 (false), one for each of the choices")
    return labels, count


def truthfulqa_mc1(row: Row) -> None:
    _texts(row, "question")
    labels, count = _targets(row, "mc1_targets")
    wanted = "1 for the first choice, which the task takes for the true one, and 0 for all others"
    _want(labels == [1] + [0] * (count - 1), "mc1_targets.labels", labels, wanted)


def truthfulqa_mc2(row: Row) -> None:
    _texts(row, "question")
    labels, _ = _targets(row, "mc2_targets")
    _want(len(set(labels)) == 2, "mc2_targets.labels", labels, "1 for some of the choices and 0 for others")


def bbq(row: Row) -> None:
    _texts(row, "context", "question")
    _texts(row, "ans0", "ans1", "ans2", "category", blank=False)
    _index(row, "label", 3)
    for column, words in (("context_condition", ("ambig", "disambig")), ("question_polarity", ("neg", "nonneg"))):
        _want(row[column] in words, column, row[column], " or ".join(words))
    info, more = row["answer_info"], row["additional_metadata"]
    _want(isinstance(info, dict), "answer_info", info, "the groups of ans0, ans1 and ans2")
    for name in ("ans0", "ans1", "ans2"):
        _list(info.get(name), f"answer_info.{name}", "a list of one text or more: the group's names", blank=True)
    _want(isinstance(more, dict), "additional_metadata", more, "a table with stereotyped_groups")
    groups = more.get("stereotyped_groups")
    _list(groups, "additional_metadata.stereotyped_groups", "a list of texts", least=0, blank=True)


def hellaswag(row: Row) -> None:
    _texts(row, "activity_label", "ctx_a", "ctx_b")
    count, label = _choices(row["endings"], "endings"), row["label"]
    fine = type(label) in (int, str) and str(label) in map(str, range(count))
    _want(fine, "label", label, f"the number of the right ending, from 0 to {count - 1}")


def gsm8k(row: Row) -> None:
    _texts(row, "question", "answer")
    _want("#### " in row["answer"], "answer", row["answer"], 'text that ends in "#### " and the number')


def mathqa(row: Row) -> None:
    _texts(row, "question")
    _index(row, "label", _choices(row["choices"], "choices"))


def mmlu(row: Row) -> None:
    _texts(row, "question")
    _texts(row, "subject", blank=False)
    _list(row["choices"], "choices", "a list of four texts", least=4, most=4, blank=True)
    _index(row, "answer", 4)


def nq_open(row: Row) -> None:
    _texts(row, "question")
    _list(row["answer"], "answer", "a list of the right answers, each a text that is not empty")


def toxigen(row: Row) -> None:
    _texts(row, "text")
    for column in ("toxicity_ai", "toxicity_human"):
        value = row[column]
        _want(type(value) in (int, float) and 1 <= value <= 5, column, value, "a number from 1 to 5")


def crows_pairs(row: Row) -> None:
    _texts(row, "sent_more", "sent_less", blank=False)
