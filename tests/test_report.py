"""The report on an edit: its numbers against dense projectors, its page in a browser, and its way to the model card."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import benchmarks
import pytest
import tiny
import torch
from javascript import needs_chromium, node

from sea_bake import Activations, Edit, bake, evaluate, fit, report, verify
from sea_bake.artefact import Artefact
from sea_bake.artefact.names import EVALUATION, PAGE, PAGE_NUMBERS
from sea_bake.artefact.seal import broken
from sea_bake.demonstrations import load
from sea_bake.errors import EvaluationError, OutputError, PublishError, SettingError
from sea_bake.pages import templates
from sea_bake.publishing import publish
from sea_bake.reporting.projection import project, separation

ROLES = ("positive", "negative", "neutral")
LAYERS = (1, 2, 3)  # of four, so that one stands unedited
EVIL = "<script>alert(1)</script> \"'><img src=http://example.org/x.png onerror=alert(2)> $x^{ \x0b"


class Fitted:
    """A tiny edit of layers 1 to 3, its activations of all layers, and the files of both."""

    def __init__(self, folder: Path) -> None:
        self.acts, self.path = folder / "acts.safetensors", folder / "edit.safetensors"
        self.edit = fit(
            tiny.single(),
            tiny.demonstrations(),
            layers=LAYERS,
            K=0.9,
            neutral="prompt",
            save_activations=self.acts,
            **tiny.PAPER,
        )
        self.edit.save(self.path)
        self.activations = Activations.load(self.acts)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return Fitted(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def artefact(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baked, verified, evaluated. Not to be changed."""
    folder = tmp_path_factory.mktemp("artefact")
    made = bake(tiny.single(), fitted.edit, folder / "tiny-sea", how="insert", copy=True).output
    assert verify(made, base=tiny.single(), max_new_tokens=4).passed
    data = benchmarks.write(folder / "data")
    evaluate(made, base=tiny.single(), data=data, tasks=["truthfulqa_mc2", "bbq"], write=True)
    return made


@pytest.fixture(scope="module")
def output(artefact: Path, fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact's report. Not to be changed."""
    folder = tmp_path_factory.mktemp("report") / "out"
    report(artefact, activations=fitted.acts, output=folder)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, text, and tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.tables: list[list[list[str]]] = []
        self.text, self.inside = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside:
            self.tables[-1][-1][-1] += data

    def table(self, *head: str) -> list[list[str]]:
        return [row for rows in self.tables if rows[0][: len(head)] == list(head) for row in rows[1:]]


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text("utf-8"))


def faults(seen: dict[str, Any], url: str) -> list[str]:
    """What must not be seen in a browser: an error, a request beside the page's own, a figure that is none."""
    found = list(seen["problems"]) + [f"asked for {asked}" for asked in seen["requests"] if asked != url]
    found += [f"no picture: {i['alt']}" for i in seen["images"] if not (i["complete"] and i["width"] and i["alt"])]
    found += [] if all(seen["anchors"]) else ["a link of the contents that leads nowhere"]
    return found + (["wider than the window"] if seen["scrolls"] else [])


def look(path: Path, **how: Any) -> dict[str, Any]:
    return node("report.mjs", url=path.as_uri(), **how)


# -------------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.slow
@needs_chromium
def test_the_page_opens_in_a_browser(output: Path) -> None:
    """Every figure decodes, nothing complains, nothing else is asked for; on a telephone and in the dark too."""
    path = output / "report.html"
    seen = look(path)
    assert faults(seen, path.as_uri()) == []
    assert seen["title"] == "Report: tiny-sea"
    assert seen["headings"] == [
        "What was edited",
        "Is it the edit?",
        "Gain and cost",
        "What the fit found in each layer",
        "How far activations move",
        "Before and after",
        "Answers side by side",
        "Provenance",
    ]
    drawn = {p.name for p in (output / "figures").iterdir()}
    assert drawn == {
        f"{n}.png" for n in ("differences", "bbq-categories", "spectra", "layers", "movement", "projection")
    }
    assert len(seen["images"]) == len(drawn)
    assert "Verified: it answers like the edit" in seen["text"]
    dark = look(path, scheme="dark", width=360)
    assert faults(dark, path.as_uri()) == []
    assert (seen["background"], dark["background"]) == ("rgb(255, 255, 255)", "rgb(20, 20, 20)")


