"""A base as every way of baking sees it: known to be whole, of a known family, and the one the edits belong to."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_bake.artefact.record import BakeRecord
from sea_bake.baking.classes import class_names, without_code
from sea_bake.baking.layers import check_layers, parts_of
from sea_bake.baking.quantised import quantisation
from sea_bake.baking.widths import check_width
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, SettingError
from sea_bake.io.apart import check_apart
from sea_bake.io.files import read_json
from sea_bake.io.staging import need_space, scratch_folder
from sea_bake.model.anatomy import Family, Place, Site, family
from sea_bake.model.checkpoint import Checkpoint, MergedCheckpoint, check_references, merge, merged
from sea_bake.model.checkpoint.leftovers import remark, without_claim
from sea_bake.model.checkpoint.writer import linkable
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.plain import Plain, plain
from sea_bake.model.sites import decoder_config, lacking
from sea_bake.model.source import ModelSource


@dataclass(frozen=True)
class OpenBase:
    """A base checkpoint on disk.

    Attributes:
        source: as the user named it.
        checkpoint: its files; for a GGUF or an adapter, those of the plain checkpoint made from it.
        configured: gives transformers' configuration.
        row: family of its text decoder.
        stem: prefix of the decoder layers' tensors on disk, such as "model.layers".
        classes: Auto class -> the base's own class name.
        plain: what is known of it without transformers, where that is all that has to be.
    """

    source: ModelSource
    checkpoint: Checkpoint
    configured: Callable[[], Any]
    row: Family
    stem: str
    classes: dict[str, str]
    plain: Plain | None = None

    @functools.cached_property
    def config(self) -> Any:
        """transformers' configuration."""
        return self.configured()

    @functools.cached_property
    def text(self) -> Any:
        """The decoder's configuration, also of a model that wraps it."""
        return decoder_config(self.config)

    @property
    def numbers(self) -> Any:
        """What counts and sizes are read from: the decoder's configuration, or what is known without."""
        return self.plain or self.text

    @property
    def architecture(self) -> str:
        return list(self.classes.values())[-1]

    @property
    def is_quantised(self) -> bool:
        return self.quantisation is not None

    @functools.cached_property
    def quantisation(self) -> str | None:
        """How its layers are quantised, if they are."""
        return quantisation(self.checkpoint, self.stem)

    def remarks(self) -> list[str]:
        """What its config.json names and nothing here needs: the output of a bake names it no more."""
        found = [remark(left)] if (left := self.checkpoint.left_over) else []
        if "auto_map" not in self.checkpoint.config and read_json(self.checkpoint.folder / "config.json").get(
            "auto_map"
        ):
            found.append(
                "config.json names custom code (auto_map) that is not run, and not needed: transformers has a "
                f"{self.architecture} of its own"
            )
        return found

    @functools.cached_property
    def kept(self) -> dict[Any, Any]:
        """What was made of it once: by (site, layer) its writers; by key the base with it, and its biases."""
        return {}

    def record(self, edits: Sequence[Edit], output: Path, **facts: Any) -> BakeRecord:
        """The record of a bake on this base; ``facts`` are further attributes, or others in their place."""
        known = {"base": self.source.name, "revision": self.source.revision, "architecture": self.architecture}
        return BakeRecord.of(edits, output, **(known | facts))

    def layer_parts(self, layer: int) -> set[str]:
        """Names of a decoder layer's tensors, inside the layer."""
        return self._parts.get(layer, set())

    @functools.cached_property
    def _parts(self) -> dict[int, set[str]]:
        return parts_of(self.checkpoint, self.stem)

    def place(self, site: Site, layer: int) -> Place:
        """Where a site lies in a layer; where the layer has none of its writers, as in the first kind of layers.

        Raises:
            SettingError: the layer has no such site, and others have.
        """
        found = self.row.place(site, self.layer_parts(layer))
        if found is None:
            others = self.layers_with(site)
            if others:
                raise SettingError(lacking(self.row, site, [layer], others))
            return self.row.places(site)[0]
        return found

    def layers_with(self, site: Site) -> list[int]:
        """The decoder layers that have a site."""
        layers = range(self.numbers.num_hidden_layers)
        return [layer for layer in layers if self.row.place(site, self.layer_parts(layer)) is not None]


