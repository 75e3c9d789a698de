"""Bake edits into a checkpoint: one function, and a visible table of the ways it can be done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sea_bake.baking.adapter import adapter
from sea_bake.baking.fold import fold
from sea_bake.baking.insert import insert
from sea_bake.baking.opening import check_edits, opened
from sea_bake.baking.planning import Plan, choose, plan
from sea_bake.baking.report import BakeReport
from sea_bake.edit import Edit
from sea_bake.errors import SettingError
from sea_bake.source import ModelSource
from sea_bake.staging import check_output

WAYS = {"insert": insert, "fold": fold, "adapter": adapter}

__all__ = ["WAYS", "BakeReport", "Plan", "bake", "plan"]


def bake(
    model: str | Path | ModelSource,
    edit: Edit | str | Path | Sequence[Edit | str | Path],
    output: str | Path,
    *,
    how: str = "auto",
    revision: str | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> BakeReport:
    """Write an edited checkpoint; the model is never loaded.

    Args:
        model: folder, .gguf file or Hub id of the base.
        edit: an Edit, or the file of one; or several, which act in this order.
        output: folder to write; it appears whole or not at all.
        how: "auto" folds where that is exact and inserts elsewhere; or a key of ``WAYS``. "insert": an SEALayer behind
            each edited module; exact for every edit; needs ``trust_remote_code=True`` to load. "fold": the edit
            disappears into the output projections; a plain checkpoint. "adapter": the fold as a PEFT LoRA.
        overwrite: replace an earlier artefact of ours at ``output``.
        copy: copy unedited shards instead of hard-linking them.

    Raises:
        NotExactError: a fold or an adapter was asked for, and it would not be exact.
        SeaBakeError: a child of it, before anything is written where that is possible.
    """
    if how != "auto" and how not in WAYS:
        raise SettingError(f"unknown way to bake {how!r}: use one of auto, {', '.join(WAYS)}")
    source = model if isinstance(model, ModelSource) else ModelSource.parse(model, revision)
    given = [edit] if isinstance(edit, Edit | str | Path) else list(edit)
    edits = [e if isinstance(e, Edit) else Edit.load(e) for e in given]
    if not edits:
        raise SettingError("there is no edit to bake: name at least one edit file")
    target = check_output(output, overwrite=overwrite, folder=True)
    with opened(source, target) as base:
        check_edits(base, edits)
        why = "asked for"
        if how == "auto":
            how, why = choose(base, edits)
        return WAYS[how](base, edits, target, why=why, overwrite=overwrite, copy=copy)
