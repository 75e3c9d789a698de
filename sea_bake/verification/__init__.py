"""Prove an artefact, or what somebody else made: base, live hooks and model on the same tokens, in fresh processes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sea_bake.activations import DEFAULT_NEW_TOKENS
from sea_bake.artefact import Artefact, is_artefact
from sea_bake.artefact.names import VERIFICATION
from sea_bake.artefact.opened import ONNX
from sea_bake.artefact.verification import Comparison, Variant, Verification
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, SettingError, VerificationError
from sea_bake.io.edits import edit_file
from sea_bake.io.staging import need_space, scratch_folder
from sea_bake.model.checkpoint.gguf import materialise
from sea_bake.model.loading import DTYPES, default_device
from sea_bake.model.placing import rooms
from sea_bake.model.source import ModelSource
from sea_bake.verification import checkpoint, copies, exported, strangers
from sea_bake.verification.copies import Copy
from sea_bake.verification.doors import Subject, request_for
from sea_bake.verification.strangers import Stranger

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
    fresh: bool = False,
    quantised: str | Path | None = None,
) -> Verification:
    """Reload an artefact in a fresh process and hold it against the hook-edited base, and against the base.

    An approximate fold is held to the error that it promises, and at best called "approximate". So is a quantised or
    float16 ONNX graph, of which the edit's effect has to be left.

    Three doors answer the same token ids: the base, the base under ``Edit.live`` (one process, with sea_bake), and the
    artefact (another process, in which sea_bake cannot be imported; an ONNX export in one without torch, too). One
    model is in memory at a time.

    Args:
        artefact: folder written by sea-bake bake or sea-bake export onnx; or the Hub id of a published one. Also any
            model that somebody else made (folder, PEFT LoRA, unquantised GGUF, Hub id), with its base and its edit.
        base: its base. Default: what the artefact records (Hub id, or the folder beside it).
        revision: branch, tag or commit of a base on the Hub.
        edit: the edit; several act in the order given. Default: the copies inside the artefact.
        dtype: float dtype of all models. "auto": the checkpoint's own; float32 for folds, adapters and exports.
        device: see :func:`sea_bake.model.loading.load_model`.
        prompts: texts to continue. Default: six questions.
        max_new_tokens: length of the greedy continuations.
        positions: number of last positions of each text at which logits are compared.
        write: write sea_verification.json into the artefact.
        fresh: let the base answer again, whatever it has answered to an earlier verification.
        quantised: a quantised copy of a fold, that some other tool made (folder, GGUF or Hub id): what is left of the
            edit in it. Nothing is written.

    Raises:
        SettingError: an unknown dtype, or one for an export, whose graphs have their own.
        MissingExtraError: an ONNX export, and ONNX Runtime is not installed.
        VerificationError: a quantised copy of what is no fold; the base cannot be found, or a door cannot be opened
            (which is not the same as a failed verification: that is a Verification whose ``passed`` is False).
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise SettingError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    rooms(device or "")
    given = [edit] if isinstance(edit, str | Path) else edit
    ask: dict[str, Any] = {"prompts": prompts, "max_new_tokens": max_new_tokens, "positions": positions}
    ask["fresh"] = fresh
    theirs = None if base is None or not given else _of_somebody_else(artefact)
    if theirs is not None:
        assert base is not None
        if quantised is not None:
            _refuse_copy(theirs.name, "somebody else's model")
        source = ModelSource.parse(base, revision).on_disk()
        with strangers.opened(theirs, source) as model:
            return _prove(model, source, given, dtype, device, **ask)
    opened = _artefact(artefact)
    if opened.kind == ONNX:
        exported.check(opened, dtype)
    try:
        source = opened.base_source(base, revision)
    except CheckpointError as error:
        raise VerificationError(str(error)) if base is None else error from error
    write = write and opened.hub_id is None and quantised is None
    sealed = opened.seal() if write else {}
    with _copy_of(opened, quantised, source) as copy:
        found = _prove(opened, source, given, dtype, device, copy=copy, **ask)
    if write:
        opened.write(VERIFICATION, found.on(sealed).to_json())
    return found


@contextlib.contextmanager
def _copy_of(artefact: Artefact, quantised: str | Path | None, source: ModelSource) -> Iterator[Copy | None]:
    if quantised is None:
        yield None
        return
    _refuse_copy(artefact.name, artefact.kind)
    with copies.opened(quantised, source.on_disk()) as copy:
        yield copy


def _refuse_copy(name: str, kind: str) -> None:
    """Raises VerificationError for what is no fold: only of a fold it is known what a quantised copy should say."""
    if kind != "fold":
        raise VerificationError(
            f"'{name}' is no fold ({kind}), and a quantised copy is proved beside the fold that it was made from: bake "
            "with --how fold, and name that"
        )


def _of_somebody_else(model: str | Path | Artefact) -> ModelSource | None:
    """The files of a model that has no record of ours; None of an artefact."""
    if isinstance(model, Artefact) or is_artefact(model):
        return None
    source = strangers.located(model)
    return None if is_artefact(source.folder()) else source


def _artefact(given: str | Path | Artefact) -> Artefact:
    try:
        found = Artefact.open(given)
    except CheckpointError as error:
        if is_artefact(str(given)):
            raise
        hint = "A model that somebody else made is proved against a base and an edit: name both (--base, --edit)."
        raise CheckpointError(f"{error} {hint}") from error
    if found.file is not None:
        raise VerificationError(
            f"{found.file} is a GGUF, which llama.cpp runs and verify does not: verify the artefact that it was made "
            "from (sea-bake inspect says whether the file is still as it was written)"
        )
    return found


def _prove(
    model: Artefact | Stranger,
    source: ModelSource,
    edits: Sequence[str | Path] | None,
    dtype: str,
    device: str | None,
    *,
    prompts: Sequence[str] | None,
    max_new_tokens: int,
    positions: int,
    fresh: bool,
    copy: Copy | None = None,
) -> Verification:
    """Open all doors on one request, and judge."""
    if edits is not None:
        files = [edit_file(edit).path.absolute() for edit in edits]
        for file in files:
            Edit.load(file).refuse_nothing("there is nothing to prove: name the edit that was baked, at its strength")
    else:
        assert isinstance(model, Artefact)
        files = model.edit_files
    with _as_checkpoint(source, model) as plain:
        subject = Subject(
            model,
            source if plain is None else ModelSource(source.name, plain),
            files,
            plain or (source.folder() if model.kind == "adapter" else model.folder),
            device or default_device(),
            fresh,
        )
        own = not isinstance(model, Stranger) or model.has_tokenizer
        request = request_for(
            subject.plain,
            subject.source,
            prompts,
            max_new_tokens,
            positions,
            subject.form,
            what=subject.what,
            has_tokenizer=own or model.kind == "adapter",
        )
        if copy is not None:
            copies.check_tokenizer(copy, subject.source, request, prompts, subject.form)
        if model.kind == ONNX:
            return exported.prove(subject, request)
        return checkpoint.prove(subject, request, dtype, copy)


@contextlib.contextmanager
def _as_checkpoint(source: ModelSource, artefact: Artefact | Stranger) -> Iterator[Path | None]:
    """A folder made of a GGUF that is the base of an adapter, for as long as it is needed: PEFT loads onto no GGUF."""
    if artefact.kind != "adapter" or not source.is_gguf:
        yield None
        return
    beside = artefact.folder if artefact.hub_id is None else Path(tempfile.gettempdir(), artefact.name)
    need_space(beside.parent, 8 * source.folder().stat().st_size)
    with scratch_folder(beside) as folder:
        materialise(source, folder)
        yield folder
