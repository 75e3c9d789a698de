"""The models that are compared: the base, and the same base under live hooks, or what was baked from it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sea_bake.artefact import Artefact, is_artefact
from sea_bake.artefact.code import load_inserted
from sea_bake.artefact.evaluation import edit_digest
from sea_bake.artefact.opened import ONNX
from sea_bake.artefact.seal import matters
from sea_bake.edit import Edit, live
from sea_bake.errors import EvaluationError
from sea_bake.io import progress
from sea_bake.io.files import file_digest
from sea_bake.model.loading import default_device, load_model, load_tokenizer, parse_dtype
from sea_bake.model.lora import merge_into
from sea_bake.model.processes import are_several, is_first_here
from sea_bake.model.source import ModelSource

BASE = "base"


@dataclass
class Doors:
    """Base and edited model, opened one at a time.

    Attributes:
        base: the unedited model.
        edits: acting live on it, where the other door is "live".
        artefact: the other door otherwise.
        dtype, device: as ``load_model`` takes them.
        backend: what answers: see :mod:`sea_bake.evaluation.engines`.
        how: "live", or the artefact's "insert", "fold" or "adapter"; None where there is the base alone.
    """

    base: ModelSource
    edits: list[Edit] = field(default_factory=list)
    artefact: Artefact | None = None
    how: str | None = None
    dtype: str = "auto"
    device: str | None = None
    backend: str = "transformers"
    _held: tuple[str, Any] | None = None

    @classmethod
    def of(
        cls,
        model: str | Path | Artefact,
        *,
        edit: Edit | str | Path | Sequence[Edit | str | Path] | None = None,
        base: str | Path | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        backend: str = "transformers",
    ) -> Doors:
        """What there is to compare, without loading any weights.

        Raises:
            EvaluationError: an edit for an artefact, a base for a model that is none, or an export.
            CheckpointError, EditError: something cannot be read.
        """
        parse_dtype(dtype)
        given = [] if edit is None else [edit] if isinstance(edit, Edit | str | Path) else list(edit)
        edits = [e if isinstance(e, Edit) else Edit.load(e) for e in given]
        if not isinstance(model, Artefact) and not is_artefact(model):
            if base is not None:
                raise EvaluationError(f"--base belongs to an artefact, and {model} is not one: it is the base itself")
            source = ModelSource.parse(model, revision)
            return cls(source, edits, None, "live" if edits else None, dtype, device, backend)
        artefact = Artefact.open(model)
        if artefact.kind == ONNX:
            raise EvaluationError(
                f"{artefact.folder} is an export, which the harness does not run: evaluate the artefact that it was "
                "made from (sea-bake verify holds the export against the same edit)"
            )
        if edits:
            raise EvaluationError(
                f"{artefact.folder} is an artefact, with its edits in it: drop --edit, or evaluate the edit on its base"
            )
        return cls(artefact.base_source(base, revision), [], artefact, artefact.kind, dtype, device, backend)

    @property
    def names(self) -> list[str]:
        """The base first: the other door is measured against it."""
        return [BASE, self.how] if self.how else [BASE]

    def tokenizer(self) -> Any:
        """The base's tokenizer, which every artefact carries unchanged."""
        return load_tokenizer(self.base)

    def all_edits(self) -> list[Edit]:
        """Those that act live, or the artefact's own, in the order in which they act."""
        return self.edits or (self.artefact.edits if self.artefact else [])

    def identity(self, name: str) -> str:
        """A digest of all that decides what a door answers: every byte of its files, edits, dtype, device."""
        told: list[Any] = [name == BASE, self.dtype, self.device or default_device()]
        if self.backend != "transformers":
            told.append(self.backend)
        if name == BASE or self.how in ("live", "adapter"):
            told.append(self._base_contents)
        if name != BASE and self.artefact:
            told.append(self._artefact_contents)
        if name == "live":
            told += [edit_digest(edit) for edit in self.edits]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def here(self) -> dict[str, Any]:
        """What several processes have to have alike: where the files lie, on each machine; and every byte of them, read
        once on each.
        """
        if not are_several():
            return {}
        lie = [str(self.base.folder()), str(self.artefact.folder) if self.artefact else ""]
        found: dict[str, Any] = {f"place of its models on {platform.node()}": lie}
        if is_first_here():
            found |= {"base, in its files": self._base_contents}
            found |= {"artefact, in its files": self._artefact_contents} if self.artefact else {}
        return found

    @cached_property
    def _artefact_contents(self) -> dict[str, str]:
        """The same of the artefact that is the other door."""
        assert self.artefact is not None
        return self.artefact.seal()

    @cached_property
    def _base_contents(self) -> dict[str, str]:
        """Name -> SHA-256 of all of each file, read once for both doors (its ends would not show another weight)."""
        path = self.base.folder()
        found = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and matters(p.name))
        with progress.bar("base: which one", len(found), "file") as advance:
            told = {}
            for file in found:
                told[file.name] = file_digest(file)
                advance(1)
        return told

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """The living model behind a door; kept until another one is needed, so that hooks come and go on one model.

        Raises:
            CheckpointError: it cannot be loaded.
            WrongModelError: an edit belongs to another model, or an artefact to another base.
        """
        key = name if self.artefact else BASE
        if self._held is None or self._held[0] != key:
            self.close()
            self._held = key, self.load(key)
        model = self._held[1]
        if name != "live":
            yield model
            return
        with live(self.edits, model):
            yield model

    def close(self) -> None:
        """Give the memory back."""
        self._held = None
        gc.collect()

    def load(self, name: str) -> Any:
        """The living model behind a door, without hooks; the caller keeps it.

        Raises:
            CheckpointError: it cannot be loaded.
            WrongModelError: an artefact that belongs to another base.
        """
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        if name == BASE:
            return self._checked(load_model(self.base, **options))
        assert self.artefact is not None
        if self.how == "fold":
            return load_model(self.artefact.folder, **options)
        if self.how == "adapter":  # in the base's own dtype, as PEFT would; then in the one asked for
            model = self._checked(load_model(self.base, device=self.device))
            merge_into(model, ModelSource.parse(self.artefact.folder))
            wanted = parse_dtype(self.dtype)
            return model if isinstance(wanted, str) else model.to(wanted)
        device = self.device or default_device()
        return load_inserted(self.artefact.folder, dtype=parse_dtype(self.dtype), device=device)

    def _checked(self, model: Any) -> Any:
        """The base of an artefact, if it is the one that the edits inside were fitted on (else WrongModelError)."""
        for edit in self.all_edits() if self.artefact else ():
            edit.check(model)
        return model

    def describe(self) -> dict[str, Any]:
        """For people and programs: names only, no paths."""
        edits = [
            {"site": e.site.value, "layers": list(e.layers), "merge": e.merge, "feature": e.feature, "alpha": e.alpha,
             "sha256": edit_digest(e), **({"origin": e.origin} if e.origin else {})}
            for e in self.all_edits()
        ]  # fmt: skip
        edited = self.how and (self.artefact or self.base).name
        about = {"base": self.base.name, "revision": self.base.revision, "edited": edited}
        return about | {"how": self.how, "edits": edits}
