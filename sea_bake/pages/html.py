"""HTML pages that need nothing else: one stylesheet, pictures inside, and no text that could be more than text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from sea_bake.pages.pictures import Picture
from sea_bake.pages.text import harmless

# No script, no frame, no font, and nothing from anywhere: a reader's browser sees to that.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = (
    ":root{color-scheme:light dark;--ink:#222;--paper:#fff;--soft:#595959;--line:#ddd;--good:#17692f;--bad:#a3281e;"
    "--link:#2a5db0}"
    "@media(prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#141414;--soft:#a0a0a0;--line:#3a3a3a;--good:#6fcf8b;"
    "--bad:#f08a80;--link:#8ab4f8}img{filter:invert(.92) hue-rotate(180deg)}}"  # their white becomes the page's black
    "body{font:16px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:var(--ink);"
    "background:var(--paper);overflow-wrap:break-word}a{color:var(--link)}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}"
    "th:first-child,td:first-child,th:nth-child(2),td:nth-child(2),.text td,.text th{text-align:left}"
    ".numbers tr>*{text-align:right}td:nth-child(n+3){white-space:nowrap}.text td{white-space:normal}"
    ".better{color:var(--good);font-weight:600}.worse{color:var(--bad);font-weight:600}"
    "figure{margin:1rem 0}img{max-width:100%;height:auto}figcaption{color:var(--soft);font-size:.9rem}"
    "details{margin:1rem 0}.note{color:var(--soft);font-size:.9rem}"
    "@media(max-width:42rem){figure .wide img{max-width:none;width:40rem}.text td{min-width:12rem}}"
)


def text(value: Any) -> str:
    """Text that is text wherever in a page it stands, whoever wrote it."""
    return escape(harmless(str(value)))


def document(title: str, body: str, *, style: str = "") -> str:
    """A whole page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}{style}</style></head><body>{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, classes: str = "") -> str:
    """A table of texts; cells that say "better" or "worse" are coloured so."""
    parts = [f'<div class="wide"><table class="{classes}">' if classes else '<div class="wide"><table>']
    if any(head):
        parts += ["<thead><tr>", *(f'<th scope="col">{text(name)}</th>' for name in head), "</tr></thead>"]
    parts.append("<tbody>")
    for row in rows:
        marked = (f'<td class="{cell}">' if cell in ("better", "worse") else "<td>" for cell in row)
        parts += ["<tr>", *(f"{start}{text(cell)}</td>" for start, cell in zip(marked, row)), "</tr>"]
    return "".join(parts) + "</tbody></table></div>"


def image(picture: Picture) -> str:
    """A picture inside the page, with its caption."""
    data = base64.b64encode(picture.svg()).decode()
    return (
        f'<figure><div class="wide"><img alt="{text(picture.alt or picture.caption)}" '
        f'src="data:image/svg+xml;base64,{data}"></div><figcaption>{text(picture.caption)}</figcaption></figure>'
    )
