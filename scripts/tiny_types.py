"""A tiny configuration of any model type of transformers, by rules on its keys; and a random model of it.

Standard library only at import time, as bench_common.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

VOCAB, WIDTH, HEADS, HEAD, WIDER, LAYERS = 128, 64, 4, 16, 96, 4
MOST = 40_000_000  # parameters: what is larger has not been made tiny

# key -> what it becomes, where the default is a number that is larger; the first match counts
_RULES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|n_vocab|num_embeddings$", VOCAB),
    (r"(chunk_length|attn_chunk_length|mem_len|block_size|window|chunk_size|chunk|n_window\w*)$", 8),
    (r"max_\w*position|n_positions|n_ctx|max_seq\w*|context_length|max_length|max_source_positions", 128),
    (r"(num_key_value_heads|num_kv_heads|n_kv_heads|num_key_value_groups|attention_kv_heads|kv_heads)$", 2),
    (r"(mamba_n_heads|mamba_num_heads|n_mamba_heads|ssm_num_heads)$", 8),
    (r"(mamba_d_head|mamba_head_dim|mamba_headdim|ssm_head_dim|state_size|d_state)$", HEAD),
    (r"(mamba_d_ssm)$", 128),
    (r"(n_groups|n_group|num_group|topk_group|ngroups)$", 1),
    (r"(heads|n_head|num_heads|n_heads)$", HEADS),
    (r"(qk_rope_head_dim|rotary_dim|partial_rotary_dim)$", 8),
    (r"(head_dim|d_kv|head_size|headdim|query_pre_attn_scalar|attention_head_size)$", HEAD),
    (r"lora_rank$|_rank$|lora_r$|dt_rank|low_rank_dim", HEAD),
    (r"(per_tok|per_token|top_?k|moe_k|experts_top_k|num_selected_experts|topk)$", 2),
    (r"(zero_expert_num)$", 1),
    (r"experts|expert_num$|n_experts", 4),
    (r"(first_k_dense_replace|num_dense_layers|moe_layer_offset|moe_layer_start_index|layer_offset|_offset)$", 1),
    (r"(interval|_period|sparse_step|frequency|layer_freq|_every|_every_n_layers)$", 2),
    (r"num_kv_shared_layers|num_nextn_predict_layers|num_hidden_groups|num_mem_blocks", 1),
    (r"((?<!out_)hidden_layers|layers|n_layer|num_blocks|layer_num|depth|decoder_layers|encoder_layers)$", LAYERS),
    (r"(image_size|img_size|input_size)$", 32),
    (r"(patch_size)$", 8),
    (r"(moe_intermediate_size|expert_hidden_size|moe_ffn_hidden_size|expert_ffn_size|expert_intermediate_size)$", 32),
    (r"(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|dff|feedforward_proj_dim|mlp_dim|ffn_size)$", WIDER),
    (r"(hidden_size|d_model|n_embd|d_embed|dim|embed_dim|embedding_size|emb_dim|hidden_dim|width|channels|"
     r"lru_width|d_inner|out_size|output_size|proj_size|mm_hidden_size|units|input_dim|output_dim)$", WIDTH),
)  # fmt: skip
_KEEP = re.compile(r"num_channels|in_channels|conv|kernel|stride|temporal|position_embeddings_dim|group_size|label")
_IDS = re.compile(r"(token_id|token_index|_id|token_ids)$")
# What no rule makes right: model type -> keys of its configuration (a.b is b of a's), set behind the rules.
ODD: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 120}},
    "bailing_hybrid": {"num_expert_group": 1, "qk_head_dim": 24},
    "cohere_compass": {"text_config.rope_parameters.full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    "cohere_compass_text": {"rope_parameters.full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "ernie4_5_vl_moe": {"text_config.rope_parameters.mrope_section": [2, 2, 4]},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "glm4v_moe": {"text_config.rope_parameters.mrope_section": [2, 1, 1]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 24},
    "mistral4": {"qk_head_dim": 24, "rope_parameters.partial_rotary_factor": 1.0},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    **{
        name: {"text_config.rope_parameters.mrope_section": [2, 3, 3]}
        for name in (
            *("glm46v", "glm4v", "glm_ocr", "glmga", "hunyuan_vl", "paddleocr_vl"),
            *("qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl"),
        )
    },
    "step3p7": {"text_config.sliding_window": 8, "sliding_window": 8},
    "xlnet": {"d_head": 16},
    "zamba2": {"attention_hidden_size": 128, "attention_head_dim": 32, "hybrid_layer_ids": [3]},
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [32, 32], "is_decoder": True},
}
_DECODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def tiny_config(model_type: str) -> Any:
    """The configuration of a model type, made tiny."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    config = cls(**_composed(model_type))
    data = shrunk(config.to_dict())
    if model_type in _DECODERS:
        data["is_decoder"] = True
    for key, value in ODD.get(model_type, {}).items():
        *path, last = key.split(".")
        part = data
        for name in path:
            part = part.setdefault(name, {})
        if value is None:
            part.pop(last, None)
        else:
            part[last] = value
    made = cls.from_dict(data)
    made._attn_implementation = "eager"
    return made


