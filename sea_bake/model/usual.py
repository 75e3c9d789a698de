"""Values of a config.json of the usual kind: what ``plain`` asks of each key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def real(value: Any) -> bool:
    """Where transformers takes no whole number: positive."""
    return isinstance(value, float) and positive(value)


def positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def none_or(usual: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or usual(value)


def text(value: Any) -> bool:
    return isinstance(value, str)


def tokens(value: Any) -> bool:
    ids = value if isinstance(value, list) else [value]
    return all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 31 for one in ids)


def token(value: Any) -> bool:
    return not isinstance(value, list) and tokens(value)


def one_of(*known: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, type(known[0])) and value in known


_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def rope(value: Any) -> bool:
    """``rope_parameters``, or the older ``rope_scaling``."""
    if not isinstance(value, dict):
        return value is None
    numbers = {key: one for key, one in value.items() if key not in ("rope_type", "type")}
    kind = value.get("rope_type", "default")
    known = ("rope_theta", *_LLAMA3) if kind == "llama3" else ("rope_theta",)
    needed = set(_LLAMA3) if kind == "llama3" else set()
    kinds = kind in ("default", "llama3") and value.get("type", kind) == kind
    return kinds and needed <= set(numbers) <= set(known) and all(map(positive, numbers.values()))
