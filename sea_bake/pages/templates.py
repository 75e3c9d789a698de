"""Pages out of the templates beside this file: whatever is put into one comes out as text, whoever wrote it."""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sea_bake.pages.markdown import address, code, plain, python, shell
from sea_bake.pages.text import harmless


class Markdown(Markup):
    """Text that is Markdown already: it is put in as it is."""


def html(name: str, /, **context: Any) -> str:
    """A page from a template of HTML. Raises jinja2.UndefinedError for a value that the template lacks."""
    return _environment(False).get_template(name).render(context)


def markdown(name: str, /, **context: Any) -> str:
    """The same from a template of Markdown; at most one empty line in a row."""
    return re.sub(r"\n{3,}", "\n\n", _environment(True).get_template(name).render(context)).strip() + "\n"


@cache
def _environment(is_markdown: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_suffix("")),
        autoescape=True,
        finalize=_markdown_text if is_markdown else _html_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["base64"] = lambda data: base64.b64encode(data).decode()
    made.filters |= {"address": address, "code": code, "python": python, "shell": shell}
    return made


def _html_text(value: Any) -> Any:
    """What Jinja2 then escapes; of macros, what has been escaped."""
    return value if isinstance(value, Markup) else harmless(str(value))


def _markdown_text(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(plain(value))
