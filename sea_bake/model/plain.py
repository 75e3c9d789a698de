"""The most usual builds, known from a config.json and the headers: what transformers would say, without waiting for it.

A build is plain where every key of its config.json is one of those below with a value of the usual kind, and its files
hold exactly the tensors that follow from them, in their shapes. Whatever is odd in any way is left to transformers,
whose word counts: what is refused stays refused, by it. That the two agree is tested, for every build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.checkpoint.dtypes import FLOATS
from sea_bake.model.usual import flag, none_or, one_of, positive, real, rope, share, text, token, tokens, whole

Shape = tuple[int, ...]
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Build:
    """How the layers of one model type are built.

    Attributes:
        name: what its classes are called: "Llama" for LlamaForCausalLM.
        norms: tensors inside a layer that are [hidden_size].
        head_norms: those of queries and keys, [head_dim].
        biased: linears that have a bias whatever the configuration says.
        grants: key of the configuration -> linears that it gives a bias.
        keys: further keys of its configuration -> whether a value is of the usual kind.
        head_dim: "derived" from the width; "given" or derived; "needed" in the configuration.
        counts_keys: ``num_key_value_heads`` has to be given; else it is the number of heads where it is not.
        wide_norms: norms of queries and keys go over all heads at once.
        tokenizer: the tokenizer's class, where transformers distrusts what a tokenizer_config.json says.
    """

    name: str
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    head_norms: tuple[str, ...] = ()
    biased: tuple[str, ...] = ()
    grants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keys: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    head_dim: str = "derived"
    counts_keys: bool = True
    wide_norms: bool = False
    tokenizer: str | None = None

    @property
    def classes(self) -> dict[str, str]:
        """Auto class -> class name."""
        ends = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
        return {auto: self.name + end for auto, end in ends.items()}


KEYS: dict[str, Callable[[Any], bool]] = {
    "vocab_size": whole,
    "hidden_size": whole,
    "intermediate_size": whole,
    "num_hidden_layers": whole,
    "num_attention_heads": whole,
    "num_key_value_heads": none_or(whole),
    "max_position_embeddings": whole,
    "hidden_act": one_of("silu"),
    "rms_norm_eps": real,
    "initializer_range": lambda value: real(value) and share(value),
    "attention_dropout": share,
    "rope_theta": positive,
    "rope_scaling": rope,
    "rope_parameters": rope,
    "use_cache": flag,
    "tie_word_embeddings": flag,
    "bos_token_id": none_or(token),
    "eos_token_id": none_or(tokens),
    "pad_token_id": none_or(token),
    "model_type": text,
    "architectures": lambda value: isinstance(value, list),
    "transformers_version": text,
    "dtype": none_or(one_of("float32", "bfloat16", "float16")),
    "torch_dtype": none_or(one_of("float32", "bfloat16", "float16")),
    "_name_or_path": text,
    "_model_name_or_path": text,
    "unk_token_id": none_or(tokens),
}
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_ATTENTION = {"attention_bias": _LINEARS}
_BOTH = {**_ATTENTION, "mlp_bias": _MLP}
_GIVEN = {"attention_bias": flag, "mlp_bias": flag}
_WINDOW = {"sliding_window": none_or(whole)}
_WINDOWS: dict[str, Callable[[Any], bool]] = {
    **_WINDOW,
    "use_sliding_window": flag,
    "max_window_layers": whole,
    "layer_types": lambda value: isinstance(value, list) and all(one == "full_attention" for one in value),
}

BUILDS: dict[str, Build] = {
    "llama": Build(
        "Llama",
        grants=_BOTH,
        head_dim="given",
        counts_keys=False,
        keys={**_GIVEN, "head_dim": none_or(whole), "pretraining_tp": whole, "is_llama_config": flag,
              "rope_interleaved": one_of(False), "transformers.js_config": lambda value: isinstance(value, dict)},
    ),
    "mistral": Build("Mistral", head_dim="given", keys={**_WINDOW, "head_dim": none_or(whole)}),
    "qwen2": Build("Qwen2", biased=_LINEARS[:3], keys={**_WINDOWS, "use_mrope": one_of(False)},
                   tokenizer="Qwen2Tokenizer"),
    "qwen3": Build("Qwen3", head_norms=_QK_NORMS, grants=_ATTENTION, head_dim="needed",
                   keys={**_WINDOWS, "attention_bias": flag, "head_dim": whole}),
    "granite": Build(
        "Granite",
        grants=_BOTH,
        counts_keys=False,
        keys={**_GIVEN, **{f"{name}_multiplier": positive for name in ("embedding", "residual", "attention")},
              "logits_scaling": positive},
    ),
    "olmo2": Build(
        "Olmo2",
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        head_norms=_QK_NORMS,
        grants=_ATTENTION,
        keys={"attention_bias": flag},
        counts_keys=False,
        wide_norms=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Plain:
    """The numbers of a plain build, under the names that transformers gives them.

    Attributes:
        build: its row.
        granted: keys of its configuration that give it biases.
        window: how far its layers look back, where that is less than its whole context.
    """

    build: Build
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    granted: tuple[str, ...] = ()
    window: int | None = None

    @property
    def guard(self) -> dict[str, int]:
        """As ``insert`` puts it into the config.json."""
        return {"num_attention_heads": self.num_attention_heads}

    def takes_tokenizer(self, name: str) -> bool:
        """Whether transformers takes a tokenizer's class by the name in its configuration."""
        return bool(name) and self.build.tokenizer in (None, name.removesuffix("Fast"))

    def layer(self, layer: int) -> dict[str, Shape]:
        """Name on disk -> shape, of a decoder layer's tensors."""
        build, linears = self.build, self._linears()
        found = {f"{name}.weight": shape for name, shape in linears.items()}
        biased = {*build.biased, *(name for key in self.granted for name in build.grants[key])}
        found |= {f"{name}.bias": linears[name][:1] for name in biased}
        found |= {f"{name}.weight": (self.hidden_size,) for name in build.norms}
        found |= {f"{name}.weight": shape for name, shape in self._head_norms().items()}
        return {f"model.layers.{layer}.{name}": shape for name, shape in found.items()}

    def biases(self, key: str) -> dict[str, Shape]:
        """Name on disk -> shape, of the biases that a key of the configuration would grant."""
        if key in self.granted or key not in self.build.grants:
            return {}
        linears = self._linears()
        names = self.build.grants[key]
        layers = range(self.num_hidden_layers)
        return {f"model.layers.{layer}.{name}.bias": linears[name][:1] for layer in layers for name in names}

    def tensors(self) -> dict[str, Shape]:
        """Name on disk -> shape, of all but an output head, which may be the embeddings once more."""
        found = {_EMBEDDINGS: (self.vocab_size, self.hidden_size), "model.norm.weight": (self.hidden_size,)}
        for layer in range(self.num_hidden_layers):
            found |= self.layer(layer)
        return found

    def _linears(self) -> dict[str, Shape]:
        d, ff, heads, own = self.hidden_size, self.intermediate_size, self.num_attention_heads, self.head_dim
        keys = (self.num_key_value_heads * own, d)
        attention = ((heads * own, d), keys, keys, (d, heads * own))
        return dict(zip((*_LINEARS, *_MLP), (*attention, (ff, d), (ff, d), (d, ff))))

    def _head_norms(self) -> dict[str, Shape]:
        if not self.build.wide_norms:
            return {name: (self.head_dim,) for name in self.build.head_norms}
        sizes = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim)
        return {name: (size,) for name, size in zip(self.build.head_norms, sizes)}


