"""What is about to be published: an artefact, its edits, and how far its verification still speaks for it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_bake.artefact.export import is_export, read_export
from sea_bake.artefact.record import edit_files, is_artefact, read_record
from sea_bake.artefact.seal import broken
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, PublishError
from sea_bake.io.files import read_json
from sea_bake.model.loading import auto_class
from sea_bake.verification import REPORT

ONNX = "onnx"
_NUMBERS = ("max_abs", "padded_max_abs", "mean_kl", "top1", "greedy_equal", "prompts")  # of a comparison
_TASKS = {"AutoModelForImageTextToText": "image-text-to-text"}  # else text-generation, encoder-decoders too


@dataclass(frozen=True)
class Artefact:
    """A folder that sea_bake wrote.

    Attributes:
        folder: where it lies.
        how: "insert", "fold", "adapter" or "onnx".
        record: what the bake (or the export) left in it.
        edits: the edits, in the order in which they act.
        base: the base's Hub id; None where only a local folder's name is known.
        revision: its commit, where it came from the Hub.
        verification: its report; None when there is none that speaks for these files.
        doubt: why it counts as unverified; None when it is verified, or approximate.
    """

    folder: Path
    how: str
    record: dict[str, Any]
    edits: list[Edit]
    base: str | None
    revision: str | None
    verification: dict[str, Any] | None
    doubt: str | None

    @property
    def base_name(self) -> str:
        """What to call the base: its Hub id, or the name of its folder."""
        return self.base or str(self.record.get("base"))

    @property
    def bake(self) -> dict[str, Any]:
        """What the bake recorded: of an export, that of the artefact that was exported."""
        return (self.record.get("bake") or {}) if self.how == ONNX else self.record

    @property
    def approximate(self) -> bool:
        return "approximation" in (self.bake.get("details") or {}) or bool((self.verification or {}).get("approximate"))

    @property
    def verdict(self) -> str:
        """ "verified", "approximate" or "NOT verified"."""
        return "NOT verified" if self.doubt else "approximate" if self.approximate else "verified"

    @property
    def auto_class(self) -> str:
        """The Auto class of transformers that loads it (or its base, for an adapter)."""
        if self.how == "adapter":
            sequence = self.config.get("task_type") == "SEQ_2_SEQ_LM"
            return "AutoModelForSeq2SeqLM" if sequence else "AutoModelForCausalLM"
        return auto_class(self.config)

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.folder / ("adapter_config.json" if self.how == "adapter" else "config.json"))

    @property
    def pipeline_tag(self) -> str:
        return _TASKS.get(self.auto_class, "text-generation")

    @classmethod
    def open(cls, folder: str | Path, *, unverified: bool = False, base_model: str | None = None) -> Artefact:
        """Read a baked or exported folder.

        Args:
            unverified: take it also without a passed verification of just these files.
            base_model: Hub id of the base, where the artefact records another name.

        Raises:
            PublishError: no artefact of ours; not verified; an adapter whose base has no Hub id.
            CheckpointError, EditError: its record or its edits are damaged.
        """
        folder = Path(os.path.expanduser(folder)).absolute()
        if not is_artefact(folder) and not is_export(folder):
            raise PublishError(
                f"{folder} is nothing that sea_bake wrote (neither sea/bake.json nor sea/export.json is in it): "
                "publish what sea-bake bake or sea-bake export made"
            )
        exported = is_export(folder)
        record = read_export(folder) if exported else read_record(folder)
        if exported and (record.get("format") != ONNX or record.get("how") not in ("insert", "fold")):
            raise PublishError(f"{folder} is no ONNX export of an edited model, and no other export is published")
        how = ONNX if exported else str(record.get("how"))
        if how not in ("insert", "fold", "adapter", ONNX):
            raise PublishError(f"{folder} is recorded as '{how}', which this sea_bake does not know: bake it again")
        verification, doubt = verification_of(folder)
        if doubt and not unverified:
            raise PublishError(
                f"{folder} is not verified: {doubt}. Run sea-bake verify {folder}, or pass --unverified, which the "
                "model card then says in its first line."
            )
        base = base_model or hub_id(record)
        if base is not None:
            check_repo_id(base, "the base")
        if how == "adapter" and base is None:
            raise PublishError(
                f"an adapter loads onto its base, and '{record.get('base')}' is the name of a local folder: say what "
                "the base is called on the Hub with --base-model"
            )
        revision = record.get("revision") if base == record.get("base") else None
        return cls(folder, how, record, _edits(folder, record), base, revision, verification, doubt)


def _edits(folder: Path, record: dict[str, Any]) -> list[Edit]:
    try:
        names = edit_files(folder, record)
    except CheckpointError as error:
        raise PublishError(f"{folder} cannot be published: {error}") from error
    return [Edit.load(name) for name in names]


def verification_of(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The verification that speaks for the files of an artefact (None: none does), and what is wrong with it."""
    if not (folder / REPORT).is_file():
        return None, f"it has no {REPORT}"
    report = read_json(folder / REPORT)
    sealed = report.get("files")
    if not isinstance(sealed, dict) or not sealed:
        return None, f"its {REPORT} does not say which files it was given on (an earlier sea_bake wrote it)"
    if not _readable(report):
        return None, f"its {REPORT} is damaged"
    changes = broken(folder, sealed)
    if changes:
        more = f" (and {len(changes) - 1} other changes)" if len(changes) > 1 else ""
        return None, f"{changes[0]} since its verification{more}"
    if report.get("passed") is not True:
        failures = report.get("failures") or ["no reason is given"]
        return report, f"its verification failed: {failures[0]}"
    return report, None


def _readable(report: dict[str, Any]) -> bool:
    """Whether a report holds the numbers that a card is made of, as ``verify`` writes them."""
    try:
        compared = [report["equality"], report["effect"]]
        compared += [report["baseline"]] if report.get("approximate") else []
        variants = list((report.get("variants") or {}).values())
        compared += [variant["equality"] for variant in variants]
        numbers = [
            report["tolerance"],
            report.get("kl_limit") or 0.0,
            *(v["effect_correlation"] or 0.0 for v in variants),
        ]
        numbers += [comparison[name] for comparison in compared for name in _NUMBERS]
        return isinstance(report["facts"], dict) and all(math.isfinite(number) for number in numbers)
    except (KeyError, TypeError, AttributeError, OverflowError):
        return False


def hub_id(record: dict[str, Any]) -> str | None:
    """The base's Hub id: a local folder is recorded by its last name, without a slash, and has no commit."""
    name = record.get("base")
    return name if isinstance(name, str) and ("/" in name or record.get("revision")) else None


def check_repo_id(repo_id: str, what: str) -> None:
    """Raise PublishError unless it can be the id of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{what} '{repo_id}' cannot be the id of a repository: {error}") from error
