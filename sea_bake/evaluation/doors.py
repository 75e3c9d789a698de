"""The models that are compared: the base, and the same base under live hooks, or what was baked from it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sea_bake import modeling_sea
from sea_bake.baking.report import edit_files, is_artefact, read_record, recorded_base
from sea_bake.checkpoint.reader import read_json
from sea_bake.edit import Edit, live
from sea_bake.errors import CheckpointError, EvaluationError
from sea_bake.loading import architecture, check_kernels, default_device, load_model, load_tokenizer, parse_dtype
from sea_bake.lora import merge_into
from sea_bake.source import ModelSource

BASE = "base"
_ENDS = 1 << 20  # bytes at either end of a weight file that say which it is


@dataclass
class Doors:
    """Base and edited model, opened one at a time.

    Attributes:
        base: the unedited model.
        edits: acting live on it, where the other door is "live".
        artefact: the other door otherwise.
        dtype, device: as ``load_model`` takes them.
        how: "live", or the artefact's "insert", "fold" or "adapter"; None where there is the base alone.
    """

    base: ModelSource
    edits: list[Edit] = field(default_factory=list)
    artefact: Path | None = None
    how: str | None = None
    dtype: str = "auto"
    device: str | None = None
    _held: tuple[str, Any] | None = None

    @classmethod
    def of(
        cls,
        model: str | Path,
        *,
        edit: Edit | str | Path | Sequence[Edit | str | Path] | None = None,
        base: str | Path | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
    ) -> Doors:
        """What there is to compare, without loading any weights.

        Raises:
            EvaluationError: an edit for an artefact, or a base for a model that is none.
            CheckpointError, EditError: something cannot be read.
        """
        parse_dtype(dtype)
        given = [] if edit is None else [edit] if isinstance(edit, Edit | str | Path) else list(edit)
        edits = [e if isinstance(e, Edit) else Edit.load(e) for e in given]
        folder = Path(os.path.expanduser(model))
        if not is_artefact(folder):
            if base is not None:
                raise EvaluationError(f"--base belongs to an artefact, and {model} is not one: it is the base itself")
            source = ModelSource.parse(model, revision)
            return cls(source, edits, None, "live" if edits else None, dtype, device)
        if edits:
            raise EvaluationError(
                f"{model} is an artefact, with its edits in it: evaluate it without --edit, or the edit on its base"
            )
        folder = folder.absolute()
        record = read_record(folder)
        how = str(record.get("how"))
        if how not in ("insert", "fold", "adapter"):
            raise CheckpointError(f"{folder} is recorded as '{how}', which this sea_bake does not know: bake it again")
        return cls(recorded_base(folder, record, base, revision), [], folder, how, dtype, device)

    @property
    def names(self) -> list[str]:
        """The base first: the other door is measured against it."""
        return [BASE, self.how] if self.how else [BASE]

    @property
    def title(self) -> str:
        """What the edited model is called."""
        return self.artefact.name if self.artefact else self.base.name

    def tokenizer(self) -> Any:
        """The base's tokenizer, which every artefact carries unchanged."""
        return load_tokenizer(self.base)

    def identity(self, name: str) -> str:
        """A digest of all that decides what a door answers: files and their ends, edits, dtype, device."""
        told: list[Any] = [name == BASE, self.dtype, self.device or default_device()]
        if name == BASE or self.how in ("live", "adapter"):
            told += _files(self.base.folder())
        if name != BASE and self.artefact:
            told += _files(self.artefact)
        if name == "live":
            told += [_edit_digest(edit) for edit in self.edits]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """The living model behind a door; kept until another one is needed, so that hooks come and go on one model.

        Raises:
            CheckpointError: it cannot be loaded.
            WrongModelError: an edit belongs to another model.
        """
        key = name if self.artefact else BASE
        if self._held is None or self._held[0] != key:
            self.close()
            self._held = key, self._load(key)
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

    def _load(self, name: str) -> Any:
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        if name == BASE:
            return load_model(self.base, **options)
        assert self.artefact is not None
        if self.how == "fold":
            return load_model(self.artefact, **options)
        if self.how == "adapter":  # in the base's own dtype, as PEFT would; then in the one asked for
            model = load_model(self.base, device=self.device)
            merge_into(model, ModelSource.parse(self.artefact))
            wanted = parse_dtype(self.dtype)
            return model if isinstance(wanted, str) else model.to(wanted)
        return self._inserted()

    def _inserted(self) -> Any:
        """The package's own modeling code, never the file inside the artefact."""
        assert self.artefact is not None
        config = read_json(self.artefact / "config.json")
        check_kernels(config)
        name, device = architecture(config) or "", self.device or default_device()
        options = {"device_map": device} if device != "cpu" else {}
        try:
            kind = getattr(modeling_sea, name if name.startswith("SEA") else f"SEA{name}")
            model, found = kind.from_pretrained(
                self.artefact, dtype=parse_dtype(self.dtype), use_safetensors=True, output_loading_info=True, **options
            )
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(f"the artefact '{self.artefact.name}' cannot be loaded: {lines[0]}") from error
        if found["missing_keys"]:
            raise CheckpointError(f"'{self.artefact.name}' is incomplete: it lacks {sorted(found['missing_keys'])[0]}")
        return model.eval()

    def describe(self) -> dict[str, Any]:
        """For people and programs: names only, no paths."""
        edits = self.edits or ([Edit.load(p) for p in edit_files(self.artefact)] if self.artefact else [])
        settings = [
            {"site": e.site.value, "layers": list(e.layers), "merge": e.merge, "feature": e.feature, "alpha": e.alpha}
            for e in edits
        ]
        return {"base": self.base.name, "revision": self.base.revision, "edited": self.how and self.title,
                "how": self.how, "edits": settings}  # fmt: skip


def _files(path: Path) -> list[Any]:
    """Of a model's files: names, sizes, and a digest of both ends of each (a weight file's header lies in front)."""
    names = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    found: list[Any] = []
    for name in names:
        if name.suffix in (".md", ".html") or name.name == "sea_verification.json":
            continue
        with open(name, "rb") as file:
            size = name.stat().st_size
            ends = hashlib.sha256(file.read(_ENDS))
            if size > _ENDS:
                file.seek(max(_ENDS, size - _ENDS))
                ends.update(file.read())
        found.append([name.name, size, ends.hexdigest()])
    return found


def _edit_digest(edit: Edit) -> str:
    digest = hashlib.sha256(f"{edit.site.value} {edit.merge} {edit.feature} {edit.parts} {edit.alpha}".encode())
    for layer in edit.layers:
        projector = edit.projectors[layer]
        for rows in (projector.positive, projector.negative):
            digest.update(f"{layer} {tuple(rows.shape)}".encode() + rows.contiguous().numpy().tobytes())
    return digest.hexdigest()
