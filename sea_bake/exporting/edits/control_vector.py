"""Control vectors as GGUF, of repeng and llama.cpp: h + a v behind a layer.

``direction.N`` is added to the output of decoder layer N, counted from 0: repeng's ControlModel and llama.cpp's
``--control-vector`` agree on that, so a file means the same to both. (llama.cpp cannot reach layer 0. Its own generator
writes what it has seen behind layer N as ``direction.N+1``: the applier decides what a file does.)
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError
from sea_bake.exporting.edits.found import Asked, Format, Found, check_family
from sea_bake.exporting.edits.reading import Given
from sea_bake.exporting.gguf.header import GgufFile
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site

ARCHITECTURE = "controlvector"
_NAME = re.compile(r"direction\.(\d{1,6})")


def opened(path: Path) -> GgufFile:
    """The header of a control vector. Raises EditError for a GGUF of something else."""
    file = GgufFile.open(path)
    if file.architecture != ARCHITECTURE:
        raise EditError(
            f"{path} is a GGUF of a {file.architecture}, not a control vector (general.architecture = {ARCHITECTURE}). "
            "A model is a base: sea-bake bake MODEL EDIT; a LoRA is imported from its PEFT folder."
        )
    return file


def directions(file: GgufFile, dims: int = 1) -> dict[int, Tensor]:
    """N -> ``direction.N``, float64 [d]; with ``dims`` 2 also [k, d].

    Raises:
        EditError: none, one of another shape, two widths, NaN.
    """
    found: dict[int, Tensor] = {}
    for name, tensor in file.tensors.items():
        if not name.startswith("direction."):
            continue
        match = _NAME.fullmatch(name)
        if match is None or len(tensor.shape) > dims:
            raise EditError(f"{file.path}: {name} {tensor.shape} is no direction of a layer")
        rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
        values = torch.from_numpy(file.rows(tensor, 0, rows)).double()
        if not bool(torch.isfinite(values).all()):
            raise EditError(f"{file.path}: {name} holds NaN or infinity")
        if int(match[1]) in found:
            raise EditError(f"{file.path} has two directions for layer {int(match[1])}")
        found[int(match[1])] = values if dims == 2 else values[0]
    if not found:
        raise EditError(f"{file.path} holds no tensor direction.N: it is an empty control vector")
    return found


def _sees(given: Given) -> bool:
    return given.all_are("gguf") and not any("dspark.mode" in opened(path).keys for path in given.paths)


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    file = opened(given.one(FORMAT.title))
    hint = file.keys.get("controlvector.model_hint")
    check_family(hint, base, str(file.path))
    maps = {layer: AffineMap(constant=v) for layer, v in directions(file).items()}
    return Found(maps, asked.site or Site.BLOCK, facts={"model_hint": hint} if isinstance(hint, str) else {})


FORMAT = Format("control-vector", "control vector (GGUF)", "control-vector", _sees, _read)
