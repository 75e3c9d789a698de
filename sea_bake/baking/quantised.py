"""Quantised checkpoints: known by their configuration or by their tensors alone; and how to get plain weights."""

from __future__ import annotations

from sea_bake.model.checkpoint import Checkpoint
from sea_bake.model.checkpoint.dtypes import FLOATS
from sea_bake.model.checkpoint.leftovers import MARKS, claimed

# What transformers undoes, run with 5.23. Without save_original_format=False, save_pretrained turns the weights back:
# it raises for bitsandbytes, and writes wrong numbers for FP8.
_SAVE = ".save_pretrained(OUT, save_original_format=False)"
_UNDO = {
    "bitsandbytes": f"AutoModelForCausalLM.from_pretrained(SOURCE).dequantize(){_SAVE}",
    "fp8": "AutoModelForCausalLM.from_pretrained(SOURCE, quantization_config=FineGrainedFP8Config(dequantize=True))"
    + _SAVE,
    "mxfp4": f"AutoModelForCausalLM.from_pretrained(SOURCE, quantization_config=Mxfp4Config(dequantize=True)){_SAVE}",
}


def quantisation(checkpoint: Checkpoint, stem: str) -> str | None:
    """How a checkpoint's layers are quantised: "bitsandbytes", "gptq", "awq", "fp8", ...; None when they are not."""
    method = claimed(checkpoint.config)
    if method is not None:
        return method
    kinds = checkpoint.forms()
    marked: tuple[str, ...] = tuple(MARKS) if kinds and kinds <= {*FLOATS} else ("",)
    for name in sorted(n for n in checkpoint.weight_map if n.startswith(f"{stem}.") and n.endswith(marked)):
        mark = next((method for end, method in MARKS.items() if name.endswith(end)), None)
        tensor = checkpoint.tensor(name)
        if mark is None and name.endswith(".weight") and tensor is not None and tensor.form not in FLOATS:
            mark = "fp8" if tensor.form.is_floating_point else f"as {tensor.form}"
        if mark is not None:
            return mark
    return None


def ways_out(name: str, method: str, tensor: str) -> str:
    """What to do with a quantised base: for people who asked for a fold or an adapter."""
    undo = _UNDO.get(method)
    again = f" Or get plain weights back from it: {undo}." if undo else ""
    return (
        f"{name} holds quantised weights ({method}; {tensor}), and a fold or an adapter needs plain ones. Make it of "
        "the model that this one was quantised from, and quantise the result; or bake with --how insert, which works "
        f"on top.{again}"
    )
