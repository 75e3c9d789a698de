"""The studies' pages: every row of their tables is printed from the answers that are kept in ``scripts/answers``."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import doors
import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
PAGES = ("ABLATIONS.md", "BEHAVIOURS.md", "DEMONSTRATIONS.md", "FEATURES.md", "LAYERS.md")


def commands(page: str) -> list[list[str]]:
    """Those that a page says its tables are printed by."""
    text = (SCRIPTS / page).read_text("utf-8").replace("\\\n", " ")
    found = [shlex.split(line) for line in text.splitlines() if re.match(r" {4}scripts/study_", line)]
    return [words for words in found if "--print" in words]


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]


def printed(words: list[str]) -> list[str]:
    ran = doors.forked([sys.executable, str(SCRIPTS / Path(words[0]).name), *words[1:]], dict(os.environ))
    assert ran.returncode == 0, ran.stderr[-4000:]
    return rows(ran.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_row_is_printed_from_kept_answers(page: str) -> None:
    asked = commands(page)
    assert asked, "the page does not say how it is printed"
    there = {row for words in asked for row in printed(words)}
    shown = rows((SCRIPTS / page).read_text("utf-8"))
    assert shown
    assert [row for row in shown if row not in there] == []
    number = re.compile(r"\d(?!.*\d)")
    assert number.sub(lambda found: str((int(found[0]) + 1) % 10), shown[-1]) not in there


@pytest.mark.slow
def test_a_study_that_was_not_kept_is_not_printed() -> None:
    (words,) = commands("LAYERS.md")
    other = ["other" if word.startswith("SmolLM2") else word for word in words]
    ran = subprocess.run([SCRIPTS / Path(other[0]).name, *other[1:]], capture_output=True, text=True)
    assert ran.returncode
    assert not ran.stdout
    assert "name the study's folder with --output" in ran.stderr
