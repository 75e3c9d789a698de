"""Where the parts of a decoder live: one row per model family.

A family that has no row is discovered and proved (``discovery``), or refused. To add one, append a row to ``FAMILIES``
and a tiny config to ``tests/families.py``; the equality tests then run on it through every door. Step by step: "Add a
family" in ``sea_bake/README.md``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sea_bake.errors import FamilyError, SettingError
from sea_bake.model.site import Place, Site

SEA_PREFIX = "sea_"  # model_type of an inserted artefact: "sea_llama"


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        model_type: ``config.model_type`` (of the text decoder, in a model that wraps one).
        stem: prefix of the backbone in the tensor names of a causal LM's checkpoint.
        layers: path of the stack of decoder layers inside the backbone.
        attn, mlp: names of the two modules inside a decoder layer.
        attn_writer, mlp_writer: the linear, inside a decoder layer, whose output is the module's output. In a layer
            with experts the output is the weighted sum of the ``experts``' outputs, plus that of the ``shared`` expert.
        experts: on-disk name of one expert's writer, with {} for its number.
        fused: name of all experts' writers in one tensor [experts, d, ff]: in memory, and on disk where a checkpoint
            was saved so.
        shared: on-disk name of the shared expert's writer.
        input_first: writers whose tensors are [..., ff, d] instead of [..., d, ff] (GPT-2's Conv1D).
        norm_behind: an RMSNorm stands directly behind the ``attn`` and ``mlp`` outputs, before the residual is added.
        attn_kinds, mlp_kinds: (module, writer) in layers of other kinds. A layer has the site where it has one of the
            writers (or the experts), and else it has no such site.
        named: (site, writer) of modules beside those: ("attn:mamba", "mamba.out_proj").
        streams: the residual stream is several ones side by side (Gemma 3n), so ``block`` is no site.
        skipped: name of a module that only layers have by which text passes (Mllama's, that look at images): those
            have no site.
        bias_keys: keys of the configuration that grant biases where they are true. Which ones is asked of
            transformers itself, and those that nobody needs are zero.
        scaled: what attention and MLP give is multiplied by a number before it joins the residual stream.
    """

    model_type: str
    stem: str = "model"
    layers: str = "layers"
    attn: str = "self_attn"
    mlp: str = "mlp"
    attn_writer: str = "self_attn.o_proj"
    mlp_writer: str = "mlp.down_proj"
    experts: str | None = None
    fused: str | None = None
    shared: str | None = None
    input_first: tuple[str, ...] = ()
    norm_behind: bool = False
    attn_kinds: tuple[tuple[str, str], ...] = ()
    mlp_kinds: tuple[tuple[str, str], ...] = ()
    named: tuple[tuple[str, str], ...] = ()
    streams: bool = False
    skipped: str | None = None
    bias_keys: tuple[str, ...] = ()
    scaled: bool = False

    @property
    def sites(self) -> tuple[Site, ...]:
        """All its sites, named ones last."""
        return (*(s for s in Site if not (self.streams and s is Site.BLOCK)), *(Site(name) for name, _ in self.named))

    def places(self, site: Site) -> tuple[Place, ...]:
        """Where a site may lie, by the kind of layer.

        Raises:
            SettingError: a named site that this family does not have.
        """
        if site is Site.BLOCK:
            if self.streams:
                raise SettingError(
                    f"{self.model_type} has no site 'block': between its layers run several residual streams side by "
                    "side, not one. Use mlp or attn (--site mlp)"
                )
            return (Place("", ""),)
        if site is Site.ATTN:
            return tuple(Place(*pair) for pair in ((self.attn, self.attn_writer), *self.attn_kinds))
        if site is Site.MLP:
            return tuple(Place(*pair) for pair in ((self.mlp, self.mlp_writer), *self.mlp_kinds))
        if site is Site.HEADS:
            return tuple(Place(place.writer, place.writer) for place in self.places(Site.ATTN))
        found = dict(self.named).get(site.value)
        if found is None:
            known = ", ".join(s.value for s in self.sites)
            raise SettingError(f"{self.model_type} has no site {site.value!r}: use one of {known}")
        return (Place(site.named or "", found),)

    def place(self, site: Site, parts: Collection[str]) -> Place | None:
        """Where a site lies in the layer that has these parameters (names inside the layer); None if it has none."""
        if site is Site.HEADS:
            attention = self.place(Site.ATTN, parts)
            return attention and Place(attention.writer, attention.writer)
        places = self.places(site)
        if self.skipped and any(part.startswith(f"{self.skipped}.") for part in parts):
            return None
        if site is Site.BLOCK:
            return places[0]
        stacks = [(self.experts or "").partition("{}")[0], self.fused or ""] if site is Site.MLP else []
        for stack in filter(None, stacks):
            if any(part.startswith(stack) for part in parts):
                return next((place for place in places if stack.startswith(f"{place.module}.")), places[0])
        for place in places:
            if any(part == place.writer or part.startswith(f"{place.writer}.") for part in parts):
                return place
        for place in places:  # some parts are called otherwise in memory than on disk
            alike = place.writer.startswith(f"{place.module}.")
            if alike and self.model_type not in FAMILIES:
                continue  # discovered: a kind of layers whose module was not proved does not have the site
            if self._modules().count(place.module) == 1 and any(part.startswith(f"{place.module}.") for part in parts):
                return place
        return None

    def _modules(self) -> list[str]:
        sites = (Site.ATTN, Site.MLP, *(Site(name) for name, _ in self.named))
        return [place.module for site in sites for place in self.places(site)]

    def module(self, site: Site) -> str:
        """Path of the edited module inside a decoder layer, of the first kind that has it; "" is the layer itself."""
        return self.places(site)[0].module

    def layer(self, index: int) -> str:
        """Path of a decoder layer inside the backbone: ``"layers.3"``."""
        return f"{self.layers}.{index}"

    def writer(self, site: Site) -> str:
        """Path of the linear that writes a site's output, in the same; the residual stream has none."""
        assert site is not Site.BLOCK
        return self.places(site)[0].writer


