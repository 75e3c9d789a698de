"""Which decoder layers are edited: specifications, and whether a model has such layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sea_bake.errors import SettingError
from sea_bake.methods.table import named
from sea_bake.model.anatomy import Site, family
from sea_bake.model.sites import decoder_config, lacking, layers_with, planned_layers
from sea_bake.model.source import ModelSource


def select_layers(
    spec: str | Sequence[int], num_layers: int, signatures: Mapping[int, float] | None = None
) -> tuple[int, ...]:
    """Layers to edit, ascending, from a specification.

    ``last:21`` and ``first:8`` (a share works too: ``last:0.66``), ``all``, ``middle`` (one), ``10-29`` (both ends
    included), ``3,5,7`` (and mixtures: ``0,4-6``), ``signature:0.5`` (layers whose signature is at least half of the
    largest), or a sequence of ints. Negative numbers count from the end in a sequence of ints only.

    Raises:
        SettingError: it cannot be read, selects nothing, or names a layer that the model does not have.
    """
    help_text = "use last:21, first:8, last:0.66, all, middle, 10-29, 3,5,7 or signature:0.5"
    if not isinstance(spec, str):
        chosen = [i + num_layers if i < 0 else i for i in spec]
    else:
        spec = spec.strip()
        kind, _, argument = spec.partition(":")
        try:
            if spec == "all":
                chosen = list(range(num_layers))
            elif spec == "middle":
                chosen = [num_layers // 2]
            elif kind in ("last", "first"):
                share = float(argument)
                count = int(argument) if share >= 1 else max(1, round(share * num_layers)) if share > 0 else 0
                if not 1 <= count <= num_layers:
                    raise SettingError(f"layers '{spec}': the model has {num_layers} layers, not {argument}")
                chosen = list(range(num_layers - count, num_layers) if kind == "last" else range(count))
            elif kind == "signature":
                chosen = _by_signature(float(argument), signatures)
            else:
                chosen = []
                for part in spec.split(","):
                    low, dash, high = part.strip().partition("-")
                    chosen += range(int(low), min(int(high), num_layers) + 1) if dash else [int(low)]
        except ValueError:
            raise SettingError(f"layers '{spec}' cannot be read: {help_text}") from None
    outside = [i for i in chosen if not 0 <= i < num_layers]
    if outside:
        raise SettingError(f"layer {outside[0]} is out of range: the model has layers 0 to {num_layers - 1}")
    if not chosen:
        raise SettingError(f"layers '{spec}' selects no layer: {help_text}")
    return tuple(sorted(set(chosen)))


def _by_signature(share: float, signatures: Mapping[int, float] | None) -> list[int]:
    if not 0.0 < share <= 1.0 or math.isnan(share):
        raise SettingError(f"signature:{share} is outside (0, 1]: it is a share of the largest signature")
    if not signatures:
        raise SettingError("signature:... needs activations of all layers to compute the signatures from")
    top = max(signatures.values())
    return [layer for layer, value in signatures.items() if value >= share * top]


def check_layers(model: str | Path | ModelSource, layers: str | Sequence[int], site: Site | str | None = None) -> None:
    """Refuse an unknown family, or layers out of range or without the site, before any weight is read.

    Raises:
        FamilyError, SettingError: the same.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    from sea_bake.model.discovery import family_of

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
        chosen = select_layers(layers, text.num_hidden_layers)
        if wanted is not None and not set(chosen) & set(having):
            raise SettingError(lacking(row, wanted, chosen, having))


def check_read(model: Any, method: str) -> None:
    """Refuse a method that reads activations which the model does not have, whatever is edited.

    Args:
        model: as of ``fit``.

    Raises:
        SettingError: the same.
    """
    site = named(method).reads
    if site is None:
        return
    try:
        if isinstance(model, str | Path | ModelSource):
            check_layers(model, "all", site)
        else:
            layers_with(model, site)
    except SettingError as error:
        raise SettingError(
            f"{method} reads the site {site.value}, wherever it edits, and this model has none. Choose a method that "
            "reads what it edits (--method leace, or --method mean-difference --site mlp)"
        ) from error
