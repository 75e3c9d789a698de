"""Fit an edit: the whole line on one page, demonstrations -> activations -> maps -> Edit."""

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
from sea_bake.activations.contrast import check_changes, check_directions, check_roles
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.demonstrations import Demonstration, builtin
from sea_bake.edit import Edit
from sea_bake.errors import SettingError
from sea_bake.io import progress
from sea_bake.methods import sea
from sea_bake.methods.collected import Collected
from sea_bake.methods.layers import check_layers, select_layers
from sea_bake.methods.sea import Projector
from sea_bake.methods.table import (
    DEFAULT_CENTRE,
    DEFAULT_HEADS,
    DEFAULT_K,
    DEFAULT_MERGE,
    DEFAULT_METHOD,
    DEFAULT_RIDGE,
    SETTINGS,
    arguments_of,
    check_count,
    check_settings,
    gathered,
    named,
    resolved,
)
from sea_bake.model.anatomy import Site
from sea_bake.model.loading import load_model, load_tokenizer, processes
from sea_bake.model.sites import ranges, text_config
from sea_bake.model.source import ModelSource


def fit(
    model: Any,
    demonstrations: Sequence[Demonstration] | None = None,
    *,
    tokenizer: Any = None,
    source: ModelSource | str | None = None,
    activations: Activations | None = None,
    method: str = DEFAULT_METHOD,
    site: Site | str | None = None,
    layers: str | Sequence[int] | None = None,
    alpha: float | None = None,
    K: float | int = DEFAULT_K,
    K_positive: float | int | None = None,
    K_negative: float | int | None = None,
    merge: str = DEFAULT_MERGE,
    feature: str = "identity",
    parts: str = "both",
    centre: bool = DEFAULT_CENTRE,
    heads: float | int = DEFAULT_HEADS,
    ridge: float = DEFAULT_RIDGE,
    direction: int | None = None,
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
    """Fit an edit: SEA (arXiv 2405.09719), or another method of ``methods.table.METHODS``.

    Args:
        model: folder (or PEFT adapter that names its base), .gguf file or Hub id; in Python also a living causal LM.
            Not needed with ``activations``.
        demonstrations: triples. Default: the built-in truthfulness set.
        tokenizer, source: with a living model: its tokenizer, and the name to record for it.
        activations: refit from saved activations, which fix the site and the demonstrations: no model is run.
        method: "sea", "mean-difference" (CAA), "pca" (control vectors), "iti", "leace", "ablation" (directional), "act"
            (Linear-AcT) or "contrastive".
        site: what is edited: "mlp" or "attn" output, "block" (residual stream), "heads" (input of the attention's
            output projection), or what plan names ("attn:mamba"). Default: the method's; of sea attn.
        layers: decoder layers to edit: last:21, first:8, last:0.66 (a share), all, middle, 10-29, 3,5,7 or
            signature:0.5. Default: the method's; of sea last:0.66.
        alpha: strength: h + alpha (y - h). 0 is the base model. Default: the method's; of sea 0.77, of iti 15, else 1.
        K: share of explained variance (such as 0.95, at most 1), or a whole number: a rank (8). Of sea, contrastive.
        K_positive: K of the positive projection. Default: K.
        K_negative: K of the negative projection. Default: K.
        merge: "sum" (folds exactly), "l2" (each token keeps its norm) or "average". Of sea, contrastive.
        feature: "identity" (linear SEA), or "squared-exponential", "tanh", "elu" (Φ-SEA).
        parts: "both" projections, or "positive" or "negative" alone. Of sea, contrastive.
        centre: subtract each role's mean first; of pca, that of the differences. Of sea, pca, contrastive.
        heads: attention heads that are edited: a share of them, or how many (48). Of iti.
        ridge: what counts as rare: a share of the mean eigenvalue. Of contrastive.
        direction: decoder layer behind which ablation reads its direction. Default: where roles lie furthest apart.
        position, max_new_tokens, seed, batch_size: see :func:`sea_bake.activations.collect_sites`.
        neutral: see :func:`sea_bake.activations.collect_sites`.
        prompt_format: see :func:`sea_bake.activations.collect_sites`.
        dtype, device: see :func:`sea_bake.model.loading.load_model`.
        save_activations: also save the activations of all layers, to refit in seconds.
        overwrite: replace an earlier output.

    Raises:
        SeaBakeError: a child of it for every wrong input, before the heavy work where that is possible.
    """
    given = dict(locals())
    settings = {name: given[name] for name in ("method", "site", "layers", "alpha", "neutral", *SETTINGS)}
    check_settings(method=method, site=site, **{name: given[name] for name in SETTINGS})
    if activations is None:
        own, reading = resolved(settings), gathered(settings)
        if isinstance(model, str | Path | ModelSource):
            check_layers(model, own["layers"], own["site"])
        demonstrations = builtin() if demonstrations is None else demonstrations
        check_count(method, len(demonstrations))
        wanted = own["layers"]
        if save_activations is not None or (isinstance(wanted, str) and wanted.startswith("signature")):
            wanted = None
        elif named(method).reads is not None:
            wanted = None if direction is None else [direction]
        activations = gather(
            model,
            demonstrations,
            tokenizer=tokenizer,
            source=source,
            site=reading["site"],
            layers=wanted,
            position=position,
            neutral=neutral if save_activations is not None else reading["neutral"],
            max_new_tokens=max_new_tokens,
            prompt_format=prompt_format,
            seed=seed,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
        )
        if save_activations is not None and is_main_process():
            activations.save(save_activations, overwrite=overwrite)
    return _edit(activations, settings)


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
        layers=None if layers is None else select_layers(layers, text_config(model).num_hidden_layers),
        position=position,
        neutral=neutral,
        max_new_tokens=max_new_tokens,
        prompt_format=prompt_format,
        seed=seed,
        batch_size=batch_size,
    )


