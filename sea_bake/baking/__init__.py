"""Bake edits into a checkpoint: one function, and a visible table of the ways it can be done."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sea_bake.artefact.output import check_folder
from sea_bake.artefact.record import BakeRecord
from sea_bake.baking.granting import granted
from sea_bake.baking.open_base import check_edits, opened
from sea_bake.baking.planning import Plan, choose, plan
from sea_bake.baking.unbake import RestoredBase, unbake
from sea_bake.demonstrations import Demonstration
from sea_bake.edit import Edit
from sea_bake.errors import SettingError
from sea_bake.io.apart import check_apart
from sea_bake.model.source import ModelSource

# Each in a module of its own: an insert does not wait for what the others compute with.
WAYS = {
    "insert": "sea_bake.baking.insert:insert",
    "fold": "sea_bake.baking.fold:fold",
    "adapter": "sea_bake.baking.adapter:adapter",
}
ARCHITECTURES = ("llama",)  # what a base of another family can be rewritten as

__all__ = ["ARCHITECTURES", "WAYS", "BakeRecord", "Plan", "RestoredBase", "bake", "plan", "unbake", "way"]


def bake(
    model: str | Path | ModelSource,
    edit: Edit | str | Path | Sequence[Edit | str | Path],
    output: str | Path,
    *,
    how: str = "auto",
    revision: str | None = None,
    overwrite: bool = False,
    copy: bool = False,
    approximate: bool = False,
    calibration: str | Path | Sequence[Demonstration] | None = None,
    rank: int | None = None,
    architecture: str | None = None,
) -> BakeRecord:
    """Write an edited checkpoint; the model is never loaded, but for an approximate fold.

    Args:
        model: the base: folder, .gguf file or Hub id; or a PEFT LoRA that names its base, merged into it first.
        edit: edit file from sea-bake fit (in Python also an Edit); several act in the order given.
        output: folder to write; it appears whole or not at all.
        how: "auto": fold where that is exact, else insert. "fold": into the output projections, a plain checkpoint.
            "adapter": the fold as a PEFT LoRA. "insert": an SEALayer behind each edited module; exact for every edit,
            loads with custom code. (sea-bake plan says which are exact, and why.)
        revision: see :func:`sea_bake.model.loading.load_model`.
        overwrite: replace an earlier output.
        copy: copy unedited shards instead of hard-linking them to the base's files.
        approximate: fold also where that is not exact, as the best linear stand-in. Loads the model, runs calibration
            texts, and states the error; verify then says approximate, never equal.
        calibration: demonstrations to run for an approximate fold. Default: the built-in ones.
        rank: rank of an approximate fold, per layer. Default: twice the edit's own, at least 8.
        architecture: "llama": fold a Qwen2 or a Mistral into the Llama that it is exactly, which can hold constants in
            biases. Default: the base's own.

    Raises:
        EditError: an edit that changes nothing.
        NotExactError: a fold or an adapter was asked for, and it would not be exact.
        SeaBakeError: a child of it, before anything is written where that is possible.
    """
    check_settings(how=how, approximate=approximate, calibration=calibration, rank=rank, architecture=architecture)
    source = ModelSource.parse(model, revision)
    given = [edit] if isinstance(edit, Edit | str | Path) else list(edit)
    edits = [e if isinstance(e, Edit) else Edit.load(e) for e in given]
    if not edits:
        raise SettingError("there is no edit to bake: name at least one edit file")
    for one in edits:
        one.refuse_nothing("its bake would be the base: fit another one")
    target = check_folder(output, overwrite=overwrite)
    check_apart(target, [source.path, calibration, *given])
    with opened(source, target) as base:
        check_edits(base, edits)
        if architecture is not None:
            from sea_bake.baking.as_llama import as_llama

            base = as_llama(base)
        if approximate:
            from sea_bake.baking.approximate import approximate as fold_approximately
            from sea_bake.baking.loadable import check_plain

            base = granted(base, edits)
            check_plain(base)
            return fold_approximately(
                base, edits, target, calibration=calibration, rank=rank, overwrite=overwrite, copy=copy
            )
        why = "asked for"
        if how == "auto":
            how, why = choose(base, edits)
            how = how if architecture is None else "fold"  # which says why not
        base = granted(base, edits) if how == "fold" else base
        why += "".join(f"; {remark}, and the output does not name it" for remark in base.remarks())
        if how != "insert":
            from sea_bake.baking.loadable import check_plain

            check_plain(base)
        return way(how)(base, edits, target, why=why, overwrite=overwrite, copy=copy)


def way(how: str) -> Any:
    """The function of a way to bake."""
    module, _, name = WAYS[how].partition(":")
    return getattr(importlib.import_module(module), name)


def check_settings(
    *, how: str, approximate: bool, calibration: object, rank: int | None, architecture: str | None
) -> None:
    """Raise SettingError for what no edit and no base could make right."""
    if architecture is not None and architecture not in ARCHITECTURES:
        raise SettingError(
            f"unknown architecture {architecture!r}: a base can be rewritten as {', '.join(ARCHITECTURES)}"
        )
    if architecture is not None and how not in ("auto", "fold"):
        raise SettingError(
            f"--as {architecture} rewrites the base, which goes with how='fold' (--how fold), not {how!r}"
        )
    if how != "auto" and how not in WAYS:
        raise SettingError(f"unknown way to bake {how!r}: use one of auto, {', '.join(WAYS)}")
    if approximate and how not in ("auto", "fold"):
        raise SettingError(f"approximate goes with how='fold' (--how fold), not {how!r}")
    if not approximate and (calibration is not None or rank is not None):
        raise SettingError("calibration texts and a rank are for an approximate fold alone: ask for it (--approximate)")
