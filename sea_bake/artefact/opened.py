"""The one place that opens what sea_bake wrote, of whatever kind, and knows what can be known of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sea_bake.artefact import trusted
from sea_bake.artefact.evaluation import Evaluation
from sea_bake.artefact.gguf_record import GgufRecord, record_of
from sea_bake.artefact.names import EXPORT, RECORD
from sea_bake.artefact.page import PageRecord
from sea_bake.artefact.record import BakeRecord, OnnxRecord
from sea_bake.artefact.renaming import renamed
from sea_bake.artefact.seal import seal
from sea_bake.artefact.verification import Verification
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, OutputError, command
from sea_bake.io.edits import is_hub_edit
from sea_bake.io.files import file_digest, json_text, read_json
from sea_bake.io.hub import snapshot
from sea_bake.io.regular import check_folder
from sea_bake.io.staging import staged_file
from sea_bake.model.loading import auto_class
from sea_bake.model.source import ADAPTER_CONFIG, ModelSource
from sea_bake.model.suffixes import PICKLES

ONNX = "onnx"


@dataclass(frozen=True)
class Artefact:
    """What ``bake`` or an export wrote: a folder, or a GGUF. What it holds is read when it is asked for, and once.

    Attributes:
        folder: where it lies; of a GGUF, the folder of its file.
        kind: "insert", "fold", "adapter", "onnx" or "gguf".
        record: what the bake, or the export, left in it.
        hub_id: of one that was fetched from the Hub, into whose cache nothing is written.
        base_id: the base's Hub id, where the record has the name of a local folder, and somebody knows better.
        file: of a GGUF.
    """

    folder: Path
    kind: str
    record: BakeRecord | OnnxRecord | GgufRecord
    hub_id: str | None = None
    base_id: str | None = None
    file: Path | None = None

    @classmethod
    def open(cls, path: str | Path | Artefact, *, revision: str | None = None) -> Artefact:
        """Read the record of an artefact.

        Args:
            path: a folder, a .gguf file, or the Hub id of a published folder; what is open already is given back.
            revision: branch, tag or commit of a Hub id.

        Raises:
            CheckpointError: there is none, it is none of ours, its record is damaged, or it holds a link out of it.
        """
        if isinstance(path, Artefact):
            return path
        folder = Path(os.path.expanduser(path)).absolute()
        hub_id = None
        if not os.path.exists(folder) and _may_be_hub_id(str(path)):
            but = [f"*{suffix}" for suffix in PICKLES]
            folder, hub_id = snapshot(str(path), revision, what="artefact", but=but), str(path)
        if os.path.isdir(folder):  # which a name that is too long does not stop
            check_folder(folder)
        if os.path.isfile(folder / RECORD):
            bake = trusted.read(folder / RECORD, BakeRecord.from_json)
            return cls(folder, bake.how, bake, hub_id)
        if os.path.isfile(folder / EXPORT):
            form = read_json(folder / EXPORT).get("format")
            if form != ONNX:
                was = f"{folder} is an export to {str(form)!r:.40}, which holds no model of its own"
                raise CheckpointError(f"{was}: give the artefact that it was made from")
            return cls(folder, ONNX, trusted.read(folder / EXPORT, OnnxRecord.from_json), hub_id)
        if folder.suffix == ".gguf" and os.path.isfile(record_of(folder)):
            return cls(folder.parent, "gguf", GgufRecord.read(folder), file=folder)
        wrote = "Give a folder that sea-bake bake or sea-bake export onnx wrote."
        what = "a file" if os.path.isfile(folder) else "a folder" if os.path.isdir(folder) else "nothing"
        lacks = f"{RECORD} or {EXPORT}"
        if folder.suffix == ".gguf":
            lacks = f"its record {record_of(folder).name} beside it"
            wrote = "Give a file that sea-bake export gguf wrote, and keep its record with it."
        raise CheckpointError(f"{folder} is not an artefact of sea_bake: it is {what} without {lacks}. {wrote}")

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def name(self) -> str:
        if self.file is not None:
            return self.file.name
        return self.folder.name if self.hub_id is None else self.hub_id.rpartition("/")[2]

    @property
    def how(self) -> str:
        """ "insert", "fold" or "adapter", as it was baked; "unedited" of a base's export."""
        return self.record.how

    @property
    def bake(self) -> BakeRecord | None:
        """What the bake recorded: of an export, that of the artefact that was exported."""
        if isinstance(self.record, GgufRecord):
            return None
        return self.record.bake if isinstance(self.record, OnnxRecord) else self.record

    @property
    def onnx(self) -> OnnxRecord:
        """The record of an export. Raises CheckpointError where it is none."""
        if isinstance(self.record, OnnxRecord):
            return self.record
        if self.file is not None:
            raise CheckpointError(f"{self.file} is a GGUF: give the ONNX export of the artefact that it was made from")
        raise CheckpointError(
            f"{self.folder} is no ONNX export: make one with "
            + command("sea-bake", "export", "onnx", self.folder, "-o", "OUT")
        )

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.folder / (ADAPTER_CONFIG if self.kind == "adapter" else "config.json"))

    @property
    def auto_class(self) -> str:
        """The Auto class of transformers that loads it (or its base, for an adapter)."""
        if self.kind == "adapter":
            sequence = self.config.get("task_type") == "SEQ_2_SEQ_LM"
            return "AutoModelForSeq2SeqLM" if sequence else "AutoModelForCausalLM"
        return auto_class(self.config)

    @cached_property
    def edit_files(self) -> list[Path]:
        """The copies of the edits, in the order in which they act."""
        return [] if isinstance(self.record, GgufRecord) else [self.folder / name for name in self.record.edits]

    @cached_property
    def edits(self) -> list[Edit]:
        """Raises EditError where one is damaged."""
        return [Edit.load(path) for path in self.edit_files]

    @property
    def approximate(self) -> bool:
        """Whether it is a stand-in for its edits."""
        return bool(self.bake and self.bake.approximation) or bool(self.verification and self.verification.approximate)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        if self.file is not None:
            return self.file.stat().st_size
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    # ---------------------------------------------------------------------------------------------------- its base

    @property
    def base(self) -> str | None:
        """The base's Hub id: a local folder is recorded by its last name, without a slash, and has no commit."""
        recorded = self.record.base if "/" in self.record.base or self.record.revision else None
        return self.base_id or recorded

    @property
    def base_name(self) -> str:
        """What to call the base: its Hub id, or the name of its folder."""
        return self.base or self.record.base

    @property
    def revision(self) -> str | None:
        """The base's commit, where it came from the Hub."""
        return self.record.revision if self.base == self.record.base else None

    def base_source(self, given: str | Path | None = None, revision: str | None = None) -> ModelSource:
        """The base: the one given, or what the record names: a folder beside the artefact, or a Hub id.

        Raises:
            CheckpointError: the recorded one is nowhere.
        """
        if given is not None:
            return ModelSource.parse(given, revision)
        name = self.record.base
        if not name or name.startswith("~") or ".." in Path(name).parts or Path(name).is_absolute() or "\0" in name:
            what = f"its base {name!r} is a path" if name else "it names no base"
            raise CheckpointError(f"the record of {self.folder} is damaged: {what}; say where it is with --base")
        beside = self.folder.parent / name
        if self.hub_id is None and Path(name).name == name and os.path.exists(beside):
            return ModelSource.parse(beside)
        try:
            source = ModelSource.parse(name, revision or self.record.revision)
            source.folder()
        except CheckpointError as error:
            raise CheckpointError(
                f"the base '{name}' is neither beside the artefact nor on the Hub: say where it is with --base "
                f"({error})"
            ) from error
        return source

    @property
    def verifying(self) -> list[object]:
        """The command that verifies it, in words: with --base where the base is not found without."""
        on_the_hub = "/" in self.record.base or self.record.revision
        known = on_the_hub or os.path.exists(self.folder.parent / self.record.base)
        return ["sea-bake", "verify", self.hub_id or self.folder, *([] if known else ["--base", "BASE"])]

    # ------------------------------------------------------------------------------------------ what was said of it

    def seal(self) -> dict[str, str]:
        """Path -> SHA-256, of every file that decides what it answers."""
        return seal(self.folder) if self.file is None else {self.file.name: file_digest(self.file)}

    @property
    def verification(self) -> Verification | None:
        """The verification that speaks for these very files; None: none does, see ``doubt``."""
        return self._verified[0]

    @property
    def doubt(self) -> str | None:
        """Why it counts as unverified; None when it is verified, or approximate."""
        return self._verified[1]

    @property
    def verdict(self) -> str:
        """ "verified", "approximate" or "NOT verified"."""
        return "NOT verified" if self.doubt else "approximate" if self.approximate else "verified"

    @cached_property
    def last_verification(self) -> Verification | None:
        """The verification inside, whichever files it was given on; None where there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        return None if self.file else trusted.last_verification(self.folder)

    @cached_property
    def _verified(self) -> tuple[Verification | None, str | None]:
        if isinstance(self.record, GgufRecord):
            changed = self.file is not None and file_digest(self.file) != self.record.sha256
            intact = "as it was written (sea-bake verify runs no GGUF)"
            return None, "changed since it was written" if changed else intact
        return trusted.verification(self.folder)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """Gain and damage, as ``evaluate(write=True)`` left them; None when it has not been evaluated.

        Raises:
            EvaluationError: it is garbled, or was measured on other edits or on another state of the artefact.
        """
        return trusted.evaluation(self.folder, self.edits, self.verification)

    @property
    def page(self) -> PageRecord | None:
        """What the page inside was written of; None where there is none. Raises OutputError: see ``trusted.page``."""
        return trusted.page(self.folder, self.verdict, self.verification)

    # --------------------------------------------------------------------------------------------- what is added to it

    def renamed(self, base: str | None) -> dict[str, str]:
        """Path -> new text, of our own files that name the base, where it gets another name (None: it keeps its own).

        Verification, evaluation and page go along: they spoke of these files but for that name, so their seals are set
        on the new ones.
        """
        return renamed(self, base)

    def write(self, name: str, content: str | dict[str, Any]) -> Path:
        """Leave a file of ours inside, whole or not at all. Raises OutputError."""
        with staged_file(self.own_folder / name, overwrite=True) as stage:
            stage.write_text(content if isinstance(content, str) else json_text(content), "utf-8")
        return self.folder / name

    @property
    def own_folder(self) -> Path:
        """The folder, where it may be written into. Raises OutputError."""
        if self.hub_id is not None:
            raise OutputError(f"{self.hub_id} lies in the Hub's cache, which is not written to: download a copy of it")
        return self.folder


def may_be_artefact(path: str | Path) -> bool:
    """Whether :meth:`Artefact.open` is to be asked: a folder, or a Hub id that is not an edit's; an edit is a file."""
    place = os.path.expanduser(path)
    on_the_hub = not os.path.exists(place) and _may_be_hub_id(str(path)) and not is_hub_edit(path)
    return os.path.isdir(place) or place.endswith(".gguf") or on_the_hub


def is_artefact(path: str | Path) -> bool:
    """Whether sea_bake wrote this folder: a bake, or an export."""
    folder = Path(os.path.expanduser(path))
    return (folder / RECORD).is_file() or (folder / EXPORT).is_file()


def _may_be_hub_id(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")
