"""The last step of every output takes nobody's place, and no clean-up takes what somebody may still need.

What holds at every system call of every command is in ``test_faults.py``; here stand the units, one rule each.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from sea_bake.artefact import output
from sea_bake.errors import OutputError
from sea_bake.io import interrupts, leases
from sea_bake.io.staging import check_output, scratch_folder, staged_file, staged_folder

WAYS: dict[str, Any] = {"folder": output.staged, "file": staged_file}


@pytest.fixture(params=["kernel", "plain"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that can rename without replacing, and exchange; and one that can do neither."""
    if request.param == "plain":
        from sea_bake.io import replacing

        monkeypatch.setattr(replacing, "_kernel", lambda: None)
    return str(request.param)


def fill(stage: Path, text: str) -> None:
    """Make a file, or a folder that is known as ours."""
    target = stage / "sea" / "bake.json" if stage.is_dir() else stage
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)


def make(kind: str, path: Path, text: str, *, overwrite: bool = False) -> None:
    with WAYS[kind](path, overwrite=overwrite) as stage:
        fill(stage, text)


def attempt(staged: Any, *steps: Callable[[Path], object]) -> None:
    """An output in whose making these things happen."""
    with staged as stage:
        for step in steps:
            step(stage)


def vanish(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def content(path: Path) -> str:
    return (path / "sea" / "bake.json" if path.is_dir() else path).read_text()


def by_tokenizers(stage: Path) -> None:
    from tokenizers import Tokenizer, models

    (stage / "tokenizer.json").symlink_to("/dev/full")
    Tokenizer(models.BPE()).save(str(stage / "tokenizer.json"))


def by_nobody(stage: Path) -> None:
    raise ValueError("not an os error 28")


def test_a_full_disk_is_said_where_tokenizers_writes(tmp_path: Path) -> None:
    """Which has no error of its own for it. What safetensors says is in ``test_faults.py``."""
    with pytest.raises(OutputError, match="space"):
        attempt(output.staged(tmp_path / "out"), by_tokenizers)
    with pytest.raises(ValueError, match="not an os"):  # the control
        attempt(output.staged(tmp_path / "out"), by_nobody)
    assert tiny.listing(tmp_path) == set()


def somebodys_file(path: Path) -> None:
    path.write_text("thesis")


def somebodys_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis").write_text("thesis")


def an_empty_folder(path: Path) -> None:
    path.mkdir()


def a_link(path: Path) -> None:
    path.symlink_to("nowhere")


def another_run(path: Path) -> None:
    make("folder", path, "another")


def another_file(path: Path) -> None:
    make("file", path, "another")


APPEARING = (somebodys_file, somebodys_folder, an_empty_folder, a_link, another_run, another_file)


def state(path: Path) -> Any:
    """What lies at a path, to the inode."""
    found = os.lstat(path)
    return found.st_ino, found.st_mode, tiny.snapshot(path) if path.is_dir() and not path.is_symlink() else None


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("appearing", APPEARING)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_what_appears_meanwhile_is_not_touched(
    tmp_path: Path, kind: str, overwrite: bool, appearing: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    before: list[Any] = []
    with pytest.raises(OutputError, match="was made by another program"):
        attempt(
            WAYS[kind](out, overwrite=overwrite),
            lambda stage: fill(stage, "new"),
            lambda _: appearing(out),
            lambda _: before.append(state(out)),
        )
    assert [state(out)] == before
    assert tiny.listing(tmp_path) == {"out"}


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("appearing", APPEARING)
@pytest.mark.parametrize("kind", WAYS)
def test_overwrite_replaces_the_very_thing_that_was_checked(
    tmp_path: Path, kind: str, appearing: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    make(kind, out, "old")
    before: list[Any] = []
    with pytest.raises(OutputError, match="no longer what it was"):
        attempt(
            WAYS[kind](out, overwrite=True),
            lambda stage: fill(stage, "new"),
            lambda _: vanish(out),
            lambda _: appearing(out),
            lambda _: before.append(state(out)),
        )
    assert [state(out)] == before
    assert tiny.listing(tmp_path) == {"out"}


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", WAYS)
def test_what_was_checked_long_before_counts(tmp_path: Path, kind: str) -> None:
    """A command checks its output first and begins to write minutes later."""
    first, second = (tmp_path / name for name in ("first", "second"))
    make(kind, second, "old")
    checked = [
        check_output(path, overwrite=True, folder=kind == "folder", ours=output.is_ours) for path in (first, second)
    ]
    make(kind, first, "another")
    make(kind, second, "another", overwrite=True)
    for path in checked:
        with pytest.raises(OutputError, match="since this run began"):
            make(kind, path, "new", overwrite=True)
        assert content(path) == "another"
    assert tiny.listing(tmp_path) == {"first", "second"}


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", WAYS)
def test_overwrite_replaces_what_is_ours(tmp_path: Path, kind: str) -> None:
    """The control: all this does not keep an old output alive."""
    out = tmp_path / "out"
    make(kind, out, "old")
    checked = check_output(out, overwrite=True, folder=kind == "folder", ours=output.is_ours)
    make(kind, checked, "new", overwrite=True)
    assert content(out) == "new"
    assert tiny.listing(tmp_path) == {"out"}
    with WAYS[kind](out, overwrite=True) as stage:
        fill(stage, "newer")
        vanish(out)  # removed by hand meanwhile: nothing is in the way
    assert content(out) == "newer"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_no_pipe_and_no_device_is_replaced(tmp_path: Path, kind: str, overwrite: bool) -> None:
    """``-o /dev/null --overwrite``, by somebody who may."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        before = os.lstat(path)
        with pytest.raises(OutputError, match="exists and is not a f"):
            check_output(path, overwrite=overwrite, folder=kind == "folder")
        with pytest.raises(OutputError, match="exists and is not a f"):
            make(kind, tmp_path / "pipe", "new", overwrite=overwrite)
        assert os.lstat(path).st_mode == before.st_mode
    assert tiny.listing(tmp_path) == {"pipe"}


@pytest.mark.parametrize("kind", WAYS)
def test_what_another_user_left_stops_nobody(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder for all, as /tmp, where it cannot be moved: no reason to fail."""
    from sea_bake.io import replacing

    theirs = tmp_path / ".out.sea-bake-0123abcd-old-abcdefgh" / "old"
    theirs.mkdir(parents=True)
    real = replacing.rename_new

    def rename_new(source: Path, target: Path) -> None:
        if source == theirs:
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(replacing, "rename_new", rename_new)
    make(kind, tmp_path / "out", "new")
    assert content(tmp_path / "out") == "new"


@pytest.mark.parametrize("name", [".out.sea-bake-999999-old-abcdefgh", ".out.sea-bake-0123abcd-old-abcdefgh"])
@pytest.mark.parametrize("fails", [True, False])
def test_an_old_output_that_was_set_aside_is_put_back(
    tmp_path: Path, name: str, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """By the next run, which fails, or is told to replace it; also one that an earlier sea_bake has left."""
    out = tmp_path / "out"
    fill_old = tmp_path / name / "old"
    fill_old.mkdir(parents=True)
    fill(fill_old, "old")
    with contextlib.suppress(ZeroDivisionError), output.staged(out, overwrite=True) as stage:
        assert content(out) == "old"
        fill(stage, "new")
        1 / (not fails)
    assert content(out) == ("old" if fails else "new")
    assert tiny.listing(tmp_path) == {"out"}
    assert f"{out} was put back" in caplog.text


def test_without_overwrite_what_was_put_back_is_kept(tmp_path: Path) -> None:
    old = tmp_path / ".out.sea-bake-999999-old-abcdefgh" / "old"
    old.mkdir(parents=True)
    fill(old, "old")
    with pytest.raises(OutputError, match="exists already"):
        check_output(tmp_path / "out", folder=True)
    assert content(tmp_path / "out") == "old"
    assert tiny.listing(tmp_path) == {"out"}


def test_a_failed_roll_back_keeps_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two names cannot be exchanged: the new one cannot take its name, nor the old one at once its own."""
    from sea_bake.io import replacing

    monkeypatch.setattr(replacing, "_kernel", lambda: None)
    out = tmp_path / "out"
    make("folder", out, "old")
    refuse, real = [True, True], replacing.rename_new

    def rename_new(source: Path, target: Path) -> None:
        if refuse and refuse.pop():
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(replacing, "rename_new", rename_new)
    with pytest.raises(OutputError, match="could not be written: nothing was left behind"):
        make("folder", out, "new", overwrite=True)
    assert content(out) == "old"
    assert tiny.listing(tmp_path) == {"out"}


# ------------------------------------------------------------------------------------------------------------ the sweep


@pytest.mark.parametrize("way", [staged_folder, staged_file, scratch_folder])
def test_a_live_run_keeps_its_temporary_though_its_number_is_unknown(
    tmp_path: Path, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in another container on the same disk: its processes are not in this one's /proc."""
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != Path(f"/proc/{os.getpid()}") and exists(path))
    with way(tmp_path / "out") as stage:
        with contextlib.suppress(ZeroDivisionError), staged_file(tmp_path / "out"):
            1 / 0  # noqa: B018
        assert stage.exists()


def abandoned(path: Path) -> Path:
    """A temporary whose run was killed, which no lock says anything of."""
    pid = os.fork()
    if pid == 0:
        leases.make(path)
        os._exit(0)
    os.waitpid(pid, 0)
    (found,) = path.parent.glob(f".{path.name}.sea-bake-*")
    return found


@pytest.mark.parametrize("where", ["here", "another machine", "no locks"])
def test_a_dead_runs_temporary_is_swept(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where the lock tells; elsewhere, of another machine on a shared disk, once it is a day old."""
    litter = abandoned(tmp_path / "out")
    if where == "another machine":
        monkeypatch.setattr(leases, "_kernel", lambda: "01234567")
    elif where == "no locks":
        monkeypatch.setattr(leases, "_lock", lambda path, *, shared: None)
    with staged_file(tmp_path / "out"):
        assert litter.exists() == (where != "here")
    tomorrow = time.time() + 25 * 3600
    monkeypatch.setattr(leases.time, "time", lambda: tomorrow)
    with staged_file(tmp_path / "out", overwrite=True):
        assert not litter.exists()


def test_only_temporaries_of_this_output_are_swept(tmp_path: Path) -> None:
    abandoned(tmp_path / "out.sea-bake-1")
    (tmp_path / ".out.sea-bake-notes").mkdir()
    before = tiny.listing(tmp_path)
    with staged_folder(tmp_path / "out"):
        pass
    assert tiny.listing(tmp_path) == before | {"out"}


# ------------------------------------------------------------------------------------------------------------ signals


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("heeded", [True, False])
@pytest.mark.parametrize("way", [staged_folder, staged_file, scratch_folder])
def test_a_second_interrupt_does_not_break_the_clean_up(
    tmp_path: Path, way: Any, heeded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pressed as the removal begins; as a library would, and as the command line does."""
    rmtree, unlink, pressed = shutil.rmtree, os.unlink, []

    def slowly(*args: Any, really: Any = rmtree, **options: Any) -> None:
        pressed.append(press())
        really(*args, **options)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: slowly(path, really=unlink))
    with pytest.raises(KeyboardInterrupt), interrupts.heeded() if heeded else contextlib.nullcontext():
        attempt(way(tmp_path / "out"), lambda stage: fill(stage, "new"), lambda _: press())
    assert pressed
    assert tiny.listing(tmp_path) == set()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("heeded", [True, False])
def test_an_interrupt_in_the_clean_up_is_not_lost(
    tmp_path: Path, heeded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: (press(), rmtree(*args, **options)))
    with (
        pytest.raises(KeyboardInterrupt),
        interrupts.heeded() if heeded else contextlib.nullcontext(),
        scratch_folder(tmp_path / "out"),
    ):
        1 / 0  # noqa: B018
    assert tiny.listing(tmp_path) == set()


@pytest.mark.usefixtures("ctrl_c")
def test_what_could_not_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        with staged_folder(tmp_path / "out") as stage:
            (stage / "a").write_text("new")
            press()

    tiny.commands()  # of the real one, whoever asks first
    monkeypatch.setattr("sea_bake.cli.app", app)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)
        ran = tiny.run("bake")
    (litter,) = tmp_path.iterdir()
    assert (ran.code, ran.err.strip()) == (130, f"interrupted: {litter} could not be removed")
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: None)
    with pytest.raises(OutputError) as raised, staged_file(tmp_path / "other"):
        raise OSError(5, "Input/output error")
    (other,) = tmp_path.glob(".other*")
    assert f"{other} could not be removed either" in str(raised.value)
    assert "nothing was left behind" not in str(raised.value)
    monkeypatch.undo()
    for path in (litter, other):  # what is gone is not named any more
        shutil.rmtree(path)
    assert leases.left_behind() == []


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["n" * 230, "n" * 255, "ä" * 127, "日" * 85])
@pytest.mark.parametrize("kind", WAYS)
def test_a_name_may_be_as_long_as_the_system_takes(tmp_path: Path, kind: str, name: str) -> None:
    make(kind, tmp_path / name, "old")
    make(kind, tmp_path / name, "new", overwrite=True)
    assert content(tmp_path / name) == "new"
    assert tiny.listing(tmp_path) == {name}
    abandoned_one = name[:-1] + "x"  # whose temporaries begin alike
    with contextlib.suppress(ZeroDivisionError), WAYS[kind](tmp_path / abandoned_one) as stage:
        make(kind, tmp_path / name, "newer", overwrite=True)
        assert stage.exists()
        1 / 0  # noqa: B018


@pytest.mark.parametrize("name", ["n" * 256, "ä" * 128])
def test_a_longer_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="is a name of 256 bytes"):
        check_output(tmp_path / name, folder=True)
    assert tiny.listing(tmp_path) == set()


@pytest.mark.parametrize("kind", WAYS)
def test_two_dots_lead_through_no_new_folder(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OutputError, match="exists"):
        make(kind, tmp_path / "x" / "..", "new")
    make(kind, tmp_path / "x" / ".." / "out", "new")
    assert tiny.listing(tmp_path) == {"out"}
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    make(kind, tmp_path / "link" / ".." / "out", "new")  # as the system has it: beside what the link leads to
    assert tiny.listing(tmp_path / "elsewhere") == {"deep", "out"}


@pytest.mark.parametrize("kind", WAYS)
def test_parents_made_for_nothing_are_removed(tmp_path: Path, kind: str) -> None:
    with contextlib.suppress(ZeroDivisionError), WAYS[kind](tmp_path / "a" / "b" / "out"):
        1 / 0  # noqa: B018
    assert tiny.listing(tmp_path) == set()
