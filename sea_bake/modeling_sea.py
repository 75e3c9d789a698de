# Copyright 2026 The sea_bake authors. Licensed under the Apache License, Version 2.0.
"""The one file that travels with a checkpoint baked by sea_bake: torch and public transformers names, nothing else.

It reads no files, opens no sockets and runs no code but what stands here. It does two things:

1. ``SEALayer``: Spectral Editing of Activations (arXiv 2405.09719), or any other affine map, on one activation vector
   per token, in thin form.
2. ``SEA<Name>`` classes, made on demand from the transformers class ``<Name>`` (``SEALlamaForCausalLM`` from
   ``LlamaForCausalLM``): the same model, in which the modules listed in ``config.sea`` end in ``SEALayer``s.

``config.sea`` (a plain dictionary in config.json) holds::

    {"edits": [                              # in the order in which they act
       {"module": "mlp",                     # edited module inside a decoder layer; "" is the decoder layer itself
        "merge": "l2", "feature": "identity", "parts": "both", "alpha": 1.0,
        "ranks": {"10": [3, 2], "11": [4, 1]}},   # decoder layer -> [k+, k-]
       {"module": "self_attn.o_proj", "input": true, "width": 576,  # what the module is given, not what it gives
        ..., "extra": ["constant"], "ranks": {"10": [0, 0]}}],      # what an affine map has besides A and B
     "guard": {"num_attention_heads": 9}}    # true values of keys that config.json holds a warning in instead, so that
                                             # LlamaForCausalLM, which ignores ``sea``, fails and never loads the base
"""

import torch
import transformers
from torch import nn
from torch.nn import functional as F

GUARD = "{} (edited by sea_bake: load it with the Auto classes and trust_remote_code=True)"
CONFIGURED = "_with_"  # SEALlamaForCausalLM_with_ExaoneConfig: one family's class, configured by another's
EPS = 1e-4  # how near to the ends of its range an inverse feature function is evaluated (the released code's value)


def _squared_exponential_inverse(y, h):
    # exp(-h²/2) forgets the sign of h: restore |h| from y and take the sign of the input.
    return torch.sqrt(-2.0 * torch.log(y.clamp(EPS, 1.0))) * torch.sign(h)


FEATURES = {  # name -> (φ(h), φ⁻¹(y, h)); "identity" is linear SEA
    "identity": (lambda h: h, lambda y, h: y),
    "squared-exponential": (lambda h: torch.exp(-0.5 * h * h), _squared_exponential_inverse),
    "tanh": (torch.tanh, lambda y, h: torch.atanh(y.clamp(-1.0 + EPS, 1.0 - EPS))),
    "elu": (F.elu, lambda y, h: torch.where(y >= 0, y, torch.log1p(y.clamp(-1.0 + EPS, 0.0)))),
    "asinh": (torch.asinh, lambda y, h: torch.sinh(y)),
    # With a gradient at 0 that is finite, if steep.
    "signed-square-root": (lambda h: h / h.abs().clamp_min(1e-30).sqrt(), lambda y, h: y * torch.abs(y)),
}
MERGES = ("l2", "sum", "average")
PARTS = ("both", "positive", "negative")
EXTRA = ("scale", "constant", "gate")


