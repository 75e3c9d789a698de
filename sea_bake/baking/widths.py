"""How wide the activation of a site is, as far as a checkpoint's headers tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sea_bake.errors import WrongModelError
from sea_bake.model.anatomy import Site

if TYPE_CHECKING:
    from sea_bake.baking.open_base import OpenBase


def check_width(base: OpenBase, site: Site, layer: int, width: int, what: str) -> None:
    """Raise WrongModelError unless a site's activation is so wide; of quantised heads no file says how wide."""
    writer, expected = base.place(site, layer).writer, base.numbers.hidden_size  # also: the layer has this site
    weight = base.checkpoint.tensor(f"{base.stem}.{layer}.{writer}.weight") if site.is_input else None
    if weight is not None:
        expected = width if base.is_quantised else weight.shape[0 if writer in base.row.input_first else -1]
    if width != expected:
        raise WrongModelError(
            f"this {what} is {width} wide in layer {layer}, and the {site.value} activation of '{base.source.name}' "
            f"{expected}: it belongs to another model"
        )
