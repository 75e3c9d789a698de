"""Outputs are whole or nothing: under SIGKILL and SIGINT at chosen and random moments, and for every unit of staging.

The killed process is the real command line in a process of its own, copying some 115 MB in 20 shards or more. It is
forked from one that has imported everything (``tiny.Nursery``), so that the moments lie within the bake.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from sea_bake import Edit, bake
from sea_bake.artefact import output
from sea_bake.errors import OutputError
from sea_bake.io import interrupts, progress
from sea_bake.io.staging import scratch_folder, staged_file, staged_folder

KILLS = 20


def bake_large(output: Path, *more: object, how: str = "insert", edit: Path | None = None) -> tuple[object, ...]:
    edit = edit or edit_of(how)
    return ("bake", tiny.large(), edit, "-o", output, "--how", how, "--copy", "--quiet", *more)


@functools.cache
def edit_of(how: str) -> Path:
    """An edit of the large model; for a fold the same projectors with a merge that folds."""
    path = tiny.edit_file(tiny.large())
    if how == "fold":
        edit, path = Edit.load(path), tiny.root() / "large-sum.safetensors"
        edit.with_settings(merge="sum").save(path)
    return path


@functools.cache
def seconds_of_a_bake(how: str = "insert") -> float:
    """How long one takes that nobody interrupts; the best of three, for a busy machine only makes it longer."""
    times = []
    for i in range(3):
        output = tiny.root() / f"undisturbed-{i}"
        ran, seconds = tiny.nursery().run(*bake_large(output, how=how))
        assert ran.code == 0, ran
        times.append(seconds)
        shutil.rmtree(output)
    return min(times)


@functools.cache
def logits_of(folder: Path, edit: Path | None = None) -> torch.Tensor:
    """What a checkpoint answers: the base under ``Edit.live``, or an artefact as any user loads it."""
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 40)[None]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=edit is None, dtype=torch.float32).eval()
    with torch.inference_mode():
        if edit is None:
            return model(ids).logits
        with Edit.load(edit).live(model):
            return model(ids).logits


def is_complete(output: Path, *edits: Path) -> bool:
    """Whether an output is there; if it is, it loads, and answers like the base under one of the edits."""
    if not output.exists():
        return False
    # The name of the temporary is part of the key: every output is loaded anew.
    found = logits_of(Path(shutil.move(output, tiny.root() / f"moved-{time.monotonic_ns()}")))
    assert bool(torch.isfinite(found).all())
    # 1e-4: the same operations in the same process, or their sums in another order; float32 logits of magnitude 10.
    assert any(float((found - logits_of(tiny.large(), edit)).abs().max()) < 1e-4 for edit in edits)
    return True


@pytest.fixture(scope="module")
def other_edit() -> Path:
    """The same projectors at a third of the strength: another artefact."""
    path = tiny.root() / "large-weaker.safetensors"
    Edit.load(tiny.edit_file(tiny.large())).with_settings(alpha=0.3).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", ["insert", "fold"])
def test_a_bake_killed_at_random_moments(tmp_path: Path, how: str) -> None:
    seconds, before = seconds_of_a_bake(how), tiny.snapshot(tiny.large())
    assert len(list(tiny.large().glob("*.safetensors"))) >= 20
    chance = random.Random(0)
    complete = litter = 0
    for kill in range(4 * KILLS):  # more of them on a busy machine, where the moments are not those that were measured
        if kill >= KILLS and litter >= 3 and kill - complete >= 5:
            break
        output = tmp_path / f"out-{kill}"
        moment = (kill % KILLS + chance.random()) / KILLS * 1.1 * seconds
        ran = tiny.nursery().killed(moment, *bake_large(output, how=how))
        assert ran.code in (0, -signal.SIGKILL)
        found = tiny.listing(tmp_path) - {output.name}
        assert all(name.startswith(f".{output.name}.sea-bake-") for name in found), found
        litter += bool(found)
        complete += is_complete(output, edit_of(how))
        # What the killed run left is removed by the next one that writes there, and nothing else is.
        for name in found:
            shutil.rmtree(tmp_path / name)
    assert kill - complete >= 5, "too few of the kills came before the end: nothing has been shown"
    assert litter >= 3, "too few of the kills came while files were being written"
    assert tiny.snapshot(tiny.large()) == before


@pytest.mark.slow
def test_the_next_run_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    output, neighbour = tmp_path / "out[1]", tmp_path / ".out[2].sea-bake-1-x"  # brackets mean something to a glob
    alive = tmp_path / f".out[1].sea-bake-{os.getpid()}-x"
    neighbour.mkdir()
    alive.mkdir()
    for share in range(1, 20):
        tiny.nursery().killed(share / 20 * seconds_of_a_bake(), *bake_large(output))
        if len(tiny.listing(tmp_path)) == 3 and not output.exists():
            break
    assert len(tiny.listing(tmp_path)) == 3, "no kill left a temporary folder: nothing has been shown"
    ran, _ = tiny.nursery().run(*bake_large(output))
    assert ran.code == 0
    # That of another output, and that of a process which is still alive, are not this run's business.
    assert tiny.listing(tmp_path) == {"out[1]", neighbour.name, alive.name}
    assert is_complete(output, tiny.edit_file(tiny.large()))


@pytest.mark.slow
def test_a_bake_that_overwrites_killed_at_random_moments(tmp_path: Path, other_edit: Path) -> None:
    """The old artefact or the new one; never nothing, never a mixture."""
    seconds, edit = seconds_of_a_bake(), tiny.edit_file(tiny.large())
    prepared, output = tmp_path / "prepared", tmp_path / "out"
    bake(tiny.large(), other_edit, prepared)
    chance = random.Random(1)
    old = new = 0
    for kill in range(8):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(prepared, output)
        delay = (kill + chance.random()) / 8 * 1.2 * seconds
        ran = tiny.nursery().killed(delay, *bake_large(output, "--overwrite", edit=edit))
        assert ran.code in (0, -signal.SIGKILL)
        assert tiny.listing(output) == tiny.listing(prepared)
        is_old = (output / "config.json").read_bytes() == (prepared / "config.json").read_bytes()
        old, new = old + is_old, new + (not is_old)
        assert is_complete(output, other_edit if is_old else edit)
    assert old >= 2, "too few of the kills came before the end: nothing has been shown"


@pytest.mark.slow
def test_a_bake_killed_while_it_swaps(tmp_path: Path, other_edit: Path) -> None:
    """The kill is sent the moment the new artefact has its name, while the old one is removed."""
    output, edit = tmp_path / "out", tiny.edit_file(tiny.large())
    seen = 0
    for _ in range(3):
        shutil.rmtree(output, ignore_errors=True)
        bake(tiny.large(), other_edit, output)
        old = output.stat().st_ino
        pid = tiny.nursery().start(*bake_large(output, "--overwrite", edit=edit))
        until = time.monotonic() + 60
        while time.monotonic() < until and Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z":
            if output.stat().st_ino != old:  # which raises where there is none
                os.kill(pid, signal.SIGKILL)
                seen += 1
                break
        assert tiny.nursery().wait()[0].code in (0, -signal.SIGKILL)
        assert is_complete(output, other_edit, edit)
    assert seen, "the swap was never seen: nothing has been shown"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
def test_an_interrupted_bake(tmp_path: Path, share: float) -> None:
    """Ctrl-C: exit code 130, one line, no litter, no output; or it came too late, and the output is whole."""
    output, before = tmp_path / "out", tiny.snapshot(tiny.large())
    ran = tiny.nursery().killed(share * seconds_of_a_bake(), *bake_large(output), with_signal=signal.SIGINT)
    complete = is_complete(output, tiny.edit_file(tiny.large()))
    assert ran.code == 130 or (ran.code == 0 and complete), ran
    if ran.code == 130:
        assert ran.err.strip() == "interrupted: nothing half-written was left behind"
    assert tiny.listing(tmp_path) == set()
    assert tiny.snapshot(tiny.large()) == before


@pytest.mark.slow
def test_an_interrupted_fit(tmp_path: Path) -> None:
    args = ("fit", tiny.large(), "-d", tiny.demonstrations_file(), "-o", tmp_path / "edit", "--max-new-tokens", 400)
    ran = tiny.nursery().killed(0.5, *args, "--quiet", with_signal=signal.SIGINT)
    assert ran.code == 130, ran  # 8 texts of 400 tokens take seconds
    assert "Traceback" not in ran.err
    assert "interrupted" in ran.err
    assert tiny.listing(tmp_path) == set()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as at a terminal: a shell's background job (and all that it starts) has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c_in_vain() -> None:
    """What a tracer's callback does with a KeyboardInterrupt now and then."""
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("way", [staged_folder, staged_file])
def test_nothing_gets_its_name_after_an_interrupt_that_was_swallowed(way: Any, tmp_path: Path) -> None:
    with interrupts.heeded(), way(tmp_path / "whole"):
        pass  # the control: nobody pressed anything
    with pytest.raises(KeyboardInterrupt), interrupts.heeded(), way(tmp_path / "none"):
        press_ctrl_c_in_vain()
    assert tiny.listing(tmp_path) == {"whole"}


