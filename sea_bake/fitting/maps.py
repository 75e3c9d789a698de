"""The second half of a fit: maps out of activations, and the edit that they make."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from sea_bake.activations import Activations
from sea_bake.activations.contrast import check_changes, check_directions, check_roles
from sea_bake.edit import Edit
from sea_bake.errors import SettingError
from sea_bake.io import progress
from sea_bake.methods import sea
from sea_bake.methods.collected import Collected
from sea_bake.methods.layers import select_layers
from sea_bake.methods.sea import Projector
from sea_bake.methods.table import SETTINGS, arguments_of, check_count, named, resolved
from sea_bake.model.anatomy import Site
from sea_bake.model.sites import ranges


def edit_of(found: Activations, settings: dict[str, Any]) -> Edit:
    """The edit that settings of ``fit`` make of activations, at the strength that they say."""
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
    if projectors:
        check_directions(found, [place[i] for i in projectors], [maps[i] for i in projectors], settings)
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
