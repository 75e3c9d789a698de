"""What is about to be written, loaded first without memory: by transformers' own loader, from names and shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import sea_bake.modeling_sea as modeling_sea
from sea_bake.baking.open_base import OpenBase
from sea_bake.errors import CheckpointError, reason_of
from sea_bake.io.files import read_json
from sea_bake.methods.storing import Array
from sea_bake.model.checkpoint.extended import ExtendedCheckpoint
from sea_bake.model.loading import refuse_mismatched
from sea_bake.model.one_layer import quiet


def check_plain(base: OpenBase) -> None:
    """A fold, or the base under an adapter: the base's own class finds all of its tensors.

    Raises:
        CheckpointError: it does not; the message says which are lost, or what transformers says.
    """
    import transformers

    auto, name = list(base.classes.items())[-1]
    found = getattr(transformers, auto)._model_mapping[type(base.config)]
    cls = next((one for one in found if one.__name__ == name), found[0]) if isinstance(found, tuple) else found
    zeros = base.checkpoint.zeros if isinstance(base.checkpoint, ExtendedCheckpoint) else {}
    _check(base, cls, copy.deepcopy(base.config), zeros)


def check_inserted(base: OpenBase, folder: Path, tensors: Mapping[str, Array]) -> None:
    """An insert: its class, made of its config.json, finds the base's tensors and the edits'.

    Args:
        folder: the artefact, as far as its config.json.
        tensors: those of the edits.

    Raises:
        CheckpointError: it does not; or the Auto classes would refuse it.
    """
    config = read_json(folder / "config.json")
    try:
        names = {auto: reference.partition(".")[2] for auto, reference in config["auto_map"].items()}
        config_class = getattr(modeling_sea, names.pop("AutoConfig"))
        classes = [getattr(modeling_sea, name) for name in names.values()]
        made = config_class.from_pretrained(folder)
    except Exception as error:
        raise _unloadable(base, error) from error
    for cls in classes:
        if cls.config_class.__name__ != config_class.__name__:  # as the Auto classes ask, when they are told of it
            raise CheckpointError(
                f"an insert of {base.source.name} could not be loaded: {cls.__name__} is configured by a "
                f"{cls.config_class.__name__}, and the artefact by a {config_class.__name__}"
            )
    _check(base, classes[-1], made, {name: torch.from_numpy(array) for name, array in tensors.items()})


def _check(base: OpenBase, cls: Any, config: Any, tensors: Mapping[str, Any]) -> None:
    if base.is_quantised:
        return  # its quantiser may not be installed here
    vars(config).pop("quantization_config", None)  # left over
    found: dict[str, Any] = {name: base.checkpoint.tensor(name) for name in base.checkpoint.weight_map}
    state = {n: torch.empty(t.shape, dtype=t.dtype, device="meta") for n, t in {**found, **tensors}.items()}
    try:
        with quiet():
            _, info = cls.from_pretrained(
                None,
                config=config,
                state_dict=state,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:
        raise _unloadable(base, error) from error
    lost = [*sorted(info["missing_keys"]), *(name for name in sorted(info["unexpected_keys"]) if name in tensors)]
    if lost:
        raise CheckpointError(
            f"{base.checkpoint.folder} lacks {lost[0]} (and {len(lost) - 1} more), which {cls.__name__} needs and "
            "transformers would fill with random numbers: give the whole model, as its save_pretrained writes it"
        )
    refuse_mismatched(base.checkpoint.folder, info["mismatched_keys"])


def _unloadable(base: OpenBase, error: Exception) -> CheckpointError:
    reason = reason_of(error)
    return CheckpointError(f"transformers cannot load {base.source.name} as it is on disk: {reason}")
