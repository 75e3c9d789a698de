"""sea-bake publish"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sea_bake.cli.printing import Json, Quiet, emit, prepare, size

if TYPE_CHECKING:
    from rich.console import Console

    from sea_bake.publishing import Publication


def publish(
    artefact: Annotated[Path, typer.Argument(help="Folder written by sea-bake bake or sea-bake export, and verified.")],
    repo: Annotated[str, typer.Argument(metavar="USER/REPO", help="Where to: made, private, when it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see. Default: private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files, their sizes and the model card; send nothing.")
    ] = False,
    unverified: Annotated[
        bool,
        typer.Option("--unverified", help="Publish without a passed verification: the card's first line says so."),
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose it as a pull request to a repository that exists.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to publish to; made when not there.")] = None,
    commit_message: Annotated[str | None, typer.Option("--commit-message", "-m", help="Of the one commit.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the base, where the artefact names a local folder.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="The Hub's identifier, such as apache-2.0. Default: the base's own licence.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Hub id of the demonstrations' data set, for the card (repeatable).")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a verified artefact to the Hugging Face Hub, with a model card and the recipe that made it.

    Refuses what is not verified, or was changed since. One commit; what the Hub has already is not sent,
    so an interrupted publish goes on where it was, and a second one sends nothing. Log in once with hf auth login
    (or set HF_TOKEN); sea-bake itself takes no token. Look first, then publish:

      sea-bake publish smollm2-truthful me/smollm2-truthful --dry-run

      sea-bake publish smollm2-truthful me/smollm2-truthful
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake.publishing import publish as run

    report = run(
        artefact,
        repo,
        public=public,
        dry_run=dry_run,
        unverified=unverified,
        create_pr=create_pr,
        revision=revision,
        commit_message=commit_message,
        base_model=base_model,
        license=license,
        datasets=dataset or [],
    )
    emit(report.to_json(), as_json=as_json)
    show(report, console)


def show(report: Publication, console: Console) -> None:
    """The card (of a dry run), the files, and what became of each."""
    from rich.markup import escape
    from rich.table import Table

    if report.commit is None:
        console.rule("README.md")
        console.print(report.card, markup=False, soft_wrap=True)
        console.rule()
    fates = {"sent": report.sent, "copied on the Hub": report.copied, "there already": report.there}
    fate = {path: name for name, paths in fates.items() for path in paths}
    table = Table("file", "size", "", title=f"{escape(report.repo)} ({report.verdict})", title_justify="left")
    for path, count in report.files.items():
        table.add_row(escape(path), size(count), fate.get(path, ""))
    console.print(table)
    if report.left_out:
        console.print(f"stays here: {', '.join(report.left_out)}", markup=False)
    if report.removed:
        console.print(f"removed there, of an earlier publish: {', '.join(report.removed)}", markup=False)
    console.print(f"licence: {report.licence}", markup=False)
    who = "private" if report.private else "public"
    if report.commit is None:
        console.print(f"dry run: {size(report.size)} in {len(report.files)} files; {who}; nothing was sent")
    elif not report.sent and not report.copied and not report.removed:
        console.print(f"nothing new: {report.url} ({who}) holds all of it, at commit {report.commit}", markup=False)
    else:
        sent = size(sum(report.files[path] for path in report.sent))
        console.print(
            f"published: {report.pull_request or report.url} ({who}), commit {report.commit}, {sent} sent", markup=False
        )