@pytest.mark.slow
@needs_chromium
def test_the_browser_sees_what_it_should(tmp_path: Path) -> None:
    """The control: an image from elsewhere, a picture that is none, a script, a link to nowhere, too wide a thing."""
    body = (
        '<nav><a href="#nowhere">x</a></nav><img alt="far" src="http://example.org/x.png">'
        '<img alt="bad" src="data:image/svg+xml;base64,PHN2ZyA+PA=="><script>alert(1)</script>'
        '<div style="width:3000px">wide</div>'
    )
    free, bound = tmp_path / "free.html", tmp_path / "bound.html"
    free.write_text(f"<!doctype html><title>x</title>{body}")
    found = "\n".join(faults(look(free), free.as_uri()))
    for fault in ("http://example.org", "no picture: far", "no picture: bad", "dialog: 1", "nowhere", "wider"):
        assert fault in found, fault
    page = templates.html("base.html.j2", title="x")
    assert "<body>\n" in page
    bound.write_text(
        page.replace("<body>\n", f"<body>\n{body}")
    )  # our pages' policy: neither the script nor the request comes about
    seen = look(bound)
    assert (seen["requests"], seen["blocked"]) == ([bound.as_uri()], ["http://example.org/x.png"])
    assert not any("dialog" in problem for problem in seen["problems"])
    assert any("Content Security Policy" in problem for problem in seen["problems"])


@pytest.mark.slow
def test_the_figures_are_files_too(output: Path) -> None:
    from matplotlib import image as pixels

    for path in (output / "figures").iterdir():
        found = pixels.imread(path)
        assert float((found[:, :, :3].min(-1) < 0.9).mean()) > 0.005, f"{path.name} is empty"


# ---------------------------------------------------------------------------------------------------------- the numbers


def dense(edit: Edit, layer: int, H: torch.Tensor, *, length_kept: bool = True) -> torch.Tensor:
    """SEA by its formula, with d x d projectors, in float64."""
    projector = edit.projectors[layer]
    U, V = projector.positive.double().T, projector.negative.double().T
    P_pos, P_neg = U @ U.T, torch.eye(len(V), dtype=torch.float64) - V @ V.T
    y = H @ P_pos.T + H @ P_neg.T
    return y * (H.norm(dim=1) / y.norm(dim=1))[:, None] if length_kept else y


@pytest.mark.slow
def test_movement_against_dense_projectors(output: Path, fitted: Fitted) -> None:
    """Every number of the section, on the page and behind it. The control: without the merge they are others."""
    (told,) = json.loads((output / PAGE_NUMBERS).read_text())["edits"]
    rows = {row[0]: row[1:] for row in page_of(output).table("layer", "positive, change (%)")}
    assert sorted(rows) == sorted(told["layers"]) == [str(layer) for layer in LAYERS]
    for layer in LAYERS:
        shown, other = [], []
        for role in ROLES:
            h = getattr(fitted.activations, role)[fitted.activations.layers.index(layer)].double()
            y, unscaled = dense(fitted.edit, layer, h), dense(fitted.edit, layer, h, length_kept=False)
            relative = (y - h).norm(dim=1) / h.norm(dim=1)
            cosine = torch.nn.functional.cosine_similarity(h, y, dim=1)
            expected = [torch.quantile(v, torch.tensor([0.25, 0.5, 0.75]).double()) for v in (relative, cosine)]
            moved = told["layers"][str(layer)]["moved"][role]
            for found, want in zip((moved["relative"], moved["cosine"]), expected):
                # Thin and dense differ by roundings of float64 alone.
                assert found == pytest.approx(want.tolist(), rel=1e-9)
            other.append(float(((unscaled - h).norm(dim=1) / h.norm(dim=1)).median()) / moved["relative"][1])
            shown.append((f"{100 * expected[0][1]:.2f}", f"{expected[1][1]:.4f}"))
        assert rows[str(layer)] == [change for change, _ in shown] + [cosine for _, cosine in shown]
        assert max(abs(x - 1) for x in other) > 0.01


