"""Whatever call goes wrong, an output is the old one whole or the new one whole.

``scripts/fault_injection`` tries every fault at every call of every command, and these tests some of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_commands
import faults
import pytest
import strace
import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(faults.library() is None, reason="no C compiler makes the library that lets calls go wrong"),
]


@pytest.fixture(scope="module")
def machine() -> Iterator[faults.Machine]:
    with faults.machine() as made:
        yield made


def naming(trial: faults.Trial) -> list[int]:
    """Which of its calls give a name to what was made."""
    return [i for i, line in enumerate(trial.calls, 1) if line.split()[1] in ("rename", "exchange")]


def tried(trial: faults.Trial, step: int, halves: bool) -> faults.Tally:
    """Every ``step``-th call with every fault; in halves, with every second one, and the others at the next of them.
    And every call that gives a name: the last but one is between two of them, where no flag makes one of the two.
    """
    found = faults.Tally(len(trial.calls))
    for turn, at in enumerate(sorted({*range(1, len(trial.calls) + 1, step), *naming(trial)})):
        kinds = faults.FAULTS[turn % 2 :: 2] if halves else faults.FAULTS
        found.tried += len(kinds)
        found.broken += trial.at(at, kinds)
    return found


@pytest.mark.parametrize(
    ("name", "overwrite", "plain", "step"),
    [
        ("init", False, False, 1),
        ("init", True, False, 1),
        ("init", True, True, 1),
        ("bake --how fold", False, False, 11),
        ("bake --how fold", True, False, 11),
        ("bake --how fold", True, True, 9),
        ("export gguf, adapter", False, False, 4),
        ("export gguf, adapter", True, False, 3),
        ("report --write", False, False, 4),
    ],
)
def test_the_old_one_whole_or_the_new_one_whole(
    tmp_path: Path, machine: faults.Machine, name: str, overwrite: bool, plain: bool, step: int
) -> None:
    trial = faults.Trial(machine, fault_commands.command(name), tmp_path, overwrite=overwrite, plain=plain)
    assert naming(trial), "no call gives a name"
    found = tried(trial, step, halves=step > 1)
    assert found.broken == []
    assert found.calls >= 10
    assert found.tried >= len(faults.FAULTS) * found.calls // step // (1 + (step > 1))


SEEN = {"init", "bake --how fold", "export gguf, adapter", "report --write", "publish"}  # above and below
LONG = {"export onnx", "serve-web", "run"}  # by scripts/fault_injection alone


@pytest.mark.parametrize("name", [one.name for one in fault_commands.COMMANDS if one.name not in SEEN | LONG])
def test_every_command_that_the_script_breaks_works_when_nothing_does(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")  # as the script has it
    known = fault_commands.command(name)
    known.prepare(tmp_path)
    lines = [known.args(tmp_path)]
    if known.before:
        lines = [known.before(tmp_path), [*lines[0], *known.over]]
    for line in lines:
        ran = tiny.run(*line)
        assert ran.code == 0, ran
    for output in known.outputs:
        assert (tmp_path / output).exists(), output
    known.after(tmp_path)


def test_what_goes_wrong_on_the_way_to_the_hub(tmp_path: Path) -> None:
    """The model there is the one of before, or the new one whole; and the next run goes on."""
    command = fault_commands.command("publish")
    assert command.elsewhere is not None
    hub = command.elsewhere()
    made = faults.Machine(**hub.env)
    try:
        trial = faults.Trial(made, command, tmp_path, overwrite=True, plain=False)
        found = tried(trial, 9, halves=True)
        assert found.broken == []
        assert found.calls >= 40
        assert trial.old != trial.new
        broken = {**trial.new, "hub/config.json": "another"}
        trial.seen = lambda: broken  # type: ignore[method-assign]
        assert trial.fault("kill", 9)  # the control
    finally:
        made.close()


@pytest.fixture(scope="module")
def folding(machine: faults.Machine, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], faults.Trial]:
    """The trial of a fold, with an older output or without: each begun once, for all its faults."""
    command, begun = fault_commands.command("bake --how fold"), {}

    def trial(overwrite: bool) -> faults.Trial:
        if overwrite not in begun:
            begun[overwrite] = faults.Trial(
                machine, command, tmp_path_factory.mktemp("folding"), overwrite=overwrite, plain=False
            )
        return begun[overwrite]

    return trial


@pytest.mark.parametrize("call", ["rename", "exchange", "fsync ."])
@pytest.mark.parametrize("kind", faults.FAULTS)
def test_at_the_moment_of_the_swap(folding: Callable[[bool], faults.Trial], call: str, kind: str) -> None:
    """The calls that matter most, whatever step the test above takes."""
    trial = folding(call == "exchange")
    names = [line.split(" ", 1)[1] for line in trial.calls]
    at = max(i for i, line in enumerate(names, 1) if line.startswith(call))
    assert trial.fault(kind, at) == []
    assert trial.fault(kind, at + 1) == []


def test_a_clean_up_that_does_not_clean_is_seen(tmp_path: Path) -> None:
    """The control: without the sweep, what a kill leaves stays."""
    with faults.machine() as made:
        trial = faults.Trial(made, fault_commands.command("init"), tmp_path, overwrite=False, plain=False)
        made.once(("sea_bake.io.leases:sweep=None",), ["init", tmp_path / "elsewhere"])
        broken = trial.all(("kill",)).broken
    assert broken
    assert all("the next run leaves" in text for text in broken)


def bake(alpha: float) -> Callable[[Path], list[object]]:
    edit = fault_commands.edit(alpha=alpha)
    return lambda folder: ["bake", tiny.single(), edit, "--how", "fold", "-o", folder / "out"]


def init(model: str) -> Callable[[Path], list[object]]:
    return lambda folder: ["init", folder / "out", "--model", model]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("make", "names"), [(bake, (0.3, 0.5, 0.7)), (init, ("a", "b", "c"))])
def test_of_two_runs_to_one_output_one_is_done_and_one_refused(
    tmp_path: Path, machine: faults.Machine, make: Any, names: tuple[Any, ...], overwrite: bool, plain: bool
) -> None:
    runs = tuple(map(make, names))
    assert faults.race(machine, tmp_path, runs, "out", pairs=2, overwrite=overwrite, plain=plain).broken == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["bake --how insert", "init"])
def test_a_name_is_taken_when_all_is_on_disk_and_is_then_made_to_last(
    tmp_path: Path, machine: faults.Machine, name: str, overwrite: bool
) -> None:
    """Replayed in the order of the calls: a power cut at any moment leaves nothing half-written under a final name."""
    command = fault_commands.command(name)
    trial = faults.Trial(machine, command, tmp_path, overwrite=overwrite, plain=False)
    lasting(trial, [tuple(line.split(" ", 2)[1:]) for line in trial.calls])
    if overwrite and strace.is_there():  # the kernel's own account
        trial.renew()
        lasting(trial, strace.calls(trial.args, trial.folder))


def lasting(trial: faults.Trial, calls: list[tuple[str, ...]]) -> None:
    """Of calls (name, path from the folder) in their order."""
    output = trial.command.outputs[0]
    taken = next(i for i, (call, path) in enumerate(calls) if call in ("rename", "exchange") and path == output)
    stage = calls[0][1]
    made = stage if trial.new[output] == "" else f"{stage}/{output}"
    for path in trial.new:
        place = made + path.removeprefix(output)
        if (trial.folder / path).is_file() and (trial.folder / path).stat().st_nlink > 1:
            continue  # the base's own, which is on disk
        written = [i for i, (call, at) in enumerate(calls) if at == place and call not in ("fsync", "chmod")]
        inside = [i for i, (call, at) in enumerate(calls[:taken]) if at.startswith(f"{place}/") and call != "chmod"]
        flushed = [i for i, (call, at) in enumerate(calls[:taken]) if at == place and call == "fsync"]
        assert flushed, f"{path} is not flushed before it has its name"
        folder = trial.new[path] == ""
        before = inside if folder else [i for i in written if i < taken]
        assert max(before, default=0) < flushed[-1], f"{path} is written to after it was flushed"
    assert ("fsync", ".") in calls[taken:], "the new name itself is not flushed"


needs_strace = pytest.mark.skipif(not strace.is_there(), reason="strace is not installed, or may not trace")


def plain(calls: list[tuple[str, ...]]) -> set[tuple[str, str]]:
    """Without what is drawn by lot in names; and calls by one name that are spelt in several ways."""
    spelt = {"unlinkat": "unlink", "rmdir": "unlink", "mkdirat": "mkdir", "ftruncate64": "ftruncate", "fchmod": "chmod"}
    lots = re.compile(r"sea-bake-[0-9a-f]{8}-(old-)?\w{8}|\.tmp\w{6}")
    return {(spelt.get(call, call), lots.sub("LOT", path)) for call, path in calls}


@needs_strace
@pytest.mark.parametrize("name", ["bake --how insert", "export gguf, adapter"])
def test_nothing_is_done_behind_the_librarys_back(tmp_path: Path, machine: faults.Machine, name: str) -> None:
    """What the kernel did is what the library saw, but for one: safetensors renames its own temporary without the C
    library, inside of ours; see the next test.
    """
    trial = faults.Trial(machine, fault_commands.command(name), tmp_path, overwrite=True, plain=False)
    seen = plain([tuple(line.split(" ", 2)[1:]) for line in trial.calls])
    trial.renew()
    missed = plain(strace.calls(trial.args, trial.folder)) - seen
    assert all(call == "rename" and path.startswith(".") and path.endswith(".safetensors") for call, path in missed)
    assert len(seen) > 10
    assert len(missed) == (2 if "insert" in name else 0)


@needs_strace
@pytest.mark.parametrize(
    ("which", "fault"), [(1, "error=EIO"), (1, "signal=KILL"), (2, "error=ENOSPC"), (2, "signal=INT")]
)
def test_at_the_rename_of_safetensors(tmp_path: Path, machine: faults.Machine, which: int, fault: str) -> None:
    """Of the two that a bake makes; nothing else in it makes this call."""
    trial = faults.Trial(machine, fault_commands.command("bake --how insert"), tmp_path, overwrite=True, plain=False)
    trial.renew()
    options = ("-qq", "-o", "/dev/null", "-e", "trace=renameat", "-e", f"inject=renameat:{fault}:when={which}")
    ran = strace.run(trial.args, *options)
    assert "Traceback" not in ran.stderr
    assert ran.returncode == {"signal=KILL": -9, "signal=INT": 130}.get(fault, 2), ran.stderr
    assert trial.seen() == trial.old
    assert trial.others() == trial.rest
    if fault == "signal=KILL":
        assert faults.litter(trial.folder)
        assert trial.next_run(trial.old) == []
    else:
        assert faults.litter(trial.folder) == set()
