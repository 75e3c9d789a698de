"""A tiny Llama as a GGUF that transformers loads: weights, and the tokenizer of ``tiny`` in llama.cpp's keys."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import tiny


def llama(path: Path, folder: Path | None = None, *, template: str | None = None, end: int = 2) -> Path:
    """Write a checkpoint of ``tiny.write_llama`` as GGUF, in float32, by gguf's own writer.

    Args:
        template: its chat template.
        end: the token that ends an answer.
    """
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
    ends = ("<pad>", "<s>", "</s>", vocabulary[end])
    writer.add_token_types([special[token not in ends] for token in vocabulary])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(end)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        values = tensor.numpy()
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if stem.endswith(part):  # rotated in pairs of neighbours there, and of halves here
                halves = values.reshape(config[heads], 2, -1, *values.shape[1:])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shortened(source: Path, path: Path, layers: Sequence[int], *, as_it_is: bool = False) -> Path:
    """Some of a GGUF's layers, its embeddings, head and all its keys; every tensor in float32, or as it is."""
    import gguf

    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(path), arch)
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value = len(layers) if key == f"{arch}.block_count" else entry.contents()
            inner = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, value, entry.types[0], sub_type=inner)
    for tensor in reader.tensors:
        name, parts = tensor.name, tensor.name.split(".")
        if parts[0] == "blk":
            if int(parts[1]) not in layers:
                continue
            name = ".".join(["blk", str(layers.index(int(parts[1]))), *parts[2:]])
        if as_it_is:
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            writer.add_tensor(name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@functools.cache
def single() -> Path:
    """The one of this run. Not to be changed."""
    return llama(tiny.root() / "single.gguf")


def llama_cpp(
    model: Path, prompts: list[list[int]], count: int, *arguments: object
) -> list[tuple[list[int], dict[int, float]]]:
    """llama.cpp's server in this process, after its own reading of a command line: ``--control-vector-scaled F:S``.

    Greedy tokens of each prompt, and the log-probabilities of the ten likeliest first ones. The cache is float32.
    """
    import xllamacpp

    settings = xllamacpp.CommonParams()
    words = [str(word).encode() for word in ("llama", "-m", model, *arguments)]
    library = ctypes.CDLL(importlib.util.find_spec("xllamacpp.xllamacpp").origin)  # type: ignore[union-attr]
    parse = library._Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E  # common_params_parse
    parse.restype = ctypes.c_bool
    parse.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    inside = id(settings) + object.__basicsize__  # the C++ structure that the Python object holds
    assert parse(len(words), (ctypes.c_char_p * len(words))(*words), inside, 1, None)
    assert settings.model.path == str(model)  # or it lies elsewhere
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_parallel, settings.warmup = 256, 128, 128, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, found = xllamacpp.Server(settings), []
    for ids in prompts:
        request = {"prompt": ids, "max_tokens": count, "temperature": 0, "logprobs": 10, "ignore_eos": True}
        (choice,) = server.handle_completions({**request, "cache_prompt": False})["choices"]
        steps = choice["logprobs"]["content"]
        first = {entry["id"]: entry["logprob"] for entry in steps[0]["top_logprobs"]}
        found.append(([step["id"] for step in steps], first))
    return found