class SEALayer(nn.Module):
    """y = P+ h + P- h with P+ = U+ U+ᵀ and P- = I - U- U-ᵀ (paper, section 3), never forming a d x d matrix.

    A: [k, d] holds the rows of U+ᵀ, then those of U-ᵀ; B: [d, k] is [U+, -U-]. So P+ h + P- h = h + B A h.
    Φ-SEA projects φ(h) instead and maps each projection back through φ⁻¹ before they are added. Any other affine map
    has its own A and B, or none: y = s ⊙ h + B A h + b; with a gate, y = s ⊙ h + B relu(A h + c) + b.

    Args:
        dim: d, the width of the edited activation.
        ranks: (k+, k-), the number of directions kept and dropped; of an affine map, (k, 0).
        merge: "l2" (y is given the norm of h, per token), "sum" (y), "average" (y / 2).
        feature: a key of FEATURES.
        parts: "both", or only one projection: "positive" (y = P+ h), "negative" (y = P- h).
        alpha: strength; the layer returns h + alpha (y - h).
        extra: names of EXTRA: "scale" (s, [d]), "constant" (b, [d]), "gate" (c, [k]).
    """

    def __init__(self, dim, ranks, merge="l2", feature="identity", parts="both", alpha=1.0, extra=()):
        super().__init__()
        if merge not in MERGES or feature not in FEATURES or parts not in PARTS or not {*extra} <= {*EXTRA}:
            raise ValueError(f"unknown SEA setting: {merge=}, {feature=}, {parts=}, {extra=}")
        self.merge, self.feature, self.parts, self.alpha = merge, feature, parts, float(alpha)
        self.positive_rank, self.linear = int(ranks[0]), feature == "identity" and parts == "both"
        k = int(ranks[0]) + int(ranks[1])
        # Raw parameters, not nn.Linear: quantisers leave them alone, and no parallel plan splits them.
        for name, shape in {"A": (k, dim), "B": (dim, k), "scale": (dim,), "constant": (dim,), "gate": (k,)}.items():
            present = name in extra if name in EXTRA else k or not extra
            self.register_parameter(name, nn.Parameter(torch.full(shape, float("nan"))) if present else None)

    def extra_repr(self):
        shapes = ", ".join(f"{name}={[*tensor.shape]}" for name, tensor in self.named_parameters())
        return f"{shapes}, merge={self.merge}, feature={self.feature}, parts={self.parts}, alpha={self.alpha}"

    def affine(self, x, share=1.0):
        """x: [..., d] -> x + share (s ⊙ x + B A x + b - x), [..., d]; in few kernels, for which a token waits."""
        parts, y = {name: tensor.to(x.dtype) for name, tensor in self.named_parameters()}, x
        if "scale" in parts:
            y = torch.addcmul((1.0 - share) * x, x, parts["scale"], value=share)
        if "A" in parts:
            read = F.linear(x, parts["A"], parts.get("gate"))
            read = F.relu(read) if "gate" in parts else read
            if read.dtype != x.dtype or torch.compiler.is_compiling():  # under autocast, or in an export
                y = torch.add(y, F.linear(read, parts["B"]), alpha=share)
            else:
                rows, B = y.reshape(-1, y.shape[-1]), parts["B"]
                y = torch.addmm(rows, read.reshape(len(rows), B.shape[1]), B.t(), alpha=share).view(x.shape)
        return torch.add(y, parts["constant"], alpha=share) if "constant" in parts else y

    def project(self, x):
        """x: [..., d] -> the unmerged sum of the projections in use, [..., d]."""
        if self.linear:
            return self.affine(x)
        A, B, p = self.A.to(x.dtype), self.B.to(x.dtype), self.positive_rank
        phi, inverse = FEATURES[self.feature]
        f, y = phi(x), torch.zeros_like(x)
        if self.parts != "negative":
            y = y + inverse(F.linear(F.linear(f, A[:p]), B[:, :p]).to(x.dtype), x)  # autocast makes it half
        if self.parts != "positive":
            y = y + inverse(f + F.linear(F.linear(f, A[p:]), B[:, p:]), x)
        return y

    def forward(self, h):
        """h: [..., d] of any float dtype -> the same shape and dtype; between, float32, or its own dtype if finer."""
        # Also where A was cast down with the model: in half precision the clamps of φ⁻¹ round to 1, so to infinity.
        x = h.to(torch.promote_types(next(self.parameters()).dtype, torch.float32))
        if self.linear and self.merge == "sum":
            return self.affine(x, self.alpha).to(h.dtype)
        y = self.project(x).to(x.dtype)
        if self.merge == "l2":
            norm_x, norm_y = (torch.linalg.vector_norm(z, dim=-1, keepdim=True) for z in (x, y))
            y = y * (norm_x / norm_y.clamp_min(1e-12))
        elif self.merge == "average" and self.parts == "both":
            y = y * 0.5
        if self.alpha != 1.0:
            y = torch.lerp(x, y, self.alpha)
        return y.to(h.dtype)


class _Edited:
    """Mixin for a decoder layer, an MLP or an attention module: its own forward, then its ``sea``."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.sea(output[0]), *output[1:])
        return self.sea(output)


def put(config, guard, form=lambda value: value):
    """A configuration's dictionary with the guard's values in it, also inside of its parts, each through ``form``."""
    changed = {k: put(config.get(k) or {}, v, form) if isinstance(v, dict) else form(v) for k, v in guard.items()}
    return {**config, **changed}


class _EditedConfig:
    """Mixin for a configuration: puts back what the guard stands in front of."""

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        guard = (config_dict.get("sea") or {}).get("guard") or {}
        return super().from_dict(put(config_dict, guard), **kwargs)

    def to_json_file(self, *args, **kwargs):
        """``save_pretrained``: the guard stands in the file again, and only there."""
        self._guard(GUARD.format)
        try:
            super().to_json_file(*args, **kwargs)
        finally:
            self._guard(lambda value: value)

    def _guard(self, form):
        for key, value in ((self.sea or {}).get("guard") or {}).items():
            part, values = (getattr(self, key), value) if isinstance(value, dict) else (self, {key: value})
            vars(part).update({k: form(v) for k, v in values.items()})  # setattr would insist on a number


class _EditedModel:
    """Mixin for a PreTrainedModel: attaches the SEALayers that ``config.sea`` asks for."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        decoder = self.get_decoder()
        if isinstance(getattr(decoder, "lm_head", None), nn.Module):  # Llama 4's is inside of the one with a head
            decoder = decoder.model
        if not any(isinstance(m, SEALayer) for m in decoder.modules()):
            _attach(decoder, config)
            if decoder is not self:
                decoder.__class__ = _sea_class(type(decoder))
        names = [*(self._no_split_modules or []), *("SEA" + n for n in self._no_split_modules or [])]
        self._no_split_modules = type(self._no_split_modules or [])(names)
        self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), "sea", "sea_in"}
        self.post_init()

    @classmethod
    def is_custom_code(cls):
        """Its tensors are set up as transformers does its own: of custom code, buffers that no checkpoint holds stay
        unset, where the module that fills them has no tensors itself (Falcon-H1).
        """
        return False

    def set_submodule(self, target, module, *args, **kwargs):
        """Quantisers put a linear of their own in the place of one: its edit moves along."""
        old = self.get_submodule(target)
        super().set_submodule(target, module, *args, **kwargs)
        for name in ("sea", "sea_in"):
            if hasattr(old, name) and not hasattr(module, name):
                _edit(module, getattr(old, name), name)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, SEALayer):
            # Reached only for tensors that the checkpoint lacks: a lost edit must be seen, not look like the base.
            for tensor in module.parameters():
                nn.init.constant_(tensor, float("nan"))
        else:
            super()._init_weights(module)


