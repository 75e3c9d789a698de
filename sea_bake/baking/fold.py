"""Fold: the edit disappears into its writers, and a plain checkpoint of the base's own architecture comes out.

W <- M W and c <- M c + b (of the heads W <- W M and c <- W b + c), in float32 for half precisions and float64 for the
others, rounded once: the products are ``linear.Change``. Shards without a writer are linked; the others are copied, and
their writers edited in place.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sea_bake.artefact.output import staged
from sea_bake.artefact.record import BakeRecord, layers_of
from sea_bake.baking.linear import Change, changes
from sea_bake.baking.open_base import OpenBase
from sea_bake.baking.planning import refuse_fold
from sea_bake.baking.shift_test import measure
from sea_bake.baking.writers import Writer, find_writers, writers_of
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError
from sea_bake.io import progress
from sea_bake.io.files import read_json, write_json
from sea_bake.io.staging import need_space
from sea_bake.model.anatomy import Site
from sea_bake.model.checkpoint import carry, place
from sea_bake.model.checkpoint.editing import edit_in_place
from sea_bake.model.checkpoint.extended import ExtendedCheckpoint, index_with, renamed_shards
from sea_bake.model.checkpoint.ranges import copy_but
from sea_bake.model.checkpoint.reader import INDEX, LazyTensor
from sea_bake.model.checkpoint.writer import keep_tokenizer_class, linkable, public_bytes

_OWN_BYTES = 8 << 20


def fold(
    base: OpenBase, edits: Sequence[Edit], target: Path, *, why: str, overwrite: bool = False, copy: bool = False
) -> BakeRecord:
    """Write the base with the edits folded into its output projections; see :func:`sea_bake.baking.bake`.

    Raises:
        NotExactError: an edit that does not fold exactly, by its settings or as measured.
    """
    refuse_fold(base, edits)
    find_writers(base, edits)  # whole and editable, before anything is measured
    details = {"measured": measure(base, edits)}
    return write_folded(base, edits, changes(edits), target, why=why, details=details, overwrite=overwrite, copy=copy)


def write_folded(
    base: OpenBase,
    edits: Sequence[Edit],
    by_writer: Mapping[tuple[Site, int], Change],
    target: Path,
    *,
    why: str,
    details: dict[str, Any],
    overwrite: bool,
    copy: bool,
) -> BakeRecord:
    """Write the base with its writers changed.

    Args:
        by_writer: (site, layer) -> what becomes of its writers.
        details: goes into the record.
    """
    checkpoint, folder = base.checkpoint, base.checkpoint.folder
    writers = [w for w in find_writers(base, edits) if _change(w, by_writer).moves(is_bias=w.is_bias)]
    extended = checkpoint if isinstance(checkpoint, ExtendedCheckpoint) else None
    own = extended.shard if extended and extended.zeros else ""
    names = renamed_shards(checkpoint, own) if own else {shard: shard for shard in checkpoint.shards}
    touched = {checkpoint.weight_map[writer.name] for writer in writers}
    rewritten = sum((folder / shard).stat().st_size for shard in touched - {own})
    linked = not copy and linkable(folder, target.parent)
    edit_bytes = sum(t.numel() * 4 for e in edits for one in e.maps.values() for t in one.parts.values())
    need_space(target.parent, (rewritten if linked else checkpoint.size()) + edit_bytes + _OWN_BYTES)
    changed: dict[str, float] = {}
    linked_bytes = 0
    with staged(target, overwrite=overwrite) as stage, progress.bar("fold", len(writers), "tensor") as advance:
        for shard in checkpoint.shards:
            if shard not in touched:
                if place(folder / shard, stage / names[shard], copy=copy):
                    linked_bytes += (stage / names[shard]).stat().st_size
                continue
            own_tensors = [checkpoint.tensor(w.name) for w in writers if checkpoint.weight_map[w.name] == shard]
            spans = [(t.offset, t.offset + t.nbytes) for t in own_tensors if t is not None]
            copy_but((folder / shard).resolve(), stage / names[shard], spans)
        placed = extended.write_zeros(stage) if extended and own else {}
        for writer in sorted(writers, key=lambda w: checkpoint.weight_map[w.name]):
            tensor = placed.get(writer.name) or checkpoint.tensor(writer.name)
            assert tensor is not None
            shard = checkpoint.weight_map[writer.name]
            change = _change(writer, by_writer)
            changed[writer.name] = _edit(base, writer, tensor, change, stage / names.get(shard, shard))
            advance(1)
        (stage / "config.json").write_bytes(public_bytes(folder / "config.json", checkpoint.config))
        index = [INDEX] if own or checkpoint.index is not None else []
        if own:
            write_json(stage / INDEX, index_with(checkpoint, names, own, placed))
        elif index:
            shutil.copyfile(folder / INDEX, stage / INDEX)
        left_out = carry(folder, stage, written=["config.json", *index], shards=checkpoint.shards)
        if extended:
            keep_tokenizer_class(stage, _was(folder))
        coverage = _coverage(base, edits, writers, changed, by_writer)
        if _was(folder) != checkpoint.config.get("model_type"):
            details = {**details, "rewritten": {"from": _was(folder), "as": checkpoint.config["model_type"]}}
        facts = {"why": why, "left_out": left_out, "coverage": coverage, "details": details}
        return base.record(edits, target, how="fold", **facts).write(stage, edits, linked=linked_bytes)


def _was(folder: Path) -> str:
    """The family of the base, which its fold may be another of."""
    return str(read_json(folder / "config.json").get("model_type"))


def _change(writer: Writer, by_writer: Mapping[tuple[Site, int], Change]) -> Change:
    """What becomes of one tensor."""
    change = by_writer[writer.site, writer.layer]
    return change.without_constant if writer.is_bias and not writer.holds else change


def _edit(base: OpenBase, writer: Writer, tensor: LazyTensor, change: Change, shard: Path) -> float:
    if not writer.is_bias:
        whole = change.before is not None
        return edit_in_place(shard, writer.name, tensor, change.of_weight, writer.axis, whole=whole)

    def weight() -> Tensor:
        of_it = next(w for w in writers_of(base, writer.site, writer.layer) if w.bias == writer.name)
        read = base.checkpoint.tensor(of_it.name)
        assert read is not None
        return read.read() if of_it.axis == -2 else read.read().T

    return edit_in_place(shard, writer.name, tensor, lambda bias: change.of_bias(bias, weight), writer.axis)


def _coverage(
    base: OpenBase,
    edits: Sequence[Edit],
    writers: Sequence[Writer],
    changed: dict[str, float],
    by_writer: Mapping[tuple[Site, int], Change],
) -> dict[str, Any]:
    """What changed, by how much (relative Frobenius), and which writers of the edited layers did not.

    Raises:
        CheckpointError: a writer that had to change did not.
    """
    # A product may leave a bias alone, which may be 0; a constant may not.
    expected = [w for w in writers if not w.is_bias or _change(w, by_writer).constant]
    idle = [w.name for w in expected if not changed.get(w.name)]
    if idle:
        raise CheckpointError(
            f"the edit leaves {len(idle)} of {len(expected)} writers as they are ({idle[0]}, ...): it is too weak for "
            "the dtype of this checkpoint. Nothing was written."
        )
    edited = set(by_writer)
    having = {site: base.layers_with(site) for site in (Site.ATTN, Site.MLP)}
    others = [
        writer.name
        for layer in layers_of(edits)
        for site in having
        if (site, layer) not in edited and layer in having[site]
        for writer in writers_of(base, site, layer)
    ]
    checkpoint = base.checkpoint
    coverage: dict[str, Any] = {"changed": changed, "unchanged_writers": others}
    if isinstance(checkpoint, ExtendedCheckpoint) and checkpoint.zeros:
        coverage["granted"] = {"keys": list(checkpoint.keys), "tensors": sorted(checkpoint.zeros)}
    return coverage
