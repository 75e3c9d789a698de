"""Our own safetensors files (edits, saved activations): tensors, and one JSON header in the file's metadata."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sea_bake.errors import SeaBakeError
from sea_bake.io.staging import staged_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_KEY = "sea_bake"


def save(
    path: str | Path,
    tensors: Mapping[str, Any],
    header: Mapping[str, Any],
    *,
    form: str,
    version: int,
    overwrite: bool,
) -> Path:
    """Write the file whole or not at all; its tensors are all of torch, or all of NumPy. Raises OutputError."""
    text = json.dumps({"format": form, "version": version, **header}, allow_nan=False)
    with staged_file(path, overwrite=overwrite) as stage:
        write_tensors(tensors, stage, {_KEY: text})
    return Path(path)


def load(
    path: str | Path, *, form: str, version: int | tuple[int, ...], error: type[SeaBakeError]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file of the given form.

    Raises:
        error: it is missing, truncated, of another kind or format version.
    """
    return _read(path, form, version, error, "pt")


def load_arrays(
    path: str | Path, *, form: str, version: int | tuple[int, ...], error: type[SeaBakeError]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """The same of a file of float32 tensors alone, in NumPy. Raises error for another dtype, too."""
    return _read(path, form, version, error, "np")


def write_tensors(tensors: Mapping[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file; the same bytes of tensors of torch and of NumPy."""
    if any(hasattr(one, "contiguous") for one in tensors.values()):
        from safetensors.torch import save_file

        save_file({k: t.contiguous() for k, t in tensors.items()}, str(path), metadata=metadata)
    else:
        from safetensors.numpy import save_file as save_arrays

        save_arrays(dict(tensors), str(path), metadata=metadata)


def _check(
    header: dict[str, Any], path: str | Path, form: str, version: int | tuple[int, ...], error: type[SeaBakeError]
) -> None:
    if header.get("format") != form:
        raise error(f"{path} holds '{header.get('format')}', not '{form}'")
    known = version if isinstance(version, tuple) else (version,)
    if header.get("version") not in known or isinstance(header["version"], bool):
        raise error(
            f"{path} has format version {header.get('version')}, and this sea_bake reads version "
            f"{' and '.join(map(str, known))}: make it again, or use a newer sea_bake"
        )


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


def _read(
    path: str | Path, form: str, version: int | tuple[int, ...], error: type[SeaBakeError], framework: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    if not os.path.isfile(path):  # which no name makes raise
        raise error(f"no such file: {path}")
    try:
        with safe_open(str(path), framework=framework) as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if not isinstance(header, dict):
                raise error(f"{path} is a safetensors file, but not one of sea_bake's (no '{_KEY}' header)")
            # What cannot be written again (NaN, infinity, half a surrogate pair) would fail in the middle of a bake.
            json.dumps(header, allow_nan=False, ensure_ascii=False).encode("utf-8")
            names = list(file.keys())
            odd = [n for n in names if framework == "np" and file.get_slice(n).get_dtype() != "F32"]
            tensors = {} if odd else {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RecursionError) as reason:
        raise error(f"{path} cannot be read: it is truncated, damaged or no safetensors file ({reason})") from reason
    _check(header, path, form, version, error)
    if odd:
        raise error(f"{path}: {odd[0]} is not float32, as every tensor of an edit")
    return tensors, header
