"""Find the edited modules of a living model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sea_bake.errors import CheckpointError, FamilyError, SettingError, reason_of
from sea_bake.model.anatomy import Family, Site

if TYPE_CHECKING:
    from torch import nn


def text_config(model: Any) -> Any:
    """The decoder's configuration, also of a model that wraps it."""
    return decoder_config(model.config)


def decoder_config(config: Any) -> Any:
    """The same from a configuration alone.

    Raises:
        CheckpointError: the configuration names a part for text that is none: a mere dictionary, or a list.
    """
    text = config.get_text_config(decoder=True)
    if not hasattr(text, "model_type"):
        raise CheckpointError(
            f"config.json has a part for text (text_config, or its like) that {config.model_type} does not have: "
            "remove that entry"
        )
    if text.attribute_map.get("num_hidden_layers") == "encoder_layers":
        text = _of_decoder(config if type(text) is type(config) else text)
    layers = getattr(text, "num_decoder_layers", None)
    if layers and layers != text.num_hidden_layers:  # T5, whose two stacks may differ
        text = copy.deepcopy(text)
        text.num_hidden_layers = layers
    return text


def _of_decoder(config: Any) -> Any:
    """Of BART and its kind: transformers' own part for text has lost the decoder's numbers."""
    text = copy.deepcopy(config)
    text.num_hidden_layers, text.num_attention_heads = config.decoder_layers, config.decoder_attention_heads
    return text


def model_family(model: Any) -> Family:
    """The family row of a living model. Raises FamilyError when there is none."""
    from sea_bake.model.discovery import family_of

    return family_of(text_config(model))


def layers_with(model: Any, site: Site) -> tuple[int, ...]:
    """The decoder layers of a living model, or of one without memory, that have a site: all, in most families.

    Raises:
        FamilyError: the model's layout is not what its family's row says.
        SettingError: a named site that the family does not have, or that none of its layers has.
    """
    row, stack = _stack(model)
    found = tuple(i for i, layer in enumerate(stack) if row.place(site, _parts(layer)) is not None)
    if not found:
        raise SettingError(f"no layer of this {row.model_type} has the site {site.value}")
    return found


def lacking(row: Family, site: Site, layers: Sequence[int], others: Sequence[int]) -> str:
    """What is said of layers that do not have a site, where others have it."""
    several = "s" * (len(layers) > 1)
    return (
        f"layer{several} {ranges(layers)} of this {row.model_type} ha{'ve' if several else 's'} no site {site.value}: "
        f"it exists in {ranges(others)}"
    )


def ranges(layers: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> "0-2, 5"."""
    groups: list[list[int]] = []
    for layer in layers:
        if groups and layer == groups[-1][-1] + 1:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)


def planned_layers(config: Any, site: Site) -> tuple[int, ...]:
    """:func:`layers_with` of a configuration alone.

    Raises:
        FamilyError: transformers cannot build it; the message says why.
    """
    import torch
    import transformers

    from sea_bake.model.loading import language_models

    failure: Exception | None = None
    for auto in language_models(config.model_type):
        try:
            with torch.device("meta"):
                model = getattr(transformers, auto).from_config(copy.deepcopy(config), dtype=torch.float32)
        except Exception as error:
            failure = failure or error
        else:
            return layers_with(model, site)
    reason = reason_of(failure)
    raise FamilyError(f"transformers cannot build a {config.model_type} of this config.json: {reason}") from failure


def _stack(model: Any) -> tuple[Family, nn.ModuleList]:
    from torch import nn

    from sea_bake.model.skeleton import decoder_of

    row = model_family(model)
    decoder = decoder_of(model)
    stack = getattr(decoder, row.layers, None)
    if not isinstance(stack, nn.ModuleList):
        raise FamilyError(f"{type(decoder).__name__} has no module list '{row.layers}', as {row.model_type} should")
    return row, stack


def _parts(layer: nn.Module) -> list[str]:
    return [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())]


def site_modules(model: Any, site: Site, layers: Iterable[int]) -> dict[int, nn.Module]:
    """Layer index -> the module whose output is the site.

    Raises:
        FamilyError: the model's layout is not what its family's row says.
        SettingError: a layer out of range, or one that has no such site.
    """
    row, stack = _stack(model)
    modules: dict[int, nn.Module] = {}
    for layer in layers:
        if not 0 <= layer < len(stack):
            raise SettingError(f"layer {layer} is out of range: the model has layers 0 to {len(stack) - 1}")
        place = row.place(site, _parts(stack[layer]))
        if place is None:
            others = [i for i, other in enumerate(stack) if row.place(site, _parts(other)) is not None]
            if others:
                raise SettingError(lacking(row, site, [layer], others))
            raise FamilyError(f"{type(stack[layer]).__name__} has no '{row.writer(site)}', as {row.model_type} should")
        module = place.module
        try:
            modules[layer] = stack[layer].get_submodule(module) if module else stack[layer]
        except AttributeError:
            raise FamilyError(
                f"{type(stack[layer]).__name__} has no module '{module}', as {row.model_type} should"
            ) from None
    return modules
