"""Publish to the Hub, in one commit: an artefact, verified, or an edit by itself; with its card and its recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sea_bake.artefact import Artefact
from sea_bake.artefact.names import CARD, PAGE, RECIPE
from sea_bake.errors import EvaluationError, OutputError, PublishError, command
from sea_bake.io.staging import scratch_folder
from sea_bake.pages.edits import worth
from sea_bake.publishing.card import render
from sea_bake.publishing.contents import Item, collect
from sea_bake.publishing.edits import is_edit, publish_edit
from sea_bake.publishing.eval_results import eval_results
from sea_bake.publishing.ggufs import HEAD, check_gguf, quantised
from sea_bake.publishing.hub_errors import check_repo_id
from sea_bake.publishing.licence import Place, find
from sea_bake.publishing.publication import Publication, Target
from sea_bake.publishing.recipe import datasets_of, dump
from sea_bake.publishing.rights import check_rights
from sea_bake.publishing.spaces import publish_space

__all__ = ["Publication", "publish"]


def publish(
    artefact: str | Path | Artefact,
    repo: str,
    *,
    public: bool = False,
    unverified: bool = False,
    dry_run: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    include: Sequence[str] = (),
    evaluation: str | Path | None = None,
    space: bool = False,
    gguf: Sequence[str] = (),
) -> Publication:
    """Upload a baked or exported folder, or an edit, with a model card and its recipe. What lies here is not changed.

    The token is huggingface_hub's own (``hf auth login``, or HF_TOKEN). What the Hub holds already is not sent: a
    second publish of the same artefact sends nothing and makes no commit, and an interrupted one goes on where it was.

    Args:
        artefact: folder written by sea-bake bake or sea-bake export, and verified; or an edit file.
        repo: where to publish: "user/name"; made, private, when it does not exist.
        public: everybody can see it. Default: private.
        unverified: publish also without a passed verification of just these files: the card's first line says so.
        dry_run: show the files, their sizes and the model card; send nothing.
        create_pr: propose it as a pull request to a repository that exists.
        revision: branch to publish to; made when it does not exist. Default: main.
        commit_message: of the one commit. Default: what was published.
        base_model: Hub id of the base, where the artefact names a local folder.
        license: the Hub's identifier of the licence, such as apache-2.0. Default: the base's own.
        datasets: Hub id of a data set that the demonstrations came from, for the card.
        include: a further file of the folder to publish. Default: the known parts of an artefact alone; what else lies
            there is named, and stays.
        evaluation: of an edit, what sea-bake eval -o wrote (folder or JSON). An artefact holds its own.
        space: of an ONNX export, publish a page that runs base and edited model in the browser, as a static Space. With
            an export of a variable strength it shows both.
        gguf: of a fold, a GGUF in this type beside it: "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m" or "q4_0"; several
            are joined by commas. By llama.cpp's own converter and quantiser (pip install cyllama); the card
            says what each keeps of the model and of the edit.

    Raises:
        PublishError: not verified, no artefact, something in it that must not be uploaded, or a Hub that refuses.
    """
    target = Target(
        repo=repo,
        public=public,
        dry_run=dry_run,
        create_pr=create_pr,
        revision=revision,
        commit_message=commit_message,
    )
    for dataset in datasets:
        check_repo_id(dataset, "the data set")
    if not isinstance(artefact, Artefact) and is_edit(artefact):
        drop = ["--unverified"] * unverified + ["--include"] * bool(include) + ["--space"] * space
        drop += ["--gguf"] * bool(gguf)
        if drop:
            raise PublishError(f"an edit is one file, and is proved when it is baked: drop {' and '.join(drop)}")
        return publish_edit(
            artefact, target, evaluation=evaluation, base_model=base_model, license=license, datasets=datasets
        )
    found = replace(Artefact.open(artefact), base_id=base_model)
    if evaluation is not None:
        again = command("sea-bake", "eval", found.folder, "--write")
        raise PublishError(f"an artefact holds its own evaluation ({again} writes it): drop --evaluation")
    _check(found, unverified=unverified)
    if space:
        drop = (
            ["--include"] * bool(include) + ["--dataset"] * bool(datasets) + ["--base-model"] * (base_model is not None)
        )
        drop += ["--gguf"] * bool(gguf)
        if drop:
            raise PublishError(f"a page says nothing of data, and holds the export alone: drop {' and '.join(drop)}")
        return publish_space(found, target, license)
    kinds = list(dict.fromkeys(kind for given in gguf for kind in given.split(",")))
    if not kinds:
        return _publish(found, target, license, datasets, include)
    source = check_gguf(found, kinds)
    if not dry_run:
        check_rights(target)
    with scratch_folder(found.folder) if found.hub_id is None else _elsewhere() as folder:
        name = repo.rpartition("/")[2]
        return _publish(
            found, target, license, datasets, include, lambda: quantised(found, source, kinds, name, folder)
        )


def _elsewhere() -> AbstractContextManager[Path]:
    """A temporary folder, for an artefact that lies in the Hub's cache."""
    return scratch_folder(Path(tempfile.gettempdir(), "sea-bake-publish"))


