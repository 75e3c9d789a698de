"""What ``pip install sea-bake`` brings is enough for what needs no extra: all else is hidden from the commands here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import tiny
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

# Run by every Python process that finds it on its path, those of ``verify`` among them.
HIDING = """
import json, sys
from pathlib import Path
sys.modules.update(dict.fromkeys(json.loads(Path(__file__).with_name("hidden.json").read_text("utf-8"))))
"""
MANY = """
import json, sys
from sea_bake.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["sea-bake", *words]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    print("code", code, flush=True)
    print("code", code, file=sys.stderr, flush=True)
"""


def closure() -> set[str]:
    """Names of the distributions that a plain install brings."""
    found: set[tuple[str, str]] = set()
    waiting = [("sea-bake", "")]
    while waiting:
        name, extra = one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        for text in metadata.requires(name) or []:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                asked = canonicalize_name(wanted.name)
                waiting += [(asked, each) for each in ("", *wanted.extras)]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which Python sees a plain install."""
    there = closure()
    assert {"torch", "transformers", "peft", "jinja2", "numpy"} <= there
    assert not {"scipy", "lm-eval", "gguf", "onnx", "pytest"} & there  # else nothing is shown here
    brought = {module: {canonicalize_name(d) for d in ds} for module, ds in metadata.packages_distributions().items()}
    hidden = sorted(
        module for module, ds in brought.items() if not ds & there and module not in sys.stdlib_module_names
    )
    assert {"scipy", "matplotlib", "datasets", "gguf"} <= set(hidden)
    folder = tmp_path_factory.mktemp("plain")
    (folder / "sitecustomize.py").write_text(HIDING, "utf-8")
    (folder / "hidden.json").write_text(json.dumps(hidden), "utf-8")
    package = Path(__file__).resolve().parent.parent
    own = {"PYTHONPATH": f"{folder}{os.pathsep}{package}", "COLUMNS": "4000", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own}


def run(plain: dict[str, str], folder: Path, *commands: str) -> list[tuple[int, str, str]]:
    """(code, stdout, stderr) of each command, one after the other in one process."""
    words = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", MANY, words],
        env=plain,
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    parts = [re.split(r"^code (\d+)\n", text, flags=re.M) for text in (done.stdout, done.stderr)]
    found = [(int(code), out, err) for out, err, code in zip(parts[0][::2], parts[1][::2], parts[0][1::2])]
    assert len(found) == len(commands), done.stderr
    return found


def test_from_a_fit_to_answers_and_back(plain: dict[str, str], tmp_path: Path) -> None:
    base, triples = tiny.single(chat=True), tiny.demonstrations_file(60)  # of fewer none are held back
    commands = (
        f"fit {base} -d {triples} --max-new-tokens 4 -o edit.safetensors",
        f"fit {base} -d {triples} --method mean-difference --alpha 2 --no-measure -o constant.safetensors",
        "inspect edit.safetensors",
        f"plan {base} edit.safetensors",
        f"bake {base} edit.safetensors -o folded",
        f"bake {base} edit.safetensors --how adapter -o adapter",
        f"bake {base} constant.safetensors --how insert -o inserted",
        f"verify inserted --base {base}",
        "ask folded -p hello --max-new-tokens 4",
        f"unbake folded --base {base} -o back",
        "init recipe.yaml",
        "doctor",
    )
    for command, (code, out, err) in zip(commands, run(plain, tmp_path, *commands), strict=True):
        assert code == 0, (command, out, err)
        assert "Traceback" not in err, command


def test_what_needs_an_extra_says_which(plain: dict[str, str], tmp_path: Path) -> None:
    edit = tiny.edit_file()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    wanted = {
        f"inspect {edit} --plot edit.png": "plot",
        f"fit model.gguf -d {tiny.demonstrations_file()}": "gguf",
        f"eval {tiny.single()} --edit {edit}": "eval",
        f"tune {tiny.single()}": "tune|eval",
        f"report {edit}": "report",
        f"serve {tiny.single()} --edit {edit}": "serve",
        f"fit {tiny.single()} -d owner/name": "datasets",
        f"fit {tiny.single()} --method leace": "leace",
    }
    for (command, extra), (code, out, err) in zip(wanted.items(), run(plain, tmp_path, *wanted), strict=True):
        assert (code, out) == (2, ""), (command, out, err)
        assert re.search(rf"MissingExtraError.*pip install 'sea-bake\[({extra})\]'", err, re.S), (command, err)
        assert "Traceback" not in err, command
