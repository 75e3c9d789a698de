"""Snapshots of the Hub's repositories, out of its cache where they lie there: fetched here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sea_bake.errors import CheckpointError, SeaBakeError, first_line_of


def snapshot(
    name: str,
    revision: str | None = None,
    *,
    what: str = "model",
    only: Sequence[str] | None = None,
    but: Sequence[str] | None = None,
) -> Path:
    """The folder of a repository's files, named after its commit.

    Args:
        name: the Hub id.
        revision: branch, tag or commit. Default: main.
        what: what to call it in an error.
        only, but: patterns of the files to fetch, and of those not to fetch.

    Raises:
        CheckpointError: there is no such repository, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=only, ignore_patterns=but))
    except Exception as error:
        raise CheckpointError(
            f"no {what} '{name}': there is no such folder here, and the Hub did not give it either "
            f"({first_line_of(error)})"
        ) from error


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The commit of a model that a revision means now (offline: that it meant last); None where nobody says it."""
    from huggingface_hub import hf_hub_download

    try:
        return str(hf_hub_download(name, "config.json", revision=revision, dry_run=True).commit_hash)
    except Exception:  # whoever loads it says what is wrong
        return None


class AbsentError(SeaBakeError):
    """A repository is there, and lacks the file."""


def one_file(name: str, path: str, revision: str | None, *, what: str, limit: int, error: type[SeaBakeError]) -> Path:
    """One file of a repository, at the commit that a revision means now: its folder is named after that commit.

    Args:
        name: the Hub id.
        path: of the file in the repository.
        revision: branch, tag or commit. Default: main.
        what: what to call it in an error.
        limit: most bytes that it may have; a larger one is not fetched.
        error: of what is refused.

    Raises:
        AbsentError: the repository has no such file.
        error: there is no such repository or revision, the Hub cannot be reached, or the file is too large.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RevisionNotFoundError

    try:
        told = hf_hub_download(name, path, revision=revision, dry_run=True)
        if told.file_size > limit:
            raise error(
                f"the {what} '{name}' is a file of {told.file_size:,} bytes, and one from the Hub has at most "
                f"{limit:,}: download it, look at it, and give the file"
            )
        found = Path(hf_hub_download(name, path, revision=revision))
    except SeaBakeError:
        raise
    except RevisionNotFoundError as reason:
        raise error(f"the {what} '{name}' has no revision '{revision}': give a branch, tag or commit of it") from reason
    except Exception as reason:
        if isinstance(reason, EntryNotFoundError) and not isinstance(reason, LocalEntryNotFoundError):
            raise AbsentError(f"{name} holds no {path}") from reason
        raise error(
            f"no {what} '{name}': there is no such file here, and the Hub did not give it either "
            f"({first_line_of(reason)})"
        ) from reason
    if found.stat().st_size > limit:
        raise error(f"the {what} '{name}' came with more bytes than the Hub had said, over {limit:,}: it is not read")
    return found
