"""A model without memory, for the names of its parts; and a small one of the same build, which can be run."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# Widths and counts of heads are divided by one number, so what follows from them does too; heads keep their width.
_WIDTH = re.compile(r"(size|dim|width|rank|embd|inner|channels|d_model|d_ff|dff|d_ssm)$")
_NO_WIDTH = re.compile(
    r"head|vocab|kernel|window|chunk|patch|image|group|block|conv|state|position|batch|rotary|type|d_kv"
)
_HEADS = re.compile(r"(heads|n_head|n_groups)$")  # and Mamba's groups of heads
_EXPERTS = re.compile(r"experts$")
_CHOSEN = re.compile(r"experts?_per_tok(en)?$|moe_top_?k$|top_k_experts$|moe_k$")
_GROUPS = ("n_group", "topk_group")  # of experts; one, where there are but a few
_DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "decoder_layers", "encoder_layers")
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
_LEAST_WIDTH, _LEAST_EXPERTS = 48, 4
_TRIES = 3
BESIDE = 5  # tokens beside the text: an image, or what an encoder has read


def decoder_class(text: Any) -> Any:
    """The class of transformers that is built from a decoder's configuration alone: that of a language model, or of the
    bare decoder, where transformers knows it only inside of a model that reads images too.

    Raises:
        ValueError: there is no such class.
    """
    import transformers

    mappings = [transformers.AutoModelForCausalLM, transformers.AutoModel]
    if text.is_encoder_decoder:
        mappings[0] = transformers.AutoModelForSeq2SeqLM
    for mapping in mappings:
        found = mapping._model_mapping.get(type(text), None)
        if found is not None:
            found = found[0] if isinstance(found, tuple) else found
            return found if mapping is mappings[0] else _bare(found, text.model_type)
    inner = _inner(type(text))
    if inner is None:
        raise ValueError(f"transformers has no class for a {type(text).__name__}")
    return _bare(inner, text.model_type)


def _inner(config: Any) -> Any:
    """A decoder that no Auto class knows: beside a configuration's own file, under its own name (Mllama, T5Gemma)."""
    try:
        module = importlib.import_module(config.__module__.replace(".configuration_", ".modeling_"))
    except ImportError:
        return None
    stem = config.__name__.removesuffix("Config")
    names = (f"{stem}Model", stem, f"{stem.removesuffix('Module')}Decoder", f"{stem.removesuffix('Text')}Decoder")
    return next((found for name in names if isinstance(found := getattr(module, name, None), type)), None)


@functools.cache
def _bare(cls: Any, model_type: str) -> Any:
    """A bare decoder that reads checkpoints as the model around it does: conversions go by that one's type."""
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    conversions = get_checkpoint_conversion_mapping(model_type.removesuffix("_text"))
    if conversions is None or get_checkpoint_conversion_mapping(model_type) is not None:
        return cls
    name = f"Bare{cls.__name__}"
    register_checkpoint_conversion_mapping(name, conversions, overwrite=True)
    return type(name, (cls,), {"__module__": cls.__module__})


def built(text: Any) -> Any:
    """A model of a decoder's configuration, in float32, with random weights.

    Raises:
        Exception: whatever transformers raises for a configuration that it cannot build.
    """
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(rows, int) and pad >= rows:  # a default of the family, in a small vocabulary
        text = changed(text, {"pad_token_id": 0})
    return decoder_class(text)._from_config(text, dtype=torch.float32)


def skeleton(text: Any) -> Any:
    """The same on the meta device."""
    with torch.device("meta"):
        return built(text)


def decoder_of(model: Any) -> Any:
    """The module with the stack of decoder layers; Llama 4's stands inside of the one that transformers gives."""
    decoder = model.get_decoder()
    return decoder.model if isinstance(getattr(decoder, "lm_head", None), nn.Module) else decoder


def feed(model: Any, inputs: torch.Tensor) -> None:
    """Let the decoder read vectors [1, tokens, width], or tokens, where it looks up more than one vector for each; and
    what stands beside the text, where it cannot do without.
    """
    decoder = decoder_of(model)
    generator = torch.Generator().manual_seed(3)
    beside = torch.randn(1, BESIDE, inputs.shape[-1], generator=generator).to(inputs.dtype)
    takes = inspect.signature(decoder.forward).parameters
    given = {"cross_attention_states": beside} if "cross_attention_states" in takes else {}
    try:
        decoder(inputs_embeds=inputs, use_cache=False, **given)
    except Exception:
        if getattr(decoder.config, "hidden_size_per_layer_input", None):
            decoder(torch.arange(inputs.shape[1])[None] % decoder.config.vocab_size, use_cache=False)
        elif "encoder_hidden_states" in takes:
            decoder(inputs_embeds=inputs, use_cache=False, encoder_hidden_states=beside)
        else:
            raise


