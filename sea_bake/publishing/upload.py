"""Upload through huggingface_hub: what the Hub has is not sent, large files go first, and one commit tells it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sea_bake.artefact.names import CARD, EVAL_RESULTS, EXPORT, RECIPE, RECORD, VERIFICATION
from sea_bake.errors import PublishError
from sea_bake.io import progress
from sea_bake.io.edits import EDIT_FILE
from sea_bake.model.source import ADAPTER_CONFIG
from sea_bake.model.suffixes import WEIGHTS
from sea_bake.publishing.contents import Item
from sea_bake.publishing.hub_errors import hub_errors

_WAVE = 4  # files under way at once; after each wave the Hub holds them, whatever happens next
# What decides which model a repository holds: left over from an earlier publish, it could be loaded in ours' place.
_DECIDE = (*WEIGHTS, ".py", ".index.json")
_CONFIGS = ("config.json", ADAPTER_CONFIG, RECIPE, VERIFICATION)
_NEW_SPACE = {".gitattributes", CARD, "index.html", "style.css"}  # what the Hub puts into a static one
_FOLDERS = ("sea/", EVAL_RESULTS.partition("{")[0])


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What an upload did; without ``url`` and ``commit`` where it was a dry run.

    Attributes:
        url: of the repository.
        private: whether only its owners see it.
        commit: the commit that now holds everything; an earlier one when there was nothing new.
        pull_request: its URL, where one was asked for.
        sent, copied, there: paths that were uploaded, copied on the Hub out of the base's repository, there already.
        removed: paths of an earlier publish that are gone now.
    """

    url: str | None = None
    private: bool
    commit: str | None = None
    pull_request: str | None = None
    sent: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def push(
    items: Sequence[Item],
    repo: str,
    *,
    card: str,
    message: str,
    public: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    base: str | None = None,
    base_revision: str | None = None,
    kind: str = "model",
) -> Pushed:
    """Make a repository hold exactly these files, in one commit.

    Args:
        card: checked by the Hub before anything is made or sent.
        base, base_revision: a repository on the Hub that may hold some of the files already.
        kind: "model", or "space" (a static one).

    Raises:
        PublishError: not logged in, not allowed, not reachable, other weights in the way, or public unasked.
    """
    from huggingface_hub import CommitOperationDelete, HfApi

    api = HfApi()
    with hub_errors(repo):
        _check_card(api, card, kind)
        info = _repository(api, repo, kind, public=public, create_pr=create_pr)
        if revision and not revision.startswith("refs/") and not create_pr:
            api.create_branch(repo, branch=revision, exist_ok=True, repo_type=kind)
        head = api.repo_info(repo, revision=revision, repo_type=kind).sha
        remote = _tree(api, repo, revision, kind)
        removed = (_earlier_page if kind == "space" else _leftovers)(remote, items, repo)
        new = [item for item in items if not _same(item, remote.get(item.path))]
        there = sorted({item.path for item in items} - {item.path for item in new})
        url = f"{api.endpoint}/{'spaces/' * (kind == 'space')}{repo}"
        pushed = Pushed(url=url, private=bool(info.private), commit=head, there=there)
        if not new and not removed:
            return pushed
        copies = _copies(api, new, base, base_revision)
        additions = {item.path: _addition(item) for item in new if item.path not in copies}
        place = {"repo_id": repo, "repo_type": kind, "revision": revision, "create_pr": create_pr}
        _send(api, list(additions.values()), place)
        removals = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in removed]
        options: dict[str, Any] = {**place, "commit_message": message, "parent_commit": head}
        try:
            done = api.create_commit(operations=[*additions.values(), *copies.values(), *removals], **options)
        except Exception as error:
            if not copies or not _refused_copy(error):
                raise
            additions |= {item.path: _addition(item) for item in new if item.path in copies}  # gated, another region
            copies = {}
            _send(api, [a for a in additions.values() if not a._is_uploaded], place)
            done = api.create_commit(operations=[*additions.values(), *removals], **options)
        _witness(_tree(api, repo, done.oid, kind), items, repo)
    facts = {"commit": done.oid, "pull_request": done.pr_url, "removed": removed}
    return replace(pushed, sent=sorted(additions), copied=sorted(copies), **facts)


def _check_card(api: Any, card: str, kind: str) -> None:
    """Not by ``ModelCard.validate``: before huggingface_hub 2.2 that asks huggingface.co, whatever HF_ENDPOINT says."""
    from huggingface_hub.utils import get_session, hf_raise_for_status

    asked = {"repoType": kind, "content": card}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=asked, headers={"Accept": "text/plain"})
    if response.status_code == 400:
        raise PublishError(f"the Hub does not accept the card's metadata: {response.text}")
    hf_raise_for_status(response)


