"""What is installed and what works on this machine, with the line that brings what is not there; without torch."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sea_bake.errors import SettingError
from sea_bake.io.interpreter import running
from sea_bake.io.llama_cpp import AGAIN, BUILT, QUANTISERS, find_converter, installed

_MARKER = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
_NEEDED = ("torch", "transformers", "safetensors", "peft", "huggingface-hub", "accelerate")
_SHOWN = ("sea-bake", *_NEEDED)
_MARKS = {True: "✓", False: "✗", None: "·"}
_HIDDEN = ("test", "lint", "all")  # extras of ours alone
_ENOUGH = 5 << 30  # bytes of a disk on which a small model is edited


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        works: True, or False; None where nothing depends on it.
        found: what is there.
        cure: the line that mends it; "" where nothing has to be.
        needed: whether sea_bake does not work without it.
    """

    name: str
    works: bool | None
    found: str
    cure: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Health:
    """What :func:`doctor` found.

    Attributes:
        versions: package -> version; "" of one that is not installed.
        extras: what an extra of sea_bake brings, by its name.
        devices: processor, graphics cards, memory and disk.
        tools: what others made, and some commands use.
    """

    versions: dict[str, str] = field(default_factory=dict)
    needed: list[Finding] = field(default_factory=list)
    extras: list[Finding] = field(default_factory=list)
    devices: list[Finding] = field(default_factory=list)
    tools: list[Finding] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        return [*self.needed, *self.extras, *self.devices, *self.tools]

    @property
    def healthy(self) -> bool:
        """Whether all works that sea_bake cannot do without."""
        return not any(one.needed and not one.works for one in self.findings)

    def lines(self) -> list[str]:
        """For people: a mark before each finding, and its cure below it."""
        found = [", ".join(f"{name} {version or '(not installed)'}" for name, version in self.versions.items())]
        broken = [one for one in self.needed if not one.works]
        for title, rows in (
            ("Broken", broken),
            ("Extras", self.extras),
            ("Devices", self.devices),
            ("Tools", self.tools),
        ):
            found += [title] if rows else []
            for one in rows:
                found.append(f"  {_MARKS[one.works]} {one.name}: {one.found}")
                found += [f"      {one.cure}"] if one.cure else []
        return found

    def to_json(self) -> dict[str, Any]:
        return {"healthy": self.healthy, **asdict(self)}


def doctor() -> Health:
    """Look at versions, extras, devices and tools: by metadata and the PATH, but for llama.cpp's libraries, which are
    loaded, each in a process of its own.
    """
    requirements = _requirements()
    needed = [_package(name, requirements[""].get(name, ""), needed=True) for name in requirements[""]]
    extras = []
    for extra, asked in sorted(requirements.items()):
        if extra and extra not in _HIDDEN:
            lacking = [one for name, bounds in asked.items() if not (one := _package(name, bounds)).works]
            works = not lacking
            found = "installed" if works else ", ".join(f"{one.name} {one.found}" for one in lacking)
            extras.append(Finding(extra, works, found, "" if works else f"pip install 'sea-bake[{extra}]'"))
    versions = {"python": platform.python_version()} | {name: installed(name) or "" for name in _SHOWN}
    return Health(versions, needed, extras, _devices(), _tools())


def _requirements() -> dict[str, dict[str, str]]:
    """Extra ("" for none) -> package -> its bounds, as our own metadata say; with those of extras that it asks for."""
    found: dict[str, dict[str, str]] = {"": {}}
    others: list[tuple[str, str]] = []
    for text in metadata.requires("sea-bake") or []:
        wanted, _, marker = text.partition(";")
        name = re.split(r"[\s\[<>=!~]", wanted.strip())[0]
        named = _MARKER.search(marker)
        if "python_version" in marker and not _holds(marker):
            continue
        if name == "sea-bake":
            extras = wanted.partition("[")[2].partition("]")[0].split(",")
            others += [(named[1], one.strip()) for one in extras if named]
            continue
        found.setdefault(named[1] if named else "", {})[name] = wanted.strip()[len(name) :].strip()
    for extra, other in others:
        found[extra] = {**found.get(other, {}), **found.get(extra, {})}
    return found


def _holds(marker: str) -> bool:
    """Whether a marker's bound of Python's version holds here; one that this does not read does."""
    bound = re.search(r"""python_version\s*>=\s*['"](\d+)\.(\d+)['"]""", marker)
    return bound is None or sys.version_info[:2] >= (int(bound[1]), int(bound[2]))


def _package(name: str, bounds: str, *, needed: bool = False) -> Finding:
    there = installed(name)
    cure = f"pip install -U '{name}{bounds}'"
    if there is None:
        return Finding(name, False, "is not installed", cure, needed)
    least = re.search(r">=\s*([\d.]+)", bounds)
    below = re.search(r"<\s*([\d.]+)", bounds)
    if least and _numbers(there) < _numbers(least[1]):
        return Finding(name, False, f"{there} is too old", cure, needed)
    if below and _numbers(there) >= _numbers(below[1]):
        return Finding(name, False, f"{there} is too new", cure, needed)
    return Finding(name, True, there, "", needed)


