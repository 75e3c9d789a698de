"""Activations of demonstrations at one site of a living model: collected once, refitted from many times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sea_bake import demonstrations as demos
from sea_bake.activations.capture import DEFAULT_POSITION, DEFAULT_SEED, Position, check_finite, read
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import Tokens
from sea_bake.activations.rendering import pinned, rendered
from sea_bake.activations.texts import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_NEUTRAL,
    DEFAULT_NEW_TOKENS,
    ROLES,
    Neutral,
    sequences,
)
from sea_bake.demonstrations import Demonstration
from sea_bake.errors import ActivationError, SettingError
from sea_bake.io import store
from sea_bake.model.anatomy import Site
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.placing import input_device
from sea_bake.model.sites import layers_with, ranges, site_modules, text_config
from sea_bake.model.source import ModelSource

FORMAT = "sea_bake.activations"
VERSION = 1
DEFAULT_SITE = Site.ATTN

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "DEFAULT_NEUTRAL",
    "DEFAULT_NEW_TOKENS",
    "DEFAULT_POSITION",
    "DEFAULT_SEED",
    "DEFAULT_SITE",
    "Activations",
    "Neutral",
    "Position",
    "collect",
    "collect_sites",
]


@dataclass(frozen=True)
class Activations:
    """Vectors of all roles, and what they were taken from.

    Attributes:
        neutral, positive, negative: H, H+, H-: [L, n, d] float32, L in the order of ``layers``.
        layers: the decoder layers they belong to, ascending.
        site: the module whose output they are.
        base: the model they were taken from.
        recipe: how: token position, neutral text (and the digest of its tokens), how prompts were rendered (and what
            opened a block of reasoning, if the chat template left one open), seed, batch size, number and digest of the
            demonstrations, and where they were loaded from, if they know.
    """

    neutral: Tensor
    positive: Tensor
    negative: Tensor
    layers: tuple[int, ...]
    site: Site
    base: BaseModel
    recipe: dict[str, Any]

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """One safetensors file with a JSON header. Raises OutputError when it cannot be written."""
        header = {
            "layers": list(self.layers),
            "site": self.site.value,
            "base": self.base.to_json(),
            "recipe": self.recipe,
        }
        tensors = {role: getattr(self, role) for role in ROLES}
        return store.save(path, tensors, header, form=FORMAT, version=VERSION, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Activations:
        """Raises ActivationError when the file is not one of ours, damaged, or holds NaN."""
        tensors, header = store.load(path, form=FORMAT, version=VERSION, error=ActivationError)
        try:
            layers, site = tuple(map(int, header["layers"])), Site.parse(header["site"])
            base, recipe = BaseModel.from_json(header["base"]), dict(header["recipe"])
            found = {role: tensors[role] for role in ROLES}
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, SettingError) as error:
            raise ActivationError(f"{path}: the header lacks or garbles {error}") from error
        shapes = {tuple(t.shape) for t in found.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 3 or next(iter(shapes))[0] != len(layers):
            raise ActivationError(f"{path}: expected three [{len(layers)}, n, d] tensors, found {sorted(shapes)}")
        check_finite(found, layers)
        return cls(found["neutral"], found["positive"], found["negative"], layers, site, base, recipe)


def collect(
    model: Any,
    tokenizer: Any,
    demonstrations: Sequence[Demonstration],
    *,
    source: ModelSource | str,
    site: Site | str = DEFAULT_SITE,
    **options: Any,
) -> Activations:
    """Activations at one site: see :func:`collect_sites`, whose arguments and errors these are."""
    return collect_sites(model, tokenizer, demonstrations, source=source, sites=[site], **options)[Site.parse(site)]


def collect_sites(
    model: Any,
    tokenizer: Any,
    demonstrations: Sequence[Demonstration],
    *,
    source: ModelSource | str,
    sites: Sequence[Site | str],
    layers: Sequence[int] | None = None,
    position: Position = DEFAULT_POSITION,
    neutral: Neutral = DEFAULT_NEUTRAL,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    prompt_format: PromptFormat | None = None,
    seed: int = DEFAULT_SEED,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> dict[Site, Activations]:
    """Activations of neutral, positive and negative texts (paper, section 3): of several sites from the same passes.

    Args:
        model, tokenizer: a living causal LM and its tokenizer.
        demonstrations: triples, at least two.
        source: what the model was loaded from; recorded in the result.
        sites: "mlp", "attn", "block", or the name of a module beside ("attn:mamba").
        layers: decoder layers. Default: all. Of these, the ones that have the site.
        position: which token of the continuation counts: "last" (the paper's), "mean" (over all) or "random" (one).
        neutral: "generate": the model's own greedy answer (the paper's). "prompt": the prompt alone (fast).
        max_new_tokens: length limit of generated neutral texts.
        prompt_format: how prompts are rendered; see :func:`sea_bake.activations.prompt_format.prompt_format`.
        seed: of position "random".
        batch_size: sequences in one forward pass.

    Raises:
        ActivationError: fewer than two demonstrations, answers that do not differ, a text beyond the model's context
            or with tokens that its embedding lacks, NaN activations.
        FamilyError: a model family that ``anatomy`` does not know.
        SettingError: an unknown site, position or neutral mode; heads that are not of one width in all these layers; a
            chat template that refuses the prompts or leaves them out.
    """
    check_settings(position=position, neutral=neutral, max_new_tokens=max_new_tokens, batch_size=batch_size)
    if len(demonstrations) < demos.MIN_TRIPLES:
        raise ActivationError(f"{len(demonstrations)} usable triples: a cross-covariance needs at least two")
    chosen = list(dict.fromkeys(map(Site.parse, sites)))
    layers = tuple(range(text_config(model).num_hidden_layers)) if layers is None else tuple(layers)
    base = BaseModel.of(model, source)
    form = pinned(tokenizer, prompt_format)
    roles, open_ended = sequences(
        model, tokenizer, demonstrations, neutral=neutral, max_new_tokens=max_new_tokens, prompt_format=form
    )
    there = {site: layers_with(model, site) for site in chosen}
    having = {site: tuple(i for i in layers if i in there[site]) for site in chosen}
    for site in chosen:
        _check_one_width(model, site, having[site])
    found: dict[Site, dict[str, Tensor]] = {}
    for own, inputs in dict.fromkeys((having[site], site.is_input) for site in chosen):  # one pass for all of one width
        sites_there = [site for site in chosen if (having[site], site.is_input) == (own, inputs)]
        if not own:
            raise SettingError(f"none of the layers {ranges(layers)} has the site {sites_there[0].value}")
        found |= read(
            model,
            tokenizer,
            roles,
            open_ended,
            sites=sites_there,
            layers=own,
            position=position,
            seed=seed,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
    recipe = {
        "position": position,
        "neutral": neutral,
        "max_new_tokens": max_new_tokens if neutral == "generate" else None,
        **form.to_json(),
        "reasoning": rendered(tokenizer, demonstrations[0].prompt, form).reasoning,
        "seed": seed,
        "dtype": str(model.dtype).removeprefix("torch."),
        "demonstrations": len(demonstrations),
        "demonstrations_sha256": demos.digest(demonstrations),
        "demonstrations_from": getattr(demonstrations, "origin", None),
        "neutral_sha256": _tokens_digest(roles["neutral"]),
        "batch_size": batch_size,
        "device": input_device(model).type,
    }
    return {
        site: Activations(
            t["neutral"],
            t["positive"],
            t["negative"],
            having[site],
            site,
            base,
            recipe | _without(layers, having[site]),
        )
        for site, t in found.items()
    }


def _check_one_width(model: Any, site: Site, layers: Sequence[int]) -> None:
    """Raise SettingError where a model's heads are wider in some layers than in others: one file holds one width."""
    if not site.is_input:
        return
    of_width: dict[int, list[int]] = {}
    for layer, module in site_modules(model, site, layers).items():
        width = int(getattr(module, "in_features", 0) or getattr(module, "nx", 0))  # of transformers' Conv1D
        of_width.setdefault(width, []).append(layer)
    if len(of_width) > 1:
        told = ", ".join(f"{width} wide in {ranges(own)}" for width, own in of_width.items())
        most = max(of_width, key=lambda width: len(of_width[width]))
        raise SettingError(
            f"the site {site.value} is {told}: fit each by itself, one edit for each width (--layers "
            f"{','.join(map(str, of_width[most]))}; --save-activations reads all layers, so drop it), and bake them "
            "together"
        )


def _without(layers: Sequence[int], having: Sequence[int]) -> dict[str, Any]:
    """What a recipe says of layers that do not have the site; nothing where all have it."""
    lacking = [layer for layer in layers if layer not in having]
    return {"without_site": lacking} if lacking else {}


def check_settings(*, position: str, neutral: str, max_new_tokens: int, batch_size: int) -> None:
    """Raise SettingError for what ``collect`` would refuse."""
    if position not in ("last", "mean", "random"):
        raise SettingError(f"unknown token position {position!r}: use last, mean or random")
    if neutral not in ("generate", "prompt"):
        raise SettingError(f"unknown neutral text {neutral!r}: use generate or prompt")
    if batch_size < 1 or max_new_tokens < 1:
        raise SettingError(f"batch_size ({batch_size}) and max_new_tokens ({max_new_tokens}) must be at least 1")


def _tokens_digest(sequences: Sequence[Tokens]) -> str:
    """SHA-256 of token ids: greedy texts go other ways where a near-tie turns, and this tells."""
    return hashlib.sha256(json.dumps([t.ids for t in sequences], separators=(",", ":")).encode("ascii")).hexdigest()
