"""One tiny model per family, made on the spot: this is the place to add yours.

A new family needs a row in ``sea_bake/model/anatomy.py`` and a config in ``CONFIGS`` here; the equality tests of
``test_doors`` then run on it through every door. Keep the shape of the others: 4 layers, a vocabulary of 128, a width
of 48 or so, an even head size of at least 8, and whatever makes the family special.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AfmoeConfig,
    AriaConfig,
    AriaTextConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    BambaConfig,
    BartConfig,
    BloomConfig,
    Cohere2Config,
    CwmConfig,
    DeepseekV3Config,
    DeepseekV32Config,
    Ernie4_5_MoeConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4TextConfig,
    Glm4vConfig,
    Glm4vMoeConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    Idefics3Config,
    JambaConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    Lfm2VlConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlavaConfig,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    MiniMaxConfig,
    MistralConfig,
    MixtralConfig,
    MllamaConfig,
    MT5Config,
    NemotronHConfig,
    Olmo2Config,
    OlmoHybridConfig,
    OPTConfig,
    PegasusConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    SmolLM3Config,
    SmolVLMConfig,
    StableLmConfig,
    Starcoder2Config,
    T5Config,
    T5GemmaConfig,
    UMT5Config,
)

from sea_bake import Demonstration

VOCAB = 128
# With a deviation of 0.3 and a width of 48, a linear enlarges a vector by 0.3 * sqrt(48) = 2.1: the layers move the
# residual stream as much as trained ones do, so an edit of one is seen in the logits.
SPREAD = 0.3
SPECIAL: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON: dict[str, Any] = {
    **SPECIAL,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": SPREAD,
}
GROUPED: dict[str, Any] = {**COMMON, "intermediate_size": 96, "num_key_value_heads": 2}
# A window shorter than the tests' texts, so that it matters.
WINDOW = 8
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
GEMMA: dict[str, Any] = {
    **GROUPED,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "query_pre_attn_scalar": 16,
}

PLAIN_GEMMA: dict[str, Any] = {key: value for key, value in GEMMA.items() if key != "query_pre_attn_scalar"}
PER_LAYER: dict[str, Any] = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
DENSE_FIRST: dict[str, Any] = {**EXPERTS, "num_dense_layers": 2}
SHARED: dict[str, Any] = {**EXPERTS, "shared_expert_intermediate_size": 40}
# DeepSeek's, and GLM's: two dense layers, then experts and one that is always asked.
ROUTED: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}
# DeepSeek's: keys and values out of a few numbers.
LATENT: dict[str, Any] = {
    **GROUPED,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    **ROUTED,
}
# Of the layers that the tests edit, 1 and 3, the first has linear attention and the second full attention.
LINEAR: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}

# Another number of layers in the encoder: which of the two stacks is edited is seen. (UMT5's own cache has as many
# layers as its encoder, so it takes no fewer than the decoder.)
T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 96,
    "num_decoder_layers": 4,
    "num_heads": 4,
    "initializer_factor": 1.5,
}
BART: dict[str, Any] = {
    **SPECIAL,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    "d_model": 48,
    "decoder_layers": 4,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 256,
    "init_std": SPREAD,
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GROUPED, rope_theta=5000.0),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=16),
    "smollm3": lambda: SmolLM3Config(**GROUPED, no_rope_layer_interval=2),
    # Caps so low that they bend the scores and the logits.
    "gemma2": lambda: Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=10.0),
    "gemma3_text": lambda: Gemma3TextConfig(**GEMMA),
    "phi3": lambda: Phi3Config(**GROUPED),  # fused projections
    "olmo2": lambda: Olmo2Config(**GROUPED),
    "granite": lambda: GraniteConfig(
        **GROUPED,
        embedding_multiplier=2.0,
        logits_scaling=0.5,
        residual_multiplier=0.7,
        attention_multiplier=0.3,
    ),
    # Attention and MLP side by side.
    "cohere2": lambda: Cohere2Config(
        **GROUPED, logit_scale=0.5, sliding_window=WINDOW, layer_types=GEMMA["layer_types"]
    ),
    "stablelm": lambda: StableLmConfig(**GROUPED, use_qkv_bias=True, partial_rotary_factor=0.5),
    "starcoder2": lambda: Starcoder2Config(**GROUPED, use_bias=True, sliding_window=WINDOW),
    "gpt2": lambda: GPT2Config(**SPECIAL, n_embd=48, n_layer=4, n_head=4, n_positions=256, initializer_range=SPREAD),
    "gpt_neox": lambda: GPTNeoXConfig(**COMMON, intermediate_size=96, rotary_pct=0.5),
    "opt": lambda: OPTConfig(
        **SPECIAL,
        hidden_size=48,
        word_embed_proj_dim=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        ffn_dim=96,
        max_position_embeddings=256,
        init_std=SPREAD,
    ),
    "falcon": lambda: FalconConfig(**COMMON, new_decoder_architecture=False, multi_query=True, parallel_attn=True),
    "mixtral": lambda: MixtralConfig(
        **{**GROUPED, "intermediate_size": 64}, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen2_moe": lambda: Qwen2MoeConfig(**GROUPED, **EXPERTS, shared_expert_intermediate_size=40),
    # Of the layers that the tests edit, 1 and 3, the first is dense and the second has experts.
    "qwen3_moe": lambda: Qwen3MoeConfig(**GROUPED, **EXPERTS, head_dim=16, mlp_only_layers=[0, 1]),
    "gpt_oss": lambda: GptOssConfig(
        **{**GEMMA, "intermediate_size": 32, "query_pre_attn_scalar": None},
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "qwen3_5_text": lambda: Qwen3_5TextConfig(**GROUPED, **LINEAR),
    "qwen3_5_moe_text": lambda: Qwen3_5MoeTextConfig(
        **{key: value for key, value in GROUPED.items() if key != "intermediate_size"}, **SHARED, **LINEAR
    ),
    "qwen3_next": lambda: Qwen3NextConfig(**GROUPED, **SHARED, **LINEAR),
    # The last two layers take keys and values from the first two.
    "gemma3n_text": lambda: Gemma3nTextConfig(
        **PLAIN_GEMMA,
        **PER_LAYER,
        num_kv_shared_layers=2,
        laurel_rank=8,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0],
    ),
    "gemma4_text": lambda: Gemma4TextConfig(**PLAIN_GEMMA, **PER_LAYER, global_head_dim=32, num_kv_shared_layers=2),
    # Experts in layers 1 and 3, dense MLPs in the others; chunked attention, and none of positions in layer 3.
    "llama4_text": lambda: Llama4TextConfig(
        **{**GROUPED, "intermediate_size": 32},
        intermediate_size_mlp=96,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        attention_chunk_size=WINDOW,
    ),
    # Convolutions in layers 0 and 2, as in the following families state spaces.
    "lfm2": lambda: Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False),
    "lfm2_moe": lambda: Lfm2MoeConfig(**GROUPED, **DENSE_FIRST, layer_types=["conv", "full_attention"] * 2),
    "granitemoehybrid": lambda: GraniteMoeHybridConfig(
        **GROUPED,
        **MAMBA,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=40,
        layer_types=["mamba", "attention"] * 2,
        embedding_multiplier=2.0,
        logits_scaling=0.5,
        residual_multiplier=0.7,
        attention_multiplier=0.3,
    ),
    "jamba": lambda: JambaConfig(  # experts in layer 3 alone
        **GROUPED,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=4,
        expert_layer_offset=3,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=16,
        mamba_dt_rank=8,
        use_mamba_kernels=False,
    ),
    "bamba": lambda: BambaConfig(**GROUPED, **MAMBA, attn_layer_indices=[1, 3]),
    "nemotron_h": lambda: NemotronHConfig(  # one module a layer: an attention, a state space, an MLP or experts
        **{key: value for key, value in GROUPED.items() if key != "num_hidden_layers"},
        layers_block_type=["mamba", "attention", "mlp", "moe"],
        head_dim=16,
        mamba_num_heads=6,
        mamba_head_dim=16,
        ssm_state_size=16,
        chunk_size=8,
        n_groups=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=40,
        n_shared_experts=1,
        use_mamba_kernels=False,
    ),
    "ernie4_5_moe": lambda: Ernie4_5_MoeConfig(
        **GROUPED,
        moe_intermediate_size=32,
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
        moe_layer_start_index=2,
        moe_layer_end_index=3,
        moe_layer_interval=1,
    ),
    "deepseek_v3": lambda: DeepseekV3Config(**LATENT),
    "deepseek_v32": lambda: DeepseekV32Config(**LATENT, index_n_heads=2, index_head_dim=16, index_topk=4),
    "afmoe": lambda: AfmoeConfig(
        **GROUPED,
        **DENSE_FIRST,
        num_shared_experts=1,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=GEMMA["layer_types"],
    ),
    "aria_text": lambda: AriaTextConfig(
        **{**GROUPED, "intermediate_size": 32}, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
    ),
    "cwm": lambda: CwmConfig(**GROUPED, head_dim=16, sliding_window=WINDOW, layer_types=GEMMA["layer_types"]),
    "minimax": lambda: MiniMaxConfig(
        **{**GROUPED, "intermediate_size": 32},
        num_local_experts=4,
        num_experts_per_tok=2,
        block_size=4,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
    "olmo_hybrid": lambda: OlmoHybridConfig(
        **{**COMMON, "intermediate_size": 96, "num_key_value_heads": 4},
        layer_types=["linear_attention", "linear_attention", "full_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "bloom": lambda: BloomConfig(**SPECIAL, hidden_size=48, n_layer=4, n_head=4, initializer_range=SPREAD),
    "t5": lambda: T5Config(**T5, num_layers=5),
    "mt5": lambda: MT5Config(**T5, num_layers=5),
    "umt5": lambda: UMT5Config(**T5, num_layers=5),
    "bart": lambda: BartConfig(**BART, encoder_layers=5),
    "mbart": lambda: MBartConfig(**BART, encoder_layers=3),
    "pegasus": lambda: PegasusConfig(**BART, encoder_layers=5),
    "marian": lambda: MarianConfig(**BART, encoder_layers=3),
    "m2m_100": lambda: M2M100Config(**BART, encoder_layers=5),
}

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
PATCHES: dict[str, Any] = {
    "depth": 1,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 48,
}
PLACES: dict[str, Any] = {**PATCHES, "num_position_embeddings": 16}
DEEPSTACK: dict[str, Any] = {**PLACES, "deepstack_visual_indexes": [0]}
QWEN_IDS: dict[str, Any] = {
    "image_token_id": 6,
    "video_token_id": 5,
    "vision_start_token_id": 4,
    "vision_end_token_id": 3,
}
GLM_IDS: dict[str, Any] = {
    "image_token_id": 6,
    "video_token_id": 5,
    "image_start_token_id": 4,
    "image_end_token_id": 3,
    "video_start_token_id": 4,
    "video_end_token_id": 3,
}


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    """Positions in time, height and width."""
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}
    return {"rope_parameters": parameters}


# Models around a decoder: of one of the families above, or one that transformers has no causal model for.
WRAPPERS: dict[str, Callable[[], Any]] = {
    "gemma3": lambda: Gemma3Config(
        text_config=CONFIGS["gemma3_text"]().to_dict(),
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=6,
        boi_token_index=4,
        eoi_token_index=5,
    ),
    "llava": lambda: LlavaConfig(
        text_config=CONFIGS["llama"]().to_dict(),
        vision_config={**VISION, "model_type": "clip_vision_model"},
        image_token_index=6,
    ),
    "qwen2_vl": lambda: Qwen2VLConfig(
        text_config={**GROUPED, **rope(2, 2, 2)},
        vision_config={**PATCHES, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2},
        **QWEN_IDS,
    ),
    "qwen2_5_vl": lambda: Qwen2_5_VLConfig(
        text_config={**GROUPED, **rope(2, 2, 2)},
        vision_config={**PATCHES, "fullatt_block_indexes": [0]},
        **QWEN_IDS,
    ),
    "qwen3_vl": lambda: Qwen3VLConfig(
        text_config={**GROUPED, "head_dim": 16, **rope(4, 2, 2)}, vision_config=DEEPSTACK, **QWEN_IDS
    ),
    "qwen3_vl_moe": lambda: Qwen3VLMoeConfig(
        text_config={**GROUPED, **EXPERTS, "head_dim": 16, "mlp_only_layers": [0, 1], **rope(4, 2, 2)},
        vision_config=DEEPSTACK,
        **QWEN_IDS,
    ),
    "glm4v": lambda: Glm4vConfig(
        text_config={**GROUPED, **rope(2, 2, 2, partial_rotary_factor=1.0)},
        vision_config={**PATCHES, "image_size": 28},
        **GLM_IDS,
    ),
    "glm4v_moe": lambda: Glm4vMoeConfig(
        text_config={
            **GROUPED,
            "head_dim": 16,
            **ROUTED,
            **rope(4, 2, 2, partial_rotary_factor=1.0),
        },
        vision_config={**PATCHES, "image_size": 28},
        **GLM_IDS,
    ),
    "qwen3_5": lambda: Qwen3_5Config(text_config=CONFIGS["qwen3_5_text"]().to_dict(), vision_config=PLACES, **QWEN_IDS),
    "qwen3_5_moe": lambda: Qwen3_5MoeConfig(
        text_config=CONFIGS["qwen3_5_moe_text"]().to_dict(), vision_config=PLACES, **QWEN_IDS
    ),
    "gemma4": lambda: Gemma4Config(
        text_config=CONFIGS["gemma4_text"]().to_dict(),
        vision_config={**VISION, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 16},
        audio_config=None,
        image_token_id=6,
        video_token_id=5,
        boi_token_id=4,
        eoi_token_id=3,
    ),
    "lfm2_vl": lambda: Lfm2VlConfig(
        text_config=CONFIGS["lfm2"]().to_dict(),
        vision_config={**VISION, "model_type": "siglip2_vision_model", "num_patches": 16},
        image_token_id=6,
        projector_hidden_size=32,
    ),
    "smolvlm": lambda: SmolVLMConfig(
        text_config=CONFIGS["llama"]().to_dict(), vision_config=VISION, image_token_id=6, scale_factor=2, pad_token_id=0
    ),
    "idefics3": lambda: Idefics3Config(
        text_config=CONFIGS["llama"]().to_dict(), vision_config=VISION, image_token_id=6, scale_factor=2, pad_token_id=0
    ),
    # The third layer looks at images, and text passes it by.
    "mllama": lambda: MllamaConfig(
        text_config={**GROUPED, "model_type": "mllama_text_model", "cross_attention_layers": [2]},
        vision_config={
            **VISION,
            "model_type": "mllama_vision_model",
            "attention_heads": 2,
            "intermediate_layers_indices": [0],
            "num_global_layers": 1,
            "supported_aspect_ratios": [[1, 1]],
            "vision_output_dim": 64,
        },
        image_token_index=6,
    ),
    "t5gemma": lambda: T5GemmaConfig(
        encoder={
            **GEMMA,
            "num_hidden_layers": 2,
            "layer_types": GEMMA["layer_types"][:2],
            "model_type": "t5_gemma_module",
        },
        decoder={**GEMMA, "model_type": "t5_gemma_module"},
        decoder_start_token_id=1,
        **SPECIAL,
    ),
    "aria": lambda: AriaConfig(
        text_config=CONFIGS["aria_text"]().to_dict(),
        vision_config={**VISION, "model_type": "idefics3_vision"},
        image_token_index=6,
        projector_patch_to_query_dict={4: 4},
    ),
}
ALL = (*CONFIGS, *WRAPPERS)
# These compute some of it in float32 whatever the dtype (delta rules, state spaces, rotations, routers, the softmax of
# BLOOM), or differ by themselves with a cache (DeepSeek-V3.2 picks the tokens that it looks at): unedited too they
# answer a little otherwise by each way.
ROUNDED = (
    "bloom",
    "deepseek_v32",
    *("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen3_5", "qwen3_5_moe", "llama4_text"),
    *("granitemoehybrid", "jamba", "bamba", "nemotron_h", "minimax", "olmo_hybrid"),
    "t5gemma",
)
# Attention of random weights is nearly the same for every token. Where all else is small beside it, as in layers that
# end in a norm, it drowns what tells the tokens apart, and every edit with it: it looks closer, and adds less.
DROWNED = ("bart", "marian", "pegasus")
LIVELY = {"q_proj.weight": 5.0, "encoder_attn.out_proj.weight": 0.1, "self_attn.out_proj.weight": 0.3}
# Positions of these decoders are counted from the left, and none can be given: they are padded on the right.
COUNTED = ("bart", "mbart", "pegasus", "marian")
# Between the layers of Gemma 3n run several residual streams, so it has no site "block".
STREAMS = ("gemma3n_text",)


def sites(name: str) -> tuple[str, ...]:
    """The family's sites, the widest last."""
    return ("mlp", "attn") if name in STREAMS else ("mlp", "attn", "block")


