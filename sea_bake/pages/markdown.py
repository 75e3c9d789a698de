"""Markdown that cannot break a page, whatever is put into it: as text, as a code span, or as a string in code."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any
from urllib.parse import quote

import yaml
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
    return text.replace("://", ":\\//").replace("www.", "www\\.").replace("@", "&#64;")


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


def front_matter(data: dict[str, Any]) -> str:
    """YAML in front of a page. A renderer that knows no such thing takes it for text, and so nothing in it is more."""
    text = yaml.dump(data, Dumper=_FrontMatter, sort_keys=False, allow_unicode=True)
    for mark in "<>`":  # in strings alone, and these in quotes
        text = text.replace(mark, f"\\x{ord(mark):02X}")
    return f"---\n{harmless(text.replace('](', ']' + chr(92) + 'x28'))}---\n"


class _FrontMatter(yaml.SafeDumper):
    """Strings that hold a mark of HTML or a link stand in double quotes, where it can be spelt as an escape."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.search(r"[<>`]|\]\(|~~~", text) or harmless(text) != text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_FrontMatter.add_representer(str, _quoted)


def python(value: str) -> Markup:
    """A string literal of Python, for a block of code."""
    return Markup(harmless(json.dumps(value, ensure_ascii=False)))


def shell(value: str) -> Markup:
    """One word of a command, for a block of code."""
    return Markup(shlex.quote(harmless(" ".join(value.split()))))
