"""Demonstrations: prompts, each with an answer to move towards and one to move away from.

``load`` reads them from a file, a folder or the hub, or gives a set that comes with the package: ``builtin``, or one of
``BEHAVIOURS``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from sea_bake.demonstrations import behaviours, formats, readers
from sea_bake.demonstrations.behaviours import BEHAVIOURS
from sea_bake.demonstrations.formats import FORMATS, Format
from sea_bake.demonstrations.triple import MIN_TRIPLES, Demonstration, Loaded, digest
from sea_bake.errors import DemonstrationError
from sea_bake.io.files import file_digest

__all__ = [
    "BEHAVIOURS",
    "FORMATS",
    "MIN_TRIPLES",
    "Demonstration",
    "Format",
    "Loaded",
    "builtin",
    "digest",
    "is_builtin",
    "load",
]


def builtin() -> Loaded:
    """The truthfulness set that ``fit`` takes by default, in its fixed order; "truthful" holds it, and more."""
    return load("builtin")


def is_builtin(source: object) -> bool:
    """Whether ``source`` is the name of a set that comes with the package. A Path never is."""
    return isinstance(source, str) and (source == "builtin" or source in BEHAVIOURS)


def load(
    source: str | Path,
    *,
    format: str = "auto",
    limit: int | None = None,
    shuffle_seed: int | None = None,
    split: str = "train",
    seed: int = 0,
) -> Loaded:
    """Read demonstrations, at least ``MIN_TRIPLES`` of them; how they were read is recorded in their ``origin``.

    Every row is read and checked, also those that ``limit`` leaves out: a damaged file is damaged at any limit.

    Args:
        source: "builtin", a built-in behaviour ("truthful", "fair", "calibrated", "concise", "formal",
            "non-sycophantic", "harmless-compliance", "code"), a .jsonl, .json, .csv or .tsv file, a folder, or a Hub
            data set (owner/name[:config]). The last two need the extra datasets. A built-in name wins over a path
            (write ./fair), a path that exists over a Hub id; a Path is always a path.
        format: "auto" (by the columns of the first row), "triples", "halueval_qa", "truthfulqa" or "bbq".
        limit: use only the first triples, this many, after shuffling. Default: all.
        shuffle_seed: shuffle the triples first, with this seed. Default: the order of the source.
        split: split of a data set, "train", "test" or "all" of a built-in behaviour; files and "builtin" have none.
        seed: draws one negative where a row offers several. A row's draw depends on its place in the source and on no
            other row.

    Raises:
        DemonstrationError: unknown format, limit below 1, a source or a row that cannot be read, too few rows.
        MissingExtraError: a folder or a hub id, and ``datasets`` is not installed.
    """
    formats.require(format)
    if limit is not None and limit < 1:
        raise DemonstrationError(f"limit is {limit}, and must be at least {MIN_TRIPLES}, or None for all.")
    if source == "builtin":
        with resources.as_file(resources.files(__name__) / "builtin.jsonl") as path:
            found = _convert(source, readers.rows(path), format, seed)
    elif is_builtin(source):
        found = _convert(source, behaviours.rows(str(source), split), format, seed)
    else:
        found = _convert(source, readers.rows(source, split), format, seed)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(found)
    chosen = found[:limit]
    if len(chosen) < MIN_TRIPLES:
        why = (
            f"limit={limit} leaves {len(chosen)} of {len(found)}"
            if len(found) >= MIN_TRIPLES
            else f"{len(found)} found"
        )
        raise DemonstrationError(
            f"{source}: a fit needs at least {MIN_TRIPLES} usable triples (SEA three), and gets better up to some "
            f"hundreds; {why}. "
            "Add demonstrations or raise the limit."
        )
    asked = {"format": format, "limit": limit, "shuffle_seed": shuffle_seed, "split": split, "seed": seed}
    return Loaded(chosen, _named(source) | asked)


def _named(source: str | Path) -> dict[str, Any]:
    """What a source is called wherever it lies, and of a file its digest: never a local path."""
    path = Path(source)
    if is_builtin(source):
        return {"kind": "builtin", "source": source, "file_sha256": None}
    if path.is_file():
        return {"kind": "file", "source": path.name, "file_sha256": file_digest(path)}
    if path.is_dir():
        return {"kind": "folder", "source": path.absolute().name, "file_sha256": None}
    return {"kind": "hub", "source": str(source), "file_sha256": None}


def _convert(source: str | Path, rows: Iterable[readers.Placed], format: str, seed: int) -> list[Demonstration]:
    chosen: Format | None = None
    found: list[Demonstration] = []
    for index, (where, row) in enumerate(rows):
        if chosen is None:
            chosen = formats.pick(format, row.keys(), where)
        found.append(chosen.convert(row, where, random.Random(f"{seed}:{index}")))
    if not found:
        raise DemonstrationError(
            f"{source}: it is empty: no rows. Write one demonstration a line; see the format 'triples'."
        )
    return found
