"""Which modules a site should be, seen by running a model and recording; and an edit of them, dense and in float64.

Nothing of sea_bake is imported here: what it edits is held against what stands here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LENGTH, ENCODED = 6, 5  # tokens that the decoder reads, and the encoder beside it
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def inputs_of(model: Any) -> Iterator[dict[str, Tensor]]:
    """Ways in which a model may be given text, the plainest first."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(7, 100, (2, LENGTH), generator=generator)
    if getattr(model.config, "is_encoder_decoder", False):
        other = torch.randint(7, 100, (2, ENCODED), generator=generator)
        yield {"input_ids": other, "decoder_input_ids": ids}
        sounds = torch.randn(2, getattr(model.config, "num_mel_bins", 80), 64, generator=generator)
        yield {"input_features": sounds, "decoder_input_ids": ids}
        return
    yield {"input_ids": ids}
    yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    vision = getattr(model.config, "vision_config", None) or getattr(model.config, "encoder", None)
    size = getattr(vision, "image_size", 32)
    size = size if isinstance(size, int) else 32
    pixels = torch.randn(2, 3, size, size, generator=generator)
    yield {"input_ids": ids, "pixel_values": pixels}
    yield {"decoder_input_ids": ids, "pixel_values": pixels}
    yield {"input_ids": ids, "decoder_input_ids": ids}


@torch.inference_mode()
def logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Of a pass without cache."""
    try:
        found = model(**inputs, use_cache=False)
    except TypeError:
        found = model(**inputs)
    return next(v for k in ("logits", "prediction_logits") if (v := getattr(found, k, None)) is not None)


def first_of(output: Any) -> Any:
    if isinstance(output, (tuple, list)):
        return output[0] if output else None
    return next(iter(output.values()), None) if isinstance(output, dict) else output


@dataclass
class Seen:
    """What stands in a decoder layer: module paths inside of it, and how its modules behave."""

    path: str
    attn: list[str]
    mlp: list[str]


def recorded(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Module path -> the first outputs of its calls."""
    return _calls(model, model, inputs, lambda args, kwargs, out: _clone(first_of(out)))


def _calls(
    model: Any, part: Any, inputs: Mapping[str, Tensor], take: Callable[[Any, Any, Any], Any]
) -> dict[str, list[Any]]:
    """Module path inside a part of a model -> what is taken of each of its calls, in one pass."""
    calls: dict[str, list[Any]] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, a, k, out, p=path: calls.setdefault(p, []).append(take(a, k, out)), with_kwargs=True
        )
        for path, module in part.named_modules()
        if path
    ]
    try:
        logits(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else None


def layers_of(model: Any, inputs: Mapping[str, Tensor], width: int) -> dict[int, str]:
    """Number -> path of each of the decoder's layers that text runs through: the stack whose members are called in
    turn, and whose outputs know the text that the decoder reads.
    """
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    other = dict(inputs)
    other[name] = inputs[name].flip(-1)
    before, after = recorded(model, inputs), recorded(model, other)
    stacks = []
    for path, stack in model.named_modules():
        count = len(stack) if isinstance(stack, (nn.ModuleList, nn.Sequential)) else 0
        members = {i: f"{path}.{i}" for i in range(count) if f"{path}.{i}" in before}
        streams = all(len(before[m]) == 1 and _is_stream(before[m][0], width, several=True) for m in members.values())
        if len(members) < 2 or not streams:
            continue
        if all(_apart(before[m][0], after[m][0]) for m in members.values()):
            stacks.append((path, members))
    outer = [s for s in stacks if not any(s is not o and s[0].startswith(f"{o[0]}.") for o in stacks)]
    return max((members for _, members in outer), key=lambda m: (len(m), _size(model, m)), default={})


def _size(model: Any, members: Mapping[int, str]) -> int:
    return sum(p.numel() for path in members.values() for p in model.get_submodule(path).parameters())


def _is_stream(value: Any, width: int, *, several: bool = False) -> bool:
    """One vector for each token; or ``several``, side by side (Gemma 3n)."""
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[-1] != width:
        return False
    return value.numel() == 2 * LENGTH * width or (several and value.numel() % (2 * LENGTH * width) == 0)


def _apart(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() > tolerance * a.abs().max().clamp_min(1e-9)).any())


