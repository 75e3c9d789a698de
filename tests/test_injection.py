"""What strangers wrote into names, texts and records is text on every page, card and terminal: nothing is a link, a
picture, HTML or an order to the terminal.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import benchmarks
import exports
import fuzzing
import pytest
import tiny
from bending import places
from rich.console import Console
from test_pages import Elements, markdown_it

from sea_bake import Edit, bake, verify
from sea_bake.artefact import Artefact
from sea_bake.artefact.evaluation import Evaluation
from sea_bake.artefact.names import RECORD, VERIFICATION
from sea_bake.errors import SeaBakeError
from sea_bake.pages.text import harmless

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_answers")]
# As a file may be called, and more than that.
NAME = "evil <img src=x onerror=alert(1)> [x](javascript:alert(1)) ![y](y.png) `c` | \x1b[31m\u202e\x9b2J"
TEXT = f"{NAME}\n\n# H\n</title></p><script>alert(1)</script>\n- <http://evil> http://evil\n"
MARKUP = ("details", "/details", "summary", "/summary")  # of our own in Markdown


def assert_text(said: str) -> None:
    """It holds no order, and the evil is there, spelt out."""
    found = [f"{ord(one):04x}" for one in said if harmless(one) != one]
    assert not found, (found, said[:3000])


def assert_page(name: str, page: str) -> None:
    """No more than our own elements, links and pictures."""
    assert_text(page)
    if name.endswith(".html"):
        elements = Elements(page).found
        assert not [kind for kind in elements if any(attribute.startswith("on") for attribute in kind[1:])]
        assert not [kind for kind in elements if kind[0] == "script" and kind != ("script", "type", "src")]
        addresses = re.findall(r"""<(?:a|img|script|link)\b[^>]*?(?:href|src)=["']?([^"'\s>]*)""", page)
        ours = ("#", "data:", "https://arxiv.org/", "https://pypi.org/", "style.css", "page.js")
        assert not [address for address in addresses if not address.startswith(ours)]
        return
    whole = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL)
    for text in (page, whole):  # also for those who know no front matter
        tokens = markdown_it().parse(text)
        every = [one for token in tokens for one in (token, *(token.children or ()))]
        tags = [tag for t in every if t.type.startswith("html") for tag in re.findall(r"<(/?\w+)", t.content)]
        assert set(tags) <= set(MARKUP), tags
        led = [str(t.attrs.get("href", t.attrs.get("src", ""))) for t in every if t.type in ("link_open", "image")]
        ours = (
            "https://arxiv.org/",
            "https://pypi.org/",
            "https://huggingface.co/",
            "sea_bake.yaml",
            "sea/",
            "pareto.png",
        )
        assert not [address for address in led if not address.startswith(ours)], led


def assert_folder(folder: Path) -> int:
    """Every page and table in it; how many there were."""
    pages = [path for path in folder.rglob("*") if path.suffix in (".md", ".html")]
    for path in pages:
        assert_page(path.name, path.read_text("utf-8"))
    return len(pages)


# --------------------------------------------------------------------------------------------------- names and commands


