"""A GGUF file becomes a Hugging Face checkpoint through transformers' dequantising loader (which loads the model)."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sea_bake.errors import CheckpointError
from sea_bake.io.files import write_json
from sea_bake.model.gguf_header import header_read_once
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.model.source import ModelSource


def materialise(source: ModelSource, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the dequantised model, its configuration and tokenizer into an existing folder.

    float32 holds every dequantised value exactly; a narrower dtype rounds them.

    Raises:
        CheckpointError: transformers cannot read this GGUF.
        MissingExtraError: the package ``gguf`` is not installed.
    """
    from transformers import AutoModelForCausalLM

    with header_read_once(source):
        model = load_model(source, dtype=dtype, device="cpu")
        tokenizer = load_tokenizer(source)
    # transformers marks the model as quantised and then refuses to save it; its weights are plain floats by now.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(model.state_dict(), assign=True, strict=False)
    plain.tie_weights()
    if any(p.is_meta for p in plain.parameters()):
        raise CheckpointError(f"{source.name}: transformers did not find every tensor of this GGUF")
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _spell_for_older_readers(folder / "config.json")


def _spell_for_older_readers(path: Path) -> None:
    """transformers 5 writes ``rope_parameters`` and ``dtype``; readers that know only the older keys guess wrongly."""
    config = json.loads(path.read_text("utf-8"))
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    write_json(path, config)
