"""Prove an artefact: the same tokens through base, live hooks and the reloaded artefact, each in a fresh process."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sea_bake.activations import DEFAULT_NEW_TOKENS
from sea_bake.artefact import Artefact
from sea_bake.artefact.names import VERIFICATION
from sea_bake.artefact.opened import ONNX
from sea_bake.artefact.verification import Comparison, Variant, Verification
from sea_bake.errors import CheckpointError, SettingError, VerificationError
from sea_bake.io.edits import edit_file
from sea_bake.io.staging import need_space, scratch_folder
from sea_bake.model.checkpoint.gguf import materialise
from sea_bake.model.loading import DTYPES, default_device
from sea_bake.model.source import ModelSource
from sea_bake.verification import checkpoint, exported
from sea_bake.verification.doors import Subject, request_for

__all__ = ["Comparison", "Variant", "Verification", "verify"]


def verify(
    artefact: str | Path | Artefact,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    edit: str | Path | Sequence[str | Path] | None = None,
    dtype: str = "auto",
    device: str | None = None,
    prompts: Sequence[str] | None = None,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    positions: int = 64,
    write: bool = True,
) -> Verification:
    """Reload an artefact in a fresh process and hold it against the hook-edited base, and against the base.

    An approximate fold is held to the error that it promises, and at best called "approximate". So is a quantised or
    float16 ONNX graph, of which the edit's effect has to be left.

    Three doors answer the same token ids: the base, the base under ``Edit.live`` (one process, with sea_bake), and the
    artefact (another process, in which sea_bake cannot be imported; an ONNX export in one without torch, too). One
    model is in memory at a time.

    Args:
        artefact: folder written by sea-bake bake or sea-bake export onnx; or the Hub id of a published one.
        base: its base. Default: what the artefact records (Hub id, or the folder beside it).
        revision: branch, tag or commit of a base on the Hub.
        edit: the edit; several act in the order given. Default: the copies inside the artefact.
        dtype: float dtype of all models. "auto": the checkpoint's own; float32 for folds, adapters and exports.
        device: see :func:`sea_bake.model.loading.load_model`.
        prompts: texts to continue. Default: six questions.
        max_new_tokens: length of the greedy continuations.
        positions: number of last positions of each text at which logits are compared.
        write: write sea_verification.json into the artefact.

    Raises:
        SettingError: an unknown dtype, or one for an export, whose graphs have their own.
        MissingExtraError: an ONNX export, and ONNX Runtime is not installed.
        VerificationError: the base cannot be found, or a door cannot be opened (which is not the same as a failed
            verification: that is a Verification whose ``passed`` is False).
    """
    subject_artefact = Artefact.open(artefact)
    exported_graph = subject_artefact.kind == ONNX
    if subject_artefact.file is not None:
        raise VerificationError(
            f"{subject_artefact.file} is a GGUF, which llama.cpp runs and verify does not: verify the artefact that it "
            "was made from (sea-bake inspect says whether the file is still as it was written)"
        )
    if dtype != "auto" and dtype not in DTYPES:
        raise SettingError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    if exported_graph:
        exported.check(subject_artefact, dtype)
    try:
        source = subject_artefact.base_source(base, revision)
    except CheckpointError as error:
        raise VerificationError(str(error)) if base is None else error from error
    given = [edit] if isinstance(edit, str | Path) else edit
    write = write and subject_artefact.hub_id is None
    sealed = subject_artefact.seal() if write else {}
    with _as_checkpoint(source, subject_artefact) as plain:
        subject = Subject(
            subject_artefact,
            source if plain is None else ModelSource(source.name, plain),
            [edit_file(e).path.absolute() for e in given] if given is not None else subject_artefact.edit_files,
            plain or (source.folder() if subject_artefact.kind == "adapter" else subject_artefact.folder),
            device or default_device(),
        )
        request = request_for(subject.plain, subject.source, prompts, max_new_tokens, positions, subject.form)
        found = exported.prove(subject, request) if exported_graph else checkpoint.prove(subject, request, dtype)
    if write:
        subject_artefact.write(VERIFICATION, found.on(sealed).to_json())
    return found


@contextlib.contextmanager
def _as_checkpoint(source: ModelSource, artefact: Artefact) -> Iterator[Path | None]:
    """A folder made of a GGUF that is the base of an adapter, for as long as it is needed: PEFT loads onto no GGUF."""
    if artefact.kind != "adapter" or not source.is_gguf:
        yield None
        return
    beside = artefact.folder if artefact.hub_id is None else Path(tempfile.gettempdir(), artefact.name)
    need_space(beside.parent, 8 * source.folder().stat().st_size)
    with scratch_folder(beside) as folder:
        materialise(source, folder)
        yield folder