@pytest.mark.slow
def test_explained_variance_against_the_activations(output: Path, fitted: Fitted) -> None:
    (told,) = json.loads((output / PAGE_NUMBERS).read_text())["edits"]
    rows = {row[0]: row for row in page_of(output).table("layer", "k+")}
    for layer, ranks in fitted.edit.ranks.items():
        row = fitted.activations.layers.index(layer)
        H = fitted.activations.neutral[row].double()
        for i, role in enumerate(("positive", "negative")):
            s = torch.linalg.svdvals(H.T @ getattr(fitted.activations, role)[row].double() / len(H)).square()
            share = float(s[: ranks[i]].sum() / s.sum())
            assert told["layers"][str(layer)]["explained"][i] == pytest.approx(share, abs=1e-6)  # files keep 7 digits
            assert share >= 0.9
            assert float(s[: ranks[i] - 1].sum() / s.sum()) < 0.9  # K cut here, and no sooner
            assert rows[str(layer)][3 + i] == f"{100 * share:.2f}"


@pytest.mark.slow
def test_the_plane_is_that_of_principal_components(fitted: Fitted) -> None:
    """scikit-learn's PCA of the base's activations; the edited ones on the same axes."""
    from sklearn.decomposition import PCA

    (found,) = project(fitted.edit, fitted.activations, [2])
    row = fitted.activations.layers.index(2)
    before = {role: getattr(fitted.activations, role)[row].double() for role in ROLES}
    after = {role: dense(fitted.edit, 2, H) for role, H in before.items()}
    pca = PCA(2, svd_solver="full").fit(torch.cat(list(before.values())).numpy())
    assert found.shares == pytest.approx(pca.explained_variance_ratio_)
    for role in ROLES:
        for points, H in ((found.before[role], before[role]), (found.after[role], after[role])):
            assert points.abs().numpy() == pytest.approx(abs(pca.transform(H.numpy())), abs=1e-8)  # but for axes' signs
        assert float((found.after[role] - found.before[role]).abs().max()) > 1e-3
    assert found.separation == pytest.approx((separation(before), separation(after)))
    apart = {"positive": torch.tensor([[1.0, 0.0], [3.0, 0.0]]), "negative": torch.tensor([[1.0, 5.0], [3.0, 5.0]])}
    assert separation(apart) == pytest.approx(5.0)  # means 5 apart, each dot at 1 from its own
    (laid_out,) = project(fitted.edit, fitted.activations, [2], "tsne")
    assert laid_out.shares is None
    assert all(points.shape == (8, 2) and bool(points.isfinite().all()) for points in laid_out.after.values())


@pytest.mark.slow
def test_gain_and_cost_are_those_of_the_evaluation(output: Path, artefact: Path) -> None:
    measured = json.loads((artefact / EVALUATION).read_text())
    rows = page_of(output).table("task", "measure")
    found = {(row[0], row[1]): row for row in rows}
    (margin,) = [r for r in measured["results"] if r["metric"]["type"] == "margin"]
    row = found[margin["dataset"]["name"], "margin per token (nats)"]
    assert row[2] == str(margin["n"])
    assert float(row[5].split(" ± ")[0]) == pytest.approx(margin["value"] - margin["base"], abs=6e-3)
    page = page_of(output)
    for sample in measured["samples"]:
        assert sample["prompt"] in page.text
    assert json.loads((output / PAGE_NUMBERS).read_text())["evaluation"] == measured["results"]


