"""Transport maps of ml-act (https://github.com/apple/ml-act, AcT): w x + b for each unit of a module's output.

One state dict per module, ``{module}.statedict``, such as ``model.layers.3.mlp.down_proj.statedict``. Linear-AcT has
``net.w1`` and ``net.b1`` [1, d]. The Gaussian map has mu1, mu2, std1, std2: std2 / std1 (x - mu1) + mu2 where neither
spread is below 1e-4; the map of means, x - mu1 + mu2, is saved in the same form and has to be named. Every value is
moved, as with ``quantiles_src: q_all``; their default leaves values alone that the fit has not seen, which is no affine
map. Norms, and projections into the MLP, are no sites: maps of those are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import EditError, SettingError
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given, vector
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site

_LINEAR, _GAUSSIAN = ("net.w1", "net.b1"), ("mu1", "mu2", "std1", "std2")
_LEAST_SPREAD = 1e-4


def _holds(*keys: str) -> Callable[[Given], bool]:
    def sees(given: Given) -> bool:
        return given.all_are("torch") and all(isinstance(one, dict) and {*keys} <= {*one} for one in given.contents)

    return sees


def _reader(map_of: Callable[[Mapping[str, Any], str], AffineMap]) -> Callable[[Given, OpenBase, Asked], Found]:
    def read(given: Given, base: OpenBase, asked: Asked) -> Found:
        maps: dict[int, AffineMap] = {}
        sites: dict[Site, Path] = {}
        for path, state in zip(given.paths, given.contents):
            if not isinstance(state, dict):
                raise EditError(f"{path} holds a {type(state).__name__}, not a state dict")
            layer, site = _place(path, base, asked)
            sites.setdefault(site, path)
            if len(sites) > 1:
                one, other = sites
                raise EditError(
                    f"{sites[one].name} is at {one.value} and {sites[other].name} at {other.value}: one edit has one "
                    "site. Import the files of each site by themselves, and bake the edits together"
                )
            if layer in maps:
                raise EditError(f"{path} is the second map of layer {layer}: one module of a layer is edited")
            maps[layer] = map_of(state, str(path))
        return Found(maps, next(iter(sites)))

    return read


def _place(path: Path, base: OpenBase, asked: Asked) -> tuple[int, Site]:
    """Layer and site of the module that a file is called after."""
    module, _, output = path.name.removesuffix(".statedict").partition(":")
    match = re.search(rf"(?:^|\.){re.escape(base.row.layers)}\.(\d{{1,6}})(?:\.(.+))?$", module)
    if match is None or output not in ("", "0"):
        raise EditError(
            f"{path.name} is not called after a module of a decoder layer, as ml-act calls its files: "
            f"{base.row.stem}.{base.row.layers}.3.{base.row.writer(Site.MLP)}.statedict".replace(": .", ": ")
        )
    layer, inner = int(match[1]), match[2] or ""
    if layer >= base.text.num_hidden_layers:
        return layer, asked.site or Site.MLP  # said for all formats in one place
    parts = base.layer_parts(layer)
    for site in base.row.sites:
        place = None if site is Site.HEADS else base.row.place(site, parts)
        if place and (inner == place.module or (inner == place.writer and f"{place.writer}.weight" in parts)):
            if asked.site not in (None, site):
                raise SettingError(f"{path.name} is at {site.value}, not at {asked.site.value}: drop --site")
            return layer, site
    raise EditError(
        f"{path.name}: the output of {inner} is no site of a {base.row.model_type}; those of its attention, its MLP "
        f"and the whole layer are. Learn the map at one of them (module_names: .*{re.escape(base.row.mlp)})"
    )


def _linear(state: Mapping[str, Any], where: str) -> AffineMap:
    w, b = _vectors(state, _LINEAR, where)
    return AffineMap(scale=w, constant=b)


def _gaussian(state: Mapping[str, Any], where: str) -> AffineMap:
    return _moments(state, where, spread=True)


def _means(state: Mapping[str, Any], where: str) -> AffineMap:
    return _moments(state, where, spread=False)


def _moments(state: Mapping[str, Any], where: str, *, spread: bool) -> AffineMap:
    mu1, mu2, std1, std2 = _vectors(state, _GAUSSIAN, where)
    moved = (std1 > _LEAST_SPREAD) & (std2 > _LEAST_SPREAD)
    scale = torch.where(moved & spread, std2 / std1, 1.0)
    constant = torch.where(moved, mu2 - scale * mu1, 0.0)
    return AffineMap(scale=scale if spread else None, constant=constant)


def _vectors(state: Mapping[str, Any], keys: tuple[str, ...], where: str) -> list[torch.Tensor]:
    found = []
    for key in keys:
        if key not in state:
            raise EditError(f"{where} lacks {key}: it is no state of this kind of map")
        value = state[key]
        flat = (
            value.reshape(-1)
            if isinstance(value, torch.Tensor) and value.numel() == max(value.shape, default=0)
            else value
        )
        found.append(vector(flat, f"{where}: {key}"))
    if len({len(v) for v in found}) > 1:
        raise EditError(f"{where}: {', '.join(keys)} are of different widths")
    return found


FORMAT = Format("act", "Linear-AcT", "act", _holds(*_LINEAR), _reader(_linear))
GAUSSIAN = Format("act-gaussian", "Gaussian AcT", "act", _holds(*_GAUSSIAN), _reader(_gaussian))
MEANS = Format("act-mean", "AcT of means", "act", _holds(*_GAUSSIAN), _reader(_means))
