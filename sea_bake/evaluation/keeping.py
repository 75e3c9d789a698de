"""What has been answered is kept: one file per task and door, each under a digest of all that decided it.

A run that was killed goes on with the first unit that is missing; a unit of other inputs is never taken for one of
these.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sea_bake.artefact.evaluation import Record
from sea_bake.errors import OutputError
from sea_bake.io import leases
from sea_bake.io.staging import check_output, staged_file

EXAMPLES = "examples"
REPORT = "evaluation.json"
PAPERS = (REPORT, "evaluation.md", "evaluation.html")
_FORM = "sea_bake.evaluation-unit"
_VERSION = 1


def digest(*inputs: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class Keeping:
    """Finished units in a folder, or in memory alone.

    Args:
        folder: OUTPUT; None keeps nothing.
        overwrite: replace units of other inputs. Those of these very inputs are taken all the same.

    Raises:
        OutputError: the folder holds something else than an evaluation.
    """

    def __init__(self, folder: str | Path | None, *, overwrite: bool = False) -> None:
        self.folder = None if folder is None else Path(os.path.expanduser(folder)).absolute()
        self.overwrite = overwrite
        if self.folder is None:
            return
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            check_output(self.folder / REPORT, folder=False)
        elif not self.folder.is_dir() or not (self.folder / EXAMPLES).is_dir():
            raise OutputError(f"{self.folder} exists and holds no evaluation: choose another output")

    def path(self, task: str, door: str) -> Path:
        assert self.folder is not None
        return self.folder / EXAMPLES / f"{task}.{door}.jsonl"

    def get(self, task: str, door: str, inputs: str) -> tuple[list[Record], dict[str, Any]] | None:
        """Records and the harness' own figures; None when they have to be made.

        Raises:
            OutputError: there are some of other inputs, and ``overwrite`` is off.
        """
        if self.folder is None:
            return None
        path = self.path(task, door)
        leases.sweep(path)  # what a run has left that was killed when this unit was in its place already
        if not path.is_file():
            return None
        try:
            header, *lines = path.read_text("utf-8").splitlines()
            told = json.loads(header)
            wanted = {"format": _FORM, "version": _VERSION, "inputs": inputs, "count": len(lines)}
            if {key: told[key] for key in wanted} == wanted:
                return [json.loads(line) for line in lines], told["harness"]
            problem = "holds the answers of another run (other models, data, limit or versions): choose another output"
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"is damaged ({error}): remove it"
        if self.overwrite:
            return None
        raise OutputError(f"{path} {problem}, or pass --overwrite")

    def put(self, task: str, door: str, inputs: str, records: list[Record], harness: dict[str, Any]) -> None:
        """Whole or not at all."""
        if self.folder is None:
            return
        header = {"format": _FORM, "version": _VERSION, "task": task, "door": door, "inputs": inputs}
        header |= {"count": len(records), "harness": harness}
        with staged_file(self.path(task, door), overwrite=True) as stage:
            stage.write_text("".join(json.dumps(row, default=_plain) + "\n" for row in [header, *records]), "utf-8")


def _plain(value: Any) -> Any:
    """numpy's numbers, which the harness leaves in its rows."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
