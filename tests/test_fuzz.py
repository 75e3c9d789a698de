"""A few thousand inputs for every reader, the same in every run; ``scripts/fuzz`` draws as many as one likes."""

from __future__ import annotations

import json
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import pytest
import tiny
from fuzzing import TARGETS, Target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sea_bake.artefact.names import VERIFICATION
from sea_bake.errors import EditError, SeaBakeError

EXAMPLES = 600  # for the fastest readers: all of them take some 15 s together


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_accepts_or_refuses(name: str) -> None:
    """It uses what it accepts, and says no with a SeaBakeError; whatever else it raises fails here."""
    target = TARGETS[name]
    seen: Counter[str] = Counter()

    @settings(max_examples=max(40, int(EXAMPLES * target.share)), suppress_health_check=list(HealthCheck))
    @given(target.inputs())
    def read(data: bytes) -> None:
        seen[fuzzing.outcome(target, folder, data)] += 1

    with fuzzing.scratch() as folder:
        read()
    assert seen["accepted"] > 0  # the control: inputs are near enough to valid ones to get far
    assert sum(seen.values()) > seen["accepted"]


def with_changes(valid: Any, **changes: Any) -> bytes:
    return json.dumps({**valid, **changes}).encode()


def verdict(**changes: dict[str, Any]) -> bytes:
    """A valid verdict, with something else in its parts."""
    valid = json.loads((fuzzing.verified() / VERIFICATION).read_text())
    return with_changes(valid, **{name: {**valid[name], **change} for name, change in changes.items()})


def recipe_of(old: str, new: str) -> bytes:
    """The starter with something else in a place."""
    text = fuzzing.recipe().decode()
    assert text.count(old) == 1
    return text.replace(old, new).encode()


def huge_edit() -> bytes:
    """A valid file whose constants are of 1e38."""
    from safetensors.torch import load, save

    valid = fuzzing.edits()[-1]
    size = struct.unpack("<Q", valid[:8])[0]
    metadata = json.loads(valid[8 : 8 + size])["__metadata__"]
    return bytes(save({name: tensor.fill_(1e38) for name, tensor in load(valid).items()}, metadata))


ONCE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "an export of a bake that is a number": ("export", lambda: with_changes(fuzzing.onnx_record(), bake=1)),
    "an export of a bake that is a text": ("export", lambda: with_changes(fuzzing.onnx_record(), bake="{}")),
    "an evaluation of an edit by no name": (
        "evaluation",
        lambda: with_changes(fuzzing.evaluation(), model={**fuzzing.evaluation()["model"], "how": []}),
    ),
    "a verdict of unused tensors that are a number": ("verification", lambda: verdict(facts={"unused_by_the_base": 3})),
    "a verdict of unused tensors without names": ("verification", lambda: verdict(facts={"unused_by_the_base": [1]})),
    "a verdict of a strength that is a text": ("verification", lambda: verdict(facts={"strength_0": "weak"})),
    "a verdict of a count of 400 digits": ("verification", lambda: verdict(equality={"prompts": 10**400})),
    "an edit of numbers whose products are infinite": ("edit", lambda: huge_edit()),
    "an archive on two disks": (
        "foreign",
        lambda: b"v.pt PK\x03\x04PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + b"PK\x05\x06" + bytes(18),
    ),
    "a configuration whose dtype is a number": (
        "config",
        lambda: with_changes(json.loads((tiny.single() / "config.json").read_text("utf-8")), dtype=10000.0),
    ),
    "a recipe of a number beyond all floats": ("recipe", lambda: recipe_of("ridge: 0.1", f"ridge: {10**400}")),
    "a recipe of a primer whose name is too long": (
        "recipe",
        lambda: recipe_of("primer: null", f"primer: {'x' * 300}"),
    ),
    "a family that is a list": ("foreign", lambda: b'v.svec {"model_type": [], "directions": {}}'),
    "a GGUF whose name of a tensor is a page long": (
        "gguf",
        lambda: b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (struct.pack("<Q", 4000) + b"\xff" * 4000 + b"\0\0\0\0\1"),
    ),
}


REFUSALS = ("CheckpointError", "EvaluationError", "EditError", "RecipeError", "DemonstrationError")


@pytest.mark.slow
@pytest.mark.parametrize("case", ONCE)
def test_what_crashed_once_is_refused(case: str) -> None:
    name, make = ONCE[case]
    with fuzzing.scratch() as folder:
        assert fuzzing.outcome(TARGETS[name], folder, make()) in REFUSALS


def over(kind: str, folder: Path) -> None:
    """What an input must not do: take two seconds, a gigabyte, or more than there is."""
    if kind == "time":
        began = time.process_time()
        while time.process_time() - began < fuzzing.SECONDS + 0.1:
            pass
    elif kind == "memory":
        # Four times the limit: under pressure the kernel takes pages of other files from this process meanwhile.
        held = bytearray(4 * fuzzing.MEMORY << 10)
        held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    elif kind == "bytes":
        (folder / "file").write_bytes(b"x" * (1 << 20))
        for _ in range(40):
            (folder / "file").read_bytes()
    else:
        raise RefusedError


class RefusedError(SeaBakeError):
    """Without the limit of its kind."""

    def __str__(self) -> str:
        return "x" * 5000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["time", "memory", "bytes", "words"])
def test_what_is_over_a_limit_is_a_crash(tmp_path: Path, kind: str) -> None:
    """The controls; swallowed by the reader or not."""
    with pytest.raises(fuzzing.OverLimitError):
        fuzzing.outcome(Target(st.binary, lambda folder, data: over(kind, folder)), tmp_path, b"")
    assert fuzzing.outcome(Target(st.binary, lambda folder, data: None), tmp_path, b"") == "accepted"


def test_an_error_is_no_longer_than_a_screen() -> None:
    """Its ends are kept: what is wrong, and the cure."""
    said = str(EditError(f"wrong: {'x' * 100_000}: cure"))
    assert len(said) < 3000
    assert said.startswith("wrong: x")
    assert said.endswith("x: cure")
    assert str(EditError("short")) == "short"


def test_a_crash_is_not_taken_for_a_refusal(tmp_path: Path) -> None:
    """The control: of two readers, one refuses and one crashes."""

    def refuses(folder: Path, data: bytes) -> None:
        raise EditError("no")

    def crashes(folder: Path, data: bytes) -> None:
        raise ValueError("no")

    assert fuzzing.outcome(Target(st.binary, refuses), tmp_path, b"") == "EditError"
    with pytest.raises(ValueError, match="no"):
        fuzzing.outcome(Target(st.binary, crashes), tmp_path, b"")
