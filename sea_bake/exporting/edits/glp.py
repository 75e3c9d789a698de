"""GGUF Layer Projection: h - a (h.d) d behind a layer, in the container of control vectors.

``direction.N`` is a unit vector that belongs to the output of decoder layer N, counted from 0. ``dspark.mode`` says
what is done with it: "project", or "add" as in a plain control vector; whoever adds a direction that was to be
projected out pushes every token along it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError, WrongModelError
from sea_bake.exporting.edits.control_vector import directions, opened
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given
from sea_bake.exporting.gguf.header import GgufFile
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site

HOOK = "residual_stream_post_layer"
_COMMIT = re.compile("[0-9a-f]{40}")
_UNIT = 1e-3  # how far a row may be from a unit vector, and two rows from a right angle


def _sees(given: Given) -> bool:
    return given.all_are("gguf") and all("dspark.mode" in opened(path).keys for path in given.paths)


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    file = opened(given.one(FORMAT.title))
    keys = file.keys
    _check(file, base)
    found = directions(file, dims=2)
    _check_layers(file, found)
    rank = keys.get("dspark.rank", 1)
    if any(len(rows) != rank for rows in found.values()):
        raise EditError(f"{file.path} says that it has {rank!r} directions per layer (dspark.rank), and has others")
    if keys["dspark.mode"] == "project":
        maps = {layer: _projected(rows, f"{file.path}: direction.{layer}") for layer, rows in found.items()}
    else:
        maps = {layer: AffineMap(constant=rows.sum(0)) for layer, rows in found.items()}
    alpha = keys.get("dspark.alpha_default", 1.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise EditError(f"{file.path}: dspark.alpha_default is {alpha!r}, not a number")
    return Found(maps, Site.BLOCK, alpha=float(alpha), facts=_facts(keys))


def _check(file: GgufFile, base: OpenBase) -> None:
    keys = file.keys
    for key, known in (
        ("dspark.mode", ("project", "add")),
        ("dspark.spec_version", (1, None)),
        ("dspark.hook_point", (HOOK, None)),
    ):
        if keys.get(key) not in known or isinstance(keys.get(key), bool):
            raise EditError(
                f"{file.path}: {key} is {keys.get(key)!r}, and known is {known[0]!r} alone: it is not guessed"
            )
    named, ours = keys.get("general.base_model.0.version"), base.source.revision
    commits = isinstance(named, str) and isinstance(ours, str) and all(map(_COMMIT.fullmatch, (named, ours)))
    if commits and named != ours:
        raise WrongModelError(
            f"{file.path} belongs to commit {named} of its base, and this is {ours}: give that one (--revision {named})"
        )
    stated = keys.get("dspark.content_sha256")
    if isinstance(stated, str) and stated.lower() not in _digests(file):
        raise EditError(f"{file.path} was changed since it was written: its directions are not those of its own digest")


def _check_layers(file: GgufFile, found: dict[int, Tensor]) -> None:
    stated = file.keys.get("dspark.layer_ids_zero_based")
    if not isinstance(stated, str):
        return
    layers = sorted(int(part) for part in stated.replace(" ", "").split(",") if part.isdigit() and len(part) < 7)
    if layers != sorted(found):
        raise EditError(
            f"{file.path} says that it is for the layers {stated[:100]} (dspark.layer_ids_zero_based), and its tensors "
            f"are direction.{min(found)} to direction.{max(found)}: whoever wrote it counted one of the two otherwise"
        )


def _digests(file: GgufFile) -> set[str]:
    """SHA-256 over the bytes of all tensors, in the order of the file and in that of their layers."""
    ways = (list(file.tensors.values()), sorted(file.tensors.values(), key=lambda t: (len(t.name), t.name)))
    found = set()
    with open(file.path, "rb") as stream:
        for way in ways:
            digest = hashlib.sha256()
            for tensor in way:
                stream.seek(tensor.start)
                digest.update(stream.read(tensor.size))
            found.add(digest.hexdigest())
    return found


def _projected(rows: Tensor, where: str) -> AffineMap:
    gram = rows @ rows.T
    if len(rows) > rows.shape[1] or bool(((gram - torch.eye(len(rows), dtype=gram.dtype)).abs() > _UNIT).any()):
        raise EditError(
            f"{where} is no unit vector (or its rows are not orthonormal): what is projected out is not clear"
        )
    basis = torch.linalg.qr(rows.T).Q.T
    return AffineMap(A=basis, B=-basis.T)


def _facts(keys: dict[str, Any]) -> dict[str, Any]:
    wanted = ("dspark.mode", "dspark.method", "dspark.contrast", "general.base_model.0.name",
              "general.base_model.0.version")  # fmt: skip
    return {key: value for key in wanted if isinstance(value := keys.get(key), str)}


FORMAT = Format("glp", "GGUF Layer Projection", "ablation", _sees, _read)
