"""Every call of a command that changes files, and what becomes of its output when that very call goes wrong.

``faults.c`` is compiled and preloaded into a process that has imported everything and has done each command once; for
every call and every fault it forks a child, whose n-th call under the folder of the output fails, is the last one
before a kill, or comes with Ctrl-C. What does not write (a model's answers, a traced graph, pictures) is computed once.

Run as a script (``python tests/faults.py``) it is that process.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import gc
import hashlib
import importlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import doors
import tiny
from roomy import roomy

HERE = Path(__file__).resolve().parent
KINDS = ("nothing", "kill", "EIO", "ENOSPC", "broken disk", "Ctrl-C", "Ctrl-C again and again")
FAULTS = KINDS[1:]
NETWORK = "network:"  # the folder of all that is sent and got
LITTER = re.compile(r"\..*\.sea-bake-[0-9a-f]{8}-(old-)?\w{8}")


@functools.cache
def library() -> Path | None:
    """The compiled shim; None where there is no compiler, or no such preloading."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    made = tiny.root() / "faults.so"
    ran = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", made, HERE / "faults.c", "-ldl"], capture_output=True
    )
    return made if ran.returncode == 0 else None


# ------------------------------------------------------------------------------------------------------- the command


class Elsewhere(Protocol):
    """What is written to that is no folder.

    Attributes:
        env: of the process that writes to it.
    """

    env: dict[str, str]

    def seen(self) -> dict[str, str]:
        """As :func:`content`."""

    def keep(self) -> Any:
        """All of it, for :meth:`put_back`."""

    def put_back(self, kept: Any) -> None: ...


@dataclass(frozen=True)
class Command:
    """A command line, and all that is known of what it writes.

    Attributes:
        name: for people.
        args: of ``sea-bake``, given the folder that it writes into.
        outputs: what it writes, relative to that folder.
        prepare: puts there what it needs, and adds to.
        before: args that write an older output, for ``--overwrite``; None of a command that knows no such option.
        once: functions ("module:name") that compute and write nothing: done once, and their result taken from then on.
        after: what has to hold of the outputs together, whatever happened.
        moving: files whose content is another one in each run.
        growing: folders that hold outputs and are none: they are there as soon as the first output needs them.
        again: after a kill the same line comes to the same though nothing was left: it goes on with what was done.
        over: what the line has more where an older output is there.
        elsewhere: outputs that lie in no folder: a Hub's. What goes wrong then is what is sent to it and got from it.
    """

    name: str
    args: Callable[[Path], list[object]]
    outputs: tuple[str, ...]
    prepare: Callable[[Path], None] = lambda folder: None
    before: Callable[[Path], list[object]] | None = None
    once: tuple[str, ...] = ()
    after: Callable[[Path], None] = lambda folder: None
    moving: tuple[str, ...] = ()
    growing: tuple[str, ...] = ()
    again: bool = False
    over: tuple[str, ...] = ("--overwrite",)
    elsewhere: Callable[[], Elsewhere] | None = None

    def part(self, state: dict[str, str], name: str) -> dict[str, str]:
        """Of what is there, that which is this one output: without litter, and without other outputs inside of it."""
        inner = [other for other in self.outputs if other != name and Path(other).is_relative_to(name)]
        return {
            path: digest
            for path, digest in state.items()
            if Path(path).is_relative_to(name)
            and not any(Path(path).is_relative_to(other) for other in inner)
            and not any(map(LITTER.fullmatch, Path(path).parts))
        }


@dataclass
class Tally:
    """What was tried.

    Attributes:
        calls: that change files, in a run without a fault.
        tried: faults.
        broken: what did not hold.
        names: the calls, in their order: "fsync .out.sea-bake-.../config.json".
    """

    calls: int = 0
    tried: int = 0
    broken: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


class Machine:
    """The process that forks; ``tiny.Nursery`` with faults."""

    def __init__(self, **more: str) -> None:
        shim = library()
        assert shim is not None
        env = {
            **os.environ,
            "FAULTS_ENV": json.dumps(more),
            "LD_PRELOAD": str(shim),
            "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=env
        )

    def ask(self, **request: Any) -> Any:
        self.process.stdin.write(json.dumps(request) + "\n")
        return json.loads(self.process.stdout.readline())

    def once(self, names: tuple[str, ...], args: list[object]) -> None:
        """Do a command in the process itself, so that all children inherit what it imports and computes."""
        heard = self.ask(once=list(names), args=list(map(str, args)))
        assert heard["code"] == 0, heard

    def run(
        self, args: list[object], folder: Path | str, *, kind: str = "nothing", at: int = 0, plain: bool = False
    ) -> Any:
        """Code, what was said, and the calls, of a child whose ``at``-th call in the folder (or on the ``NETWORK``)
        goes wrong.
        """
        fault = {"kind": KINDS.index(kind), "at": at, "plain": plain, "root": str(folder)}
        return self.ask(args=[list(map(str, args))], **fault)[0]

    def race(self, folder: Path, *args: list[object], plain: bool = False) -> list[Any]:
        """Children that make their first call at the same moment."""
        fault = {"kind": 0, "at": 0, "plain": plain, "root": str(folder)}
        return self.ask(args=[list(map(str, one)) for one in args], **fault)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    made = Machine()
    try:
        yield made
    finally:
        made.close()


