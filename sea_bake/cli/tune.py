"""sea-bake tune"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sea_bake.cli.options import SOURCE, Call, command, spelt
from sea_bake.cli.printing import aside

if TYPE_CHECKING:
    from rich.console import Console

    from sea_bake.tuning import Tuning


_PANEL = "Search space: a value, some values (a,b), or a range (low:high)"


def _axis(words: str, *flags: str) -> Any:
    return typer.Option(*flags, help=words, rich_help_panel=_PANEL, show_default=False)


@command(
    "sea_bake.demonstrations:load",
    "sea_bake.tuning:tune",
    without="source space",
    panels={
        "Data": "demonstrations format limit shuffle_seed split data select confirm neutral_text",
        "Activations": "position neutral max_new_tokens batch_size",
    },
    demonstrations=spelt(hint=str, default="builtin", help=SOURCE),
    output=spelt(default=Path("tuning")),
)
def tune(
    call: Call,
    site: Annotated[str | None, _axis("mlp, attn, block. Default: mlp,attn.")] = None,
    layers: Annotated[
        list[str] | None,
        _axis(
            "One specification, as of fit; repeatable. Default: last:0.66, last:0.33, first:0.66, all, signature:0.5."
        ),
    ] = None,
    K_positive: Annotated[
        str | None, _axis("Shares (0.9:0.99) or ranks (1,2,4,8). Default: 0.5:0.999.", "--K-positive")
    ] = None,
    K_negative: Annotated[str | None, _axis("Default: 0.5:0.999.", "--K-negative")] = None,
    merge: Annotated[str | None, _axis("Default: l2,sum,average.")] = None,
    feature: Annotated[str | None, _axis("identity, tanh, elu, squared-exponential. Default: identity,tanh.")] = None,
    centre: Annotated[str | None, _axis("Default: no,yes.")] = None,
    alpha: Annotated[str | None, _axis("Strength. Default: 0.05:1.5.")] = None,
    parts: Annotated[str | None, _axis("both, positive, negative. Default: both, fixed.")] = None,
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
    from sea_bake.tuning import Space

    console, model, output = call.console, call["model"], call["output"]
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
    found = call(demonstrations=call.load(), space=space, say=aside(console))
    call.emit(found.to_json())
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