@contextlib.contextmanager
def opened(source: ModelSource, target: Path | None) -> Iterator[OpenBase]:
    """Open a base; what is not a plain checkpoint is made into one beside ``target`` first.

    Raises:
        CheckpointError: incomplete, damaged, custom code of its own, or no language model.
        FamilyError: an unknown family, or edited already.
        OutputError: ``target`` lies inside the base, or the base inside it; no space for a temporary checkpoint.
    """
    source = source.on_disk()
    if source.is_gguf:
        if target is None:
            raise CheckpointError(
                f"{source.path} is a GGUF, which plan does not read: sea-bake bake takes it, and says what folds"
            )
        from sea_bake.model.checkpoint.gguf import materialise

        need_space(target.parent, 8 * source.folder().stat().st_size)
        with scratch_folder(target) as plain:
            materialise(source, plain)
            yield open_folder(plain, source)
        return
    checkpoint = _with_adapter(source) if source.is_adapter else Checkpoint.open(source.folder())
    if target is not None:
        check_apart(target, [source.folder(), checkpoint.folder])
    base = open_checkpoint(checkpoint, source)
    if not isinstance(checkpoint, MergedCheckpoint) or target is None:
        yield base
        return
    linked = linkable(checkpoint.folder, target.parent)
    shards = checkpoint.touched if linked else checkpoint.shards
    need_space(target.parent, sum((checkpoint.folder / shard).stat().st_size for shard in shards))
    with scratch_folder(target) as plain:
        merge(checkpoint, plain)
        yield open_folder(plain, source)


def _with_adapter(source: ModelSource) -> MergedCheckpoint:
    """The merged view of a PEFT adapter's base."""
    import transformers

    checkpoint = without_code(Checkpoint.open(source.base().folder()))
    check_references(checkpoint.folder, checkpoint.config)
    model_class = getattr(transformers, list(class_names(checkpoint.config).values())[-1])
    return merged(source, checkpoint, model_class, _config(checkpoint))


def open_folder(folder: Path, source: ModelSource) -> OpenBase:
    """A plain checkpoint folder, with every check that needs no edit. Raises as :func:`opened`."""
    return open_checkpoint(Checkpoint.open(folder), source)


def open_checkpoint(checkpoint: Checkpoint, source: ModelSource) -> OpenBase:
    """The same of a checkpoint that is open already."""
    checkpoint = without_code(checkpoint)
    known = plain(checkpoint)
    if known is not None:
        check_references(checkpoint.folder, checkpoint.config)
        row = family(known.model_type)
        read = functools.partial(_config, checkpoint)
        return OpenBase(source, checkpoint, read, row, layers_stem(checkpoint, row), known.build.classes, known)
    from sea_bake.model.discovery import family_of

    classes = class_names(checkpoint.config)
    check_references(checkpoint.folder, checkpoint.config)
    config = _config(checkpoint)
    text = decoder_config(config)
    row = family_of(text)
    stem = layers_stem(checkpoint, row)
    check_layers(checkpoint, stem, text)
    return OpenBase(source, checkpoint, lambda: config, row, stem, classes)


def check_edits(base: OpenBase, edits: Sequence[Edit]) -> None:
    """Raise WrongModelError unless every edit was fitted on this base."""
    found = BaseModel.of_checkpoint(base.source, base.numbers, base.row, base.checkpoint, base.stem)
    for edit in edits:
        edit.base.check(found, edit.layers, what=f"'{base.source.name}'")
        for layer in edit.layers:
            check_width(base, edit.site, layer, edit.widths[layer], "edit")


def layers_stem(base: Checkpoint, row: Family) -> str:
    """Prefix of the decoder layers' tensors on disk: "model.layers"; "h" where the backbone was saved alone;
    "language_model.model.layers" inside a multimodal checkpoint.

    Raises:
        CheckpointError: no such tensors.
    """
    parts = [part for part in f"{row.stem}.{row.layers}".split(".") if part]
    stems = [".".join(parts[i:]) for i in range(len(parts))]
    for stem in (*stems, *([] if row.stem else [f"model.{row.layers}"])):
        if any(name.startswith(f"{stem}.0.") for name in base.weight_map):
            return stem
    wrapped = re.compile(rf"(.*\b(language_model|text_model|decoder)\b.*\.{re.escape(row.layers)})\.\d+\.")
    inside = {found[1] for name in base.weight_map if (found := wrapped.match(name))}
    if len(inside) == 1:
        return inside.pop()
    raise CheckpointError(
        f"{base.folder} has no tensors named '{row.stem}.{row.layers}.0....', as {row.model_type} should"
    )


def _config(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} cannot be understood: {error}") from error
    if hasattr(config, "auto_map") and "auto_map" not in checkpoint.config:
        del config.auto_map
    return without_claim(config) if checkpoint.left_over else config
