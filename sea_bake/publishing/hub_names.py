"""Names as the Hub takes them."""

from __future__ import annotations

from sea_bake.errors import PublishError


def check_repo_id(repo_id: str, what: str) -> None:
    """Raise PublishError unless it can be the id of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{what} '{repo_id}' cannot be the id of a repository: {error}") from error
