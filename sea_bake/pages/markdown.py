"""Markdown that cannot break a page, whatever is put into it."""

from __future__ import annotations

from typing import Any

from sea_bake.pages.text import harmless


def plain(value: Any) -> str:
    """Text on one line that stays text: no link (not of a bare address either), picture, HTML, table cell or code."""
    text = harmless(" ".join(str(value).split()))
    text = "".join(f"\\{c}" if c in "\\`|[]*" else c for c in text)
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("://", ":\\//").replace("www.", "www\\.")
