"""What is put into a page, a card or a terminal is text there, whoever wrote it."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.console import Console

import sea_bake
from sea_bake.cli.printing import table
from sea_bake.pages import templates
from sea_bake.pages.markdown import code, front_matter, plain, python, shell
from sea_bake.pages.templates import Markdown
from sea_bake.pages.text import harmless, p_value, size

HOUSE = Path(sea_bake.__file__).parent
FOLDER = HOUSE / "pages" / "templates"
CODES = (
    *(0, 7, 0x0D, 0x1B, 0x7F, 0x85, 0x9B, 0x61C, 0x200E, 0x200F, 0x2028, 0x2029, 0x202A, 0x202E, 0x2060, 0x2066),
    *(0x2069, 0x206A, 0xFFF9, 0xD800, 0xDFFF),
)
MARKS = [*map(chr, CODES)]


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: f"{ord(mark):04x}")
def test_what_is_obeyed_is_shown(mark: str) -> None:
    said = f"a{mark}b"
    for shown in (harmless(said), plain(said), templates.html("web.html.j2", **web(said))):
        assert mark not in shown
        shown.encode()
    assert harmless(said) == f"a\\u{ord(mark):04x}b"
    assert json.loads(harmless(json.dumps({"x": said}, ensure_ascii=False))) == {"x": said}


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: f"{ord(mark):04x}")
def test_a_table_in_a_terminal_holds_no_marks(mark: str) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(table(["layer", f"h{mark}h"], [[f"c{mark}c", "x"]], title=f"t{mark}t"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert [shown.count(f"{x}\\u{ord(mark):04x}{x}") for x in "hct"] == [1, 1, 1]
    assert mark not in shown


EVIL = (
    "</p></title></style><script>alert(1)</script><img src=x onerror=alert(1)>\n\n# H\n- [x](javascript:alert(1)) "
    "![y](http://evil/x.png) <http://evil> http://evil www.evil | cell `code` \x1b[31m \u202e \ud800"
)


def web(text: str) -> dict[str, Any]:
    return {
        "title": text,
        "sides": ["base"],
        "facts": [(text, text)],
        "size": text,
        "examples": [text, text],
        "doubt": text,
    }


def evaluation(text: str) -> dict[str, Any]:
    kind = {"heading": text, "rows": [[text, text]], "judged": 1, "better": 0, "worse": 0, "same": 1}
    samples = [{"prompt": text, "base": text, "edited": text}]
    shown = {"title": text, "kinds": [kind], "head": [text, text], "breakdown": [[text, text]], "notes": [text]}
    return {**shown, "pictures": [], "samples": samples, "answers": [[text] * 3]}


def tune(text: str) -> dict[str, Any]:
    tables = {"front": ([text, text], [[text, text]]), "held_back": ([text, text], [[text, text]])}
    words = {"objective": text, "base": text, "verdict": text, "sentences": [text], "chosen": {text: text}}
    return {**tables, **words, "figure": "pareto.png"}


def numbers(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"mean_kl": 0.1, "prompts": 6} | more)


def verification(text: str, *, approximate: bool = False) -> SimpleNamespace:
    limits = {"kl_limit": 0.1 if approximate else None, "tolerance": 1e-4, "approximate": approximate}
    facts = {"facts": SimpleNamespace(runtimes=[text]), "failures": [text]}
    return SimpleNamespace(**limits, **facts, equality=numbers(), baseline=numbers() if approximate else None)


def an_artefact(text: str, kind: str, *, doubt: bool = False, local: bool = False, **more: Any) -> SimpleNamespace:
    details = SimpleNamespace(rank=3, flags={text: text})
    bake = SimpleNamespace(
        how=text, why=text, details=details, granted={text: [text]}, rewritten=text, architecture=text
    )
    names = {"base": None if local else text, "base_name": text, "auto_class": "AutoModelForCausalLM"}
    proof = verification(text, approximate=bool(more.get("approximate")))
    state = {
        "doubt": text if doubt else None,
        "verification": proof,
        "edits": [text],
        "approximate": False,
        "revision": text,
    }
    return SimpleNamespace(kind=kind, bake=bake, **names | state | more)


def card(kind: str, *, bare: bool = False, **state: Any) -> Callable[[str], dict[str, Any]]:
    """``bare``: without anything that may be there or not."""

    def fill(text: str) -> dict[str, Any]:
        row, links = [text, text], {"name": text, "link": text}
        licence = SimpleNamespace(
            id="unknown" if bare else text, origin=text, **dict.fromkeys(links) if bare else links
        )
        tables = {"settings": (row, [row]), "compared": (row, [row]), "ranks": [] if bare else [[1, 2, text, text]]}
        tables["methods"] = [("SEA", "2405.09719"), (text, "2306.03819"), (text, "")]
        lists: dict[str, Any] = {
            "origins": [] if bare else row,
            "results": [[text] * 7],
            "variants": [[text] * 4],
            "missing": row,
            "worth": [] if bare else row,
            "gains": [] if bare else row,
            "runtimes": [] if bare else [[text] * 3],
            "kept": None if bare else (row, [row]),
        }
        said = {"title": text, "repo": text, "revision": text, "why": text, "report": text, "recipe": "sea_bake.yaml"}
        said |= {"refits": not bare}
        shown = {"conditions": text, "graph": "model.onnx", "licence": licence, **tables, **said, **lists}
        empty = {"results": [], "variants": [], "missing": [], "revision": None, "why": "", "report": None}
        empty |= {"worth": [], "gains": []}
        return {"artefact": an_artefact(text, kind, **state), **shown, **(empty if bare else {})}

    return fill


def edit_card(*, bare: bool = False) -> Callable[[str], dict[str, Any]]:
    def fill(text: str) -> dict[str, Any]:
        row, own = [text, text], dict.fromkeys(("title", "name", "repo", "sha256", "fingerprint", "sentence"), text)
        base = SimpleNamespace(name=text, num_layers=4, revision=None if bare else text)
        edit = SimpleNamespace(layers=[1, 2], recipe=SimpleNamespace(imported=text))
        licence = SimpleNamespace(id="unknown" if bare else text, origin=text, name=text, link=text)
        shown = {"edit": edit, "base": base, "licence": licence, "method": "sea", "settings": (row, [row])}
        lists = {"ranks": [] if bare else [[text, 1, 2]], "results": [] if bare else [[text] * 7]}
        lists |= dict.fromkeys(("worth", "gains"), [] if bare else row)
        more = {"refits": not bare, "missing": text, "revision": None if bare else text, "recipe": "sea_bake.yaml"}
        more["samples_all"] = not bare
        return own | shown | lists | more

    return fill


class Drawn(SimpleNamespace):
    """A picture with its words."""

    def svg(self) -> bytes:
        return b"<svg/>"


def report(kind: str | None, *, bare: bool = False, **state: Any) -> Callable[[str], dict[str, Any]]:
    def fill(text: str) -> dict[str, Any]:
        row, picture = [text, text], Drawn(caption=text, alt=text)
        shown = evaluation(text) | {"breakdown": [row]}
        edit: dict[str, Any] = {"stem": "edit-1-", "first": [0.5, 0.995], "signatures": row}
        edit |= {"layers": (row * 3, [row * 3]), "affine": kind is None}
        edit |= {"pictures": dict.fromkeys(("spectra", "layers", "movement", "projection"), picture), "still": text}
        edit |= {"apart": [row], "moved": (row, [row]), "demonstrations": text, "own": False}
        edit |= {"moves": [0.1], "turns": [0.9]} | ({"first": [], "moved": None, "apart": []} if bare else {})
        measured = {"evaluation": SimpleNamespace(samples=[{}]), "measured": SimpleNamespace(**shown), "answers": [row]}
        return {
            "title": text, "settings": (row, [row]), "compared": (row, [row]), "effects": [picture], "still": 0.02,
            "worth": [] if bare else row, "site": None if bare else "https://example.org",
            "asks": [f"https://example.org/#{urlencode({'prompt': text}, errors='replace')}"],
            "artefact": an_artefact(text, kind, **state) if kind else None, "edits": [edit, edit], "provenance": [row],
            **({"evaluation": None, "measured": None, "answers": []} if bare else measured),
        }  # fmt: skip

    return fill


def evaluation_page(text: str) -> dict[str, Any]:
    return evaluation(text) | {"pictures": [Drawn(caption=text, alt=text)]}


# A name, template first -> what it is filled with.
FILLED: dict[str, Callable[[str], dict[str, Any]]] = {
    "web.html.j2": web,
    "web.md.j2": web,
    "evaluation.html.j2": evaluation,
    "evaluation.html.j2, with a picture": evaluation_page,
    "evaluation.md.j2": evaluation,
    "tune.md.j2": tune,
    "card.md.j2, insert": card("insert"),
    "card.md.j2, insert in doubt": card("insert", doubt=True, local=True),
    "card.md.j2, fold": card("fold"),
    "card.md.j2, an approximate fold": card("fold", approximate=True),
    "card.md.j2, adapter": card("adapter"),
    "card.md.j2, a bare adapter": card("adapter", bare=True, local=True),
    "card.md.j2, onnx": card("onnx"),
    "edit_card.md.j2": edit_card(),
    "edit_card.md.j2, bare": edit_card(bare=True),
    "card.md.j2, bare": card("fold", bare=True, edits=[], verification=None, revision=None),
    "report.html.j2, insert": report("insert"),
    "report.html.j2, an approximate fold": report("fold", approximate=True),
    "report.html.j2, in doubt": report("onnx", doubt=True, bare=True),
    "report.html.j2, unverified": report("fold", bare=True, doubt=True, verification=None),
    "report.html.j2, an edit": report(None, bare=True),
}
PARTS = {"base.html.j2", "macros.html.j2", "macros.md.j2"}


class Elements(HTMLParser):
    """Every element of a page with the names of its attributes; and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: Counter[tuple[str, ...]] = Counter()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found[(tag, *(name for name, _ in attributes))] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def markdown_it() -> MarkdownIt:
    """A renderer that takes any address for one, where others leave out what they know to be dangerous."""
    made = MarkdownIt("commonmark").enable("table")
    made.validateLink = lambda url: True  # type: ignore[method-assign]
    return made


