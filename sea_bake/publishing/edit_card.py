"""The card of an edit that is published by itself: what it is, on which base, and how it is applied."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sea_bake.artefact.evaluation import Row
from sea_bake.artefact.names import RECIPE
from sea_bake.edit import Edit
from sea_bake.methods.table import METHODS
from sea_bake.model.anatomy import Site
from sea_bake.pages.edits import columns, sentence, worth
from sea_bake.pages.markdown import front_matter
from sea_bake.pages.templates import markdown
from sea_bake.publishing.card import languages, measured, model_index
from sea_bake.publishing.licence import Licence
from sea_bake.publishing.recipe import can_be_fitted_again, fingerprint, origin

_RELATION = "adapter"  # what the Hub's model tree calls a small file that is put onto its base
_TASK = "text-generation"


def render(
    edit: Edit,
    repo: str,
    *,
    sha256: str,
    licence: Licence,
    base_card: dict[str, Any],
    results: Sequence[Row] = (),
    datasets: Sequence[str] = (),
    revision: str | None = None,
) -> str:
    """README.md of a published edit; its prose stands in pages/templates/edit_card.md.j2.

    Args:
        repo: where it will be: "user/name".
        sha256: of its file.
        base_card: metadata of the base's card, for its language.
        results: what was measured; nothing is claimed without.
        datasets: Hub ids of the demonstrations.
        revision: the branch that it is published to; None: main.
    """
    from huggingface_hub import ModelCard

    title = repo.rpartition("/")[2]
    data = _metadata(edit, title, licence, languages(base_card.get("language")), results, datasets)
    body = markdown(
        "edit_card.md.j2",
        edit=edit,
        base=edit.base,
        method=edit.method,
        title=title,
        name=repo if revision is None else f"{repo}@{revision}",
        revision=revision,
        repo=repo,
        sha256=sha256,
        fingerprint=fingerprint(edit.base),
        samples_all=bool(edit.base.rest),
        recipe=RECIPE,
        licence=licence,
        sentence=sentence(edit),
        settings=columns([edit]),
        ranks=[[layer, *k] for layer, k in edit.ranks.items()] if edit.projectors else [],
        worth=worth([edit]),
        gains=bool(edit.measured and edit.measured.gain),
        results=[measured(row) for row in sorted(results, key=lambda row: row.kind != "gain")],
        refits=can_be_fitted_again(edit),
        missing=str(origin(edit).get("source")) if origin(edit).get("kind") in ("file", "folder") else "",
    )
    text = f"{front_matter(data.to_dict())}\n{body}"
    ModelCard(text)  # parsed once: what the Hub's own library cannot read does not leave the house
    return text


def tags_of(edit: Edit) -> list[str]:
    """What readers of the Hub look for."""
    found = ["sea_bake", "steering-vector", "activation-steering", "model-editing"]
    found += [edit.method] if re.fullmatch(r"[a-z][a-z0-9-]*", edit.method) else []
    row = METHODS.get(edit.method)
    found += [f"arxiv:{row.paper}"] if row and row.paper else []
    found += ["control-vector"] if edit.site is Site.BLOCK and edit.is_constant else []
    found += ["reproducible"] if can_be_fitted_again(edit) else []
    return [*found, f"base_model:{_RELATION}:{edit.base.name}"]


def _metadata(
    edit: Edit, title: str, licence: Licence, language: Any, results: Sequence[Row], datasets: Sequence[str]
) -> Any:
    """The card's metadata, as huggingface_hub's ModelCardData."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        language=language,
        library_name="sea_bake",
        pipeline_tag=_TASK,
        base_model=edit.base.name,
        base_model_relation=_RELATION,
        datasets=list(datasets) or None,
        tags=tags_of(edit),
        model_name=title if results else None,
        eval_results=model_index(results, _TASK) or None,
        license=licence.id,
        license_name=licence.name or None,
        license_link=licence.link or None,
    )
