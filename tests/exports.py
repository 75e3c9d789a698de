"""Tiny artefacts and their ONNX exports, each made once per run: two layers, since a trace takes its time by layers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import tiny


@functools.cache
def base(*, chat: bool = True) -> Path:
    return tiny.write_llama(tiny.root() / f"two-layers{'-chat' * chat}", chat=chat, num_hidden_layers=2)


def artefact(how: str = "insert", feature: str = "identity") -> Path:
    """An edit of both layers; what is folded has the merge "sum"."""
    return _artefact(how, feature)  # one key, however it was called


@functools.cache
def _artefact(how: str, feature: str) -> Path:
    from sea_bake import bake, fit

    output = tiny.root() / f"two-{how}-{feature}"
    merge = "sum" if how == "fold" else "l2"
    settings = tiny.PAPER | {"merge": merge, "feature": feature}
    edit = fit(base(), tiny.demonstrations(), layers="all", neutral="prompt", K=0.9, **settings)
    bake(base(), edit, output, how=how)
    return output


@functools.cache
def export(source: Path, name: str, **how: Any) -> Path:
    """Not to be changed: ``tiny.changeable`` copies it. Its base lies beside it."""
    from sea_bake.exporting.onnx import export_onnx

    return export_onnx(source, tiny.root() / f"{source.name}-{name}", **how).output


def plain() -> Path:
    """With its variants of 8 and 4 bits."""
    return export(artefact(), "onnx", quantize=("int8", "int4"))


def strong() -> Path:
    """With a strength whose default is 1."""
    return export(artefact(), "strength", strength=True)
