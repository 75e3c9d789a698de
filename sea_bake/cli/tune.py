"""sea-bake tune"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from sea_bake.cli.options import FORMAT, PROMPTS, SOURCE, Call, command, spelt
from sea_bake.cli.printing import COMPACT, aside, table

if TYPE_CHECKING:
    from rich.console import Console

    from sea_bake.fitting.tuning import Tuning

_SPACE = "sea_bake.fitting.tuning.space:parse_space"
_PANEL = "Search space: a value, some values (a,b), or a range (low:high)"


@command(
    "sea_bake.demonstrations:load",
    _SPACE,
    FORMAT,
    "sea_bake.fitting.tuning:tune",
    without="source space prompt_format",
    panels={
        _PANEL: "method site layers K_positive K_negative merge feature centre alpha parts",
        "Data": "demonstrations format limit shuffle_seed split data select confirm neutral_text",
        "Prompts": PROMPTS,
        "Activations": "position neutral max_new_tokens batch_size",
        "Workers that share trials": "storage study",
    },
    demonstrations=spelt(hint=str, default="builtin", help=SOURCE),
    output=spelt(default=Path("tuning")),
    layers=spelt("--layers"),
    K_positive=spelt("--K-positive"),
    K_negative=spelt("--K-negative"),
)
def tune(call: Call) -> None:
    """Search the settings of a fit: the largest gain for little KL, confirmed on data that no trial has seen.

    Data come in three parts without overlap: fitted on, scored on, held back. Activations are collected once for all
    sites, so a trial costs its evaluation only. Trial 0 has fit's defaults at the method's own strength, trials 1 and 2
    half and a quarter of it. Of the Pareto front the trial with the largest gain within --max-kl is chosen,
    written as OUTPUT/edit.safetensors, and compared with the untuned default and the base on the held-back data: it
    beats them, or is not shown to, and the output says which. Run the same line again and a stopped search goes on;
    with more --trials a finished one does. Examples:

      sea-bake tune HuggingFaceTB/SmolLM2-135M-Instruct -o tuning

      sea-bake tune MODEL -d halueval.jsonl --objective truthfulqa_mc2:margin --data ../data --select 150 --confirm 150

      sea-bake tune MODEL --site mlp --layers last:0.66 --layers 10-19 --merge l2 --feature identity,tanh --alpha 0.25:1

      sea-bake tune MODEL --method sea,leace,act
    """
    console, model, output = call.console, call["model"], call["output"]
    space = call(verb=_SPACE)
    found = call.run(demonstrations=call.load(), space=space, prompt_format=call(verb=FORMAT), say=aside(console))
    show(found, console)
    done = f"wrote {output}: edit.safetensors, tune.json, tune.md, pareto.png, pareto.svg. "
    if not found.helps:
        console.print(f"{done}Nothing that was found is shown to help on held-back data.", markup=False)
        return
    call.go_on("sea-bake", "bake", model, output / "edit.safetensors", "-o", "OUT", done=done)


def show(tuning: Tuning, console: Console) -> None:
    """The Pareto table, the held-back comparison, and the verdict."""
    from sea_bake.fitting.tuning.pareto import COMPARED, header, held_back, summary
    from sea_bake.fitting.tuning.pareto import table as front
    from sea_bake.fitting.tuning.results import DEFAULT

    styles = {DEFAULT: "dim", tuning.chosen: "bold green"}
    rows = [
        [f"[{styles.get(trial.number, 'none')}]{escape(cell)}[/]" for cell in cells] for trial, cells in front(tuning)
    ]
    head = [escape(name) for name in header(tuning)]
    console.print(table(head, rows, left=head[5:], title="Pareto front, on the data for selection", **COMPACT))
    rows = []
    for name, n, measures in held_back(tuning):
        rows.append([f"[bold]{name}[/] [dim]n = {n}[/]"])
        rows += [[f"  {escape(title)}", *numbers] for title, *numbers in measures]
    console.print(table(COMPARED, rows, title="Held-back data", **COMPACT))
    for sentence in summary(tuning):
        console.print(sentence, style="dim", markup=False)
    colour = "bold green" if tuning.beats and tuning.helps else "bold yellow"
    console.print(f"[{colour}]{escape(tuning.verdict)}[/]")
