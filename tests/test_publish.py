"""Publish: to a Hub on loopback that speaks the real protocol, and back from it in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import doors
import exports
import ggufs
import pytest
import tiny
import torch
import yaml
from conftest import Workshop, load
from hub_server import Hub, complaints
from safetensors.torch import load_file

from sea_bake import bake, fit, verify
from sea_bake.activations.prompts import encode
from sea_bake.activations.rendering import usable
from sea_bake.artefact import Artefact
from sea_bake.artefact.evaluation import edit_digest
from sea_bake.artefact.seal import broken, seal
from sea_bake.demonstrations import builtin
from sea_bake.errors import CheckpointError, FamilyError, OutputError, PublishError, SettingError
from sea_bake.exporting.gguf.names import ARCHITECTURES
from sea_bake.exporting.gguf.quantising import quantise_gguf
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.model.source import ModelSource
from sea_bake.pages.markdown import plain
from sea_bake.publishing import publish
from sea_bake.publishing.ggufs import _check_room, quantised
from sea_bake.publishing.parts import VOCABULARIES
from sea_bake.publishing.secrets import leak

ADA, BOB, READER = (f"hf_{name}{'x' * (34 - len(name))}" for name in ("ada", "bob", "reader"))
USER = "zaphodbeeblebrox"  # of the machine; the Hub's users are others
WAYS = {"insert": "l2", "fold": "sum", "adapter": "sum"}
BASE_CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n\n# A tiny base\n"
PROBE = [[1, 20, 30, 40, 50, 60], [1, 33, 44, 55, 66, 77]]

LOAD = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

name, base, trust, output = sys.argv[1:5]
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), name)
else:
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=trust == "1", dtype=torch.float32)
AutoTokenizer.from_pretrained(base or name, trust_remote_code=trust == "1")
with torch.inference_mode():
    save_file({"logits": model.eval()(torch.tensor(json.loads(sys.argv[5]))).logits.contiguous()}, output)
"""


class Desk(tiny.Nursery):
    """The publisher's machine: a home, a login, and a nursery whose Hub is the one on loopback."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder, self.home = hub, folder, folder / USER
        self.home.mkdir(parents=True)
        self.login = self.home / "hf" / "token"
        self.login.parent.mkdir()
        self.env = {
            **os.environ,
            "HOME": str(self.home),
            "USER": USER,
            "LOGNAME": USER,
            "HF_HOME": str(self.home / "hf"),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # xet's own servers are not spoken to: the other protocol of the Hub is
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "LLAMA_CPP": str(folder / "llama.cpp"),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        script = (
            "import os, doors, tiny; os.environ['HF_HUB_OFFLINE'] = '0'; tiny.preload(); "
            "doors.one_thread(); doors.warm(); tiny._serve()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=self.env,
        )

    def ok(self, *args: Any) -> dict[str, Any]:
        """``sea-bake ARGS --json``, which has to succeed."""
        ran, _ = self.run(*args, "--json")
        assert ran.code == 0, ran
        return json.loads(ran.out)

    def refused(self, *args: Any, says: str) -> None:
        ran, _ = self.run(*args)
        tiny.refused(ran, "PublishError")
        assert re.search(says, ran.message), ran.message

    @contextlib.contextmanager
    def logged_in(self, token: str | None) -> Iterator[None]:
        """As ``hf auth login`` and ``hf auth logout`` leave it."""
        before = self.login.read_text()
        try:
            self.login.unlink()
            if token is not None:
                self.login.write_text(token)
            yield
        finally:
            self.login.write_text(before)

    def python(self, script: str, *words: str, new: bool = False) -> subprocess.CompletedProcess[str]:
        """``python -c`` with an empty cache and the Hub in reach: new, or a fork that has transformers and no more."""
        home = self.folder / "fresh"
        shutil.rmtree(home, ignore_errors=True)
        env = {**self.env, "HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_TOKEN": ADA}
        command = [sys.executable, "-c", script, *words]
        if new:
            return subprocess.run(command, env=env, capture_output=True, text=True, cwd=self.folder)
        return doors.forked(command, env)

    def logits(
        self, name: str, tmp_path: Path, *, base: str = "", trust: bool = False, new: bool = False
    ) -> torch.Tensor:
        """Loaded by name, with an empty cache, from the Hub."""
        output = tmp_path / "logits.safetensors"
        ran = self.python(LOAD, name, base, str(int(trust)), str(output), json.dumps(PROBE), new=new)
        assert ran.returncode == 0, ran.stderr
        return load_file(output)["logits"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    server = Hub(tmp_path_factory.mktemp("hub"), {ADA: "ada", BOB: "bob", READER: "ada"}, readers={READER})
    with server.running():
        yield server


@pytest.fixture(scope="module")
def desk(hub: Hub, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    made = Desk(hub, folder)
    made.login.write_text(ADA)
    base = tiny.changeable(workshop.base("llama"), folder / "tiny-llama")
    (base / "README.md").write_text(BASE_CARD)
    hub.add("tiny/llama", base)
    yield made
    made.close()


@pytest.fixture(scope="module")
def artefact(desk: Desk, workshop: Workshop) -> Callable[[str], Path]:
    """One way of baking the base that lies on the Hub, verified; made once. Not to be changed."""
    made: dict[str, Path] = {}

    def make(how: str) -> Path:
        if how not in made:
            edit = desk.folder / f"{WAYS[how]}.safetensors"
            if not edit.exists():
                workshop.edit("llama", "mlp", WAYS[how]).save(edit)
            made[how] = desk.folder / f"sea-{how}"
            # In the nursery itself: what its children need is then imported once.
            ran, _ = desk.run("bake", "tiny/llama", edit, "--how", how, "-o", made[how], "--copy", warm=True)
            assert ran.code == 0, ran
            assert desk.ok("verify", made[how], "--max-new-tokens", 4)["verdict"] == "verified"
        return made[how]

    return make


@pytest.fixture
def changed(artefact: Callable[[str], Path], tmp_path: Path) -> Path:
    """The inserted artefact, to be spoilt."""
    return tiny.changeable(artefact("insert"), tmp_path / "spoilt")


# ------------------------------------------------------------------------------------------------- there and back again


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_a_published_artefact_loads_by_name_and_answers_alike(
    how: str, desk: Desk, hub: Hub, artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    """One commit, private; what the base's repository holds is copied there; a second publish sends nothing."""
    folder, repo = artefact(how), f"ada/sea-{how}"
    before = tiny.snapshot(folder)
    uploads, commits, copies = (len(c) for c in (hub.counts.uploads, hub.counts.commits, hub.counts.copies))
    report = desk.ok("publish", folder, repo)
    assert (report["verdict"], report["private"], hub.repos[repo].private) == ("verified", True, True)
    assert len(hub.counts.commits) == commits + 1
    local = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(hub.tree(repo)) == local | {"README.md", "sea_bake.yaml", ".gitattributes"}
    for path in local - {"README.md"}:
        assert hub.file(repo, path) == (folder / path).read_bytes()
    # Of the insert's weights only the SEA shard was sent: the base's own file was copied on the Hub.
    large = {p for p in local if p.endswith(".safetensors")}
    assert set(report["copied"]) == ({"model-base.safetensors"} if how == "insert" else set())
    assert len(hub.counts.copies) == copies + len(report["copied"])
    assert large - set(report["copied"]) <= set(report["sent"])
    sent = {hashlib.sha256((folder / p).read_bytes()).hexdigest() for p in large - set(report["copied"])}
    assert sorted(hub.counts.uploads[uploads:]) == sorted(sent)

    uploads, head = len(hub.counts.uploads), hub.repos[repo].heads["main"]
    again = desk.ok("publish", folder, repo)
    assert (again["sent"], again["copied"], again["removed"]) == ([], [], [])
    assert (again["commit"], hub.repos[repo].heads["main"]) == (head, head)
    assert (len(hub.counts.uploads), len(hub.counts.commits)) == (uploads, commits + 1)
    assert tiny.snapshot(folder) == before

    found = desk.logits(repo, tmp_path, base="tiny/llama" if how == "adapter" else "", trust=how == "insert")
    base = load(desk.folder / "tiny-llama", "float32")
    with torch.inference_mode():
        unedited = base(torch.tensor(PROBE)).logits
        if how == "adapter":
            from peft import PeftModel

            expected = PeftModel.from_pretrained(base, folder).eval()(torch.tensor(PROBE)).logits
        else:
            expected = load(folder, "float32")(torch.tensor(PROBE)).logits
    assert torch.equal(found, expected)  # the same files, code and machine: the same bits
    assert (found - unedited).abs().max() > 0.01  # the control


