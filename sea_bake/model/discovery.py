"""Find the parts of a decoder that ``anatomy`` has no row for, and prove them: on small layers, with random weights.

What stands where is not guessed from names. A module that does the same to each token, in whatever order they stand, is
an MLP, one that does not mixes tokens; and a tensor on disk is the writer of a site when Q, a cyclic shift doubled and
with its sign turned, multiplied onto it, comes out of the site. What cannot be proved so is refused. One layer of each
kind is looked at, narrower than the real one, with few experts. A name decides one thing alone: of several modules that
mix tokens, the one called attention is the site ``attn``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sea_bake.errors import FamilyError, reason_of
from sea_bake.model.anatomy import SEA_PREFIX, Family, family
from sea_bake.model.one_layer import quiet
from sea_bake.model.proving import Writers, proved
from sea_bake.model.skeleton import build_of, cut, decoder_of, first_layers, kinds_of, skeleton, stack_of
from sea_bake.model.small import Small

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_NO_BUILD = ("dtype", "architectures", "transformers_version", "_name_or_path")  # a living model's are others
_MOST = 1 << 23  # parameters of a layer that is run: 32 MiB; of all the model, eight times as many


@dataclass(frozen=True)
class Kind:
    """What one kind of layers has.

    Attributes:
        layers: their numbers.
        stem: prefix of the backbone in the tensor names on disk.
        mixers, mlps: proved modules that mix tokens, and that do not, with their writers; the largest MLP first.
        attention: the path of the mixer that is called attention.
        norm_behind: an RMSNorm stands directly behind each site's module.
        classes: module -> name of its class.
        streams: its output is several residual streams.
    """

    layers: list[int]
    stem: str
    mixers: dict[str, Writers]
    mlps: dict[str, Writers]
    attention: str | None
    norm_behind: bool
    classes: dict[str, str]
    streams: bool


def family_of(text: Any) -> Family:
    """The row of a decoder's configuration: from ``anatomy``, or else discovered and proved.

    Raises:
        FamilyError: edited already; or unknown and not provable. The message says what was found.
    """
    try:
        return family(text.model_type)
    except FamilyError:
        if text.model_type.startswith(SEA_PREFIX):
            raise
        kind: Any = type(text)
        build = {key: value for key, value in text.to_dict().items() if key not in _NO_BUILD}
        return _discovered(text.model_type, json.dumps(build, default=str), kind)


@functools.lru_cache(maxsize=16)
def _discovered(model_type: str, data: str, kind: Any) -> Family:
    text = kind.from_dict(json.loads(data))
    found: dict[str, str] = {}
    with quiet():
        return _looked_at(text, found)


def _looked_at(text: Any, found: dict[str, str]) -> Family:
    model_type = text.model_type
    try:
        real = skeleton(text)
        decoder = decoder_of(real)
        stack = stack_of(real, text.num_hidden_layers)
        if stack is None:
            raise _refusal(model_type, found, f"its decoder has no one stack of {text.num_hidden_layers} layers")
        stem = next(name for name, module in real.named_modules() if module is decoder)
        found["stack of layers"] = f"{stem}.{stack[0]}".lstrip(".")
        seen = _kinds(text, stack[1], found)
    except FamilyError:
        raise
    except Exception as error:
        reason = reason_of(error)
        raise _refusal(model_type, found, f"a layer of it does not run by itself ({reason})") from error
    stems = {kind.stem for kind in seen}
    if len(stems) != 1:
        raise _refusal(model_type, found, "its layers are called in several ways on disk")
    return _row(Family(model_type, stems.pop(), stack[0]), seen, found)


def _kinds(text: Any, layers: nn.ModuleList, found: dict[str, str]) -> list[Kind]:
    """Every kind of layer, looked at in the narrowest model that is built like the real one and runs."""
    failure: Exception | None = None
    kinds = kinds_of(text, layers)
    for config in cut(text):
        try:
            small = skeleton(config)
            stack = stack_of(small, len(layers))
            if stack is None or any(build_of(stack[1][kind[0]]) != build_of(layers[kind[0]]) for kind in kinds):
                continue
            if max(_size(stack[1][kind[0]]) for kind in kinds) > _MOST:
                break
            return [_kind(config, layers, kind, found) for kind in kinds]
        except Exception as error:  # widths that do not go together: less is cut then
            failure = failure or error
    raise failure or ValueError("no smaller model is built like it")


def _small(config: Any, layer: int, build: object) -> Small:
    """The layer behind as few others as will do: those before it, or among all."""
    failure: Exception | None = None
    for depth in dict.fromkeys((layer + 1, config.num_hidden_layers)):
        try:
            first = first_layers(config, depth)
            model = skeleton(first)
            stack = stack_of(model, depth)
            if stack is not None and build_of(stack[1][layer]) == build and _size(model) <= 8 * _MOST:
                return Small(first, layer)
        except Exception as error:  # some configurations go together as a whole alone
            failure = error
    raise failure or ValueError(f"layer {layer} does not stand alone")


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _kind(config: Any, real: nn.ModuleList, layers: list[int], found: dict[str, str]) -> Kind:
    layer = layers[0]
    small = _small(config, layer, build_of(real[layer]))
    mixers, mlps = proved(small)
    sizes = {path: _size(real[layer].get_submodule(path)) for path in mlps}
    mlps = {path: mlps[path] for path in sorted(mlps, key=lambda path: -sizes[path])}
    called = (
        p for p in mixers if _ATTENTION.search(p) or _ATTENTION.search(type(small.block.get_submodule(p)).__name__)
    )
    attention = next(called, None)
    where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers[:4]))}{', ...' * (len(layers) > 4)}"
    for what, modules in (("modules that mix tokens", mixers), ("modules that do not", mlps)):
        if modules:
            found[f"{what} in {where}"] = " and ".join(f"{p} (written by {w})" for p, w in modules.items())
    normed = all(map(small.is_normed, {**mixers, **mlps}))
    classes = {path: type(small.block.get_submodule(path)).__name__ for path in (*mixers, *mlps)}
    return Kind(layers, small.stem, mixers, mlps, attention, normed, classes, small.streams)


def _row(row: Family, kinds: list[Kind], found: Mapping[str, str]) -> Family:
    """One row from what the kinds have, or a refusal."""
    everywhere = {(path, kind.classes[path]) for kind in kinds for path in kind.mixers}
    for kind in kinds:  # where keys and values are another layer's, an attention does not mix what it is given
        for path in [path for path in kind.mlps if (path, kind.classes[path]) in everywhere]:
            kind.mixers[path] = kind.mlps.pop(path)
    attentions = {(kind.attention, kind.classes[kind.attention]) for kind in kinds if kind.attention}
    attn: dict[tuple[str, str], None] = {}
    mlp: dict[str, str | None] = {}
    named: dict[str, str] = {}
    stacks: set[tuple[str | None, str | None, str | None]] = set()
    first: dict[str, None] = {}
    for kind in kinds:
        called = (path for path in kind.mixers if not attentions or (path, kind.classes[path]) in attentions)
        chosen = next(called, None)
        for path, writers in kind.mixers.items():
            if writers.plain is None or writers.is_stacked:
                raise _refusal(row.model_type, found, f"{path} is written by several stacks")
            if path == chosen:
                attn[path, writers.plain] = None
            else:
                named[f"attn:{path}"] = writers.plain
        for i, (path, writers) in enumerate(kind.mlps.items()):
            if i and not writers.is_stacked and writers.plain and writers.plain != path:
                named[f"mlp:{path}"] = writers.plain
            if i:
                continue
            if writers.is_stacked:
                stacks.add((writers.experts, writers.fused, writers.plain and f"{writers.plain}.weight"))
                mlp.setdefault(path, None)
            else:
                mlp[path] = writers.plain
        for writers in (*kind.mixers.values(), *kind.mlps.values()):
            first |= dict.fromkeys(writers.input_first)
    if not attn or not mlp:
        missing = " and ".join(name for name, has in (("attn", attn), ("mlp", mlp)) if not has)
        raise _refusal(row.model_type, found, f"no module could be proved to be its {missing}")
    if len(stacks) > 1:
        raise _refusal(row.model_type, found, "its layers keep their experts in several ways")
    experts, fused, shared = next(iter(stacks), (None, None, None))
    places = [(path, writer) for path, writer in mlp.items() if writer is not None]
    (attn_path, attn_writer), *attn_kinds = attn
    if not places:
        row = replace(row, mlp=next(iter(mlp)))
    elif next(iter(mlp)) != places[0][0] and mlp[next(iter(mlp))] is None:
        raise _refusal(row.model_type, found, "its experts and its dense MLPs lie in modules of different names")
    else:
        row = replace(row, mlp=places[0][0], mlp_writer=places[0][1], mlp_kinds=tuple(places[1:]))
    return replace(
        row,
        attn=attn_path,
        attn_writer=attn_writer,
        attn_kinds=tuple(attn_kinds),
        experts=experts,
        fused=fused,
        shared=shared,
        input_first=tuple(first),
        norm_behind=all(kind.norm_behind for kind in kinds),
        named=tuple(named.items()),
        streams=any(kind.streams for kind in kinds),
    )


def _refusal(model_type: str, found: Mapping[str, str], why: str) -> FamilyError:
    seen = "; ".join(f"{key}: {value}" for key, value in found.items()) or "nothing"
    return FamilyError(
        f"unknown model family '{model_type}', and discovering it failed: {why}. Found: {seen}. "
        "A decoder with the same parts needs one row in sea_bake/model/anatomy.py and a tiny config in "
        "tests/families.py ('Add a family' in sea_bake/README.md)."
    )