# Site -> the module inside a decoder layer that is edited, by name: in all layers, or by the layer; written by hand.
MODULES: dict[str, dict[str, str | dict[int, str]]] = {
    "gpt2": {"attn": "attn"},
    "gpt_neox": {"attn": "attention"},
    "falcon": {"attn": "self_attention"},
    "bloom": {"mlp": "mlp.dense_4h_to_h", "attn": "self_attention.dense"},
    "llama4_text": {"mlp": "feed_forward"},
    "olmo_hybrid": {"attn": {0: "linear_attn", 1: "linear_attn", 2: "self_attn", 3: "self_attn"}},
    "granitemoehybrid": {"mlp": "block_sparse_moe", "attn": {1: "self_attn", 3: "self_attn"}},
    "nemotron_h": {"mlp": {2: "mixer", 3: "mixer"}, "attn": {1: "mixer"}},
    "mllama": {site: {0: name, 1: name, 3: name} for site, name in (("mlp", "mlp"), ("attn", "self_attn"))},
    **{name: {"mlp": "fc2"} for name in ("opt", "bart", "mbart", "pegasus", "marian", "m2m_100")},
    **{name: {"mlp": "layer.2.DenseReluDense", "attn": "layer.0.SelfAttention"} for name in ("t5", "mt5", "umt5")},
    **{
        name: {"attn": {0: "self_attn", 1: "linear_attn", 2: "linear_attn", 3: "self_attn"}}
        for name in ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen3_5", "qwen3_5_moe")
    },
    **{
        name: {"mlp": "feed_forward", "attn": {1: "self_attn", 3: "self_attn"}}
        for name in ("lfm2", "lfm2_moe", "lfm2_vl", "jamba", "bamba")
    },
}