@pytest.mark.slow
def test_what_is_lacking_is_run_when_a_model_is_given(fitted: Fitted, output: Path, tmp_path: Path) -> None:
    """The same activations as were saved, and answers of the model itself."""
    from transformers import AutoModelForCausalLM

    from sea_bake.reporting.living import QUESTIONS

    made = report(fitted.path, model=tiny.single(), output=tmp_path / "out", web="https://me-space.static.hf.space/")
    links = [attributes["href"] for tag, attributes in page_of(tmp_path / "out").tags if tag == "a"]
    links = [link for link in links if link.startswith("https://me-space.static.hf.space/")]
    shared = [parse_qs(link.partition("#")[2]).get("prompt") for link in links]
    assert shared[1:] == [[row[0]] for row in page_of(tmp_path / "out").table("prompt")]
    (told,), (saved,) = made.numbers.edits, json.loads((output / PAGE_NUMBERS).read_text())["edits"]
    assert told["own_demonstrations"]
    for layer in map(str, LAYERS):
        for role in ROLES:
            moved, before = (x["layers"][layer]["moved"][role]["relative"] for x in (told, saved))
            assert moved == pytest.approx(before, rel=1e-4)  # the same forward passes
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny.single()).eval(), tiny.tokenizer()
    ids = tokenizer(f"Q: {QUESTIONS[0]}\nA:", return_tensors="pt")["input_ids"]
    answers = []
    for edited in (False, True):
        if edited:
            with fitted.edit.live(model), torch.inference_mode():
                out = model.generate(ids, max_new_tokens=48, do_sample=False, pad_token_id=0)
        else:
            out = model.generate(ids, max_new_tokens=48, do_sample=False, pad_token_id=0)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert [made.numbers.samples[0][door] for door in ("base", "edited")] == answers
    assert answers[0] != answers[1]


@pytest.mark.slow
def test_demonstrations_of_ones_own_are_read_as_the_fit_read_them(tmp_path: Path) -> None:
    """Shuffled and cut as then; others are refused, and so are these without a model to collect them on."""
    rows = [json.loads(line) for line in tiny.demonstrations_file(8).read_text("utf-8").splitlines()]
    files = {name: tmp_path / f"{name}.jsonl" for name in ("own", "others")}
    for name, path in files.items():
        path.write_text("".join(json.dumps(row | {"prompt": f"{name} {row['prompt']}"}) + "\n" for row in rows))
    told = load(files["own"], limit=5, shuffle_seed=3)
    edit, acts = tmp_path / "edit.safetensors", tmp_path / "acts.safetensors"
    fit(tiny.single(), told, layers=LAYERS, neutral="prompt", save_activations=acts, **tiny.PAPER).save(edit)
    ran = tiny.run("report", edit, "--model", tiny.single(), "-d", files["own"], "-o", tmp_path / "ran", "--json")
    assert ran.code == 0, ran
    (moved,) = json.loads(ran.out)["edits"]
    (saved,) = report(edit, activations=acts, output=tmp_path / "saved").numbers.edits
    assert moved["own_demonstrations"]
    layer = str(LAYERS[0])
    (a, b) = (x["layers"][layer]["moved"]["positive"]["relative"] for x in (moved, saved))
    assert a == pytest.approx(b, rel=1e-4)
    out = tmp_path / "out"
    for arguments, kind, words in (
        (["--model", tiny.single(), "-d", files["others"]], "DemonstrationError", "no edit here was fitted on these"),
        (["--model", tiny.single(), "-d", tmp_path / "none.jsonl"], "DemonstrationError", "none.jsonl"),
        (["-d", files["own"]], "SettingError", "--model"),
        (["--web", "javascript:alert(1)"], "SettingError", "--web must be an https address"),
    ):
        with tiny.nothing_happens(tmp_path):
            tiny.refused(tiny.run("report", edit, *arguments, "-o", out), kind, words)


# ------------------------------------------------------------------------------------------- what is there, what is not


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_names_no_path(output: Path, artefact: Path, fitted: Fitted) -> None:
    page = page_of(output)
    assert not {"script", "iframe", "link", "object"} & {tag for tag, _ in page.tags}
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    assert all(a["alt"] for tag, a in page.tags if tag == "img")
    for path in (output / "report.html", output / PAGE_NUMBERS):
        text = path.read_text("utf-8")
        for place in (tiny.root(), artefact.parent, output.parent, fitted.path.parent, Path.home()):
            assert f"{place}/" not in text, place


