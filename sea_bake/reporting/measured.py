"""The evaluation that a report shows: read as ``sea-bake eval`` left it, never made anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sea_bake.artefact.seal import broken
from sea_bake.errors import CheckpointError, EvaluationError
from sea_bake.evaluation import INSIDE, Evaluation, Row
from sea_bake.evaluation.doors import edit_digest
from sea_bake.evaluation.keeping import REPORT
from sea_bake.evaluation.measures import Measure
from sea_bake.evaluation.results import FORMAT, VERSION
from sea_bake.evaluation.statistics import Comparison, Estimate
from sea_bake.io.files import read_json
from sea_bake.io.store import finite
from sea_bake.pages.html import readable
from sea_bake.reporting.subject import Subject

_UNITS = ("%", "nats", "")
_SETTINGS = ("limit", "offset", "chat", "dtype")
_VERSIONS = ("lm-eval", "transformers", "torch", "sea-bake")


def find(subject: Subject, given: str | Path | None) -> Evaluation | None:
    """The evaluation given (its folder, or its JSON), or the one inside the artefact; None where there is neither.

    Raises:
        EvaluationError: it cannot be read, is garbled, or speaks of other edits or another state of the artefact.
    """
    folder = subject.artefact.folder if subject.artefact else None
    inside = given is None
    if given is None:
        if folder is None or not (folder / INSIDE).is_file():
            return None
        path = folder / INSIDE
    else:
        path = Path(os.path.expanduser(given))
        path = path / REPORT if path.is_dir() else path
    if not path.is_file():
        raise EvaluationError(f"{path} is not there: give the folder that sea-bake eval -o wrote, or its {REPORT}")
    try:
        data = read_json(path)
    except CheckpointError as error:
        raise EvaluationError(f"{path} is no evaluation: {error}") from error
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise EvaluationError(f"{path} is no {FORMAT} of version {VERSION}: evaluate again with sea-bake eval")
    try:
        found = parse(data)
        edits = found.model["edits"]
        digests = [edit["sha256"] for edit in edits]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EvaluationError(f"{path} lacks or garbles {error}: evaluate again with sea-bake eval") from error
    if digests != [edit_digest(edit) for edit in subject.edits]:
        raise EvaluationError(f"{path} was measured on other edits than those of '{subject.name}': evaluate these")
    if inside and folder is not None and isinstance(data.get("files"), dict) and broken(folder, data["files"]):
        raise EvaluationError(f"{path} was measured on another state of the artefact: evaluate again, or remove it")
    return found


def parse(data: dict[str, Any]) -> Evaluation:
    """An evaluation out of its JSON, without the examples. Raises KeyError, TypeError, ValueError or AttributeError."""
    data = _readable(data)
    model = data["model"]
    if model["how"] is None:
        raise ValueError("the edited model: it measured the base alone")
    if not all(isinstance(model[key], str) for key in ("base", "edited", "how")):
        raise TypeError("the names of its models")
    settings = {key: data["settings"][key] for key in _SETTINGS}
    versions = {key: str(data["versions"][key]) for key in _VERSIONS}
    rows = [_row(entry, detail=False) for entry in data["results"]]
    rows += [_row(entry, detail=True) for entry in data["breakdown"]]
    samples = [{key: str(sample[key]) for key in ("prompt", "base", "edited")} for sample in data["samples"]]
    return Evaluation(model, rows, {}, samples, settings, versions, remarks=[str(text) for text in data["remarks"]])


def _row(entry: dict[str, Any], *, detail: bool) -> Row:
    better, kind, unit = entry["better"], entry["kind"], entry["unit"]
    if better not in ("higher", "lower") or kind not in ("gain", "damage") or unit not in _UNITS:
        raise ValueError(f"a measure: better is {better!r}, kind is {kind!r}, unit is {unit!r}")
    measure = Measure(
        str(entry["metric"]["type"]),
        str(entry["metric"]["name"]),
        lambda record: None,  # its examples are not read
        better=better,
        unit=unit,
        part=str(entry["part"]),
        detail=detail,
        judged=bool(entry.get("judged", True)),
    )
    base, edited = (_estimate(entry[key], entry[f"{key}_interval"]) for key in ("base", "value"))
    difference = _estimate(edited.value - base.value, entry["interval"])
    found = Comparison(
        int(entry["n"]), base, edited, difference, finite(entry["p"]), str(entry["test"]), int(entry["changed"])
    )
    return Row(str(entry["task"]), str(entry["dataset"]["name"]), kind, measure, found)


def _estimate(value: Any, interval: Any) -> Estimate:
    low, high = interval
    return Estimate(finite(value), finite(low), finite(high))


def _readable(value: Any) -> Any:
    """The same with every text in it cleaned: pictures hold some of them, and no picture can hold all characters."""
    if isinstance(value, dict):
        return {readable(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return readable(value) if isinstance(value, str) else value
