"""The one look at the held-back data: chosen edit, untuned default and base on the same examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sea_bake.artefact.evaluation import Record
from sea_bake.edit import Edit
from sea_bake.evaluation import Judge, Row
from sea_bake.evaluation.damage import NEUTRAL
from sea_bake.io import progress
from sea_bake.tuning.results import CHOSEN_BASE, CHOSEN_DEFAULT, DEFAULT_BASE


def compare(judge: Judge, edits: Mapping[str, Edit], repeated: Collection[int] = ()) -> dict[str, list[Row]]:
    """Comparison -> every measure with its paired difference.

    Args:
        edits: "chosen", and "default" where there is one.
        repeated: places of rows that do not count.
    """
    found = {"base": judge.base}
    with progress.bar("held-back data", len(edits) * judge.count, "answer") as advance:
        for name, edit in edits.items():
            found[name] = judge(edit, advance)
    kept = {name: _without(records, repeated) for name, records in found.items()}
    pairs = {CHOSEN_DEFAULT: ("chosen", "default"), CHOSEN_BASE: ("chosen", "base"), DEFAULT_BASE: ("default", "base")}
    return {
        name: judge.rows(kept[one], against=kept[other])
        for name, (one, other) in pairs.items()
        if one in kept and other in kept
    }


def _without(found: dict[str, list[Record]], repeated: Collection[int]) -> dict[str, list[Record]]:
    return {
        unit: records if unit == NEUTRAL else [record for record in records if record["id"] not in repeated]
        for unit, records in found.items()
    }
