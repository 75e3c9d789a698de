"""What can be exported, told before any weight is read; and how it becomes a living model in float32 or float16."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sea_bake import modeling_sea
from sea_bake.artefact import Artefact, BakeRecord, is_artefact
from sea_bake.artefact.code import load_inserted
from sea_bake.artefact.record import layers_of
from sea_bake.baking.classes import without_code
from sea_bake.baking.quantised import quantisation
from sea_bake.errors import CheckpointError, FamilyError
from sea_bake.model.anatomy import SEA_PREFIX
from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.checkpoint.leftovers import remark
from sea_bake.model.loading import load_model, parse_dtype
from sea_bake.model.source import ModelSource

_CACHED = {"full_attention", "sliding_attention"}  # layers whose cache is a pair of growing tensors, and nothing else


@dataclass(frozen=True)
class Exportable:
    """A checkpoint that is about to be exported.

    Attributes:
        folder: where it lies.
        base, revision: the base model as it is named in what we write.
        how: "insert", "fold", or "unedited".
        config: the *base's* config.json: its own class and model_type, no code, no guard.
        weights: number of parameters.
        record: the artefact's own record of its bake; None of an unedited model.
        edits: files of the edits.
        layers: decoder layers that any of them edits.
    """

    folder: Path
    base: str
    revision: str | None
    how: str
    config: dict[str, Any]
    weights: int
    record: BakeRecord | None = None
    edits: list[Path] = field(default_factory=list)
    layers: tuple[int, ...] = ()

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or ["the model"])[0])

    def load(self, dtype: str) -> Any:
        """The living model on the CPU, in ``dtype``; SEA tensors stay float32. The artefact's own code is never run.

        Raises:
            CheckpointError: it is incomplete or damaged.
        """
        if self.how != "insert":
            return load_model(self.folder, dtype=dtype, device="cpu")
        return load_inserted(self.folder, dtype=parse_dtype(dtype))


def exportable(artefact: str | Path | Artefact, *, unedited: bool = False) -> Exportable:
    """Open an artefact of ours, or with ``unedited`` a plain checkpoint.

    Raises:
        CheckpointError: it is no artefact (or, unedited, it is one), an adapter, an export, quantised, or incomplete.
        EditError: the artefact's copy of an edit is damaged.
        FamilyError: a family whose cache or whose parts one decoder graph cannot hold.
    """
    if unedited:
        return _unedited(artefact.folder if isinstance(artefact, Artefact) else artefact)
    if not isinstance(artefact, Artefact) and os.path.isdir(artefact) and not is_artefact(artefact):
        raise CheckpointError(
            f"{artefact} is not an artefact of sea_bake: bake an edit first (sea-bake bake), or export the base itself "
            "with --unedited"
        )
    opened = Artefact.open(artefact)
    folder, record = opened.folder, opened.record
    if not isinstance(record, BakeRecord):
        raise CheckpointError(f"{opened.file or folder} is an export already: give the artefact that it was made from")
    if record.how == "adapter":
        raise CheckpointError(
            f"{folder} is an adapter, which lives on its base: an ONNX file holds whole weights. "
            "Bake the edit with --how fold (or insert) and export that."
        )
    checkpoint = Checkpoint.open(folder)
    config = _plain(checkpoint.config) if record.how == "insert" else checkpoint.config
    made = Exportable(
        folder,
        record.base,
        record.revision,
        record.how,
        config,
        _weights(checkpoint),
        record,
        opened.edit_files,
        layers_of(opened.edits),
    )
    _check(made, checkpoint)
    return made


def _unedited(model: str | Path) -> Exportable:
    source = ModelSource.parse(model)
    if source.is_gguf or source.is_adapter:
        raise CheckpointError(f"{source.path} is not a checkpoint: export needs a folder with config.json and weights")
    source = source.on_disk()
    folder = source.folder()
    if is_artefact(folder):
        raise CheckpointError(f"{folder} is not unedited: sea_bake wrote it. Drop --unedited.")
    checkpoint = without_code(Checkpoint.open(folder))
    found = Exportable(folder, source.name, source.revision, "unedited", checkpoint.config, _weights(checkpoint))
    _check(found, checkpoint)
    return found


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The base's configuration out of an inserted artefact's: true values for the guard's, and nothing of ours.

    Raises:
        CheckpointError: it is not as ``insert`` writes it.
    """
    try:
        guard = config["sea"]["guard"]
        model_type, (architecture,) = config["model_type"], config["architectures"]
        if not (model_type.startswith(SEA_PREFIX) and architecture.startswith("SEA")):
            raise ValueError(model_type)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the artefact's config.json is not as sea_bake writes it ({error!r})") from error
    ours = {"model_type": model_type.removeprefix(SEA_PREFIX), "architectures": [architecture.removeprefix("SEA")]}
    kept = {key: value for key, value in config.items() if key not in ("sea", "auto_map")}
    return {**modeling_sea.put(kept, guard), **ours}


def _weights(checkpoint: Checkpoint) -> int:
    names = (checkpoint.tensor(name) for name in checkpoint.weight_map)
    return sum(math.prod(tensor.shape) for tensor in names if tensor is not None)


def _check(model: Exportable, checkpoint: Checkpoint) -> None:
    """Refuse by name what cannot become one decoder graph with a cache of growing keys and values."""
    import transformers

    name, config = model.architecture, model.config
    if config.get("auto_map"):
        raise CheckpointError(f"{model.folder} has custom code of its own (auto_map), which is never run here")
    if left := checkpoint.left_over:
        raise CheckpointError(f"{model.folder}: {remark(left)}. Take quantization_config out of its config.json first")
    stems = sorted({tensor.partition(".")[0] for tensor in checkpoint.weight_map})
    method = next((found for stem in stems if (found := quantisation(checkpoint, stem))), None)
    if method:
        raise CheckpointError(
            f"{model.folder} is quantised ({method}): export from unquantised weights, and quantise the graph with "
            "--quantize"
        )
    cls = getattr(transformers, name, None)
    if cls is None or not hasattr(cls, "config_class"):
        raise CheckpointError(f"transformers has no class {name}, which {model.folder / 'config.json'} names")
    try:
        parsed = cls.config_class.from_dict(config)
    except Exception as error:
        raise CheckpointError(f"{model.folder / 'config.json'} cannot be understood: {error}") from error
    text = parsed.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ()) - _CACHED
    why = None
    if parsed.is_encoder_decoder:
        why = "it has an encoder, and one decoder graph is what the runtimes read"
    elif text is not parsed:
        why = "its decoder sits inside a model that reads images or sound too: only text decoders are exported"
    elif kinds or getattr(cls, "_is_stateful", False):
        why = f"its cache is more than keys and values ({', '.join(sorted(map(str, kinds))) or 'it keeps a state'})"
    if why:
        raise FamilyError(f"{name} cannot be exported to ONNX: {why}")