@pytest.mark.usefixtures("ctrl_c")
def test_long_work_stops_at_its_next_step_after_an_interrupt_that_was_swallowed() -> None:
    with interrupts.heeded():
        with progress.bar("work", 2) as advance:
            advance(1)
            press_ctrl_c_in_vain()
            with pytest.raises(KeyboardInterrupt):
                advance(1)
        assert interrupts.interrupted()
    assert not interrupts.interrupted()  # it was this command's


class Dying:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_in_a_finaliser_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python cannot raise it there, and would print it."""
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    with interrupts.heeded():
        dying = Dying()
        del dying
        assert interrupts.interrupted()
    assert printed == []
    dying = Dying()  # the control
    del dying
    assert len(printed) == 1


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("late", [True, False])
def test_a_command_says_how_it_ended(late: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An interrupt that came to nothing after the work was whole is no failure; one that broke the work is."""

    def app() -> None:
        press_ctrl_c_in_vain()
        logging.getLogger("torch").error("what the interrupt broke")
        if late:
            raise SystemExit(0)
        raise RuntimeError("what a library makes of it")

    tiny.commands()  # of the real one, whoever asks first
    monkeypatch.setattr("sea_bake.cli.app", app)
    ran = tiny.run("inspect", tmp_path)
    assert (ran.code, ran.err.strip()) == (
        (0, "") if late else (130, "interrupted: nothing half-written was left behind")
    )