@pytest.mark.slow
def test_each_section_without_data_says_what_would_supply_it(fitted: Fitted, tmp_path: Path) -> None:
    ran = tiny.run("report", fitted.path, "-o", tmp_path / "out", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert told["verdict"] is None
    assert told["evaluation"] is None
    assert told["edits"][0]["layers"]["1"]["moved"] is None
    page = page_of(tmp_path / "out")
    for words in (
        "nothing has been baked",
        "sea-bake verify ARTEFACT",
        "sea-bake eval BASE --edit EDIT",
        "--save-activations ACTS",
        "--model BASE",
    ):
        assert words in page.text, words
    assert {p.name for p in (tmp_path / "out" / "figures").iterdir()} == {"spectra.png", "layers.png"}


@pytest.mark.slow
def test_several_edits_and_other_kinds(fitted: Fitted, tmp_path: Path) -> None:
    """A part per edit; each takes the activations of its own site. An imported edit has no spectra."""
    attention = Edit.load(tiny.edit_file(site="attn"))
    both = bake(tiny.single(), [fitted.edit, attention], tmp_path / "both", how="insert").output
    made = report(both, activations=fitted.activations, layers="2", output=tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert "NOT verified" in page.text
    for heading in ("Edit 1: How far activations move", "Edit 2: How far activations move"):
        assert heading in page.text
    first, second = made.numbers.edits
    assert first["layers"]["2"]["moved"] is not None
    assert second["layers"]["2"]["moved"] is None
    assert [p["layer"] for p in first["projection"]] == [2]
    assert {"edit-1-movement", "edit-2-spectra"} <= {picture.name for picture in made.pictures}
    projections = torch.diag(torch.tensor([1.0] * 3 + [0.0] * 29)).expand(tiny.LAYERS, 32, 32)
    imported = Edit.from_dense(projections, projections, tiny.new_llama(), source="x", layers="all")
    imported.save(tmp_path / "imported.safetensors")
    made = report(tmp_path / "imported.safetensors", output=tmp_path / "imported")
    assert [picture.name for picture in made.pictures] == ["layers"]
    assert "its spectra were not published" in made.html


@pytest.mark.slow
@needs_chromium
def test_names_are_text_and_never_markup(fitted: Fitted, artefact: Path, tmp_path: Path) -> None:
    """Whoever wrote the edit, the evaluation or the file's name."""
    from dataclasses import replace

    origin = {"kind": "file", "source": EVIL}
    recipe = {**fitted.edit.recipe, "system": EVIL, "demonstrations_from": origin, EVIL: {EVIL: EVIL}}
    edit = replace(fitted.edit, base=replace(fitted.edit.base, name=EVIL), recipe=recipe)
    path = edit.save(tmp_path / "<b onclick=alert(3)>.safetensors")
    measured = json.loads((artefact / EVALUATION).read_text())
    for entry in measured["results"] + measured["breakdown"]:
        entry["dataset"]["name"] = entry["metric"]["name"] = EVIL
        entry["part"] = entry["part"] and EVIL
    measured["samples"] = [{"prompt": EVIL, "base": EVIL, "edited": EVIL}]
    measured["model"] |= {"base": EVIL, "edited": EVIL}
    measured["settings"]["dtype"] = measured["versions"]["torch"] = EVIL
    (tmp_path / "evaluation.json").write_text(json.dumps(measured))
    report(path, activations=fitted.acts, evaluation=tmp_path / "evaluation.json", output=tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert page.text.count(EVIL.replace("\x0b", "\\u000b")) > 30
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    seen = look(tmp_path / "out" / "report.html")
    assert faults(seen, (tmp_path / "out" / "report.html").as_uri()) == []
    assert len(seen["images"]) == 6


# ---------------------------------------------------------------------------------------------------------- publication


@pytest.mark.slow
def test_publish_links_the_page_and_the_seal_holds(
    fitted: Fitted, artefact: Path, output: Path, tmp_path: Path
) -> None:
    folder = tiny.changeable(artefact, tmp_path / "tiny-sea")
    ran = tiny.run("report", folder, "--activations", fitted.acts, "--write")
    assert (ran.code, ran.err) == (0, "")
    assert (folder / PAGE).read_bytes() == (output / "report.html").read_bytes()  # the same things, the same page
    assert broken(folder, json.loads((folder / "sea_verification.json").read_text())["files"]) == []
    made = publish(folder, "ada/x", dry_run=True, license="mit")
    assert f"[{PAGE}]({PAGE})" in made.card
    assert {PAGE, PAGE_NUMBERS} <= set(made.files)
    page, numbers = (folder / PAGE).read_text("utf-8"), (folder / PAGE_NUMBERS).read_text("utf-8")
    (folder / PAGE).unlink()
    assert PAGE not in publish(folder, "ada/x", dry_run=True, license="mit").card
    spoilt: list[tuple[str, str, str, str]] = [
        (page.replace("Verified", "Perfect", 1), numbers, "was changed since", ""),
        (page, "", "was not written by sea-bake report", ""),
        (page, numbers.replace('"verdict": "verified"', '"verdict": "approximate"'), "calls the artefact 'approx", ""),
        (page, numbers.replace('"config.json"', '"other.json"'), "another state of the artefact", ""),
        (page, numbers, "does not show what sea/evaluation.json holds now", " "),
    ]
    evaluation = (folder / EVALUATION).read_text("utf-8")
    for text, behind, words, more in spoilt:
        (folder / PAGE).write_text(text, "utf-8")
        (folder / PAGE_NUMBERS).write_text(behind, "utf-8") if behind else (folder / PAGE_NUMBERS).unlink(
            missing_ok=True
        )
        (folder / EVALUATION).write_text(evaluation + more, "utf-8")
        with pytest.raises(PublishError, match=words):
            publish(folder, "ada/x", dry_run=True, license="mit")
    assert tiny.run("report", folder, "--write").code == 0
    assert f"[{PAGE}]({PAGE})" in publish(folder, "ada/x", dry_run=True, license="mit").card


@pytest.mark.slow
def test_a_published_copy_can_be_published_again(artefact: Path, fitted: Fitted, tmp_path: Path) -> None:
    """Under the base's Hub name the records are other files than were sealed: every seal is set anew."""
    folder = tiny.changeable(artefact, tmp_path / "tiny-sea")
    report(folder, activations=fitted.acts, write=True)
    for name, text in Artefact.open(folder).renamed("ada/base").items():
        (folder / name).write_text(text, "utf-8")
    made = publish(folder, "ada/x", dry_run=True, license="mit")
    assert made.verdict == "verified"
    assert f"[{PAGE}]({PAGE})" in made.card
    assert "base_model: ada/base" in made.card
    assert json.loads((folder / EVALUATION).read_text("utf-8"))["results"]
    (folder / "config.json").write_text((folder / "config.json").read_text("utf-8") + " ", "utf-8")
    with pytest.raises(PublishError, match=r"config.json .* since its verification"):
        publish(folder, "ada/x", dry_run=True, license="mit")


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.slow
def test_bad_input_is_one_clear_error(fitted: Fitted, artefact: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "diary.txt").write_text("dear diary")
    files = {name: tmp_path / f"{name}.safetensors" for name in ("attn", "few", "other")}
    base = tiny.single()
    for name, model, options in (
        ("attn", base, {"site": "attn"}),
        ("few", base, {}),
        ("other", tiny.single(seed=1), {}),
    ):
        save = None if name == "few" else files[name]
        fit(
            model,
            tiny.demonstrations(),
            layers="2-3",
            neutral="prompt",
            save_activations=save,
            **{**tiny.PAPER, **options},
        )
    some = fitted.activations
    Activations(some.neutral[2:], some.positive[2:], some.negative[2:], (2, 3), some.site, some.base, some.recipe).save(
        files["few"]
    )
    measured = json.loads((artefact / EVALUATION).read_text())
    garbled = {
        "empty": "{}",
        "no-json": "nothing",
        "no-interval": json.dumps(measured | {"results": [measured["results"][0] | {"interval": None}]}),
        "infinite": json.dumps(measured | {"results": [measured["results"][0] | {"value": 1e999}]}),
        "base-alone": json.dumps(measured | {"model": measured["model"] | {"how": None}}),
        "stranger": json.dumps(measured | {"model": measured["model"] | {"edits": []}}),
        "namesake": json.dumps(  # of the same site, layers and settings, as any two of the defaults are
            measured | {"model": measured["model"] | {"edits": [measured["model"]["edits"][0] | {"sha256": "0" * 64}]}}
        ),
    }
    for name, text in garbled.items():
        (tmp_path / f"{name}.json").write_text(text)
    out, edit = tmp_path / "out", fitted.path
    cases: list[tuple[list[Any], str, str]] = [
        ([tmp_path / "nothing"], "EditError", "no such file"),
        ([strange], "CheckpointError", "is not an artefact of sea_bake"),
        ([fitted.acts], "EditError", "holds 'sea_bake.activations'"),
        ([edit, "-a", files["attn"]], "ActivationError", "site 'attn', and the edit acts at 'mlp'"),
        ([edit, "-a", files["other"]], "ActivationError", "its weights differ"),
        ([edit, "-a", files["few"]], "ActivationError", "hold layers 2-3, and the edit acts on layer 1 too"),
        ([edit, "-a", fitted.acts, "-a", files["attn"]], "ActivationError", "site 'attn'"),
        ([edit, "-a", tmp_path / "nothing"], "ActivationError", "no such file"),
        ([edit, "--evaluation", strange], "EvaluationError", "evaluation.json is not there"),
        ([edit, "--evaluation", tmp_path / "empty.json"], "EvaluationError", "no sea_bake.evaluation of version 1"),
        ([edit, "--evaluation", tmp_path / "no-json.json"], "EvaluationError", "cannot be read as JSON"),
        ([edit, "--evaluation", tmp_path / "no-interval.json"], "EvaluationError", "lacks or garbles"),
        ([edit, "--evaluation", tmp_path / "infinite.json"], "EvaluationError", "no finite number"),
        ([edit, "--evaluation", tmp_path / "base-alone.json"], "EvaluationError", "measured the base alone"),
        ([edit, "--evaluation", tmp_path / "stranger.json"], "EvaluationError", "on other edits"),
        ([edit, "--evaluation", tmp_path / "namesake.json"], "EvaluationError", "on other edits"),
        ([edit, "--projection", "umap"], "SettingError", "use pca or tsne"),
        ([edit, "--layers", "0"], "SettingError", "not among those edited"),
        ([edit, "--layers", "9"], "SettingError", "out of range"),
        ([edit, "--write"], "SettingError", "is an edit and no artefact"),
        ([edit, "--model", tiny.single(seed=1)], "WrongModelError", "its weights differ"),
        ([edit, "--model", tmp_path / "nothing"], "CheckpointError", "nothing"),
    ]
    for arguments, kind, words in cases:
        with tiny.nothing_happens(tmp_path, artefact):
            tiny.refused(tiny.run("report", *arguments, "-o", out), kind, words)
    with pytest.raises(SettingError, match="name a folder"):
        report(edit)
    copy = tiny.changeable(artefact, tmp_path / "copy")
    tiny.patch_json(copy / "generation_config.json", temperature=0.5)
    with pytest.raises(EvaluationError, match="another state of the artefact"):
        report(copy, output=out)
    for place, words in ((strange, "remove it yourself"), (copy, "is an artefact")):
        with pytest.raises(OutputError, match=words):
            report(edit, output=place, overwrite=True)
    assert report(edit, output=out).written == [out]
    tiny.refused(tiny.run("report", edit, "-o", out), "OutputError", "exists already")
    assert tiny.run("report", edit, "-o", out, "--overwrite").code == 0
    assert tiny.listing(out) == {"report.html", "figures", "sea"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "package"), [("matplotlib.figure", "matplotlib"), ("sklearn.manifold", "scikit-learn")]
)
def test_a_missing_extra(
    module: str, package: str, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with tiny.nothing_happens(tmp_path):
        ran = tiny.run("report", fitted.path, "--projection", "tsne", "-o", tmp_path / "out")
        tiny.refused(ran, "MissingExtraError", package, "pip install 'sea-bake[report]'")