# ----------------------------------------------------------------------------------------------------- what has to hold


def content(folder: Path, names: tuple[str, ...], moving: tuple[str, ...] = ()) -> dict[str, str]:
    """Every file of the outputs -> its digest; a folder -> "", so that an empty one counts too."""
    found: dict[str, str] = {}
    for name in names:
        top = folder / name
        for path in [top, *sorted(top.rglob("*"))] if top.is_dir() and not top.is_symlink() else [top]:
            if path.name in moving:
                continue
            if path.is_dir():
                found[str(path.relative_to(folder))] = ""
            elif os.path.lexists(path):
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def litter(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if LITTER.fullmatch(path.name)}


class Trial:
    """A command on a folder that is made anew for every fault.

    Args:
        overwrite: replace an older output.
        plain: on a file system that can neither rename without replacing nor exchange.
    """

    def __init__(self, machine: Machine, command: Command, scratch: Path, *, overwrite: bool, plain: bool) -> None:
        self.machine, self.command, self.plain, self.overwrite = machine, command, plain, overwrite
        self.elsewhere = command.elsewhere() if command.elsewhere else None
        self.folder, self.template = scratch / "here", scratch / "template"
        for path in (self.folder, self.template):
            shutil.rmtree(path, ignore_errors=True)
        self.folder.mkdir(parents=True)
        command.prepare(self.folder)
        if overwrite:
            assert command.before is not None
            machine.once((), command.before(self.folder))
        shutil.copytree(self.folder, self.template, symlinks=True)
        self.before = self.elsewhere.keep() if self.elsewhere else None
        self.args = [*command.args(self.folder), *(command.over if overwrite else ())]
        self.old = self.seen()
        machine.once(command.once, self.args)
        self.renew()
        ran = self.run()
        assert ran["code"] == 0, ran
        self.calls, self.new, self.rest = ran["calls"], self.seen(), self.others()
        assert self.new != self.old
        assert not litter(self.folder)

    def renew(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.template, self.folder, symlinks=True)
        if self.elsewhere:
            self.elsewhere.put_back(self.before)

    def seen(self) -> dict[str, str]:
        if self.elsewhere:
            return self.elsewhere.seen()
        return content(self.folder, self.command.outputs, self.command.moving)

    def others(self) -> dict[str, str]:
        """All that is no output and no litter: it is to stay as it is."""
        names = tuple(path.name for path in sorted(self.folder.iterdir()) if not LITTER.fullmatch(path.name))
        found, mine = content(self.folder, names, self.command.moving), self.seen()
        return {
            name: digest
            for name, digest in found.items()
            if name not in (*mine, *self.command.growing)
            and not any(LITTER.fullmatch(part) for part in Path(name).parts)
        }

    def run(self, kind: str = "nothing", at: int = 0, *more: object) -> Any:
        where = NETWORK if self.elsewhere else self.folder
        return self.machine.run([*self.args, *more], where, kind=kind, at=at, plain=self.plain)

    def fault(self, kind: str, at: int) -> list[str]:
        """What is wrong after one; nothing when all holds."""
        self.renew()
        ran = self.run(kind, at)
        now, left, said = self.seen(), litter(self.folder), ran["err"] + ran["out"]
        wrong = []
        # Each output by itself: the old one whole or the new one whole.
        for name in self.command.outputs:
            part, old, new = (self.command.part(state, name) for state in (now, self.old, self.new))
            if part not in (old, new) and not (part == {} and kind in ("kill", "broken disk") and self.put_back()):
                wrong.append(f"{name} is neither the old one nor the new one")
        if self.others() != self.rest:
            wrong.append("something else was changed")
        if ran["code"] == 0 and now != self.new:
            wrong.append("exit code 0, and the new one is not there")
        if ran["code"] not in (0, 2, 130) and kind != "kill":
            wrong.append(f"exit code {ran['code']}")
        if "Traceback" in said:
            wrong.append("a traceback")
        if left and kind != "kill":
            unnamed = [
                name for name in left if not any(part in said for part in Path(name).parts if LITTER.fullmatch(part))
            ]
            if kind != "broken disk":
                wrong.append(f"left behind: {sorted(left)}")
            elif unnamed:
                wrong.append(f"left behind, and not named: {unnamed}")
        if ("nothing was left behind" in said or "nothing half-written was left behind" in said) and left:
            wrong.append("it is denied that something was left behind")
        with contextlib.suppress(Exception) if kind == "broken disk" else contextlib.nullcontext():
            try:
                self.command.after(self.folder)
            except AssertionError as error:
                wrong.append(f"outputs do not agree: {error}")
        if (left or (self.command.again and kind == "kill")) and not wrong:
            wrong += self.next_run(now)
        return [f"{text} [{said.strip()[-300:]}]" for text in wrong]

    def put_back(self) -> bool:
        """Where a folder can be neither exchanged nor replaced it is away between two renames: whether the next run,
        which is refused then, puts the old one back whole.
        """
        if not (self.plain and self.overwrite):
            return False
        asked = [word for word in self.args if word != "--overwrite"]
        ran = self.machine.run(asked, self.folder, kind="nothing", at=0, plain=True)
        return bool(ran["code"] == 2 and "exists already" in ran["err"] and self.seen() == self.old)

    def next_run(self, now: dict[str, str]) -> list[str]:
        """It removes what a killed one has left, and comes to the same."""
        ran = self.run()
        if ran["code"] == 2 and "exists already" in ran["err"] and not self.overwrite and now != self.old:
            ran = self.run("nothing", 0, "--overwrite")  # as it advises
        if ran["code"] != 0:
            return [f"the next run fails: {ran['err'][-300:]}"]
        wrong = [f"the next run leaves {sorted(left)}"] if (left := litter(self.folder)) else []
        return wrong + (["the next run comes to something else"] if self.seen() != self.new else [])

    def all(self, kinds: tuple[str, ...] = FAULTS, *, step: int = 1) -> Tally:
        """Every call (or every ``step``-th), every fault."""
        found = Tally(len(self.calls), names=[line.split(" ", 1)[1] for line in self.calls])
        for at in range(1, len(self.calls) + 1, step):
            found.tried += len(kinds)
            found.broken += self.at(at, kinds)
        return found

    def at(self, at: int, kinds: tuple[str, ...] = FAULTS) -> list[str]:
        """What every fault of one call breaks."""
        name = self.calls[at - 1].split(" ", 1)[1]
        return [f"{kind} at {at} ({name}): {text}" for kind in kinds for text in self.fault(kind, at)]


