"""A base of a family that is a Llama exactly, under the configuration of one, which can grant biases.

Qwen2 and Mistral compute what Llama computes, tensor by tensor of the same names; only their configurations know no
bias of the output projections. Exactly, that is: without a sliding window, and measured on the real weights of one
layer of each kind.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sea_bake.baking.granting import extended
from sea_bake.baking.llamas import why_not
from sea_bake.baking.open_base import OpenBase
from sea_bake.baking.shift_test import layer_output
from sea_bake.errors import NotExactError, reason_of
from sea_bake.model.anatomy import family
from sea_bake.model.one_layer import decoder_depth, quiet
from sea_bake.model.skeleton import skeleton, stack_of

_CLASSES = {"AutoConfig": "LlamaConfig", "AutoModel": "LlamaModel", "AutoModelForCausalLM": "LlamaForCausalLM"}
_WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
_ROOM = 1e-5  # of the largest entry: the same operations in the same order, by other classes


def as_llama(base: OpenBase) -> OpenBase:
    """The same model as a Llama: another config.json, the same tensors, and biases of zeros where it needs them.

    Raises:
        NotExactError: it is none exactly; the message says why.
    """
    if base.row.model_type == "llama":
        raise NotExactError(f"{base.source.name} is a Llama already: drop --as")
    if why := why_not(base):
        raise _refused(base, why)
    config = _config(base)
    names = _missing(base, config)
    raw = _spelt(config, base.checkpoint.config)
    keys = ("attention_bias",) if config.attention_bias else ()
    made = extended(replace(base, plain=None), raw, lambda: config, names, keys)
    made = replace(made, row=family("llama"), classes=dict(_CLASSES))
    _measure(base, made)
    return made


def _config(base: OpenBase) -> Any:
    """The configuration of a Llama of the same sizes."""
    from transformers import LlamaConfig

    text = base.text
    data = {key: value for key, value in text.to_dict().items() if key not in (*_WINDOW, "model_type")}
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    biased = "self_attn.q_proj.bias" in base.layer_parts(0)
    made = {"head_dim": head, "attention_bias": biased, "mlp_bias": False, "architectures": ["LlamaForCausalLM"]}
    return LlamaConfig.from_dict(data | made)


def _spelt(config: Any, raw: dict[str, Any]) -> dict[str, Any]:
    """config.json of it; with the older spellings of two keys, for readers that know only those."""
    found = json.loads(config.to_json_string(use_diff=True))
    found |= {"head_dim": config.head_dim, "attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    found |= {"transformers_version": raw["transformers_version"]} if "transformers_version" in raw else {}
    rope = found.get("rope_parameters") or {}
    if "rope_theta" in rope:
        found.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            found.setdefault("rope_scaling", {key: value for key, value in rope.items() if key != "rope_theta"})
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if dtype:
        found |= {"dtype": dtype, "torch_dtype": dtype}
    return found


def _missing(base: OpenBase, config: Any) -> dict[str, tuple[int, ...]]:
    """On-disk names of the biases that a Llama needs, and the files lack."""
    try:
        with quiet():
            stack = stack_of(skeleton(config), decoder_depth(config))
    except Exception as error:
        raise _refused(base, f"transformers builds no such Llama: {reason_of(error)}") from error
    assert stack is not None
    found: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(stack[1]):
        parts = {name: tuple(p.shape) for name, p in layer.named_parameters()}
        lost = parts.keys() - base.layer_parts(i)
        strange = [*sorted(base.layer_parts(i) - parts.keys()), *(n for n in sorted(lost) if not n.endswith(".bias"))]
        if strange:
            raise _refused(base, f"its layer {i} and a Llama's do not both have {strange[0]}")
        found |= {f"{base.stem}.{i}.{name}": parts[name] for name in sorted(lost)}
    return found


def _measure(base: OpenBase, made: OpenBase) -> None:
    seen: set[Any] = set()
    for layer in range(base.text.num_hidden_layers):
        kind = tuple(sorted(base.layer_parts(layer)))
        if kind in seen:
            continue
        seen.add(kind)
        ours, theirs = layer_output(made, layer).double(), layer_output(base, layer).double()
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error <= _ROOM:
            raise _refused(base, f"measured on the real weights of layer {layer}, it answers otherwise ({error:.2g})")


def _refused(base: OpenBase, why: str) -> NotExactError:
    return NotExactError(
        f"{base.source.name} as a Llama would not be exact: {why}. Bake with --how insert, which is exact for every "
        "edit."
    )
