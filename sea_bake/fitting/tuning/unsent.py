"""A trial that a worker has measured and could not send: it waits in the worker's folder, for its own search alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError, OutputError
from sea_bake.fitting.tuning.results import Trial
from sea_bake.io import leases
from sea_bake.io.files import read_json, write_json
from sea_bake.io.staging import staged_file

UNSENT = "unsent.json"


class Unsent:
    """The place of one trial.

    Args:
        folder: of this worker, where no other is at work.
        study: name of its search.
    """

    def __init__(self, folder: Path, study: str) -> None:
        self.path = folder / UNSENT
        self._search = {"study": study, "inputs_sha256": ""}

    def begin(self, inputs: dict[str, Any]) -> None:
        """For the search of these inputs.

        Raises:
            OutputError: a trial of another search is there, or something that cannot be read.
        """
        text = json.dumps(inputs, sort_keys=True)
        self._search["inputs_sha256"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        leases.sweep(self.path)  # what a run has left that was killed as it wrote
        self.read()

    def keep(self, trial: Trial, drawn: Mapping[str, Any]) -> None:
        with staged_file(self.path, overwrite=True) as stage:
            write_json(stage, {**self._search, "trial": trial.to_json(), "drawn": dict(drawn)})

    def read(self, known: Collection[str] | None = None) -> tuple[Trial, dict[str, Any]] | None:
        """The trial and what Optuna drew for it, or None where none waits.

        Args:
            known: names of the settings that are searched. Default: not compared.

        Raises:
            OutputError: it is of another search, or cannot be read. It stays.
        """
        if not self.path.exists():
            return None
        try:
            kept = read_json(self.path)
            trial, drawn = Trial.from_json(kept["trial"]), dict(kept["drawn"])
            search = {name: kept[name] for name in self._search}
        except (CheckpointError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(
                f"{self.path} should hold a trial that was not sent, and cannot be read ({error}): move it away, and "
                "the trial is done again"
            ) from error
        if search != self._search or not (known is None or set(drawn) <= set(known)):
            raise OutputError(
                f"{self.path} holds trial {trial.number} of another search ('{search['study']}'), which could not be "
                "sent: start that search once more with its own line, move the file away, or choose another output"
            )
        return trial, drawn

    def sent(self) -> None:
        self.path.unlink(missing_ok=True)
