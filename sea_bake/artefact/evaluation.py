"""What an evaluation found: the differences with their intervals, gain and damage alike.

``to_json`` is the file ``evaluation.json``, which an artefact holds a copy of, for its model card::

    {"format": "sea_bake.evaluation", "version": 1,
     "model": {"base", "revision", "edited", "how", "edits"},
     "settings": {...}, "versions": {...},
     "results": [{"task", "dataset": {"type": Hub id, "name", "split"}, "metric": {"type", "name"},
                  "value", "base", "interval": [low, high] of value - base, "better": "higher" | "lower",
                  "judged": whether a change of it alone is for the better or the worse,
                  "kind": "gain" | "damage", "n", "p", "test", "unit", "part", "changed",
                  "value_interval", "base_interval"}, ...],
     "breakdown": [the same by category and condition],
     "harness": {task: {door: {leaf: {"acc,none": ..., "num_fewshot", "requests", "truncated", "tokens_cut"}}}},
     "samples": [{"prompt", "base", "edited"}, ...],
     "remarks": [text, ...],
     "date": "2026-01-31"}

Shares are between 0 and 1. Without an edited model "value" is the base's, and "base" and "interval" are null.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from sea_bake.edit import Edit
from sea_bake.edit.measured import Estimate
from sea_bake.io.store import finite, whole

FORMAT = "sea_bake.evaluation"
VERSION = 1
P = 0.05  # two-sided: below it a difference is told from chance, where its interval leaves 0 out too
KINDS = ("gain", "damage")
_BETTER = ("higher", "lower")
_UNITS = ("%", "nats", "words", "")
_SETTINGS = ("limit", "offset", "chat", "dtype")
_VERSIONS = ("lm-eval", "transformers", "torch", "sea-bake")
Record = dict[str, Any]  # one example of a task, as a door answered it


@dataclass(frozen=True)
class Paired:
    """One measure, on one door or on two.

    Attributes:
        n: examples.
        base: of the base.
        edited: of the other door; None where there is none.
        difference: edited - base, from the same resamples of the same examples; None where there is no other door.
        p, test: two-sided p-value of the paired test named; None where there is no other door.
        changed: examples on which the doors differ.
    """

    n: int
    base: Estimate
    edited: Estimate | None = None
    difference: Estimate | None = None
    p: float | None = None
    test: str | None = None
    changed: int | None = None

    @property
    def shown(self) -> bool:
        """Whether there is a difference: its interval leaves 0 out, and the paired test says the same."""
        found = self.difference
        return found is not None and not found.low <= 0 <= found.high and (self.p or 0.0) < P


@dataclass(frozen=True)
class Measure:
    """One number of a task.

    Attributes:
        key: short and stable, for programs.
        name: for people.
        better: "higher" or "lower".
        unit: "%" for shares (shown times 100), "nats", "words" or "".
        part: what part of the examples it looks at ("Age, ambiguous"); empty for all.
        detail: shown below the headlines.
        judged: whether a change of it alone is for the better or the worse.
    """

    key: str
    name: str
    better: str = field(default="higher", kw_only=True)
    unit: str = field(default="%", kw_only=True)
    part: str = field(default="", kw_only=True)
    detail: bool = field(default=False, kw_only=True)
    judged: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class Row:
    """One measure of one task, on the base and on the edited model.

    Attributes:
        task: its name.
        kind: "gain" (what the edit is for) or "damage" (what it should leave alone).
        dataset: "type" (Hub id) and "name" (for people); may have "split".
    """

    task: str
    kind: str
    measure: Measure
    found: Paired
    dataset: dict[str, str]

    @property
    def title(self) -> str:
        return self.dataset["name"]

    def to_json(self) -> dict[str, Any]:
        edited, found = self.found.edited or self.found.base, self.found
        both = found.edited is not None
        return {
            "task": self.task,
            "dataset": self.dataset,
            "metric": {"type": self.measure.key, "name": self.measure.name},
            "value": edited.value,
            "base": found.base.value if both else None,
            "interval": found.difference.interval if found.difference else None,
            "better": self.measure.better,
            "judged": self.measure.judged,
            "kind": self.kind,
            "n": found.n,
            "p": found.p,
            "test": found.test,
            "unit": self.measure.unit,
            "part": self.measure.part,
            "changed": found.changed,
            "value_interval": edited.interval,
            "base_interval": found.base.interval if both else None,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], *, detail: bool = False) -> Row:
        """Raises KeyError, TypeError, ValueError or AttributeError."""
        better, kind, unit = entry["better"], entry["kind"], entry["unit"]
        if better not in _BETTER or kind not in KINDS or unit not in _UNITS:
            raise ValueError(f"a measure: better is {better!r}, kind is {kind!r}, unit is {unit!r}")
        metric, dataset = entry["metric"], {str(k): str(v) for k, v in entry["dataset"].items() if v is not None}
        measure = Measure(
            str(metric["type"]), str(metric["name"]), better=better, unit=unit, part=str(entry["part"]),
            detail=detail, judged=bool(entry.get("judged", True)),
        )  # fmt: skip
        value = Estimate.of(entry["value"], entry["value_interval"])
        if entry["base"] is None:
            found = Paired(whole(entry["n"]), value)
        else:
            base = Estimate.of(entry["base"], entry["base_interval"])
            difference = Estimate.of(value.value - base.value, entry["interval"])
            tested = (finite(entry["p"]), str(entry["test"]), whole(entry["changed"]))
            found = Paired(whole(entry["n"]), base, value, difference, *tested)
        return cls(
            str(entry["task"]), kind, measure, found, {"type": dataset["type"], "name": dataset["name"], **dataset}
        )


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        model: names of base and edited model, and the edits' settings.
        rows: every measure; the headlines are those without ``measure.detail``.
        harness: task -> door -> the harness' own figures.
        samples: neutral prompts with the greedy answer of each door.
        settings, versions: what it was measured with.
        records: task -> door -> all examples; not part of ``to_json``.
        remarks: what was said to people while it was measured: batches that were halved.
        files: the artefact's files that it was measured on, path -> SHA-256; in the copy inside an artefact only.
        date: the day on which it ended, "2026-01-31"; "" where that is not recorded.
    """

    model: dict[str, Any]
    rows: list[Row]
    harness: dict[str, dict[str, Any]]
    samples: list[dict[str, str]]
    settings: dict[str, Any]
    versions: dict[str, str]
    records: dict[str, dict[str, list[Record]]] = field(repr=False, default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    files: dict[str, str] = field(repr=False, default_factory=dict)
    date: str = ""

    @property
    def headlines(self) -> list[Row]:
        return [row for row in self.rows if not row.measure.detail]

    def row(self, task: str, key: str) -> Row:
        """One measure. Raises KeyError."""
        return {(row.task, row.measure.key): row for row in self.rows}[task, key]

    def is_of(self, edits: Sequence[Edit]) -> bool:
        """Whether just these edits were measured, in this order."""
        return [edit["sha256"] for edit in self.model["edits"]] == [edit_digest(edit) for edit in edits]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "settings": self.settings,
            "versions": self.versions,
            "results": [row.to_json() for row in self.headlines],
            "breakdown": [row.to_json() for row in self.rows if row.measure.detail],
            "harness": self.harness,
            "samples": self.samples,
            "remarks": self.remarks,
            **({"date": self.date} if self.date else {}),
            **({"files": self.files} if self.files else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Without the examples. Raises ValueError for what no evaluation leaves behind; the message names it."""
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ValueError(f"it is no {FORMAT} of version {VERSION}")
        try:
            return cls._read(data)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"it lacks or garbles {error}") from error

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> Evaluation:
        model = dict(data["model"])
        alone = model["how"] is None
        if not all(isinstance(model[key], str) for key in (("base",) if alone else ("base", "edited", "how"))):
            raise TypeError("the names of its models")
        if not all(isinstance(edit["sha256"], str) for edit in model["edits"]):
            raise TypeError("the digests of its edits")
        rows = [Row.from_json(entry) for entry in data["results"]]
        rows += [Row.from_json(entry, detail=True) for entry in data["breakdown"]]
        doors = ("prompt", "base") if alone else ("prompt", "base", "edited")
        return cls(
            model=model,
            rows=rows,
            harness=dict(data["harness"]),
            samples=[{key: str(sample[key]) for key in doors} for sample in data["samples"]],
            settings={**data["settings"], **{key: data["settings"][key] for key in _SETTINGS}},
            versions={**data["versions"], **{key: str(data["versions"][key]) for key in _VERSIONS}},
            remarks=[str(text) for text in data["remarks"]],
            files={str(name): str(digest) for name, digest in (data.get("files") or {}).items()},
            date=str(date.fromisoformat(data["date"])) if data.get("date") else "",
        )


def edit_digest(edit: Edit) -> str:
    """SHA-256 of all that decides what an edit does to an activation."""
    digest = hashlib.sha256(f"{edit.site.value} {edit.merge} {edit.feature} {edit.parts} {edit.alpha}".encode())
    for layer in edit.layers:
        for name, tensor in edit.seen[layer].parts.items():
            named = "" if name in ("positive", "negative") else f"{name} "
            digest.update(f"{named}{layer} {tuple(tensor.shape)}".encode() + np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()
