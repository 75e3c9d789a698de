"""The record of a web page that sea_bake wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sea_bake.artefact.names import EXPORT
from sea_bake.io.files import write_json
from sea_bake.io.typed import build

WEB = "web"
SIDES = ("base", "edited")


@dataclass(frozen=True)
class WebRecord:
    """What the page in this folder shows.

    Attributes:
        base, revision: the base model as the export names it.
        sides: "base" and "edited", or "edited" alone.
        sea_bake: the version that wrote it.
    """

    base: str
    sides: list[str]
    revision: str | None = None
    sea_bake: str = field(default_factory=lambda: version("sea-bake"))

    def to_json(self) -> dict[str, Any]:
        return {"format": WEB, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WebRecord:
        """Raises ValueError for what no page leaves behind."""
        if data.get("format") != WEB:
            raise ValueError(f"it is no record of a {WEB} page")
        record = build(cls, data)
        if not record.sides or not set(record.sides) <= set(SIDES):
            raise ValueError(f"sides is {record.sides!r}, not of {', '.join(SIDES)}")
        return record

    def write(self, stage: Path) -> None:
        """Leave the record inside a site that is being made."""
        (stage / EXPORT).parent.mkdir(exist_ok=True)
        write_json(stage / EXPORT, self.to_json())
