"""The evaluation that a report shows: read as ``sea-bake eval`` left it, never made anew."""

from __future__ import annotations

import os
from pathlib import Path

from sea_bake.artefact.evaluation import Evaluation
from sea_bake.artefact.trusted import read_evaluation
from sea_bake.errors import EvaluationError
from sea_bake.evaluation.keeping import REPORT
from sea_bake.reporting.subject import Subject


def find(subject: Subject, given: str | Path | None) -> Evaluation | None:
    """The evaluation given (its folder, or its JSON), or the one inside the artefact; None where there is neither.

    Raises:
        EvaluationError: it cannot be read, is garbled, or speaks of other edits or another state of the artefact.
    """
    if given is None:
        found = subject.artefact.evaluation if subject.artefact else None
        where = str(subject.name)
    else:
        path = Path(os.path.expanduser(given))
        path = path / REPORT if path.is_dir() else path
        if not path.is_file():
            raise EvaluationError(f"{path} is not there: give the folder that sea-bake eval -o wrote, or its {REPORT}")
        found, where = read_evaluation(path), str(path)
    if found is None:
        return None
    if found.model["how"] is None:
        raise EvaluationError(f"{where}: the evaluation measured the base alone: evaluate it with the edit")
    if not found.is_of(subject.edits):
        raise EvaluationError(f"{where} was measured on other edits than those of '{subject.name}': evaluate these")
    return found