def structure(name: str, page: str) -> Counter[Any]:
    """What a reader makes of a page besides text: elements; of Markdown its blocks, links, pictures and HTML."""
    if name.endswith(".html.j2"):
        return Elements(page).found
    tokens = markdown_it().parse(page)
    inner = [child for token in tokens for child in token.children or ()]
    return Counter(t.type for t in [*tokens, *inner] if t.type not in ("text", "text_special", "softbreak"))


def addresses(page: str) -> set[str]:
    """Where the links and pictures of Markdown lead."""
    inner = [c for t in markdown_it().parse(page) for c in t.children or ()]
    return {str(child.attrs.get("href", child.attrs.get("src", ""))) for child in inner}


BEGINNINGS = (
    "# H",
    "- item",
    "+ item",
    "1. item",
    "2) item",
    "---",
    "===",
    "~~~",
    "```",
    "    x",
    "> q",
    "* x",
    "_a_ __b__",
)


@pytest.mark.parametrize("evil", [EVIL, *BEGINNINGS])
@pytest.mark.parametrize("which", FILLED)
def test_nothing_that_is_put_into_a_template_is_more_than_text(which: str, evil: str) -> None:
    name = which.partition(",")[0]
    make = templates.html if name.endswith(".html.j2") else templates.markdown
    page, quiet = (make(name, **FILLED[which](text)) for text in (evil, "quite plain"))
    assert structure(name, page) == structure(name, quiet)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    if name.endswith(".md.j2"):
        assert not [there for there in addresses(page) - addresses(quiet) if ":" in there.replace("https://hugg", "")]
        bare = re.sub(r"(`+)[^`].*?\1|\]\(\S*\)", "", page, flags=re.DOTALL)
        assert "http://evil" not in bare  # which some renderers make a link of by itself
        assert "www.evil" not in bare


