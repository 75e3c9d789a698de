"""Whether a base is a Llama by another name, as far as its configuration shows; ``as_llama`` measures the rest."""

from __future__ import annotations

from typing import Any

from sea_bake.baking.exactness import AS_LLAMA
from sea_bake.baking.open_base import OpenBase

_ARCHITECTURES = ("Qwen2ForCausalLM", "MistralForCausalLM")


def why_not(base: OpenBase) -> str:
    """Why its configuration is not that of a Llama by another name; "" where it is."""
    known = base.row.model_type in AS_LLAMA and base.architecture in _ARCHITECTURES
    if not known or (base.plain is None and base.config is not base.text):
        return f"a {base.architecture} is no Llama by another name ({', '.join(AS_LLAMA)} are)"
    window = _window(base.text) if base.plain is None else base.plain.window
    if window is not None:
        return f"its attention looks back {window} tokens (sliding_window), and a Llama's over all of them"
    if base.plain is None and getattr(base.text, "hidden_act", None) != "silu":  # a plain build's is
        return f"its activation is {base.text.hidden_act}, and readers of a Llama compute silu"
    return ""


def _window(text: Any) -> int | None:
    """How far its layers look back, where that is less than its whole context."""
    kinds = getattr(text, "layer_types", None)
    windowed = "sliding_attention" in kinds if kinds else getattr(text, "sliding_window", None) is not None
    window = getattr(text, "sliding_window", None)
    if not windowed or not isinstance(window, int) or window >= text.max_position_embeddings:
        return None
    return window
