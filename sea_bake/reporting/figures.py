"""The figures of a report (extra ``report``): what a fit found in each layer, and what the edit does there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sea_bake.edit import Edit
from sea_bake.pages import pictures
from sea_bake.pages.pictures import UNEDITED, Picture, drawing, panels, spectrum
from sea_bake.reporting.movement import Moved
from sea_bake.reporting.projection import Projected

ROLES = {"positive": ("#3b6fb6", "o"), "negative": ("#c4631c", "^"), "neutral": ("0.5", "s")}  # colour, marker
_SIGNS = {"positive": "+", "negative": "-"}
_MAP = "viridis_r"
_ROUNDING = 1e-12  # singular values below this share of the first are zeros, up to rounding: no scale is spent on them


def spectra(edit: Edit) -> Picture:
    """Singular values of Ω+ and Ω- per layer, where K cut, and the cumulative explained variance."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    named = pictures.named_spectrum(edit)
    with drawing():
        figure, grid = panels(9, 6.2, 2, 2, sharex="col")
        colours = pictures.shades(edit.layers, _MAP)
        for column, (part, sign) in enumerate(_SIGNS.items()):
            above, below = grid[0, column], grid[1, column]
            for layer, colour in colours.items():
                values = spectrum(edit, layer, part).tolist()
                k = edit.ranks[layer][column]
                seen = [s for s in values if s > _ROUNDING * values[0]]
                above.plot(range(1, len(seen) + 1), seen, color=colour, linewidth=1)
                if 0 < k <= len(values):
                    above.plot(k, values[k - 1], "o", color=colour, markersize=4)
            above.set(xscale="log", yscale="log", title=f"{named} of Ω{sign} (dot: k{sign})")
            pictures.draw_explained(below, edit, part, _MAP)
            K = edit.recipe.get(f"K_{part}")
            if isinstance(K, float) and 0 < K <= 1:
                below.axhline(K, color="0.5", linewidth=1, linestyle="--", zorder=0)
                below.text(
                    0.98, K, f"K = {K:g}", transform=below.get_yaxis_transform(), ha="right", va="top", color="0.4"
                )
        grid[0, 0].set_ylabel(named.removesuffix("s") if named.endswith("values") else named)
        grid[1, 0].set_ylabel(f"share of squared {named}")
        whole = MaxNLocator(integer=True)
        shown = (edit.layers[0], max(edit.layers[-1], edit.layers[0] + 1))
        figure.colorbar(ScalarMappable(Normalize(*shown), _MAP), ax=grid, label="decoder layer", aspect=40, ticks=whole)
    return Picture(
        "spectra",
        f"Above: {named} of the cross-covariances Ω+ and Ω-, a line per edited layer. Below: the share of their "
        "squares in the first directions. A dot marks where K cut: up to it Ω+ is kept and Ω- is dropped.",
        figure,
        "Singular spectra and cumulative explained variance of every edited layer, for the positive and the negative "
        "cross-covariance.",
    )


def layers(edit: Edit) -> Picture:
    """Ranks kept and dropped (of an affine map, the sizes of its parts), and the signature, over the depth."""
    signed = bool(edit.recipe.get("signatures"))
    with drawing():
        figure, grid = panels(9, 4.6 if signed else 2.4, 2 if signed else 1, sharex=True, squeeze=False)
        if edit.projectors:
            _draw_ranks(grid[0, 0], edit)
        else:
            pictures.draw_sizes(grid[0, 0], edit)
        if signed:
            pictures.draw_signatures(grid[1, 0], edit)
            grid[1, 0].set_ylabel("signature")
        _by_depth(grid[-1, 0], edit)
    more = " Below: each layer's signature, edited layers in blue, the others in grey." if signed else ""
    shown = "Directions kept (upwards) and dropped (downwards)" if edit.projectors else "Norms of the map's parts"
    return Picture("layers", f"{shown} in each layer.{more}", figure)


def _draw_ranks(axes: Any, edit: Edit) -> None:
    kept, dropped = zip(*edit.ranks.values())
    axes.bar(edit.layers, kept, color=ROLES["positive"][0], label="k+, kept")
    axes.bar(edit.layers, [-k for k in dropped], color=ROLES["negative"][0], label="k-, dropped")
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(ylabel="directions", title="ranks per layer")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.legend(ncols=2)


