"""Edits on the Hub: one goes up with its card and comes back wherever an edit is named, at the commit that it resolved
to; a moved base, a wrong one, and what is no edit are refused
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import benchmarks
import families
import pytest
import tiny
import torch
import yaml
from conftest import Workshop, load
from hub_server import Hub, complaints
from safetensors.torch import load_file, save_file
from test_publish import ADA, BASE_CARD, BOB, HELLASWAG, PROBE, RESULTS, TRUTHFULQA, Desk

from sea_bake import Edit, bake
from sea_bake.artefact import Artefact
from sea_bake.artefact.evaluation import edit_digest
from sea_bake.errors import CheckpointError, EditError
from sea_bake.exporting.gguf.given import exportable
from sea_bake.io.edits import EDIT_FILE, hub_name
from sea_bake.publishing import publish

FIT = ("--neutral", "prompt", "--layers", "1,3", "-K", "2", "--merge", "sum", "--site", "mlp", "--limit", "8")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    server = Hub(tmp_path_factory.mktemp("hub"), {ADA: "ada", BOB: "bob"})
    with server.running():
        yield server


@pytest.fixture(scope="module")
def desk(hub: Hub, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    made = Desk(hub, tmp_path_factory.mktemp("desk"))
    made.login.write_text(ADA)
    base = tiny.changeable(workshop.base("llama"), made.folder / "tiny-llama")
    (base / "README.md").write_text(BASE_CARD)
    hub.add("tiny/llama", base)
    yield made
    made.close()


@pytest.fixture(scope="module")
def fitted(desk: Desk) -> Callable[..., Path]:
    """An edit of the base on the Hub, with these further settings. Not to be changed."""

    def make(*more: str) -> Path:
        path = desk.folder / f"edit{'-'.join(('', *more)).replace('--', '')}.safetensors"
        if not path.exists():
            ran, _ = desk.run("fit", "tiny/llama", *FIT, *more, "-o", path, warm=True)
            assert ran.code == 0, ran
        return path

    return make


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor(PROBE)).logits


def fresh(desk: Desk, script: str) -> str:
    """What a script prints in a process and with a cache of its own, with the Hub in reach."""
    ran = desk.python(script)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# ------------------------------------------------------------------------------------------------- there and back again


@pytest.mark.slow
def test_an_edit_goes_up_and_comes_back_by_name_branch_and_commit(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    """``main`` moves on to another edit meanwhile: a commit is what it was. The control: the two are two models."""
    first, second = fitted(), fitted("--alpha", "0.3")
    report = desk.ok("publish", first, "ada/there")
    assert (report["verdict"], report["private"], hub.repos["ada/there"].private) == ("edit", True, True)
    assert set(hub.tree("ada/there")) == {EDIT_FILE, "README.md", "sea_bake.yaml", ".gitattributes"}
    assert hub.file("ada/there", EDIT_FILE) == first.read_bytes()
    assert desk.ok("publish", first, "ada/there")["sent"] == []
    desk.ok("publish", second, "ada/there", "--revision", "weaker")
    moved = desk.ok("publish", second, "ada/there")["commit"]
    heads = {"ada/there": moved, "ada/there@weaker": hub.repos["ada/there"].heads["weaker"]}
    heads[f"ada/there@{report['commit']}"] = report["commit"]
    found = {}
    for i, (name, commit) in enumerate(heads.items()):
        made = desk.ok("bake", "tiny/llama", name, "-o", tmp_path / f"out{i}", "--copy")
        assert made["origins"] == {"sea/edit-0.safetensors": f"ada/there@{commit}"}
        record = Artefact.open(tmp_path / f"out{i}").bake
        assert record is not None
        assert record.origins == made["origins"]
        given = first if commit == report["commit"] else second
        assert edit_digest(Artefact.open(tmp_path / f"out{i}").edits[0]) == edit_digest(Edit.load(given))
        found[name] = logits(load(tmp_path / f"out{i}", "float32"))
    main, branch, commit = found.values()
    assert torch.equal(main, branch)
    assert (main - commit).abs().max() > 0.01  # the control
    desk.ok("bake", "tiny/llama", first, "-o", tmp_path / "local", "--copy")
    assert torch.equal(commit, logits(load(tmp_path / "local", "float32")))
    seen = desk.run("inspect", tmp_path / "out0")[0]
    assert f"ada/there@{moved} on the Hub" in seen.out
    desk.ok("verify", tmp_path / "out0", "--max-new-tokens", 4)
    desk.ok("publish", tmp_path / "out0", "ada/baked-of-it")
    assert f"[ada/there](https://huggingface.co/ada/there) at commit `{moved}`" in hub.file(
        "ada/baked-of-it", "README.md"
    ).decode().replace("\n", " ")
    recipe = yaml.safe_load(hub.file("ada/baked-of-it", "sea_bake.yaml"))
    assert recipe["provenance"]["edits"][0]["hub"] == f"ada/there@{moved}"


@pytest.mark.slow
def test_an_edit_on_the_hub_is_taken_wherever_one_is_named(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    commit = desk.ok("publish", fitted(), "ada/named")["commit"]
    name, pinned = "ada/named", f"ada/named@{commit}"
    assert desk.ok("plan", "tiny/llama", name)["how"] == "fold"
    assert desk.ok("inspect", name)["edits"][0]["origin"] == pinned
    assert pinned in desk.run("inspect", f"{name}@main")[0].out
    desk.ok("report", name, "-o", tmp_path / "report")
    assert pinned in (tmp_path / "report" / "report.html").read_text("utf-8")
    data, neutral = benchmarks.write(tmp_path / "data"), tmp_path / "neutral.txt"
    neutral.write_text("A paragraph that is short.\n\nAnother one, shorter still.\n", "utf-8")
    told = ("--data", data, "--tasks", "bbq", "--limit", 2, "--neutral-text", neutral)
    measured = desk.ok("eval", "tiny/llama", "--edit", name, *told, "-o", tmp_path / "evaluation")
    assert [edit["origin"] for edit in measured["model"]["edits"]] == [pinned]
    desk.ok("publish", fitted(), "ada/evaluated", "--evaluation", tmp_path / "evaluation")
    (entry,) = yaml.safe_load(hub.file("ada/evaluated", ".eval_results/sea_bake-oskarvanderwal--bbq.yaml"))
    (first, *_) = (row for row in measured["results"] if row["task"] == "bbq")
    assert (entry["dataset"]["task_id"], entry["value"]) == ("bbq", first["value"])
    assert str(entry["date"]) == measured["date"]
    assert abs((date.today() - date.fromisoformat(measured["date"])).days) <= 1
    assert "2 examples, from the start of the split, not all" in entry["notes"]
    desk.ok("bake", "tiny/llama", "--edit", name, "-o", tmp_path / "out")
    verdict = desk.ok("verify", tmp_path / "out", "--edit", name, "--max-new-tokens", 4)
    assert verdict["verdict"] == "verified"
    desk.ok("publish", fitted("--alpha", "0.3"), "ada/weaker")
    ran, _ = desk.run("verify", tmp_path / "out", "--edit", "ada/weaker", "--max-new-tokens", 4)
    assert ran.code == 1  # the control: it is held against the edit that is named
    again = desk.ok("reproduce", name)
    assert again["reproduced"] is True
    said = fresh(desk, f"from sea_bake import Edit; print(Edit.load({name!r}).origin)")
    assert said.strip() == pinned


@pytest.mark.slow
def test_a_recipe_names_an_edit_on_the_hub(desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path) -> None:
    """Its commit is part of the state: a run after the edit moved does the bake again, and one before does nothing."""
    first = desk.ok("publish", fitted(), "ada/steps")["commit"]
    recipe = tmp_path / "recipe.yaml"
    text = "model: tiny/llama\noutput: out\nedits: [ada/steps]\nbake: {copy: true}\n"
    recipe.write_text(text)
    assert [step["status"] for step in desk.ok("run", recipe)["steps"]] == ["done"]
    record = Artefact.open(tmp_path / "out").bake
    assert record is not None
    assert list(record.origins.values()) == [f"ada/steps@{first}"]
    assert [step["status"] for step in desk.ok("run", recipe)["steps"]] == ["kept"]
    second = desk.ok("publish", fitted("--alpha", "0.3"), "ada/steps")["commit"]
    (step,) = desk.ok("run", recipe)["steps"]
    assert (step["status"], f"ada/steps@{second}" in step["why"]) == ("done", True)
    recipe.write_text(text.replace("ada/steps", f"ada/steps@{first}"))
    assert [step["status"] for step in desk.ok("run", recipe)["steps"]] == ["done"]


@pytest.mark.slow
def test_a_moved_base_is_refused_with_the_commit_that_is_right(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    """Other weights under the same name, and another base; the cure in the message works, and so does the control."""
    hub.add("moving/base", desk.folder / "tiny-llama")
    edit = tmp_path / "edit.safetensors"
    desk.ok("fit", "moving/base", *FIT, "-o", edit)
    desk.ok("publish", edit, "ada/of-a-moving-base")
    desk.ok("bake", "moving/base", "ada/of-a-moving-base", "-o", tmp_path / "before")  # the control
    before = hub.repos["moving/base"].heads["main"]
    families.tiny("llama", seed=1).save_pretrained(tmp_path / "newer")
    families.tokenizer().save_pretrained(tmp_path / "newer")
    hub.add("moving/base", tmp_path / "newer")
    for words in (
        ("bake", "moving/base", "ada/of-a-moving-base", "-o", tmp_path / "no"),
        ("eval", "moving/base", "--edit", "ada/of-a-moving-base", "--tasks", "", "--limit", 1),
    ):
        ran, _ = desk.run(*words)
        tiny.refused(ran, "WrongModelError", "weights differ", "'moving/base'", f"--revision {before}")
    found = re.search(r"--revision [0-9a-f]+", ran.message)
    assert found
    cure = ("bake", "moving/base", "ada/of-a-moving-base", "-o", tmp_path / "no", *found[0].split())
    desk.ok(*cure)
    other = tiny.run("bake", tiny.single(seed=1), edit, "-o", tmp_path / "other")
    tiny.refused(other, "WrongModelError", "'moving/base'", f"--revision {before}")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["embed_tokens.weight", "layers.0.self_attn.v_proj.weight"])
def test_a_base_that_moved_beside_the_edited_layers_is_refused(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path, part: str
) -> None:
    """Its embeddings alone, or one matrix of a layer that is not edited; at the edit's own commit it is baked."""
    name = f"moving/{part.split('.')[0]}"
    hub.add(name, desk.folder / "tiny-llama")
    edit = tmp_path / "edit.safetensors"
    desk.ok("fit", name, *FIT, "-o", edit)
    desk.ok("publish", edit, f"ada/of-{part.split('.')[0]}")
    before = hub.repos[name].heads["main"]
    moved = tiny.changeable(desk.folder / "tiny-llama", tmp_path / "moved")
    weights = load_file(moved / "model.safetensors")
    weights[f"model.{part}"] *= 1.01
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    hub.add(name, moved)
    words = ("bake", name, f"ada/of-{part.split('.')[0]}", "-o", tmp_path / "out")
    ran, _ = desk.run(*words)
    tiny.refused(ran, "WrongModelError", "weights differ", part.split(".", 2)[-1], f"--revision {before}")
    assert not (tmp_path / "out").exists()
    desk.ok(*words, "--revision", before)


