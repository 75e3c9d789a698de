"""What a bake did, and the two files of ours that every artefact carries in ``sea/``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json, write_json
from sea_bake.model.source import ModelSource

if TYPE_CHECKING:
    from sea_bake.baking.open_base import OpenBase

RECORD = "sea/bake.json"  # what was done, for people and for ``inspect``
_EDIT = "sea/edit-{}.safetensors"  # the edits themselves, for ``verify``; in a folder, where no weight loader looks


@dataclass(frozen=True)
class BakeReport:
    """What a bake did.

    Attributes:
        output: the artefact's folder.
        how: "insert", "fold" or "adapter".
        why: why it was baked so, for people.
        base, revision: the base model as it is named in the artefact.
        architecture: the class that loads it.
        sites: edited site of each edit, in the order in which they act.
        layers: decoder layers that any of them edits.
        bytes_linked, bytes_written: sizes of what was hard-linked, and of what was really written.
        left_out: files of the base that were not carried over: weights in other forms, and code.
        coverage: for a fold, the changed tensors with their relative Frobenius change, and the writers left alone.
        details: what one way alone has to say, such as an adapter's rank or an approximation's error.
    """

    output: Path
    how: str
    why: str
    base: str
    revision: str | None
    architecture: str
    sites: list[str]
    layers: tuple[int, ...]
    bytes_linked: int = 0
    bytes_written: int = 0
    left_out: list[str] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, base: OpenBase, edits: Sequence[Edit], output: Path, *, how: str, why: str, **more: Any) -> BakeReport:
        """What all ways have to say alike; ``more`` are further fields, or others in their place."""
        alike: dict[str, Any] = {
            "base": base.source.name,
            "revision": base.source.revision,
            "architecture": base.architecture,
            "sites": [edit.site.value for edit in edits],
            "layers": layers_of(edits),
        }
        return cls(output=output, how=how, why=why, **(alike | more))

    @property
    def exact(self) -> bool:
        """Whether the artefact is the edit, and not a stand-in for it."""
        return "approximation" not in self.details

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}


def layers_of(edits: Sequence[Edit]) -> tuple[int, ...]:
    """Decoder layers that any of the edits edits, ascending."""
    return tuple(sorted({layer for edit in edits for layer in edit.layers}))


def record(stage: Path, report: BakeReport, edits: Sequence[Edit], **more: Any) -> None:
    """Leave the edits and the report inside an artefact that is being made."""
    (stage / RECORD).parent.mkdir(exist_ok=True)
    names = [_EDIT.format(i) for i in range(len(edits))]
    for edit, name in zip(edits, names):
        edit.save(stage / name)
    data = report.to_json() | {"edits": names, "sea_bake": version("sea-bake")} | more
    del data["output"], data["bytes_linked"], data["bytes_written"]  # this machine's business
    write_json(stage / RECORD, data)


def is_artefact(folder: str | Path) -> bool:
    """Whether sea_bake wrote this folder."""
    return (Path(folder) / RECORD).is_file()


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record of an artefact. Raises CheckpointError when it is not one of ours, or damaged."""
    folder = Path(folder)
    if not is_artefact(folder):
        raise CheckpointError(f"{folder} is not an artefact of sea_bake: it has no {RECORD}")
    return read_json(folder / RECORD)


def recorded_base(
    artefact: Path, data: dict[str, Any], base: str | Path | None = None, revision: str | None = None
) -> ModelSource:
    """The base of an artefact: the one given, or what its record ``data`` names: a folder beside it, or a Hub id.

    Raises:
        CheckpointError: the recorded one is nowhere.
    """
    if base is not None:
        return ModelSource.parse(base, revision)
    name = data.get("base")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{artefact / RECORD} is damaged: it names no base; say where it is with --base")
    if name.startswith("~") or ".." in Path(name).parts or Path(name).is_absolute():
        raise CheckpointError(
            f"{artefact / RECORD} is damaged: its base {name!r} is a path; say where it is with --base"
        )
    beside = artefact.parent / name
    if Path(name).name == name and os.path.exists(beside):
        return ModelSource.parse(beside)
    try:
        source = ModelSource.parse(name, revision or data.get("revision"))
        source.folder()
    except CheckpointError as error:
        raise CheckpointError(
            f"the base '{name}' is neither beside the artefact nor on the Hub: say where it is with --base ({error})"
        ) from error
    return source


def edit_files(folder: str | Path, data: dict[str, Any] | None = None) -> list[Path]:
    """The copies of the edits inside an artefact, in the order in which they act; ``data`` is an export's own record.

    Raises:
        CheckpointError: the record is damaged, or names files outside of its own folder.
    """
    names = (read_record(folder) if data is None else data).get("edits")
    if not isinstance(names, list) or names != [_EDIT.format(i) for i in range(len(names))] or not names:
        raise CheckpointError(f"the record in {Path(folder) / 'sea'} does not list the edits as sea_bake writes them")
    return [Path(folder) / name for name in names]