_MOE = "mlp.experts.{}.down_proj.weight"
_FUSED = "mlp.experts.down_proj"
_ATTENTION, _BOTH = ("attention_bias",), ("attention_bias", "mlp_bias")
_LINEAR = (("linear_attn", "linear_attn.out_proj"),)
_MAMBA = ("attn:mamba", "mamba.out_proj")

FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        Family("llama", bias_keys=_BOTH),  # also SmolLM, SmolLM2, TinyLlama, Yi, DeepSeek-LLM, ...
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3", bias_keys=_ATTENTION),
        Family("smollm3", bias_keys=_BOTH),
        Family("gemma2", norm_behind=True, bias_keys=_ATTENTION),
        Family("gemma3_text", norm_behind=True, bias_keys=_ATTENTION),
        Family("phi3"),
        Family("olmo2", norm_behind=True, bias_keys=_ATTENTION),
        Family("granite", bias_keys=_BOTH, scaled=True),
        Family("cohere2", bias_keys=_ATTENTION),
        Family("stablelm"),
        Family("starcoder2", mlp_writer="mlp.c_proj", bias_keys=("use_bias",)),
        Family(
            "gpt2", "transformer", "h", "attn", "mlp", "attn.c_proj", "mlp.c_proj",
            input_first=("attn.c_proj", "mlp.c_proj"),
        ),
        Family("gpt_neox", "gpt_neox", "layers", "attention", "mlp", "attention.dense", "mlp.dense_4h_to_h",
               bias_keys=_ATTENTION),
        Family("opt", "model.decoder", "layers", "self_attn", "fc2", "self_attn.out_proj", "fc2",
               bias_keys=("enable_bias",)),
        Family("falcon", "transformer", "h", "self_attention", "mlp", "self_attention.dense", "mlp.dense_4h_to_h",
               bias_keys=("bias",)),
        Family("mixtral", experts="block_sparse_moe.experts.{}.w2.weight", fused=_FUSED),
        Family("qwen2_moe", experts=_MOE, fused=_FUSED, shared="mlp.shared_expert.down_proj.weight"),
        Family("qwen3_moe", experts=_MOE, fused=_FUSED, bias_keys=_ATTENTION),
        Family("gpt_oss", fused=_FUSED, input_first=(_FUSED,), bias_keys=_ATTENTION),
        # Decoders that stand inside of a model that reads images, and have no head of their own.
        Family("qwen2_vl_text", ""),
        Family("qwen2_5_vl_text", ""),
        Family("qwen3_vl_text", "", bias_keys=_ATTENTION),
        Family("qwen3_vl_moe_text", "", fused=_FUSED, bias_keys=_ATTENTION),
        Family("glm4v_text", "", norm_behind=True),
        Family("glm4v_moe_text", "", experts=_MOE, fused=_FUSED, shared="mlp.shared_experts.down_proj.weight"),
        # Layers of several kinds.
        Family("qwen3_5_text", attn_kinds=_LINEAR, bias_keys=_ATTENTION),
        Family("qwen3_5_moe_text", attn_kinds=_LINEAR, experts=_MOE, fused=_FUSED,
               shared="mlp.shared_expert.down_proj.weight", bias_keys=_ATTENTION),
        Family("qwen3_next", attn_kinds=_LINEAR, experts=_MOE, fused=_FUSED,
               shared="mlp.shared_expert.down_proj.weight", bias_keys=_ATTENTION),
        Family("gemma3n_text", norm_behind=True, streams=True, bias_keys=_ATTENTION),
        Family("gemma4_text", norm_behind=True, bias_keys=_ATTENTION),
        Family("llama4_text", mlp="feed_forward", mlp_writer="feed_forward.down_proj",
               fused="feed_forward.experts.down_proj", shared="feed_forward.shared_expert.down_proj.weight",
               input_first=("feed_forward.experts.down_proj",), bias_keys=_ATTENTION),
        Family("lfm2", mlp="feed_forward", attn_writer="self_attn.out_proj", mlp_writer="feed_forward.w2",
               named=(("attn:conv", "conv.out_proj"),)),
        Family("lfm2_moe", mlp="feed_forward", attn_writer="self_attn.out_proj", mlp_writer="feed_forward.w2",
               experts="feed_forward.experts.{}.w2.weight", fused="feed_forward.experts.down_proj",
               named=(("attn:conv", "conv.out_proj"),)),
        Family("granitemoehybrid", mlp="block_sparse_moe",
               experts="block_sparse_moe.output_linear.weight", fused="block_sparse_moe.experts.down_proj",
               mlp_kinds=(("shared_mlp", "shared_mlp.output_linear"),),
               named=(_MAMBA, ("mlp:shared_mlp", "shared_mlp.output_linear")), bias_keys=_ATTENTION, scaled=True),
        Family("jamba", mlp="feed_forward", mlp_writer="feed_forward.down_proj",
               experts="feed_forward.experts.{}.down_proj.weight", fused="feed_forward.experts.down_proj",
               named=(_MAMBA,)),
        Family("bamba", mlp="feed_forward", mlp_writer="feed_forward.down_proj", named=(_MAMBA,), bias_keys=_BOTH),
        Family("nemotron_h", "backbone", "layers", "mixer", "mixer", "mixer.o_proj", "mixer.down_proj",
               experts="mixer.experts.{}.down_proj.weight", fused="mixer.experts.down_proj",
               shared="mixer.shared_experts.down_proj.weight", named=(("attn:mixer", "mixer.out_proj"),),
               bias_keys=("mlp_bias", "use_bias")),
        Family("ernie4_5_moe", experts=_MOE, fused=_FUSED, shared="mlp.shared_experts.down_proj.weight"),
        *(Family(name, experts=_MOE, fused=_FUSED, shared="mlp.shared_experts.down_proj.weight", bias_keys=_ATTENTION)
          for name in ("deepseek_v3", "deepseek_v32")),
        Family("afmoe", experts=_MOE, fused=_FUSED, shared="mlp.shared_experts.down_proj.weight", norm_behind=True,
               bias_keys=_ATTENTION),
        Family("aria_text", experts="mlp.experts.fc2.weight", fused=_FUSED,
               shared="mlp.shared_experts.down_proj.weight", input_first=("mlp.experts.fc2",), bias_keys=_BOTH),
        Family("cwm", bias_keys=("mlp_bias",)),
        Family("minimax", attn_kinds=(("self_attn", "self_attn.out_proj"),),
               experts="block_sparse_moe.experts.{}.w2.weight", fused=_FUSED),
        Family("olmo_hybrid", attn="linear_attn", attn_writer="linear_attn.o_proj",
               attn_kinds=(("self_attn", "self_attn.o_proj"),), bias_keys=_ATTENTION),
        Family("mllama_text_model", "", skipped="cross_attn"),
        # The residual is added inside of both modules, behind their last linears: these are what is edited.
        Family("bloom", "transformer", "h", "self_attention.dense", "mlp.dense_4h_to_h", "self_attention.dense",
               "mlp.dense_4h_to_h"),
        # Decoders beside an encoder.
        *(Family(name, "decoder", "block", "layer.0.SelfAttention", "layer.2.DenseReluDense",
                 "layer.0.SelfAttention.o", "layer.2.DenseReluDense.wo") for name in ("t5", "mt5", "umt5")),
        *(Family(name, "model.decoder", "layers", "self_attn", "fc2", "self_attn.out_proj", "fc2")
          for name in ("bart", "mbart", "pegasus", "marian", "m2m_100")),
        Family("t5_gemma_module", "", norm_behind=True),
    )
}  # fmt: skip


def family(model_type: str) -> Family:
    """The row of a model family.

    Raises:
        FamilyError: there is no row, or the model is already an edited one.
    """
    if model_type.startswith(SEA_PREFIX):
        raise FamilyError(
            f"this model (model_type '{model_type}') is already edited by sea_bake. Start from its base model: several "
            "edits go into one artefact (sea-bake bake BASE FIRST SECOND -o ...)."
        )
    if model_type not in FAMILIES:
        raise FamilyError(
            f"unknown model family '{model_type}'. Known: {', '.join(sorted(FAMILIES))}. "
            "A decoder with the same parts needs one row in sea_bake/model/anatomy.py and a tiny config in "
            "tests/families.py ('Add a family' in sea_bake/README.md)."
        )
    return FAMILIES[model_type]