def run(*words: Any, codes: tuple[int, ...] = (0,)) -> str:
    """What a command said, which is text."""
    ran = tiny.run(*words)
    assert ran.code in codes, (words, ran)
    assert_text(ran.out + ran.err)
    assert "Traceback" not in ran.err
    return ran.out + ran.err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, demonstrations and an edit of evil names."""
    folder = tmp_path_factory.mktemp("evil")
    base = tiny.changeable(exports.base(chat=False), folder / NAME)  # of two layers, for the sake of the export
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"task": TEXT, TEXT: TEXT}))
    data = folder / f"{NAME}.jsonl"
    rows = [
        {"prompt": f"{d.prompt} {TEXT}", "positive": d.positive, "negative": d.negative} for d in tiny.demonstrations()
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    said = run("fit", base, "-d", data, "--neutral", "prompt", "--merge", "sum", "-o", folder / f"{NAME}.safetensors")
    assert "\\u202e" in said
    return folder


@pytest.mark.parametrize("how", ["insert", "fold", "adapter"])
def test_every_command_on_things_of_evil_names(place: Path, tmp_path: Path, how: str) -> None:
    base, edit, out = place / NAME, place / f"{NAME}.safetensors", tmp_path / f"out {NAME}"
    data, neutral = benchmarks.write(tmp_path / "data"), tmp_path / "neutral.txt"
    for file in (path for path in data.rglob("*") if path.is_file()):
        file.write_text(
            file.read_text("utf-8").replace("grandfather", f"grandfather {json.dumps(TEXT)[1:-1]}"), "utf-8"
        )
    neutral.write_text(f"A paragraph {TEXT.split(chr(10))[0]}.\n\nAnother one, {NAME}.\n", "utf-8")
    run("bake", base, edit, "-o", out, "--how", how)
    for words in (
        ("plan", base, edit),
        ("inspect", edit),
        ("inspect", out),
        ("inspect", out, "--json"),
        ("verify", out, "--base", base, "--max-new-tokens", 2),
        ("eval", out, "--base", base, "--data", data, "--tasks", "bbq", "--limit", 2, "--neutral-text", neutral,
         "--write"),
        ("eval", base, "--edit", edit, "--data", data, "--tasks", "bbq", "--limit", 2, "--neutral-text", neutral,
         "-o", tmp_path / f"evaluation {NAME}"),
        ("report", out, "--write"),
        ("report", edit, "-o", tmp_path / f"report {NAME}", "--model", base, "-d", place / f"{NAME}.jsonl"),
        ("publish", out, "ada/x", "--dry-run", "--base-model", "tiny/llama"),
        ("reproduce", out, "--model", base, "-d", place / f"{NAME}.jsonl"),
        ("unbake", out, "--base", base, "-o", tmp_path / f"again {NAME}"),
    ):  # fmt: skip
        run(*words, codes=(0, 1, 2) if words[0] in ("reproduce", "unbake") else (0,))
    assert assert_folder(tmp_path) >= 4


def test_an_export_and_its_page_of_evil_names(place: Path, tmp_path: Path) -> None:
    out = tmp_path / NAME
    run("bake", place / NAME, place / f"{NAME}.safetensors", "-o", out, "--how", "insert")
    run("export", "onnx", out, "-o", tmp_path / f"onnx {NAME}")
    run("verify", tmp_path / f"onnx {NAME}", "--base", place / NAME, "--max-new-tokens", 2)
    for title in ((), ("--title", TEXT)):
        run("serve-web", tmp_path / f"onnx {NAME}", "-o", tmp_path / f"web {NAME}", *title, "--overwrite")
        assert assert_folder(tmp_path / f"web {NAME}") == 2
    run("publish", tmp_path / f"onnx {NAME}", "ada/x", "--dry-run", "--base-model", "tiny/llama")


def test_tuning_of_evil_names(place: Path, tmp_path: Path) -> None:
    words = ("--site", "mlp", "--merge", "sum", "--layers", "0,1", "--trials", 1, "--neutral", "prompt")
    run("tune", place / NAME, *words, "-d", evil_triples(tmp_path), "-o", tmp_path / NAME)
    assert assert_folder(tmp_path / NAME) == 1


def evil_triples(folder: Path) -> Path:
    path = folder / f"{NAME}.jsonl"
    found = tiny.demonstrations(60)
    rows = [{"prompt": f"{d.prompt} {NAME}", "positive": d.positive, "negative": d.negative} for d in found]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_errors_of_every_command(place: Path, tmp_path: Path) -> None:
    """Names of what is not there, of what is none, and of wrong values."""
    gone, file = tmp_path / "no" / NAME, tmp_path / NAME
    file.write_bytes(b"{" + TEXT.encode())
    recipe = tmp_path / f"{NAME}.yaml"
    recipe.write_text(f"model: {json.dumps(NAME)}\n{json.dumps(NAME)}: 1\n")
    for thing in (gone, file, recipe, NAME, f"./{NAME}"):
        for words in (
            ("fit", thing), ("fit", place / NAME, "-d", thing), ("plan", thing), ("bake", thing, thing, "-o", thing),
            ("bake", place / NAME, thing, "-o", tmp_path / "x"), ("verify", thing), ("inspect", thing),
            ("eval", thing), ("eval", place / NAME, "--tasks", thing), ("report", thing, "-o", tmp_path / "y"),
            ("export", "onnx", thing, "-o", tmp_path / "z"), ("export", "gguf", thing, "-o", f"{NAME}.gguf"),
            ("publish", thing, thing, "--dry-run"), ("unbake", thing, "-o", tmp_path / "u"), ("run", thing),
            ("serve-web", thing), ("reproduce", thing), ("import", thing, thing, "--base", thing),
            ("fit", place / NAME, "--site", NAME), ("fit", place / NAME, "--limit", NAME),
            ("fit", NAME, NAME, NAME, NAME), (NAME,), ("fit", f"--{NAME}"), ("fit", place / NAME, "-K", NAME),
            ("fit", place / NAME, "--layers", NAME),
        ):  # fmt: skip
            run(*words, codes=(1, 2))


# -------------------------------------------------------------------------------------------------------------- records


def spoilt(valid: Any, accepted: Callable[[Any], bool]) -> Any:
    """A JSON value in which every string that a reader takes for any text is evil."""
    value = copy.deepcopy(valid)
    count = 0
    for path in list(places(valid)):
        parent = functools.reduce(lambda v, k: v[k], path[:-1], value)
        was = parent[path[-1]]
        if not isinstance(was, str):
            continue
        parent[path[-1]] = TEXT
        if accepted(value):
            count += 1
        else:
            parent[path[-1]] = was
    assert count > 0
    return value


def accepts(read: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def tried(value: Any) -> bool:
        try:
            read(value)
        except (SeaBakeError, ValueError):
            return False
        return True

    return tried


def text_of(show: Callable[[Any], None]) -> str:
    from sea_bake.cli.printing import prepare

    console = prepare(quiet=False)
    assert isinstance(console, Console)
    console.file = io.StringIO()
    show(console)
    return console.file.getvalue()


def test_an_evaluation_is_text_on_every_page() -> None:
    from sea_bake.cli.eval import show
    from sea_bake.evaluation import rendering
    from sea_bake.reporting.page import page
    from sea_bake.reporting.subject import Subject

    data = spoilt(fuzzing.evaluation(), accepts(lambda value: rendering.markdown(Evaluation.from_json(value))))
    found = Evaluation.from_json(data)
    assert_page("evaluation.md", rendering.markdown(found))
    assert_page("evaluation.html", rendering.page(found))
    assert_text(text_of(lambda console: show(found, console)))
    subject = Subject.open(tiny.edit_file())
    assert_page("report.html", page(subject, [], [], found, [], found.samples))
    assert json.dumps(data).count("onerror") > 10


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    artefact = bake(tiny.single(), tiny.edit_file(), folder / "artefact", how="insert").output
    verify(artefact, base=tiny.single(), prompts=["Why?"], max_new_tokens=2)
    return artefact


def pages_of(folder: Path) -> Iterator[tuple[str, str]]:
    """All that is shown of an artefact; what one reader refuses, the others may show."""
    from sea_bake.publishing.card import render
    from sea_bake.publishing.licence import Licence
    from sea_bake.reporting.page import page
    from sea_bake.reporting.subject import Subject

    found = Artefact.open(folder)
    licence = Licence("other", TEXT, TEXT, "https://example.org/a(b)")
    results = found.evaluation.headlines if found.evaluation else []
    yield (
        "README.md",
        render(found, "ada/x", licence=licence, base_card={"language": TEXT}, datasets=[TEXT]).replace(
            "https://example.org/", "https://huggingface.co/"
        ),
    )
    assert results == []
    yield "report.html", page(Subject.open(folder), [], [], None, [], [{"prompt": TEXT, "base": TEXT, "edited": TEXT}])


@pytest.mark.parametrize("name", [RECORD, VERIFICATION])
def test_an_artefacts_records_are_text_on_every_page(verified: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(verified, tmp_path / "artefact"))
    valid = json.loads((folder / name).read_text("utf-8"))

    def read(value: Any) -> None:
        (folder / name).write_text(json.dumps(value), "utf-8")
        list(pages_of(folder))

    data = spoilt(valid, accepts(read))
    read(data)
    for page, text in pages_of(folder):
        assert_page(page, text)
    run("inspect", folder)
    run("publish", folder, "ada/x", "--dry-run", "--base-model", "tiny/llama", "--unverified", codes=(0, 2))


def test_an_edit_is_text_on_every_page(verified: Path, tmp_path: Path) -> None:
    """Its header: the base's name and all that the fit has left in the recipe."""
    edit = Edit.load(tiny.edit_file())
    recipe = json.loads(json.dumps(edit.recipe))
    strings = [path for path in places(recipe)]
    for path in strings:
        parent = functools.reduce(lambda v, k: v[k], path[:-1], recipe)
        if isinstance(parent[path[-1]], str):
            parent[path[-1]] = TEXT
    recipe |= {TEXT: TEXT, "imported": TEXT, "demonstrations_from": {"kind": "file", "source": TEXT}}
    from dataclasses import replace

    evil = replace(edit, recipe=recipe, base=replace(edit.base, name=NAME))
    evil.save(tmp_path / "edit.safetensors")
    run("inspect", tmp_path / "edit.safetensors")
    run("report", tmp_path / "edit.safetensors", "-o", tmp_path / "report")
    run("bake", tiny.single(), tmp_path / "edit.safetensors", "-o", tmp_path / "out", "--how", "insert")
    run("inspect", tmp_path / "out")
    for page, text in pages_of(tmp_path / "out"):
        assert_page(page, text)
    assert assert_folder(tmp_path / "report") == 1


def test_what_is_looked_for_is_seen() -> None:
    """The controls."""
    for page in ("<p onclick=x>", "<img src=x>", "<script>alert(1)</script>", '<a href="javascript:x">x</a>', "a\x1bb"):
        with pytest.raises(AssertionError):
            assert_page("a.html", page)
    for page in ("<b>x</b>", "[x](javascript:alert(1))", "![x](http://evil/x.png)", "a\u202eb", "---\na: <b>\n---\n"):
        with pytest.raises(AssertionError):
            assert_page("a.md", page)
    assert Counter(harmless(TEXT))["\\"] == 3
