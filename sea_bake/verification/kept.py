"""The base's answers, kept in the user's cache: a base that is asked the same by the same code is not run again.

An entry is called after the digest of all that decides what is answered (the base's files, the request, our code, the
libraries' versions, the processor) and after that of what it holds. It is used by its owner alone, and only where both
are right; so there is no entry that is too old, or somebody else's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sea_bake.artefact.seal import seal
from sea_bake.errors import SeaBakeError
from sea_bake.io.cache import cache_folder
from sea_bake.io.files import file_digest
from sea_bake.io.staging import staged_file
from sea_bake.model.source import ModelSource

_MOST = 1 << 30  # bytes of all entries together: those that were not used for longest go first
_ASKED = (
    "auto_class", "decoder_start", "teacher", "prompts", "max_new_tokens", "positions", "pad", "dtype",
    "device", "bare",
)  # fmt: skip
_LIBRARIES = ("torch", "transformers", "safetensors", "accelerate", "peft", "gguf", "bitsandbytes")
_READ = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Kept:
    """Where one base's answers to one request are kept.

    Attributes:
        folder: of all entries.
        key: digest of what decides them.
    """

    folder: Path
    key: str

    def give(self, target: Path) -> bool:
        """Put the answers there; False where there are none that can be trusted."""
        for path in self.folder.glob(f"{self.key}.*.safetensors"):
            if _is_ours(self.folder) and _is_ours(path) and _copied(path, target):
                if file_digest(target) == path.name.split(".")[1]:  # of what is used, whatever became of the other
                    with contextlib.suppress(OSError):
                        os.utime(path)
                    return True
                target.unlink()
            with contextlib.suppress(OSError):
                path.unlink()
        return False

    def keep(self, answers: Path) -> None:
        """Keep a file of answers, whole; where that cannot be, nothing is kept, and nothing lost."""
        if answers.stat().st_size > _MOST:
            return
        with contextlib.suppress(OSError, SeaBakeError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.folder / f"{self.key}.{file_digest(answers)}.safetensors"
            with staged_file(path, overwrite=True) as stage:
                shutil.copyfile(answers, stage)
            path.chmod(0o600)  # whatever the umask says: what others may write to is not taken
            self._make_room()

    def _make_room(self) -> None:
        entries = sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        size = sum(path.stat().st_size for path in entries)
        for path in entries:
            if size > _MOST:
                size -= path.stat().st_size
                path.unlink()


def kept(source: ModelSource, request: Mapping[str, Any]) -> Kept | None:
    """The place of a base's answers; None where nothing is kept.

    Args:
        source: the base, on disk.
        request: as the doors are given it.
    """
    folder = cache_folder("answers")
    if folder is None or source.path is None:
        return None
    decides = {
        "base": _files(source),
        "asked": {name: request.get(name) for name in _ASKED},
        "code": _code(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "machine": [_processor(), platform.system(), platform.python_version(), os.cpu_count()],
        "environment": {name: os.environ.get(name) for name in _READ},
    }
    return Kept(folder, hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest())


def _files(source: ModelSource) -> list[dict[str, str]]:
    """Digests of all files that decide what a base answers; of an adapter those of its own base too."""
    assert source.path is not None
    if source.is_gguf:
        return [{source.path.name: file_digest(source.path)}]
    return [seal(source.path), *([seal(source.base().folder())] if source.is_adapter else [])]


@functools.cache
def _code() -> str:
    """A digest of all of our code."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def _processor() -> list[str]:
    """Its name and what it can do, which decides what kernels round how; as far as the system says it."""
    with contextlib.suppress(OSError):
        told = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0].splitlines()
        return [platform.machine(), *(line for line in told if line.startswith(("model name", "flags", "Features")))]
    return [platform.machine(), platform.processor()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _copied(path: Path, target: Path) -> bool:
    """False where it is no file, has gone meanwhile, or cannot be read: then the base is asked anew."""
    try:
        shutil.copyfile(path, target)
    except OSError:
        with contextlib.suppress(OSError):
            target.unlink()
        return False
    return True


def _is_ours(path: Path) -> bool:
    """Whether it is a file or folder, and no link, that we own and nobody else may write to."""
    try:
        found = path.lstat()
    except OSError:
        return False  # another verification has removed it
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return mine and plain and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
