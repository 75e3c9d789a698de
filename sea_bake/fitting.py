"""Fit a SEA edit: the whole line on one page, demonstrations -> activations -> projectors -> Edit."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sea_bake.activations import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_NEUTRAL,
    DEFAULT_NEW_TOKENS,
    DEFAULT_POSITION,
    DEFAULT_SEED,
    DEFAULT_SITE,
    Activations,
    Neutral,
    Position,
    collect,
)
from sea_bake.activations.contrast import check_directions, check_roles
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.demonstrations import Demonstration, builtin
from sea_bake.edit import Edit
from sea_bake.errors import SettingError
from sea_bake.io import progress
from sea_bake.methods import sea
from sea_bake.model.anatomy import Site, family
from sea_bake.model.discovery import family_of
from sea_bake.model.loading import load_model, load_tokenizer, processes
from sea_bake.model.sites import decoder_config, lacking, planned_layers, ranges, text_config
from sea_bake.model.source import ModelSource
from sea_bake.modeling_sea import FEATURES, MERGES, PARTS

# What scripts/study_defaults has chosen on SmolLM2-135M-Instruct, and confirmed on held-back data: scripts/STUDY.md.
# The paper's setting (mlp, l2, no centring, K = 0.998, for 7B models) makes that model's text fall apart.
DEFAULT_K = 0.95
DEFAULT_MERGE = "sum"
DEFAULT_ALPHA = 0.77
DEFAULT_CENTRE = True
DEFAULT_LAYERS = "last:0.66"  # the paper edits the last 21 of LLaMA-2's 32 layers


def fit(
    model: Any,
    demonstrations: Sequence[Demonstration] | None = None,
    *,
    tokenizer: Any = None,
    source: ModelSource | str | None = None,
    activations: Activations | None = None,
    site: Site | str = DEFAULT_SITE,
    layers: str | Sequence[int] = DEFAULT_LAYERS,
    K: float | int = DEFAULT_K,
    K_positive: float | int | None = None,
    K_negative: float | int | None = None,
    merge: str = DEFAULT_MERGE,
    feature: str = "identity",
    parts: str = "both",
    alpha: float = DEFAULT_ALPHA,
    centre: bool = DEFAULT_CENTRE,
    position: Position = DEFAULT_POSITION,
    neutral: Neutral = DEFAULT_NEUTRAL,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    prompt_format: PromptFormat | None = None,
    seed: int = DEFAULT_SEED,
    batch_size: int = DEFAULT_BATCH_SIZE,
    dtype: str = "auto",
    device: str | None = None,
    save_activations: str | Path | None = None,
    overwrite: bool = False,
) -> Edit:
    """Fit SEA (or Φ-SEA) projectors (arXiv 2405.09719).

    Args:
        model: folder (or PEFT adapter that names its base), .gguf file or Hub id; in Python also a living causal LM.
            Not needed with ``activations``.
        demonstrations: triples. Default: the built-in truthfulness set.
        tokenizer, source: with a living model: its tokenizer, and the name to record for it.
        activations: refit from saved activations, which fix the site and the demonstrations: no model is run.
        site: what is edited: "mlp" or "attn" output, "block" (residual stream), or what plan names ("attn:mamba").
        layers: decoder layers to edit: last:21, first:8, last:0.66 (a share), all, 10-29, 3,5,7 or signature:0.5.
        K: share of explained variance (such as 0.95, at most 1), or a whole number: a rank (8).
        K_positive: K of the positive projection. Default: K.
        K_negative: K of the negative projection. Default: K.
        merge: "sum" (folds exactly), "l2" (each token keeps its norm) or "average".
        feature: "identity" (linear SEA), or "squared-exponential", "tanh", "elu" (Φ-SEA).
        parts: "both" projections, or "positive" or "negative" alone.
        alpha: strength: h + alpha (y - h). 0 is the base model, 1 the paper's.
        centre: subtract each role's mean first.
        position, neutral, max_new_tokens, seed, batch_size: see :func:`sea_bake.activations.collect_sites`.
        prompt_format: see :func:`sea_bake.activations.collect_sites`.
        dtype, device: see :func:`sea_bake.model.loading.load_model`.
        save_activations: also save the activations of all layers, to refit in seconds.
        overwrite: replace an earlier output.

    Raises:
        SeaBakeError: a child of it for every wrong input, before the heavy work where that is possible.
    """
    check_settings(K=K, K_positive=K_positive, K_negative=K_negative, merge=merge, feature=feature, parts=parts)
    if activations is None:
        everything = save_activations is not None or (isinstance(layers, str) and layers.startswith("signature"))
        if isinstance(model, str | Path | ModelSource):
            check_layers(model, layers, site)
        activations = gather(
            model,
            demonstrations,
            tokenizer=tokenizer,
            source=source,
            site=site,
            layers=None if everything else layers,
            position=position,
            neutral=neutral,
            max_new_tokens=max_new_tokens,
            prompt_format=prompt_format,
            seed=seed,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
        )
        if save_activations is not None and is_main_process():
            activations.save(save_activations, overwrite=overwrite)
    K_pos, K_neg = (K if value is None else value for value in (K_positive, K_negative))
    return _project(activations, layers, K_pos, K_neg, merge, feature, parts, alpha, centre)


def gather(
    model: Any,
    demonstrations: Sequence[Demonstration] | None = None,
    *,
    tokenizer: Any = None,
    source: ModelSource | str | None = None,
    site: Site | str = DEFAULT_SITE,
    layers: str | Sequence[int] | None = None,
    position: Position = DEFAULT_POSITION,
    neutral: Neutral = DEFAULT_NEUTRAL,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    prompt_format: PromptFormat | None = None,
    seed: int = DEFAULT_SEED,
    batch_size: int = DEFAULT_BATCH_SIZE,
    dtype: str = "auto",
    device: str | None = None,
) -> Activations:
    """The first half of :func:`fit`: activations of a living model, or of one that is loaded for it.

    Arguments as of ``fit``; ``layers`` None takes all, to refit any from.
    """
    if model is None:
        raise SettingError("fit needs a model, or saved activations")
    site = Site.parse(site)
    if isinstance(model, str | Path | ModelSource):
        source = ModelSource.parse(model)
        tokenizer = tokenizer or load_tokenizer(source)
        model = load_model(source, dtype=dtype, device=device)
    if tokenizer is None:
        raise SettingError("a living model needs its tokenizer: fit(model, demonstrations, tokenizer=...)")
    named = source or getattr(model, "name_or_path", "") or type(model).__name__
    if not isinstance(named, ModelSource):  # a path is never recorded, only the folder's own name
        named = ModelSource(Path(named).name if Path(named).exists() else str(named))
    return collect(
        model,
        tokenizer,
        builtin() if demonstrations is None else demonstrations,
        source=named,
        site=site,
        layers=None if layers is None else sea.select_layers(layers, text_config(model).num_hidden_layers),
        position=position,
        neutral=neutral,
        max_new_tokens=max_new_tokens,
        prompt_format=prompt_format,
        seed=seed,
        batch_size=batch_size,
    )


def check_settings(
    *,
    K: float | int = DEFAULT_K,
    K_positive: float | int | None = None,
    K_negative: float | int | None = None,
    merge: str = DEFAULT_MERGE,
    feature: str = "identity",
    parts: str = "both",
) -> None:
    """Raise SettingError for settings that no model and no activations could make right."""
    K_pos, K_neg = (K if value is None else value for value in (K_positive, K_negative))
    sea.check_share(K_pos, "K_positive")
    sea.check_share(K_neg, "K_negative")
    if K_pos == K_neg == 0:
        raise SettingError("K = 0 is outside (0, 1], and as a rank it keeps no direction at all: nothing to edit with")
    for name, value, known in (
        ("merge", merge, MERGES),
        ("feature function", feature, FEATURES),
        ("parts", parts, PARTS),
    ):
        if value not in known:
            raise SettingError(f"unknown {name} {value!r}: use one of {', '.join(known)}")


def _project(
    found: Activations,
    layers: str | Sequence[int],
    K_positive: float | int,
    K_negative: float | int,
    merge: str,
    feature: str,
    parts: str,
    alpha: float,
    centre: bool,
) -> Edit:
    row = {layer: i for i, layer in enumerate(found.layers)}
    signatures = {layer: sea.signature(found.positive[i], found.negative[i]) for layer, i in row.items()}
    chosen = sea.select_layers(layers, found.base.num_layers, signatures)
    without = found.recipe.get("without_site", ())
    chosen = tuple(layer for layer in chosen if layer not in without)
    check_roles(found)
    absent = [layer for layer in chosen if layer not in row]
    if absent:
        raise SettingError(f"the activations lack layer {absent[0]}; they hold layers {ranges(found.layers)}")
    projectors = {}
    with progress.bar("projectors", len(chosen), "layer") as advance:
        for layer in chosen:
            roles = (t[row[layer]] for t in (found.neutral, found.positive, found.negative))
            projectors[layer] = sea.projector(
                *roles, K_positive=K_positive, K_negative=K_negative, feature=feature, centre=centre
            ).float()
            advance(1)
    rows = [row[layer] for layer in chosen]
    check_directions(found, rows, [projectors[layer].ranks for layer in chosen], parts, centre=centre)
    recipe = {
        **found.recipe,
        "K_positive": K_positive,
        "K_negative": K_negative,
        "centre": centre,
        "layers": layers if isinstance(layers, str) else list(layers),
        "signatures": {str(layer): float(f"{value:.7g}") for layer, value in signatures.items()},
        "versions": {
            "sea_bake": version("sea-bake"),
            "torch": version("torch"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    }
    return Edit(projectors, found.site, found.base, merge, feature, parts, alpha, recipe)


def check_layers(model: str | Path | ModelSource, layers: str | Sequence[int], site: Site | str | None = None) -> None:
    """Refuse an unknown family, or layers out of range or without the site, before any weight is read.

    Raises:
        FamilyError, SettingError: the same.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    source = ModelSource.parse(model)
    if source.is_gguf:
        return  # its configuration is inside the file that is about to be read
    source = source.base() if source.is_adapter else source
    kind = None
    try:
        kind = PreTrainedConfig.get_config_dict(str(source.path or source.name))[0].get("model_type")
        config = AutoConfig.from_pretrained(str(source.path or source.name), trust_remote_code=False)
    except Exception:
        if isinstance(kind, str) and kind not in CONFIG_MAPPING:
            family(kind)  # edited already, or unknown to transformers too
        return  # loading the model tells it better
    text = decoder_config(config)
    row = family_of(text)
    wanted = None if site is None else Site.parse(site)
    having = () if wanted is None else planned_layers(config, wanted)
    if not (isinstance(layers, str) and layers.startswith("signature")):
        chosen = sea.select_layers(layers, text.num_hidden_layers)
        if wanted is not None and not set(chosen) & set(having):
            raise SettingError(lacking(row, wanted, chosen, having))


def is_main_process() -> bool:
    return bool(processes().is_main_process)
