"""Fit an edit: the whole line on one page, demonstrations -> activations -> maps -> strength -> Edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.demonstrations import Demonstration, builtin, digest
from sea_bake.demonstrations.holding import DEFAULT_HELD_BACK, hold_back
from sea_bake.edit import Edit
from sea_bake.edit.measured import NOISE, Measured
from sea_bake.errors import EvaluationError, SettingError
from sea_bake.evaluation.strength import DEFAULT_BUDGET, UnreachedError, check_budget
from sea_bake.evaluation.worth import DEFAULT_CONTROLS, Bench
from sea_bake.fitting.maps import edit_of
from sea_bake.methods.layers import check_layers, check_read, select_layers
from sea_bake.methods.table import (
    DEFAULT_CENTRE,
    DEFAULT_HEADS,
    DEFAULT_K,
    DEFAULT_MERGE,
    DEFAULT_METHOD,
    DEFAULT_RIDGE,
    SETTINGS,
    check_count,
    check_searched,
    check_settings,
    gathered,
    named,
    resolved,
)
from sea_bake.model.anatomy import Site
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.model.processes import is_main_process
from sea_bake.model.sites import text_config
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
    budget: float | None = DEFAULT_BUDGET,
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
    held_back: float = DEFAULT_HELD_BACK,
    measure: bool = True,
    controls: int = DEFAULT_CONTROLS,
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
        activations: refit from saved activations, which fix the site and the demonstrations. Without a model none is
            run: the strength is then the method's own, and nothing is measured.
        method: "sea", "mean-difference" (CAA), "pca" (control vectors), "iti", "leace", "ablation" (directional), "act"
            (Linear-AcT) or "contrastive".
        site: what is edited: "mlp" or "attn" output, "block" (residual stream), "heads" (input of the attention's
            output projection), or what plan names ("attn:mamba"). Default: the method's; of sea attn.
        layers: decoder layers to edit: last:21, first:8, last:0.66 (a share), all, middle, 10-29, 3,5,7 or
            signature:0.5. Default: the method's; of sea last:0.66.
        alpha: strength: h + alpha (y - h). 0 is the base model. Default: found for the budget; of leace and ablation,
            which erase at 1 alone, 1 (where budget is None the method's own: of sea 0.77, of iti 6, else 1).
        budget: KL from the base that the edit may cost, in nats per token of neutral text: the strength is found for it
            on the model at hand, unless alpha is given. Where none reaches the default, the method's own strength
            stays, and that is said; any other is an error then. Not of leace and ablation.
        K: share of explained variance (such as 0.95, at most 1), or a whole number: a rank (8). Of sea, contrastive.
        K_positive: K of the positive projection. Default: K.
        K_negative: K of the negative projection. Default: K.
        merge: "sum" (folds exactly), "l2" (each token keeps its norm) or "average". Of sea, contrastive.
        feature: "identity" (linear SEA); Φ-SEA's "squared-exponential", "tanh", "elu", "asinh", "signed-square-root".
        parts: "both" projections, or "positive" or "negative" alone. Of sea, contrastive.
        centre: subtract each role's mean first; of pca, that of the differences. Of sea, pca, contrastive.
        heads: attention heads that are edited: a share of them, or how many (48). Of iti.
        ridge: what counts as rare: a share of the mean eigenvalue. Of contrastive.
        direction: decoder layer behind which ablation reads its direction. Default: where roles lie furthest apart.
        held_back: share of the demonstrations, by question, that is not fitted on but measured on; 0: none.
        measure: when the fit is done, measure KL, gain on what was held back, and random edits of the same KL.
        controls: random edits of each kind; 20 for a claim, then at another site too. Not without ``measure``.
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
    check_budget(budget)
    if alpha is None and budget not in (None, DEFAULT_BUDGET):
        check_searched(method)
    budget = None if alpha is not None or named(method).erases else budget
    if controls < 0:
        raise SettingError(f"controls = {controls} is less than 0")
    if not measure and controls not in (0, DEFAULT_CONTROLS):
        raise SettingError(
            f"controls = {controls} draws random edits to measure, and nothing is to be measured (--no-measure): drop "
            "one of the two"
        )
    own, reading = resolved(settings), gathered(settings)
    apart = hold_back(builtin() if demonstrations is None else demonstrations, held_back, seed)
    if activations is None:
        if model is None:
            raise SettingError("fit needs a model, or saved activations")
        if isinstance(model, str | Path | ModelSource):
            check_layers(model, own["layers"], own["site"])
        check_read(model, method)
        check_count(method, len(apart.fit))
        wanted = own["layers"]
        if save_activations is not None or (isinstance(wanted, str) and wanted.startswith("signature")):
            wanted = None
        elif named(method).reads is not None:
            wanted = None if direction is None else [direction]
    runs = activations is None or measure or budget is not None
    living = _Living.of(model, tokenizer, source, dtype, device) if runs and model is not None else None
    if activations is None:
        assert living is not None
        activations = gather(
            living.model,
            apart.fit,
            tokenizer=living.tokenizer,
            source=living.source,
            site=reading["site"],
            layers=wanted,
            position=position,
            neutral=neutral if save_activations is not None else reading["neutral"],
            max_new_tokens=max_new_tokens,
            prompt_format=prompt_format,
            seed=seed,
            batch_size=batch_size,
        )
        activations = replace(activations, recipe=activations.recipe | apart.record)
        if save_activations is not None and is_main_process():
            activations.save(save_activations, overwrite=overwrite)
    edit = edit_of(activations, settings)
    if living is None:
        return edit
    known = activations.recipe.get("demonstrations_sha256") == digest(apart.fit)
    why = apart.why if known else "the activations are of other demonstrations"
    bench = Bench(
        living.model,
        living.tokenizer,
        apart.held_back if known else (),
        form=PromptFormat.from_json(activations.recipe),
        batch_size=batch_size,
    )
    searched = budget if bench.can_measure else None
    missed = None
    try:
        edit = edit if searched is None else bench.strength(edit, searched)
    except UnreachedError as error:
        if error.largest < NOISE:
            raise EvaluationError(
                f"the edit would change nothing: at no strength does the model answer neutral text otherwise than the "
                f"base (largest KL {error.largest:g}). Edit other layers (--layers) or another site (--site); where "
                "none changes anything, the base's own answers do not depend on what it reads"
            ) from error
        if searched != DEFAULT_BUDGET:  # a wish of nobody's is no reason to lose a fit
            raise
        searched, missed = None, searched
    found = _measured(bench, edit, measure, controls, searched or missed)
    if found is None:
        return edit
    return replace(edit, measured=replace(found, budget=searched, missed=missed, why=found.why or why))


def _measured(bench: Bench, edit: Edit, measure: bool, controls: int, budget: float | None) -> Measured | None:
    if measure:
        return bench.measured(edit, controls=controls, budget=budget)
    return None if budget is None else bench.cost(edit, budget, "the gain was not to be measured")


@dataclass(frozen=True)
class _Living:
    """A model in memory, its tokenizer, and the name to record for it."""

    model: Any
    tokenizer: Any
    source: ModelSource

    @classmethod
    def of(cls, model: Any, tokenizer: Any, source: Any, dtype: str, device: str | None) -> _Living:
        if isinstance(model, str | Path | ModelSource):
            source = ModelSource.parse(model)
            tokenizer = tokenizer or load_tokenizer(source)
            model = load_model(source, dtype=dtype, device=device)
        if tokenizer is None:
            raise SettingError("a living model needs its tokenizer: fit(model, demonstrations, tokenizer=...)")
        named = source or getattr(model, "name_or_path", "") or type(model).__name__
        if not isinstance(named, ModelSource):  # a path is never recorded, only the folder's own name
            named = ModelSource(Path(named).name if Path(named).exists() else str(named))
        return cls(model, tokenizer, named)


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
    living = _Living.of(model, tokenizer, source, dtype, device)
    model = living.model
    return collect(
        model,
        living.tokenizer,
        builtin() if demonstrations is None else demonstrations,
        source=living.source,
        site=site,
        layers=None if layers is None else select_layers(layers, text_config(model).num_hidden_layers),
        position=position,
        neutral=neutral,
        max_new_tokens=max_new_tokens,
        prompt_format=prompt_format,
        seed=seed,
        batch_size=batch_size,
    )
