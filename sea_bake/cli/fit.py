"""sea-bake fit"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sea_bake.cli.printing import Device, Dtype, Json, Overwrite, Quiet, Revision, emit, parse_share, prepare, size
from sea_bake.errors import SettingError

# What saved activations have settled.
_SETTLED = (
    *("demonstrations", "format", "limit", "shuffle_seed", "system", "neutral", "max_new_tokens"),
    *("site", "position", "seed", "save_activations"),
)


def fit(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Folder (or PEFT adapter), .gguf file or Hub id. Not needed with --activations.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Edit file to write.")] = Path("edit.safetensors"),
    demonstrations: Annotated[
        str,
        typer.Option(
            "--demonstrations",
            "-d",
            help="builtin, a JSONL/JSON/CSV file, a folder, or a Hub dataset id.",
            rich_help_panel="Demonstrations",
        ),
    ] = "builtin",
    format: Annotated[
        str,
        typer.Option(help="auto, triples, halueval_qa, truthfulqa or bbq.", rich_help_panel="Demonstrations"),
    ] = "auto",
    limit: Annotated[
        int | None, typer.Option(help="Use so many triples only.", rich_help_panel="Demonstrations")
    ] = None,
    shuffle_seed: Annotated[
        int | None, typer.Option(help="Shuffle the triples first, with this seed.", rich_help_panel="Demonstrations")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt for the chat template.", rich_help_panel="Demonstrations")
    ] = None,
    neutral: Annotated[
        str,
        typer.Option(
            help="generate: the model's own greedy answer (the paper). prompt: the prompt alone (fast).",
            rich_help_panel="Demonstrations",
        ),
    ] = "generate",
    max_new_tokens: Annotated[
        int, typer.Option(help="Length limit of generated neutral texts.", rich_help_panel="Demonstrations")
    ] = 32,
    site: Annotated[
        str,
        typer.Option(help="What is edited: mlp or attn output, or block (residual stream).", rich_help_panel="Edit"),
    ] = "attn",
    layers: Annotated[
        str,
        typer.Option(
            help="last:21, first:8, last:0.66 (a share), all, 10-29, 3,5,7 or signature:0.5.", rich_help_panel="Edit"
        ),
    ] = "last:0.66",
    K: Annotated[
        str,
        typer.Option("-K", "--K", help="Share of explained variance (0.95), or a rank (8).", rich_help_panel="Edit"),
    ] = "0.95",
    K_positive: Annotated[
        str | None, typer.Option("--K-positive", help="K of the positive projection.", rich_help_panel="Edit")
    ] = None,
    K_negative: Annotated[
        str | None, typer.Option("--K-negative", help="K of the negative projection.", rich_help_panel="Edit")
    ] = None,
    merge: Annotated[
        str, typer.Option(help="sum (folds exactly), l2 (keep each token's norm) or average.", rich_help_panel="Edit")
    ] = "sum",
    feature: Annotated[
        str,
        typer.Option(help="identity (linear SEA), or squared-exponential, tanh, elu (Φ-SEA).", rich_help_panel="Edit"),
    ] = "identity",
    parts: Annotated[
        str, typer.Option(help="both projections, or positive / negative alone.", rich_help_panel="Edit")
    ] = "both",
    alpha: Annotated[
        float,
        typer.Option(help="Strength: h + alpha (y - h). 0 is the base model, 1 the paper's.", rich_help_panel="Edit"),
    ] = 0.77,
    centre: Annotated[
        bool, typer.Option("--centre/--no-centre", help="Subtract each role's mean first.", rich_help_panel="Edit")
    ] = True,
    position: Annotated[
        str, typer.Option(help="Token: last, mean or random (of the continuation).", rich_help_panel="Activations")
    ] = "last",
    seed: Annotated[int, typer.Option(help="Seed of --position random.", rich_help_panel="Activations")] = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences in one forward pass.", rich_help_panel="Activations")] = 16,
    save_activations: Annotated[
        Path | None,
        typer.Option(
            help="Also save the activations of all layers, to refit in seconds.", rich_help_panel="Activations"
        ),
    ] = None,
    activations: Annotated[
        Path | None, typer.Option(help="Refit from saved activations: no model is run.", rich_help_panel="Activations")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a SEA edit from demonstrations.

    The defaults are those that helped on SmolLM2-135M-Instruct (scripts/STUDY.md); the paper's, for 7B models, are
    --site mlp --merge l2 --no-centre -K 0.998 --alpha 1. Examples:

      sea-bake fit HuggingFaceTB/SmolLM2-135M-Instruct -o truthful.safetensors

      sea-bake fit MODEL -d halueval.jsonl --site block -K 0.9999 --save-activations acts.safetensors

      sea-bake fit --activations acts.safetensors -K 8 --layers signature:0.5 -o rank8.safetensors

      accelerate launch --num-processes 4 -m sea_bake fit MODEL      (data parallel)
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake.activations import Activations
    from sea_bake.demonstrations import load
    from sea_bake.fitting import fit as run
    from sea_bake.fitting import is_main_process
    from sea_bake.io.staging import check_output
    from sea_bake.model.source import ModelSource

    if (model is None) == (activations is None):
        raise SettingError("give either a MODEL or --activations FILE, and not both")
    given = [n for n in _SETTLED if str(context.get_parameter_source(n)).endswith("COMMANDLINE")]
    if activations is not None and given:
        raise SettingError(f"--{given[0].replace('_', '-')} has no effect with --activations: the file has settled it")
    check_output(output, overwrite=overwrite, folder=False)
    if save_activations is not None:
        check_output(save_activations, overwrite=overwrite, folder=False)
        if save_activations.absolute() == output.absolute():
            raise SettingError(f"--output and --save-activations are one file: {output}")
    shares = {
        "K": parse_share(K, "K"),
        "K_positive": parse_share(K_positive, "K-positive"),
        "K_negative": parse_share(K_negative, "K-negative"),
    }
    triples = None
    if activations is None:
        triples = load(demonstrations, format=format, limit=limit, shuffle_seed=shuffle_seed)
    edit = run(
        None if model is None else ModelSource.parse(model, revision),
        triples,
        activations=None if activations is None else Activations.load(activations),
        site=site,
        layers=layers,
        **shares,  # type: ignore[arg-type]
        merge=merge,
        feature=feature,
        parts=parts,
        alpha=alpha,
        centre=centre,
        position=position,  # type: ignore[arg-type]
        neutral=neutral,  # type: ignore[arg-type]
        max_new_tokens=max_new_tokens,
        system=system,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        save_activations=save_activations,
        overwrite=overwrite,
    )
    if not is_main_process():
        return
    edit.save(output, overwrite=overwrite)
    from sea_bake.cli.inspect import describe_edit, summary

    emit({"output": str(output), **describe_edit(edit)}, as_json=as_json)
    console.print(summary(edit))
    console.print(
        f"wrote {output} ({size(output.stat().st_size)}). Next: sea-bake bake {model or 'MODEL'} {output} -o OUT",
        markup=False,
    )