def _by_depth(axes: Any, edit: Edit) -> None:
    axes.set(xlabel="decoder layer", xlim=(-0.7, edit.base.num_layers - 0.3))
    axes.xaxis.get_major_locator().set_params(integer=True)


def moves(edit: Edit, found: dict[int, dict[str, Moved]]) -> Picture:
    """Relative change and cosine per layer: the median, and a bar between the quartiles."""
    with drawing():
        figure, (above, below) = panels(9, 4.8, 2, sharex=True)
        for place, (role, (colour, marker)) in enumerate(ROLES.items()):
            for axes, name, factor in ((above, "relative", 100), (below, "cosine", 1)):
                low, middle, high = (
                    [factor * getattr(found[layer][role], name)[i] for layer in edit.layers] for i in range(3)
                )
                ends = [[m - a for a, m in zip(low, middle)], [b - m for m, b in zip(middle, high)]]
                places = [layer + 0.22 * (place - 1) for layer in edit.layers]
                axes.errorbar(
                    places, middle, yerr=ends, fmt=marker, color=colour, markersize=4, elinewidth=1.4, label=role
                )
        above.set(ylabel="‖y - h‖ / ‖h‖ (%)", title="relative change")
        above.set_ylim(0, None)
        below.set(ylabel="cos(h, y)", title="direction")
        _by_depth(below, edit)
        above.legend(ncols=3)
        for axes in (above, below):
            axes.grid(axis="y", color=UNEDITED, linewidth=0.5)
    return Picture(
        "movement",
        "How far the edit moves each layer's activation h to y: the median over the demonstrations, and a bar from the "
        "first to the third quartile.",
        figure,
        "Relative change and cosine per edited layer, for positive, negative and neutral texts.",
    )


def plane(found: Sequence[Projected]) -> Picture:
    """Positive, negative and neutral activations before and after, a row per layer."""
    pca = found[0].method == "pca"
    with drawing():
        size = 9, 0.5 + 3.4 * len(found)
        figure, grid = panels(*size, len(found), 2, sharex="row", sharey="row", squeeze=False)
        outside = 0
        for row, layer in zip(grid, found):
            for axes, name, points in zip(row, ("before", "after"), (layer.before, layer.after)):
                for role, (colour, marker) in reversed(ROLES.items()):
                    x, y = points[role].T.tolist()
                    axes.scatter(x, y, s=12, color=colour, marker=marker, alpha=0.55, linewidths=0, label=role)
                axes.set_title(f"layer {layer.layer}, {name}")
                if layer.shares is None:
                    axes.set(xticks=[], yticks=[])
            if layer.shares is not None:
                for axes in row:
                    axes.set_xlabel(f"PC 1 ({100 * layer.shares[0]:.0f} % of variance)")
                row[0].set_ylabel(f"PC 2 ({100 * layer.shares[1]:.0f} %)")
                outside += _framed(row[0], layer)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=3, markerscale=2)
    told = (
        "Principal axes of the base's activations; the edited ones are shown along the same axes."
        if pca
        else "t-SNE of both together: only who is whose neighbour means something, not distances or axes."
    )
    told += f" {outside} dots lie outside of the frames, which show the middle 96 % of each axis." if outside else ""
    names = ", ".join(str(p.layer) for p in found)
    return Picture(
        "projection",
        f"Activations of the demonstrations before and after the edit. {told}",
        figure,
        f"Positive, negative and neutral activations in two dimensions before and after the edit, in layers {names}.",
    )


def _framed(axes: Any, layer: Projected) -> int:
    """Leave out of the frame what would squeeze all else into a corner; returns how many dots that are."""
    points = torch.cat([*layer.before.values(), *layer.after.values()])  # [6 n, 2]
    low, high = points.quantile(torch.tensor([0.02, 0.98], dtype=points.dtype), dim=0)
    margin = 0.25 * (high - low).clamp_min(1e-12)
    low, high = (
        torch.maximum(low - margin, points.min(0).values - margin / 5),
        torch.minimum(high + margin, points.max(0).values + margin / 5),
    )
    axes.set(xlim=(float(low[0]), float(high[0])), ylim=(float(low[1]), float(high[1])))
    return int(((points < low) | (points > high)).any(1).sum())
