"""A base as every way of baking sees it: known to be whole, of a known family, and the one the edits belong to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_bake.anatomy import SEA_PREFIX, Family, Site, family
from sea_bake.checkpoint import Checkpoint, materialise
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, FamilyError, OutputError
from sea_bake.fingerprint import BaseModel
from sea_bake.source import ModelSource
from sea_bake.staging import need_space, scratch_folder


@dataclass(frozen=True)
class OpenBase:
    """A base checkpoint on disk.

    Attributes:
        source: as the user named it.
        checkpoint: its files; for a GGUF or an adapter, those of the plain checkpoint made from it.
        config: transformers' configuration.
        row: family of its text decoder.
        stem: prefix of the decoder layers' tensors on disk, such as "model.layers".
        classes: Auto class -> the base's own class name.
    """

    source: ModelSource
    checkpoint: Checkpoint
    config: Any
    row: Family
    stem: str
    classes: dict[str, str]

    @property
    def text(self) -> Any:
        """The decoder's configuration, also of a model that wraps it."""
        return self.config.get_text_config(decoder=True)

    @property
    def architecture(self) -> str:
        return list(self.classes.values())[-1]

    @property
    def is_quantised(self) -> bool:
        return "quantization_config" in self.checkpoint.config

    def layer_parts(self, layer: int) -> set[str]:
        """Names of a decoder layer's tensors, inside the layer."""
        prefix = f"{self.stem}.{layer}."
        return {name.removeprefix(prefix) for name in self.checkpoint.weight_map if name.startswith(prefix)}


@contextlib.contextmanager
def opened(source: ModelSource, target: Path | None) -> Iterator[OpenBase]:
    """Open a base; what is not a plain checkpoint is made into one beside ``target`` first.

    Raises:
        CheckpointError: incomplete, damaged, custom code of its own, or no language model.
        FamilyError: an unknown family, or edited already.
        OutputError: ``target`` lies inside the base's own folder; no space for a temporary checkpoint.
    """
    source = source.on_disk()
    if source.is_gguf:
        if target is None:
            raise CheckpointError(f"{source.path} is a GGUF: its layout is known once it is a checkpoint")
        need_space(target.parent, 8 * source.folder().stat().st_size)
        with scratch_folder(target) as plain:
            materialise(source, plain)
            yield open_folder(plain, source)
        return
    folder = source.folder()
    if target is not None and folder.resolve() in target.resolve().parents:
        raise OutputError(f"{target} lies inside the base's own folder {folder}: choose an output outside of it")
    yield open_folder(folder, source)


def open_folder(folder: Path, source: ModelSource) -> OpenBase:
    """A plain checkpoint folder, with every check that needs no edit. Raises as :func:`opened`."""
    checkpoint = Checkpoint.open(folder)
    classes = class_names(checkpoint.config)
    config = _config(checkpoint)
    text = config.get_text_config(decoder=True)
    row = family(text.model_type)
    stem = layers_stem(checkpoint, row)
    _check_layers(checkpoint, row, stem, text.num_hidden_layers)
    return OpenBase(source, checkpoint, config, row, stem, classes)


def check_edits(base: OpenBase, edits: Sequence[Edit]) -> None:
    """Raise WrongModelError unless every edit was fitted on this base."""
    found = BaseModel.of_checkpoint(base.source, base.config, base.checkpoint.tensor, base.stem)
    for edit in edits:
        edit.base.check(found, edit.layers, what=f"'{base.source.name}'")


def class_names(config: dict[str, Any]) -> dict[str, str]:
    """Auto class -> the base's own class name; the last is the one that answers.

    Raises:
        CheckpointError: it has custom code of its own, or is no language model.
        FamilyError: edited already.
    """
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json names no model_type")
    if model_type.startswith(SEA_PREFIX):
        family(model_type)
    if config.get("auto_map"):
        raise CheckpointError(
            "the base has custom code of its own (auto_map in config.json): two kinds of custom code cannot be joined. "
            "Use a base that transformers supports natively."
        )
    heads = {
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForImageTextToText": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    named = (config.get("architectures") or [None])[0]
    fitting = {auto: names[model_type] for auto, names in heads.items() if model_type in names}
    if not fitting or model_type not in CONFIG_MAPPING_NAMES:
        raise FamilyError(f"unknown model family '{model_type}': transformers has no language model of that name")
    chosen = next((auto for auto, name in fitting.items() if named in (None, name)), None)
    if chosen is None:
        raise CheckpointError(
            f"the base is a {named}, not the causal LM {next(iter(fitting.values()))}: only that can be edited"
        )
    return {
        "AutoConfig": CONFIG_MAPPING_NAMES[model_type],
        "AutoModel": modeling_auto.MODEL_MAPPING_NAMES[model_type],
        chosen: fitting[chosen],
    }


def layers_stem(base: Checkpoint, row: Family) -> str:
    """Prefix of the decoder layers' tensors on disk: "model.layers"; "h" where the backbone was saved alone;
    "language_model.model.layers" inside a multimodal checkpoint.

    Raises:
        CheckpointError: no such tensors.
    """
    for stem in (f"{row.stem}.{row.layers}", row.layers):
        if any(name.startswith(f"{stem}.0.") for name in base.weight_map):
            return stem
    end = f".{row.layers}.0.{row.writer(Site.ATTN)}.weight"
    wrapped = sorted(name for name in base.weight_map if name.endswith(end) and "language_model" in name)
    if len(wrapped) == 1:
        return wrapped[0].removesuffix(f".0.{row.writer(Site.ATTN)}.weight")
    raise CheckpointError(
        f"{base.folder} has no tensors named '{row.stem}.{row.layers}.0....', as {row.model_type} should"
    )


def _config(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} cannot be understood: {error}") from error


def _check_layers(base: Checkpoint, row: Family, stem: str, count: int) -> None:
    """Every layer is there, and none lacks a tensor that all others of its kind (with experts, or without) have."""
    parts: dict[int, set[str]] = {layer: set() for layer in range(count)}
    for name in base.weight_map:
        number, _, part = name.removeprefix(f"{stem}.").partition(".")
        if name.startswith(f"{stem}.") and number.isdigit() and int(number) in parts:
            parts[int(number)].add(part)
    kinds = {layer: any(".experts." in part for part in own) for layer, own in parts.items()}
    for layer, own in parts.items():
        others = [p for i, p in parts.items() if i != layer and kinds[i] == kinds[layer]]
        absent = set.intersection(*others) - own if len(others) > 1 else set()
        if absent or not own:
            name = f"{stem}.{layer}.{min(absent, default='')}"
            raise CheckpointError(
                f"{base.folder} lacks the tensor {name}: the checkpoint is incomplete, or shares this tensor between "
                "layers, where an edit of one would change the others"
            )
