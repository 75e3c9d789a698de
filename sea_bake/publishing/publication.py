"""What is about to be published, and what came of it: the last step of an artefact and of an edit alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sea_bake.errors import PublishError
from sea_bake.publishing.contents import Item
from sea_bake.publishing.hub_errors import check_repo_id
from sea_bake.publishing.licence import Licence
from sea_bake.publishing.upload import Pushed, push


@dataclass(frozen=True, kw_only=True)
class Publication(Pushed):
    """What was published, or would be; and what the upload did.

    Attributes:
        repo: "user/name".
        verdict: "verified", "approximate" or "NOT verified"; "edit" of an edit, which is proved once it is baked.
        files: path -> bytes, of everything that the repository holds of ours.
        left_out: files of the artefact that stay at home.
        licence: its identifier, and where it was found.
        worth: what was measured of its edits when they were fitted, line by line.
        card: the model card's text.
    """

    repo: str
    verdict: str
    files: dict[str, int]
    left_out: list[str]
    licence: str
    worth: list[str]
    card: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.size}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where it goes, and how.

    Attributes:
        repo: "user/name".
        public, dry_run, create_pr, revision, commit_message: as of ``publish``.
    """

    repo: str
    public: bool = False
    dry_run: bool = False
    create_pr: bool = False
    revision: str | None = None
    commit_message: str | None = None

    def __post_init__(self) -> None:
        check_repo_id(self.repo, "the repository")
        if "/" not in self.repo:
            raise PublishError(f"'{self.repo}' lacks its owner: give USER/NAME")

    @property
    def branch(self) -> str | None:
        """The branch that readers have to name; None: they find it on main."""
        return None if self.create_pr else self.revision

    def publish(
        self,
        items: Sequence[Item],
        *,
        card: str,
        message: str,
        verdict: str,
        licence: Licence,
        worth: Sequence[str] = (),
        left_out: Sequence[str] = (),
        base: str | None = None,
        base_revision: str | None = None,
        kind: str = "model",
    ) -> Publication:
        """Send these files, or say what would be sent. Raises PublishError.

        Args:
            message: of the commit, where none was given.
            base, base_revision: a repository on the Hub that may hold some of the files already.
            kind: of repository: "model" or "space".
        """
        pushed = Pushed(private=not self.public)
        if not self.dry_run:
            pushed = push(
                items,
                self.repo,
                card=card,
                message=self.commit_message or message,
                public=self.public,
                revision=self.revision,
                create_pr=self.create_pr,
                base=base,
                base_revision=base_revision,
                kind=kind,
            )
        return Publication(
            **asdict(pushed),
            repo=self.repo,
            verdict=verdict,
            files={item.path: item.size for item in items},
            left_out=list(left_out),
            licence=f"{licence.id} ({licence.origin})",
            worth=list(worth),
            card=card,
        )