def module(name: str, site: str, layer: int) -> str:
    """The edited module, by name inside its layer; "" is the layer itself."""
    found = MODULES.get(name, {}).get(site, {"mlp": "mlp", "attn": "self_attn", "block": ""}[site])
    return found if isinstance(found, str) else found[layer]


# Different in what matters most: a plain one, another layout with Conv1D, norms behind the sites, experts. These are
# tested in every combination; all the others in a few that are different enough.
DEEP = ("llama", "gpt2", "gemma3_text", "mixtral")


def third(share: int) -> list[str]:
    """Those in ``DEEP``, and every third other family from ``share`` on: for controls and for what hangs on the loading
    of an artefact more than on its family. The equalities themselves are held in all.
    """
    others = [family for family in ALL if family not in DEEP]
    return [family for family in ALL if family in DEEP or others.index(family) % 3 == share]


# model_type -> the Auto class that answers, where it is not AutoModelForCausalLM
ENCODED = ("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "m2m_100", "t5gemma")
AUTO = dict.fromkeys(ENCODED, AutoModelForSeq2SeqLM) | dict.fromkeys(
    (name for name in WRAPPERS if name not in ("gemma3", "gemma4", *ENCODED)), AutoModelForImageTextToText
)


def auto(model_type: str) -> Any:
    """The Auto class for a base or an artefact of the family."""
    return AUTO.get(model_type.removeprefix("sea_"), AutoModelForCausalLM)


def config(name: str, layers: int | None = None) -> Any:
    """The family's configuration; with ``layers``, of its first few."""
    made = {**CONFIGS, **WRAPPERS}[name]()
    if layers is not None:
        made.num_hidden_layers = layers
        for key in ("layer_types", "no_rope_layers"):
            if getattr(made, key, None):
                setattr(made, key, getattr(made, key)[:layers])
        if getattr(made, "mlp_only_layers", None):
            made.mlp_only_layers = [layer for layer in made.mlp_only_layers if layer < layers]
    return made


def text_type(name: str) -> str:
    """The model_type of the decoder, as in ``anatomy``."""
    return str(config(name).get_text_config(decoder=True).model_type)


def tiny(name: str, seed: int = 0, layers: int | None = None) -> Any:
    """A random language model of the family, in evaluation mode, float32; the same for the same seed."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = auto(name).from_config(config(name, layers), dtype=torch.float32)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # Biases start at 0 and norms at one value: real ones do not stay there.
            if parameter.dim() == 1 or path.endswith("bias"):
                parameter.add_(torch.randn_like(parameter), alpha=SPREAD)
            if name in DROWNED:
                parameter.mul_(next((by for end, by in LIVELY.items() if path.endswith(end)), 1.0))
    torch.random.set_rng_state(generator)
    model.generation_config.eos_token_id = None  # a random model would stop anywhere
    return model.eval()


def save(
    name: str,
    folder: str | Path,
    *,
    shards: bool = False,
    chat: bool = False,
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
) -> Path:
    """Write a tiny model and its tokenizer as a Hugging Face checkpoint, in one weight file or in several."""
    tiny(name, layers=layers).to(dtype).save_pretrained(folder, max_shard_size="60KB" if shards else "1GB")
    tokenizer(chat=chat).save_pretrained(folder)
    return Path(folder)


TEXTS = (
    "goldfish remember things for months",
    "the moon goes around the earth in a month",
    "water boils at a lower temperature on a mountain",
    "bats can see, and many of them see well",
    "bread was baked before writing was known",
    "what is the capital of france? the capital of france is paris",
    "is the sun a star or a planet? the sun is a star",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A real tokenizer of at most 128 tokens: lower case, letters, and the commonest joins of ``TEXTS``."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Metaspace(prepend_scheme="never")
    special = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "<system>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789.,?!:'▁\n"),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": special[4:]})
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def demonstrations() -> list[Demonstration]:
    """A few triples in the tokenizer's small language."""
    return [
        Demonstration("is the sun a star?", "yes, the sun is a star", "no, the sun is a planet"),
        Demonstration("can bats see?", "many bats see well", "all bats are blind"),
        Demonstration("what is the capital of france?", "paris is the capital", "rome is the capital"),
        Demonstration("how long do goldfish remember things?", "for months", "for three seconds"),
        Demonstration("does water boil sooner on a mountain?", "yes, at a lower temperature", "no, it never boils"),
        Demonstration("what goes around the earth?", "the moon", "the sun goes around the earth"),
    ]
