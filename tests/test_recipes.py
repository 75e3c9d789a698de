"""Recipes: read strictly, run step by step, resumed after a kill; what changed is done again, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import real
import tiny
import torch
import yaml

from sea_bake import Edit, fit
from sea_bake.artefact.names import PAGE, PAGE_NUMBERS
from sea_bake.cli.run import _display
from sea_bake.demonstrations import load
from sea_bake.errors import OutputError, RecipeError, SeaBakeError, SettingError
from sea_bake.evaluation.neutral import TEXTS
from sea_bake.evaluation.worth import Bench
from sea_bake.io import progress
from sea_bake.recipes.reading import MAX_BYTES
from sea_bake.recipes.running import Progress, run
from sea_bake.recipes.schema import read
from sea_bake.recipes.sections import SECTIONS, Section
from sea_bake.recipes.settings import fits, wording
from sea_bake.recipes.starter import starter, write_starter

STEPS = ["collect", "fit", "bake", "verify"]


def recipe(**changes: Any) -> dict[str, Any]:
    """A lean one on the tiny Llama; a section that is given replaces the lean one's keys of that name."""
    made: dict[str, Any] = {
        "model": str(tiny.single()),
        "output": "out",
        "fit": {"demonstrations": str(tiny.demonstrations_file()), "layers": "all", "K": 0.9, "neutral": "prompt"},
        "bake": {"how": "insert"},
        "verify": {"max_new_tokens": 4},
    }
    for key, value in changes.items():
        made[key] = {**made[key], **value} if isinstance(value, dict) and key in made else value
    return made


def statuses(report: Any) -> dict[str, str]:
    return {step.step: step.status for step in report.steps}


@functools.cache
def finished() -> Path:
    """A folder in which the lean recipe has been run, with an ONNX export. Not to be changed: see ``copied``."""
    folder = tiny.root() / "finished"
    folder.mkdir()
    (folder / "sea_bake.yaml").write_text(yaml.safe_dump(recipe(export={"onnx": True})), "utf-8")
    ran = tiny.run("run", folder / "sea_bake.yaml")
    assert ran.code == 0, ran
    lines = [line for line in ran.out.splitlines() if line.startswith("[")]
    assert [line.split()[1:3] for line in lines][1::2] == [[step, "done"] for step in [*STEPS, "export.onnx"]]
    return folder


def copied(folder: Path) -> Path:
    """A copy of ``finished`` that may be spoiled; times of change are kept."""
    return Path(shutil.copytree(finished(), folder))


# ------------------------------------------------------------------------------------------------------------- starter


def test_the_starter_says_every_default_and_every_key() -> None:
    data = yaml.safe_load(starter())
    found = read(data)
    for name in ("fit", "bake", "verify", "report", "export.onnx"):
        section = data
        for part in name.split("."):
            section = section[part]
        settings = {k: s for k, s in SECTIONS[name].settings.items() if k != "output"}
        assert set(section) == set(settings), name
        for key, value in section.items():
            default = settings[key].default
            assert value == (list(default) if isinstance(default, tuple) else getattr(default, "value", default)), key
    # What is commented out is right too, once the comment signs are gone.
    text = starter().replace("  # gguf:\n  #   ", "  gguf:\n    ").replace("\n  #   ", "\n    ")
    for line in ("publish:", "  repo:", "  public:", "work:", "eval:", "  tasks:", "  data:", "  limit:"):
        assert text.count(f"\n# {line}") == 1, line
        text = text.replace(f"\n# {line}", f"\n{line}")
    whole = read(yaml.safe_load(text))
    assert set(whole.sections) == {"bake", "verify", "eval", "report", "export.onnx", "export.gguf", "publish"}
    defaults = {key: SECTIONS["eval"].settings[key].default for key in ("tasks", "data", "limit")}
    assert {key: whole.sections["eval"][key] for key in defaults} == {**defaults, "tasks": list(defaults["tasks"])}
    assert whole.sections["publish"]["repo"] == "your-name/smollm2-135m-instruct-sea"
    assert (whole.work, whole.fits) == (found.work, found.fits)