def _composed(model_type: str) -> dict[str, Any]:
    """What a configuration of two models cannot do without."""
    from transformers import BertConfig, ViTConfig

    small = shrunk(BertConfig().to_dict()) | {"is_decoder": False}
    decoder = small | {"is_decoder": True, "add_cross_attention": True}
    if model_type == "encoder-decoder":
        return {"encoder": small, "decoder": decoder, "decoder_start_token_id": 1, "pad_token_id": 0}
    if model_type == "vision-encoder-decoder":
        return {"encoder": shrunk(ViTConfig().to_dict()), "decoder": decoder}
    return {}


def shrunk(data: dict[str, Any]) -> dict[str, Any]:
    """A configuration's dictionary by the rules, and those inside of it."""
    kept = _kept_layers(data)
    depth = _depth(data)
    made: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value and all(str(k).isdigit() for k in value):
            by_layer = {int(layer): one for layer, one in value.items()}
            chosen = {str(new): by_layer[old] for new, old in enumerate(kept) if old in by_layer}
            made[key] = {new: shrunk(one) if isinstance(one, dict) else one for new, one in chosen.items()}
        elif isinstance(value, dict):
            made[key] = shrunk(value)
        elif key == "mrope_section" and isinstance(value, list):
            made[key] = [2, 3, 3]
        elif isinstance(value, list) and depth and len(value) == depth:
            made[key] = [value[i] for i in kept]
        elif isinstance(value, list) and _IDS.search(key):
            made[key] = [one if isinstance(one, int) and one < VOCAB else VOCAB - 1 for one in value]
        else:
            made[key] = _number(key, value, len(kept), depth)
    if made.get("is_encoder_decoder") and made.get("decoder_start_token_id") is None:
        made["decoder_start_token_id"] = 1
    heads = data.get("num_attention_heads")
    if heads and data.get("num_key_value_heads") == heads:
        made["num_key_value_heads"] = made["num_attention_heads"]
    for key, small in (("head_dim", HEAD), ("num_key_value_heads", made.get("num_attention_heads"))):
        if key in made and made[key] is None:
            made[key] = small
    if isinstance(made.get("qk_rope_head_dim"), int) and "head_dim" in made:
        made["head_dim"] = made["qk_rope_head_dim"]
    return _ids(made)


def _number(key: str, value: Any, layers: int, depth: int | None) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or _KEEP.search(key) or _IDS.search(key):
        return value
    for pattern, small in _RULES:
        if re.search(pattern, key):
            return layers if value == depth and small == LAYERS else min(value, small)
    return value


def _ids(made: dict[str, Any]) -> dict[str, Any]:
    """Numbers of tokens: the usual three first, all others from the end of the vocabulary."""
    usual = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    number = VOCAB
    for key, value in made.items():
        if _IDS.search(key) and isinstance(value, int) and not isinstance(value, bool) and value >= VOCAB - 16:
            number -= 1
            made[key] = usual.get(key, number)
    return made


def _depth(data: dict[str, Any]) -> int | None:
    found = next((data[k] for k in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if data.get(k)), None)
    return found if isinstance(found, int) else None


def _kept_layers(data: dict[str, Any]) -> list[int]:
    """The layers to keep: one of each kind, by every list with an entry per layer, and others up to ``LAYERS``."""
    depth = _depth(data)
    if not depth:
        return list(range(LAYERS))
    lists = [v for v in data.values() if isinstance(v, list) and len(v) == depth]
    first: dict[str, int] = {}
    for i in range(depth):
        first.setdefault(repr([one[i] for one in lists]), i)
    kept = list(first.values()) if len(first) <= 8 else []
    for i in range(depth):
        if len(kept) < min(LAYERS, depth) and i not in kept:
            kept.append(i)
    return sorted(kept)


def tiny_model(cls: Any, config: Any) -> Any:
    """A random model of a class, in evaluation mode, float32: all matrices of the same strength, no gate shut.

    Raises:
        ValueError: it is not tiny.
    """
    import torch

    with torch.device("meta"):
        size = sum(p.numel() for p in cls(copy.deepcopy(config)).parameters())
    if size > MOST:
        raise ValueError(f"not tiny: {size:,} parameters")
    torch.manual_seed(0)
    model = cls._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in _parameters(model):
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            else:
                wide = (
                    1
                    if "embed" in name or "wte" in name
                    else max(1, parameter[0].numel() // (1 if parameter.dim() == 2 else parameter.shape[1]))
                )
                parameter.copy_(torch.randn_like(parameter) / wide**0.5)
    return model.eval()


def _parameters(model: Any) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.requires_grad:
            yield name, parameter
