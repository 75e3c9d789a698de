"""Prove an artefact: the same tokens through base, live hooks and the reloaded artefact, each in a fresh process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sea_bake.artefact.export import is_export, read_export
from sea_bake.artefact.record import RECORD, edit_files, is_artefact, read_record, recorded_base
from sea_bake.artefact.seal import seal
from sea_bake.errors import CheckpointError, SettingError, VerificationError
from sea_bake.io.files import write_json
from sea_bake.io.staging import staged_file
from sea_bake.model.loading import DTYPES, default_device
from sea_bake.verification import checkpoint, exported
from sea_bake.verification.doors import Subject, request_for
from sea_bake.verification.reduced import Variant
from sea_bake.verification.verdict import Comparison, Report

REPORT = "sea_verification.json"

__all__ = ["REPORT", "Comparison", "Report", "Variant", "verify"]


def verify(
    artefact: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    edit: str | Path | Sequence[str | Path] | None = None,
    dtype: str = "auto",
    device: str | None = None,
    prompts: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    positions: int = 64,
    write: bool = True,
) -> Report:
    """Reload an artefact in a fresh process and hold it against the hook-edited base, and against the base.

    An approximate fold is held to the error that it promises, and at best called "approximate". So is a quantised or
    float16 ONNX graph, of which the edit's effect has to be left.

    Three doors answer the same token ids: the base, the base under ``Edit.live`` (one process, with sea_bake), and the
    artefact (another process, in which sea_bake cannot be imported; an ONNX export in one without torch, too). One
    model is in memory at a time.

    Args:
        artefact: a folder written by ``bake``, or by ``export_onnx``.
        base: its base model; None takes what the artefact records (a Hub id, or a folder beside the artefact).
        edit: the edit, or several in the order they act; None takes the copies inside the artefact.
        dtype: a float dtype for all doors; "auto": the checkpoint's own, and float32 for folds, adapters and exports.
        prompts: texts to continue; None takes six built-in questions.
        max_new_tokens: length of the greedy continuations.
        positions: logits are compared at so many last positions of each teacher-forced text.
        write: leave ``sea_verification.json`` inside the artefact.

    Raises:
        SettingError: an unknown dtype, or one for an export, whose graphs have their own.
        MissingExtraError: an ONNX export, and ONNX Runtime is not installed.
        VerificationError: the base cannot be found, or a door cannot be opened (which is not the same as a failed
            verification: that is a Report whose ``passed`` is False).
    """
    artefact = Path(os.path.expanduser(artefact)).absolute()
    is_exported = is_export(artefact)
    if not is_exported and not is_artefact(artefact):
        raise VerificationError(f"{artefact} is not an artefact of sea_bake: it has no {RECORD}")
    record = read_export(artefact) if is_exported else read_record(artefact)
    if dtype != "auto" and dtype not in DTYPES:
        raise SettingError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    if is_exported:
        exported.check(artefact, record, dtype)
    else:
        checkpoint.check(record)
    try:
        source = recorded_base(artefact, record, base, revision)
    except CheckpointError as error:
        raise VerificationError(str(error)) if base is None else error from error
    # An adapter has neither configuration nor tokenizer of its own: it lives on its base.
    is_adapter = record.get("how") == "adapter"
    if is_adapter and source.is_gguf:
        raise VerificationError(
            f"an adapter is verified on a checkpoint, and {source.path} is a GGUF: name one with --base"
        )
    given = [edit] if isinstance(edit, str | Path) else edit
    subject = Subject(
        artefact,
        record,
        source,
        [Path(e).absolute() for e in given] if given is not None else edit_files(artefact, record),
        source.folder() if is_adapter else artefact,
        device or default_device(),
    )
    request = request_for(subject.plain, source, prompts, max_new_tokens, positions)
    sealed = seal(artefact) if write else {}
    report = exported.prove(subject, request) if is_exported else checkpoint.prove(subject, request, dtype)
    if write:
        with staged_file(artefact / REPORT, overwrite=True) as stage:
            write_json(stage, report.to_json() | {"files": sealed})
    return report
