"""What is put into a page, a card or a terminal is text there, whoever wrote it."""

from __future__ import annotations

import json

import pytest

from sea_bake.pages.html import text
from sea_bake.pages.markdown import plain
from sea_bake.pages.text import harmless

CODES = (0, 7, 0x0D, 0x1B, 0x7F, 0x9B, 0x61C, 0x200E, 0x200F, 0x202A, 0x202E, 0x2066, 0x2069, 0xD800, 0xDFFF)
MARKS = [*map(chr, CODES)]


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: f"{ord(mark):04x}")
def test_what_is_obeyed_is_shown(mark: str) -> None:
    said = f"a{mark}b"
    for shown in (harmless(said), text(said), plain(said)):
        assert mark not in shown
        shown.encode()
    assert harmless(said) == f"a\\u{ord(mark):04x}b"
    assert json.loads(harmless(json.dumps({"x": said}, ensure_ascii=False))) == {"x": said}


def test_other_texts_stay_as_they_are() -> None:
    said = "Φ-SEA\tk+ ≤ 8\nжук 🦆 \\u202e"
    assert harmless(said) == said