def _numbers(version: str) -> tuple[int, ...]:
    found = [int(part) for part in re.findall(r"\d+", re.split(r"[+a-zA-Z-]", version)[0])]
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def _devices() -> list[Finding]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = ""
    if hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names):
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB of memory"
    found = [Finding("processor", True, f"{count} cores ({platform.machine()}){memory}")]
    flags = _processor_flags()
    if flags:  # what oneDNN, torch's library, asks of a processor before it computes in bfloat16
        fast = bool(flags & {"avx512bw", "amx_bf16", "avx_ne_convert", "bf16"})
        told = "computed as such" if fast else "no instructions for it"
        cure = "" if fast else "--dtype float32 (fit, eval, verify) is several times faster on this processor"
        found.append(Finding("bfloat16", True if fast else None, told, cure))
    cards = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    torch = installed("torch") or ""
    cure = ""
    if cards and "+cpu" in torch:
        cure = "torch here is built for the processor alone: https://pytorch.org/get-started/locally has the other line"
    found.append(Finding("graphics cards", not cure if cards else None, cards or "none (nvidia-smi names none)", cure))
    free = shutil.disk_usage(Path.cwd()).free
    cure = "" if free > _ENOUGH else "work on a disk with more room: a bake writes what it edits"
    found.append(Finding("disk", free > _ENOUGH, f"{free / 1e9:.0f} GB free here", cure))
    return found


def _processor_flags() -> set[str]:
    """What Linux says the processor can do; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    return set(found[1].split()) if found else set()


def _tools() -> list[Finding]:
    """Tool -> what it is for; None where it is not there and nothing breaks without it."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    asked = [
        ("C compiler (torch.compile)", compiler, "apt install build-essential, or your system's own"),
        (
            "llama.cpp's converter (export gguf of a folder, publish --gguf)",
            _converter(),
            "git clone https://github.com/ggml-org/llama.cpp, and name the folder in LLAMA_CPP",
        ),
        ("login to the Hub (publish)", _login(), "hf auth login"),
        ("vLLM (serve)", shutil.which("vllm"), "install it in an environment of its own, with its bin on the PATH"),
        ("node (transformers.js)", shutil.which("node"), "https://nodejs.org"),
        ("git", shutil.which("git"), "apt install git, or your system's own"),
    ]
    browser = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    asked.append(("browser (serve-web)", browser, "any browser of another machine will do"))
    found = [Finding(name, True if there else None, there or "not here", "" if there else cure)
             for name, there, cure in asked]  # fmt: skip
    server = shutil.which("llama-server")
    other = "put llama-server on the PATH"
    found.append(_library("llama.cpp (chat, ask with a GGUF)", {"xllamacpp": "xllamacpp"}, other, server))
    found.append(_library("llama.cpp's quantiser (publish --gguf)", QUANTISERS, BUILT))
    return found


def _converter() -> str | None:
    """Where ``export gguf`` looks for it."""
    try:
        return str(find_converter(None))
    except SettingError:
        return None


def _library(name: str, packages: dict[str, str], other: str, there: str | None = None) -> Finding:
    """Whether one of these packages is here and loads: tried in a process of its own, since a library built for another
    processor ends the one that loads it.

    Args:
        packages: package -> the module that loads its library; the first is the one to install.
        other: what serves in their place, as a cure.
        there: that, where it is here: it is asked where no package is.
    """
    broken: list[tuple[str, str]] = []
    for package, module in packages.items():
        version = installed(package)
        if version is None:
            continue
        line = running(f"import {module}")
        try:
            ran = subprocess.run(line, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
            said = (
                ran.stderr.strip().splitlines()[-1:]
                if ran.returncode > 0
                else [f"it ends with signal {-ran.returncode}"]
            )
        except subprocess.TimeoutExpired:
            said = ["it takes more than a minute"]
        else:
            if ran.returncode == 0:
                return Finding(name, True, f"{package} {version}")
        broken.append((f"{package} {version} does not load: {' '.join(said)}", f"{AGAIN} {package}, or {other}"))
    if broken:
        return Finding(name, False, *broken[0])
    if there is not None:
        return Finding(name, True, there)
    return Finding(name, None, "not here", f"pip install {next(iter(packages))}, or {other}")


def _login() -> str | None:
    """Whether there is a token; whose it is, only the Hub could say."""
    from huggingface_hub import get_token

    return "a token is stored" if get_token() else None


def _output(*words: str) -> str:
    """What a short command says, in one line; "" where it is not there."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(ran.stdout.split("\n")).strip("; ") if ran.returncode == 0 else ""