def _repository(api: Any, repo: str, kind: str, *, public: bool, create_pr: bool) -> Any:
    """The repository's own facts; made when it is not there, but never for a pull request."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo, repo_type=kind)
    except RepositoryNotFoundError:
        if create_pr:
            raise
        sdk = {"space_sdk": "static"} if kind == "space" else {}
        api.create_repo(repo, private=not public, exist_ok=True, repo_type=kind, **sdk)
        return api.repo_info(repo, repo_type=kind)
    check_visibility(repo, private=bool(info.private), public=public)
    return info


def check_visibility(repo: str, *, private: bool, public: bool) -> None:
    """Raises PublishError where a repository that is there shows itself to others than was asked for."""
    if not private and not public:
        raise PublishError(
            f"{repo} is public, and everybody would see what is published into it: pass --public if that is meant, or "
            "choose another repository"
        )
    if private and public:
        raise PublishError(
            f"{repo} is private, and stays so whatever is published into it: drop --public, or make it public in "
            "its settings on the Hub first"
        )


def _tree(api: Any, repo: str, revision: str | None, kind: str = "model") -> dict[str, Any]:
    """Path -> what the Hub says of the file."""
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type=kind)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _same(item: Item, remote: Any) -> bool:
    """Whether the Hub's file has the same content: by SHA-256 of a large one, by git's own hash of a small one."""
    from huggingface_hub.utils.sha import git_hash

    if remote is None or remote.size != item.size:
        return False
    return bool(remote.lfs.sha256 == item.sha256 if remote.lfs else remote.blob_id == git_hash(item.read()))


def _leftovers(remote: dict[str, Any], items: Sequence[Item], repo: str) -> list[str]:
    """Files of an earlier publish that could be taken for a part of this one: they go in the same commit.

    Raises:
        PublishError: they are not ours to remove.
    """
    there = sorted(p for p in remote if p.endswith(_DECIDE) or p in _CONFIGS or p.startswith(_FOLDERS))
    ours = {item.path for item in items}
    theirs = _kind({*remote})
    if there and theirs is None:
        raise PublishError(
            f"{repo} holds another model ({there[0]}), which sea_bake did not publish: choose a repository of its own"
        )
    if there and theirs != _kind(ours):
        raise PublishError(f"{repo} holds {theirs} ({there[0]}): choose a repository of its own for {_kind(ours)}")
    return [path for path in there if path not in ours]


def _earlier_page(remote: dict[str, Any], items: Sequence[Item], repo: str) -> list[str]:
    """All that an earlier page left in a Space. Raises PublishError where somebody else made it."""
    left = sorted({*remote} - {item.path for item in items} - _NEW_SPACE)
    if left and EXPORT not in remote:
        raise PublishError(
            f"{repo} holds another Space ({left[0]}), which sea_bake did not publish: choose one of its own"
        )
    return left


def _kind(paths: set[str]) -> str | None:
    """What of ours these files are: a repository holds one thing, and what opens it by name tells them apart so."""
    if {RECORD, EXPORT} & paths:
        return "an artefact"
    return "an edit" if {EDIT_FILE, RECIPE} <= paths else None


def _copies(api: Any, items: Sequence[Item], base: str | None, revision: str | None) -> dict[str, Any]:
    """Large files that the base's repository holds byte for byte: the Hub copies them by itself, nothing is sent."""
    from huggingface_hub import CommitOperationCopy

    if base is None:
        return {}
    try:
        theirs = _tree(api, base, revision)
    except Exception:  # gone, gated, never there: then they are sent
        return {}
    by_hash = {f.lfs.sha256: f.path for f in theirs.values() if f.lfs and f.xet_hash}  # the Hub copies by this hash
    return {
        item.path: CommitOperationCopy(
            src_path_in_repo=by_hash[item.sha256],
            path_in_repo=item.path,
            src_revision=revision,
            src_repo_id=base,
            src_repo_type="model",
        )
        for item in items
        if item.sha256 in by_hash
    }


def _refused_copy(error: Exception) -> bool:
    from huggingface_hub.errors import FileDuplicationError, HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return "/lfs-files/duplicate" in str(error.response.url)
    return isinstance(error, FileDuplicationError)


def _addition(item: Item) -> Any:
    from huggingface_hub import CommitOperationAdd

    made = CommitOperationAdd(item.path, str(item.source) if isinstance(item.source, Path) else item.source)
    made.upload_info.sha256 = bytes.fromhex(item.sha256)  # known already: a large file is not read once more
    return made


def _send(api: Any, additions: Sequence[Any], place: dict[str, Any]) -> None:
    """Large files, in waves: the Hub keeps each one that it has whole, and is asked for it first the next time."""
    ordered = sorted(additions, key=lambda addition: addition.upload_info.size)
    with progress.bar("upload", sum(a.upload_info.size for a in ordered), "B") as advance:
        for start in range(0, len(ordered), _WAVE):
            wave = ordered[start : start + _WAVE]
            api.preupload_lfs_files(additions=wave, num_threads=_WAVE, free_memory=False, **place)
            advance(sum(a.upload_info.size for a in wave))


def _witness(remote: dict[str, Any], items: Sequence[Item], repo: str) -> None:
    """Raise PublishError unless the commit holds every file: a .gitignore on the Hub drops files without a word."""
    lost = [item.path for item in items if not _same(item, remote.get(item.path))]
    if lost:
        raise PublishError(
            f"{repo} does not hold {lost[0]} as it was sent (and {len(lost) - 1} other files): does a .gitignore of "
            "the repository name it?"
        )
