"""What ``tune --storage`` writes to, and to what it does not: files of others stay, and a storage that loses what it
held is noticed before a trial is lost with it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sea_bake.errors import OutputError, SeaBakeError, SettingError
from sea_bake.fitting.tuning import Trial, claims, journal, storage, workers
from sea_bake.fitting.tuning.unsent import UNSENT
from sea_bake.fitting.tuning.workers import Shared

optuna = pytest.importorskip("optuna")
ALPHA = {"alpha": optuna.distributions.FloatDistribution(0, 1)}
INPUTS = {"model": "a", "space": {"alpha": [0, 1]}}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes in a second."""
    monkeypatch.setattr(claims, "BEAT", 0.05)
    monkeypatch.setattr(claims, "STALE", 1.0)
    monkeypatch.setattr(workers, "POLL", 0.05)
    monkeypatch.setattr(workers, "PATIENCE", 0.5)


def worker(url: str | Path, folder: Path, name: str = "search", said: list[str] | None = None) -> Shared:
    folder.mkdir(exist_ok=True)
    return Shared(str(url), name, folder, (said if said is not None else []).append)


def trial(number: int, alpha: float = 0.5) -> Trial:
    return Trial(number, {"alpha": alpha}, kl=0.01)


def add(own: Shared, number: int, alpha: float = 0.5) -> None:
    own.add(trial(number, alpha), {"alpha": alpha}, ALPHA, 0.1)


# ------------------------------------------------------------------------------------------------------ files of others

OF_OTHERS = {
    "text without an end of line": b"my only copy",
    "one line of text": b"one line of mine\n",
    "two lines": b"one line\nand two\n",
    "binary": b"\x93NUMPY\x01\x00",
    "JSON": b'{"a": 1}',
    "JSON lines": b'{"a": 1}\n{"a": 2}\n',
    "JSON lines with a half": b'{"a": 1}\n{"a"',
    "a list": b"[1]\n",
    "op codes of somebody else": b'{"op_code": 1, "name": "POP"}\n{"op_code": 2',
    "the beginning of an object": b"{",
}


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_a_file_that_is_no_journal_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_bytes(OF_OTHERS[kind])
    with pytest.raises(OutputError, match="is no journal of Optuna, and is left as it is: choose another"):
        worker(path, tmp_path / "own")
    journal.mend(path)
    assert path.read_bytes() == OF_OTHERS[kind]
    assert sorted(found.name for found in tmp_path.iterdir()) == ["mine", "own"]


def test_what_is_a_journal_is_taken(tmp_path: Path) -> None:
    """One that is there, one that is empty, and one whose first line a kill has cut off."""
    path = tmp_path / "journal.log"
    worker(path, tmp_path / "own").begin(INPUTS)
    whole = path.read_bytes()
    for left in (whole, b"", whole[: whole.index(b"\n") - 5]):
        path.write_bytes(left)
        worker(path, tmp_path / "own").begin(INPUTS)
        assert path.read_bytes().startswith(whole[:12])


def test_a_damaged_journal_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    worker(path, tmp_path / "own").begin(INPUTS)
    lines = path.read_bytes().splitlines(True)
    for odd in (b"what is this\n", b'{"a": 1}\n', b"[]\n"):
        path.write_bytes(b"".join([*lines[:1], odd, *lines[1:]]))
        before = path.read_bytes()
        with pytest.raises(OutputError, match=r"is damaged .*: put back a whole copy"):
            worker(path, tmp_path / "own")
        assert path.read_bytes() == before


def test_a_file_that_has_the_name_of_the_lock_stays(tmp_path: Path) -> None:
    lock = tmp_path / "poetry.lock"
    lock.write_text("mine")
    with pytest.raises(OutputError, match=r"poetry.lock is there, and the lock of the journal needs that name"):
        worker(tmp_path / "poetry", tmp_path / "own")
    assert lock.read_text() == "mine"
    assert not (tmp_path / "poetry").exists()


