"""Find the edited modules of a living model."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from sea_bake.errors import FamilyError, SettingError
from sea_bake.model.anatomy import Family, Site
from sea_bake.model.discovery import family_of


def text_config(model: Any) -> Any:
    """The decoder's configuration, also of a model that wraps it."""
    return decoder_config(model.config)


def decoder_config(config: Any) -> Any:
    """The same from a configuration alone."""
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "num_decoder_layers", None)
    if layers and layers != text.num_hidden_layers:  # T5, whose two stacks may differ
        text = copy.deepcopy(text)
        text.num_hidden_layers = layers
    return text


def model_family(model: Any) -> Family:
    """The family row of a living model. Raises FamilyError when there is none."""
    return family_of(text_config(model))


def site_modules(model: Any, site: Site, layers: Iterable[int]) -> dict[int, nn.Module]:
    """Layer index -> the module whose output is the site.

    Raises:
        FamilyError: the model's layout is not what its family's row says.
        SettingError: a layer out of range.
    """
    row = model_family(model)
    decoder = model.get_decoder()
    stack = getattr(decoder, row.layers, None)
    if not isinstance(stack, nn.ModuleList):
        raise FamilyError(f"{type(decoder).__name__} has no module list '{row.layers}', as {row.model_type} should")
    modules: dict[int, nn.Module] = {}
    for layer in layers:
        if not 0 <= layer < len(stack):
            raise SettingError(f"layer {layer} is out of range: the model has layers 0 to {len(stack) - 1}")
        try:
            modules[layer] = stack[layer].get_submodule(row.module(site)) if row.module(site) else stack[layer]
        except AttributeError:
            raise FamilyError(
                f"{type(stack[layer]).__name__} has no module '{row.module(site)}', as {row.model_type} should"
            ) from None
    return modules
