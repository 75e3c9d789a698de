"""Edits that others fitted, as edits: one file per format, and one visible table of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sea_bake.baking.open_base import OpenBase, opened
from sea_bake.baking.widths import check_width
from sea_bake.edit import Edit
from sea_bake.errors import EditError, SeaBakeError, SettingError, WrongModelError, first_line_of
from sea_bake.exporting.edits import (
    act,
    caa,
    control_vector,
    dense,
    glp,
    iti,
    leace,
    lora,
    persona,
    steering_vectors,
    svec,
)
from sea_bake.exporting.edits.found import Asked, Format, Found
from sea_bake.exporting.edits.reading import Given
from sea_bake.io.files import file_digest
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.layers import select_layers
from sea_bake.methods.sea import Projector
from sea_bake.model.anatomy import Site
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.lora import WEIGHTS
from sea_bake.model.sites import ranges
from sea_bake.model.source import ModelSource

FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        control_vector.FORMAT,
        glp.FORMAT,
        caa.FORMAT,
        persona.FORMAT,
        svec.FORMAT,
        steering_vectors.FORMAT,
        iti.FORMAT,
        leace.FORMAT,
        lora.FORMAT,
        act.FORMAT,
        act.GAUSSIAN,
        act.MEANS,
        dense.FORMAT,
    )
}

__all__ = ["FORMATS", "import_edit"]


def import_edit(
    files: str | Path | Sequence[str | Path],
    base: str | Path | ModelSource,
    *,
    format: str = "auto",
    layers: str | None = None,
    site: Site | str | None = None,
    alpha: float | None = None,
    merge: str | None = None,
    shift: int = 0,
    revision: str | None = None,
) -> Edit:
    """An edit out of the files that another tool wrote. The base is not loaded: its files' headers tell what it is.

    Args:
        files: file or files of one edit, or their folder: control vector or GLP (.gguf), CAA, persona vectors,
            steering-vectors, LEACE (.pt), steering vector (.svec), ITI (.npy), AcT (.statedict), a PEFT LoRA's folder,
            or uu_positive.pt and uu_negative.pt of SEA's authors. No pickle is loaded.
        base: the model that the edit belongs to: folder, .gguf file or Hub id; or a PEFT LoRA that names its base.
        format: "auto" (seen from the files), "control-vector", "glp", "caa", "persona", "svec", "steering-vectors",
            "iti", "leace", "lora", "act", "act-gaussian", "act-mean" or "dense".
        layers: decoder layers of the base to edit, as of fit, counted from 0 whatever the files count. Default: all
            that the files have; persona vectors and .svec need it; of dense projections "last:21".
        site: "block", "mlp", "attn" or "heads", where the files do not say. Default: where their own tool acts.
        alpha: strength. Default: that of the files, or of their tool; else 1.
        merge: of dense projections: "l2" (the default, as in the released code), "sum" or "average".
        shift: added to the files' layers, where their tool counts otherwise than the format's own.
        revision: see :func:`sea_bake.model.loading.load_model`.

    Raises:
        EditError: a file that is damaged, hostile, of no known format, or that is no edit of this base.
        WrongModelError: files of a model of another width, depth or family.
        SettingError: a setting that the files contradict, or one that they need.
        NotExactError: a LoRA that is no edit of an activation.
        CheckpointError: a base that cannot be opened.
    """
    if format != "auto" and format not in FORMATS:
        raise SettingError(f"unknown format {format!r}: use auto, {', '.join(FORMATS)}")
    if isinstance(shift, bool) or not isinstance(shift, int) or abs(shift) > 1000:
        raise SettingError(f"shift = {shift!r} is no number of layers")
    where = None if site is None else Site.parse(site)
    given = Given.of(files)
    row = _seen(given) if format == "auto" else FORMATS[format]
    if merge is not None and row is not dense.FORMAT:
        raise SettingError(f"a {row.title} is added as it stands: merge is for dense projections alone")
    source = ModelSource.parse(base, revision)
    with (
        tempfile.TemporaryDirectory(prefix="sea-bake-") as scratch,
        opened(source, Path(scratch) / "base" if source.is_gguf else None) as it,
    ):
        chosen = None if layers is None else select_layers(layers, it.text.num_hidden_layers)
        try:
            found = row.read(given, it, Asked(chosen, where, merge, shift != 0))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, SeaBakeError):
                raise
            named = ", ".join(path.name for path in given.paths[:3])
            raise EditError(
                f"{named} cannot be read as a {row.title} ({type(error).__name__}: {first_line_of(error)}): it is "
                "damaged, or of another format (then drop --format)"
            ) from error
        maps = _placed(found, row, it, chosen, shift)
        fingerprint = BaseModel.of_checkpoint(it.source, it.numbers, it.row, it.checkpoint, it.stem)
    recipe = {} if row.method is None else {"method": row.method}
    names = ", ".join(_plain(path.name) for path in given.paths[:4]) + ", ..." * (len(given.paths) > 4)
    facts = {"format": row.name, "files": _digests(given), "shift": shift, **found.facts}
    described = {**recipe, "imported": f"{row.title}: {names}", "import": facts}
    edit = Edit(maps, found.site, fingerprint, merge=found.merge, recipe=described)
    if edit.changes_nothing:
        raise EditError(
            f"{names}: this {row.title} changes nothing in the layers {ranges(edit.layers)} (zeros alone, or no "
            "direction): export it from its tool again, or choose other layers (--layers)"
        )
    return edit.with_settings(alpha=found.alpha if alpha is None else alpha)


def _seen(given: Given) -> Format:
    found = [row for row in FORMATS.values() if row.sees(given)]
    if len(found) == 1:
        return found[0]
    named = ", ".join(path.name for path in given.paths[:3])
    if not found:
        raise EditError(
            f"{named}: no known format looks like this; known are {', '.join(FORMATS)} "
            "(sea_bake/exporting/edits/README.md says what each holds). Files of one edit belong together, and of no "
            "other"
        )
    raise EditError(f"{named} may be {' or '.join(row.name for row in found)}: say which (--format {found[0].name})")


def _placed(
    found: Found, row: Format, base: OpenBase, chosen: tuple[int, ...] | None, shift: int
) -> dict[int, Projector | AffineMap]:
    """The maps of the layers that are edited, float32; every one fits the base."""
    depth, title = base.text.num_hidden_layers, row.title
    maps = {layer + shift: one for layer, one in found.maps.items()}
    outside = sorted(layer for layer in maps if not 0 <= layer < depth)
    if outside:
        raise WrongModelError(
            f"this {title} has layer {outside[0]}, and '{base.source.name}' has the layers 0 to {depth - 1}: it "
            "belongs to another model, or counts its layers otherwise (then move them: --shift -1, or --shift 1)"
        )
    if chosen is None and found.choose:
        raise SettingError(
            f"this {title} has one for each of the layers {ranges(sorted(maps))}, and its tool adds one or a few: "
            f"choose them (--layers {sorted(maps)[len(maps) // 2]}; decoder layers are counted from 0)"
        )
    if chosen is not None:
        absent = [layer for layer in chosen if layer not in maps]
        if absent:
            raise SettingError(
                f"this {title} has nothing for layer {absent[0]}: it has {ranges(sorted(maps))} (--layers)"
            )
        maps = {layer: maps[layer] for layer in chosen}
    for layer, one in maps.items():
        check_width(base, found.site, layer, one.dim, title)
    return {layer: one.float() for layer, one in sorted(maps.items())}


def _digests(given: Given) -> Mapping[str, Any]:
    """File name -> SHA-256."""
    files = [path / WEIGHTS if path.is_dir() else path for path in given.paths]
    return {_plain(path.name): file_digest(path) for path in files}


def _plain(name: str) -> str:
    """A file's name as JSON can hold it."""
    return name.encode("utf-8", "replace").decode("utf-8")
