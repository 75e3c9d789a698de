"""The recipe that goes along, and the base's Hub name in the place of a local folder's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sea_bake.artefact.export import EXPORT
from sea_bake.artefact.record import RECORD, is_artefact
from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.publishing.artefact import ONNX, Artefact
from sea_bake.publishing.evaluation import EVALUATION
from sea_bake.publishing.page import NUMBERS, PAGE
from sea_bake.verification import REPORT

RECIPE = "sea_bake.yaml"


def recipe_text(artefact: Artefact, repo: str, base_model: str | None) -> str | None:
    """sea_bake.yaml of an artefact; None of an export that does not hold what a recipe needs."""
    from sea_bake.recipes.provenance import dump

    try:
        return dump(artefact.folder, model=base_model, output=repo.rpartition("/")[2])
    except CheckpointError:
        if artefact.how != ONNX:
            raise
        return None


def renamed(artefact: Artefact, base_model: str | None) -> dict[str, str]:
    """Path -> new text, of our own files that name the base, where it gets another name on the Hub.

    The verification goes along, and so do the evaluation and the page: they spoke of these files but for that name, so
    their seals are set on the new ones.
    """
    if base_model is None or base_model == artefact.record.get("base"):
        return {}
    folder = artefact.folder
    made: dict[str, dict[str, Any]] = {}
    if is_artefact(folder):
        made[RECORD] = {**read_json(folder / RECORD), "base": base_model, "revision": None}
    else:
        made[EXPORT] = {**artefact.record, "base": base_model, "revision": None}
        if artefact.bake:
            made[EXPORT]["bake"] = {**artefact.bake, "base": base_model, "revision": None}
    if artefact.how == "adapter":
        made["adapter_config.json"] = {**artefact.config, "base_model_name_or_path": base_model, "revision": None}
    texts = {name: _text(data) for name, data in made.items()}
    if artefact.verification is not None:
        seal = {**artefact.verification["files"], **{n: _sha256(t) for n, t in texts.items()}}
        report = {**artefact.verification, "base": base_model, "files": seal}
        texts |= {REPORT: _text(report)} | _resealed(folder, seal)
    return texts


def _resealed(folder: Path, seal: dict[str, str]) -> dict[str, str]:
    """What else says which files it tells of: :func:`read_results` and :func:`check_page` have looked at it before."""
    texts: dict[str, str] = {}
    if (folder / EVALUATION).is_file():
        texts[EVALUATION] = _text(read_json(folder / EVALUATION) | {"files": seal})
    if (folder / NUMBERS).is_file() and (folder / PAGE).is_file():
        told = _sha256(texts[EVALUATION]) if EVALUATION in texts else None
        texts[NUMBERS] = _text(read_json(folder / NUMBERS) | {"files": seal, "evaluation_sha256": told})
    return texts


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
