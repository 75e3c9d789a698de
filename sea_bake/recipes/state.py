"""What has been done already: one JSON file in the work folder, written anew after every step, whole or not at all.

A step is done when the digests of its settings and of all that it reads are those of the state, and its output is there
as the step left it. Settings and paths themselves are not kept, only their digests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError, RecipeError
from sea_bake.io.files import file_digest, read_json, write_json
from sea_bake.io.staging import staged_file

VERSION = 1


def digest(value: Any) -> str:
    """SHA-256 (the first 32 hex digits) of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def footprint(path: Path, *, content: bool = True) -> dict[str, list[Any]]:
    """What a file or a folder is known by: of a file its content, of a folder the size and time of each file in it.

    A checkpoint is not read again for this: it has gigabytes, and nobody writes into it.

    Args:
        content: False goes by size and time for a file too.
    """
    if path.is_file() and content:
        return {path.name: [file_digest(path)]}
    if path.is_file():
        return {path.name: [path.stat().st_size, path.stat().st_mtime_ns]}
    files = {p: p.stat() for p in sorted(path.rglob("*")) if p.is_file()}
    return {str(p.relative_to(path)): [s.st_size, s.st_mtime_ns] for p, s in files.items()}


class State:
    """The state of a recipe's runs.

    Every entry has ``inputs`` (name -> digest), ``output`` (a footprint; what is added to a folder later does not
    matter) and ``seconds``. ``begun`` is the step, and the digest of where it writes to, in which the last run was
    killed.
    """

    def __init__(self, work: Path) -> None:
        self.path = work / "state.json"
        data: dict[str, Any] = {"version": VERSION, "steps": {}, "begun": None}
        if self.path.exists():
            try:
                data = read_json(self.path)
                whole = data["version"] == VERSION and all(
                    isinstance(entry[key], dict) for entry in data["steps"].values() for key in ("inputs", "output")
                )
            except (CheckpointError, KeyError, TypeError, AttributeError) as error:
                raise RecipeError(
                    f"{self.path} is damaged ({error}): remove it, and every step is done anew"
                ) from error
            if not whole:
                raise RecipeError(f"{self.path} is of another version of sea_bake: remove it, or choose another 'work'")
        self._steps: dict[str, dict[str, Any]] = data["steps"]
        self._begun: list[str] | None = data.get("begun")

    def why(self, step: str, inputs: Mapping[str, str], output: Path) -> str | None:
        """Why a step has to be done; None when it is done already."""
        entry = self._steps.get(step)
        if self._begun == self._mark(step, output):
            return "not finished yet"
        if entry is None:
            return "not done yet"
        changed = [name for name in {**entry["inputs"], **inputs} if entry["inputs"].get(name) != inputs.get(name)]
        if changed:
            return f"changed: {', '.join(changed)}"
        return None if self._is_there(entry, output) else "its output is gone or was changed"

    def output(self, step: str) -> str:
        """Digest of what a finished step wrote, for those behind it."""
        return digest(self._steps[step]["output"])

    def may_replace(self, step: str, output: Path) -> bool:
        """Whether what lies at ``output`` is this step's own: as it left it, or left by a run that was killed in it."""
        entry = self._steps.get(step)
        return self._begun == self._mark(step, output) or (entry is not None and self._is_there(entry, output))

    def begin(self, step: str, output: Path) -> None:
        """To be told before a step writes anything."""
        self._begun = self._mark(step, output)
        self._write()

    def finish(self, step: str, inputs: Mapping[str, str], output: Path, seconds: float) -> None:
        self._steps[step] = {"inputs": dict(inputs), "output": footprint(output), "seconds": round(seconds, 2)}
        self._begun = None
        self._write()

    def give_up(self, step: str | None = None) -> None:
        """The step that was begun has ended without an output; ``step`` has to be done again though it was finished."""
        self._steps.pop(step or "", None)
        self._begun = None
        self._write()

    def _mark(self, step: str, output: Path) -> list[str]:
        return [step, digest(os.path.relpath(output, self.path.parent))]

    def _is_there(self, entry: dict[str, Any], output: Path) -> bool:
        if not output.exists():
            return False
        now = footprint(output)
        return all(now.get(name) == mark for name, mark in entry["output"].items())

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(self.path, overwrite=True) as stage:
            write_json(stage, {"version": VERSION, "begun": self._begun, "steps": self._steps})
