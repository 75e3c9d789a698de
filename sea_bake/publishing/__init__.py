"""Publish an artefact to the Hub: verified, with its card and its recipe, in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sea_bake.artefact import Artefact
from sea_bake.artefact.names import CARD, PAGE, RECIPE
from sea_bake.errors import EvaluationError, OutputError, PublishError, command
from sea_bake.publishing.card import render
from sea_bake.publishing.contents import collect
from sea_bake.publishing.hub_errors import check_repo_id
from sea_bake.publishing.licence import find
from sea_bake.publishing.recipe import dump, origin
from sea_bake.publishing.upload import Pushed, push

__all__ = ["Publication", "publish"]


@dataclass(frozen=True, kw_only=True)
class Publication(Pushed):
    """What was published, or would be; and what the upload did.

    Attributes:
        repo: "user/name".
        verdict: "verified", "approximate" or "NOT verified".
        files: path -> bytes, of everything that the repository holds of ours.
        left_out: files of the artefact that stay at home.
        licence: its identifier, and where it was found.
        card: the model card's text.
    """

    repo: str
    verdict: str
    files: dict[str, int]
    left_out: list[str]
    licence: str
    card: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.size}


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
) -> Publication:
    """Upload a baked or exported folder with a model card and its recipe. The folder itself is not changed.

    The token is huggingface_hub's own (``hf auth login``, or HF_TOKEN). What the Hub holds already is not sent: a
    second publish of the same artefact sends nothing and makes no commit, and an interrupted one goes on where it was.

    Args:
        artefact: folder written by sea-bake bake or sea-bake export, and verified.
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

    Raises:
        PublishError: not verified, no artefact, something in it that must not be uploaded, or a Hub that refuses.
    """
    check_repo_id(repo, "the repository")
    if "/" not in repo:
        raise PublishError(f"'{repo}' lacks its owner: give USER/NAME")
    for dataset in datasets:
        check_repo_id(dataset, "the data set")
    found = replace(Artefact.open(artefact), base_id=base_model)
    _check(found, unverified=unverified)
    try:
        evaluation, page = found.evaluation, found.page
    except (EvaluationError, OutputError) as error:
        raise PublishError(str(error)) from error
    licence, base_card = find(found, license)
    made = found.renamed(base_model)
    made[RECIPE] = dump(found, model=base_model, output=repo.rpartition("/")[2])
    card = render(
        found,
        repo,
        licence=licence,
        base_card=base_card,
        results=[row for row in evaluation.headlines if not row.measure.part] if evaluation else [],
        datasets=[*dict.fromkeys([*datasets, *_datasets(found)])],
        report=PAGE if page else None,
        revision=None if create_pr else revision,
    )
    items, left_out = collect(found, made | {CARD: card}, include)
    pushed = Pushed(private=not public)
    if not dry_run:
        what = f"{found.base_name.rpartition('/')[2]} with SEA baked in ({found.kind}, {found.verdict})"
        pushed = push(
            items,
            repo,
            card=card,
            message=commit_message or what,
            public=public,
            revision=revision,
            create_pr=create_pr,
            base=found.base,
            base_revision=found.revision,
        )
    return Publication(
        **asdict(pushed),
        repo=repo,
        verdict=found.verdict,
        files={item.path: item.size for item in items},
        left_out=left_out,
        licence=f"{licence.id} ({licence.origin})",
        card=card,
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


def _datasets(artefact: Artefact) -> list[str]:
    """Hub ids of the data sets that the edits were fitted on, where they came from the Hub."""
    origins = map(origin, artefact.edits)
    names = [str(one.get("source")).partition(":")[0] for one in origins if one.get("kind") == "hub"]
    for name in names:
        check_repo_id(name, "the data set that the edit records")
    return names
