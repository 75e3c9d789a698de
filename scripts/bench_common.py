"""What all scripts share: the interpreter, fresh child processes, peak memory, spreads, tables, and --smoke.

Standard library only at import time, so that a child process pays for nothing but what it measures.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smoke import Page, hold, shrink

__all__ = ["Page", "shrink"]  # of smoke: scripts take them from here
ROOT = Path(__file__).resolve().parent.parent
LOAD = os.getloadavg()[0]  # before we add to it


def use_repository_python() -> None:
    """Start again in the repository's .venv when there is one, and set what all scripts need."""
    python = ROOT / ".venv" / "bin" / "python"
    # Once at most: exec keeps the process id.
    again = os.environ.get("SEA_BAKE_SCRIPT_STARTED_AGAIN") == str(os.getpid())
    if python.exists() and not again and Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        os.environ["SEA_BAKE_SCRIPT_STARTED_AGAIN"] = str(os.getpid())
        os.execv(python, [str(python), *sys.argv])
    package = importlib.util.find_spec("sea_bake")
    if package is None or package.origin is None:
        sys.exit("sea_bake is not installed: run scripts/test or scripts/demo once, which make .venv")
    tree = os.environ.get("SEA_BAKE_SCRIPT_TREE")  # or both sides of a comparison would be the same code
    if tree is not None and not Path(package.origin).resolve().is_relative_to(tree):
        sys.exit(f"{package.origin} is imported, which is not in {tree}: is there another sea_bake before it?")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that scratch folders are removed then, too
    if "--smoke" in sys.argv:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process compiles what it imports
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def parser(doc: str, *, threads: bool = False, old: bool = False) -> argparse.ArgumentParser:
    """A parser whose --help is the script's own docstring, with --json, --smoke, --threads, --old and the hidden
    --child.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON object on stdout, and nothing else")
    made.add_argument(
        "--smoke",
        action="store_true",
        help="a run of seconds on tiny models, which checks that every table gets its numbers; it measures nothing",
    )
    if threads:
        made.add_argument(
            "--threads", type=int, help="torch threads (default: all cores; 1 is steadier on a busy machine)"
        )
    if old:
        made.add_argument("--old", type=checkout, metavar="DIR", help="another checkout of this repository")
    made.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    return made


def checkout(folder: str) -> Path:
    """Of --old: a folder with the package in it."""
    found = Path(folder).resolve()
    if not (found / "sea_bake" / "__init__.py").is_file():
        cure = "`git worktree add --detach DIR COMMIT` makes one of an older commit"
        raise argparse.ArgumentTypeError(f"{folder} is no checkout of this repository; {cure}")
    return found


def trees(old: Path | None) -> dict[str, Path]:
    """Name -> the checkouts that a script compares."""
    return {"this": ROOT, **({"old": old} if old else {})}


def set_threads(count: int | None) -> None:
    if count is not None:
        import torch

        torch.set_num_threads(count)


def seconds(act: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and quartiles (the middle half) of repeated measurements."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "q1": low,
        "q3": high,
        "repeats": len(values),
    }


# ---------------------------------------------------------------------------------------------- memory and processes


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: the benchmarks measure memory on Linux only")


def peak_memory() -> int:
    """Bytes: the most that was ever resident in this process, mapped files included (VmHWM).

    Not ``ru_maxrss``, which a child inherits from the process that forked it.
    """
    return _status("VmHWM")


def resident_memory() -> int:
    """Bytes: what is resident now, mapped files included (VmRSS)."""
    return _status("VmRSS")


def own_memory() -> int:
    """Bytes: what is resident now of this process's own (anonymous) pages, mapped files left out (RssAnon)."""
    return _status("RssAnon")


def extra_memory(act: Callable[[], Any]) -> int:
    """Bytes by which one call raised the resident memory of this process, at its peak."""
    import ctypes

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else the call would find freed memory still resident, and take it for nothing
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # sets VmHWM back to what is resident now
    before = _status("VmRSS")
    act()
    return max(0, peak_memory() - before)


def each(act: Callable[[Any], Any], items: Sequence[Any], *, together: bool = False) -> Iterator[Any]:
    """``act`` of every item in order: one at a time, or two where nothing is measured."""
    if not together:
        yield from map(act, items)
        return
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(act, items)