def test_a_lock_of_a_killed_worker_goes_whatever_folder_it_was_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna looks where the link leads; to nowhere, it would ask for ever."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared").mkdir()
    own = worker("shared/journal.log", tmp_path / "own")
    target = own.study._storage._backend._lock._lock_target_file  # type: ignore[attr-defined]
    assert Path(target) == tmp_path / "shared" / "journal.log"


# --------------------------------------------------------------------------------------------------- a trial not sent


def unsent(tmp_path: Path, search: str = "search", inputs: dict[str, Any] = INPUTS) -> tuple[Path, Path]:
    """A worker's folder where trial 1 waits, whose journal is there again."""
    path, folder = tmp_path / "journal.log", tmp_path / "own"
    own = worker(path, folder, search)
    own.begin(inputs)
    add(own, 0)
    assert own.next(9, lambda: False) == 1
    path.rename(tmp_path / "away")
    with pytest.raises(OutputError, match=r"Put it back, .* Trial 1 waits in .*unsent.json for this line's next start"):
        add(own, 1, 0.9)
    (tmp_path / "away").rename(path)
    return path, folder


def test_a_trial_that_waits_goes_to_its_own_search(tmp_path: Path) -> None:
    path, folder = unsent(tmp_path)
    again = worker(path, folder)
    again.begin(INPUTS)
    again.resume(ALPHA, 0.1)
    assert [(one.number, one.settings["alpha"]) for one in again.ended()] == [(0, 0.5), (1, 0.9)]
    assert not (folder / UNSENT).exists()


def test_a_trial_that_waits_goes_to_no_other_search(tmp_path: Path) -> None:
    """Neither of another name, nor of other inputs: it stays until its own begins once more."""
    path, folder = unsent(tmp_path)
    before = (folder / UNSENT).read_bytes()
    for name, inputs in (("other", INPUTS), ("search", {**INPUTS, "space": {"beta": [0, 1]}})):
        other = worker(tmp_path / "other.log", folder, name)
        with pytest.raises(OutputError, match=r"unsent.json holds trial 1 of another search \('search'\)"):
            other.begin(inputs)
        assert (folder / UNSENT).read_bytes() == before
        assert other.ended() == []
    elsewhere = worker(tmp_path / "other.log", tmp_path / "elsewhere", "other")  # a cure
    elsewhere.begin(INPUTS)
    again = worker(path, folder)  # another one
    again.begin(INPUTS)
    with pytest.raises(OutputError, match="of another search"):
        again.resume({"beta": ALPHA["alpha"]}, 0.1)
    again.resume(ALPHA, 0.1)
    assert [one.number for one in again.ended()] == [0, 1]


@pytest.mark.parametrize("left", ['{"trial": {"number"', "{}", "[]", '{"trial": 3, "drawn": {}}', ""])
def test_what_cannot_be_read_is_said_and_its_cure_works(left: str, tmp_path: Path) -> None:
    """Also what an older sea_bake has written, which does not say of which search it is."""
    folder = tmp_path / "own"
    own = worker(tmp_path / "journal.log", folder)
    (folder / UNSENT).write_text(left)
    with pytest.raises(OutputError, match=r"cannot be read \(.*\): move it away, and the trial is done again"):
        own.begin(INPUTS)
    assert (folder / UNSENT).read_text() == left
    (folder / UNSENT).rename(tmp_path / "away")
    own.begin(INPUTS)
    own.resume(ALPHA, 0.1)
    assert own.next(9, lambda: False) == 0
    own.close()


def test_a_trial_that_another_worker_has_done_meanwhile_is_not_sent_twice(tmp_path: Path) -> None:
    path, folder = unsent(tmp_path)
    other = worker(path, tmp_path / "other")
    other.begin(INPUTS)
    add(other, 1, 0.3)
    said: list[str] = []
    again = worker(path, folder, said=said)
    again.begin(INPUTS)
    again.resume(ALPHA, 0.1)
    assert [one.settings["alpha"] for one in again.ended()] == [0.5, 0.3]
    assert len(again.study.trials) == 2
    assert any("trial 1" in text for text in said)
    assert not (folder / UNSENT).exists()


