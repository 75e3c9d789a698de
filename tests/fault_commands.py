"""The commands that write, on tiny models: what each is called with, and what it leaves, for ``faults.py``."""

from __future__ import annotations

import copy as copying
import functools
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmarks
import tiny
import yaml
from faults import Command
from hub_server import Hub

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


@functools.cache
def verified() -> Path:
    """An insert with its verification, as it is published."""

    def make(path: Path) -> None:
        from sea_bake import verify

        shutil.copytree(artefact("insert"), path)
        verify(path, base=tiny.single(), max_new_tokens=4)

    return _once(make, "verified")


@functools.cache
def converter() -> Path:
    """A program in the place of llama.cpp's converter: it writes in two steps, and says nothing."""
    text = f"""import sys
data, target = open({str(gguf())!r}, "rb").read(), sys.argv[sys.argv.index("--outfile") + 1]
with open(target, "wb") as file:
    file.write(data[: len(data) // 2])
    file.flush()
    file.write(data[len(data) // 2 :])
"""
    return _once(lambda path: path.write_text(text, "utf-8"), "convert_hf_to_gguf.py")


@functools.cache
def dense(sign: str) -> Path:
    """A [layers, d, d] tensor of the authors' released code."""

    def make(path: Path) -> None:
        import torch

        found = Edit.load(edit())
        rows = [getattr(found.projectors[layer], sign).double() for layer in found.layers]
        torch.save(torch.stack([r.T @ r for r in rows]), path)

    return _once(make, f"uu_{sign}.pt")


class OnHub:
    """The model that is published, on a Hub on loopback: its files, but for what every repository begins with."""

    def __init__(self) -> None:
        token = f"hf_{'ada' * 11}x"
        self.hub = Hub(tiny.root() / "faults" / "hub", {token: "ada"})
        self.hub.torn = True
        threading.Thread(target=self.hub._server.serve_forever, daemon=True).start()
        self.env = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(tiny.root() / "faults" / "hub-home"),
            "HF_TOKEN": token,
        }

    def quiet(self) -> None:
        """Until the Hub has done, or refused, all that was sent to it."""
        for _ in range(1000):
            if not any("process_request" in thread.name for thread in threading.enumerate()):
                return
            time.sleep(0.01)
        raise TimeoutError("the Hub is still at work")

    def seen(self) -> dict[str, str]:
        self.quiet()
        if REPO not in self.hub.repos:
            return {}
        tree = self.hub.tree(REPO)
        return {f"hub/{path}": blob.key for path, blob in tree.items() if path != ".gitattributes"}

    def keep(self) -> Any:
        self.quiet()
        return copying.deepcopy(self.hub.repos), set(self.hub.folder.iterdir())

    def put_back(self, kept: Any) -> None:
        self.quiet()
        self.hub.repos, files = copying.deepcopy(kept[0]), kept[1]
        for path in self.hub.folder.iterdir():
            if path not in files:
                path.unlink()


REPO = "ada/edited"


@functools.cache
def _hub() -> OnHub:
    return OnHub()


def empty_hub() -> OnHub:
    _hub().put_back(({}, set()))
    return _hub()


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


def search_agrees(folder: Path) -> None:
    """What is there can be read."""
    from sea_bake import Edit

    if (folder / "out" / "edit.safetensors").exists():
        Edit.load(folder / "out" / "edit.safetensors")


def _publish(made: Callable[[], Path]) -> Callable[[Path], list[object]]:
    return lambda folder: ["publish", made(), REPO, "--license", "mit", "--unverified"]


def _tune(seed: int) -> Callable[[Path], list[object]]:
    return lambda folder: [
        "tune", tiny.single(), "-d", tiny.demonstrations_file(36), "-o", folder / "out",
        "--trials", 2, "--neutral", "prompt", "--site", "attn",
        "--seed", seed,
    ]  # fmt: skip


def _serve_web(made: Callable[[], Path]) -> Callable[[Path], list[object]]:
    return lambda folder: ["serve-web", made(), "-o", folder / "out"]


@functools.cache
def onnx(how: str) -> Path:
    import exports

    return exports.export(exports.artefact(how), "for-faults")


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
        "bake --approximate",
        lambda folder: [
            "bake", tiny.single(), tiny.edit_file(), "--approximate", "--calibration", tiny.demonstrations_file(32),
            "-o", folder / "out",
        ],
        ("out",),
        before=lambda folder: ["bake", tiny.single(), edit(alpha=0.3), "--how", "fold", "-o", folder / "out"],
        once=(
            "sea_bake.baking.calibration:Reference",
            "sea_bake.baking.calibration:texts",
            "sea_bake.baking.approximate:_stand_ins",
        ),
    ),
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
        "export gguf, converted",
        lambda folder: ["export", "gguf", artefact("fold"), "--converter", converter(), "-o", folder / "out.gguf"],
        ("out.gguf",),
        before=lambda folder: ["export", "gguf", artefact("adapter"), "-o", folder / "out.gguf"],
        after=agree,
        moving=("out.gguf.sea.json",),
    ),
    Command(
        "export mlx",
        lambda folder: ["export", "mlx", artefact("adapter"), "-o", folder / "out"],
        ("out",),
        before=lambda folder: ["export", "mlx", artefact("adapter", alpha=0.3), "-o", folder / "out"],
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
        again=True,
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
        "serve-web",
        _serve_web(lambda: onnx("fold")),
        ("out",),
        before=_serve_web(lambda: onnx("insert")),
    ),
    Command(
        "import",
        lambda folder: [
            "import", dense("positive"), dense("negative"), "--base", tiny.single(), "--layers", "all",
            "-o", folder / "edit.safetensors",
        ],
        ("edit.safetensors",),
        before=lambda folder: [
            "import", dense("positive"), dense("negative"), "--base", tiny.single(), "--layers", "all",
            "--merge", "sum", "-o", folder / "edit.safetensors",
        ],
    ),
    Command(
        "tune",
        _tune(5),
        tuple(f"out/{name}" for name in ("edit.safetensors", "tune.json", "tune.md", "pareto.png", "pareto.svg")),
        before=_tune(6),
        once=(
            "sea_bake.activations:collect_sites",
            "sea_bake.fitting.tuning.searching:Bench._judged@(args[1], str(args[2]))",
            "sea_bake.fitting.tuning.searching:compare@str({k: sorted(e.ranks.items()) for k, e in args[1].items()})",
            "sea_bake.pages.pictures:Picture._rendered@args[1]",
        ),
        after=search_agrees,
        growing=("out",),
        moving=(
            *("run.json", "journal.log", "fit.jsonl"),
            *("activations-attn.safetensors", "activations-mlp.safetensors"),
        ),
        again=True,
    ),
    Command(
        "publish",
        _publish(verified),
        ("hub",),
        before=_publish(lambda: artefact("fold")),
        over=(),
        again=True,
        elsewhere=empty_hub,
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
        again=True,
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
    for make in (gguf, data, tiny.demonstrations_file, verified, converter):
        make()
