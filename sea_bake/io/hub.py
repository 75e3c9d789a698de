"""Snapshots of the Hub's repositories, out of its cache where they lie there: fetched here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sea_bake.errors import CheckpointError, first_line_of


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
