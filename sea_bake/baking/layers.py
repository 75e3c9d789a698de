"""The decoder layers of a checkpoint, from names alone: every one is there, and lacks nothing that its like has."""

from __future__ import annotations

from typing import Any

from sea_bake.errors import CheckpointError
from sea_bake.model.checkpoint import Checkpoint


def parts_of(base: Checkpoint, stem: str) -> dict[int, set[str]]:
    """Layer -> names of its tensors, inside the layer."""
    found: dict[int, set[str]] = {}
    for name in base.weight_map:
        number, _, part = name.removeprefix(f"{stem}.").partition(".")
        if name.startswith(f"{stem}.") and number.isdigit():
            found.setdefault(int(number), set()).add(part)
    return found


def check_layers(base: Checkpoint, stem: str, text: Any) -> None:
    """Every layer is there, and none lacks a tensor that all others of its kind have. Raises CheckpointError."""
    count = text.num_hidden_layers
    if not 0 < count <= len(base.weight_map):  # before a row is made for each of 10^9 layers
        raise CheckpointError(
            f"{base.folder} holds {len(base.weight_map)} tensors, and config.json asks for {count} layers: it belongs "
            "to another model"
        )
    there = parts_of(base, stem)
    parts = {layer: there.get(layer, set()) for layer in range(count)}
    lost = _first_lost(parts, {layer: any(".experts." in part for part in own) for layer, own in parts.items()})
    if lost is not None and parts[lost[0]]:
        lost = _first_lost(parts, _kinds(text, parts))
    if lost is not None:
        raise CheckpointError(
            f"{base.folder} lacks the tensor {stem}.{lost[0]}.{lost[1]}: the checkpoint is incomplete, or shares this "
            "tensor between layers, where an edit of one would change the others"
        )


def _first_lost(parts: dict[int, set[str]], kinds: dict[int, Any]) -> tuple[int, str] | None:
    """The first layer that lacks what all others of its kind have, and the first such part."""
    for layer, own in parts.items():
        others = [p for i, p in parts.items() if i != layer and kinds[i] == kinds[layer]]
        absent = set.intersection(*others) - own if others else set()
        if absent or not own:
            return layer, min(absent, default="")
    return None


def _kinds(text: Any, parts: dict[int, set[str]]) -> dict[int, Any]:
    """Layer -> its kind as transformers builds it; where it cannot, all are of one."""
    from sea_bake.model.skeleton import build_of, skeleton, stack_of

    try:
        stack = None if text.is_encoder_decoder else stack_of(skeleton(text), len(parts))
    except Exception:  # said better where it is built in earnest
        stack = None
    return dict.fromkeys(parts) if stack is None else {i: build_of(layer) for i, layer in enumerate(stack[1])}
