"""What no model has in its configuration, numbers and dtypes: refused before a skeleton of that size is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json

# Far above every public model (some 130 layers, 512 experts, 300,000 tokens), far below what a machine cannot hold.
_MOST_PARTS = 20_000
_MOST = 1 << 32
_COUNTS = ("layer", "expert", "block")
_DTYPES = ("dtype", "torch_dtype")


def check_numbers(folder: Path) -> None:
    """Raise CheckpointError where config.json names more layers, experts or dimensions than any model can have, or a
    number as its dtype.

    The first costs its reader minutes and gigabytes before a word is said; the second is taken by transformers, and
    written again as another one that it does not take. Other impossible values are refused by transformers, as errors
    of ours.
    """
    path = folder / "config.json"
    if path.is_file():
        _check(read_json(path), "", path)


def _check(value: Any, name: str, path: Path) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _DTYPES and inner is not None and not isinstance(inner, str):
                raise CheckpointError(
                    f"{path}: {key} is {str(inner)[:40]!r}, which is no dtype: write the name of one (float32, "
                    "bfloat16 or float16), or download the file again"
                )
            _check(inner, f"{name}.{key}" if name else key, path)
    elif isinstance(value, list):
        _refuse_over(len(value), _MOST_PARTS, f"{name} is a list of {len(value):,} entries", path)
        for inner in value:
            _check(inner, name, path)
    elif isinstance(value, int):
        last = name.rpartition(".")[2]
        counts = any(part in last for part in _COUNTS) and last.startswith(("n", "decoder", "encoder"))
        _refuse_over(abs(value), _MOST_PARTS if counts else _MOST, f"{name} is {str(value)[:40]}", path)


def _refuse_over(value: int, most: int, what: str, path: Path) -> None:
    if value > most:
        raise CheckpointError(f"{path}: {what}, which no model has: correct that entry, or download the file again")
