"""The base's Hub name in the place of a local folder's, in our own files."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from sea_bake.artefact.gguf_record import GgufRecord
from sea_bake.artefact.names import EVALUATION, EXPORT, PAGE_NUMBERS, RECORD, VERIFICATION
from sea_bake.artefact.record import OnnxRecord
from sea_bake.io.files import json_text
from sea_bake.model.source import ADAPTER_CONFIG

if TYPE_CHECKING:
    from sea_bake.artefact.opened import Artefact


def renamed(artefact: Artefact, base: str | None) -> dict[str, str]:
    """Path -> new text; see :meth:`Artefact.renamed`."""
    record = artefact.record
    if base is None or base == record.base or isinstance(record, GgufRecord):
        return {}
    texts = {EXPORT if isinstance(record, OnnxRecord) else RECORD: json_text(record.with_base(base).stored())}
    if artefact.kind == "adapter":
        config = {**artefact.config, "base_model_name_or_path": base, "revision": None}
        texts[ADAPTER_CONFIG] = json_text(config)
    verification = artefact.verification
    if verification is None:
        return texts
    seal = {**verification.files, **{path: _sha256(text) for path, text in texts.items()}}
    texts[VERIFICATION] = json_text(replace(verification, base=base).on(seal).to_json())
    # What else says which files it speaks of; both were held against the artefact before.
    evaluation, page = artefact.evaluation, artefact.page
    if evaluation is not None:
        texts[EVALUATION] = json_text(replace(evaluation, files=seal).to_json())
    if page is not None:
        digest = _sha256(texts[EVALUATION]) if EVALUATION in texts else None
        texts[PAGE_NUMBERS] = json_text(replace(page, files=seal, evaluation_sha256=digest).to_json())
    return texts


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