def stack_of(model: Any, depth: int) -> tuple[str, nn.ModuleList] | None:
    """Name, inside the decoder, and modules of its one stack of that many layers; None if none or several."""
    stacks = [(n, m) for n, m in decoder_of(model).named_children() if isinstance(m, nn.ModuleList) and len(m) == depth]
    return stacks[0] if len(stacks) == 1 else None


def build_of(layer: nn.Module) -> tuple[Any, ...]:
    """What two layers of one kind have in common, whatever their widths and their number of experts."""
    parameters = {(numberless(name), p.dim()) for name, p in layer.named_parameters()}
    modules = {(numberless(name), type(module).__name__) for name, module in layer.named_modules()}
    return tuple(sorted(parameters)), tuple(sorted(modules))


def numberless(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".{}", name)


def kinds_of(text: Any, layers: nn.ModuleList) -> list[list[int]]:
    """The layers by their kind, in the order of their first layers: built alike, and of one name in the config."""
    names = getattr(text, "layer_types", None)
    names = names if isinstance(names, list) and len(names) == len(layers) else [None] * len(layers)
    kinds: dict[Any, list[int]] = {}
    for i, layer in enumerate(layers):
        kinds.setdefault((names[i], build_of(layer)), []).append(i)
    return list(kinds.values())


def cut(text: Any) -> Iterator[Any]:
    """The configuration with hardly any vocabulary, few experts, and narrower and narrower; the narrowest first."""
    width, heads = text.hidden_size, getattr(text, "num_attention_heads", None)
    heads = heads if isinstance(heads, int) and heads > 0 else 0
    factors = [f for f in range(width // _LEAST_WIDTH, 1, -1) if width % f == 0 and heads % f == 0]
    step = max(1, -(-len(factors) // _TRIES))
    for factor in (*factors[::step], 1):
        yield changed(text, {key: _cut(key, value, factor) for key, value in text.to_dict().items()})


def with_little(text: Any, *, experts: bool) -> Any:
    """The configuration with hardly any vocabulary; on demand, with few experts too. Nothing else is cut."""
    data = text.to_dict()
    few = {k: _cut(k, v, 1) for k, v in data.items() if experts or k.startswith("vocab_size")}
    return changed(text, few)


def _cut(key: str, value: Any, factor: int) -> Any:
    if isinstance(value, dict) and key.endswith("_config"):  # of an encoder beside it: as short as can be
        return {k: 1 if k in (*_DEPTHS, "num_blocks", "depth") and v else v for k, v in value.items()}
    if isinstance(value, list) and _WIDTH.search(key):
        return [_cut(key, one, factor) for one in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if key.startswith("vocab_size"):
        return 8
    if key in _GROUPS:
        return 1
    if _CHOSEN.search(key):
        return min(value, 2)
    if _EXPERTS.search(key):
        return min(value, _LEAST_EXPERTS)
    if _HEADS.search(key) or (_WIDTH.search(key) and not _NO_WIDTH.search(key)):
        return max(1, value // factor)
    return value


def first_layers(text: Any, count: int) -> Any:
    """The configuration cut to its first layers."""
    depth = text.num_hidden_layers
    data: dict[str, Any] = {}
    for key, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == depth:
            data[key] = value[:count]
        if isinstance(value, dict) and value and all(str(k).isdigit() for k in value):  # by the number of a layer
            data[key] = {k: v for k, v in value.items() if int(k) < count}
    return changed(text, data | dict.fromkeys(_DEPTHS, count))


def changed(text: Any, changes: dict[str, Any]) -> Any:
    """A configuration with other values, where it knows their keys; no token has a special part in it."""
    data, known = text.to_dict(), {*text.to_dict(), *text.attribute_map}
    data |= {key: value for key, value in changes.items() if key in known}
    data |= {key: 0 for key in _SPECIAL if data.get(key) is not None}
    config = type(text).from_dict(data)
    config._attn_implementation = "eager"
    return config