@pytest.mark.parametrize(
    "said", ["a_b _c_ &#91;x&#93; &amp; <b> *d* ~e~ -1 1.5 [f](g) 2. h", "-1.5", "- x", "3. x", "#5", "_"]
)
def test_markdown_shows_what_was_said(said: str) -> None:
    (paragraph,) = [t for t in MarkdownIt("commonmark").parse(plain(said)) if t.type == "inline"]
    assert "".join(child.content for child in paragraph.children or ()) == said


@pytest.mark.parametrize("evil", [EVIL.replace("\ud800", ""), *BEGINNINGS])
def test_front_matter_is_data_to_yaml_and_text_to_others(evil: str) -> None:
    data = {"title": evil, "models": ["a/b", evil], "model-index": [{"name": evil, evil: 1.5}], "plain": "mit"}
    page = front_matter(data)
    assert yaml.safe_load(page.strip("-\n")) == data
    assert harmless(page) == page
    rendered = markdown_it().parse(page)
    assert not {"html_inline", "html_block", "link_open", "image", "code_inline", "fence"} & {
        t.type for token in rendered for t in [token, *(token.children or ())]
    }
    bad = MarkdownIt("commonmark").parse(f"---\n{yaml.safe_dump({'title': '<b> [x](javascript:alert(1))'})}---\n")
    assert {"html_inline"} <= {t.type for token in bad for t in token.children or ()}  # the control


