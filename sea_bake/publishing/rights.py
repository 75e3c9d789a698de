"""Whether the Hub would take what is going to be published: asked before hours of work, and nothing is made or sent."""

from __future__ import annotations

import inspect

from sea_bake.errors import PublishError
from sea_bake.publishing.hub_errors import LOG_IN, hub_errors
from sea_bake.publishing.publication import Target
from sea_bake.publishing.upload import check_visibility


def check_rights(target: Target) -> None:
    """Look at the login, at what its token may do, and at the repository, where it is there already.

    Raises:
        PublishError: not logged in, not allowed, not reachable, or public unasked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api, repo = HfApi(), target.repo
    with hub_errors(repo):
        account = api.whoami()
        token = (account.get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            raise PublishError(f"your token may not write to {repo}, it may only read: {LOG_IN}")
        try:
            info = api.repo_info(repo)
        except RepositoryNotFoundError:
            if target.create_pr:
                raise
            names = [account["name"], *(one["name"] for one in account.get("orgs") or ())]
            if repo.partition("/")[0].lower() not in {name.lower() for name in names}:
                raise PublishError(
                    f"your token may not write to {repo}: it is not there, or not shown to you, and {account['name']} "
                    f"can make one under {' or '.join(names)} alone. Choose a repository there, or {LOG_IN}"
                ) from None
            return
        check_visibility(repo, private=bool(info.private), public=target.public)
        if target.create_pr or "write" not in inspect.signature(api.auth_check).parameters:  # older releases
            return
        try:
            api.auth_check(repo, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise  # any other says that this Hub cannot be asked so