def test_init_writes_it_once(tmp_path: Path) -> None:
    file = tmp_path / "a recipe.yaml"
    ran = tiny.run("init", file, "--model", "./ba: se", "--json")
    assert (ran.code, json.loads(ran.out)) == (0, {"recipe": str(file)})
    assert yaml.safe_load(file.read_text("utf-8"))["model"] == "./ba: se"
    assert yaml.safe_load(file.read_text("utf-8"))["output"] == "ba: se-sea"
    with tiny.nothing_happens(tmp_path, tmp_path):
        tiny.refused(tiny.run("init", file), "OutputError", "exists already", "--overwrite")
    write_starter(file, overwrite=True)
    assert file.read_text("utf-8") == starter(file=file.name)
    for name in ("a\nb", "a\x85b", "a\u2028b"):
        with pytest.raises(RecipeError, match="more than one line"):
            starter(name)


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fitt": True}, "fitt: unknown key. Did you mean 'fit'?"),
        ({"fit": {"demonstratons": "x"}}, "fit.demonstratons: unknown key. Did you mean 'demonstrations'?"),
        ({"export": {"onx": True}}, "export.onx: unknown key. Did you mean 'onnx'?"),
        ({"fit": {"K": "0.9"}}, "fit.K: a number or a whole number is wanted here, not text '0.9' \\(YAML reads"),
        ({"fit": {"limit": 2.5}}, "fit.limit: a whole number or null is wanted here, not 2.5"),
        ({"fit": {"limit": True}}, "fit.limit: a whole number or null is wanted"),
        ({"fit": {"alpha": float("nan")}}, "fit.alpha: a number or null is wanted here, not nan"),
        ({"fit": {"neutral": False}}, "fit.neutral: generate or prompt is wanted here, not False"),
        ({"fit": {"layers": [1, "2"]}}, r"fit.layers: text, a list \(each a whole number\) or null is wanted"),
        ({"fit": {"K": 1.5}}, "fit: K_positive = 1.5 is outside"),
        ({"fit": {"merge": "l1"}}, "fit: unknown merge 'l1'"),
        ({"fit": {"batch_size": 0}}, "fit: batch_size"),
        ({"fit": {"layers": "last:99"}}, "the model has 4 layers, not 99"),
        ({"fit": {"limit": 1}}, "at least 2 usable triples"),
        ({"fit": {"demonstrations": "nowhere.jsonl"}}, "nowhere.jsonl.*no such file"),
        ({"fit": [{"K": 0.5}]}, "fit.0: each edit of a list has a name"),
        ({"fit": [{"name": "../x"}]}, "fit.0: each edit of a list has a name"),
        ({"fit": [{"name": "a"}, {"name": "a"}]}, "two edits are called 'a'"),
        ({"fit": False}, "bake: there is no edit to bake"),
        ({"edits": ["x.safetensors"]}, "either 'fit' or the files of ready 'edits'"),
        ({"bake": {"how": "weld"}}, "bake: unknown way to bake 'weld'"),
        ({"bake": {"rank": 4}}, "bake: calibration texts and a rank are for an approximate fold alone"),
        ({"bake": "insert"}, "bake: settings"),
        ({"publish": True}, "publish: 'repo' is missing"),
        ({"publish": {"repo": "me/x"}, "verify": False}, "publish: only what is verified is published: add 'verify'"),
        ({"model": None}, "'model' is missing"),
        ({"model": "./nowhere"}, "no such model"),
        ({"output": 3}, "output: text is wanted"),
        ({"output": None}, "'output' is missing"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_wrong_recipes_are_refused_before_anything_runs(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    made = recipe(**changes)
    with tiny.nothing_happens(tmp_path), pytest.raises(SeaBakeError, match=words):
        run(made, folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"model: !!python/object/apply:os.system ['touch PWNED']\n", "sea_bake.yaml:1: .* the tag"),
        (b"model: !!str m\n", "the tag"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "anchors .* are refused"),
        (b"model: m\noutput: o\nmodel: n\n", "sea_bake.yaml:3: the key 'model' stands there twice"),
        (b"fit: {K: 1, K: 2}\n", "sea_bake.yaml:1: the key 'K' stands there twice"),
        (b"model: [\n", "sea_bake.yaml:2: not valid YAML"),
        (b"model: m\n--- \nmodel: n\n", "not valid YAML"),
        (b"a: " + b"[" * 100 + b"]" * 100, "more than 16 levels deep"),
        (b"a: 2026-13-45\n", "not valid YAML"),
        (b"- model\n", "is no recipe"),
        (b"", "is no recipe"),
        (b"model: \xff\n", "not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "at most"),
        (b"? [a, b]\n: c\n", "."),
        (b"model: m\n\noutput: o\nfit:\n  k: 1\n", "sea_bake.yaml:5: fit.k: unknown key. Did you mean 'K'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else repr(value[:24]),
)
def test_hostile_and_broken_yaml_is_refused(tmp_path: Path, text: bytes, words: str) -> None:
    file = tmp_path / "sea_bake.yaml"
    file.write_bytes(text)
    with tiny.nothing_happens(tmp_path, tmp_path), pytest.raises(RecipeError, match=words):
        run(file)
    ran = tiny.run("run", file)
    tiny.refused(ran, "RecipeError")


def test_a_step_that_this_version_lacks() -> None:
    with pytest.raises(RecipeError, match="fly: the step 'fly' is not there in this version"):
        Section("sea_bake.flying:fly", "artefact").require("fly", "fly")
    with pytest.raises(RecipeError, match="is not there"):
        Section("sea_bake.baking:fly", "artefact").require("fly", "fly")
    SECTIONS["bake"].require("bake", "bake")  # the control: what is there is not refused


def test_types_in_words() -> None:
    assert wording(SECTIONS["fit"].settings["K_positive"].hint) == "a number, a whole number or null"
    assert [fits(3, float), fits(3.0, int), fits(True, float), fits("", str)] == [True, False, False, False]
    assert not fits({}, SECTIONS["fit"].settings["format"].hint)


# ------------------------------------------------------------------------------------------------------------- running


@pytest.mark.slow
def test_a_recipe_does_what_the_library_does(tmp_path: Path) -> None:
    folder = finished()
    triples = load(tiny.demonstrations_file())
    direct = fit(tiny.single(), triples, layers="all", K=0.9, neutral="prompt", device="cpu")
    for file in (folder / "out-work" / "edit.safetensors", folder / "out" / "sea" / "edit-0.safetensors"):
        edit = Edit.load(file)
        assert edit.layers == direct.layers
        for layer in edit.layers:  # the same steps on the same numbers: bit for bit
            assert torch.equal(edit.projectors[layer].positive, direct.projectors[layer].positive)
            assert torch.equal(edit.projectors[layer].negative, direct.projectors[layer].negative)
        assert edit.recipe == direct.recipe
    report = json.loads((folder / "out" / "sea_verification.json").read_text("utf-8"))
    assert (report["passed"], report["how"]) == (True, "insert")
    assert (folder / "out-onnx" / "onnx" / "model.onnx").is_file()
    state = (folder / "out-work" / "state.json").read_text("utf-8")
    assert str(tiny.root()) not in state
    assert tiny.single().name not in state


@pytest.mark.slow
def test_the_second_run_does_nothing(tmp_path: Path) -> None:
    folder = copied(tmp_path / "project")
    before = tiny.snapshot(folder)
    ran = tiny.run("run", folder / "sea_bake.yaml", "--json")
    assert ran.code == 0, ran
    assert {step["step"]: step["status"] for step in json.loads(ran.out)["steps"]} == dict.fromkeys(
        [*STEPS, "export.onnx"], "kept"
    )
    assert tiny.snapshot(folder) == before


ALL = [*STEPS, "export.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        ({}, []),
        ({"fit": {"K": 0.8}}, ALL[1:]),
        ({"fit": {"merge": "l2"}}, ALL[1:]),
        ({"fit": {"position": "mean"}}, ALL),
        ({"fit": {"limit": 6}}, ALL),
        ({"bake": {"copy": True}}, ALL[2:]),
        ({"verify": {"max_new_tokens": 5}}, ["verify"]),
        ({"export": {"onnx": {"opset": 20}}}, ["export.onnx"]),
        ({"model": "other"}, ["collect", "fit", "bake", "verify", "export.onnx"]),
    ],
    ids=str,
)
def test_a_changed_setting_redoes_what_depends_on_it(
    tmp_path: Path, changes: dict[str, Any], redone: list[str]
) -> None:
    folder = copied(tmp_path / "project")
    if "model" in changes:
        tiny.changeable(tiny.single(seed=1), folder / "other")
    before = tiny.snapshot(folder)
    found = run(recipe(**{"export": {"onnx": True}, **changes}), folder=folder, dry_run=True)
    assert statuses(found) == {step: "would run" if step in redone else "kept" for step in ALL}
    assert tiny.snapshot(folder) == before  # a dry run writes nothing


@pytest.mark.slow
def test_only_what_changed_is_done_again(tmp_path: Path) -> None:
    """The same for real: K is refitted from the saved activations, without the model."""
    folder = copied(tmp_path / "project")
    before = tiny.snapshot(folder)
    found = run(recipe(fit={"K": 2}), folder=folder, until="bake")
    assert statuses(found) == {"collect": "kept", "fit": "done", "bake": "done", "verify": "left out"}
    assert found.steps[1].why == "changed: K"
    after = tiny.snapshot(folder)
    assert after["out-work/edit.activations.safetensors"] == before["out-work/edit.activations.safetensors"]
    assert Edit.load(folder / "out" / "sea" / "edit-0.safetensors").ranks == dict.fromkeys(range(4), (2, 2))
    assert "sea_verification.json" not in tiny.listing(folder / "out")  # that of the old artefact is gone with it
    again = run(recipe(fit={"K": 2}), folder=folder, until="bake", again_from="fit")
    assert statuses(again) == {"collect": "kept", "fit": "done", "bake": "done", "verify": "left out"}
    with pytest.raises(SettingError, match=r"'bakee' is no step of recipe\. Did you mean 'bake'"):
        run(recipe(), folder=folder, until="bakee")


@pytest.mark.slow
def test_a_lost_or_spoiled_output_is_made_again_and_nobody_elses_is_touched(tmp_path: Path) -> None:
    folder = copied(tmp_path / "project")
    (folder / "out-work" / "edit.safetensors").unlink()
    found = run(recipe(), folder=folder, dry_run=True)
    assert statuses(found) == dict(zip(STEPS, ["kept", "would run", "would run", "would run"]))
    assert found.steps[1].why == "its output is gone or was changed"
    # The same edit comes out again, so what stands on it is kept.
    assert statuses(run(recipe(), folder=folder, until="bake"))["bake"] == "kept"
    tiny.patch_json(folder / "out" / "config.json", torch_dtype="float64")
    with tiny.nothing_happens(folder, folder), pytest.raises(OutputError, match="no run of recipe left it so"):
        run(recipe(), folder=folder)
    # Nor is a folder of the user's that is there before the first run; not even with overwrite.
    other = tmp_path / "other"
    (other / "out").mkdir(parents=True)
    (other / "out" / "thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(OutputError, match="exists already"):
        run(recipe(), folder=other, until="bake")
    assert tiny.listing(other) == {"out"}
    with pytest.raises(OutputError, match="was not written by sea_bake"):
        run(recipe(), folder=other, until="bake", overwrite=True)
    assert (other / "out" / "thesis.txt").read_text("utf-8") == "mine"


@pytest.mark.slow
def test_a_failed_verification_stops_the_run(tmp_path: Path) -> None:
    """An edit too weak for the numbers to hold it is the base: nothing may be exported or published as edited."""
    made = recipe(fit={"alpha": 1e-12}, export={"onnx": True})
    file = tmp_path / "sea_bake.yaml"
    file.write_text(yaml.safe_dump(made), "utf-8")
    ran = tiny.run("run", file)
    assert ran.code == 1, ran
    assert "verify failed" in ran.out
    assert "answers like the unedited base" in ran.out
    assert "out-onnx" not in tiny.listing(tmp_path)
    again = run(file, dry_run=True)  # a failure is not remembered as done
    assert statuses(again)["verify"] == statuses(again)["export.onnx"] == "would run"


def test_a_terminal_shows_one_table_with_the_bar_of_the_running_step() -> None:
    from rich.console import Console

    screen = Console(force_terminal=True, width=90, file=io.StringIO())
    steps = [Progress("collect"), Progress("fit")]
    with _display(screen) as watch:
        steps[0].status, steps[0].why = "running", "not done yet"
        watch(steps)
        with progress.bar("activations", 3) as advance:
            advance(1)
            watch(steps)
        steps[0].status = "done"
        watch(steps)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.file.getvalue())
    assert re.search(r"» *collect *running *not done yet\s*· *fit *waiting\s*activations [━╺╸]+ 1/3", shown)
    assert re.search(r"✓ *collect *done\s*· *fit *waiting\s*$", shown)


def test_a_log_gets_a_line_a_minute_and_short_work_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("sea_bake.io.progress.time.monotonic", lambda: now[0])
    progress.set_quiet(False)
    with progress.bar("measured", 4) as outer, progress.bar("activations", 3000) as inner:
        for now[0] in (1059, 1060, 1061, 1119):
            inner(500)
        outer(1)
        now[0] = 1121
        inner(500)
        progress.set_quiet(True)
        now[0] = 1200
        inner(500)
    lines = ["measured: 0 of 4, activations: 1,000 of 3,000", "measured: 1 of 4, activations: 2,500 of 3,000"]
    assert capsys.readouterr().err.splitlines() == lines


def test_several_edits_act_in_their_order(tmp_path: Path) -> None:
    lean = recipe()["fit"] | {"site": "mlp"}
    edits = [{"name": "one", **lean}, {"name": "two", **lean, "site": "attn", "K": 2}]
    found = run({**recipe(), "fit": edits}, folder=tmp_path, until="bake")
    assert list(statuses(found)) == ["collect.one", "fit.one", "collect.two", "fit.two", "bake", "verify"]
    inside = [Edit.load(tmp_path / "out" / "sea" / f"edit-{i}.safetensors") for i in range(2)]
    assert [edit.site.value for edit in inside] == ["mlp", "attn"]
    # Ready edits in place of a fit give the same artefact.
    files = [f"out-work/{name}.safetensors" for name in ("one", "two")]
    ready = {**recipe(), "fit": False, "edits": files, "output": "ready"}
    assert statuses(run(ready, folder=tmp_path, until="bake")) == {"bake": "done", "verify": "left out"}
    assert tiny.sha256(tmp_path / "ready" / "model-sea.safetensors") == tiny.sha256(
        tmp_path / "out" / "model-sea.safetensors"
    )


# --------------------------------------------------------------------------------------------------------------- kills


@pytest.mark.parametrize("name", ["m" * 5000, "~nobody-of-that-name/m", "a/" * 3000])
def test_a_name_that_no_file_system_takes_is_a_name_like_any_other(name: str) -> None:
    """Not a traceback from the depths: it is read as it stands, and at most there is no such model."""
    found = read({"model": name, "output": "out", "fit": {"demonstrations": name}})
    assert name.rstrip("/") in found.model
    with contextlib.suppress(SeaBakeError):  # a long name may be one of the Hub's, which a dry run does not ask
        run({"model": name, "output": "out", "fit": {}}, dry_run=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL at random moments: what was finished is kept, the rest is done, and nothing is ever half-written."""
    made = recipe(model=str(tiny.large()), bake={"copy": True})
    del made["verify"]  # it writes one small file; the kills are for the steps that write much
    made["fit"] |= {"layers": "last:4", "alpha": 1.0, "measure": False}  # nor does what is measured write anything
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    (undisturbed / "r.yaml").write_text(yaml.safe_dump(made), "utf-8")
    tiny.nursery().run("run", undisturbed / "r.yaml", "--until", "collect")
    shutil.rmtree(undisturbed / "out-work")
    ran, seconds = tiny.nursery().run("run", undisturbed / "r.yaml", "--quiet")
    assert ran.code == 0, ran
    expected = tiny.sha256(undisturbed / "out-work" / "edit.safetensors")
    chance = random.Random(0)
    kept: list[int] = []
    for kill in range(4):
        folder = tmp_path / f"kill-{kill}"
        folder.mkdir()
        (folder / "r.yaml").write_text(yaml.safe_dump(made), "utf-8")
        state = folder / "out-work" / "state.json"
        if kill < 3:
            ran = tiny.nursery().killed((kill + chance.random()) / 4 * seconds, "run", folder / "r.yaml", "--quiet")
        else:  # and once surely behind the first step, however slow this machine has become
            pid = tiny.nursery().start("run", folder / "r.yaml", "--quiet")
            deadline = time.monotonic() + 120
            while not (state.exists() and json.loads(state.read_text("utf-8"))["steps"]):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            ran = tiny.nursery().wait()[0]
        assert ran.code in (0, -signal.SIGKILL)
        done = set(json.loads(state.read_text("utf-8"))["steps"]) if state.exists() else set()
        before = tiny.snapshot(folder)
        report = run(folder / "r.yaml")
        assert {step for step, status in statuses(report).items() if status == "kept"} == done
        assert {step for step, status in statuses(report).items() if status == "done"} == {
            "collect",
            "fit",
            "bake",
        } - done
        after = tiny.snapshot(folder)
        for step, file in (("collect", "edit.activations.safetensors"), ("fit", "edit.safetensors")):
            if step in done:
                assert after[f"out-work/{file}"] == before[f"out-work/{file}"]
        assert tiny.sha256(folder / "out-work" / "edit.safetensors") == expected
        assert not [name for name in [*tiny.listing(folder), *tiny.listing(folder / "out-work")] if "-old-" in name]
        kept.append(len(done))
        shutil.rmtree(folder)
    assert min(kept) < 3, "no kill came before the end: nothing has been shown"
    assert max(kept) > 0, "no kill came after a finished step: nothing has been kept"


def test_two_runs_do_not_work_in_one_folder(tmp_path: Path) -> None:
    """The second is told so and touches nothing; the first goes on, and a third finds its work done."""
    file = tmp_path / "sea_bake.yaml"
    file.write_text(yaml.safe_dump(recipe(verify=False)), "utf-8")
    outcomes: list[Any] = []

    def second(steps: Any) -> None:
        if not outcomes and steps[1].status == "running":
            with tiny.nothing_happens(tmp_path / "out-work"):
                outcomes.append(tiny.run("run", file))
            outcomes.append(statuses(run(file, dry_run=True)))

    assert run(file, watch=second).passed
    tiny.refused(outcomes[0], "RecipeError", "another run is at work in", "'work'")
    assert outcomes[1] == {"collect": "kept", "fit": "would run", "bake": "would run"}
    assert set(statuses(run(file)).values()) == {"kept"}


@pytest.mark.slow
def test_what_a_step_reads_is_watched(tmp_path: Path) -> None:
    """Other texts under the same name are other inputs."""
    texts = tmp_path / "c.jsonl"
    shutil.copyfile(tiny.demonstrations_file(4), texts)
    told = recipe(
        fit={**recipe()["fit"], "merge": "l2"}, verify=False,
        bake={"how": "fold", "approximate": True, "calibration": str(texts)},
    )  # fmt: skip
    assert run(told, folder=tmp_path).passed
    assert set(statuses(run(told, folder=tmp_path)).values()) == {"kept"}
    shutil.copyfile(tiny.demonstrations_file(6), texts)
    assert statuses(run(told, folder=tmp_path)) == {"collect": "kept", "fit": "kept", "bake": "done"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"work": "out"}, "'work' .* lies where bake writes"),
        ({"work": "out/inside"}, "'work' .* lies where bake writes"),
        ({"fit": [{"name": "a"}, {"name": "a.activations"}]}, "would both write to"),
        ({"export": {"onnx": {"output": "out"}}}, "bake and export.onnx would both write to"),
    ],
)
def test_no_two_steps_write_to_one_place(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    if isinstance(changes.get("fit"), list):
        changes = {"fit": [{**recipe()["fit"], **one} for one in changes["fit"]]}
    with tiny.nothing_happens(tmp_path), pytest.raises(RecipeError, match=words):
        run(recipe(**changes), folder=tmp_path)


@pytest.mark.slow
def test_the_page_is_a_step(tmp_path: Path) -> None:
    """Drawn of the activations that the fit was made of, and again when the verification is."""
    told = recipe(report=True)
    assert run(told, folder=tmp_path).passed
    assert statuses(run(told, folder=tmp_path))["report"] == "kept"
    numbers = json.loads((tmp_path / "out" / PAGE_NUMBERS).read_text("utf-8"))
    assert numbers["verdict"] == "verified"
    assert numbers["edits"][0]["own_demonstrations"]
    assert len(numbers["samples"]) == 4
    again = statuses(run(told | {"verify": {"max_new_tokens": 4, "positions": 3}}, folder=tmp_path))
    assert again == {"collect": "kept", "fit": "kept", "bake": "kept", "verify": "done", "report": "done"}
    page = (tmp_path / "out" / PAGE).read_bytes()
    (tmp_path / "out" / PAGE).write_bytes(page + b" ")
    with pytest.raises(OutputError, match="no run of recipe left it so"):
        run(told, folder=tmp_path)
    with pytest.raises(SettingError, match="report: unknown projection 'umap'"):
        read(recipe(report={"projection": "umap"}), folder=tmp_path)


@pytest.mark.slow
def test_an_interrupt_ends_a_run_and_the_next_goes_on(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe(model=str(tiny.large()))), "utf-8")
    pid = tiny.nursery().start("run", tmp_path / "r.yaml", "--until", "bake")
    state = tmp_path / "out-work" / "state.json"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(pid, signal.SIGINT)  # inside the first step: its beginning is on disk
    ran, _ = tiny.nursery().wait()
    assert ran.code == 130, ran
    assert ran.err.startswith("interrupted")
    assert json.loads(state.read_text("utf-8"))["begun"] is None
    assert statuses(run(tmp_path / "r.yaml", until="collect"))["collect"] == "done"


# ---------------------------------------------------------------------------------------------------------- real model


@pytest.mark.slow
@pytest.mark.smollm2
def test_the_starter_recipe_on_the_real_model(
    short_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From nothing to a verified, exported artefact: the starter as it is, but for fewer demonstrations, the prompt as
    neutral text, fewer texts to measure on, shorter answers on the page, the model's first layers, and GGUF in the
    place of ONNX, whose trace of the whole takes half a minute (that is run by hand).
    """
    monkeypatch.setattr("sea_bake.reporting.living._TOKENS", 12)
    monkeypatch.setitem(Bench.__init__.__kwdefaults__, "texts", TEXTS[:6])
    file = tmp_path / "sea_bake.yaml"
    assert tiny.run("init", file, "--model", short_smollm2, "-o", "edited").code == 0
    gguf = real.short_gguf()
    text = file.read_text("utf-8")
    for old, new in {
        "limit: null             # maximum number": "limit: 12             # maximum number",
        "neutral: generate": "neutral: prompt",
        "max_new_tokens: 32      # of the greedy": "max_new_tokens: 8      # of the greedy",
        "  # gguf:": f"  gguf:\n    base: {json.dumps(str(gguf))}",
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    onnx = text[text.index("  onnx:") : text.index("  # GGUF")]
    file.write_text(text.replace(onnx, ""), "utf-8")
    ran = tiny.run("run", file, "--json")
    assert ran.code == 0, ran
    steps = {step["step"]: step for step in json.loads(ran.out)["steps"]}
    expected = [*STEPS, "report", "export.gguf"]
    assert {name: step["status"] for name, step in steps.items()} == dict.fromkeys(expected, "done")
    assert steps["bake"]["details"]["how"] == "fold"
    assert steps["verify"]["details"]["verdict"] == "verified"
    assert (tmp_path / "edited.gguf").stat().st_size > 0.9 * gguf.stat().st_size
    assert set(statuses(run(file)).values()) == {"kept"}
