"""sea-bake eval"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import COMPACT, aside, table

if TYPE_CHECKING:
    from rich.console import Console

    from sea_bake.evaluation import Evaluation


_NAMES = spelt(hint=str, parse=lambda text: [name.strip() for name in text.split(",") if name.strip()])


@command("sea_bake.evaluation:evaluate", tasks=_NAMES, behaviours=_NAMES, limit=spelt("-l"))
def evaluate(
    call: Call,
    export_tasks: Annotated[
        Path | None, typer.Option(help="Evaluate nothing: write the tasks for lm_eval run --include_path FOLDER.")
    ] = None,
) -> None:
    """Measure gain and cost of an edit: base and edited model on the same examples of known benchmarks.

    Every difference comes with its 95 % interval and a paired test. Examples:

      sea-bake eval HuggingFaceTB/SmolLM2-135M-Instruct --edit truthful.safetensors --limit 200

      sea-bake eval smollm2-truthful --data ../data --tasks truthfulqa_mc2,bbq --behaviours all -o evaluation

      torchrun --nproc_per_node 2 -m sea_bake eval smollm2-truthful --data ../data -o evaluation
    """
    from sea_bake.errors import SettingError

    console, output, data, names = call.console, call["output"], call["data"], call["tasks"]
    if export_tasks is not None:
        if data is None:
            raise SettingError("--export-tasks writes tasks that read the files of --data: say which folder")
        call(names, data, export_tasks, verb="sea_bake.evaluation.tasks:export_tasks")
        call.emit({"output": str(export_tasks), "tasks": names})
        words = ("lm_eval", "run", "--include_path", export_tasks, "--tasks", *names, "--model", "hf")
        call.go_on(*words, "...", done=f"wrote {export_tasks}. ")
        return
    if console.quiet and not call.as_json and output is None and not call["write"]:
        raise SettingError("--quiet would show nothing: add -o FOLDER, --write or --json")
    found = call.run(say=aside(console))
    show(found, console)
    if output is not None:
        console.print(f"wrote {output}: evaluation.json, evaluation.md, evaluation.html, examples/", markup=False)


def show(evaluation: Evaluation, console: Console) -> None:
    """The headlines, gain first and then cost, and what the numbers are."""
    from sea_bake.evaluation.rendering import HEADINGS, cells, grouped, header, notes, title, verdict

    colours = {"better": "green", "worse": "red"}
    console.print(f"[bold]{escape(title(evaluation))}[/]")
    for kind, rows in grouped(evaluation.headlines):
        lines = []
        for before, row in zip([None, *rows], rows):
            if before is None or before.task != row.task:
                lines.append([f"[bold]{escape(row.title)}[/] [dim]n = {row.found.n}[/]"])
            style = colours.get(verdict(row), "none")
            _, name, _, *numbers = map(escape, cells(row))
            lines.append([f"  {name}", *numbers[:2], *(f"[{style}]{n}[/]" for n in numbers[2:])])
        console.print(table([HEADINGS[kind].lower(), *header(evaluation)[3:]], lines, **COMPACT))
    for note in notes(evaluation):
        console.print(note, style="dim", markup=False)
