"""sea-bake publish"""

from __future__ import annotations

from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import table
from sea_bake.pages.text import size


@command("sea_bake.publishing:publish", repo=spelt(metavar="USER/REPO"), commit_message=spelt("-m"))
def publish(call: Call) -> None:
    """Publish a verified artefact, or an edit, to the Hugging Face Hub, with a card and the recipe that made it.

    Refuses what is not verified, or was changed since. One commit; what the Hub has already is not sent,
    so an interrupted publish goes on where it was, and a second one sends nothing. Log in once with hf auth login
    (or set HF_TOKEN); sea-bake itself takes no token. Look first, then publish; an export's page too, as a Space:

      sea-bake publish smollm2-truthful me/smollm2-truthful --dry-run

      sea-bake publish smollm2-truthful me/smollm2-truthful

      sea-bake publish smollm2-onnx me/smollm2-page --space
    """
    console, report = call.console, call.run()
    if report.commit is None:
        console.rule("README.md")
        console.print(report.card, markup=False, soft_wrap=True)
        console.rule()
    fates = {"sent": report.sent, "copied on the Hub": report.copied, "there already": report.there}
    fate = {path: name for name, paths in fates.items() for path in paths}
    rows = [[escape(path), size(count), fate.get(path, "")] for path, count in report.files.items()]
    title = f"{escape(report.repo)} ({report.verdict})"
    console.print(table(["file", "size", ""], rows, left=("size", ""), title=title))
    if report.left_out:
        console.print(f"stays here: {', '.join(report.left_out)}", markup=False)
    if report.removed:
        console.print(f"removed there, of an earlier publish: {', '.join(report.removed)}", markup=False)
    console.print("\n".join([f"licence: {report.licence}", *report.worth]), markup=False)
    who = "private" if report.private else "public"
    if report.commit is None:
        console.print(f"dry run: {size(report.size)} in {len(report.files)} files; {who}; nothing was sent")
    elif not report.sent and not report.copied and not report.removed:
        console.print(f"nothing new: {report.url} ({who}) holds all of it, at commit {report.commit}", markup=False)
    else:
        sent = size(sum(report.files[path] for path in report.sent))
        there = f"published: {report.pull_request or report.url} ({who}), commit {report.commit}, {sent} sent"
        back = f"Take it back: hf repos delete {'spaces/' * ('/spaces/' in report.url)}{report.repo}"
        console.print(there if report.pull_request else f"{there}\n{back}", markup=False, soft_wrap=True)