def look(model: Any, inputs: Mapping[str, Tensor], layer: str, width: int) -> Seen:
    """The modules of a layer, by what changes what in a pass of the whole model.

    A module's own input is replaced at the first token alone: it mixes tokens where it says something else of others.
    """
    block = model.get_submodule(layer)
    calls = _calls(model, block, inputs, lambda a, k, out: (_deep(a), _deep(k), _clone(first_of(out))))
    kinds: dict[str, str] = {}
    added: dict[str, str] = {}  # what a module adds to what it is given: BLOOM's last linear of an attention
    for path, found in calls.items():
        module = block.get_submodule(path)
        if len(found) != 1 or not _is_stream(found[0][2], width) or not any(p.dim() > 1 for p in module.parameters()):
            continue
        try:
            kind = _kind(module, *found[0])
        except Exception:  # it says something else when it is called again, or nothing
            kind = "mixes" if _mixes_in_place(model, inputs, module) else ""
        inner = _adds_up(path, calls)
        if inner is not None:
            added[inner] = kind
        kinds[path] = kind
    for path in {p for p in kinds if _adds_up(p, calls) is not None}:
        kinds.pop(path)
    kinds |= {path: kind for path, kind in added.items() if kind and path in kinds}
    mixing, crossing, other = ([p for p in calls if kinds.get(p) == kind] for kind in ("mixes", "crosses", ""))

    def outermost(paths: list[str]) -> list[str]:
        return [p for p in paths if not any(p.startswith(f"{o}.") for o in paths)]

    named = [p for p in mixing if _ATTENTION.search(p) or _ATTENTION.search(type(block.get_submodule(p)).__name__)]
    attn = outermost(named or mixing)
    inside = [*mixing, *crossing]
    mlps = [p for p in other if not any(p.startswith(f"{m}.") or m.startswith(f"{p}.") for m in inside)]
    several = outermost([p for p in mlps if sum(q.dim() > 1 for q in block.get_submodule(p).parameters()) > 1])
    several.sort(key=lambda p: -sum(q.numel() for q in block.get_submodule(p).parameters()))
    return Seen(layer, attn, several or mlps[-1:])


def _mixes_in_place(model: Any, inputs: Mapping[str, Tensor], module: nn.Module) -> bool:
    """The same in a pass of the whole model."""
    outputs: list[Tensor] = []

    def spoil(_m: Any, args: Any, kwargs: Any) -> Any:
        def one(value: Any) -> Any:
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and value.dim() == 3
                and value.shape[1] == LENGTH
            ):
                value = value.clone()
                value[:, 0] = value[:, 0].flip(-1) + 1
            return value

        return tuple(map(one, args)), {key: one(value) for key, value in kwargs.items()}

    for hook in (None, spoil):
        handles = [module.register_forward_hook(lambda _m, _a, out: outputs.append(first_of(out).clone()))]
        if hook is not None:
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            logits(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    before, after = (o.reshape(2, LENGTH, -1)[:, 1:] for o in outputs)
    return _apart(before, after)


def _adds_up(path: str, calls: Mapping[str, list[tuple[Any, Any, Any]]]) -> str | None:
    """The module inside of one that adds what it is given to what that one says (T5, BLOOM): then that one counts."""
    args, kwargs, output = calls[path][0]
    given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.shape == output.shape]
    inside = {q: c[0][2] for q, c in calls.items() if q.startswith(f"{path}.") and len(c) == 1}
    inside = {q: v for q, v in inside.items() if isinstance(v, Tensor) and v.shape == output.shape}
    return next((q for q, y in inside.items() if any(not _apart(output, x + y) for x in given)), None)


@torch.inference_mode()
def _kind(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> str:
    """ "mixes": other tokens' outputs know the first one; "crosses": it knows what the encoder read; or ""."""

    def spoilt(value: Any, length: int) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(spoilt(v, length) for v in value)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 3 and value.shape[1] == length:
            value = value.clone()
            value[:, 0] = value[:, 0].flip(-1) + 1
        return value

    def again(length: int) -> Tensor:
        a = spoilt(tuple(_deep(args)), length)
        k = {key: spoilt(value, length) for key, value in _deep(kwargs).items()}
        return first_of(module(*a, **k))

    plain = first_of(module(*_deep(args), **_deep(kwargs)))
    if plain.shape != output.shape or _apart(plain, output, 1e-3):
        raise ValueError("it does not say the same again")
    others = (Ellipsis, slice(1, None), slice(None))
    if output.dim() == 3 and _apart(output[others], again(LENGTH)[others]):
        return "mixes"
    changed = again(ENCODED)
    return "crosses" if _apart(output, changed) else ""


def _deep(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(map(_deep, value))
    return {k: _deep(v) for k, v in value.items()} if type(value) is dict else value


@contextlib.contextmanager
def edited(modules: Mapping[str, nn.Module], act: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Modules whose outputs go through ``act``."""

    def hook(name: str) -> Callable[..., Any]:
        def inner(_m: Any, _a: Any, output: Any) -> Any:
            new = act(name, first_of(output))
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return inner

    handles = [module.register_forward_hook(hook(name), prepend=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dense(positive: Tensor, negative: Tensor, h: Tensor, merge: str) -> Tensor:
    """P+ h + P- h with d x d matrices in float64, given the length of h by the merge "l2"; as h in dtype."""
    P = positive.double().T @ positive.double()
    N = torch.eye(h.shape[-1], dtype=torch.float64) - negative.double().T @ negative.double()
    x = h.double()
    y = x @ P + x @ N
    if merge == "l2":
        y = y * x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
    return y.to(h.dtype)