def _publish(
    found: Artefact,
    target: Target,
    license: str | None,
    datasets: Sequence[str],
    include: Sequence[str],
    quantise: Callable[[], tuple[list[Item], list[list[Any]]]] | None = None,
) -> Publication:
    """An artefact that may be published, with what ``quantise`` makes: copies of it, and the rows of what they keep."""
    repo = target.repo
    try:
        measured, page = found.evaluation, found.page
    except (EvaluationError, OutputError) as error:
        raise PublishError(str(error)) from error
    licence, base_card = find(Place.of(found), license)
    made = found.renamed(found.base_id)
    made[RECIPE] = dump(found, model=found.base_id, output=repo.rpartition("/")[2])
    made |= eval_results(measured, repo, revision=target.branch)
    ggufs: list[Item] = []
    kept: list[list[Any]] = []
    if quantise is not None:
        collect(found, made | {CARD: ""}, include)  # what is refused is refused before the heavy work
        ggufs, kept = quantise()
    card = render(
        found,
        repo,
        licence=licence,
        base_card=base_card,
        results=[row for row in measured.headlines if not row.measure.part] if measured else [],
        datasets=[*dict.fromkeys([*datasets, *datasets_of(found.edits)])],
        report=PAGE if page else None,
        revision=target.branch,
        kept=(HEAD, kept) if kept else None,
    )
    items, left_out = collect(found, made | {CARD: card}, include)
    return target.publish(
        [*items, *ggufs],
        card=card,
        message=f"{found.base_name.rpartition('/')[2]} with SEA baked in ({found.kind}, {found.verdict})",
        verdict=found.verdict,
        licence=licence,
        worth=worth(found.edits),
        left_out=left_out,
        base=found.base,
        base_revision=found.revision,
    )


def _check(artefact: Artefact, *, unverified: bool) -> None:
    """Raise PublishError for what is no edited model, not verified, or could not be found again."""
    folder = artefact.folder
    if artefact.file is not None:
        raise PublishError(f"{artefact.file} is a GGUF: publish the artefact that it was made from")
    if artefact.how == "unedited":
        raise PublishError(f"{folder} is the export of an unedited model: there is no edit in it to publish")
    if artefact.doubt and not unverified:
        raise PublishError(
            f"{folder} is not verified: {artefact.doubt}. Run {command(*artefact.verifying)}, or pass --unverified, "
            "which the model card then says in its first line."
        )
    if artefact.base is not None:
        check_repo_id(artefact.base, "the base")
    if artefact.kind == "adapter" and artefact.base is None:
        raise PublishError(
            f"an adapter loads onto its base, and '{artefact.record.base}' is the name of a local folder: say what "
            "the base is called on the Hub with --base-model"
        )
