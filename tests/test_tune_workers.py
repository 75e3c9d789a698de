"""A search that several share: processes of one run, and workers around one storage, which come, die and go."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from processes import KILLS, free_port, one_killed, together

from sea_bake.errors import OutputError
from sea_bake.fitting.tuning import Trial, claims, workers
from sea_bake.fitting.tuning.folder import JOURNAL, RESULT
from sea_bake.fitting.tuning.journal import mend
from sea_bake.fitting.tuning.results import DEFAULT
from sea_bake.fitting.tuning.unsent import UNSENT
from sea_bake.fitting.tuning.workers import Shared

TRIPLES, COUNT = 48, 3


def settings(*more: Any) -> list[Any]:
    given = ("-d", tiny.demonstrations_file(TRIPLES), "--neutral", "prompt", "--site", "mlp", "--seed", 5)
    return ["tune", tiny.single(), *given, "--trials", COUNT, *more]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process gives that shares with none."""
    output = tmp_path_factory.mktemp("alone") / "out"
    ran = tiny.run(*settings("-o", output))
    assert ran.code == 0, ran
    return output


def result(folder: Path) -> dict[str, Any]:
    """What was found, without what the clock has said."""
    found = json.loads((folder / "tune.json").read_text("utf-8"))
    for trial in found["trials"]:
        del trial["seconds"]
    return found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes in a second."""
    monkeypatch.setattr(claims, "BEAT", 0.1)
    monkeypatch.setattr(claims, "STALE", 1.0)
    monkeypatch.setattr(workers, "POLL", 0.05)
    monkeypatch.setattr(workers, "PATIENCE", 0.3)


# ------------------------------------------------------------------------------------------------- processes of one run


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_of_one_run_find_what_one_finds(count: int, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ran = together([settings("-o", output, "--json")] * count)
    assert [one.code for one in ran] == [0] * count, ran
    assert not any(one.out for one in ran[1:])
    assert result(output) == result(alone)
    for name in ("edit.safetensors", "fit.jsonl", "activations-mlp.safetensors", "activations-attn.safetensors"):
        assert (output / name).read_bytes() == (alone / name).read_bytes(), name
    assert tiny.listing(output) == tiny.listing(alone)


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS)
def test_a_process_that_dies_stops_the_search_which_goes_on_later(kill: int, alone: Path, tmp_path: Path) -> None:
    """Under ``torchrun``; each time another process, before the first trial or behind one that has ended."""
    output, wanted = tmp_path / "out", kill % COUNT
    journal = output / JOURNAL
    count = one_killed(settings("-o", output), kill, lambda: journal.exists() and _ended(journal) >= wanted)
    assert wanted <= _ended(journal) <= COUNT
    assert not (output / RESULT).exists()
    again = together([settings("-o", output)] * count)
    assert [ran.code for ran in again] == [0] * count, again
    assert result(output) == result(alone)
    assert (output / "edit.safetensors").read_bytes() == (alone / "edit.safetensors").read_bytes()
    assert tiny.listing(output) == tiny.listing(alone)


def _ended(journal: Path) -> int:
    """Trials that were carried through."""
    return journal.read_bytes().count(b'"record"')


@pytest.mark.slow
def test_what_one_process_refuses_all_refuse(alone: Path, tmp_path: Path) -> None:
    """An error of the main one alone, and another model for one of them: nobody waits for anybody."""
    for ran in together([settings("-o", alone, "--max-kl", 0.2)] * 2):
        tiny.refused(ran, "OutputError", "holds the trials of another search (other max kl)")
    words = settings("-o", tmp_path / "out")
    other = [tiny.single(seed=1) if word == tiny.single() else word for word in words]
    for ran in together([words, other]):
        tiny.refused(ran, "SettingError", "process 1 of 2 has another", "same command line")
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- the storages


def binary(name: str) -> str | None:
    """A program of PostgreSQL, which Debian does not put on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a new database on loopback."""
    initdb, server = binary("initdb"), binary("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("pg8000")
    folder = tmp_path_factory.mktemp("postgres")
    port, user = free_port(), {"user": "nobody"} if os.getuid() == 0 else {}  # it does not run as root
    if user:
        for parent in (folder, *folder.parents):
            if parent.owner() == "root" and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        shutil.chown(folder, "nobody")
    data, env = folder / "data", {**os.environ, "LC_ALL": "C"}
    words = [initdb, "-D", data, "-U", "tuner", "--auth", "trust", "--no-sync"]
    subprocess.run(words, check=True, capture_output=True, env=env, cwd="/", **user)
    running = subprocess.Popen(
        [server, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd="/", **user,
    )  # fmt: skip
    url = f"postgresql+pg8000://tuner:secret@127.0.0.1:{port}/postgres"
    try:
        yield url
    finally:
        running.send_signal(signal.SIGINT)  # without waiting for those who are connected still
        running.wait(30)


@pytest.fixture(params=["journal", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres"))
    return str(tmp_path / "journal.log")


def worker(url: str, folder: Path, name: str = "search") -> Shared:
    folder.mkdir(exist_ok=True)
    return Shared(url, name, folder, lambda text: None)


def forked(act: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        act()
        code = 0
    finally:
        os._exit(code)


def trial(number: int, alpha: float) -> Trial:
    return Trial(number, {"alpha": alpha}, kl=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS)
def test_workers_share_trials_and_one_that_dies_loses_none(
    kill: int, url: str, tmp_path: Path, impatient: None
) -> None:
    """Three at once, of which one is killed in the middle of a trial (each time another), and one that comes late."""
    log, begun, search = tmp_path / "log", tmp_path / "begun", f"search {kill}"  # a database holds them all

    def work(name: int) -> None:
        own = worker(url, tmp_path / str(name), search)
        own.begin({"a": 1})
        while name and not begun.exists():  # or nothing may be left for the one that is killed
            time.sleep(0.01)
        done, last = 0, kill % 4
        while (number := own.next(12, lambda: False)) is not None:
            if name == 0 and done == last:
                begun.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)
            own.add(trial(number, float(name)), {}, {}, 0.1)
            done += 1
        if own.look(3) is None:
            with open(log, "a") as file:
                file.write("looked\n")
            time.sleep(0.1)
            own.looked(3, {"seen": [{"by": name}]})
        assert own.look(3) == {"seen": [{"by": own.look(3)["seen"][0]["by"]}]}  # type: ignore[index]
        own.close()

    pids = [forked(lambda: work(name)) for name in range(3)]  # noqa: B023
    time.sleep(0.5)
    pids.append(forked(lambda: work(3)))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [-signal.SIGKILL, 0, 0, 0]
    after = worker(url, tmp_path / "after", search)
    after.begin({"a": 1})
    assert [one.number for one in after.ended()] == list(range(12))
    assert len(after.study.trials) == 12  # none was done twice, and none is half
    assert log.read_text() == "looked\n"  # once
    assert after.looks == [3]
    with pytest.raises(OutputError, match=rf"'{search}' in .* is another one \(other b\): .*--study") as refusal:
        worker(url, tmp_path / "other", search).begin({"a": 1, "b": 2})
    assert "secret" not in str(refusal.value)
    worker(url, tmp_path / "other", f"other {kill}").begin({"a": 1, "b": 2})  # its cure


@pytest.mark.slow
def test_a_storage_that_goes_down_loses_no_trial(url: str, tmp_path: Path, impatient: None) -> None:
    """What was measured meanwhile waits in the worker's folder."""
    own = worker(url, tmp_path / "own", "down")
    own.begin({"a": 1})
    assert own.next(2, lambda: False) == DEFAULT
    with down(own), pytest.raises(OutputError, match=r"the storage .* cannot be used: .*start the same line again"):
        own.add(trial(DEFAULT, 0.5), {}, {}, 0.1)
    assert (tmp_path / "own" / UNSENT).is_file()
    own.close()
    again = worker(url, tmp_path / "own", "down")
    again.begin({"a": 1})
    assert again.ended() == []
    again.resume({}, 0.1)
    assert [one.settings for one in again.ended()] == [{"alpha": 0.5}]
    assert not (tmp_path / "own" / UNSENT).exists()
    assert again.next(2, lambda: False) == 1
    again.close()


