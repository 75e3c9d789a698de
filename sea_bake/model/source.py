"""What a user may call a model: a folder, a .gguf file, a Hub id, or a PEFT adapter that names its base; and how each
becomes files on disk.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.io.hub import snapshot
from sea_bake.io.regular import check_folder
from sea_bake.model.sanity import check_numbers
from sea_bake.model.suffixes import NOT_FETCHED

ADAPTER_CONFIG = "adapter_config.json"
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a small file, SHA-256 of any other


@dataclass(frozen=True)
class ModelSource:
    """A model as the user named it.

    Attributes:
        name: what artefacts record: the Hub id, or the last part of a local path (never the path itself).
        path: the local folder (of a checkpoint or of a PEFT adapter), or the .gguf file; None for a Hub id that has
            not been downloaded.
        revision: commit hash or branch, for a Hub id.
    """

    name: str
    path: Path | None = None
    revision: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.path is not None and self.path.suffix == ".gguf"

    @property
    def is_adapter(self) -> bool:
        """Whether it is a PEFT adapter on disk: the model is then its base with the adapter merged."""
        return self.path is not None and (self.path / ADAPTER_CONFIG).is_file()

    @classmethod
    def parse(cls, model: str | Path | ModelSource, revision: str | None = None) -> ModelSource:
        """A local path wins over a Hub id of the same spelling; what is parsed already is given back. A snapshot in the
        Hub's cache is that Hub id at that commit.

        Raises:
            CheckpointError: there is no such path and it cannot be a Hub id; or the folder holds a link out of it.
        """
        if isinstance(model, cls):
            return model
        if not str(model).strip():
            raise CheckpointError("the model has no name: give a folder, a .gguf file, or a Hub id")
        path = Path(os.path.expanduser(str(model)))
        if os.path.exists(path):  # which no name makes raise
            path = path.absolute() if path.name not in ("", "..") else path.resolve()
            if path.is_file() and path.suffix != ".gguf":
                raise CheckpointError(f"{path} is a file: give the checkpoint's folder, a .gguf file, or a Hub id")
            if path.is_dir() and not any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
                raise CheckpointError(
                    f"{path} holds no config.json, so it is not a Hugging Face checkpoint "
                    f"(it holds: {', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'nothing'})"
                )
            if (path / ADAPTER_CONFIG).is_file() and any(path.glob("model*.safetensors")):
                raise CheckpointError(
                    f"{path} holds both a model and an adapter ({ADAPTER_CONFIG}): give each a folder of its own, "
                    "since it cannot be told which one is meant"
                )
            if path.is_dir():
                check_folder(path)
                check_numbers(path)
            cached = _cached(path)
            return cls(cached, path, path.name) if cached else cls(path.name, path, revision)
        text = str(model)
        if text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith(".gguf"):
            raise CheckpointError(f"no such model: {text} (neither a folder, nor a .gguf file, nor a Hub id)")
        return cls(text, None, revision)

    def on_disk(self) -> ModelSource:
        """The same source with its files on disk, downloaded from the Hub (at a commit, then recorded) if need be.

        Raises:
            CheckpointError: the Hub has no such model, or cannot be reached.
        """
        if self.path is not None:
            return self
        folder = snapshot(self.name, self.revision, but=NOT_FETCHED)
        check_numbers(folder)
        return ModelSource(self.name, folder, folder.name)  # a snapshot's folder is named after its commit

    def base(self) -> ModelSource:
        """The model under a PEFT adapter: what its configuration says, or the folder of that name beside the adapter.

        Raises:
            CheckpointError: it names none, or one that is neither here nor a Hub id; the message says what to do.
        """
        assert self.path is not None
        config = self.path / ADAPTER_CONFIG
        data = read_json(config)
        name, revision = data.get("base_model_name_or_path"), data.get("revision")
        if not isinstance(name, str) or not name.strip():
            raise CheckpointError(f"{config} does not name the adapter's base: write it into base_model_name_or_path")
        beside = self.path.parent / name.rstrip("/").rpartition("/")[2]
        found = next((p for p in (Path(os.path.expanduser(name)), beside) if os.path.exists(p)), name)
        try:
            base = ModelSource.parse(found, revision if isinstance(revision, str) and found == name else None)
        except CheckpointError as error:
            raise CheckpointError(
                f"the base of the adapter {self.path}, '{name}', is neither there nor beside the adapter nor a Hub id: "
                f"put its folder at {beside}, or correct base_model_name_or_path in {config.name} ({error})"
            ) from error
        if base.is_adapter or base.is_gguf:
            raise CheckpointError(
                f"the base of the adapter {self.path}, '{name}', is itself an adapter or a GGUF"
                f": merge or convert it first, and name the result in base_model_name_or_path of {config.name}"
            )
        return base

    def folder(self) -> Path:
        """Path of the checkpoint's folder (or .gguf file); see :meth:`on_disk`."""
        path = self.on_disk().path
        assert path is not None
        return path


def weights_on_the_hub(path: Path | None) -> dict[str, str]:
    """ "OWNER/REPO/FILE" -> the digest that the Hub's cache calls its content by, of the weights of a snapshot, or
    of one .gguf file in it; {} of anything else, and where the cache holds copies in place of links.
    """
    folder = None if path is None else path if path.is_dir() else path.parent
    name = None if folder is None else _cached(folder)
    if path is None or name is None:
        return {}
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    linked = {file.name: Path(os.readlink(file)).name for file in files if file.is_symlink()}
    return {f"{name}/{file}": digest for file, digest in linked.items() if _DIGEST.fullmatch(digest)}


def _cached(path: Path) -> str | None:
    """The Hub id of a snapshot in the Hub's cache: ``.../models--OWNER--NAME/snapshots/COMMIT``."""
    repository, commit = path.parent.parent.name, path.name
    if path.parent.name != "snapshots" or not re.fullmatch(r"[0-9a-f]{40}", commit):
        return None
    found = re.fullmatch(r"models--(?:([\w.-]+?)--)?([\w.-]+)", repository)
    return "/".join(filter(None, found.groups())) if found else None
