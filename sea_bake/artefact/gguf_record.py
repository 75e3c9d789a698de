"""The record of a GGUF that sea_bake wrote: beside the file, whose own keys stay the base's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.io.pairs import speaking
from sea_bake.io.typed import build

FORMAT = "sea_bake.gguf"
VERSION = 1


def record_of(file: Path) -> Path:
    """Where the record of a GGUF lies: model.gguf.sea.json beside model.gguf."""
    return file.with_name(f"{file.name}.sea.json")


def is_record(path: Path) -> bool:
    """Whether an export to GGUF has written this file."""
    try:
        return read_json(path).get("format") == FORMAT
    except CheckpointError:
        return False


@dataclass(frozen=True)
class GgufRecord:
    """What an export to GGUF wrote.

    Attributes:
        route: "rewritten" (the base's GGUF), "adapter", "control-vector", or "converted" (by llama.cpp).
        base: the base model as the artefact or the edits name it.
        gguf: file name of the base's GGUF; None where none was given.
        architecture: as llama.cpp calls it.
        edits: site, merge and layers of each.
        changed: tensor -> what became of it. Rewritten: its types ("from", "type"), ‖W' - W‖ / ‖W‖ ("change"), and the
            new type's own rounding, ‖Q(W') - W'‖ / ‖W'‖ ("rounding"), and the share of the edit that is left ("kept").
            Of an adapter: the shapes of its pair. Of a control vector: the vector's length.
        types: of the whole file: name of a type -> number of tensors.
        notes: what to know: types that could not be kept, weights that could not be compared.
        weights_compared: tensors whose samples were held against the edits' fingerprint.
        rank: of an adapter.
        bytes_written: size of the file.
        sha256: of the file.
        parts_sha256: of parts of it (:func:`sea_bake.exporting.gguf.layout.parts_digest`), by which it is known again
            when it is opened; "" in a record that an older release wrote.
        gguf_parts_sha256: the same of the base's GGUF; "" where none was given.
        fingerprint: where none was given: the base that the edits were fitted on, as they know it again.
        prompt_format: how prompts are rendered, as all edits say; None where they say nothing, or differ.
        output: the file; not in the record.
    """

    route: str
    base: str
    gguf: str | None
    architecture: str
    edits: list[dict[str, Any]]
    changed: dict[str, dict[str, Any]]
    types: dict[str, int]
    notes: list[str] = field(default_factory=list)
    weights_compared: int = 0
    rank: int | None = None
    bytes_written: int = 0
    sha256: str = ""
    parts_sha256: str = ""
    gguf_parts_sha256: str = ""
    fingerprint: dict[str, Any] | None = None
    prompt_format: dict[str, Any] | None = None
    output: Path = Path()

    @property
    def how(self) -> str:
        return self.route

    @property
    def revision(self) -> None:
        """A GGUF names no commit."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GgufRecord:
        """Raises ValueError for what no export leaves behind."""
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ValueError(f"it is no {FORMAT} of version {VERSION}")
        return build(cls, {key: value for key, value in data.items() if key != "output"})

    def content(self) -> dict[str, Any]:
        """What stands in the record."""
        data = {"format": FORMAT, "version": VERSION, **self.to_json()}
        del data["output"]  # this machine's business
        return data

    @classmethod
    def read(cls, file: Path) -> GgufRecord:
        """The record of a file. Raises CheckpointError where it is missing or damaged."""
        path = record_of(file)
        try:
            return cls.from_json(speaking(read_json(path), file))
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
