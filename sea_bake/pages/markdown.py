"""Pieces of Markdown that cannot break a page, whatever is put into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sea_bake.pages.text import harmless


def plain(value: Any) -> str:
    """Text that cannot break out of its place on the page."""
    text = harmless(" ".join(str(value).split()))
    return "".join(f"\\{c}" if c in "\\`|<>[]*" else c for c in text)


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
