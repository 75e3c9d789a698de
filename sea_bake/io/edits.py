"""An edit by its name: a file here, or ``USER/REPO[@REVISION]`` on the Hub. Every edit is opened by what this says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sea_bake.errors import EditError
from sea_bake.io.hub import AbsentError, one_file

EDIT_FILE = "edit.safetensors"  # what an edit is called in its repository
MAX_BYTES = 1 << 30  # of an edit from the Hub: 80 layers, 8192 wide, of 200 directions each
_ON_THE_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*?)(?:@([^@\s]+))?")
_FILES = (".safetensors", ".gguf", ".pt", ".pth", ".bin", ".npz", ".npy", ".json", ".jsonl", ".svec")
ORIGIN = re.compile(r"\w[\w.-]*/\w[\w.-]*@[0-9a-f]{40}")  # of an edit from the Hub
_IN_THE_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


@dataclass(frozen=True)
class EditFile:
    """The file of an edit.

    Attributes:
        path: where it lies; of one from the Hub, in the Hub's cache.
        origin: "USER/REPO@COMMIT" of one from the Hub; None of any other.
    """

    path: Path
    origin: str | None = None


def hub_name(name: str | Path) -> tuple[str, str | None] | None:
    """("USER/REPO", revision) of a name that can only be one on the Hub; None where something of that name lies here,
    or only a path can be meant.
    """
    text = str(name)
    found = _ON_THE_HUB.fullmatch(text)
    if os.path.exists(os.path.expanduser(text)) or found is None or text.lower().endswith(_FILES):
        return None
    return found[1], found[2]


def edit_file(name: str | Path) -> EditFile:
    """The file that a name stands for; one on the Hub is fetched, at the commit that its revision means now.

    Raises:
        EditError: the Hub has no such repository or revision, or cannot be reached; it holds no edit, or one of more
            than ``MAX_BYTES``. (A path to nothing is given back: who reads it says so.)
    """
    asked = hub_name(name)
    if asked is None:
        path = Path(os.path.expanduser(name))
        if os.path.isdir(path) and _ON_THE_HUB.fullmatch(str(name)):
            raise EditError(
                f"{name} is a folder here, and no edit file: {_inside(path)}for the edit on the Hub write {name}@main"
            )
        if os.path.isdir(path):
            raise EditError(
                f"{name} is a folder, and no edit file: {_inside(path) or 'name the file'}".removesuffix(", or ")
            )
        return EditFile(path, _cached(path))
    repo, revision = asked
    try:
        path = one_file(repo, EDIT_FILE, revision, what="edit", limit=MAX_BYTES, error=EditError)
    except AbsentError as absent:
        raise EditError(
            f"{repo} holds no {EDIT_FILE}, so it is no edit (a model, or an artefact, is another thing): give the Hub "
            "id of an edit that sea-bake publish wrote, or an edit file"
        ) from absent
    return EditFile(path, f"{repo}@{path.parent.name}")


def _inside(folder: Path) -> str:
    """The edit's files that lie in a folder, or in that of an artefact: "name sea/edit-0.safetensors, or ", or ""."""
    found = [*sorted(folder.glob("sea/edit-*.safetensors")), folder / EDIT_FILE]
    named = " or ".join(str(path) for path in found if path.is_file())
    return f"name {named}, or " if named else ""


def is_hub_edit(name: str | Path) -> bool:
    """Whether a name is that of an edit on the Hub; False where that cannot be told."""
    try:
        return hub_name(name) is not None and edit_file(name).origin is not None
    except EditError:
        return "@" in str(name)  # which no other name on the Hub has here


def _cached(path: Path) -> str | None:
    """The origin of a file in the Hub's cache: ``.../models--OWNER--NAME/snapshots/COMMIT/edit.safetensors``."""
    folder = Path(os.path.abspath(path)).parent
    found = _IN_THE_CACHE.fullmatch(folder.parent.parent.name)
    if path.name != EDIT_FILE or folder.parent.name != "snapshots" or not re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return None
    return f"{'/'.join(found.groups())}@{folder.name}" if found else None