def test_ctrl_c_while_the_storage_is_down_loses_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = worker(tmp_path / "journal.log", tmp_path / "own")
    own.begin(INPUTS)
    (tmp_path / "journal.log").unlink()

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(own, "_wait_a_little", interrupt)
    with pytest.raises(KeyboardInterrupt):
        add(own, 0, 0.7)
    assert json.loads((tmp_path / "own" / UNSENT).read_text())["drawn"] == {"alpha": 0.7}


# ------------------------------------------------------------------------------------------- a journal that goes back


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _roll_back(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:4]))


def _replace(path: Path) -> None:
    """By one of another search, and longer."""
    other = path.with_name("other.log")
    worker(other, path.parent / "other", "other " * 400).begin(INPUTS)
    other.replace(path)


BEFALLS = [_remove, _empty, _roll_back, _replace]


@pytest.mark.parametrize("befall", BEFALLS, ids=lambda act: act.__name__.strip("_"))
def test_a_journal_that_goes_back_loses_no_trial(befall: Callable[[Path], None], tmp_path: Path) -> None:
    path, folder = tmp_path / "journal.log", tmp_path / "own"
    own = worker(path, folder)
    own.begin(INPUTS)
    add(own, 0)
    assert own.next(9, lambda: False) == 1
    befall(path)
    time.sleep(0.2)  # the count of the claim goes on meanwhile
    with pytest.raises(OutputError, match=r"(?s)journal.log .*(was emptied, replaced|No such file).*Trial 1 waits in "):
        add(own, 1, 0.9)
    assert path.exists() == (befall is not _remove)  # and none was made in its place
    own.close()
    again = worker(path, folder)
    again.begin(INPUTS)
    again.resume(ALPHA, 0.1)
    assert (1, 0.9) in [(one.number, one.settings["alpha"]) for one in again.ended()]
    assert not (folder / UNSENT).exists()
    again.close()


@pytest.mark.parametrize("befall", BEFALLS, ids=lambda act: act.__name__.strip("_"))
def test_the_next_trial_of_a_journal_that_goes_back_is_an_error(befall: Callable[[Path], None], tmp_path: Path) -> None:
    own = worker(tmp_path / "journal.log", tmp_path / "own")
    own.begin(INPUTS)
    add(own, 0)
    befall(tmp_path / "journal.log")
    with pytest.raises(OutputError, match=r"emptied, replaced|No such file"):
        own.next(9, lambda: False)


def test_a_journal_that_is_moved_whole_is_the_same(tmp_path: Path) -> None:
    """The control: another file with the same lines, which others have written to and whose half of a line is gone."""
    path = tmp_path / "journal.log"
    own, other = worker(path, tmp_path / "own"), worker(path, tmp_path / "other")
    own.begin(INPUTS)
    with open(path, "ab") as file:
        file.write(b'{"op_code":4,"worker_')
    own.ended()
    add(other, 0)
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    assert own.next(9, lambda: False) == 1
    add(own, 1)
    assert [one.number for one in other.ended()] == [0, 1]


