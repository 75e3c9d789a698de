"""A PEFT LoRA on output projections, where it is an edit: W + B A = M W, or W N.

A LoRA may do to each writer what it likes; an edit acts on an activation. The change B A of a writer W [d, in] is one
of its *output*, M = I + B C, iff the rows of A lie among those of W: C W = A. And it is one of its *input*,
N = I + D A, iff W D = B, which an attention writer of full rank always allows: the site ``heads``. In front of an MLP's
writer is no site. Whether it is exact is measured on the base's own weights.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import NotExactError, SettingError
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given
from sea_bake.methods.affine import AffineMap
from sea_bake.model import lora
from sea_bake.model.anatomy import Site
from sea_bake.model.source import ModelSource

# Share of A, or of B, that may be missed: a few times the rounding of the dtype that it is saved in.
_MISSED = {torch.float64: 1e-8, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_CURE = "It need not be an edit to be used: a LoRA that names its base is a base itself (sea-bake bake ADAPTER EDIT)"


def _sees(given: Given) -> bool:
    return given.kinds == ("adapter",)


def _read(given: Given, base: OpenBase, asked: Asked) -> Found:
    import transformers

    path = given.one(FORMAT.title)
    model_class = getattr(transformers, base.architecture)
    changes = lora.changes(ModelSource.parse(path), model_class, base.config)
    by_site: dict[Site, dict[int, tuple[str, lora.Change]]] = {}
    for name, change in changes.items():
        site, layer, writer = _place(name, change, base, str(path))
        by_site.setdefault(site, {})[layer] = (writer, change)
    if len(by_site) > 1 and asked.site is None:
        raise SettingError(
            f"{path} changes {' and '.join(site.value for site in by_site)}, and an edit has one site: import each by "
            f"itself (--site {next(iter(by_site)).value}), and bake the edits together"
        )
    site = next(iter(by_site)) if asked.site is None else asked.site
    if site.written_by not in by_site or site is Site.BLOCK:
        raise SettingError(f"{path} changes {', '.join(s.value for s in by_site)}, not {site.value}: drop --site")
    chosen = {i: one for i, one in by_site[site.written_by].items() if asked.layers is None or i in asked.layers}
    sites = (site,) if site is Site.HEADS or asked.site or site is not Site.ATTN else (Site.ATTN, Site.HEADS)
    missed = 0.0
    for site in sites:
        maps: dict[int, AffineMap] = {}
        for layer, (writer, change) in chosen.items():
            one, missed = _map(base, f"{base.stem}.{layer}.{writer}", change, site)
            if one is None:
                break
            maps[layer] = one
        else:
            return Found(maps, site, facts={"adapter": path.name})
    raise NotExactError(
        f"{path} is no edit at {' or '.join(s.value for s in sites)}: in layer {layer} {missed:.1%} of its change lies "
        f"outside of what {'the heads' if site is Site.HEADS else 'the output of its writer'} can do. {_CURE}"
    )


def _place(name: str, change: lora.Change, base: OpenBase, where: str) -> tuple[Site, int, str]:
    match = re.search(rf"(?:^|\.){re.escape(base.row.layers)}\.(\d+)\.(.+)\.weight$", name)
    if match is not None and len(change.keys) == 2:
        layer, writer = int(match[1]), match[2]
        for site in base.row.sites:
            if site not in (Site.BLOCK, Site.HEADS) and any(p.writer == writer for p in base.row.places(site)):
                return site, layer, writer
    raise NotExactError(
        f"{where} changes {name}, which writes no site's output: what it does is no edit of an activation. {_CURE}"
    )


def _map(base: OpenBase, stem: str, change: lora.Change, site: Site) -> tuple[AffineMap | None, float]:
    """The map, or None; and the share that it misses."""
    tensor = base.checkpoint.tensor(f"{stem}.weight")
    lora.check_plain(tensor, f"{stem}.weight", change, base.source)
    W, (left, right) = tensor.read().double(), change.parts()  # type: ignore[union-attr]
    if change.input_first:
        W, left, right = W.T, right.T, left.T
    B, A = left * (change.scaling or 1.0), right
    if site is Site.HEADS:
        D, missed = _solved(W, B)
        return (AffineMap(A=A, B=D) if missed < _MISSED[change.dtype()] else None), missed
    C, missed = _solved(W.T, A.T)
    if missed >= _MISSED[change.dtype()]:
        return None, missed
    bias: Any = base.checkpoint.tensor(f"{stem}.bias")
    constant = None if bias is None else -(B @ (C.T @ bias.read().double()))  # a LoRA leaves the bias as it is
    return AffineMap(A=C.T, B=B, constant=constant), missed


def _solved(W: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """X with W X = wanted as nearly as can be, and the share of ``wanted`` that is missed. Twice refined."""
    gram = W.T @ W if len(W) > W.shape[1] else W @ W.T
    inverse = torch.linalg.pinv(gram, hermitian=True, rcond=1e-13)

    def solve(right: Tensor) -> Tensor:
        return inverse @ (W.T @ right) if len(W) > W.shape[1] else W.T @ (inverse @ right)

    X = solve(wanted)
    for _ in range(2):
        X = X + solve(wanted - W @ X)
    size = float(wanted.norm())
    return X, float((wanted - W @ X).norm()) / size if size else 0.0


FORMAT = Format("lora", "LoRA on output projections", "lora", _sees, _read)
