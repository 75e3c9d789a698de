"""A tiny Llama as a GGUF that transformers loads: weights, and the tokenizer of ``tiny`` in llama.cpp's keys."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import tiny


def llama(path: Path, folder: Path | None = None) -> Path:
    """Write a checkpoint of ``tiny.write_llama`` as GGUF, in float32, by gguf's own writer."""
    import gguf
    from safetensors.torch import load_file

    folder = folder or tiny.single()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    special = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([special[token not in ("<pad>", "<s>", "</s>")] for token in vocabulary])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@functools.cache
def single() -> Path:
    """The one of this run. Not to be changed."""
    return llama(tiny.root() / "single.gguf")