def in_child(script: str, task: dict[str, Any], tree: Path | None = None) -> dict[str, Any]:
    """What ``script --child TASK`` reports, run in a fresh process; ``tree``: on the package of that checkout."""
    command = [sys.executable, script, "--child", json.dumps(task)]
    own = {} if tree is None else {"PYTHONPATH": str(tree), "SEA_BAKE_SCRIPT_TREE": str(tree)}
    environment = {**os.environ, **own}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{Path(script).name} {task} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def took(
    words: Sequence[Any], root: Path, scratch: Path, threads: int | None, start: Sequence[str] = ("-m", "sea_bake")
) -> tuple[float, float, Any]:
    """Seconds of the processor and of the clock of a command of a checkout with --json, its doors included, and what it
    said.

    Args:
        words: the command's.
        root: the checkout.
        scratch: a folder to run in; what is kept between commands goes into its "cache".
        threads: of torch.
        start: what Python is started with.
    """
    where = {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "SEA_BAKE_CACHE": str(scratch / "cache")}
    where |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    line = [sys.executable, *start, *map(str, words), "--json"]
    before = os.times()
    with open(scratch / "said.json", "w+") as said:
        ran = subprocess.run(line, stdout=said, env=os.environ | where, cwd=scratch)
    after = os.times()
    if ran.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {ran.returncode}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, after.elapsed - before.elapsed, json.loads((scratch / "said.json").read_text("utf-8"))


def base_and_edit(args: Any, scratch: Path) -> tuple[Path, Path]:
    """The folder of ``args.model``, of SmolLM2 where it is None (a tiny model under --smoke), and an edit of it."""
    import smoke

    from sea_bake import fit
    from sea_bake.demonstrations import builtin
    from sea_bake.model import smollm2
    from sea_bake.model.checkpoint.gguf import materialise
    from sea_bake.model.source import ModelSource

    if args.smoke:
        base = smoke.base(scratch / "base")
        return base, smoke.edit(base, scratch / "edit.safetensors", merge="sum")
    base = args.model or scratch / "base"
    if args.model is None:
        base.mkdir()
        materialise(ModelSource.parse(smollm2.installed()), base)
    edit = fit(base, list(builtin())[:32], neutral="prompt", alpha=1.0, measure=False)
    return base, edit.save(scratch / "edit.safetensors")


# ------------------------------------------------------------------------------------------ long runs, kept as they go


def code(*tests: str) -> str:
    """A digest of what is tried, and of the files of tests/ that try it: other code is tried anew."""
    found = hashlib.sha256()
    package = [path for path in (ROOT / "sea_bake").rglob("*") if path.suffix in (".py", ".j2")]
    for path in [*sorted(package), *(ROOT / "tests" / name for name in tests)]:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def keep(path: Path, result: dict[str, Any]) -> None:
    """Add what came of a part of a run to a file; ``result["code"]`` is :func:`code`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:  # one write, so that none is torn
        file.write(f"\n{json.dumps(result)}\n")  # also behind a line that a kill has cut off


def kept(path: Path, tried: str) -> list[dict[str, Any]]:
    """What :func:`keep` has written of this very code; a line that a kill has cut off counts as not there."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [result for result in found if result["code"] == tried]


# ------------------------------------------------------------------------------------------------------------ telling


def machine() -> dict[str, Any]:
    """What the numbers were taken on. The load average tells how busy others kept it when we began."""
    from importlib.metadata import version

    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(LOAD, 2),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "safetensors")},
    }


def say(text: str, *, quiet: bool) -> None:
    """Progress for people, on stderr."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Table:
    """A title, the columns' names and rows of cells; the first cell is the row's name."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> Any:
        """The first column is left-aligned, numbers are right-aligned."""
        from rich.table import Table as RichTable

        made = RichTable(title=self.title, title_justify="left")
        for i, column in enumerate(self.columns):
            made.add_column(column, justify="right" if i else "left")
        for row in self.rows:
            made.add_row(*row)
        return made


def tell(result: dict[str, Any], tables: Sequence[Table], notes: Sequence[str], page: Page, args: Any) -> None:
    """The whole result: one JSON object, or rich tables with the machine and notes below.

    A smoke run ends here with exit code 1 where the output lacks what the page's table needs.
    """
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        from rich.console import Console

        # Into a file or a pipe there is no terminal whose width could be asked for: wide enough that no cell is cut.
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
        for made in tables:
            console.print(made.rich())
        m = result["machine"]
        console.print(
            f"{m['cpu']}, {m['cores']} cores, {m['torch_threads']} torch threads, load {m['load_average']} at the "
            f"start; Python {m['python']}, torch {m['torch']}, transformers {m['transformers']}, "
            f"safetensors {m['safetensors']}; {m['date']}",
            markup=False,
        )
        for note in notes:
            console.print(f"- {note}", markup=False)
    if args.smoke:
        hold(result, tables, page)


def time_text(s: dict[str, Any]) -> str:
    """ "12.3 ms (11.9..14.0)": median, minimum and maximum."""
    unit, scale = ("s", 1.0) if s["median"] >= 1 else ("ms", 1e3)
    middle, low, high = (f"{s[key] * scale:.3g}" for key in ("median", "min", "max"))
    return f"{middle} {unit} ({low}..{high})"


def size_text(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