def race(
    machine: Machine,
    scratch: Path,
    runs: tuple[Callable[[Path], list[object]], ...],
    output: str,
    *,
    pairs: int,
    overwrite: bool,
    plain: bool = False,
) -> Tally:
    """Two runs to one output, each past its checks before either begins to write: one is done, the other refused.

    Args:
        runs: the args of the two, and of one that writes an older output.
    """
    folder = scratch / "race"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    results = []
    for run in runs:
        machine.once((), run(folder))
        results.append(content(folder, (output,)))
        shutil.rmtree(folder)
        folder.mkdir()
    if overwrite:
        machine.once((), runs[2](folder))
    template = Path(shutil.copytree(folder, scratch / "before-the-race", dirs_exist_ok=True))
    found = Tally()
    for pair in range(pairs):
        shutil.rmtree(folder)
        shutil.copytree(template, folder)
        flags: list[object] = ["--overwrite"] if overwrite else []
        ran = machine.race(folder, *[[*run(folder), *flags] for run in runs[:2]], plain=plain)
        codes, now = [one["code"] for one in ran], content(folder, (output,))
        said = " ".join(one["err"].strip()[-200:] for one in ran)
        found.tried += 1
        if sorted(codes) != [0, 2]:
            found.broken.append(f"pair {pair}: exit codes {codes} [{said}]")
        elif now != results[codes.index(0)]:
            found.broken.append(f"pair {pair}: what the run with exit code 0 wrote is not there [{said}]")
        if litter(folder):
            found.broken.append(f"pair {pair}: left behind: {litter(folder)}")
    shutil.rmtree(template)
    return found


# ------------------------------------------------------------------------------------------------------ the process


