"""No command takes away what it reads: inputs inside outputs, outputs inside inputs, under every spelling and link."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny

from sea_bake.artefact.names import PAGE_NUMBERS
from sea_bake.errors import OutputError
from sea_bake.io.apart import check_apart


def ours(folder: Path) -> Path:
    """A folder that sea_bake may replace when it is asked to."""
    (folder / PAGE_NUMBERS).parent.mkdir(parents=True, exist_ok=True)
    (folder / PAGE_NUMBERS).write_text("{}")
    return folder


def base(place: Path) -> Path:
    return shutil.copytree(tiny.single(), place)


def edit(place: Path) -> Path:
    return Path(shutil.copy(tiny.edit_file(), place))


def link(place: Path, target: Path) -> Path:
    place.symlink_to(target)
    return place


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with an output ``out`` that is ours; nothing in it may change."""
    ours(tmp_path / "desk" / "out")
    return tmp_path / "desk"


BAKES = {
    "the base": lambda d: ("bake", base(d / "out" / "base"), tiny.edit_file(), "-o", d / "out"),
    "the base, by a link": lambda d: (
        "bake", link(d / "base", base(d / "out" / "base")), tiny.edit_file(), "-o", d / "out"),
    "the base, which is a link in it": lambda d: (
        "bake", link(d / "out" / "base", base(d / "base")), tiny.edit_file(), "-o", d / "out"),
    "the base, which holds it": lambda d: ("bake", base(d / "b"), tiny.edit_file(), "-o", ours(d / "b" / "out")),
    "the base, out being a way round": lambda d: (
        "bake", base(d / "out" / "base"), tiny.edit_file(), "-o", d / "out" / "base" / ".." / ".." / "out"),
    "the edit": lambda d: ("bake", tiny.single(), edit(d / "out" / "e.safetensors"), "-o", d / "out"),
    "the second edit": lambda d: (
        "bake", tiny.single(), tiny.edit_file(), edit(d / "out" / "e.safetensors"), "-o", d / "out"),
    "calibration texts": lambda d: (
        "bake", tiny.single(), tiny.edit_file(), "-o", d / "out", "--approximate", "--calibration",
        shutil.copy(tiny.demonstrations_file(), d / "out" / "d.jsonl")),
    "demonstrations": lambda d: (
        "fit", tiny.single(), "-o", d / "d.jsonl", "-d", shutil.copy(tiny.demonstrations_file(), d / "d.jsonl")),
    "activations": lambda d: (
        "fit", "--activations", edit(d / "a.safetensors"), "-o", link(d / "e.safetensors", d / "a.safetensors")),
    "the edit of a report": lambda d: (
        "report", edit(d / "out" / "e.safetensors"), "-o", d / "out"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAKES)
def test_what_is_read_is_not_replaced(case: str, desk: Path) -> None:
    arguments = BAKES[case](desk)
    with tiny.nothing_happens(desk, desk):
        ran = tiny.run(*arguments, "--overwrite")
        tiny.refused(ran, "OutputError")
        assert any(words in ran.message for words in ("is read", "exists and is not a file")), ran.err


def test_of_artefacts_too(desk: Path, tmp_path: Path) -> None:
    """Unbaked, exported and shown: from inside the very output, and onto itself."""
    made = tmp_path / "made"
    assert tiny.run("bake", tiny.single(), tiny.edit_file(), "-o", made, "--how", "insert").code == 0
    inside = shutil.copytree(made, desk / "out" / "art")
    with tiny.nothing_happens(desk, desk):
        for command in (("unbake",), ("export", "onnx")):
            for output in (desk / "out", inside):
                tiny.refused(tiny.run(*command, inside, "-o", output, "--overwrite"), "OutputError", "is read")


def test_a_recipe_is_not_replaced_by_its_own_output(desk: Path) -> None:
    recipe = desk / "out" / "sea.yaml"
    recipe.write_text(f"model: {tiny.single()}\noutput: ../out\nfit: {{}}\nbake: {{}}\n")
    with tiny.nothing_happens(desk, desk):
        tiny.refused(tiny.run("run", recipe, "--overwrite"), "OutputError", "is read")


@pytest.mark.parametrize("output", ["/", ".."])
def test_a_recipes_output_has_a_name(output: str, tmp_path: Path) -> None:
    (tmp_path / "sea.yaml").write_text(f"model: x\noutput: {output}\nfit: {{}}\n")
    tiny.refused(
        tiny.run("run", tmp_path / "sea.yaml"), "RecipeError", "sea.yaml:2: output: 'output' has to name a folder"
    )


def test_a_gguf_does_not_take_its_base_away(desk: Path) -> None:
    """By a hard link it is the same file."""
    (desk / "base.gguf").write_bytes(b"GGUF")
    os.link(desk / "base.gguf", desk / "other.gguf")
    with pytest.raises(OutputError, match="is read"):
        check_apart(desk / "other.gguf", [desk / "base.gguf"], folder=False)


def test_what_is_apart_is_let_through(desk: Path) -> None:
    """The control: neighbours, a file beside a model's files, names that are no paths."""
    model = base(desk / "base")
    check_apart(desk / "out", [model, "builtin", "owner/name", None, object(), desk / "nothing"])
    check_apart(model / "edit.safetensors", [model], folder=False)
    with pytest.raises(OutputError, match="outside of it"):
        check_apart(model / "new", [model])
    assert json.loads((desk / "out" / PAGE_NUMBERS).read_text()) == {}
