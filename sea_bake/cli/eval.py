"""sea-bake eval"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from sea_bake.cli.printing import Device, Dtype, Json, Overwrite, Quiet, Revision, aside, emit, prepare

if TYPE_CHECKING:
    from rich.console import Console

    from sea_bake.evaluation import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="Base (folder, .gguf, Hub id), or a folder written by sea-bake bake.")],
    edit: Annotated[
        list[Path] | None, typer.Option("--edit", "-e", help="Edit to act live on the base (repeatable, in order).")
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: truthfulqa_mc1, truthfulqa_mc2, bbq, hellaswag, gsm8k, mathqa, mmlu, "
            "nq_open, toxigen, crows_pairs; without --data any task of lm-evaluation-harness."
        ),
    ] = "truthfulqa_mc1,truthfulqa_mc2,bbq,hellaswag",
    data: Annotated[
        Path | None, typer.Option(help="Folder with the benchmarks' files. Default: the harness' own, from the Hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-l", help="So many examples of each task.")] = None,
    offset: Annotated[int, typer.Option(help="Leave out so many rows first: what an edit was chosen on.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for JSON, Markdown, HTML and every example. A run that was stopped goes on there.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The base of an artefact. Default: what it records (Hub id, folder beside it)."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts through the tokenizer's chat template.")] = False,
    fewshot: Annotated[int | None, typer.Option(help="Worked examples, where a task leaves their number open.")] = None,
    cost: Annotated[
        bool, typer.Option("--cost/--no-cost", help="Also KL to the base, perplexity and repetition on neutral text.")
    ] = True,
    neutral: Annotated[
        Path | None, typer.Option(help="Text file of neutral paragraphs, parted by empty lines. Default: built-in.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass; halved when memory runs out.")] = 16,
    write: Annotated[
        bool, typer.Option("--write", help="Leave sea/evaluation.json in the artefact, for its model card.")
    ] = False,
    export_tasks: Annotated[
        Path | None, typer.Option(help="Evaluate nothing: write the tasks for lm_eval run --include_path FOLDER.")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure gain and cost of an edit: base and edited model on the same examples of known benchmarks.

    Every difference comes with its 95 % interval and a paired test. Examples:

      sea-bake eval HuggingFaceTB/SmolLM2-135M-Instruct --edit truthful.safetensors --limit 200

      sea-bake eval smollm2-truthful --data ../data --tasks truthfulqa_mc2,bbq,gsm8k -o evaluation
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake import evaluation
    from sea_bake.errors import SettingError

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if export_tasks is not None:
        if data is None:
            raise SettingError("--export-tasks writes tasks that read the files of --data: say which folder")
        evaluation.export_tasks(names, data, export_tasks, overwrite=overwrite)
        emit({"output": str(export_tasks), "tasks": names}, as_json=as_json)
        command = f"lm_eval run --include_path {export_tasks} --tasks {' '.join(names)} --model hf ..."
        console.print(f"wrote {export_tasks}. Next: {command}", markup=False)
        return
    if quiet and not as_json and output is None and not write:
        raise SettingError("with --quiet nothing would come of it: add -o FOLDER, --write or --json")
    found = evaluation.evaluate(
        model,
        edit=edit,
        base=base,
        revision=revision,
        tasks=names,
        data=data,
        limit=limit,
        offset=offset,
        fewshot=fewshot,
        chat=chat,
        cost=cost,
        neutral=neutral,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        output=output,
        overwrite=overwrite,
        write=write,
        say=aside(console),
    )
    emit(found.to_json(), as_json=as_json)
    show(found, console)
    if output is not None:
        console.print(f"wrote {output}: evaluation.json, evaluation.md, evaluation.html, examples/", markup=False)


def show(evaluation: Evaluation, console: Console) -> None:
    """The headlines, gain first and then cost, and what the numbers are."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from sea_bake.evaluation.rendering import HEADINGS, cells, grouped, header, notes, title, verdict

    colours = {"better": "green", "worse": "red"}
    console.print(f"[bold]{escape(title(evaluation))}[/]")
    for kind, rows in grouped(evaluation.headlines):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate([HEADINGS[kind].lower(), *header(evaluation)[3:]]):
            table.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
        for before, row in zip([None, *rows], rows):
            if before is None or before.task != row.task:
                table.add_row(f"[bold]{escape(row.title)}[/] [dim]n = {row.found.n}[/]")
            style = colours.get(verdict(row), "")
            _, name, _, *numbers = map(escape, cells(row))
            table.add_row(f"  {name}", *numbers[:2], *(f"[{style}]{n}[/]" if style else n for n in numbers[2:]))
        console.print(table)
    for note in notes(evaluation):
        console.print(note, style="dim", markup=False)