def test_a_claim_that_is_gone_at_once_ends_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of being made for ever."""
    own = worker(tmp_path / "journal.log", tmp_path / "own")
    own.begin(INPUTS)
    kept, made = own._claims._storage, 0
    create = kept.create_new_trial

    def forget(*args: Any) -> int:
        nonlocal made
        made += 1
        number = int(create(*args))
        own._claims._end(number)
        return number

    monkeypatch.setattr(kept, "create_new_trial", forget)
    with pytest.raises(OutputError, match="a claim that was written there is gone at once"):
        own.next(9, lambda: False)
    assert 1 < made < 20  # with pauses


def test_a_storage_that_keeps_nothing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = worker(tmp_path / "journal.log", tmp_path / "own")
    own.begin(INPUTS)
    monkeypatch.setattr(own.study, "add_trial", lambda made: None)
    with pytest.raises(OutputError, match=r"does not keep what is written to it.* Trial 0 waits"):
        add(own, 0)
    assert (tmp_path / "own" / UNSENT).is_file()


# ---------------------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:a?mode=memory&uri=true", "sqlite+pysqlite://"],
)
def test_a_database_in_memory_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"is a database in memory.*: give a URL .* or the path of a journal file"):
        worker(url, tmp_path / "own")


def test_a_database_in_a_file_is_taken(tmp_path: Path) -> None:
    own = worker(f"sqlite:///{tmp_path}/a@b.db", tmp_path / "own")
    own.begin(INPUTS)
    add(own, 0)
    assert [one.number for one in own.ended()] == [0]


SHOWN = {
    "postgresql://me:secret@host/x": "postgresql://me:***@host/x",
    "postgresql://me:sec@secret@host:5/x": "postgresql://me:***@host:5/x",
    "postgresql://me:sec/secret@host/x": "postgresql://me:***@host/x",
    "postgresql://me:sec?secret@host/x": "postgresql://me:***@host/x",
    "postgresql://:secret@host/x": "postgresql://:***@host/x",
    "postgresql://host/x?user=me&password=secret": "postgresql://host/x?...",
    "postgresql://me@host/x": "postgresql://me@host/x",
    "postgresql://host": "postgresql://host",
    "oracel://me:secret@host:port:7/x": "oracel://me:***@host:port:7/x",
    "sqlite:////home/a@b/x.db": "sqlite:////home/a@b/x.db",
    "/home/a@b/x.log": "/home/a@b/x.log",
}


@pytest.mark.parametrize("url", SHOWN)
def test_no_password_is_shown(url: str) -> None:
    assert storage.shown(url) == SHOWN[url]


def test_no_password_is_shown_of_what_another_library_says() -> None:
    """Of a URL as a whole, of a password that was quoted in it, and where there is none."""
    for url in ("postgresql://me:secret@host/x", "postgresql://me:sec%40ret@host/x", "postgresql://me@host/x"):
        for text in (f"no such host: {url}", "secret or sec@ret is wrong"):
            said = str(storage.unreachable(url, OSError(text)))
            assert "me:sec" not in said
            assert ("***" in said) == (":sec" in url), said
    assert "secret" not in str(storage.unreachable("postgresql://me:secret@h/x", OSError("secret is wrong")))


def test_a_password_with_an_at_has_a_cure(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"me:\*\*\*@host/x cannot be read as a URL: .* as %40") as refusal:
        worker("postgresql://me:se@cret@host/x", tmp_path / "own")
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["empty", "folder", "here", "no folder", "no database", "no folder of a database"])
def test_what_cannot_come_back_is_not_waited_for(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    (tmp_path / "mine").write_text("one line\n" * 9)
    url, words = {
        "empty": ("", "storage is empty: give the URL"),
        "folder": (str(tmp_path), "is a folder: give the path of a journal file, such as "),
        "here": (".", "is a folder"),
        "no folder": (str(tmp_path / "nowhere" / "j"), "there is no folder"),
        "no database": (f"sqlite:///{tmp_path}/mine", "is not a database. Choose another --storage"),
        "no folder of a database": (f"sqlite:///{tmp_path}/nowhere/x.db", "there is no folder"),
    }[kind]
    with pytest.raises(SeaBakeError, match=words) as refusal:
        worker(url, tmp_path / "own")
    assert "when it is back" not in str(refusal.value)
    assert (tmp_path / "mine").read_text() == "one line\n" * 9


def test_what_can_come_back_is(tmp_path: Path) -> None:
    """The control."""
    assert "start the same line again when it is back" in str(storage.unreachable("a", ConnectionError("no route")))