@contextlib.contextmanager
def down(own: Shared) -> Iterator[None]:
    """The storage refuses what is written, as one does that is down."""

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("no route to host")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own.study, "add_trial", refuse)
        yield


@pytest.mark.slow
def test_a_late_worker_waits_for_those_at_work(tmp_path: Path, impatient: None) -> None:
    url = str(tmp_path / "journal.log")
    first, late = worker(url, tmp_path / "first"), worker(url, tmp_path / "late")
    assert first.next(9, lambda: False) == DEFAULT
    taken: list[int | None] = []
    thread = threading.Thread(target=lambda: taken.append(late.next(9, lambda: True)))
    thread.start()
    thread.join(0.5)
    assert not taken  # one is at the untuned default, which no search is without
    first.add(trial(DEFAULT, 1.0), {}, {}, 0.1)
    assert first.next(9, lambda: False) in (1, 2) or taken
    first.close()
    thread.join(5)
    assert taken == [None]


def test_half_a_line_goes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    one, two = b'{"op_code":0,"worker_id":"a"}\n', b'{"op_code":4,"worker_id":"b"}\n'
    for left, kept in ((one + two + two[:9], one + two), (one, one), (b"", b""), (one[:-3], b""), (b"on", b"on")):
        path.write_bytes(left)
        mend(path)
        assert path.read_bytes() == kept


