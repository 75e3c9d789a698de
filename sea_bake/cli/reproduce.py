"""sea-bake reproduce"""

from __future__ import annotations

import typer
from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import table


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
