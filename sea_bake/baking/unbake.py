"""Unbake: the base again, from an artefact. An insert holds all of it; a fold has lost it and needs the base itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sea_bake.artefact import Artefact
from sea_bake.artefact.names import CODE, ORIGINALS, RECORD, SHARD, VERIFICATION
from sea_bake.artefact.output import check_folder, is_ours, staged
from sea_bake.artefact.record import BakeRecord
from sea_bake.baking.granting import with_key
from sea_bake.baking.open_base import OpenBase, check_edits, opened
from sea_bake.errors import CheckpointError, WrongModelError
from sea_bake.io import progress
from sea_bake.io.apart import check_apart
from sea_bake.io.files import file_digest
from sea_bake.io.staging import need_space
from sea_bake.model.checkpoint import Checkpoint, place
from sea_bake.model.checkpoint.reader import SINGLE
from sea_bake.model.checkpoint.writer import NAMED, NOT_CARRIED, linkable, public, public_bytes
from sea_bake.model.source import ModelSource

Stage = Callable[[], AbstractContextManager[Path]]
_OWN = {SHARD, CODE, VERIFICATION}  # what we put beside the base's files


@dataclass(frozen=True)
class RestoredBase:
    """A base that was given back.

    Attributes:
        output: the base's folder.
        how: how the artefact had been baked.
        base: the base's recorded name.
        proof: what is proven of the output, for people.
        hash_checked: files that were held against the base's own, bit for bit (SHA-256, or the very same file).
        left_out: files of the base that the artefact never held (weights in other forms, code) and that are lacking.
        bytes_linked, bytes_written: sizes of what was hard-linked, and of what was really written.
    """

    output: Path
    how: str
    base: str
    proof: str
    hash_checked: int
    left_out: list[str]
    bytes_linked: int
    bytes_written: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}


def unbake(
    artefact: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> RestoredBase:
    """Give back the base of an artefact.

    An insert is rebuilt from the artefact alone; with ``base`` each of its files is held against the base's. A fold is
    not invertible: its base is needed (``base``, or the recorded one), is proven to be the right one, and given back.

    Args:
        artefact: folder written by sea-bake bake.
        output: folder to write the base to; it appears whole or not at all.
        base: the base as it was given to bake: folder, .gguf file, adapter or Hub id. Of an insert, every file is then
            compared with it (SHA-256). Of a fold, it is needed. Default for a fold: what the artefact records (Hub id,
            or the folder beside it).
        revision: see :func:`sea_bake.model.loading.load_model`.
        overwrite: replace an earlier output.
        copy: copy weight files instead of hard-linking them.

    Raises:
        CheckpointError: no artefact of ours, a damaged one, an adapter, or a fold whose base cannot be found.
        WrongModelError: the given base is another one; the message names the first file or tensor that differs.
        OutputError: ``output`` exists, or lies inside the artefact.
    """
    opened_artefact = Artefact.open(artefact)
    folder = opened_artefact.folder
    if opened_artefact.kind == "adapter":
        raise CheckpointError(
            f"{folder.name} is an adapter: it changed nothing of its base, so there is nothing to undo. "
            "Load the base without it, or delete the folder."
        )
    if opened_artefact.kind not in ("insert", "fold"):
        raise CheckpointError(f"{opened_artefact.name} is an export: unbake the artefact that it was made from")
    alone = opened_artefact.kind == "insert" and base is None
    source = None if alone else opened_artefact.base_source(base, revision)

    def ours(there: Path) -> bool:
        return is_ours(there) or _is_earlier(there, opened_artefact, source)

    target = check_folder(output, overwrite=overwrite, ours=ours)
    check_apart(target, [folder, base])
    make = partial(staged, target, overwrite=overwrite, ours=ours)
    if source is None:
        return _rebuild(opened_artefact, None, target, make, copy)
    with opened(source, target) as given:
        if opened_artefact.kind == "fold":
            return _restore(opened_artefact, given, target, make, copy)
        return _rebuild(opened_artefact, given.checkpoint.folder, target, make, copy)


def _is_earlier(there: Path, artefact: Artefact, base: ModelSource | None) -> bool:
    """Whether a folder is what an unbake of this artefact gives: it carries no mark, but each of its files is known."""
    shards = {} if artefact.bake is None else artefact.bake.shards
    homes = [artefact.folder / ORIGINALS, artefact.folder, *([] if base is None else [base.folder()])]
    names = [*_files(there)]

    def known(name: str) -> bool:
        places = [artefact.folder / shards[name]] if name in shards else [home / name for home in homes]
        return any(place.is_file() and file_digest(there / name) == file_digest(place) for place in places)

    return (
        "config.json" in names
        and all(map(known, names))
        and set(os.listdir(there)) <= {Path(n).parts[0] for n in names}
    )


def _rebuild(artefact: Artefact, base: Path | None, target: Path, make: Stage, copy: bool) -> RestoredBase:
    """The base inside an insert: its shards under their old names, its own small files, nothing of ours."""
    folder, record = artefact.folder, _whole(artefact)
    shards, patched, left_out = record.shards, record.patched, record.left_out
    size = sum((folder / new).stat().st_size for new in shards.values())
    need_space(target.parent, (0 if not copy and linkable(folder, target.parent) else size) + (8 << 20))
    linked = 0
    with make() as stage:
        for old, new in shards.items():
            linked += _place(folder / new, stage / old, copy)
        for name in _files(folder):
            if name not in {*_OWN, *shards.values(), *patched}:
                _place(folder / name, stage / name, copy=True)
        for name in patched:
            if os.path.isfile(folder / ORIGINALS / name):
                _place(folder / ORIGINALS / name, stage / name, copy=True)
        if base is not None:
            for name in left_out:
                if os.path.isfile(base / name):
                    linked += _place(base / name, stage / name, copy)
        restored = Checkpoint.open(stage)
        if set(restored.shards) != set(shards):
            raise CheckpointError(f"{folder / RECORD} lists other shards than the base's own index: it is damaged")
        checked = 0 if base is None else _hold_against(stage, base)
        left_out = [name for name in left_out if not os.path.isfile(stage / name)]
        total = sum(f.stat().st_size for f in stage.rglob("*") if f.is_file())
    proof = (
        f"bit for bit the given base: {checked} files compared"
        if base is not None
        else "rebuilt from the artefact alone; give --base to have every file compared"
    )
    return RestoredBase(target, "insert", record.base, proof, checked, left_out, linked, total - linked)


def _whole(artefact: Artefact) -> BakeRecord:
    """The record of an insert whose files are all there. Raises CheckpointError."""
    folder, record = artefact.folder, artefact.record
    assert isinstance(record, BakeRecord)
    for new in record.shards.values():
        if not os.path.isfile(folder / new):  # which no name makes raise
            raise CheckpointError(f"{folder / new} is missing: the artefact is not whole")
    if not (folder / ORIGINALS / "config.json").is_file():
        raise CheckpointError(f"{folder / ORIGINALS / 'config.json'} is missing: the base's own is lost")
    if len(record.shards) > 1 and SINGLE in record.shards:
        raise CheckpointError(f"{folder / RECORD} is damaged: several shards, and one is called {SINGLE}")
    return record


def _hold_against(stage: Path, base: Path) -> int:
    """Compare two folders, file by file. Raises WrongModelError with the first that differs."""
    ours, theirs = set(_files(stage)), set(_files(base))
    with progress.bar("compare", len(ours | theirs), "file") as advance:
        for name in sorted(ours | theirs):
            if name not in theirs or name not in ours:
                where = "the base has no such file" if name in ours else "the artefact holds none of that name"
                raise WrongModelError(
                    f"the artefact is not the given base, edited: {name}: {where}; nothing was written"
                )
            a, b = stage / name, (base / name).resolve()
            if name in NAMED:
                same = a.read_bytes() == public_bytes(b)
            else:
                same = a.samefile(b) or (a.stat().st_size == b.stat().st_size and file_digest(a) == file_digest(b))
            if not same:
                raise WrongModelError(
                    f"the artefact is not the given base, edited: {name} differs from the base's. Nothing was "
                    "written. (Without --base it is rebuilt from what the artefact itself holds.)"
                )
            advance(1)
    return len(ours)


def _restore(artefact: Artefact, base: OpenBase, target: Path, make: Stage, copy: bool) -> RestoredBase:
    """The base of a fold, once it is proven to be the one that was folded into."""
    record = artefact.record
    assert isinstance(record, BakeRecord)
    changed, left_out = record.changed, record.left_out  # large files among these: linked, as shards are
    checkpoint, folder = base.checkpoint, base.checkpoint.folder
    try:
        check_edits(base, artefact.edits)
    except WrongModelError as error:
        raise WrongModelError(
            f"{base.source.name} is not the base of {artefact.name}: its weights are not those of "
            f"'{record.base}', into which the edit was folded"
        ) from error
    _prove_fold(artefact.folder, _as_folded(base, record).checkpoint, changed)
    need_space(target.parent, (0 if not copy and linkable(folder, target.parent) else checkpoint.size()) + (8 << 20))
    linked = 0
    with make() as stage:
        for name in _files(folder):
            linked += _place(folder / name, stage / name, copy or name not in {*checkpoint.shards, *left_out})
        total = sum(f.stat().st_size for f in stage.rglob("*") if f.is_file())
    count, differ = len(checkpoint.weight_map), sum(bool(changed.get(name)) for name in checkpoint.weight_map)
    granted = len(Checkpoint.open(artefact.folder).weight_map) - count
    listed = f"exactly the {differ} that the fold lists differ" if differ else "none differs"
    more = f", and the {granted} more that are there are the biases that it lists" if granted else ""
    proof = f"the base itself, proven to be the one: of its {count} tensors, {listed} from the artefact's{more}"
    return RestoredBase(target, "fold", record.base, proof, 0, [], linked, total - linked)


def _as_folded(base: OpenBase, record: BakeRecord) -> OpenBase:
    """The base as the fold saw it: under the configuration that grants what was needed, with biases of zeros."""
    if record.rewritten:
        from sea_bake.baking.as_llama import as_llama

        base = as_llama(base)
    for key in record.granted:
        text: Any = base.text
        if key in base.row.bias_keys and getattr(text, key, None) is False:
            base = with_key(base, key)
    return base


def _prove_fold(artefact: Path, base: Checkpoint, changed: dict[str, Any]) -> None:
    """The listed tensors differ from the base's, and no others. Raises WrongModelError."""
    folded = Checkpoint.open(artefact)
    strange = set(folded.weight_map) ^ set(base.weight_map) | set(changed) - set(base.weight_map)
    if strange or public(folded.config) != public(base.config):
        what = f"the tensor {min(strange)}" if strange else "config.json"
        raise WrongModelError(f"{base.folder} is not the base of {artefact.name}: {what} is not the same in both")
    with progress.bar("compare", len(base.weight_map), "tensor") as advance:
        for name in sorted(base.weight_map):
            advance(1)
            if changed.get(name) == 0:  # a bias of zeros, which the fold leaves as it is (or turns -0 into 0)
                continue
            shards = artefact / folded.weight_map[name], (base.folder / base.weight_map[name]).resolve()
            linked = shards[1].exists() and shards[0].samefile(shards[1])
            same = linked or _same(folded.tensor(name), base.tensor(name))
            if same == (name in changed):
                how = "is the same as in" if same else "differs from"
                listed = "and the fold lists it as changed" if same else "which the fold does not list"
                raise WrongModelError(
                    f"{base.folder} is not the base of {artefact.name}: {name} {how} the artefact's, {listed}"
                )


def _same(a: Any, b: Any) -> bool:
    """Bit for bit, also where both are NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    import torch

    left, right = (t.read().reshape(-1).view(torch.uint8) for t in (a, b))
    return bool(torch.equal(left, right))


def _files(folder: Path) -> Iterator[str]:
    """Every file of a checkpoint, as its name inside; not what git, caches and sea_bake keep there."""
    for where, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in NOT_CARRIED]
        yield from (str((Path(where) / name).relative_to(folder)) for name in files)


def _place(source: Path, target: Path, copy: bool) -> int:
    """Link a file, or copy it; its size where it was linked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.stat().st_size if place(source, target, copy=copy) else 0