# ------------------------------------------------------------------------------------------------------ a worker's line


@pytest.mark.slow
def test_workers_of_one_storage_find_what_one_run_finds(alone: Path, tmp_path: Path) -> None:
    """One after the other: the first does half, the second the rest and the look, and a third is given all of it."""
    storage = ("--storage", tmp_path / "journal.log")
    first = tiny.run(*settings(*storage, "-o", tmp_path / "a", "--trials", 2))
    assert first.code == 0, first
    for name in ("b", "c"):
        ran = tiny.run(*settings(*storage, "-o", tmp_path / name))
        assert ran.code == 0, ran
        found = result(tmp_path / name)
        assert {**found, "looks": 0, "notes": 0} == {**result(alone), "looks": 0, "notes": 0}
        assert found["looks"] == list(dict.fromkeys([result(tmp_path / "a")["chosen"], found["chosen"]]))
        assert (tmp_path / name / "edit.safetensors").read_bytes() == (alone / "edit.safetensors").read_bytes()
        assert not (tmp_path / name / "journal.log").exists()
    odd = tiny.run(*settings(*storage, "-o", tmp_path / "d", "--max-kl", 0.3))
    tiny.refused(odd, "OutputError", "is another one (other max kl)", "--study")


MISTAKES = {
    "no such folder": ("{lacking}/nowhere/journal.log", "OutputError", "there is no folder"),
    "no journal": ("{lacking}/diary.txt", "OutputError", "no journal of Optuna"),
    "nobody there": ("postgresql+pg8000://me:secret@127.0.0.1:{port}/x", "OutputError", "cannot be used"),
    "no such scheme": ("oracel://me:secret@host/x", "SettingError", "is no storage"),
    "no URL at all": ("postgresql://me:secret@host:port:7/x", "SettingError", "is no storage"),
    "Redis": ("redis://me:secret@host", "SettingError", "use a database"),
    "no driver": ("mysql://me:secret@host/x", "MissingExtraError", "pip install 'mysqlclient'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_storage_that_is_none_is_refused_before_the_model_is_loaded(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind, words = MISTAKES[mistake]
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / "diary.txt").write_text("dear diary\n\n")
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    if "pg8000" in url:
        pytest.importorskip("pg8000")
    filled = url.format(lacking=tmp_path / "lacking", port=free_port())
    ran = tiny.run(*settings("-o", tmp_path / "out", "--storage", filled))
    tiny.refused(ran, kind, words)
    assert "secret" not in ran.err
