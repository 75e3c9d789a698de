"""sea-bake fit, sea-bake import"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sea_bake.cli.options import FORMAT, PROMPTS, SOURCE, Call, command, spelt
from sea_bake.cli.printing import Overwrite
from sea_bake.errors import SettingError
from sea_bake.io.apart import check_apart
from sea_bake.io.staging import check_output
from sea_bake.pages.text import size

Output = Annotated[Path, typer.Option("--output", "-o", help="Edit file to write.")]
_SETTLED = "demonstrations format limit shuffle_seed split neutral max_new_tokens site position seed save_activations"
_SETTLED += f" show_prompt held_back budget measure controls {PROMPTS}"  # by saved activations


@command(
    "sea_bake.model.loading:load_model",
    "sea_bake.demonstrations:load",
    FORMAT,
    "sea_bake.fitting:fit",
    without="tokenizer source prompt_format trust_remote_code",
    panels={
        "Demonstrations": "demonstrations format limit shuffle_seed split neutral max_new_tokens",
        "Prompts": f"{PROMPTS} show_prompt",
        "Edit": "method site layers alpha K K_positive K_negative merge feature parts centre heads ridge direction",
        "Strength, gain and cost": "budget held_back measure controls",
        "Activations": "position seed batch_size save_activations activations",
    },
    model=spelt(positional=True, hint=str, default=None),
    demonstrations=spelt(hint=str, default="builtin", help=SOURCE),
    activations=spelt("--activations", hint=Path, default=None),
    K=spelt("-K", "--K"),
    seed=spelt(help="Seed of what is held back, and of --position random."),
)
def fit(
    call: Call,
    context: typer.Context,
    output: Output = Path("edit.safetensors"),
    show_prompt: Annotated[bool, typer.Option(help="Run nothing: print one triple as the model reads it.")] = False,
) -> None:
    """Fit an edit from demonstrations: SEA, or another --method.

    The strength is found for a KL of --budget. Three lines say what it gains on demonstrations held back, its cost,
    and where random edits of it stand. The paper's: --site mlp --merge l2 --no-centre -K 0.998 --alpha 1. Examples:

      sea-bake fit HuggingFaceTB/SmolLM2-135M-Instruct -o truthful.safetensors

      sea-bake fit MODEL -d halueval.jsonl --method mean-difference --save-activations acts.safetensors

      sea-bake fit --activations acts.safetensors -K 8 --layers signature:0.5 -o rank8.safetensors

      accelerate launch --num-processes 4 -m sea_bake fit MODEL      (data parallel)
    """
    from sea_bake.model.source import ModelSource

    console, model, activations = call.console, call["model"], call["activations"]
    overwrite, save_activations = call["overwrite"], call["save_activations"]
    if (model is None) == (activations is None):
        raise SettingError("give either a MODEL or --activations FILE, and not both")
    given = [n for n in context.params if str(context.get_parameter_source(n)).endswith("COMMANDLINE")]
    reads = [model, activations, call["demonstrations"]]
    place = check_output(output, overwrite=overwrite, folder=False)
    check_apart(place, reads, folder=False)
    if save_activations is not None:
        save_activations = check_output(save_activations, overwrite=overwrite, folder=False)
        check_apart(save_activations, reads, folder=False)
        if save_activations == place:
            raise SettingError(f"--output and --save-activations are one file: {output}")
    source = None if model is None else ModelSource.parse(model, call["revision"])
    triples, form = None if activations is not None else call.load(), call(verb=FORMAT)
    if show_prompt:
        if source is None:
            raise SettingError("--show-prompt has no effect with --activations, which fix it")
        shown = call.run(source, triples, prompt_format=form, verb="sea_bake.activations.preview:preview")
        console.print(str(shown), markup=False, highlight=False, soft_wrap=True)
        return
    from sea_bake.activations import Activations  # torch, for which no refusal above has to wait
    from sea_bake.methods.table import check_searched, check_taken, named
    from sea_bake.model.processes import is_main_process
    from sea_bake.model.sites import ranges
    from sea_bake.pages.edits import idle, in_words

    settled = [n for n in _SETTLED.split() if n in given and not (n == "site" and named(call["method"]).reads)]
    if activations is not None and settled:
        raise SettingError(f"--{settled[0].replace('_', '-')} has no effect with --activations, which fix it")
    check_taken(call["method"], given)
    if {"alpha", "budget"} <= set(given):
        raise SettingError("--alpha fixes the strength, and --budget has it found: give one of them")
    if "budget" in given:
        check_searched(call["method"])
    edit = call(
        model=source,
        demonstrations=triples,
        prompt_format=form,
        activations=None if activations is None else Activations.load(activations),
        save_activations=save_activations,
    )
    if not is_main_process():
        return
    edit.save(place, overwrite=overwrite)
    call.emit({"output": str(output), **edit.describe()})
    console.print("\n".join(in_words(edit)), markup=False)
    without = edit.recipe.get("without_site")
    if without:
        console.print(f"not edited, having no site {edit.site.value}: layers {ranges(without)}", markup=False)
    done = f"wrote {output} ({size(output.stat().st_size)}). "
    call.go_on("sea-bake", "bake", model or "MODEL", output, "-o", "OUT", done=done, unless=idle(edit))


@command(
    "sea_bake.exporting.edits:import_edit",
    base=spelt("-b", positional=False),
    files=spelt(hint=list[Path], metavar="FILE [MORE]"),
)
def import_edit(call: Call, output: Output = Path("edit.safetensors"), overwrite: Overwrite = False) -> None:
    """Import an edit that another tool fitted: a control vector, a steering vector, an eraser, a LoRA.

    sea-bake import happy.gguf --base HuggingFaceTB/SmolLM2-135M-Instruct -o happy.safetensors

    sea-bake import evil_response_avg_diff.pt -b Qwen/Qwen2.5-7B-Instruct --layers 19 --alpha 2
    """
    place = check_output(output, overwrite=overwrite, folder=False)  # no refusal waits for torch
    check_apart(place, [*call["files"], call["base"]], folder=False)
    from sea_bake.pages.edits import sentence

    edit = call()
    edit.save(place, overwrite=overwrite)
    call.emit({"output": str(output), **edit.describe()})
    call.console.print(sentence(edit), markup=False)
    call.go_on("sea-bake", "bake", call["base"], output, "-o", "OUT", done=f"wrote {output}. ")
