"""Measured gain and damage of an artefact, as ``sea/evaluation.json`` holds them: for the card and its metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_bake.errors import PublishError
from sea_bake.io.files import read_json

EVALUATION = "sea/evaluation.json"
FORMAT = "sea_bake.evaluation"
VERSION = 1


@dataclass(frozen=True)
class Result:
    """One metric on one data set, of the artefact and of its base.

    Attributes:
        dataset: "type" (Hub id) and "name" for people; may have "config", "split" and "revision".
        metric: "type" (id) and "name" for people.
        value, base: of the artefact, and of its base.
        interval: 95 % confidence interval of value - base; None where it is not known.
        better: "higher" or "lower".
        kind: "gain" (what the edit is for) or "damage" (what it should leave alone).
        n: examples.
    """

    dataset: dict[str, str]
    metric: dict[str, str]
    value: float
    base: float
    interval: tuple[float, float] | None = None
    better: str = "higher"
    kind: str = "damage"
    n: int | None = None

    @property
    def change(self) -> str:
        """ "+0.021 [+0.004, +0.037]", never a bare verdict."""
        text = f"{self.value - self.base:+.4g}"
        return text if self.interval is None else f"{text} [{self.interval[0]:+.4g}, {self.interval[1]:+.4g}]"


def read_results(folder: Path, sealed: dict[str, str] | None) -> list[Result]:
    """The results inside an artefact; none when it has not been evaluated.

    Args:
        sealed: files that the verification was given on. Results that name other files belong to something else.

    Raises:
        PublishError: the file does not follow the schema, or speaks of another state of the artefact.

    The schema is that of :mod:`sea_bake.evaluation.results`.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return []
    data = read_json(path)
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise PublishError(f"{path} is no {FORMAT} of version {VERSION}: evaluate again, or remove it")
    if sealed is not None and data.get("files") is not None and data["files"] != sealed:
        raise PublishError(f"{path} was measured on another state of the artefact: evaluate again, or remove it")
    try:
        return [_result(entry) for entry in data["results"] if not entry.get("part")]  # the parts are in the report
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PublishError(f"{path} does not follow its schema ({type(error).__name__}: {error})") from error


def _named(part: dict[str, Any]) -> dict[str, str]:
    return {"type": str(part["type"]), "name": str(part["name"])} | {
        k: str(v) for k, v in part.items() if v is not None
    }


def _result(entry: dict[str, Any]) -> Result:
    interval = entry.get("interval")
    low_high = None if interval is None else (float(interval[0]), float(interval[1]))
    found = Result(
        _named(entry["dataset"]),
        _named(entry["metric"]),
        float(entry["value"]),
        float(entry["base"]),
        low_high,
        entry.get("better", "higher"),
        entry.get("kind", "damage"),
        None if entry.get("n") is None else int(entry["n"]),
    )
    if found.better not in ("higher", "lower") or found.kind not in ("gain", "damage"):
        raise ValueError(f"better is {found.better!r}, kind is {found.kind!r}")
    if not all(abs(number) < float("inf") for number in (found.value, found.base, *(low_high or ()))):
        raise ValueError("a number that is not finite")
    return found
