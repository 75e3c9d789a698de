"""Markdown that cannot break a page, whatever is put into it: as text, as a code span, or as a string in code."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from sea_bake.pages.text import harmless


def plain(value: Any) -> str:
    """Text on one line that stays text, also at the start of a line: no link (of a bare address neither), picture,
    HTML, heading, list, rule, emphasis, table cell or code.
    """
    text = harmless(" ".join(str(value).split()))
    text = "".join(f"\\{c}" if c in "\\`|[]*~" else c for c in text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word it is text already
    text = re.sub(r"^([#+=-])(?!\d)", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    return text.replace("://", ":\\//").replace("www.", "www\\.")


def code(value: Any) -> Markup:
    """A text as a code span, whatever backticks it holds."""
    text = harmless(" ".join(str(value).split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")


def address(value: Any) -> Markup:
    """Where a link leads: over http(s), or to a file beside the page; of any other scheme the colon is quoted."""
    text = harmless(str(value))
    is_url = re.match(r"https?://", text)
    return Markup(quote(text, safe="/:?#=&%+~@," if is_url else "/~+", errors="replace"))


def python(value: str) -> Markup:
    """A string literal of Python, for a block of code."""
    return Markup(harmless(json.dumps(value, ensure_ascii=False)))


def shell(value: str) -> Markup:
    """One word of a command, for a block of code."""
    return Markup(shlex.quote(harmless(" ".join(value.split()))))
