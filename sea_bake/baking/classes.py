"""The classes that a base is loaded by: transformers' own, never a stranger's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sea_bake.errors import CheckpointError, FamilyError
from sea_bake.model.anatomy import SEA_PREFIX, family
from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.loading import architecture, language_models


def class_names(config: dict[str, Any]) -> dict[str, str]:
    """Auto class -> the base's own class name; the last are those that answer, all of one name.

    Raises:
        CheckpointError: it has custom code of its own, or is no language model.
        FamilyError: edited already.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json names no model_type")
    if model_type.startswith(SEA_PREFIX):
        family(model_type)
    if config.get("auto_map"):
        raise CheckpointError(
            "the base has custom code of its own (auto_map in config.json), and transformers has no "
            f"{architecture(config) or 'class'} of its own for a {model_type}: two kinds of custom code cannot be "
            "joined. Use a base that transformers supports natively."
        )
    heads = language_models(model_type)
    if not heads or model_type not in CONFIG_MAPPING_NAMES:
        raise FamilyError(f"unknown model family '{model_type}': transformers has no language model of that name")
    named = architecture(config) or next(iter(heads.values()))
    if named not in heads.values():
        raise CheckpointError(
            f"the base is a {named}, not the language model {next(iter(heads.values()))}: only that can be edited"
        )
    return {
        "AutoConfig": CONFIG_MAPPING_NAMES[model_type],
        **({"AutoModel": MODEL_MAPPING_NAMES[model_type]} if model_type in MODEL_MAPPING_NAMES else {}),
        **{auto: name for auto, name in heads.items() if name == named},
    }


def without_code(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without the custom code that its config.json names (auto_map), where transformers has that very
    class: it loads its own unless told otherwise (``trust_remote_code``), as ``fit`` and ``verify`` do.
    """
    config = checkpoint.config
    if not config.get("auto_map") or architecture(config) not in language_models(str(config["model_type"])).values():
        return checkpoint
    return replace(checkpoint, config={key: value for key, value in config.items() if key != "auto_map"})
