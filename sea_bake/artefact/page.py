"""The page that ``sea-bake report --write`` leaves in an artefact, and what it was written of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sea_bake.artefact.names import PAGE, PAGE_NUMBERS
from sea_bake.io.files import write_json
from sea_bake.io.pairs import staged_pair
from sea_bake.io.typed import build

FORMAT = "sea_bake.report"
VERSION = 1


@dataclass(frozen=True)
class PageRecord:
    """The numbers behind a page, and what it was written of.

    Attributes:
        sea_bake: the version that wrote it.
        name: of the edit file or artefact.
        verdict: "verified", "approximate" or "NOT verified"; None of an edit alone.
        edits: what the page shows of each edit.
        evaluation: the measures that it shows, as ``evaluation.json`` has them; None where there were none.
        samples: answers side by side.
        page_sha256: of the page.
        files: the artefact's files when it was written, path -> SHA-256; empty outside of an artefact.
        evaluation_sha256: of the evaluation inside the artefact then.
    """

    page_sha256: str
    sea_bake: str = ""
    name: str = ""
    verdict: str | None = None
    edits: list[Any] = field(default_factory=list)
    evaluation: list[Any] | None = None
    samples: list[Any] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    evaluation_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        inside = ("files", "evaluation_sha256")
        return data if self.files else {key: value for key, value in data.items() if key not in inside}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PageRecord:
        """Raises ValueError for what ``report`` would not write."""
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ValueError(f"it is no {FORMAT} of version {VERSION}")
        return build(cls, data)

    def write(self, stage: Path) -> None:
        """Leave it beside the page, in a folder that is being made."""
        (stage / PAGE_NUMBERS).parent.mkdir(exist_ok=True)
        write_json(stage / PAGE_NUMBERS, self.to_json())


def write_page(folder: Path, html: str, numbers: PageRecord) -> Path:
    """Leave a page inside an artefact, and what it was written of, which agree at every moment. Raises OutputError."""
    path, record = folder / PAGE, folder / PAGE_NUMBERS
    with staged_pair(path, record, overwrite=True, digest="page_sha256") as (stage, describe):
        stage.write_text(html, "utf-8")
        describe(numbers.to_json())
    return path
