"""Which files a verdict was given on: their SHA-256, so that a changed artefact is known as such."""

from __future__ import annotations

import os
from pathlib import Path

from sea_bake.artefact.names import LATER
from sea_bake.io.files import file_digest

# What no runtime reads may come and go: papers for people, and what is measured later.
_PAPERS = ("README", "LICENSE", "LICENCE", "NOTICE")
_PICTURES = {".md", ".html", ".png", ".jpg", ".jpeg", ".svg", ".pdf"}


def seal(folder: str | Path) -> dict[str, str]:
    """Path inside an artefact -> SHA-256, of every file that decides what it answers.

    All bytes are read (once per process): sizes and headers would not show a changed weight.
    """
    return {name: file_digest(Path(folder) / name) for name in files(folder) if matters(name)}


def broken(folder: str | Path, sealed: dict[str, str]) -> list[str]:
    """What has become of an artefact since it was sealed: "config.json was changed", ...; empty when nothing has."""
    now = seal(folder)
    changes = {name: "was added" for name in now.keys() - sealed.keys()}
    changes |= {name: "is gone" for name in sealed.keys() - now.keys()}
    changes |= {name: "was changed" for name in now.keys() & sealed.keys() if now[name] != sealed[name]}
    return [f"{name} {change}" for name, change in sorted(changes.items())]


def files(folder: str | Path) -> list[str]:
    """Paths of all files inside a folder, sorted, with forward slashes; hidden ones and caches left out, and what is no
    file: a pipe would be read for ever.
    """
    found: list[Path] = []
    for here, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__"]
        found += [Path(here) / name for name in names if not name.startswith(".")]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def matters(name: str) -> bool:
    """Whether a file of an artefact is under its seal."""
    last = name.rpartition("/")[2]
    return not (last.upper().startswith(_PAPERS) or Path(last).suffix.lower() in _PICTURES or name in LATER)