def plain(checkpoint: Checkpoint) -> Plain | None:
    """A checkpoint's build; None where transformers has to be asked."""
    config = checkpoint.config
    build = BUILDS.get(str(config.get("model_type")))
    if build is None or type(checkpoint) is not Checkpoint or checkpoint.left_over:
        return None
    found = _numbers(build, config)
    if found is None or not _holds(checkpoint, found, tied=config.get("tie_word_embeddings", False)):
        return None
    return found


def _numbers(build: Build, config: Mapping[str, Any]) -> Plain | None:
    usual = {**KEYS, **build.keys}
    if not all(key in usual and usual[key](value) for key, value in config.items()):
        return None
    named = [build.classes["AutoModelForCausalLM"]]
    if not all(key in config for key in _NEEDED) or config.get("architectures") != named:
        return None
    d, heads = config["hidden_size"], config["num_attention_heads"]
    keys = config.get("num_key_value_heads")
    if keys is None and not build.counts_keys:
        keys = heads
    own = None if build.head_dim == "derived" else config.get("head_dim")
    if own is None and build.head_dim != "needed":
        own = d // heads
    if d % heads or own is None or keys is None or heads % keys or own % 2:
        return None
    if len(config.get("layer_types", ())) not in (0, config["num_hidden_layers"]):
        return None
    pad = config.get("pad_token_id")
    if pad is not None and pad >= config["vocab_size"]:
        return None
    window, context = config.get("sliding_window"), config.get("max_position_embeddings")
    if "sliding_window" in build.keys and (context is None or "sliding_window" not in config):
        return None  # defaults that differ
    if config.get("use_sliding_window"):
        return None
    if "use_sliding_window" in build.keys or window is None or window >= context:
        window = None
    numbers = {key: config[key] for key in ("model_type", *_NEEDED)}
    granted = tuple(key for key in build.grants if config.get(key))
    return Plain(build, num_key_value_heads=keys, head_dim=own, granted=granted, window=window, **numbers)


def _holds(checkpoint: Checkpoint, found: Plain, *, tied: bool) -> bool:
    """Whether the files hold its tensors, in plain floats, and nothing else."""
    if found.num_hidden_layers > len(checkpoint.weight_map):
        return False
    expected = found.tensors()
    names = set(checkpoint.weight_map)
    if not tied or _HEAD in names:
        expected[_HEAD] = expected[_EMBEDDINGS]
    if names != set(expected):
        return False
    there = {name: checkpoint.tensor(name) for name in names}
    return all(one is not None and one.shape == expected[name] and one.form in FLOATS for name, one in there.items())
