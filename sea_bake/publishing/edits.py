"""Publish an edit by itself: one file, with its card and its recipe. It serves every quantisation of its base."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sea_bake.artefact.evaluation import Evaluation
from sea_bake.artefact.names import CARD, EVALUATION, RECIPE
from sea_bake.edit import Edit
from sea_bake.errors import EvaluationError, PublishError
from sea_bake.io.edits import EDIT_FILE, MAX_BYTES, edit_file, is_hub_edit
from sea_bake.io.files import json_text
from sea_bake.pages.edits import worth
from sea_bake.publishing.contents import Item
from sea_bake.publishing.edit_card import render
from sea_bake.publishing.eval_results import eval_results
from sea_bake.publishing.hub_errors import check_repo_id
from sea_bake.publishing.licence import Place, find
from sea_bake.publishing.publication import Publication, Target
from sea_bake.publishing.recipe import datasets_of, dump_edit
from sea_bake.publishing.secrets import leak
from sea_bake.reporting.subject import Subject


@dataclass(frozen=True)
class EditToPublish:
    """An edit as it will lie on the Hub.

    Attributes:
        edit: it, under its base's name on the Hub.
        source: its file; or its bytes, where the base was renamed.
        folder: where the file lies, which must not show in anything that is published.
    """

    edit: Edit
    source: Path | bytes
    folder: Path

    @property
    def item(self) -> Item:
        return Item.of(EDIT_FILE, self.source)

    @classmethod
    def open(cls, path: str | Path, base_model: str | None) -> EditToPublish:
        """Raises EditError where it is none; PublishError where it cannot be published as it is."""
        found = edit_file(path)
        file = found.path.absolute()
        if found.origin is None and file.is_symlink():
            raise PublishError(f"{file} is a link: publish the file itself, {os.path.realpath(file)}")
        edit = Edit.load(file)
        if edit.changes_nothing:
            raise PublishError(f"{file} changes nothing, so there is nothing to publish: fit another edit")
        if file.stat().st_size > MAX_BYTES:
            raise PublishError(
                f"{file} has more than {MAX_BYTES:,} bytes, and an edit of that size is fetched by nobody from the "
                "Hub: fit it with fewer directions (-K), or publish the artefact that it is baked into"
            )
        name, revision = edit.base.name, edit.base.revision
        if base_model is None and "/" not in name and revision is None:
            raise PublishError(
                f"an edit belongs to its base, and '{name}' is the name of a local folder: say what the base is called "
                "on the Hub with --base-model"
            )
        if base_model is None or base_model == name:
            check_repo_id(name, "the base")
            return cls(edit, file, file.parent)
        check_repo_id(base_model, "the base")
        edit = replace(edit, base=replace(edit.base, name=base_model, revision=None))
        with tempfile.TemporaryDirectory(prefix="sea-bake-publish-") as scratch:
            return cls(edit, edit.save(Path(scratch, EDIT_FILE)).read_bytes(), file.parent)


def is_edit(path: str | Path) -> bool:
    """Whether it is to be opened as an edit: a file that is no GGUF, or an edit on the Hub."""
    place = os.path.expanduser(path)
    named = str(path).lower().endswith(".safetensors")
    return not place.endswith(".gguf") and (os.path.isfile(place) or named or is_hub_edit(path))


def publish_edit(
    path: str | Path,
    target: Target,
    *,
    evaluation: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> Publication:
    """See :func:`sea_bake.publishing.publish`."""
    found = EditToPublish.open(path, base_model)
    edit, measured = found.edit, _evaluation(path, evaluation)
    licence, base_card = find(Place(edit.base.name, edit.base.revision), license)
    made = {RECIPE: dump_edit(edit, found.item.sha256, output=target.repo.rpartition("/")[2])}
    if measured is not None:
        made[EVALUATION] = json_text(measured.to_json())
        made |= eval_results(measured, target.repo, revision=target.branch)
    made[CARD] = card = render(
        edit,
        target.repo,
        sha256=found.item.sha256,
        licence=licence,
        base_card=base_card,
        results=[row for row in measured.headlines if not row.measure.part] if measured else [],
        datasets=[*dict.fromkeys([*datasets, *datasets_of([edit])])],
        revision=target.branch,
    )
    items = [found.item, *(Item.of(name, text.encode()) for name, text in sorted(made.items()))]
    for item in items:
        what = leak(item.path, item.source, found)
        if what:
            raise PublishError(f"{item.path} holds {what}, which everybody could read: take it out")
    message = f"Edit of {edit.base.name.rpartition('/')[2]} ({edit.site.value} of {len(edit.layers)} layers)"
    return target.publish(items, card=card, message=message, verdict="edit", licence=licence, worth=worth([edit]))


def _evaluation(path: str | Path, given: str | Path | None) -> Evaluation | None:
    if given is None:
        return None
    try:
        return Subject.open(path).evaluation(given)
    except EvaluationError as error:
        raise PublishError(str(error)) from error