def _edit(found: Activations, settings: dict[str, Any]) -> Edit:
    """The second half: maps out of activations."""
    method, row = settings["method"], named(settings["method"])
    site = _site(found, settings)
    own = resolved(settings)
    check_count(method, found.neutral.shape[1])
    place = {layer: i for i, layer in enumerate(found.layers)}
    signatures = {layer: sea.signature(found.positive[i], found.negative[i]) for layer, i in place.items()}
    chosen = select_layers(own["layers"], found.base.num_layers, signatures)
    without = found.recipe.get("without_site", ())
    chosen = tuple(layer for layer in chosen if layer not in without)
    check_roles(found)
    absent = [layer for layer in chosen if layer not in place]
    if absent and row.reads is None:
        raise SettingError(f"the activations lack layer {absent[0]}; they hold layers {ranges(found.layers)}")
    roles = {layer: (found.neutral[i], found.positive[i], found.negative[i]) for layer, i in place.items()}
    arguments = arguments_of(method, settings)
    with progress.bar("maps", len(chosen), "layer") as advance:
        heads = int(found.base.config.get("num_attention_heads") or 0) if site is Site.HEADS else 0
        collected = Collected(roles, chosen, found.base.num_layers, heads, advance)
        maps, facts = row.fit(collected, **arguments)
    maps = {layer: one.float() for layer, one in maps.items()}
    projectors = [layer for layer, one in maps.items() if isinstance(one, Projector)]
    ranks = [maps[layer].ranks for layer in projectors]
    if projectors:
        check_directions(found, [place[i] for i in projectors], ranks, settings["parts"], centre=settings["centre"])
    else:
        check_changes(maps.values())
    recipe = {
        **found.recipe,
        "method": method,
        **{name: value for name, value in arguments.items() if name != "feature"},
        **facts,
        "layers": own["layers"] if isinstance(own["layers"], str) else list(own["layers"]),
        "signatures": {str(layer): float(f"{value:.7g}") for layer, value in signatures.items()},
        "versions": {
            "sea_bake": version("sea-bake"),
            "torch": version("torch"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    }
    if row.reads is not None:
        recipe["read_at"] = row.reads.value
    applied = {name: settings[name] if projectors else SETTINGS[name] for name in ("merge", "feature", "parts")}
    return Edit(maps, site, found.base, **applied, alpha=own["alpha"], recipe=recipe)


def _site(found: Activations, settings: dict[str, Any]) -> Site:
    """What is edited with these activations.

    Raises:
        SettingError: they are of another site than the method reads, or than is to be edited.
    """
    row, given = named(settings["method"]), settings["site"]
    if row.reads is not None:
        if found.site is not row.reads:
            raise SettingError(
                f"{settings['method']} reads activations of the site {row.reads.value}, and these are of "
                f"{found.site.value}: fit from the model, and save them there (--save-activations)"
            )
        return Site(resolved(settings)["site"])
    wanted = row.only or (found.site if given is None else Site.parse(given))
    if wanted is not found.site:
        raise SettingError(
            f"{settings['method']} is to edit the site {wanted.value}, and the activations are of {found.site.value}: "
            "give those of the site, or fit from the model"
        )
    return found.site


def is_main_process() -> bool:
    return bool(processes().is_main_process)
