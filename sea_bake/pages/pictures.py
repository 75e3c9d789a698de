"""Pictures of an edit (extra ``plot``), and what all pictures share."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sea_bake.edit import Edit
from sea_bake.errors import OutputError, need
from sea_bake.io.staging import staged_file

EDITED, UNEDITED = "#3b6fb6", "0.8"
_FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Picture:
    """A figure with its words.

    Attributes:
        name: what its file is called, without an ending.
        caption: what one sees.
        figure: matplotlib's.
        alt: for those who do not see it; empty where the caption does.
    """

    name: str
    caption: str
    figure: Any
    alt: str = ""

    def svg(self) -> bytes:
        return self._rendered("svg", {"Date": None, "Creator": None})

    def png(self) -> bytes:
        return self._rendered("png", {"Software": None})

    def _rendered(self, form: str, metadata: dict[str, None]) -> bytes:
        buffer = io.BytesIO()
        with drawing():
            self.figure.savefig(buffer, format=form, metadata=metadata, dpi=150)
            self.figure.set_layout_engine("none")  # everything has its place now, in any form
        return buffer.getvalue()


@contextlib.contextmanager
def drawing(*, plain: bool = False) -> Iterator[None]:
    """How figures are made and rendered: the same picture for the same numbers.

    Args:
        plain: texts are taken as they are, also where they look like formulae: somebody else wrote them.
    """
    import matplotlib as mpl

    looks = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with mpl.rc_context({"svg.hashsalt": "sea_bake", "text.parse_math": not plain, **looks}):
        yield


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A new figure, its size in inches, and its axes: see matplotlib's ``subplots``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def plot_edit(edit: Edit, path: str | Path, *, overwrite: bool = False) -> Path:
    """Draw cumulative explained variance per layer (of an affine map, the sizes of its parts), and signatures.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file exists, or has an ending that cannot be drawn.
    """
    need("plot", "Drawing", "matplotlib.figure")
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise OutputError(f"{path}: give the plot an ending out of {', '.join(_FORMATS)}")
    figure, axes = panels(12, 3.6, 1, 3) if edit.projectors else panels(8, 3.6, 1, 2)
    *left, right = axes
    if edit.projectors:
        for part, panel, colours in (("positive", left[0], "Blues"), ("negative", left[1], "Reds")):
            draw_explained(panel, edit, part, colours)
            panel.text(
                0.98, 0.04, "darker = later layer", transform=panel.transAxes, ha="right", fontsize=8, color="0.4"
            )
        left[0].set_ylabel(f"share of squared {named_spectrum(edit)}")
    else:
        draw_sizes(left[0], edit)
    if edit.recipe.get("signatures"):
        draw_signatures(right, edit)
    else:
        right.set_axis_off()
    with staged_file(path, overwrite=overwrite) as stage:
        figure.savefig(stage, format=path.suffix[1:].lower(), dpi=150)
    return path


def draw_explained(axes: Any, edit: Edit, part: str, colours: str) -> None:
    """Cumulative explained variance of Ω+ or Ω-, a line per layer; a dot where K cut."""
    for layer, colour in shades(edit.layers, colours).items():
        share, k = explained(spectrum(edit, layer, part)).tolist(), edit.ranks[layer][part == "negative"]
        axes.plot(range(1, len(share) + 1), share, color=colour, linewidth=1)
        if 0 < k <= len(share):
            axes.plot(k, share[k - 1], "o", color=colour, markersize=3)
    sign = "+" if part == "positive" else "-"
    axes.set(xscale="log", xlabel="directions", title=f"explained variance of Ω{sign} (dot: k{sign})")
    axes.set_ylim(None, 1.005)


def draw_sizes(axes: Any, edit: Edit) -> None:
    """Of an affine map: the norm of each part, a line per part; of a scale, of its distance from 1."""
    for name in dict.fromkeys(name for one in edit.maps.values() for name in one.parts):
        sizes = {layer: one.parts[name] for layer, one in sorted(edit.maps.items()) if name in one.parts}
        norms = [float((part - 1 if name == "scale" else part).norm()) for part in sizes.values()]
        axes.plot(list(sizes), norms, "o-", markersize=3, linewidth=1, label=name if name != "scale" else "scale - 1")
    axes.set(xlabel="decoder layer", ylabel="norm", title="parts of the map")
    axes.set_ylim(0, None)
    axes.legend()


def draw_signatures(axes: Any, edit: Edit) -> None:
    """A bar per layer that was measured."""
    signatures = {int(layer): value for layer, value in edit.recipe["signatures"].items()}
    colours = [EDITED if layer in edit.maps else UNEDITED for layer in signatures]
    axes.bar(list(signatures), list(signatures.values()), color=colours)
    axes.set(xlabel="decoder layer", title="signature per layer (blue: edited)")


def spectrum(edit: Edit, layer: int, part: str) -> Tensor:
    """Singular values of a layer's Ω+ ("positive") or Ω- ("negative")."""
    projector = edit.projectors[layer]
    return projector.positive_spectrum if part == "positive" else projector.negative_spectrum


def named_spectrum(edit: Edit) -> str:
    """What the numbers of its spectra are."""
    return "log ratios |log λ|" if edit.method == "contrastive" else "singular values"


def explained(values: Tensor) -> Tensor:
    """Share of the squared singular values in the first 1, 2, ... of them."""
    return values.square().cumsum(0) / values.square().sum()


def shades(layers: tuple[int, ...], colours: str) -> dict[int, Any]:
    """A colour for each layer out of one of matplotlib's maps, later ones further along it."""
    import matplotlib as mpl

    last = max(1, len(layers) - 1)
    return {layer: mpl.colormaps[colours](0.15 + 0.8 * i / last) for i, layer in enumerate(layers)}
