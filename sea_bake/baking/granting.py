"""Biases that a base lacks, and that its configuration can grant it: the same model, with biases of zeros to fold into.

A key of the configuration (``attention_bias``) grants several biases at once, in all layers. Which ones, and how wide,
is asked of transformers: its own class is built twice, without memory, with the key and without. Those that no edit
needs are zero, and add nothing.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sea_bake.baking.open_base import OpenBase
from sea_bake.baking.writers import holders_of, writers_of
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, SettingError
from sea_bake.model.anatomy import Site
from sea_bake.model.checkpoint.extended import ExtendedCheckpoint, Zeros

BIASES = "model-biases.safetensors"


def holder(base: OpenBase, site: Site, layers: Sequence[int]) -> str | None:
    """What holds a constant of a site in all of these layers: "" for biases that are there, the key of the
    configuration that grants them, or None.
    """
    if base.is_quantised:
        return None
    try:
        if all(holders_of(base, site.written_by, layer) for layer in layers):
            return ""
        return next((key for key in base.row.bias_keys if _serves(base, key, site, layers)), None)
    except (CheckpointError, SettingError):  # said where the writers are looked for in earnest
        return None


def granted(base: OpenBase, edits: Sequence[Edit]) -> OpenBase:
    """The base under a configuration that grants what the constants of these edits need; itself where nothing is."""
    needs = {holder(base, edit.site, edit.layers) for edit in edits if "constant" in edit.extra}
    for key in sorted(key for key in needs if key):
        base = with_key(base, key)
    return base


def with_key(base: OpenBase, key: str) -> OpenBase:
    """The base under a configuration in which a key is true, and the biases that this grants."""
    if key not in base.kept:
        of = None if base.plain else base.config
        raw = with_text(base.checkpoint.config, of, {key: True})
        base.kept[key] = extended(base, raw, lambda: _set(base, key), _names(base, key), (key,))
    found: OpenBase = base.kept[key]
    return found


def extended(
    base: OpenBase,
    raw: dict[str, Any],
    configured: Callable[[], Any],
    names: Mapping[str, tuple[int, ...]],
    keys: tuple[str, ...],
) -> OpenBase:
    """The base under another configuration, with biases of zeros.

    Args:
        raw: its config.json.
        configured: gives the same for transformers.
        names: on-disk names of the biases -> shape.
        keys: of the configuration, which grant them.
    """
    zeros = {}
    for name, shape in names.items():
        weight = base.checkpoint.tensor(f"{name.removesuffix('bias')}weight")
        assert weight is not None
        zeros[name] = Zeros(shape, weight.form)
    made = ExtendedCheckpoint.of(base.checkpoint, raw, zeros, BIASES, keys)
    return replace(base, configured=configured, checkpoint=made)


def text_of(raw: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
    """The part of a config.json that describes the decoder."""
    part = _part(config)
    return raw if part is None else raw.get(part) or {}


def with_text(raw: dict[str, Any], config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json in which the part that describes the decoder has other values."""
    part = _part(config)
    return {**raw, **changes} if part is None else {**raw, part: {**text_of(raw, config), **changes}}


def _part(config: Any) -> str | None:
    if config is None:  # of a plain build, which has no parts
        return None
    text = config.get_text_config(decoder=True)
    return next((key for key in config.sub_configs if getattr(config, key, None) is text), None)


def _set(base: OpenBase, key: str) -> Any:
    config = copy.deepcopy(base.config)
    setattr(config.get_text_config(decoder=True), key, True)
    return config


def _serves(base: OpenBase, key: str, site: Site, layers: Sequence[int]) -> bool:
    """Whether a key grants a bias that holds a constant of the site, in all layers."""
    names = _names(base, key)
    own = (
        any(f"{w.name.removesuffix('weight')}bias" in names for w in writers_of(base, site.written_by, layer))
        for layer in layers
    )
    if not names or not all(own):
        return False
    with_it = with_key(base, key)
    return all(holders_of(with_it, site.written_by, layer) for layer in layers)


def _names(base: OpenBase, key: str) -> dict[str, tuple[int, ...]]:
    """On-disk name -> shape, of the biases that a key would grant; none where the files keep the weights otherwise."""
    if ("names", key) not in base.kept:
        base.kept["names", key] = _looked_up(base, key)
    found: dict[str, tuple[int, ...]] = base.kept["names", key]
    return found


def _looked_up(base: OpenBase, key: str) -> dict[str, tuple[int, ...]]:
    if base.plain is not None:
        return base.plain.biases(key) if base.plain.build.grants.get(key) else {}
    text: Any = base.text
    if getattr(text, key, None) is not False:
        return {}
    kind: Any = type(text)
    found = _parts(kind, json.dumps(text.to_dict(), sort_keys=True, default=str), key)
    for layer, part, _ in found:
        if f"{part.removesuffix('bias')}weight" not in base.layer_parts(layer):
            return {}
    return {f"{base.stem}.{layer}.{part}": shape for layer, part, shape in found}


@functools.lru_cache(maxsize=8)
def _parts(cls: Any, text: str, key: str) -> tuple[tuple[int, str, tuple[int, ...]], ...]:
    """(layer, name inside it, shape) of the biases that a key grants in transformers; none where it does more."""
    from sea_bake.model.one_layer import decoder_depth, quiet
    from sea_bake.model.skeleton import changed, skeleton, stack_of

    try:
        config = cls.from_dict(json.loads(text))
        with quiet():
            without, with_it = (skeleton(changed(config, {key: value})) for value in (False, True))
    except Exception:  # said better where the base is built in earnest
        return ()
    new = {n: p for n, p in with_it.named_parameters()}.keys() - {n for n, _ in without.named_parameters()}
    before, after = (stack_of(model, decoder_depth(config)) for model in (without, with_it))
    if before is None or after is None:
        return ()
    found = []
    for i, (one, other) in enumerate(zip(before[1], after[1])):
        own = {name for name, _ in one.named_parameters()}
        found += [(i, name, tuple(p.shape)) for name, p in other.named_parameters() if name not in own]
    whole = len(found) == len(new) and all(name.endswith(".bias") for _, name, _ in found)
    return tuple(found) if whole else ()