@pytest.mark.slow
def test_overwrite_replaces_the_whole(tmp_path: Path, other_edit: Path) -> None:
    output = tmp_path / "out"
    bake(tiny.large(), other_edit, output)
    (output / "left.txt").write_text("of the old one")
    bake(tiny.large(), tiny.edit_file(tiny.large()), output, overwrite=True)
    assert not (output / "left.txt").exists()
    assert tiny.listing(tmp_path) == {"out"}
    assert is_complete(output, tiny.edit_file(tiny.large()))


# ------------------------------------------------------------------------------------------------------------ the units


def test_a_staged_folder_appears_at_the_end(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "deep" / "out") as stage:
        (stage / "a").write_text("a")
        assert not (tmp_path / "deep" / "out").exists()
        assert stage.parent == tmp_path / "deep"  # the same file system: the last step is a rename
    assert tiny.listing(tmp_path / "deep") == {"out"}
    assert (tmp_path / "deep" / "out" / "a").read_text() == "a"


def test_a_staged_file_appears_at_the_end(tmp_path: Path) -> None:
    with staged_file(tmp_path / "out") as stage:
        stage.write_text("a")
        assert not (tmp_path / "out").exists()
    assert tiny.listing(tmp_path) == {"out"}
    assert (tmp_path / "out").read_text() == "a"


def write(staged: Any, error: type[BaseException]) -> None:
    """Begin an output, and fail."""
    with staged as stage:
        (stage / "a" if stage.is_dir() else stage).write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("staged", [staged_file, staged_folder, scratch_folder])
def test_nothing_appears_after_an_exception(tmp_path: Path, staged: Any, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write(staged(tmp_path / "out"), error)
    assert tiny.listing(tmp_path) == set()


@pytest.mark.parametrize("staged", [staged_file, output.staged])
def test_the_old_one_stays_after_an_exception(tmp_path: Path, staged: Any) -> None:
    out = tmp_path / "out"
    with staged(out) as stage:
        target = stage / "sea" / "bake.json" if stage.is_dir() else stage
        target.parent.mkdir(exist_ok=True)
        target.write_text("old")
    before = tiny.snapshot(tmp_path)
    with pytest.raises(ZeroDivisionError):
        write(staged(out, overwrite=True), ZeroDivisionError)
    assert tiny.snapshot(tmp_path) == before
    with pytest.raises(OutputError, match="exists already"), staged(out):
        raise AssertionError("not reached")


def test_a_scratch_folder_is_always_removed(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "out") as scratch:
        (scratch / "a").write_text("a")
    assert tiny.listing(tmp_path) == set()


def test_overwrite_takes_only_what_is_ours(tmp_path: Path) -> None:
    for name, content in {"thesis": "thesis.txt", "with a sea": "sea/thesis.txt"}.items():
        (tmp_path / name / content).parent.mkdir(parents=True)
        (tmp_path / name / content).write_text("mine")
        with pytest.raises(OutputError, match="was not written by sea_bake"):
            output.check_folder(tmp_path / name, overwrite=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "ours" / "sea").mkdir(parents=True)
    (tmp_path / "ours" / "sea" / "bake.json").write_text("{}")
    for name in ("empty", "ours"):
        assert output.check_folder(tmp_path / name, overwrite=True) == tmp_path / name
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    with pytest.raises(OutputError, match="is not a folder"):
        output.check_folder(tmp_path / "link", overwrite=True)


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with staged_file(tmp_path / "file") as stage:
            stage.write_text("a")
        with staged_folder(tmp_path / "folder") as folder:
            (folder / "a").touch(0o600)
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"file": 0o640, "folder": 0o750, "a": 0o640}