@pytest.mark.slow
def test_an_insert_does_not_load_from_the_hub_without_trust(
    desk: Desk, artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    desk.ok("publish", artefact("insert"), "ada/sea-insert")
    with pytest.raises(AssertionError, match="trust_remote_code"):
        desk.logits("ada/sea-insert", tmp_path)


@pytest.mark.slow
@pytest.mark.smollm2
def test_the_real_model_goes_there_and_back(desk: Desk, hub: Hub, short_smollm2: Path, tmp_path: Path) -> None:
    """A quarter of a gigabyte, linked by the bake, sent once, loaded by name in a fresh process."""
    smollm2 = short_smollm2
    edit = fit(
        smollm2, tiny.demonstrations(), neutral="prompt", layers="last:5", merge="sum", budget=None, measure=False
    )
    bake(smollm2, edit, tmp_path / "sea", how="insert")
    assert verify(tmp_path / "sea", base=smollm2, max_new_tokens=4, prompts=["The capital of France is"]).passed
    uploads = len(hub.counts.uploads)
    report = desk.ok("publish", tmp_path / "sea", "ada/smollm2-sea", "--license", "apache-2.0")
    assert report["bytes"] > 250e6
    shards = list(smollm2.glob("*.safetensors"))
    assert len(hub.counts.uploads) == uploads + len(shards) + 2  # the base's, the SEA shard, the edit
    again = desk.ok("publish", tmp_path / "sea", "ada/smollm2-sea", "--license", "apache-2.0")
    assert (again["sent"], again["commit"]) == ([], report["commit"])
    found = desk.logits("ada/smollm2-sea", tmp_path, trust=True, new=True)
    with torch.inference_mode():
        expected = load(tmp_path / "sea", "float32")(torch.tensor(PROBE)).logits
        unedited = load(smollm2, "float32")(torch.tensor(PROBE)).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # threads may part a sum in other ways
    assert (found - unedited).abs().max() > 0.1  # the control
    for name in [k for k in hub.tree("ada/smollm2-sea") if k.endswith(".safetensors")]:
        (hub.folder / hub.tree("ada/smollm2-sea")[name].key).unlink()
    shutil.rmtree(desk.folder / "fresh")


# ------------------------------------------------------------------------------------------------------------- the card


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_the_card_is_what_hub_readers_expect(how: str, desk: Desk, artefact: Callable[[str], Path]) -> None:
    """Valid by the Hub's documented rules, the same after a round trip through huggingface_hub, and full of facts."""
    from huggingface_hub import ModelCard, ModelCardData
    from huggingface_hub.repocard import metadata_load

    report = desk.ok("publish", artefact(how), "ada/some-name", "--dry-run")
    card = ModelCard(report["card"])
    assert complaints(report["card"]) == []
    assert ModelCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()
    saved = desk.folder / "card.md"
    saved.write_text(report["card"])
    data = metadata_load(saved)
    relation = "adapter" if how == "adapter" else "finetune"
    expected = {
        "base_model": "tiny/llama",
        "base_model_relation": relation,
        "library_name": "peft" if how == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "language": ["en"],
    }
    assert {key: data[key] for key in expected} == expected
    assert {"sea", "activation-steering", "arxiv:2405.09719", f"base_model:{relation}:tiny/llama"} <= set(data["tags"])
    assert ("custom_code" in data["tags"]) == (how == "insert")
    text = card.text
    verification = json.loads((artefact(how) / "sea_verification.json").read_text())
    measured = max(verification["equality"][key] for key in ("max_abs", "padded_max_abs"))
    for fact in (
        "MLP output",
        "1, 3 of 4",
        f"map | merge {WAYS[how]}",
        "0.9",
        f"{measured:.2e}",
        "**verified**",
        verification["facts"]["transformers"],
        "Not measured",
        "sea-bake reproduce ada/some-name",
        "2405.09719",
        "apache-2.0",
    ):
        assert fact in text, fact
    assert ("trust_remote_code=True" in text) == (how == "insert")
    assert "Not verified" not in text
    for other in ("llama.cpp", "onnxruntime", "SGLang"):
        assert other not in text  # nothing is said of runtimes in which nothing was verified


def test_the_rules_of_the_card_see_what_they_should() -> None:
    """The control of ``complaints``."""
    bad = {
        "license": "my-own",
        "base_model_relation": "cousin",
        "pipeline_tag": "talking",
        "base_model": "a local/folder/name",
        "datasets": ["ok/ok", "not ok"],
        "model-index": [{"name": "m", "results": [{"task": {}, "dataset": {"type": "t"}, "metrics": [{"type": "a"}]}]}],
    }
    for key, value in bad.items():
        assert complaints(f"---\n{yaml.safe_dump({key: value})}---\n"), key
    assert complaints("no metadata")
    assert complaints("---\nlicense: other\n---\n") == ["license_name is missing"]


@pytest.mark.slow
def test_the_recipe_tells_how_it_was_made(desk: Desk, hub: Hub, artefact: Callable[[str], Path]) -> None:
    desk.ok("publish", artefact("fold"), "ada/sea-fold")
    recipe = yaml.safe_load(hub.file("ada/sea-fold", "sea_bake.yaml"))
    edit = artefact("fold") / "sea" / "edit-0.safetensors"
    assert recipe["model"] == "tiny/llama"
    assert recipe["revision"] == hub.repos["tiny/llama"].heads["main"]
    assert recipe["provenance"]["edits"][0]["sha256"] == hashlib.sha256(edit.read_bytes()).hexdigest()
    assert any(line.startswith("sea-bake fit") for line in recipe["provenance"]["commands"])


@pytest.mark.slow
def test_what_was_published_is_fitted_again_from_its_name_alone(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    """Base, recipe and edit all come from the Hub. The control: another share of variance is not the same edit."""
    edit, made = tmp_path / "edit.safetensors", tmp_path / "sea-again"
    settings = ["--limit", 8, "--neutral", "prompt", "--layers", "1,3", "-K", 3, "--merge", "sum"]
    desk.ok("fit", "tiny/llama", "-o", edit, *settings)
    desk.ok("bake", "tiny/llama", edit, "-o", made, "--copy")
    desk.ok("verify", made, "--max-new-tokens", 4)
    desk.ok("publish", made, "ada/sea-again")
    again = desk.ok("reproduce", "ada/sea-again")
    (found,) = again["edits"]
    assert again["reproduced"] is True
    assert found["tolerance"]["noise"] == 3e-5
    assert sorted({layer["layer"] for layer in found["layers"]}) == [1, 3]
    other = made / "sea_bake.yaml"
    text = hub.file("ada/sea-again", "sea_bake.yaml").decode()
    assert "K_positive: 3" in text
    other.write_text(text.replace("K_positive: 3", "K_positive: 2"))
    ran, _ = desk.run("reproduce", made, "--json")
    assert ran.code == 1, ran
    assert json.loads(ran.out)["reproduced"] is False


@pytest.mark.slow
def test_a_published_artefact_is_opened_by_its_hub_id(desk: Desk, artefact: Callable[[str], Path]) -> None:
    """Inspected and verified by name, as it lies there; nothing is written into the Hub's cache."""
    desk.ok("publish", artefact("fold"), "ada/opened")
    seen = desk.ok("inspect", "ada/opened")
    assert (seen["bake"]["how"], seen["verdict"]) == ("fold", "verified")
    cached = next((desk.home / "hf" / "hub" / "models--ada--opened" / "snapshots").iterdir())
    before = {path: path.stat().st_mtime_ns for path in cached.rglob("*")}
    found = desk.ok("verify", "ada/opened", "--max-new-tokens", 4)
    assert (found["verdict"], found["artefact"], found["base"]) == ("verified", "opened", "tiny/llama")
    assert {path: path.stat().st_mtime_ns for path in cached.rglob("*")} == before
    ran, _ = desk.run("inspect", "ada/nothing-of-the-kind")
    tiny.refused(ran, "CheckpointError", "no artefact 'ada/nothing-of-the-kind'")


def measured(dataset: dict[str, str], metric: str, value: float, base: float, interval: list[float], kind: str) -> Any:
    """One row of an evaluation, as ``evaluate`` writes it."""
    return {
        "task": dataset["name"],
        "dataset": dataset,
        "metric": {"type": metric, "name": metric},
        "value": value,
        "base": base,
        "interval": interval,
        "better": "higher",
        "judged": True,
        "kind": kind,
        "n": 200,
        "p": 0.04,
        "test": "McNemar",
        "unit": "%",
        "part": "",
        "changed": 9,
        "value_interval": [value - 0.05, value + 0.05],
        "base_interval": [base - 0.05, base + 0.05],
    }


HELLASWAG = {"type": "Rowan/hellaswag", "name": "HellaSwag", "split": "validation"}
TRUTHFULQA = {"type": "truthfulqa/truthful_qa", "name": "TruthfulQA"}
RESULTS = {
    "format": "sea_bake.evaluation",
    "version": 1,
    "settings": {"limit": 200, "offset": 0, "chat": False, "dtype": "auto"},
    "versions": {"lm-eval": "0.4.13", "transformers": "5.24.0", "torch": "2.13.0", "sea-bake": "0.1.0"},
    "results": [
        measured(HELLASWAG, "accuracy", 0.41, 0.425, [-0.03, 0.0], "damage"),
        measured(TRUTHFULQA, "MC1", 0.301, 0.28, [0.001, 0.041], "gain"),
    ],
    "breakdown": [],
    "harness": {},
    "samples": [],
    "remarks": [],
}


def results_of(folder: Path) -> dict[str, Any]:
    """``RESULTS``, measured on the edits of an artefact."""
    edits = [{"sha256": edit_digest(edit)} for edit in Artefact.open(folder).edits]
    return RESULTS | {"model": {"base": "tiny/llama", "edited": folder.name, "how": "insert", "edits": edits}}


@pytest.mark.slow
def test_measured_gain_and_damage_are_on_the_card(desk: Desk, changed: Path) -> None:
    """In a table, gain first, with intervals; and as model-index. The seal does not cover what is measured later."""
    (changed / "sea" / "evaluation.json").write_text(json.dumps(results_of(changed)))
    report = desk.ok("publish", changed, "ada/measured", "--dry-run")
    assert complaints(report["card"]) == []
    lines = report["card"].splitlines()
    gain, damage = (
        next(i for i, line in enumerate(lines) if name in line and "|" in line) for name in ("MC1", "Hella")
    )
    assert "| 0.28 | 0.301 | +0.021 [+0.001, +0.041] |" in lines[gain]
    assert "| 0.425 | 0.41 | -0.015 [-0.03, +0] |" in lines[damage]
    assert gain < damage
    index = yaml.safe_load(report["card"].split("---\n")[1])["model-index"][0]
    assert (index["name"], len(index["results"])) == ("measured", 2)
    assert "Not measured" not in report["card"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 1"),
        ({"results": [{"value": 1}]}, "lacks or garbles"),
        ({"results": [{**RESULTS["results"][0], "value": float("nan")}]}, "no finite number"),
        ({"files": {"config.json": "0"}}, "another state"),
        ({"model": {"base": "tiny/llama", "edited": "x", "how": "insert", "edits": [{"sha256": "0"}]}}, "other edits"),
    ],
)
def test_results_that_cannot_be_trusted_are_refused(
    change: dict[str, Any], says: str, changed: Path, tmp_path: Path
) -> None:
    (changed / "sea" / "evaluation.json").write_text(json.dumps(results_of(changed) | change))
    with pytest.raises(PublishError, match=says):
        publish(changed, "ada/measured", dry_run=True, license="mit")


# ----------------------------------------------------------------------------------------------------- the verification


@pytest.mark.slow
def test_what_is_not_verified_is_refused_or_says_so(changed: Path) -> None:
    """No report; a failed one; one of other files. With ``unverified`` the card's first line says it."""
    report = changed / "sea_verification.json"
    data = json.loads(report.read_text())
    spoilt = {**data, "passed": False, "failures": ["logits differ from the hook-edited base by 3"]}
    for told, text in (
        ("no sea_verification.json", None),
        ("logits differ from the hook-edited base by 3", json.dumps(spoilt)),
        ("does not say which files", json.dumps({k: v for k, v in data.items() if k != "files"})),
        ("is damaged", json.dumps({**data, "equality": {**data["equality"], "max_abs": "small"}})),
        ("is damaged", json.dumps({**data, "effect": None})),
    ):
        report.unlink(missing_ok=True)
        if text is not None:
            report.write_text(text)
        with pytest.raises(PublishError, match="not verified") as error:
            publish(changed, "ada/x", dry_run=True, license="mit")
        assert told in str(error.value)
        assert "sea-bake verify" in str(error.value)
        made = publish(changed, "ada/x", dry_run=True, license="mit", unverified=True)
        body = made.card.split("---\n", 2)[2].strip()
        assert body.splitlines()[0].startswith("> **Not verified.**")
        assert told in body.splitlines()[0]
        assert made.verdict == "NOT verified"
        assert "unverified" in yaml.safe_load(made.card.split("---\n")[1])["tags"]
        assert "**verified**" not in body


@pytest.mark.slow
def test_an_artefact_that_changed_since_is_not_the_verified_one(changed: Path) -> None:
    """One bit of one weight, size and time of change as before; a file more; a file less. Papers may come and go."""
    sealed = json.loads((changed / "sea_verification.json").read_text())["files"]
    (changed / "README.md").write_text("# Mine\n")
    (changed / "LICENSE").write_text("Do what you like.")
    assert broken(changed, sealed) == []
    assert publish(changed, "ada/x", dry_run=True).verdict == "verified"
    weights = changed / "model-sea.safetensors"
    data, times = bytearray(weights.read_bytes()), weights.stat()
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(PublishError, match=r"model-sea\.safetensors was changed since its verification"):
        publish(changed, "ada/x", dry_run=True)
    data[-1] ^= 1
    weights.write_bytes(data)
    (changed / "generation_config.json").unlink()
    (changed / "added_tokens.json").write_text("{}")
    assert broken(changed, sealed) == ["added_tokens.json was added", "generation_config.json is gone"]
    with pytest.raises(PublishError, match="added_tokens"):
        publish(changed, "ada/x", dry_run=True)
    stale = publish(changed, "ada/x", dry_run=True, unverified=True)
    assert "sea_verification.json" not in stale.files  # it speaks of other files
    assert "sea_verification.json" in stale.left_out


@pytest.mark.slow
def test_every_file_that_decides_is_under_the_seal(artefact: Callable[[str], Path]) -> None:
    folder = artefact("insert")
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(seal(folder)) == names - {"sea_verification.json", "README.md"}


@pytest.mark.slow
def test_an_approximate_artefact_is_published_as_one(tmp_path: Path) -> None:
    base = tiny.changeable(tiny.single(), tmp_path / "base")
    bake(base, tiny.edit_file(), tmp_path / "art", approximate=True, calibration=tiny.demonstrations(24))
    assert verify(tmp_path / "art", max_new_tokens=8).verdict == "approximate"
    made = publish(tmp_path / "art", "ada/near", dry_run=True)
    body = made.card.split("---\n", 2)[2].strip()
    assert body.splitlines()[0].startswith("> **Approximate.**")
    assert made.verdict == "approximate"
    assert "promised: at most" in body
    assert "**verified**" not in body


# ----------------------------------------------------------------------------------------------- what must not go there


@pytest.mark.slow
def test_nothing_local_and_nothing_secret_is_in_any_file(desk: Desk, hub: Hub, artefact: Callable[[str], Path]) -> None:
    """All text, headers of weights too, of everything that was uploaded: no path, no user, no token."""
    for how in WAYS:
        desk.ok("publish", artefact(how), f"ada/sea-{how}")
    words = [str(desk.folder), str(desk.home), USER, ADA, "/root/", "/tmp/", str(Path.cwd())]
    seen = 0
    for how in WAYS:
        for path in hub.tree(f"ada/sea-{how}"):
            data = hub.file(f"ada/sea-{how}", path)
            if path.endswith(".safetensors"):
                data = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
            text = data.decode("utf-8")
            assert [word for word in words if word in text] == [], path
            seen += 1
    assert seen > 25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("NOTICE", "made in {home}/work", "a path of this machine"),
        ("NOTICE", "made in {folder}", "a path of this machine"),
        ("preprocessor_config.json", '{{"key": "{token}"}}', "Hugging Face token"),
        ("extra.py", "print('hello')", "is code"),
        ("sea/more.py", "", "is code"),
        ("pytorch_model.bin", "x", "another form"),
        ("model.onnx", "x", "another form"),
        ("extra.safetensors", "x", "no index"),
        ("modeling_sea.py", "import os\n", "not the file that this sea_bake writes"),
    ],
)
def test_what_has_no_business_there_is_refused(
    name: str, content: str, says: str, changed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even unverified; and before anything is asked of the Hub (the tests' own process has none)."""
    monkeypatch.setenv("HOME", "/somewhere/of/mine")
    text = content.format(home="/somewhere/of/mine", folder=changed, token=BOB)
    assert publish(changed, "ada/x", dry_run=True).verdict == "verified"  # the control: without it, it goes
    (changed / name).write_text(text)
    with pytest.raises(PublishError, match=says):
        publish(changed, "ada/x", unverified=True)


SECRETS = ("id_rsa", "env", "credentials.json", "notes.txt", "sea/more.txt", "docs/plan.md", "onnx/model.onnx.bak")


@pytest.mark.slow
def test_what_is_no_part_of_an_artefact_stays_at_home(changed: Path) -> None:
    for name in SECRETS:
        (changed / name).parent.mkdir(exist_ok=True)
        (changed / name).write_text("mine")
    found = publish(changed, "ada/x", unverified=True, dry_run=True)
    assert found.left_out == sorted([*SECRETS, "sea_verification.json"])
    wanted = publish(changed, "ada/x", unverified=True, dry_run=True, include=["docs/plan.md", "notes.txt"])
    assert {*wanted.files} - {*found.files} == {"docs/plan.md", "notes.txt"}
    for absent in ("nothing.txt", ".git/config", "../changed/notes.txt"):
        with pytest.raises(PublishError, match="drop --include"):
            publish(changed, "ada/x", unverified=True, dry_run=True, include=[absent])


@pytest.mark.slow
def test_what_was_sealed_and_is_no_part_is_asked_for(desk: Desk, changed: Path) -> None:
    """Left at home, it would be missed by whoever holds the published files against the seal. Both cures work."""
    (changed / "notes.json").write_text("{}")
    desk.ok("verify", changed, "--max-new-tokens", 4)
    desk.refused("publish", changed, "ada/x", "--dry-run", says="--include notes.json")
    assert "notes.json" in desk.ok("publish", changed, "ada/x", "--dry-run", "--include", "notes.json")["files"]
    (changed / "notes.json").unlink()
    desk.ok("verify", changed, "--max-new-tokens", 4)
    assert "notes.json" not in desk.ok("publish", changed, "ada/x", "--dry-run")["files"]


TOKENS = {
    "a Hugging Face token": "hf_" + "aB3" * 11 + "x",
    "a GitHub token": "ghp_" + "a1" * 18,
    "a GitLab token": "glpat-" + "x" * 20,
    "an OpenAI key": "sk-proj-" + "a" * 40 + "T3BlbkFJ" + "b" * 40,
    "an Anthropic key": "sk-ant-api03-" + "a" * 95,
    "an AWS access key": "AKIA" + "ABCD2345" * 2,
    "a Google key": "AIza" + "x" * 35,
    "a Slack token": "xoxb-" + "1" * 30,
    "a Stripe key": "sk_live_" + "a" * 24,
    "an npm token": "npm_" + "a" * 36,
    "a PyPI token": "pypi-AgEIcHlwaS5vcmc" + "a" * 60,
    "a Weights & Biases key": "WANDB_API_KEY=" + "0a" * 20,
    "a Replicate token": "r8_" + "a" * 37,
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
}


@pytest.mark.slow
@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**15, 100_000_001])
def test_no_header_is_believed(length: int, changed: Path, tmp_path: Path) -> None:
    """That it is long: all of such a file is searched, block by block."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"x" * 5_000_000 + f" hf_{'a' * 34}\n".encode())
    assert leak("model.safetensors", path, Artefact.open(changed)) == "what looks like a Hugging Face token"
    path.write_bytes(struct.pack("<Q", 100) + b"x" * 200 + f" hf_{'a' * 34}\n".encode())  # the control: of weights
    assert leak("model.safetensors", path, Artefact.open(changed)) is None


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
def test_tokens_of_the_known_services_are_seen(encoding: str, changed: Path) -> None:
    opened = Artefact.open(changed)
    for whose, token in TOKENS.items():
        found = leak("NOTICE", f"Ünder {token}\n".encode(encoding), opened)
        assert found == f"what looks like {whose}", token
        assert leak("NOTICE", f"Ünder {token[:12]}\n".encode(encoding), opened) is None or whose == "a private key"
    placed = changed / "NOTICE"
    placed.write_bytes(b"\n" * ((1 << 22) - 10) + TOKENS["a GitHub token"].encode(encoding))  # across two blocks
    assert leak("NOTICE", placed, opened) == "what looks like a GitHub token"


def test_the_names_of_vocabularies_are_those_of_transformers() -> None:
    import transformers

    text = "".join(p.read_text("utf-8") for p in Path(transformers.__file__).parent.rglob("tokenization_*.py"))
    tables = re.findall(r"^VOCAB_FILES_NAMES = (\{.*?\})", text, re.DOTALL | re.MULTILINE)
    names = {name for table in tables for name in re.findall(r'": "([^"]+)"', table)}
    assert len(names) > 15
    assert names - {"tokenizer_config.json"} <= VOCABULARIES


@pytest.mark.slow
def test_links_are_refused(changed: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("mine")
    for name, target in {"LICENSE": tmp_path / "secret.txt", "docs": tmp_path}.items():
        (changed / name).symlink_to(target)
        with pytest.raises(CheckpointError, match="is a link that leads out"):
            publish(changed, "ada/x", dry_run=True)
        (changed / name).unlink()
    (changed / "LICENSE").symlink_to("config.json")
    with pytest.raises(PublishError, match="is a link"):
        publish(changed, "ada/x", dry_run=True)


@pytest.mark.slow
def test_hidden_files_stay_at_home(changed: Path) -> None:
    (changed / ".git").mkdir()
    (changed / ".git" / "config").write_text("url = ...")
    (changed / ".env").write_text("HF_TOKEN=...")
    made = publish(changed, "ada/x", dry_run=True)
    assert made.left_out == [".env", ".git"]
    assert not [path for path in made.files if path.startswith(".")]


@pytest.mark.parametrize("repo", ["noowner", "a/b/c", "ada/..", "../ada", "ada/x.git", "ada/ x", "", "datasets/ada/x"])
def test_a_repository_that_cannot_be_is_refused_first(repo: str, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"repository|owner"):
        publish(tmp_path / "not even there", repo)


def test_a_folder_that_is_not_ours_is_refused(workshop: Workshop) -> None:
    with pytest.raises(CheckpointError, match="is not an artefact of sea_bake"):
        publish(workshop.base("llama"), "ada/x")


@pytest.mark.slow
def test_an_onnx_export_is_published_with_what_it_was_verified_in(
    desk: Desk, hub: Hub, artefact: Callable[[str], Path]
) -> None:
    """Graph, weights and recipe; onnxruntime is named, and no other runtime; the base by its name on the Hub."""
    desk.ok("export", "onnx", artefact("insert"), "-o", desk.folder / "onnx")
    desk.refused("publish", desk.folder / "onnx", "ada/onnx", says="not verified")
    assert desk.ok("verify", desk.folder / "onnx", "--max-new-tokens", 4)["verdict"] == "verified"
    report = desk.ok("publish", desk.folder / "onnx", "ada/onnx")
    graph = hub.file("ada/onnx", "onnx/model.onnx")
    assert graph == (desk.folder / "onnx" / "onnx" / "model.onnx").read_bytes()
    for text in (str(desk.folder), USER):
        assert text.encode() not in graph
    data = yaml.safe_load(report["card"].split("---\n")[1])
    assert (data["base_model"], data["base_model_relation"]) == ("tiny/llama", "finetune")
    assert "onnx" in data["tags"]
    assert "InferenceSession" in report["card"]
    assert "Verified in: onnxruntime." in report["card"]
    facts = json.loads((desk.folder / "onnx" / "sea_verification.json").read_text())["facts"]
    row = f'| ONNX Runtime {facts["onnxruntime"]} | verified | `InferenceSession("onnx/model.onnx")` |'
    assert row in report["card"]
    # The artefact behind it names the export that lies beside it, and its own proof; another artefact names its own.
    card = desk.ok("publish", artefact("insert"), "ada/x", "--dry-run")["card"]
    assert f"ONNX Runtime {facts['onnxruntime']} | verified | `sea-bake export onnx ada/x -o x-onnx`, then `Inf" in card
    assert re.search(r"\| transformers [\d.]+\S* \| verified \| `AutoModelForCausalLM\.from_pretrained\(", card)
    assert "ONNX Runtime" not in desk.ok("publish", artefact("fold"), "ada/x", "--dry-run")["card"]
    assert "transformers import" not in report["card"]
    assert yaml.safe_load(hub.file("ada/onnx", "sea_bake.yaml"))["model"] == "tiny/llama"
    assert desk.ok("publish", desk.folder / "onnx", "ada/onnx")["sent"] == []
    # And its page, as a Space, which holds all that the page runs on; a second time nothing is sent.
    desk.refused(
        "publish", artefact("insert"), "ada/page", "--space", says=r"export onnx \S+ -o EXPORT --strength, then"
    )
    desk.refused("publish", desk.folder / "onnx", "ada/page", "--space", "--include", "x", says="drop --include")
    page = desk.ok("publish", desk.folder / "onnx", "ada/page", "--space")
    tree = hub.tree("spaces/ada/page")
    assert page["url"] == f"{hub.url}/spaces/ada/page"
    assert page["private"]
    assert {*tree} - {".gitattributes"} == {*page["files"]}
    assert hub.file("spaces/ada/page", "models/edited/onnx/model.onnx") == graph
    assert yaml.safe_load(page["card"].split("---\n")[1])["sdk"] == "static"
    assert hub.file("spaces/ada/page", "README.md").decode() == page["card"]
    assert b"verified: in ONNX Runtime" in hub.file("spaces/ada/page", "index.html")
    assert desk.ok("publish", desk.folder / "onnx", "ada/page", "--space")["sent"] == []
    theirs = desk.folder / "theirs"
    theirs.mkdir()
    (theirs / "app.py").write_text("print()")
    hub.add("spaces/ada/app", theirs, private=True)
    desk.refused(
        "publish", desk.folder / "onnx", "ada/app", "--space", says=r"another Space \(app.py\), which sea_bake did"
    )


@pytest.mark.slow
def test_quantised_ggufs_go_beside_a_fold_with_what_they_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By llama.cpp's own quantiser, with a program of ours in the place of its converter: what is measured is held
    against torch.
    """
    plainly, fold, inserted = exports.base(), exports.artefact("fold"), exports.artefact("insert")
    asked: Any = {"dry_run": True, "unverified": True, "license": "mit", "base_model": "tiny/llama"}
    both: Any = {**asked, "gguf": ["q8_0,q4_0"]}
    with monkeypatch.context() as without:
        for name in ("llama_cpp", "cyllama.llama.llama_cpp"):
            without.setitem(sys.modules, name, None)
        with pytest.raises(SettingError, match=r"cyllama .* is here, and does not load .*: pip install --force-rein"):
            publish(fold, "ada/x", **both)
        without.setattr("sea_bake.io.llama_cpp.installed", lambda package: None)
        with pytest.raises(SettingError, match="not installed here: pip install cyllama"):
            publish(fold, "ada/x", **both)
    for folder, kinds, words in ((fold, "q9", "use q8_0, q6_k"), (inserted, "q8_0", "--gguf is for a fold")):
        with pytest.raises((SettingError, PublishError), match=words):
            publish(folder, "ada/x", **{**both, "gguf": [kinds]})
    with pytest.raises(PublishError, match="drop --gguf"):
        publish(fold, "ada/x", space=True, unverified=True, gguf=["q8_0"])
    with pytest.raises(SettingError, match=r"own converter, which is not here: git clone"):
        publish(fold, "ada/x", **both)
    ready = ggufs.llama(tmp_path / "ready.gguf", fold)
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(f"import shutil, sys; shutil.copyfile({str(ready)!r}, sys.argv[sys.argv.index('--outfile') + 1])")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(PublishError, match="measured against the base 'two-layers-chat', which is neither"):
        publish(tiny.changeable(fold, tmp_path / "alone"), "ada/x", **both)
    before = tiny.listing(fold.parent)
    with monkeypatch.context() as early:  # what is refused is refused before anything is converted
        early.setattr("sea_bake.publishing.quantised", None)
        with pytest.raises(PublishError, match="is no licence identifier"):
            publish(fold, "ada/x", **{**both, "license": "Not One"})
        with pytest.raises(PublishError, match="drop --include nowhere"):
            publish(fold, "ada/x", **both, include=["nowhere"])
    # A fold with its base's weights: refused before the converter, which would fail here, is asked.
    with monkeypatch.context() as unknown:
        unknown.setitem(ARCHITECTURES, "llama", "nobodys")
        with pytest.raises(FamilyError, match=r"does not know the architecture nobodys: .*-U cyllama\), or drop"):
            publish(fold, "ada/x", **both)
    (tmp_path / plainly.name).symlink_to(plainly)
    empty = tiny.changeable(fold, tmp_path / "empty")
    shutil.copyfile(plainly / "model.safetensors", empty / "model.safetensors")
    with monkeypatch.context() as late:
        late.setenv("LLAMA_CPP", str(empty.parent / "nothing"))
        (empty.parent / "nothing").mkdir()
        (empty.parent / "nothing" / script.name).write_text("raise SystemExit('converted')")
        with pytest.raises(PublishError, match=r"to the last bit: its edit changes nothing.*drop --gguf"):
            publish(empty, "ada/x", **both)
    made = publish(fold, "ada/x", **both)
    assert tiny.listing(fold.parent) == before  # nothing is left behind
    assert {"x-Q8_0.gguf", "x-Q4_0.gguf"} <= {*made.files}
    rows = re.findall(
        r"^\| `x-(Q\w+)\.gguf` \| [^|]+ \| ([^|]+) \| ([^|]+) % \| ([^|]+) % \| ([^|]+) \|$", made.card, re.M
    )
    eight, four = (list(map(float, row[1:])) for row in rows)
    assert [row[0] for row in rows] == ["Q8_0", "Q4_0"]
    assert 0 < eight[0] < four[0]
    assert eight[3] > four[3]
    assert eight[2] == pytest.approx(100, abs=5)
    # The same, worked out here for one copy, on one text after the other.
    copy = tmp_path / "copy.gguf"
    quantise_gguf(ready, copy, "q4_0")
    assert capfd.readouterr().err.count("llama_model") == 0  # its log, of several lines per tensor
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(ready.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"could not quantise torn\.gguf to q4_0: .*file bounds"):
        quantise_gguf(torn, tmp_path / "never.gguf", "q4_0")
    tokenizer = load_tokenizer(fold)
    texts = [encode(tokenizer, d.prompt, d.positive, usable(tokenizer)).ids for d in builtin()[::20][:8]]
    base, edited, rounded = (
        torch.cat(
            [load_model(place, dtype="float32")(torch.tensor([ids])).logits[0].detach().double() for ids in texts]
        )
        for place in (plainly, fold, copy)
    )
    kl = torch.nn.functional.kl_div(rounded.log_softmax(-1), edited.log_softmax(-1), log_target=True, reduction="none")
    assert four[0] == pytest.approx(float(kl.sum(-1).mean()), rel=0.01)
    share = ((rounded - base) * (edited - base)).sum() / (edited - base).square().sum()
    assert four[2] == pytest.approx(100 * float(share), abs=0.51)


