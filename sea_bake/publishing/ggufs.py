"""Quantised GGUFs beside a published fold, each with what it keeps of the model and of the edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sea_bake.artefact import Artefact
from sea_bake.errors import CheckpointError, PublishError, SettingError, need
from sea_bake.exporting.gguf import export_gguf
from sea_bake.exporting.gguf.quantising import Reference, check_architecture, check_kinds, quantise_gguf
from sea_bake.io.llama_cpp import HOME, find_converter, quantiser
from sea_bake.io.staging import need_space
from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.loading import load_tokenizer
from sea_bake.model.source import ModelSource
from sea_bake.pages.markdown import code
from sea_bake.pages.text import size
from sea_bake.publishing.contents import Item
from sea_bake.publishing.secrets import leak

HEAD = ["file", "size", "mean KL from the float model", "same top-1", "of the edit", "cosine with the edit's change"]


def check_gguf(artefact: Artefact, kinds: Sequence[str]) -> ModelSource:
    """The base, after all that can be said before anything is converted.

    Raises:
        PublishError: it is no fold, which alone llama.cpp's converter reads; or its base is not to be had.
        SettingError: an unknown type, or no quantiser or converter here.
        FamilyError: an architecture that the quantiser does not know.
        MissingExtraError: the extra "gguf" is not installed.
    """
    check_kinds(kinds)
    if artefact.kind != "fold":
        raise PublishError(f"--gguf is for a fold, and this is {artefact.kind}: bake with --how fold, or drop --gguf")
    need("gguf", "Publishing a GGUF", "gguf")
    quantiser()
    try:
        find_converter(None)
    except SettingError as error:
        cure = f"git clone https://github.com/ggml-org/llama.cpp, and name the folder in {HOME}"
        raise SettingError(f"a fold becomes a GGUF by llama.cpp's own converter, which is not here: {cure}") from error
    try:
        base = artefact.base_source()
        base.folder()
    except CheckpointError as error:
        raise PublishError(
            f"what a quantised copy keeps is measured against the base '{artefact.record.base}', which is neither "
            "beside the artefact nor on the Hub: put it there, or drop --gguf"
        ) from error
    check_architecture(artefact.edits[0].base.model_type)
    return base


def quantised(
    artefact: Artefact, base: ModelSource, kinds: Sequence[str], name: str, folder: Path
) -> tuple[list[Item], list[list[Any]]]:
    """Make the files in a folder that is there for it; what to publish, and the rows of the card's table.

    Raises:
        PublishError: the fold answers as its base does, or something in a file is secret.
        CheckpointError: llama.cpp cannot convert or quantise it.
        OutputError: the disk is too small.
    """
    _check_room(artefact.folder, folder, len(kinds))
    edited = ModelSource.parse(artefact.folder)
    try:
        reference = Reference(base, edited, load_tokenizer(edited))  # before the long work: is there an edit at all?
    except CheckpointError as error:
        raise PublishError(f"{error}: bake the edit again, or drop --gguf") from error
    whole = export_gguf(artefact.folder, folder / f"{name}-f32.gguf", outtype="f32").output
    files = [folder / f"{name}-{kind.upper()}.gguf" for kind in kinds]
    for kind, file in zip(kinds, files):
        quantise_gguf(whole, file, kind)
    items, rows = [], []
    for file in files:
        one = reference.measure(file)
        item = Item.of(file.name, file)
        what = leak(item.path, item.source, artefact)
        if what:
            raise PublishError(f"{item.path} holds {what}, which everybody could read: take it out of the artefact")
        shares = [f"{one.mean_kl:.2e}", f"{100 * one.top1:.1f} %", f"{100 * one.edit:.0f} %", f"{one.cosine:.3f}"]
        items.append(item)
        rows.append([code(file.name), size(item.size), *shares])
    return items, rows


def _check_room(source: Path, folder: Path, copies: int) -> None:
    """For the float file, and for copies of at most 8.5 bits of its 32."""
    weights = Checkpoint.open(source)
    tensors = [weights.tensor(name) for name in weights.weight_map]
    floats = sum(4 * math.prod(tensor.shape) for tensor in tensors if tensor is not None)
    cure = "move the artefact, with its base beside it, to another disk, or drop --gguf"
    need_space(folder, floats + copies * floats // 3, cure=cure)