@pytest.mark.slow
def test_a_base_that_moved_where_no_value_was_sampled_is_refused(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    """One value off the diagonal; the Hub's own digests of the files show it. A new README moves nothing."""
    name = "moving/unseen"
    hub.add(name, desk.folder / "tiny-llama")
    edit = tmp_path / "edit.safetensors"
    desk.ok("fit", name, *FIT, "-o", edit)
    assert list(Edit.load(edit).base.files) == [f"{name}/model.safetensors"]
    before = hub.repos[name].heads["main"]
    moved = tiny.changeable(desk.folder / "tiny-llama", tmp_path / "moved")
    (moved / "README.md").write_text("another page")
    hub.add(name, moved)
    assert hub.repos[name].heads["main"] != before
    desk.ok("bake", name, edit, "-o", tmp_path / "same")  # the control
    weights = load_file(moved / "model.safetensors")
    weights["model.layers.0.self_attn.o_proj.weight"][0, 1] += 1.0
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    hub.add(name, moved)
    for words in (
        ("bake", name, edit, "-o", tmp_path / "out"),
        ("eval", name, "--edit", edit, "--tasks", "", "--limit", 1),
    ):
        ran, _ = desk.run(*words)
        tiny.refused(ran, "WrongModelError", "has changed on the Hub", f"{name}/model.safetensors", before)
    assert not (tmp_path / "out").exists()
    desk.ok("bake", name, edit, "-o", tmp_path / "out", "--revision", before)
    desk.ok("bake", moved, edit, "-o", tmp_path / "local")  # in a folder of one's own, samples are what there is


def test_a_file_here_wins_over_the_hub(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under whatever name it lies; the Hub cannot even be asked here. A folder of that name is said to be one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada").mkdir()
    edit = workshop.edit("llama", "mlp", "sum")
    for name in ("ada/edit", "ada/edit@main"):
        edit.save(tmp_path / name)
        assert Edit.load(name).origin is None
        assert edit_digest(Edit.load(Path(name))) == edit_digest(edit)
    with pytest.raises(EditError, match="no edit 'ada/other': there is no such file here, and the Hub did not give it"):
        Edit.load("ada/other")
    with pytest.raises(EditError, match="no edit 'ada/other'"):
        exportable(Path("ada/other"))
    (tmp_path / "ada" / "folder").mkdir()
    with pytest.raises(EditError, match="is a folder here") as error:
        Edit.load("ada/folder")
    cure = str(error.value).rpartition(" ")[2]
    assert hub_name(cure) == ("ada/folder", "main")


def test_names_that_can_be_on_the_hub() -> None:
    on_the_hub = {"ada/edit": None, "ada/edit@v1": "v1", "ada/edit@refs/pr/3": "refs/pr/3", "a.b-c/d.e_f": None}
    for name, revision in on_the_hub.items():
        assert hub_name(name) == (name.partition("@")[0], revision)
    paths = ("edit", "./ada/edit", "/ada/edit", "~/edit", "a/b/c", "ada/..", "../ada", "ada/e.safetensors", "ada/e.PT")
    for name in (*paths, "ada/edit@", "ada/edit@a b", "", "ada/e@x@y", "ada/e\n", "-o/x", "https://x/y"):
        assert hub_name(name) is None, name


@pytest.mark.slow
def test_what_is_in_the_cache_is_taken_without_a_hub(desk: Desk, fitted: Callable[..., Path]) -> None:
    commit = desk.ok("publish", fitted(), "ada/cached")["commit"]
    desk.ok("inspect", "ada/cached")
    script = "from sea_bake import Edit\nfor name in ('ada/cached', {0!r}): print(Edit.load(name).origin)"
    env = {**desk.env, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script.format(f"ada/cached@{commit}")], env=env, capture_output=True, text=True
    )
    assert ran.stdout.split() == [f"ada/cached@{commit}"] * 2, ran.stderr


@pytest.mark.slow
def test_a_strangers_model_on_the_hub_is_proved_against_an_edit_there(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    """A merged checkpoint and nothing of ours in it, at a revision. The control: another edit is not what it holds."""
    desk.ok("bake", "tiny/llama", fitted(), "-o", tmp_path / "out", "--how", "fold", "--copy")
    shutil.rmtree(tmp_path / "out" / "sea")
    first = hub.add("eve/merged", tmp_path / "out")
    hub.add("eve/merged", desk.folder / "tiny-llama")
    for i, edit in enumerate((fitted(), fitted("--alpha", "0.3"))):
        desk.ok("publish", edit, f"ada/held{i}")
    told = ("--base", "tiny/llama", "--max-new-tokens", 4)
    found = desk.ok("verify", f"eve/merged@{first}", *told, "--edit", "ada/held0")
    assert (found["verdict"], found["how"], found["artefact"]) == ("verified", "checkpoint", "eve/merged")
    for name, edit in ((f"eve/merged@{first}", "ada/held1"), ("eve/merged", "ada/held0")):
        assert desk.run("verify", name, *told, "--edit", edit)[0].code == 1


# ----------------------------------------------------------------------------------------------------- what is no edit


@pytest.mark.slow
def test_what_is_no_edit_on_the_hub_is_refused(
    desk: Desk, hub: Hub, workshop: Workshop, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    """No repository, no revision, a model, pickles, weights under an edit's name; each in one sentence."""
    for name in ("pickled", "weights"):
        (tmp_path / name).mkdir()
    torch.save({"layers.1.positive": torch.eye(4)}, tmp_path / "pickled" / "edit.pt")
    save_file({"A": torch.eye(4)}, tmp_path / "weights" / EDIT_FILE)
    for name in ("pickled", "weights"):
        hub.add(f"eve/{name}", tmp_path / name)
    desk.ok("publish", fitted(), "ada/fine")
    for name, says in {
        "ada/absent": "no edit 'ada/absent'",
        "ada/fine@absent": "has no revision 'absent'",
        "tiny/llama": f"holds no {EDIT_FILE}",
        "eve/pickled": f"holds no {EDIT_FILE}",
        "eve/weights": "not one of sea_bake's",
    }.items():
        before = tiny.listing(tmp_path)
        ran, _ = desk.run("bake", "tiny/llama", name, "-o", tmp_path / "out")
        tiny.refused(ran, "EditError", says)
        assert tiny.listing(tmp_path) == before


@pytest.mark.slow
def test_a_giant_is_not_even_fetched(desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path) -> None:
    desk.ok("publish", fitted(), "ada/giant")
    script = (
        "import sys\nfrom sea_bake import Edit\nfrom sea_bake.io import edits\nedits.MAX_BYTES = 100\n"
        "try: Edit.load('ada/giant')\nexcept Exception as error: print(type(error).__name__, error)"
    )
    before = len(hub.counts.requests)
    assert re.match(r"EditError .*has at most 100", fresh(desk, script))
    assert not [r for r in hub.counts.requests[before:] if r.startswith("GET") and "resolve" in r]
    assert "EditError" not in fresh(desk, script.replace("= 100", "= 10**9"))  # the control


# ------------------------------------------------------------------------------------------------------------- the card


@pytest.mark.slow
def test_the_card_says_what_it_is_and_its_lines_work(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    """Metadata by the Hub's rules; every command on it runs as it stands, and the block of Python too."""
    card = desk.ok("publish", fitted(), "ada/carded")["card"]
    assert complaints(card) == []
    data = yaml.safe_load(card.split("---\n")[1])
    told = {"base_model": "tiny/llama", "base_model_relation": "adapter", "license": "apache-2.0", "language": ["en"]}
    assert {key: data[key] for key in told} == told
    tags = {"sea", "sea_bake", "steering-vector", "reproducible", "arxiv:2405.09719", "base_model:adapter:tiny/llama"}
    assert tags <= set(data["tags"])
    assert "control-vector" not in data["tags"]
    base = hub.repos["tiny/llama"].heads["main"]
    for fact in (base, hashlib.sha256(fitted().read_bytes()).hexdigest(), "Not measured", "MLP output", "apache-2.0"):
        assert fact in card, fact
    lines = [line[2:] for block in re.findall(r"```console\n(.*?)```", card, re.S) for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("sea-bake")]
    assert [words[1] for words in commands] == ["bake", "verify", "reproduce"]
    assert f"sea-bake plan tiny/llama --revision {base} ada/carded" in card
    commands.append(shlex.split(f"sea-bake plan tiny/llama --revision {base} ada/carded"))
    for words in commands:
        placed = [str(tmp_path / word) if word == "edited" else word for word in words[1:]]
        assert desk.run(*placed)[0].code == 0, words
    python = re.search(r"```python\n(.*?)```", card, re.S)
    assert python
    body = python[1].replace("    ...", "    edited = model(torch.tensor([[1, 20, 30]])).logits #")
    script = f"import torch\n{body}\nprint((model(torch.tensor([[1, 20, 30]])).logits - edited).abs().max().item())"
    assert float(fresh(desk, script)) > 0.01


@pytest.mark.slow
def test_gain_and_cost_go_along_where_they_were_measured(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    """On the card, as the evaluation itself, and in the Hub's own schema. The control: of another edit, refused."""
    edit = Edit.load(fitted())
    about = {"base": "tiny/llama", "edited": "tiny/llama", "how": "live", "edits": [{"sha256": edit_digest(edit)}]}
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(RESULTS | {"model": about, "date": "2026-03-04"}))
    report = desk.ok("publish", fitted(), "ada/measured", "--evaluation", path)
    assert "| 0.28 | 0.301 | +0.021 [+0.001, +0.041] |" in report["card"]
    assert complaints(report["card"]) == []
    results = check_results(hub, "ada/measured")
    assert {entry.value for entry in results} == {0.41, 0.301}
    assert json.loads(hub.file("ada/measured", "sea/evaluation.json"))["results"] == RESULTS["results"]
    desk.refused("publish", fitted("--alpha", "0.3"), "ada/no", "--evaluation", path, says="measured on other edits")
    removed = desk.ok("publish", fitted(), "ada/measured")["removed"]  # what no longer holds goes
    assert {name for name in removed if name.startswith(".eval_results/")} == {
        ".eval_results/sea_bake-Rowan--hellaswag.yaml",
        ".eval_results/sea_bake-truthfulqa--truthful_qa.yaml",
    }


@pytest.mark.slow
def test_an_artefacts_results_are_in_the_hubs_schema_too(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "sea-measured"
    desk.ok("bake", "tiny/llama", fitted(), "-o", folder, "--copy")
    desk.ok("verify", folder, "--max-new-tokens", 4)
    desk.ok("publish", folder, "ada/artefact-measured")
    assert not [path for path in hub.tree("ada/artefact-measured") if path.startswith(".eval_results")]
    edit = {"sha256": edit_digest(Edit.load(fitted()))}
    about = {"base": "tiny/llama", "edited": folder.name, "how": "fold", "edits": [edit]}
    evaluation = RESULTS | {"model": about, "date": "2026-03-04"}
    (folder / "sea" / "evaluation.json").write_text(json.dumps(evaluation))
    desk.ok("publish", folder, "ada/artefact-measured")
    check_results(hub, "ada/artefact-measured")
    (folder / ".eval_results").mkdir()  # as in a copy from the Hub
    (folder / ".eval_results" / "sea_bake-Rowan--hellaswag.yaml").write_text("- old")
    assert desk.ok("publish", folder, "ada/artefact-measured")["sent"] == []
    desk.refused("publish", folder, "ada/x", "--evaluation", folder, says="its own evaluation.*drop --evaluation")


def check_results(hub: Hub, repo: str) -> list[Any]:
    """The entries of ``.eval_results``, read by huggingface_hub; they say what, of what, when and where from."""
    from huggingface_hub import parse_eval_result_entries

    files = [path for path in hub.tree(repo) if path.startswith(".eval_results/")]
    assert all(path.endswith(".yaml") for path in files)
    entries = [e for path in files for e in parse_eval_result_entries(yaml.safe_load(hub.file(repo, path)))]
    assert {entry.dataset_id for entry in entries} == {HELLASWAG["type"], TRUTHFULQA["type"]}
    for entry in entries:
        assert entry.task_id in ("HellaSwag", "TruthfulQA")
        assert str(entry.date) == "2026-03-04"
        assert entry.source_url == f"https://huggingface.co/{repo}/blob/main/sea/evaluation.json"
        assert "200 examples" in entry.notes
        assert "unedited base 0." in entry.notes
    return entries


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.slow
def test_an_edit_is_held_to_what_an_artefact_is(
    desk: Desk, hub: Hub, workshop: Workshop, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    """Tokens, local paths, links, what does nothing, local bases; before the Hub is sent anything."""
    edit = Edit.load(fitted())
    spoilt = tmp_path / "spoilt.safetensors"
    for recipe, says in (
        ({"note": BOB}, "edit.safetensors holds what looks like a Hugging Face token"),
        ({"note": f"{tmp_path}/data.jsonl"}, "edit.safetensors holds a path of this machine"),
    ):
        replace(edit, recipe={**edit.recipe, **recipe}).save(spoilt, overwrite=True)
        desk.refused("publish", spoilt, "ada/no", says=says)
    replace(edit, alpha=0.0).save(spoilt, overwrite=True)
    desk.refused("publish", spoilt, "ada/no", says="changes nothing")
    (tmp_path / "link.safetensors").symlink_to(fitted())
    desk.refused("publish", tmp_path / "link.safetensors", "ada/no", says="is a link: publish the file itself")
    desk.refused("publish", fitted(), "ada/no", "--unverified", says="drop --unverified")
    desk.refused("publish", fitted(), "ada/no", "--include", "x", says="drop --include")
    spoilt.write_bytes(fitted().read_bytes()[:-7])
    ran, _ = desk.run("publish", spoilt, "ada/no")
    tiny.refused(ran, "EditError", "truncated")
    with pytest.raises(EditError, match="no such file"):
        publish(tmp_path / "absent.safetensors", "ada/no")
    assert "ada/no" not in hub.repos


@pytest.mark.slow
def test_an_edit_of_a_local_base_is_given_its_name_on_the_hub(
    desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path
) -> None:
    """Inside the file too: whoever loads it is told which base it belongs to. Local names are nobody's business."""
    local = tmp_path / "local.safetensors"
    desk.ok("fit", desk.folder / "tiny-llama", *FIT, "-o", local)
    desk.refused("publish", local, "ada/of-a-folder", says="'tiny-llama' is the name of a local folder.*--base-model")
    desk.ok("publish", local, "ada/of-a-folder", "--base-model", "tiny/llama")
    there = tmp_path / "there.safetensors"
    there.write_bytes(hub.file("ada/of-a-folder", EDIT_FILE))
    assert Edit.load(there).base.name == "tiny/llama"
    assert b"tiny-llama" not in there.read_bytes()
    assert edit_digest(Edit.load(there)) == edit_digest(Edit.load(local))
    recipe = yaml.safe_load(hub.file("ada/of-a-folder", "sea_bake.yaml"))
    assert (recipe["model"], recipe["provenance"]["edits"][0]["sha256"]) == ("tiny/llama", tiny.sha256(there))
    desk.ok("bake", "tiny/llama", "ada/of-a-folder", "-o", tmp_path / "out")


@pytest.mark.slow
def test_a_repository_holds_one_thing(desk: Desk, hub: Hub, fitted: Callable[..., Path], tmp_path: Path) -> None:
    """An edit is not written over an artefact, an artefact not over an edit, and neither over a stranger's model."""
    folder = tmp_path / "sea"
    desk.ok("bake", "tiny/llama", fitted(), "-o", folder, "--copy")
    desk.ok("verify", folder, "--max-new-tokens", 4)
    desk.ok("publish", folder, "ada/an-artefact")
    desk.ok("publish", fitted(), "ada/an-edit")
    desk.refused("publish", fitted(), "ada/an-artefact", says="holds an artefact .*of its own for an edit")
    desk.refused("publish", folder, "ada/an-edit", says="holds an edit .*of its own for an artefact")
    hub.add("ada/others", desk.folder / "tiny-llama", private=True)
    desk.refused("publish", fitted(), "ada/others", says="holds another model")
    ran, _ = desk.run("bake", "tiny/llama", "ada/an-artefact", "-o", tmp_path / "out")
    tiny.refused(ran, "EditError", f"holds no {EDIT_FILE}")
    assert desk.ok("inspect", "ada/an-artefact")["verdict"] == "verified"


@pytest.mark.slow
def test_a_dry_run_of_an_edit_sends_nothing(desk: Desk, hub: Hub, fitted: Callable[..., Path]) -> None:
    before = len(hub.counts.requests)
    with desk.logged_in(None):
        report = desk.ok("publish", fitted(), "ada/never", "--dry-run")
    assert {line.split()[0] for line in hub.counts.requests[before:]} <= {"GET"}
    assert "ada/never" not in hub.repos
    assert (report["commit"], set(report["files"])) == (None, {EDIT_FILE, "README.md", "sea_bake.yaml"})
    assert desk.ok("publish", fitted(), "ada/shown", "--public")["private"] is False
    desk.refused("publish", fitted("--alpha", "0.3"), "ada/shown", says="ada/shown is public")
    with desk.logged_in(BOB):
        proposed = desk.ok("publish", fitted("--alpha", "0.3"), "ada/shown", "--public", "--create-pr")
    assert proposed["pull_request"] == f"{hub.url}/ada/shown/discussions/1"
    assert hub.file("ada/shown", EDIT_FILE, "refs/pr/1") == fitted("--alpha", "0.3").read_bytes()
    assert hub.file("ada/shown", EDIT_FILE) == fitted().read_bytes()


def test_what_others_wrote_cannot_break_the_card_of_an_edit(workshop: Workshop, tmp_path: Path) -> None:
    """An imported edit tells of itself what its file tells; a commit is nobody's to choose."""
    evil = "x`\n\n# VERIFIED BY NASA\n\n<img src=http://e/p.png>|[a](b)\n```\n"
    edit = workshop.edit("llama", "mlp", "sum")
    for recipe, revision in (({"imported": evil, "method": evil}, None), ({"imported": "x"}, evil)):
        base = replace(edit.base, name="tiny/llama", revision=revision)
        path = replace(edit, base=base, recipe=recipe).save(tmp_path / "evil.safetensors", overwrite=True)
        card = publish(path, "ada/x", dry_run=True).card
        assert complaints(card) == []
        body = card.split("---\n", 2)[2]
        assert "\n# VERIFIED" not in body
        assert "\n<img" not in body
        assert len(re.findall(r"^ *```\w*$", body, re.MULTILINE)) % 2 == 0
        assert "reproducible" not in card
        assert "sea-bake reproduce" not in card


def test_an_origin_in_a_record_is_a_name_and_a_commit(workshop: Workshop, tmp_path: Path) -> None:
    made = bake(workshop.base("llama"), workshop.edit("llama", "mlp", "sum"), tmp_path / "sea")
    assert made.origins == {}
    record = tmp_path / "sea" / "sea" / "bake.json"
    name = "sea/edit-0.safetensors"
    tiny.patch_json(record, origins={name: f"ada/edit@{'0' * 40}"})
    assert Artefact.open(tmp_path / "sea").bake
    for origins in ({name: "../../etc"}, {"other": f"ada/edit@{'0' * 40}"}, {name: "ada/edit"}, {name: 3}, [name]):
        tiny.patch_json(record, origins=origins)
        with pytest.raises(CheckpointError, match="damaged"):
            Artefact.open(tmp_path / "sea")