def test_a_disk_too_small_for_quantised_copies_is_seen_before_anything_is_made(tmp_path: Path) -> None:
    """Weights that take nine tenths of it (a sparse file): the float GGUF would fit, and no copy beside it."""
    fold = tiny.changeable(exports.artefact("fold"), tmp_path / "fold")
    data = (fold / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    held, free = len(data) - start, shutil.disk_usage(tmp_path).free

    def swollen(share: float) -> Artefact:
        size = int(share * free) // 4 * 4
        header = json.loads(data[8:start])
        header["big.weight"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [held, held + size]}
        text = json.dumps(header).encode()
        with open(fold / "model.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text + data[start:])
            file.truncate(file.tell() + size)
        return Artefact.open(fold)

    (tmp_path / "copies").mkdir()
    base = ModelSource.parse(exports.base())
    with pytest.raises(OutputError, match=r"no space on disk: .* MB free .*move the artefact.*or drop --gguf"):
        quantised(swollen(0.9), base, ["q8_0"], "x", tmp_path / "copies")
    assert tiny.listing(tmp_path / "copies") == set()
    _check_room(swollen(0.5).folder, tmp_path / "copies", 1)  # the control: two thirds of the disk, all in all


# --------------------------------------------------------------------------------------------------------- names, terms


@pytest.mark.slow
def test_the_base_of_an_adapter_needs_a_name_on_the_hub(
    desk: Desk, hub: Hub, workshop: Workshop, artefact: Callable[[str], Path]
) -> None:
    """A local folder's name loads nowhere else. Given another, the uploaded files say it, and their seal holds."""
    edit = workshop.edit("llama", "mlp", "sum")
    local = bake(desk.folder / "tiny-llama", edit, desk.folder / "local", how="adapter").output
    desk.refused(
        "publish", local, "ada/local", "--unverified", says="'tiny-llama' is the name of a local folder.*--base-m"
    )
    hub.add("ada/base", desk.folder / "tiny-llama")
    folder, files = artefact("adapter"), ("adapter_config.json", "sea/bake.json", "sea_verification.json")
    desk.ok("publish", folder, "ada/renamed", "--base-model", "ada/base")
    texts = {name: hub.file("ada/renamed", name).decode() for name in files}
    for name in files:
        assert "tiny/llama" in (folder / name).read_text()
        assert "tiny/llama" not in texts[name]
        assert "ada/base" in texts[name]
    for name, digest in json.loads(texts["sea_verification.json"])["files"].items():
        assert hashlib.sha256(hub.file("ada/renamed", name)).hexdigest() == digest
    assert yaml.safe_load(hub.file("ada/renamed", "sea_bake.yaml"))["model"] == "ada/base"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("readme", "text", "given", "expected"),
    [
        ("---\nlicense: mit\n---\n", None, None, {"license": "mit"}),
        ("---\nlicense: mit\n---\n", None, "gemma", {"license": "gemma"}),
        (
            "---\nlicense: other\nlicense_name: acme\nlicense_link: https://acme.example/l\n---\n",
            None,
            None,
            {"license": "other", "license_name": "acme", "license_link": "https://acme.example/l"},
        ),
        ("no metadata", "Apache License\n  Version 2.0, January 2004", None, {"license": "apache-2.0"}),
        (
            None,
            "Acme Model Terms\nPay first.",
            None,
            {"license": "other", "license_name": "acme-model-terms-pay-first", "license_link": "LICENSE"},
        ),
        ("---\n: : :\n---\n", None, None, {"license": "unknown"}),
        (None, None, None, {"license": "unknown"}),
    ],
)
def test_the_licence_is_the_bases_own(
    readme: str | None, text: str | None, given: str | None, expected: dict[str, str], changed: Path
) -> None:
    """Off the Hub (it cannot be asked here): out of the base's card, or its licence's text, or plainly unknown."""
    (changed / "README.md").unlink()
    for name, content in (("README.md", readme), ("LICENSE", text)):
        if content is not None:
            (changed / name).write_text(content)
    made = publish(changed, "ada/x", dry_run=True, license=given)
    data = yaml.safe_load(made.card.split("---\n")[1])
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected
    assert complaints(made.card) == []
    assert ("**Unknown**" in made.card) == (expected["license"] == "unknown")


@pytest.mark.slow
def test_the_licence_is_asked_of_the_hub(desk: Desk, artefact: Callable[[str], Path]) -> None:
    """An adapter carries no card of its base."""
    assert not (artefact("adapter") / "README.md").exists()
    report = desk.ok("publish", artefact("adapter"), "ada/x", "--dry-run")
    assert report["licence"] == "apache-2.0 (the model card of tiny/llama on the Hub)"
    with pytest.raises(PublishError, match="no licence identifier"):
        publish(artefact("adapter"), "ada/x", license="My Own!")


# ----------------------------------------------------------------------------------------------------------- on the Hub


@pytest.mark.slow
def test_a_dry_run_sends_nothing(desk: Desk, hub: Hub, artefact: Callable[[str], Path]) -> None:
    """Shown to people: the card, every file with its size. Without a login; the Hub is asked for a licence at most."""
    folder, before = artefact("fold"), len(hub.counts.requests)
    with desk.logged_in(None), tiny.nothing_happens(folder.parent, folder):
        ran, _ = desk.run("publish", folder, "ada/never", "--dry-run")
    assert ran.code == 0, ran
    assert {line.split()[0] for line in hub.counts.requests[before:]} <= {"GET"}
    assert "ada/never" not in hub.repos
    for text in (
        "base_model: tiny/llama",
        "# never",
        "model.safetensors",
        "sea_bake.yaml",
        "nothing was sent",
        "private",
    ):
        assert text in ran.out, text
    quiet, _ = desk.run("publish", folder, "ada/never", "--dry-run", "--quiet")
    assert (quiet.code, quiet.out) == (0, "")


@pytest.mark.slow
def test_an_interrupted_upload_goes_on_where_it_was(desk: Desk, hub: Hub, workshop: Workshop, tmp_path: Path) -> None:
    """Killed while a file is on its way: no commit. Run again: what had arrived is not sent twice."""
    base = tiny.changeable(workshop.base("llama", shards=True), tmp_path / "base")
    baked = bake(base, workshop.edit("llama", "mlp", "sum"), tmp_path / "art", how="fold").output
    large = [p for p in baked.rglob("*.safetensors")]
    assert len(large) > 6
    started = len(hub.counts.uploads)
    pid: list[int] = []

    def arrive() -> bool:
        if len(hub.counts.uploads) - started < 3:
            return True
        os.kill(pid[0], signal.SIGKILL)
        return False

    arguments = ("publish", baked, "ada/large", "--unverified", "--license", "mit")
    while not pid:
        hub.before_upload = lambda: bool(pid) and arrive()
        pid.append(desk.start(*arguments))
    try:
        ran, _ = desk.wait()
    finally:
        hub.before_upload = lambda: True
    assert ran.code == -signal.SIGKILL
    arrived = hub.counts.uploads[started:]
    assert 3 <= len(arrived) < len(large)
    assert set(hub.tree("ada/large")) == {".gitattributes"}  # nothing is half there
    desk.ok(*arguments)
    assert sorted(hub.counts.uploads[started:]) == sorted({hashlib.sha256(p.read_bytes()).hexdigest() for p in large})
    assert hub.file("ada/large", large[0].relative_to(baked).as_posix()) == large[0].read_bytes()


@pytest.mark.slow
def test_what_was_published_is_taken_back_by_the_line_that_it_says(
    desk: Desk, hub: Hub, artefact: Callable[[str], Path]
) -> None:
    ran, _ = desk.run("publish", artefact("adapter"), "ada/taken-back")
    (line,) = re.findall("^Take it back: (.+)$", ran.out, re.M)
    command = [str(Path(sys.executable).parent / line.split()[0]), *line.split()[1:], "--yes"]
    assert "ada/taken-back" in hub.repos
    done = subprocess.run(command, env=desk.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ada/taken-back" not in hub.repos
    assert subprocess.run(command, env=desk.env, capture_output=True).returncode != 0  # there is nothing more


def test_a_pull_request_is_proposed_to_somebody_elses_repository(
    desk: Desk, hub: Hub, artefact: Callable[[str], Path]
) -> None:
    """Which stays as it is; and which is never made for it."""
    folder = artefact("adapter")
    assert desk.ok("publish", artefact("fold"), "ada/open", "--public")["private"] is False
    head = hub.repos["ada/open"].heads["main"]
    with desk.logged_in(BOB):
        desk.refused("publish", artefact("fold"), "ada/open", "--create-pr", says="is public")
        desk.refused("publish", folder, "ada/nowhere", "--create-pr", says="no repository ada/nowhere")
        report = desk.ok("publish", artefact("insert"), "ada/open", "--create-pr", "--public", "-m", "Inserted")
    assert report["pull_request"] == f"{hub.url}/ada/open/discussions/1"
    assert hub.repos["ada/open"].heads["main"] == head
    proposed = hub.tree("ada/open", "refs/pr/1")
    assert "model-sea.safetensors" in proposed
    assert "model.safetensors" not in proposed  # of the fold: it would be loaded in place of the insert
    assert hub.repos["ada/open"].commits[hub.repos["ada/open"].heads["refs/pr/1"]][0] == "Inserted"


@pytest.mark.slow
def test_nothing_is_published_for_all_to_see_unasked(desk: Desk, hub: Hub, artefact: Callable[[str], Path]) -> None:
    desk.ok("publish", artefact("adapter"), "ada/shown", "--public")
    assert not hub.repos["ada/shown"].private
    desk.refused("publish", artefact("fold"), "ada/shown", says="ada/shown is public")
    desk.ok("publish", artefact("adapter"), "ada/hidden")
    desk.refused("publish", artefact("adapter"), "ada/hidden", "--public", says="ada/hidden is private, and stays so")


@pytest.mark.slow
def test_another_artefact_replaces_the_earlier_one_whole(desk: Desk, hub: Hub, artefact: Callable[[str], Path]) -> None:
    """An insert over a fold: a plain model.safetensors left behind would be loaded instead, and answer otherwise."""
    desk.ok("publish", artefact("fold"), "ada/replaced")
    report = desk.ok("publish", artefact("insert"), "ada/replaced")
    assert report["removed"] == ["model.safetensors"]
    assert "model.safetensors" not in hub.tree("ada/replaced")
    back = desk.ok("publish", artefact("fold"), "ada/replaced")
    assert {"modeling_sea.py", "model-sea.safetensors", "model.safetensors.index.json"} <= set(back["removed"])


@pytest.mark.slow
def test_weights_of_others_are_not_touched(desk: Desk, hub: Hub, workshop: Workshop, artefact: Any) -> None:
    hub.add("ada/other", workshop.base("llama"), private=True)
    before = hub.tree("ada/other")
    desk.refused("publish", artefact("adapter"), "ada/other", says="holds another model .*own")
    desk.refused("publish", artefact("fold"), "ada/other", says="holds another model .*own")  # of the very same names
    desk.refused("publish", artefact("fold"), "tiny/llama", "--public", "--create-pr", says="holds another model .*own")
    assert hub.tree("ada/other") == before


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fold", "insert"])
def test_a_downloaded_copy_is_as_verified_as_what_was_published(
    how: str, desk: Desk, hub: Hub, artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    """Under whatever name it lies there; and published again, nothing but the card has another word in it."""
    repo = f"ada/copied-{how}"
    desk.ok("publish", artefact(how), repo)
    copy = tmp_path / "0123abcd"
    for path in hub.tree(repo):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(hub.file(repo, path))
    assert broken(copy, json.loads((copy / "sea_verification.json").read_text("utf-8"))["files"]) == []
    again = desk.ok("publish", copy, repo)
    assert again["verdict"] == "verified"
    assert set(again["sent"]) <= {"README.md"}  # where the licence was found
    assert again["removed"] == []
    (copy / "config.json").write_text("{}", "utf-8")  # the control
    desk.refused("publish", copy, repo, says="config.json was changed since its verification")


@pytest.mark.slow
def test_a_branch_is_made_and_filled(desk: Desk, hub: Hub, artefact: Callable[[str], Path]) -> None:
    desk.ok("publish", artefact("adapter"), "ada/branched", "--revision", "v2")
    assert "adapter_config.json" in hub.tree("ada/branched", "v2")
    assert set(hub.tree("ada/branched")) == {".gitattributes"}
    assert desk.ok("publish", artefact("adapter"), "ada/branched", "--revision", "v2")["sent"] == []
    card = hub.file("ada/branched", "README.md", "v2").decode()
    assert '"ada/branched", revision="v2")' in card  # main holds nothing, or something else
    assert "sea-bake reproduce ada/branched --revision v2" in card


@pytest.mark.slow
def test_what_others_wrote_cannot_break_the_card(changed: Path) -> None:
    evil = "x\\<img src=http://e/p.png>`|[a](b)"
    assert plain(evil).replace("\\\\", "").count("\\") == sum(evil.count(c) for c in "`|[]") + evil.count("://")
    assert not set("<>") & set(plain(evil))
    report = json.loads((changed / "sea_verification.json").read_text("utf-8"))
    told = {"passed": False, "failures": ["x\n\n# VERIFIED BY NASA\n\n<img src=x>"]}
    tiny.patch_json(changed / "sea_verification.json", **told)
    card = publish(changed, "ada/x", dry_run=True, unverified=True, license="mit").card
    assert "\n# VERIFIED" not in card
    assert "\n<img" not in card
    for name, value in (("tolerance", float("nan")), ("facts", "none")):
        tiny.patch_json(changed / "sea_verification.json", **{**report, name: value})
        with pytest.raises(PublishError, match="is damaged"):
            publish(changed, "ada/x", dry_run=True, license="mit")
    tiny.patch_json(changed / "sea_verification.json", **report)
    os.mkfifo(changed / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        publish(changed, "ada/x", dry_run=True, license="mit")


def test_a_configuration_of_a_data_set_is_part_of_it(workshop: Workshop, tmp_path: Path) -> None:
    edit = workshop.edit("llama", "mlp", "sum")
    origin = {"kind": "hub", "source": "pminervini/HaluEval:qa"}
    edit = replace(edit, recipe={**edit.recipe, "demonstrations_from": origin})
    folder = bake(workshop.base("llama"), edit, tmp_path / "sea", how="fold").output
    card = publish(folder, "ada/x", dry_run=True, unverified=True, license="mit", base_model="tiny/llama").card
    assert "- pminervini/HaluEval\n" in card


@pytest.mark.slow
def test_our_own_card_is_not_the_bases(changed: Path) -> None:
    (changed / "README.md").write_text("---\nlicense: mit\ntags: [sea, sea_bake]\n---\n# ours\n", "utf-8")
    assert "mit" not in publish(changed, "ada/x", dry_run=True).licence
    (changed / "README.md").write_text("---\nlicense: mit\n---\n# the base's\n", "utf-8")  # the control
    assert publish(changed, "ada/x", dry_run=True).licence.startswith("mit")


@pytest.mark.slow
def test_where_the_hub_does_not_copy_the_file_is_sent(desk: Desk, hub: Hub, artefact: Callable[[str], Path]) -> None:
    hub.copying = False
    try:
        report = desk.ok("publish", artefact("insert"), "ada/far")
    finally:
        hub.copying = True
    assert report["copied"] == []
    assert "model-base.safetensors" in report["sent"]
    assert hub.file("ada/far", "model-base.safetensors") == (artefact("insert") / "model-base.safetensors").read_bytes()


@pytest.mark.slow
def test_a_file_that_the_hub_drops_is_noticed(
    desk: Desk, hub: Hub, artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    """A .gitignore on the Hub makes it leave files out of a commit without a word."""
    (tmp_path / ".gitignore").write_text("*.jinja\n*_config.json\n")
    hub.add("ada/ignoring", tmp_path, private=True)
    desk.refused("publish", artefact("adapter"), "ada/ignoring", says="does not hold adapter_config.json")


@pytest.mark.slow
def test_a_card_that_the_hub_does_not_take_is_told_before_anything_is_made(
    desk: Desk, hub: Hub, artefact: Callable[[str], Path]
) -> None:
    """huggingface_hub's own validation: it asks the Hub, whose list of licences grows."""
    desk.refused("publish", artefact("adapter"), "ada/odd", "--license", "my-own", says="card's metadata: .*my-own")
    assert "ada/odd" not in hub.repos
    assert hub.counts.requests[-1] == "POST /api/validate-yaml"


@pytest.mark.slow
def test_nobody_elses_commit_is_written_over(
    desk: Desk, hub: Hub, artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    """Made while ours was on its way: what we decided on is no longer what is there."""
    (tmp_path / "notes.txt").write_text("mine")

    def meanwhile() -> bool:
        hub.before_upload = lambda: True
        hub.add("ada/busy", tmp_path)
        return True

    hub.before_upload = meanwhile
    desk.refused("publish", artefact("adapter"), "ada/busy", says="somebody else has written to ada/busy")
    assert set(hub.tree("ada/busy")) == {"notes.txt"}
    assert desk.ok("publish", artefact("adapter"), "ada/busy")["sent"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "repo", "says"),
    [
        (None, "ada/refused", "nobody is logged in .*hf auth login"),
        ("hf_" + "y" * 34, "ada/refused", "does not accept your token.*hf auth login"),
        (READER, "ada/refused", "may not write to ada/refused.*hf auth login"),
        (ADA, "bob/refused", "may not write to bob/refused"),
    ],
)
def test_who_may_not_is_told_what_to_do(
    token: str | None, repo: str, says: str, desk: Desk, hub: Hub, artefact: Callable[[str], Path]
) -> None:
    with desk.logged_in(token):
        desk.refused("publish", artefact("adapter"), repo, says=says)
    assert repo not in hub.repos


@pytest.mark.slow
def test_who_may_not_is_told_before_anything_is_quantised(
    desk: Desk, hub: Hub, artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    """The converter, which is asked after that, fails here, and is heard only by those who may."""
    home = desk.folder / "llama.cpp"
    home.mkdir()
    (home / "convert_hf_to_gguf.py").write_text("raise SystemExit('the converter was asked')")
    (tmp_path / "notes.txt").write_text("theirs")
    hub.add("bob/open", tmp_path)
    hub.add("ada/open", tmp_path)
    for token, repo, says in (
        (None, "ada/early", "nobody is logged in .*hf auth login"),
        ("hf_" + "y" * 34, "ada/early", "does not accept your token.*hf auth login"),
        (READER, "ada/early", "may only read.*hf auth login"),
        (ADA, "bob/early", "may not write to bob/early.*under ada alone"),
        (ADA, "ada/open", "ada/open is public"),
    ):
        with desk.logged_in(token):
            desk.refused("publish", artefact("fold"), repo, "--gguf", "q8_0", says=says)
    with desk.logged_in(ADA):
        desk.refused(
            "publish", artefact("fold"), "bob/open", "--gguf", "q8_0", "--public", says="may not write to bob/open"
        )
        ran, _ = desk.run("publish", artefact("fold"), "ada/early", "--gguf", "q8_0")  # the control
        tiny.refused(ran, "CheckpointError", "the converter was asked")
    assert not {"ada/early", "bob/early"} & {*hub.repos}


@pytest.mark.slow
def test_without_a_hub_there_is_one_clear_sentence(artefact: Callable[[str], Path]) -> None:
    """Offline, as all tests' own processes are; and with nobody listening."""
    folder = artefact("adapter")
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE"):
        publish(folder, "ada/x", license="mit")
    script = (
        "from sea_bake.publishing import publish\nfrom sea_bake.errors import CheckpointError, PublishError\n"
        f"try: publish({str(folder)!r}, 'ada/x', license='mit')\nexcept PublishError as e: print(e)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ADA}
    ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert "cannot be reached" in ran.stdout, ran
    assert "run the same command again" in ran.stdout
    assert ADA not in ran.stdout + ran.stderr
