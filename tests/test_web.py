"""The page of ``serve-web``: what is written, what is refused, and two tiny models in headless Chromium."""

from __future__ import annotations

import html.parser
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlencode
from urllib.request import Request, urlopen

import exports
import pytest
import tiny
import torch
import yaml
from javascript import NODE, needs_chromium, needs_node, node

from sea_bake import Edit
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import encode
from sea_bake.artefact.names import EXPORT
from sea_bake.artefact.web_record import WebRecord
from sea_bake.errors import CheckpointError, OutputError, SettingError
from sea_bake.exporting.web import libraries, precision, serve_web
from sea_bake.exporting.web.local import hosted
from sea_bake.exporting.web.models import WebModel
from sea_bake.exporting.web.pages import asset
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.pages import templates


def plain() -> Path:
    return exports.export(exports.artefact(), "fixed", quantize=("int8",))


def unedited() -> Path:
    return exports.export(exports.base(), "unedited", unedited=True, quantize=("int8",))


class Page(html.parser.HTMLParser):
    """Tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.slow
def test_one_download_serves_both_sides(tmp_path: Path) -> None:
    export = exports.strong()
    before = tiny.snapshot(export)
    ran = tiny.run("serve-web", export, "-o", tmp_path / "site", "--json")
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(ran.out)
    assert (report["sides"], report["strength"], report["models"]) == (
        ["base", "edited"],
        True,
        {"edited": "models/edited"},
    )
    assert report["libraries"]["transformers"].startswith("https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.")
    site = tmp_path / "site"
    assert tiny.listing(site) == {
        *("index.html", "style.css", "page.js", "worker.js", "site.json", "README.md", "models", "sea")
    }
    weights = site / "models/edited/onnx/model.onnx_data"
    assert os.path.samefile(weights, export / "onnx/model.onnx_data")
    assert not os.path.samefile(site / "models/edited/config.json", export / "config.json")
    downloaded = sum(p.stat().st_size for p in (export / "onnx").iterdir())
    assert downloaded < report["graphs"]["fp32"] < downloaded + 50_000
    import onnx

    graph = onnx.load(site / "models/edited/onnx/model.onnx", load_external_data=False).graph
    assert "sea_strength" in {i.name for i in graph.input} - {i.name for i in graph.initializer}
    assert tiny.snapshot(export) == before
    assert str(tmp_path) not in "".join(p.read_text("utf-8") for p in site.iterdir() if p.is_file())
    serve_web(export, site, copy=True, overwrite=True)
    assert not os.path.samefile(weights, export / "onnx/model.onnx_data")


def test_the_page_is_plain_and_closed() -> None:
    """No code in the HTML, a policy that allows none, a label for each field."""
    page = Page(templates.html("web.html.j2", title="t", sides=["base", "edited"], facts=[], size="", examples=["x"]))
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "module", "src": "page.js"}]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    for name in ("page.js", "worker.js", "style.css"):
        assert not re.search(r"https?://", asset(name)), name
    assert not re.search(r"innerHTML|eval\(|document\.write|insertAdjacentHTML", asset("page.js") + asset("worker.js"))
    for words in ("prefers-color-scheme", "prefers-reduced-motion", ":focus-visible"):
        assert words in asset("style.css")


@pytest.mark.slow
def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)"> & $title'
    export = tiny.changeable(plain(), tmp_path / "export")
    tiny.patch_json(export / EXPORT, base=evil)
    site = serve_web(export, tmp_path / "site", title=f"{evil}\n---\nsdk: docker").output
    page = Page((site / "index.html").read_text("utf-8"))
    assert "img" not in {tag for tag, _ in page.tags}
    assert evil in page.text
    front = yaml.safe_load((site / "README.md").read_text("utf-8").split("\n---\n")[0].removeprefix("---\n"))
    assert (front["sdk"], front["app_file"]) == ("static", "index.html")
    assert evil in front["title"]


@pytest.mark.slow
def test_a_space_knows_it(tmp_path: Path) -> None:
    export = tiny.changeable(plain(), tmp_path / "export")
    tiny.patch_json(export / EXPORT, base="someone/model")
    site = serve_web(export, tmp_path / "site").output
    _, matter, text = (site / "README.md").read_text("utf-8").split("---\n", 2)
    front = yaml.safe_load(matter)
    assert front["models"] == ["someone/model"]
    assert front["title"] == "model, edited"
    assert front["custom_headers"]["cross-origin-opener-policy"] == "same-origin"
    assert re.search(r"linear SEA on \S+: mlp of layers 0-1, merge l2, per layer ", text)
    assert "- Proof: not verified" in text


@pytest.mark.slow
def test_only_a_verification_of_these_files_is_quoted(tmp_path: Path) -> None:
    export = tiny.changeable(exports.strong(), tmp_path / "export")
    assert tiny.run("verify", export, "--base", exports.base()).code == 0
    page = (serve_web(export, tmp_path / "site").output / "index.html").read_text("utf-8")
    assert "verified: in ONNX Runtime" in page
    assert "% of positions" in page
    tiny.patch_json(export / "generation_config.json", temperature=0.5)
    page = (serve_web(export, tmp_path / "changed").output / "index.html").read_text("utf-8")
    assert "in ONNX Runtime" not in page


@needs_node
def test_the_hashes_are_those_of_npm(tmp_path: Path) -> None:
    found = libraries.installed(NODE / "node_modules")
    assert {name: libraries.integrity(path) for name, path in found.items()} == {
        name: file.integrity for name, file in libraries.LIBRARIES.items()
    }
    other = tiny.changeable(NODE / "node_modules" / "@huggingface" / "transformers" / "dist", tmp_path / "dist")
    folder = tmp_path / "node_modules"
    (folder / "@huggingface" / "transformers").mkdir(parents=True)
    other.rename(folder / "@huggingface" / "transformers" / "dist")
    with pytest.raises(CheckpointError, match=r"asyncify\.mjs is missing.*npm install --ignore-scripts"):
        libraries.installed(folder)
    (folder / "@huggingface/transformers/dist/transformers.min.js").write_text("other")
    with pytest.raises(CheckpointError, match=r"transformers\.min\.js is not that of 4\.3\.1"):
        libraries.installed(folder)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.slow
def test_bad_input_is_one_clear_error(tmp_path: Path) -> None:
    strong, fixed, base = exports.strong(), plain(), unedited()
    other = tiny.changeable(base, tmp_path / "other")
    tiny.patch_json(other / EXPORT, base="another")
    bare = tiny.changeable(fixed, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    silent = tiny.changeable(fixed, tmp_path / "silent")
    tiny.patch_json(silent / "config.json", **{"transformers.js_config": None})
    gguf = tiny.changeable(fixed, tmp_path / "gguf")
    tiny.patch_json(gguf / EXPORT, format="gguf")
    cases: list[tuple[list[Any], str, str]] = [
        ([exports.base()], "CheckpointError", "is not an artefact of sea_bake"),
        ([gguf], "CheckpointError", "is an export to 'gguf'"),
        ([bare], "CheckpointError", "tokenizer.json is missing"),
        ([silent], "CheckpointError", "lacks transformers.js_config"),
        ([base], "SettingError", "the export of an unedited model"),
        ([fixed, "--graph", "int4"], "SettingError", "has no graph int4, but fp32"),
        ([fixed, "--graph", "q4"], "SettingError", "unknown graph 'q4'"),
        ([strong, "--base", base], "SettingError", "drop --base"),
        ([fixed, "--base", other], "SettingError", "is not the unedited export"),
        ([fixed, "--base", fixed], "SettingError", "is not the unedited export"),
        ([fixed, "--model-url", "http://example.org/m"], "SettingError", "must be an https address"),
        ([strong, "--model-url", "https://example.org/m"], "SettingError", "cannot set a strength that has a default"),
        ([fixed, "--offline", base], "CheckpointError", "npm install --ignore-scripts"),
    ]
    for arguments, kind, words in cases:
        with tiny.nothing_happens(tmp_path, fixed):
            tiny.refused(tiny.run("serve-web", *arguments, "-o", tmp_path / "site"), kind, words)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(OutputError, match="remove it yourself"):
        serve_web(fixed, tmp_path / "mine", overwrite=True)
    site = serve_web(fixed, tmp_path / "far", model_url="https://example.org/a/model/").output
    assert tiny.listing(site) & {"models"} == set()
    assert json.loads((site / "site.json").read_text())["models"]["edited"]["url"] == "https://example.org/a/model"
    record = json.loads((site / EXPORT).read_text("utf-8"))
    assert WebRecord.from_json(record).to_json() == record
    for spoilt in ({"format": "onnx"}, {"sides": ["left"]}, {"sides": []}, {"base": None}):
        with pytest.raises(ValueError, match=r"it is no record|sides is|base is"):
            WebRecord.from_json(record | spoilt)
    text = " ".join(tiny.run("serve-web", "--help").out.split())
    for words in ("--strength", "jsDelivr", "Hugging Face Space", "hard-linked"):
        assert words in text


def test_a_look_at_it_stays_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello")
    with hosted(tmp_path) as address:
        assert address.startswith("http://127.0.0.1:")
        with urlopen(address) as answer:
            assert answer.read() == b"hello"
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"{address}../{tmp_path.name}/../secret")
        with urlopen(address.replace("127.0.0.1", "localhost")) as answer:
            assert answer.read() == b"hello"
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(SettingError, match="--port"), hosted(tmp_path, port):
            pass


def test_a_look_shows_the_sites_own_files_alone(tmp_path: Path) -> None:
    """No listing, no hidden file, nothing behind a link, no answer to a page that gives this machine its own name."""
    site, secret = tmp_path / "site", tmp_path / "secret"
    (site / "models").mkdir(parents=True)
    secret.mkdir()
    (secret / "key").write_text("mine")
    for name in ("index.html", "models/config.json", ".env", "models/.git"):
        (site / name).write_text(name)
    (site / "key").symlink_to(secret / "key")
    (site / "folder").symlink_to(secret, target_is_directory=True)
    os.mkfifo(site / "pipe")
    with hosted(site) as address:
        assert urlopen(f"{address}models/config.json").read() == b"models/config.json"
        for name in ("models/", "models", ".env", "models/.git", "key", "folder/key", "folder/", "pipe", "nothing"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(f"{address}{name}", timeout=10)
        for host in ("evil.example", f"evil.example:{address.rstrip('/').rpartition(':')[2]}", "127.0.0.1:1", ""):
            with pytest.raises(HTTPError, match="421"):
                urlopen(Request(address, headers={"Host": host}), timeout=10)


def test_a_precision_beside_the_edit() -> None:
    """Both figures from the export; of a fold, one from its verification; where nobody measured, that is said."""

    def words(distance: dict[str, Any], report: Any = None, graph: str = "int8") -> dict[str, str]:
        record, artefact = (
            SimpleNamespace(variants={"int8": {"distance": distance}}),
            SimpleNamespace(verification=report),
        )
        return precision.words(cast(WebModel, SimpleNamespace(record=record, artefact=artefact)), graph)

    effect, rounded = SimpleNamespace(mean_kl=0.4), SimpleNamespace(equality=SimpleNamespace(mean_kl=0.5))
    report = SimpleNamespace(passed=True, effect=effect, variants={"fp16": rounded})
    full = {"mean_kl": 9.0, "base_kl": 0.01, "edit_kl": 0.2}
    said = words(full, report)
    assert said["note"] == "KL per token from the base: by 8 bits alone 0.01 nats, by the edit 0.2."
    assert said["warning"] == ""
    assert "a quarter of the speed of 32 bits (measured once, on SmolLM2" in said["slow"]
    assert not any(words(full, graph="fp32").values())
    assert "32 bits tell" in words(full | {"base_kl": 0.2})["warning"]
    assert words({"mean_kl": 0.1}, report)["note"].endswith("by 8 bits alone 0.1 nats, by the edit 0.4.")
    assert words({}, report, "fp16")["note"].endswith("by 16 bits alone 0.5 nats, by the edit 0.4.")
    assert words({}, report, "fp16")["warning"]
    assert not words({}, report, "fp16")["slow"]
    report.passed = False
    for distance in ({"mean_kl": 0.1}, {"mean_kl": 0.1, "edit_kl": "0.2"}, {}):
        assert "was not measured (sea-bake verify does it)" in words(distance, report)["note"]
        assert words(distance, report)["warning"] == ""


# ------------------------------------------------------------------------------------------------------------- Chromium


@pytest.mark.slow
@needs_chromium
def test_two_exports_side_by_side(tmp_path: Path) -> None:
    """No strength, so a model for each side; a library that is not what it was is not run."""
    model, tokenizer = load_model(exports.base()), load_tokenizer(exports.base())
    edit = Edit.load(plain() / "sea" / "edit-0.safetensors")
    prompt = "What is the capital of <b>France</b>?"

    def greedy(text: str, *before: tuple[str, str]) -> str:
        ids = torch.tensor([encode(tokenizer, text, form=PromptFormat(primer=before)).ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    base = greedy(prompt)
    next_base = greedy("Why?", (prompt, base))
    with edit.live(model):
        edited, alone = greedy(prompt), greedy("Why?")
        next_edited, mixed = greedy("Why?", (prompt, edited)), greedy("Why?", (prompt, base))
    # The controls: another answer without what was said, and with what the other side said.
    assert base != edited
    assert next_base != next_edited
    assert next_edited not in (alone, mixed)
    export = tiny.changeable(plain(), tmp_path / "export")
    record = json.loads((export / EXPORT).read_text("utf-8"))
    record["variants"]["int8"]["distance"] |= {"base_kl": 0.25, "edit_kl": 0.125}
    tiny.patch_json(export / EXPORT, **record)
    graphs = ["int8", "fp32"]
    site = serve_web(export, tmp_path / "site", base=unedited(), graphs=graphs, offline=NODE / "node_modules").output
    worker = site / "worker.js"
    worker.write_text(worker.read_text("utf-8").replace("32 << 20", "50 << 10"), "utf-8")  # files kept in many parts
    link = f"#{urlencode({'prompt': '<i>&é', 'strength': 'x', 'length': 128, 'graph': 'int4', 'device': 'toaster'})}"
    asks: list[dict[str, Any]] = [{"prompt": prompt, "length": 32}, {"prompt": "Why?", "length": 32}]
    asks.append({"prompt": "Why?", "length": 64, "graph": "int8", "fresh": True})
    with hosted(site) as address:
        seen = node("page.mjs", url=address, link=link, asks=asks, again=True)
        told, further, rounded = seen["answers"]
        assert (told["base"], told["edited"]) == (base, edited)
        # each side goes on from its own answers; a new conversation knows nothing of them
        assert (further["base"], further["edited"]) == (next_base, next_edited)
        assert (told["earlier"], rounded["earlier"], rounded["asked"]) == ([], [], "Why?")
        assert further["earlier"] == [[prompt, base, edited]]
        assert seen["problems"] == []
        assert seen["labels"] == []  # every field has a name
        assert not seen["slider"]
        # fp32 first, of a link what there is, and nothing loaded by it
        settings = {"prompt": "<i>&é", "strength": "1", "length": "128", "graph": "fp32"}
        assert seen["begins"] == settings | {"precision": "", "warning": ""}
        # a blank prompt is refused, until there is another; the box says that the prompt is read
        assert told["refused"] == ["There is no prompt: write one first.", ""]
        for side in ("base", "edited"):
            assert list(dict.fromkeys(told["waits"][side])) == ['"Waits for its turn"', '"Reading the prompt"']
        # another precision, without a new page; what it does beside the edit, and how fast it is here
        assert (told["status"], rounded["status"]) == tuple(f"Ready: {n} bits, on the processor." for n in (32, 8))
        assert rounded["precision"].startswith(
            "KL per token from the base: by 8 bits alone 0.25 nats, by the edit 0.12."
        )
        assert re.search(r"Measured here: 32 bits [\d.]+, 8 bits [\d.]+ tokens per second\.$", rounded["precision"])
        assert "8 bits change this model as much as the edit does" in rounded["warning"]
        # what was said, copied; and the settings, in a link that a reload follows
        head = f"{seen['title']}\nBase: {record['base']}"
        assert [copy.split("\n\n---\n\n") for copy in seen["copies"]] == [[
            head,
            f"Prompt (32 bits, at most 32 tokens):\n{prompt}\n\nBase:\n{base}\n\nEdited:\n{edited}",
            f"Prompt (32 bits, at most 32 tokens):\nWhy?\n\nBase:\n{next_base}\n\nEdited:\n{next_edited}",
        ]]  # fmt: skip
        assert seen["copy"].split("\n\n---\n\n") == [
            head,
            f"Prompt (8 bits, at most 64 tokens):\nWhy?\n\nBase:\n{rounded['base']}\n\nEdited:\n{rounded['edited']}",
        ]
        shared = seen["share"].removeprefix(f"{address}#")
        assert parse_qs(shared) == {"prompt": ["Why?"], "length": ["64"], "graph": ["int8"], "device": ["wasm"]}
        assert seen["again"] == {"prompt": "Why?", "strength": "1", "length": "64", "graph": "int8"}
        # the second visit takes the model from what the first one kept; what stands behind a "#" is sent to nobody
        assert not [url for url in seen["fetched"] if url.startswith("models/")]
        assert [url for url in seen["requests"] if url.endswith("onnx_data")]
        assert not [url for url in seen["requests"] if "Why" in url.partition("#")[0]]
        script = site / "libraries" / "transformers.min.js"
        script.write_text(script.read_text("utf-8") + "\n", "utf-8")
        seen = node("page.mjs", url=address, asks=[{"prompt": prompt, "length": 32}])
        assert "libraries/transformers.min.js cannot be reached, or has not the hash" in seen["status"]
        assert seen["answers"][0]["edited"] == ""
