"""Our own safetensors files (edits, saved activations): tensors, and one JSON header in the file's metadata."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sea_bake.errors import SeaBakeError
from sea_bake.io.staging import staged_file

_KEY = "sea_bake"


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    *,
    form: str,
    version: int,
    overwrite: bool,
) -> Path:
    """Write the file whole or not at all. Raises OutputError."""
    text = json.dumps({"format": form, "version": version, **header}, allow_nan=False)
    with staged_file(path, overwrite=overwrite) as stage:
        save_file({k: t.contiguous() for k, t in tensors.items()}, str(stage), metadata={_KEY: text})
    return Path(path)


def load(
    path: str | Path, *, form: str, version: int | tuple[int, ...], error: type[SeaBakeError]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file of the given form.

    Raises:
        error: it is missing, truncated, of another kind or format version.
    """
    tensors, header = _read(path, error)
    if header.get("format") != form:
        raise error(f"{path} holds '{header.get('format')}', not '{form}'")
    known = version if isinstance(version, tuple) else (version,)
    if header.get("version") not in known or isinstance(header["version"], bool):
        raise error(
            f"{path} has format version {header.get('version')}, and this sea_bake reads version "
            f"{' and '.join(map(str, known))}: make it again, or use a newer sea_bake"
        )
    return tensors, header


def whole(value: Any) -> int:
    """A header's integer. Raises TypeError: a number with a fraction, a truth value and a text are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r:.40}, which is no whole number")
    return value


def finite(value: Any) -> float:
    """A header's number. Raises TypeError, or ValueError for NaN and infinity, which no JSON file can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40}, which is no number")
    if not math.isfinite(value):
        raise ValueError(f"{value!r:.40}, which is no finite number")
    return float(value)


def _read(path: str | Path, error: type[SeaBakeError]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not os.path.isfile(path):  # which no name makes raise
        raise error(f"no such file: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if not isinstance(header, dict):
                raise error(f"{path} is a safetensors file, but not one of sea_bake's (no '{_KEY}' header)")
            # What cannot be written again (NaN, infinity, half a surrogate pair) would fail in the middle of a bake.
            json.dumps(header, allow_nan=False, ensure_ascii=False).encode("utf-8")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RecursionError) as reason:
        raise error(f"{path} cannot be read: it is truncated, damaged or no safetensors file ({reason})") from reason
