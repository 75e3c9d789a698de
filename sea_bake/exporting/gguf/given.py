"""What can be exported, told before any weight is read: an artefact of ours, edits by themselves, or a plain folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sea_bake.artefact import Artefact, BakeRecord, is_artefact
from sea_bake.baking.exactness import Exactness, of_edit
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, NotExactError, SettingError
from sea_bake.exporting.gguf.names import CONVERTER_CURE, GgufWriter
from sea_bake.model.anatomy import Family, Site
from sea_bake.model.checkpoint import Checkpoint

Given = Edit | str | Path


@dataclass(frozen=True)
class Exportable:
    """What is about to be exported.

    Attributes:
        how: "fold", "adapter", "edit" (edit files, without a checkpoint), or "unedited".
        folder: of the artefact or of the unedited checkpoint.
        edits: in the order in which they act.
        record: the artefact's own record of its bake.
    """

    how: str
    folder: Path | None = None
    edits: list[Edit] = field(default_factory=list)
    record: BakeRecord | None = None

    @property
    def base(self) -> str:
        """The base model as it is named in the artefact, or in the edits."""
        if self.edits:
            return self.record.base if self.record else self.edits[0].base.name
        return self.folder.name if self.folder else ""

    @property
    def exact(self) -> bool:
        return self.record is None or self.record.approximation is None


def exportable(given: Given | Sequence[Given], *, unedited: bool = False) -> Exportable:
    """Open an artefact's folder, or the files of edits.

    Raises:
        CheckpointError: a folder that is no artefact (or, unedited, is one), an export, or an artefact with inserted
            layers.
        EditError: a file that is no edit.
        SettingError: nothing given, or a folder among edits.
    """
    parts = [given] if isinstance(given, Edit | str | Path) else list(given)
    if not parts:
        raise SettingError("there is nothing to export: name an artefact's folder or an edit file")
    folders = [Path(os.path.expanduser(p)).absolute() for p in parts if not isinstance(p, Edit) and os.path.isdir(p)]
    if not folders and not unedited:
        return Exportable("edit", edits=[p if isinstance(p, Edit) else Edit.load(p) for p in parts])
    if len(folders) != 1 or len(parts) != 1:
        raise SettingError("name one folder (an artefact holds its edits itself), or edit files alone")
    folder = folders[0]
    if unedited:
        if is_artefact(folder):
            raise CheckpointError(f"{folder} is not unedited: sea_bake wrote it. Drop --unedited.")
        Checkpoint.open(folder)
        return Exportable("unedited", folder)
    if not is_artefact(folder):
        raise CheckpointError(
            f"{folder} is not an artefact of sea_bake: bake an edit first (sea-bake bake BASE EDIT --how fold), or "
            "convert the base itself with --unedited"
        )
    opened = Artefact.open(folder)
    if opened.kind == "insert":
        raise CheckpointError(
            f"{folder} has inserted layers, and llama.cpp runs no code of a model's own. Where sea-bake plan says that "
            "the edit folds, bake it with --how fold (or adapter) and export that; else take another runtime (sea-bake "
            "export onnx), or bake the best linear stand-in with --approximate and convert that folder (--converter)."
        )
    if opened.kind not in ("fold", "adapter"):
        raise CheckpointError(f"{opened.file or folder} is an export already: give the artefact that it was made from")
    return Exportable(opened.kind, folder, opened.edits, opened.bake)


def refuse_inexact(source: Exportable, row: Family, writers: Sequence[GgufWriter] = (), *, adapter: bool) -> None:
    """Raise NotExactError unless the edits fold exactly (or, as an adapter, are of low rank too).

    Args:
        writers: where they are known, a bias among them counts.
    """
    if not source.exact:
        raise NotExactError(
            f"{source.folder} is a linear stand-in of its edit, whose matrix it does not hold, so the base's GGUF "
            f"cannot be rewritten with it. {CONVERTER_CURE.replace('Bake a fold of it and let', 'Let')}."
        )
    for edit in source.edits:
        site = edit.site.written_by
        own = [w for w in writers if w.is_bias and w.site is site and w.layer in edit.layers]
        held = not writers or set(edit.layers) <= {w.layer for w in own}
        found = of_edit(row, edit, biased=bool(own), holder="" if held else None)
        if not found.fold:
            raise NotExactError(_refusal(edit, row, found))
        if adapter and not found.adapter:
            raise NotExactError(
                f"no LoRA carries this edit: site {edit.site.value}, merge {edit.merge}, parts {edit.parts}, family "
                f"{row.model_type}: {found.why}. Rewrite the base's GGUF instead: --base, without --lora."
            )


def _refusal(edit: Edit, row: Family, found: Exactness) -> str:
    if edit.site is Site.BLOCK and edit.is_constant:
        cure = "It runs beside the base as a control vector: sea-bake export control-vector EDIT -o OUT.gguf."
    elif edit.site is Site.BLOCK or "constant" in edit.extra:  # which has no linear stand-in
        cure = "It runs as inserted layers only: bake --how insert, and transformers, vLLM or ONNX run it."
    else:
        cure = "Bake the best linear stand-in (bake --approximate) and let llama.cpp convert that folder (--converter)."
        cure += " Or fit a linear edit with --merge sum." if edit.feature == "identity" else ""
    return (
        f"no weight of a GGUF carries this edit exactly: site {edit.site.value}, merge {edit.merge}, feature "
        f"{edit.feature}, family {row.model_type}: {found.why}. {cure}"
    )
