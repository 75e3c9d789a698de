"""sea-bake tune"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sea_bake.cli.printing import Device, Dtype, Json, Overwrite, Quiet, Revision, aside, emit, prepare

if TYPE_CHECKING:
    from rich.console import Console

    from sea_bake.tuning import Tuning

_DATA, _SPACE, _FIT = "Data", "Search space: a value, some values (a,b), or a range (low:high)", "Activations"


def tune(
    model: Annotated[str, typer.Argument(help="The base: folder (or PEFT adapter), .gguf file, Hub id.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for the edit, the results and the journal. A stopped run goes on there."
        ),
    ] = Path("tuning"),
    objective: Annotated[
        str,
        typer.Option(
            help="What to gain. demonstrations: log-likelihood margin of positive over negative answers, on triples "
            "kept back from the fit. Or TASK[:MEASURE] of a benchmark in --data: truthfulqa_mc2:margin, "
            "truthfulqa_mc1, bbq:acc, bbq:ambig.acc, bbq:disambig.bias, hellaswag, ..."
        ),
    ] = "demonstrations",
    trials: Annotated[int, typer.Option(help="Settings to try, the untuned default among them.")] = 20,
    timeout: Annotated[float | None, typer.Option(help="Begin no further trial after so many seconds.")] = None,
    max_kl: Annotated[
        float,
        typer.Option(
            help="Largest KL of the chosen edit from the base, in nats per token of neutral text: how far next-token "
            "distributions may move. On SmolLM2-135M 0.04 changed one top token in ten, and 0.7 doubled the perplexity."
        ),
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the split of the demonstrations and of the proposals.")] = 0,
    demonstrations: Annotated[
        str,
        typer.Option(
            "--demonstrations",
            "-d",
            help="builtin, a JSONL/JSON/CSV file, a folder, or a Hub dataset id.",
            rich_help_panel=_DATA,
        ),
    ] = "builtin",
    format: Annotated[
        str, typer.Option(help="auto, triples, halueval_qa, truthfulqa or bbq.", rich_help_panel=_DATA)
    ] = "auto",
    limit: Annotated[int | None, typer.Option(help="Use so many triples only.", rich_help_panel=_DATA)] = None,
    shuffle_seed: Annotated[
        int | None, typer.Option(help="Shuffle the triples first, with this seed.", rich_help_panel=_DATA)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the benchmark's files. Default: from the Hub.", rich_help_panel=_DATA),
    ] = None,
    select: Annotated[
        int | None,
        typer.Option(
            help="Examples that trials are scored on, 10 or more. Default: a quarter of the triples, or a benchmark's "
            "first 100 rows.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    confirm: Annotated[
        int | None,
        typer.Option(
            help="Examples held back for one comparison at the end, 20 or more. Default: another quarter, or the next "
            "100 rows that ask something else.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    neutral_text: Annotated[
        Path | None,
        typer.Option(
            help="Neutral paragraphs for KL, parted by empty lines. Default: built-in.", rich_help_panel=_DATA
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(help="mlp, attn, block. Default: mlp,attn.", rich_help_panel=_SPACE, show_default=False),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="One specification, as of fit; repeatable. Default: last:0.66, last:0.33, first:0.66, all, "
            "signature:0.5.",
            rich_help_panel=_SPACE,
            show_default=False,
        ),
    ] = None,
    K_positive: Annotated[
        str | None,
        typer.Option(
            "--K-positive",
            help="Shares (0.9:0.99) or ranks (1,2,4,8). Default: 0.5:0.999.",
            rich_help_panel=_SPACE,
            show_default=False,
        ),
    ] = None,
    K_negative: Annotated[
        str | None,
        typer.Option("--K-negative", help="Default: 0.5:0.999.", rich_help_panel=_SPACE, show_default=False),
    ] = None,
    merge: Annotated[
        str | None, typer.Option(help="Default: l2,sum,average.", rich_help_panel=_SPACE, show_default=False)
    ] = None,
    feature: Annotated[
        str | None,
        typer.Option(
            help="identity, tanh, elu, squared-exponential. Default: identity,tanh.",
            rich_help_panel=_SPACE,
            show_default=False,
        ),
    ] = None,
    centre: Annotated[
        str | None, typer.Option(help="Default: no,yes.", rich_help_panel=_SPACE, show_default=False)
    ] = None,
    alpha: Annotated[
        str | None, typer.Option(help="Strength. Default: 0.05:1.5.", rich_help_panel=_SPACE, show_default=False)
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help="both, positive, negative. Default: both, fixed.", rich_help_panel=_SPACE, show_default=False
        ),
    ] = None,
    position: Annotated[
        str, typer.Option(help="Token: last, mean or random (of the continuation).", rich_help_panel=_FIT)
    ] = "last",
    neutral: Annotated[
        str,
        typer.Option(
            help="generate: the model's own greedy answer. prompt: the prompt alone (fast).", rich_help_panel=_FIT
        ),
    ] = "generate",
    max_new_tokens: Annotated[
        int, typer.Option(help="Length limit of generated neutral texts.", rich_help_panel=_FIT)
    ] = 32,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass.", rich_help_panel=_FIT)] = 16,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the settings of a fit: the largest gain for little KL, confirmed on data that no trial has seen.

    Data come in three parts without overlap: fitted on, scored on, held back. Activations are collected once for all
    sites, so a trial costs its evaluation only. Trial 0 is what sea-bake fit does untuned, trials 1 and 2 the same with
    half and a quarter of its strength. Of the Pareto front the trial with the largest gain within --max-kl is chosen,
    written as OUTPUT/edit.safetensors, and compared with the untuned default and the base on the held-back data: it
    beats them, or is not shown to, and the output says which. Run the same line again and a stopped search goes on;
    with more --trials a finished one does. Examples:

      sea-bake tune HuggingFaceTB/SmolLM2-135M-Instruct -o tuning

      sea-bake tune MODEL -d halueval.jsonl --objective truthfulqa_mc2:margin --data ../data --select 150 --confirm 150

      sea-bake tune MODEL --site mlp --layers last:0.66 --layers 10-19 --merge l2 --feature identity,tanh --alpha 0.25:1
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake.demonstrations import load
    from sea_bake.tuning import Space
    from sea_bake.tuning import tune as run

    space = Space.parse(
        site=site,
        layers=layers,
        K_positive=K_positive,
        K_negative=K_negative,
        merge=merge,
        feature=feature,
        centre=centre,
        alpha=alpha,
        parts=parts,
    )
    found = run(
        model,
        load(demonstrations, format=format, limit=limit, shuffle_seed=shuffle_seed),
        output=output,
        objective=objective,
        data=data,
        select=select,
        confirm=confirm,
        space=space,
        trials=trials,
        timeout=timeout,
        max_kl=max_kl,
        seed=seed,
        neutral_text=neutral_text,
        position=position,
        neutral=neutral,
        max_new_tokens=max_new_tokens,
        revision=revision,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        overwrite=overwrite,
        say=aside(console),
    )
    emit(found.to_json(), as_json=as_json)
    show(found, console)
    helpful = f"Next: sea-bake bake {model} {output}/edit.safetensors -o OUT"
    console.print(
        f"wrote {output}: edit.safetensors, tune.json, tune.md, pareto.png, pareto.svg. "
        + (helpful if found.helps else "Nothing that was found is shown to help on held-back data."),
        markup=False,
    )


def show(tuning: Tuning, console: Console) -> None:
    """The Pareto table, the held-back comparison, and the verdict."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from sea_bake.tuning.pareto import COMPARED, header, held_back, summary, table
    from sea_bake.tuning.results import DEFAULT

    styles = {DEFAULT: "dim", tuning.chosen: "bold green"}
    options: dict[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "pad_edge": False, "padding": (0, 1, 0, 0)}
    front = Table(title="Pareto front, on the data for selection", **options)
    for i, name in enumerate(header(tuning)):
        front.add_column(escape(name), justify="right" if i < 5 else "left", no_wrap=i < 6)
    for trial, cells in table(tuning):
        front.add_row(*map(escape, cells), style=styles.get(trial.number, ""))
    console.print(front)
    compared = Table(title="Held-back data", **options)
    for name in COMPARED:
        compared.add_column(name, justify="left" if name == "measure" else "right")
    for name, n, measures in held_back(tuning):
        compared.add_row(f"[bold]{name}[/] [dim]n = {n}[/]")
        for title, *numbers in measures:
            compared.add_row(f"  {escape(title)}", *numbers)
    console.print(compared)
    for sentence in summary(tuning):
        console.print(sentence, style="dim", markup=False)
    colour = "bold green" if tuning.beats and tuning.helps else "bold yellow"
    console.print(f"[{colour}]{escape(tuning.verdict)}[/]")
