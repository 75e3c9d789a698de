"""The Hub's refusals, each as one clear sentence with its cure; and names that it would refuse."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sea_bake.errors import PublishError, SeaBakeError

LOG_IN = "log in with `hf auth login` (or set HF_TOKEN) and a token that may write"
_AGAIN = "run the same command again: what the Hub has whole is not sent twice"


@contextlib.contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a PublishError. Our own errors pass."""
    try:
        yield
    except SeaBakeError:
        raise
    except Exception as error:
        raise PublishError(_told(error, repo)) from error


def check_repo_id(repo_id: str, what: str) -> None:
    """Raise PublishError unless it can be the id of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{what} '{repo_id}' cannot be the id of a repository: {error}") from error


def _told(error: BaseException, repo: str) -> str:
    from huggingface_hub import errors, get_token

    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    for found in chain:
        if isinstance(found, errors.OfflineModeIsEnabled):
            return "the Hub is not asked, since HF_HUB_OFFLINE is set: unset it to publish"
        if isinstance(found, errors.LocalTokenNotFoundError):
            return f"nobody is logged in to the Hub: {LOG_IN}"
        if isinstance(found, errors.HfHubHTTPError):
            return _status(found, repo, logged_in=get_token() is not None)
    for found in chain:
        if isinstance(found, OSError) or type(found).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore"):
            return f"the Hub cannot be reached, or hung up ({_line(found)}): {_AGAIN}"
    return f"the upload to {repo} failed ({type(error).__name__}: {_line(error)}): {_AGAIN}"


def _status(error: Any, repo: str, *, logged_in: bool) -> str:
    from huggingface_hub import errors

    status, said = error.response.status_code, error.server_message
    reason = f" ({' '.join(str(said).split())})" if said else ""
    if not logged_in and status in (401, 403, 404):
        return f"nobody is logged in to the Hub: {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no such revision{reason}: give a branch that is there, or leave --revision out"
    taken = f"somebody else has written to {repo} meanwhile{reason}: {_AGAIN}"
    known = {
        400: f"the Hub does not accept this{reason or f' ({_line(error)})'}",
        401: f"the Hub does not accept your token{reason}: {LOG_IN}",
        403: f"your token may not write to {repo}{reason}: {LOG_IN}, or choose a repository under your own name",
        404: f"the Hub has no repository {repo}, or does not show it to you{reason}: check its name and your login",
        409: taken,
        412: taken,
        429: f"the Hub asks to slow down{reason}: wait a while, then {_AGAIN}",
    }
    return known.get(status, f"the Hub failed with status {status}{reason}: {_AGAIN}")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