def _attach(decoder, config):
    text = config.get_text_config(decoder=True)
    # T5's decoder has a configuration of its own; BART's has one with both depths, and the other is the encoder's.
    depth = getattr(decoder.config, "decoder_layers", None) or decoder.config.num_hidden_layers
    depths = {depth, text.num_hidden_layers}
    stacks = [m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m) in depths]
    if len(stacks) != 1:
        raise ValueError(f"{type(decoder).__name__} has {len(stacks)} stacks of {depths} layers, not 1")
    for edit in config.sea["edits"]:
        settings = {key: edit[key] for key in ("merge", "feature", "parts", "alpha", "extra") if key in edit}
        name = "sea_in" if edit.get("input") else "sea"
        for layer, ranks in edit["ranks"].items():
            module = stacks[0][int(layer)]
            if edit["module"]:
                module = module.get_submodule(edit["module"])
            if not hasattr(module, name):
                _edit(module, nn.Sequential(), name)
            getattr(module, name).append(SEALayer(edit.get("width", text.hidden_size), ranks, **settings))


def _edit(module, sea, name):
    setattr(module, name, sea)
    if name == "sea_in":
        module.register_forward_pre_hook(_edited_input)
    elif isinstance(module, nn.Sequential):
        return  # it calls its children in their order, and this one is the last now
    elif "weight" in module._parameters:  # a linear (OPT's fc2) keeps its type, or quantisers would not know it
        module.register_forward_hook(_edited_output)
    else:  # a subclass, not a wrapper: every parameter keeps its name
        module.__class__ = _sea_class(type(module))


def _edited_input(module, args):
    return (module.sea_in(args[0]), *args[1:])


def _edited_output(module, args, output):
    return module.sea(output)


def _sea_class(base, config=None):
    """The SEA subclass of a transformers class, in this module's globals (for pickle); also for another's config."""
    name = "SEA" + base.__name__ + (CONFIGURED + config.__name__ if config else "")
    if name in globals():
        return globals()[name]
    body = {"__module__": __name__, "__qualname__": name, "__doc__": f"{base.__name__} with SEA edits."}
    if issubclass(base, transformers.PreTrainedConfig):
        mixins = (_EditedConfig,)
        body |= {"model_type": "sea_" + base.model_type}
    elif issubclass(base, transformers.PreTrainedModel):
        mixins = (_EditedModel,)
        body |= {"config_class": _sea_class(config or base.config_class)}
        _register_conversion(base, name, config or base.config_class)
    else:
        mixins = (_Edited,)
    bases = (*mixins, base)
    if issubclass(base, transformers.GenerationMixin):
        bases += (transformers.GenerationMixin,)  # named itself, or the Auto classes make another class that has it
    globals()[name] = type(name, bases, body)
    _register_outputs(globals()[name])
    return globals()[name]


def _register_conversion(base, name, config):
    """transformers 5 skips its own checkpoint conversions (MoE experts, GPT-NeoX head) of custom code: ask for them."""
    try:
        from transformers import conversion_mapping as known
    except ImportError:  # transformers 4 has none
        return
    model_type = config.model_type
    for source, target in ((model_type, "sea_" + model_type), (base.__name__, name)):
        mapping = known.get_checkpoint_conversion_mapping(source)
        if mapping is not None:
            known.register_checkpoint_conversion_mapping(target, mapping, overwrite=True)


def _register_outputs(cls):
    """What ``output_hidden_states`` records is looked up by class; only __init__ enters a class there."""
    registry = getattr(transformers.modeling_utils, "_CAN_RECORD_REGISTRY", None)
    if registry is not None and issubclass(cls, transformers.PreTrainedModel):
        dict.__setitem__(registry, str(cls), getattr(cls, "_can_record_outputs", None))


def __getattr__(name):
    """``modeling_sea.SEALlamaForCausalLM`` and its like, from the transformers class of the same name without SEA."""
    base, _, config = name[3:].partition(CONFIGURED) if name.startswith("SEA") else ("", "", "")
    base, config = (getattr(transformers, part, None) if part else None for part in (base, config))
    if isinstance(base, type) and issubclass(base, (transformers.PreTrainedConfig, transformers.PreTrainedModel)):
        return _sea_class(base, config)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
