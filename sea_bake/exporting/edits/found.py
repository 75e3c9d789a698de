"""What a reader of foreign files is asked for, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import WrongModelError
from sea_bake.exporting.edits.reading import Given
from sea_bake.exporting.gguf.names import ARCHITECTURES
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.sea import Projector
from sea_bake.model.anatomy import Site


@dataclass(frozen=True)
class Asked:
    """What the user has said.

    Attributes:
        layers: decoder layers, from 0; None where nothing was said.
        site, merge: None where nothing was said.
        shifted: whether the file's layers are to be moved.
    """

    layers: tuple[int, ...] | None = None
    site: Site | None = None
    merge: str | None = None
    shifted: bool = False


@dataclass(frozen=True)
class Found:
    """An edit, as a file tells it.

    Attributes:
        maps: decoder layer of the base, from 0 -> its map at strength 1.
        site: where they act.
        alpha: the file's own strength, or its tool's.
        merge: of projectors.
        choose: its tool uses a few of these layers, and nobody has said which.
        facts: what else is worth keeping, as plain data.
    """

    maps: Mapping[int, Projector | AffineMap]
    site: Site
    alpha: float = 1.0
    merge: str = "sum"
    choose: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
        name: as ``--format`` spells it.
        title: what such a file is, for people.
        method: how its vectors are found, as ``Edit.method`` says it; None for SEA's projectors.
        sees: whether files look like it, by their content, or their names.
        read: the files of one edit, on a base.
    """

    name: str
    title: str
    method: str | None
    sees: Callable[[Given], bool]
    read: Callable[[Given, OpenBase, Asked], Found]


def check_family(hint: object, base: OpenBase, where: str) -> None:
    """Raise WrongModelError where a file names another family than the base's.

    A name that nobody knows is passed over: tools write what they like there. llama.cpp's names count too.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    ours = base.text.model_type
    if not isinstance(hint, str) or hint in (ours, base.config.model_type, ARCHITECTURES.get(ours)):
        return
    if hint in CONFIG_MAPPING_NAMES or hint in ARCHITECTURES.values():
        raise WrongModelError(
            f"{where} was made for a model of the family {hint!r}, and '{base.source.name}' is a {ours}: give the "
            "model that it was made for (--base)"
        )
