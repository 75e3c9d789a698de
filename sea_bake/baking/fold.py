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
from sea_bake.io.staging import need_space
from sea_bake.model.anatomy import Site
from sea_bake.model.checkpoint import carry, place
from sea_bake.model.checkpoint.editing import edit_in_place
from sea_bake.model.checkpoint.reader import INDEX
from sea_bake.model.checkpoint.writer import linkable, public_bytes

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
    writers = find_writers(base, edits)
    touched = {checkpoint.weight_map[writer.name] for writer in writers}
    rewritten = sum((folder / shard).stat().st_size for shard in touched)
    linked = not copy and linkable(folder, target.parent)
    edit_bytes = sum(t.numel() * 4 for e in edits for one in e.maps.values() for t in one.parts.values())
    need_space(target.parent, (rewritten if linked else checkpoint.size()) + edit_bytes + _OWN_BYTES)
    changed: dict[str, float] = {}
    linked_bytes = 0
    with staged(target, overwrite=overwrite) as stage, progress.bar("fold", len(writers), "tensor") as advance:
        for shard in checkpoint.shards:
            if shard not in touched:
                if place(folder / shard, stage / shard, copy=copy):
                    linked_bytes += (stage / shard).stat().st_size
                continue
            shutil.copyfile((folder / shard).resolve(), stage / shard)
            for writer in (w for w in writers if checkpoint.weight_map[w.name] == shard):
                change = by_writer[writer.site, writer.layer]
                changed[writer.name] = _edit(base, writer, change, stage / shard)
                advance(1)
        index = [INDEX] if checkpoint.index is not None else []
        (stage / "config.json").write_bytes(public_bytes(folder / "config.json", checkpoint.config))
        for name in index:
            shutil.copyfile(folder / name, stage / name)
        left_out = carry(folder, stage, written=["config.json", *index], shards=checkpoint.shards)
        coverage = _coverage(base, edits, writers, changed, by_writer)
        facts = {"why": why, "left_out": left_out, "coverage": coverage, "details": details}
        return base.record(edits, target, how="fold", **facts).write(stage, edits, linked=linked_bytes)


def _edit(base: OpenBase, writer: Writer, change: Change, shard: Path) -> float:
    tensor = base.checkpoint.tensor(writer.name)
    assert tensor is not None
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
    places = [(writer, by_writer[writer.site, writer.layer]) for writer in writers]
    # A product may leave a bias alone, which may be 0; a constant may not.
    expected = [w for w, change in places if (change.constant if w.is_bias else not change.is_identity)]
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
    return {"changed": changed, "unchanged_writers": others}
