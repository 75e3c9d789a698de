"""The base's Hub name in the place of a local folder's, in our own files."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from sea_bake.artefact import Artefact, OnnxRecord
from sea_bake.artefact.names import EVALUATION, EXPORT, PAGE_NUMBERS, RECORD, VERIFICATION
from sea_bake.io.files import json_text, read_json
from sea_bake.model.source import ADAPTER_CONFIG


def renamed(artefact: Artefact, base_model: str | None) -> dict[str, str]:
    """Path -> new text, of our own files that name the base, where it gets another name on the Hub.

    The verification goes along, and so do the evaluation and the page: they spoke of these files but for that name, so
    their seals are set on the new ones.
    """
    if base_model is None or base_model == artefact.record.base:
        return {}
    folder, name = artefact.folder, {"base": base_model, "revision": None}
    if isinstance(artefact.record, OnnxRecord):
        data = read_json(folder / EXPORT)
        made = {EXPORT: {**data, **name} | ({"bake": {**data["bake"], **name}} if data.get("bake") else {})}
    else:
        made = {RECORD: {**read_json(folder / RECORD), **name}}
    if artefact.kind == "adapter":
        made[ADAPTER_CONFIG] = {**artefact.config, "base_model_name_or_path": base_model, "revision": None}
    texts = {path: json_text(data) for path, data in made.items()}
    verification = artefact.verification
    if verification is None:
        return texts
    seal = {**verification.files, **{path: _sha256(text) for path, text in texts.items()}}
    texts[VERIFICATION] = json_text(replace(verification, base=base_model).on(seal).to_json())
    # What else says which files it tells of; both were held against the artefact before.
    if (folder / EVALUATION).is_file():
        texts[EVALUATION] = json_text(read_json(folder / EVALUATION) | {"files": seal})
    page = artefact.page
    if page is not None:
        digest = _sha256(texts[EVALUATION]) if EVALUATION in texts else None
        texts[PAGE_NUMBERS] = json_text(replace(page, files=seal, evaluation_sha256=digest).to_json())
    return texts


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
