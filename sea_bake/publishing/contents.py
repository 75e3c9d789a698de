"""Which files of an artefact go to the Hub, and which must not: links, foreign code, pickles, local paths, tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sea_bake import modeling_sea
from sea_bake.artefact import Artefact
from sea_bake.artefact.names import CARD, CODE, EDIT, VERIFICATION
from sea_bake.artefact.opened import ONNX
from sea_bake.artefact.seal import files
from sea_bake.errors import PublishError
from sea_bake.io.files import file_digest, read_json
from sea_bake.model import suffixes
from sea_bake.model.checkpoint.reader import INDEX, SINGLE, weights_file
from sea_bake.model.lora import WEIGHTS
from sea_bake.model.suffixes import ends
from sea_bake.publishing.parts import known
from sea_bake.publishing.secrets import leak


@dataclass(frozen=True)
class Item:
    """One file to publish.

    Attributes:
        path: its path in the repository.
        source: the file on disk, or its bytes.
        size: in bytes.
        sha256: of its content.
    """

    path: str
    source: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, source: Path | bytes, sha256: str | None = None) -> Item:
        if isinstance(source, bytes):
            return cls(path, source, len(source), hashlib.sha256(source).hexdigest())
        return cls(path, source, source.stat().st_size, sha256 or file_digest(source))

    def read(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


def collect(artefact: Artefact, made: dict[str, str], include: Sequence[str] = ()) -> tuple[list[Item], list[str]]:
    """Everything to publish, checked; and what of the folder stays at home.

    Args:
        made: texts that take the place of files, or join them: the card, the recipe.
        include: paths of files that are no known part of an artefact, and are wanted.

    Raises:
        PublishError: a link, a pickle, code that is not ours, weights that nothing loads, a local path or a token; a
            file under the seal that is no known part; an ``include`` that is not there.
    """
    folder = artefact.folder
    sealed = artefact.verification.files if artefact.verification else {}
    taken: dict[str, Item] = {name: Item.of(name, text.encode()) for name, text in made.items()}
    _refuse_links(folder)
    there, weights = files(folder), _weights(artefact)
    for name in include:
        if name not in there:
            raise PublishError(
                f"{folder} holds no file {name!r} (hidden files cannot be included): drop --include {name}"
            )
    for name in there:
        _refuse(artefact, name, weights)
        if name in taken or (name == VERIFICATION and artefact.verification is None):  # it speaks of other files
            continue
        if name in include or known(artefact, name, weights):
            taken[name] = Item.of(name, folder / name, sealed.get(name))
        elif name in sealed:
            raise PublishError(
                f"{folder / name} is no known part of an artefact, and it was there when the artefact was verified: "
                f"publish it too (--include {name}), or remove it and verify again"
            )
    items = sorted(taken.values(), key=lambda item: item.path)
    for item in items:
        what = leak(item.path, item.source, artefact)
        if what:
            again = "" if item.path == CARD else ", then verify again"
            raise PublishError(f"{item.path} holds {what}, which everybody could read: take it out{again}")
    return items, _left_at_home(folder, {item.path for item in items})


def _refuse(artefact: Artefact, name: str, weights: set[str]) -> None:
    """Raise PublishError for a file that has no business in a repository of this kind."""
    path, suffix = artefact.folder / name, Path(name).suffix.lower()
    if name == CODE and artefact.kind == "insert":
        if path.read_bytes() != Path(modeling_sea.__file__).read_bytes():
            raise PublishError(
                f"{path} is not the file that this sea_bake writes, and it is run by everybody who loads the model: "
                "bake again with this version"
            )
        return
    if ends(name, suffixes.CODE):
        raise PublishError(f"{path} is code, and not sea_bake's: take it out, publish runs and ships no other code")
    if ends(name, suffixes.OTHER_WEIGHTS) and not (artefact.kind == ONNX and suffix.startswith(".onnx")):
        raise PublishError(
            f"{path} holds weights in another form ({suffix}), which is not what was verified: remove it"
        )
    if suffix == ".safetensors" and name not in weights:
        raise PublishError(f"{path} belongs to no index of the artefact: remove it, or bake again")


def _weights(artefact: Artefact) -> set[str]:
    """Paths of the safetensors files that make up an artefact."""
    folder = artefact.folder
    found = {EDIT.format(i) for i in range(len(artefact.record.edits))}
    if artefact.kind == "adapter":
        return found | {WEIGHTS}
    if artefact.kind == ONNX:
        return found
    if weights_file(folder, read_json(folder / "config.json")) == SINGLE:
        return found | {SINGLE}
    return found | set((read_json(folder / INDEX).get("weight_map") or {}).values())


def _refuse_links(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise PublishError(f"{path} is a link: put the file itself there (sea-bake bake makes none)")
        if not path.is_file() and not path.is_dir():
            raise PublishError(f"{path} is neither a file nor a folder: remove it")


def _left_at_home(folder: Path, taken: set[str]) -> list[str]:
    """Hidden files and caches, and what does not speak for the artefact: named, not uploaded."""
    hidden = [path.relative_to(folder) for path in folder.rglob(".*")]
    outermost = {path.as_posix() for path in hidden if not any(part.startswith(".") for part in path.parts[:-1])}
    made = {path.partition("/")[0] for path in taken if path.startswith(".")}  # a copy from the Hub has results too
    return sorted({*outermost, *files(folder)} - taken - made)
