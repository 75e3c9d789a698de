"""The commands that write, on tiny models: what each is called with, and what it leaves, for ``faults.py``."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmarks
import tiny
import yaml
from faults import Command

from sea_bake import Edit, bake

_VERIFY = ("sea_bake.verification.checkpoint:prove",)


def _once(make: Callable[[Path], object], name: str) -> Path:
    path = tiny.root() / "faults" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        make(path)
    return path


@functools.cache
def edit(**settings: Any) -> Path:
    """One that folds."""
    name = "-".join(["folds", *(f"{key}={value}" for key, value in settings.items())])
    made = Edit.load(tiny.edit_file()).with_settings(merge="sum", **settings)
    return _once(lambda path: made.save(path), f"{name}.safetensors")


@functools.cache
def artefact(how: str, **settings: Any) -> Path:
    """A bake of this kind, beside its base as verify finds it."""
    given = tiny.edit_file() if how == "insert" else edit(**settings)
    return _once(lambda path: bake(tiny.single(), given, path, how=how), f"{how}{len(settings)}")


@functools.cache
def gguf() -> Path:
    import smoke

    return _once(lambda path: smoke.gguf(tiny.single(), path), "base.gguf")


@functools.cache
def data() -> Path:
    def make(path: Path) -> None:
        path.mkdir()
        benchmarks.write(path)

    return _once(make, "data")


def copy(how: str, name: str = "out") -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        shutil.copytree(artefact(how), folder / name)

    return prepare


def agree(folder: Path) -> None:
    """A GGUF and its record; what speaks for none is none."""
    from sea_bake.artefact import Artefact

    if (folder / "out.gguf").exists():
        record: Any = Artefact.open(folder / "out.gguf").record
        assert record.sha256 == tiny.sha256(folder / "out.gguf"), "the record is of another file"


def page_agrees(folder: Path) -> None:
    from sea_bake.artefact import Artefact

    found = Artefact.open(folder / "out")
    assert (found.page is not None) == (folder / "out" / "sea" / "report.html").exists()


def recipe(folder: Path) -> None:
    made = {
        "model": str(tiny.single()),
        "output": "out",
        "fit": {"demonstrations": str(tiny.demonstrations_file()), "layers": "all", "K": 0.9, "neutral": "prompt"},
        "bake": {"how": "insert"},
        "verify": {"max_new_tokens": 4},
    }
    (folder / "sea_bake.yaml").write_text(yaml.safe_dump(made), "utf-8")


def other_recipe_s_output(folder: Path) -> list[object]:
    return ["bake", tiny.single(), edit(), "--how", "insert", "-o", folder / "out"]


def _bake(how: str) -> Command:
    given = tiny.edit_file() if how == "insert" else edit()
    return Command(
        f"bake --how {how}",
        lambda folder: ["bake", tiny.single(), given, "--how", how, "-o", folder / "out"],
        ("out",),
        before=lambda folder: ["bake", tiny.single(), edit(alpha=0.3), "--how", how, "-o", folder / "out"],
    )


_EVAL = ["--tasks", "truthfulqa_mc1", "--limit", 2, "--no-cost"]

COMMANDS = (
    Command(
        "fit",
        lambda folder: [
            "fit", tiny.single(), "-d", tiny.demonstrations_file(), "--neutral", "prompt",
            "-o", folder / "edit.safetensors", "--save-activations", folder / "activations.safetensors",
        ],
        ("edit.safetensors", "activations.safetensors"),
        before=lambda folder: [
            "fit", tiny.single(), "-d", tiny.demonstrations_file(), "--neutral", "prompt", "--site", "mlp",
            "-o", folder / "edit.safetensors", "--save-activations", folder / "activations.safetensors",
        ],
    ),
    Command(
        "init",
        lambda folder: ["init", folder / "sea_bake.yaml"],
        ("sea_bake.yaml",),
        before=lambda folder: ["init", folder / "sea_bake.yaml", "--model", "another"],
    ),
    _bake("insert"),
    _bake("fold"),
    _bake("adapter"),
    Command(
        "bake of a GGUF",
        lambda folder: ["bake", gguf(), edit(), "--how", "fold", "-o", folder / "out"],
        ("out",),
        before=lambda folder: ["bake", tiny.single(), edit(alpha=0.3), "--how", "fold", "-o", folder / "out"],
    ),
    Command(
        "unbake of an insert",
        lambda folder: ["unbake", artefact("insert"), "-o", folder / "out"],
        ("out",),
        before=lambda folder: ["bake", tiny.single(), edit(alpha=0.3), "--how", "fold", "-o", folder / "out"],
    ),
    Command(
        "unbake of a fold",
        lambda folder: ["unbake", artefact("fold"), "--base", tiny.single(), "-o", folder / "out"],
        ("out",),
        before=lambda folder: ["bake", tiny.single(), edit(alpha=0.3), "--how", "fold", "-o", folder / "out"],
    ),
    Command(
        "export gguf, rewritten",
        lambda folder: ["export", "gguf", artefact("fold"), "--base", gguf(), "-o", folder / "out.gguf"],
        ("out.gguf",),
        before=lambda folder: [
            "export", "gguf", artefact("fold", alpha=0.3), "--base", gguf(), "-o", folder / "out.gguf",
        ],
        after=agree,
        moving=("out.gguf.sea.json",),
    ),
    Command(
        "export gguf, adapter",
        lambda folder: ["export", "gguf", artefact("adapter"), "-o", folder / "out.gguf"],
        ("out.gguf",),
        before=lambda folder: ["export", "gguf", artefact("adapter", alpha=0.3), "-o", folder / "out.gguf"],
        after=agree,
        moving=("out.gguf.sea.json",),
    ),
    Command(
        "export onnx",
        lambda folder: ["export", "onnx", artefact("fold"), "-o", folder / "out"],
        ("out",),
        before=lambda folder: ["bake", tiny.single(), edit(alpha=0.3), "--how", "fold", "-o", folder / "out"],
        once=("sea_bake.exporting.onnx.tracing:trace", "sea_bake.exporting.onnx.checking:check"),
    ),
    Command(
        "verify --write",
        lambda folder: ["verify", folder / "out", "--base", tiny.single(), "--max-new-tokens", 4],
        ("out/sea_verification.json",),
        prepare=copy("insert"),
        once=_VERIFY,
    ),
    Command(
        "eval -o",
        lambda folder: [
            "eval", artefact("insert"), "--base", tiny.single(), "--data", data(), *_EVAL, "-o", folder / "out",
        ],
        (
            *("out/evaluation.json", "out/evaluation.md", "out/evaluation.html"),
            *(f"out/examples/truthfulqa_mc1.{door}.jsonl" for door in ("base", "insert")),
        ),
        growing=("out", "out/examples"),
        once=("sea_bake.evaluation.running:answered@(args[0].name, type(args[1].model).__name__)",
              "sea_bake.evaluation.rendering:page"),
    ),
    Command(
        "eval --write",
        lambda folder: ["eval", folder / "out", "--base", tiny.single(), "--data", data(), *_EVAL, "--write"],
        ("out/sea/evaluation.json",),
        prepare=copy("insert"),
        once=("sea_bake.evaluation.running:run",),
    ),
    Command(
        "report -o",
        lambda folder: ["report", artefact("insert"), "-o", folder / "out"],
        ("out",),
        before=lambda folder: ["report", artefact("fold"), "-o", folder / "out"],
        once=("sea_bake.reporting.page:page", "sea_bake.pages.pictures:Picture._rendered@len(args[0].name)"),
    ),
    Command(
        "report --write",
        lambda folder: ["report", folder / "out", "--write"],
        ("out/sea/report.html",),
        prepare=copy("insert"),
        once=("sea_bake.reporting.page:page",),
        after=page_agrees,
        moving=("report.json",),
    ),
    Command(
        "run",
        lambda folder: ["run", folder / "sea_bake.yaml"],
        ("out", "out/sea_verification.json", "out-work/edit.activations.safetensors", "out-work/edit.safetensors"),
        growing=("out-work",),
        prepare=recipe,
        before=other_recipe_s_output,
        once=_VERIFY,
        moving=("state.json", ".lock"),
    ),
)  # fmt: skip


def command(name: str) -> Command:
    return next(one for one in COMMANDS if one.name == name)


def prepare() -> None:
    """Make all that the commands read."""
    for how in ("insert", "fold", "adapter"):
        artefact(how)
    for how in ("fold", "adapter"):
        artefact(how, alpha=0.3)
    for alpha in (0.3, 0.5, 0.7):
        edit(alpha=alpha)
    gguf()
    data()
    tiny.demonstrations_file()