def _memo(name: str, kept: dict[Any, Any]) -> None:
    """Let a function compute once; "module:name@KEY" once for each value of an expression of its arguments;
    "module:name=None" not at all.
    """
    place, _, expression = name.removesuffix("=None").partition("@")
    module, _, attribute = place.partition(":")
    owner, _, attribute = attribute.rpartition(".")
    home = importlib.import_module(module)
    where = getattr(home, owner) if owner else home
    real = getattr(where, attribute)
    if hasattr(real, "computes_once"):
        return

    def taken(*args: Any, **options: Any) -> Any:
        key = (name, eval(expression, {"args": args, **options}) if expression else None)
        if key in kept:
            return _copied(kept[key])
        value = real(*args, **options)
        same = _copied(value)
        kept[key] = real(*args, **options) if same is value else same  # what is taken may be changed
        return value

    taken.computes_once = True  # type: ignore[attr-defined]
    if name.endswith("=None"):  # for controls: it does nothing any more
        taken = lambda *args, **options: None  # noqa: E731
    setattr(where, attribute, taken)
    for other in list(sys.modules.values()):  # wherever it was imported to
        if getattr(other, "__name__", "").startswith("sea_bake") and getattr(other, attribute, None) is real:
            setattr(other, attribute, taken)


def _copied(value: Any) -> Any:
    """A copy; the thing itself where there is none, which a child may change: it is the child's alone."""
    try:
        return copy.deepcopy(value)
    except TypeError:
        return value


def _serve() -> None:
    os.environ.update(json.loads(os.environ.pop("FAULTS_ENV")))  # whatever ``tiny`` has set

    doors.one_thread()
    clock = types.SimpleNamespace(perf_counter=lambda: 0.0, monotonic=lambda: 0.0)
    clocked = ("sea_bake.exporting.onnx", "sea_bake.recipes.running", "sea_bake.fitting.tuning.searching")
    for name in clocked:  # seconds stand in what they write
        importlib.import_module(name).time = clock  # type: ignore[attr-defined]
    hub = importlib.import_module("huggingface_hub.utils._http")
    hub.time = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})  # type: ignore[attr-defined]
    kept: dict[Any, Any] = {}
    answers = os.fdopen(os.dup(1), "w")
    shim = ctypes.CDLL(os.environ.pop("LD_PRELOAD"))
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "once" in request:
            kept.clear()
            for name in request["once"]:
                _memo(name, kept)
            ran = tiny.run(*request["args"])
            hub.close_session()  # a connection does not survive a fork
            print(json.dumps(vars(ran)), file=answers, flush=True)
            continue
        print(json.dumps(_children(request, shim)), file=answers, flush=True)


def _children(request: dict[str, Any], shim: Any) -> list[dict[str, Any]]:
    gc.freeze()  # what is here already is no child's to collect: looking through it takes longer than all the rest
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    arriving, arrived, waiting, opening = (*os.pipe(), *os.pipe()) if len(request["args"]) > 1 else (-1,) * 4
    gc.freeze()  # as the nursery does
    pids = []
    for args in request["args"]:
        streams = {name: os.open(folder, os.O_TMPFILE | os.O_RDWR) for name in ("out", "err", "calls")}
        pid = os.fork()
        if pid == 0:
            try:
                _live(args, request, shim, streams, arrived, waiting)
            finally:
                os._exit(1)
        pids.append((pid, streams))
    if opening >= 0:  # the first call of each waits until all are that far, or are gone
        for _ in pids:
            select.select([arriving], [], [], 60)
            os.read(arriving, 1)
        os.write(opening, b"!" * len(pids))
    found = []
    for pid, streams in pids:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = {}
        for name, handle in streams.items():
            os.lseek(handle, 0, os.SEEK_SET)
            with os.fdopen(handle, "rb") as file:
                said[name] = file.read().decode("utf-8", "replace")
        found.append({"code": code, **said, "calls": said["calls"].splitlines()})
    for handle in (arriving, arrived, waiting, opening):
        if handle >= 0:
            os.close(handle)
    return found


def _live(args: list[str], request: dict[str, Any], shim: Any, streams: dict[str, int], here: int, gate: int) -> None:
    """The child: the command line as ``sea-bake`` itself would start it, armed, then gone without clean-up of ours."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in ((0, os.open(os.devnull, os.O_RDONLY)), (1, streams["out"]), (2, streams["err"])):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["sea-bake", *args]

    os.environ["COLUMNS"] = "4000"
    from sea_bake.cli import main

    code: int | None = None
    what = (request["at"], request["kind"], request["plain"], streams["calls"], here, gate)
    shim.fault_arm(request["root"].encode(), *what)
    try:
        try:
            roomy(main)
            code = 0
        except SystemExit as stop:
            code = _code(stop)
        shim.fault_disarm()
    except BaseException as error:
        shim.fault_disarm()
        # When the command is over, a thread of an upload may still send: that Ctrl-C interrupts nothing of ours.
        if isinstance(error, KeyboardInterrupt) and isinstance(error.__context__, SystemExit):
            code = _code(error.__context__)
        elif code is None or not isinstance(error, KeyboardInterrupt):
            code = 1
            traceback.print_exc()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    assert code is not None
    os._exit(code)


def _code(stop: SystemExit) -> int:
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


if __name__ == "__main__":
    _serve()
