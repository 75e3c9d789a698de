"""sea-bake init, sea-bake run, sea-bake reproduce"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sea_bake.recipes.running import Progress

_MARKS = {
    "waiting": "[dim]·[/]", "running": "[bold cyan]»[/]", "kept": "[green]=[/]", "done": "[bold green]✓[/]",
    "would run": "[yellow]»[/]", "failed": "[bold red]✗[/]", "left out": "[dim]·[/]",
}  # fmt: skip


@command(
    "sea_bake.recipes.running:run",
    recipe=spelt(positional=True, hint=Path, default=Path("sea_bake.yaml")),
    until=spelt(metavar="STEP"),
    again_from=spelt("--from", metavar="STEP"),
)
def run(call: Call) -> None:
    """Fit, bake, verify, evaluate, report, export and publish as one recipe says, step by step.

    Run it again and only what changed is done again: a step runs when its settings or what it reads changed, or its
    output is gone. A run that was killed goes on where it was. Exit code 1 when the verification fails; nothing behind
    it is done then.

      sea-bake init && sea-bake run

      sea-bake run fair.yaml --dry-run

      sea-bake run fair.yaml --until verify

      sea-bake run fair.yaml --from bake
    """
    console, dry_run, until = call.console, call["dry_run"], call["until"]
    with _display(console) as watch:
        report = call.run(watch=None if dry_run else watch)
    if dry_run:
        console.print(_table(report.steps))
        return
    failed = [step for step in report.steps if step.status == "failed"]
    for step in failed:
        console.print(f"[bold red]{step.step} failed[/]: nothing behind it was done")
        for reason in step.why.split("; "):
            console.print(f"  - {reason}", markup=False)
    if not report.passed:
        raise typer.Exit(1)
    ended = f"done until {until}" if until else "all steps are done"
    console.print(f"{report.artefact}: {ended}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def _display(console: Console) -> Iterator[Callable[[Sequence[Progress]], None]]:
    """One live table of the steps, with the bar of the running one under it; plain lines where there is no terminal."""
    if not console.is_terminal or console.quiet:
        yield _lines(console)
        return
    from rich.console import Group
    from rich.live import Live

    from sea_bake.io import progress

    bars = progress.bars(console=console)
    with Live(console=console, refresh_per_second=4) as live, progress.hosted(bars):

        def watch(steps: Sequence[Progress]) -> None:
            live.update(Group(_table(steps), bars), refresh=True)

        yield watch


def _lines(console: Console) -> Callable[[Sequence[Progress]], None]:
    """A line for every step that begins or ends."""
    said: dict[str, str] = {}

    def watch(steps: Sequence[Progress]) -> None:
        for i, step in enumerate(steps, start=1):
            if step.status == said.get(step.step) or step.status in ("waiting", "left out"):
                continue
            said[step.step] = step.status
            took = f" ({step.seconds:.1f} s)" if step.status == "done" else ""
            why = f": {step.why}" if step.why and step.status in ("running", "failed") else ""
            console.print(f"[{i}/{len(steps)}] {step.step} {step.status}{took}{why}", markup=False, soft_wrap=True)

    return watch


def _table(steps: Sequence[Progress]) -> Table:
    rows = []
    for step in steps:
        took, why = f"{step.seconds:.1f} s" if step.seconds else "", "" if step.status == "done" else step.why
        rows.append([_MARKS[step.status], escape(step.step), step.status, took, f"[dim]{escape(why)}[/]"])
    return table([""] * 5, rows, left=("",), box=None, show_header=False, pad_edge=False)


@command(
    "sea_bake.recipes.starter:write_starter",
    path=spelt(positional=True, hint=Path, metavar="[FILE]"),
    model=spelt("-m"),
)
def init(call: Call) -> None:
    """Write a commented starter recipe: every key, its default and what it is for. It runs as it is.

    sea-bake init

    sea-bake init fair.yaml --model ./my-model --output my-model-fair
    """
    written = call()
    call.emit({"recipe": str(written)})
    call.go_on("sea-bake", "run", written, "--dry-run", done=f"wrote {written}. ")


@command("sea_bake.recipes.reproducing:reproduce", published=spelt(metavar="REPO_OR_FOLDER"))
def reproduce(call: Call) -> None:
    """Fit a published model's edits again, from its recipe, and compare them.

    Fetches the recipe (sea_bake.yaml) and the edits, and nothing else; base and demonstrations must be those of the
    recipe, by their digests. Projectors are compared by the angle between what they span, other maps part by part,
    within the tolerance that the recipe states. Exit code 1 when they differ.

      sea-bake reproduce user/smollm2-truthful

      sea-bake reproduce ./smollm2-truthful --model ./SmolLM2-135M-Instruct -d halueval_qa.jsonl
    """
    console, found = call.console, call["demonstrations"]
    report = call.run(demonstrations=found[0] if found and len(found) == 1 else found)
    head = ["layer", "part", "k", "refitted", "apart", "tolerance", ""]
    for edit in report.edits:
        rows = [
            [str(layer.layer), layer.part, *map(str, layer.ranks), f"{layer.sine:.1e}", f"{layer.limit:.1e}",
             "[green]same[/]" if layer.same else "[bold red]DIFFERENT[/]"]
            for layer in edit.layers
        ]  # fmt: skip
        title = f"{escape(edit.name)} on {escape(report.base)}"
        console.print(table(head, rows, left=("part", ""), title=title))
        for key in edit.differences:
            console.print(f"  {key} of the recipe is not that of the published edit", markup=False)
        for package, (was, here) in edit.versions.items():
            console.print(f"  fitted with {package} {was}, here {here}", markup=False)
        if edit.same_texts is False:
            console.print("  the model's own (greedy) neutral texts came out otherwise here", markup=False)
    if report.reproduced:
        console.print("[bold green]reproduced[/]: the same maps, within the recipe's tolerance")
    else:
        console.print("[bold red]NOT reproduced[/]")
        raise typer.Exit(1)
