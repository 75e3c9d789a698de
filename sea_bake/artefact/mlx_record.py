"""The record of an adapter in mlx-lm's form: inside the folder, beside what mlx-lm reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sea_bake.artefact.names import EXPORT
from sea_bake.artefact.record import portable
from sea_bake.io.files import write_json


@dataclass(frozen=True)
class MlxRecord:
    """What an export to mlx-lm wrote.

    Attributes:
        base, revision: the base model as the adapter names it.
        model_type: of the base.
        rank: one for all modules.
        num_layers: how many of the last layers mlx-lm gives LoRA modules.
        modules: paths of the adapted modules, as mlx-lm and transformers both have them.
        edits: site, merge and layers of each.
        files: name -> bytes.
        sea_bake: the version that made it.
        output: the folder; not in the file.
    """

    base: str
    revision: str | None
    model_type: str
    rank: int
    num_layers: int
    modules: list[str]
    edits: list[dict[str, Any]]
    files: dict[str, int] = field(default_factory=dict)
    sea_bake: str = field(default_factory=lambda: version("sea-bake"))
    output: Path = Path()

    def to_json(self) -> dict[str, Any]:
        return {"format": "mlx", **asdict(self), "output": str(self.output)}

    def write(self, stage: Path) -> None:
        """Leave the record inside a folder that is being made."""
        (stage / EXPORT).parent.mkdir(exist_ok=True)
        write_json(stage / EXPORT, portable(self.to_json()))
