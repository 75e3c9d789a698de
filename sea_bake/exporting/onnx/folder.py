"""The files around a graph: what onnxruntime-genai, optimum and transformers.js each look for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sea_bake.artefact.names import GRAPH_FILES as FILES
from sea_bake.artefact.names import GRAPHS, VERIFICATION
from sea_bake.exporting.onnx.exportable import Exportable
from sea_bake.exporting.onnx.tracing import Traced
from sea_bake.io.files import read_json, write_json
from sea_bake.model.checkpoint import carry
from sea_bake.model.checkpoint.writer import public
from sea_bake.model.loading import load_tokenizer

_TOKENIZER = "tokenizer_config.json"
_DEFAULT_CONTEXT = 2048  # of a model that names none, such as one with relative positions


def write_surroundings(stage: Path, source: Exportable, traced: Traced, model_config: Any, *, dtype: str) -> None:
    """Tokenizer, licence, generation settings, ``genai_config.json``; config.json is ``finish_config``'s."""
    written = ["config.json", VERIFICATION]
    carry(source.folder, stage, written=written, shards=[])
    if not (stage / "tokenizer.json").is_file():  # the one form that these runtimes read
        load_tokenizer(source.folder).save_pretrained(stage)
    _embed_template(stage)
    write_json(stage / "genai_config.json", genai_config(stage, source, traced, model_config, dtype=dtype))


def finish_config(stage: Path, source: Exportable) -> None:
    """The base's config.json, so that it is known for what it is, and what transformers.js has to be told.

    transformers.js fetches external data only where it is announced, and fills an empty cache as it is told.
    """
    graphs = sorted(path.name for path in (stage / GRAPHS).glob("*.onnx"))
    chunks = {name: len([*(stage / GRAPHS).glob(f"{name}_data*")]) for name in graphs}
    ours: dict[str, Any] = {"use_external_data_format": {name: count for name, count in chunks.items() if count}}
    if FILES["fp16"] in graphs:
        ours["kv_cache_dtype"] = {"fp16": "float16"}
    write_json(stage / "config.json", {**public(source.config), "transformers.js_config": ours})


def genai_config(stage: Path, source: Exportable, traced: Traced, config: Any, *, dtype: str) -> dict[str, Any]:
    """What onnxruntime-genai wants to know of a decoder.

    Its type is always "decoder": the names of families that it knows switch on special cases of its own graphs, and
    those that it does not know it refuses.
    """
    path = stage / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    tokens = source.config | {name: value for name, value in generation.items() if value is not None}
    end = tokens.get("eos_token_id")
    first_end = end[0] if isinstance(end, list) and end else end
    pad = tokens.get("pad_token_id")
    context = int(getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT)
    own = [name for name in traced.inputs if not name.startswith("past_key_values.") and name != "sea_strength"]
    ids = {
        "bos_token_id": tokens.get("bos_token_id"),
        "eos_token_id": end,
        "pad_token_id": first_end if pad is None else pad,
    }
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.vocab_size,
            "context_length": context,
            **{name: value for name, value in ids.items() if value is not None},
            "decoder": {
                "filename": f"{GRAPHS}/{FILES[dtype]}",
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": traced.heads,
                "head_size": traced.head_size,
                "num_hidden_layers": traced.layers,
                "inputs": {
                    **{name: name for name in own},
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "num_beams": 1,
            "num_return_sequences": 1,
            "min_length": 0,
            "max_length": context,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "length_penalty": 1.0,
            "early_stopping": True,
            # The graph's cache grows by concatenation: one buffer, there from the start, cannot take it.
            "past_present_share_buffer": False,
        },
    }


def _embed_template(stage: Path) -> None:
    """transformers.js ignores chat_template.jinja and reads the template from the tokenizer's configuration."""
    template, path = stage / "chat_template.jinja", stage / _TOKENIZER
    if not template.is_file():
        return
    config = read_json(path) if path.is_file() else {}
    write_json(path, {**config, "chat_template": template.read_text("utf-8")})


def copy_edits(stage: Path, source: Exportable) -> list[str]:
    """The artefact's edits, for ``verify``; their names in the export."""
    (stage / "sea").mkdir(exist_ok=True)
    names = [f"sea/{path.name}" for path in source.edits]
    for path, name in zip(source.edits, names):
        shutil.copyfile(path, stage / name)
    return names