def test_code_shows_what_was_said() -> None:
    for said in ("a`b", "``", "`x", "x`", "plain", 'x"); import os #'):
        (child,) = MarkdownIt("commonmark").parse(f"a{code(said)}")[1].children[1:]  # type: ignore[index]
        assert (child.type, child.content) == ("code_inline", said)
        assert ast.literal_eval(python(said)) == said
        assert shlex.split(shell(said)) == [said]


def test_the_check_sees_what_was_not_escaped() -> None:
    """The control."""
    bad = Markdown("[x](http://evil) <b>bold</b>")
    assert structure("web.md.j2", templates.markdown("web.md.j2", **web(bad))) != structure(
        "web.md.j2", templates.markdown("web.md.j2", **web("plain"))
    )
    assert Elements("<p>a</p>").found != Elements("<p>a<script></script></p>").found


def test_every_template_is_used_and_tested() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {*(which.partition(",")[0] for which in FILLED), *PARTS}
    sources = "".join(path.read_text("utf-8") for path in HOUSE.rglob("*.py"))
    sources += "".join(path.read_text("utf-8") for path in FOLDER.iterdir())
    assert [name for name in sorted(names) if f'"{name}"' not in sources] == []


def test_html_is_written_in_templates_alone() -> None:
    tag = re.compile(r"""["'`]\s*</?(p|h[1-6]|table|tr|td|th|div|section|details|img|html|body|li|ul|span|dt|dd)[ >]""")
    found = [str(p.relative_to(HOUSE)) for p in HOUSE.rglob("*.py") if tag.search(p.read_text("utf-8"))]
    assert found == []


def test_numbers_in_words() -> None:
    assert [p_value(p) for p in (0.0004, 0.0125, 1.0)] == ["<0.001", "0.013", "1.000"]
    assert [size(n) for n in (999, 1_234_567, 2_500_000_000)] == ["999 B", "1.2 MB", "2.50 GB"]


def test_other_texts_stay_as_they_are() -> None:
    said = "Φ-SEA\tk+ ≤ 8\nжук 🦆 \\u202e"
    assert harmless(said) == said
