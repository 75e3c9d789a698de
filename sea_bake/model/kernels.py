"""Kernels from the Hub, which a configuration may ask for, and which are code."""

from __future__ import annotations

from typing import Any

from sea_bake.errors import CheckpointError

# transformers takes an "owner/name" in them for a repository of kernels, which it downloads and runs.
_KERNELS = ("attn_implementation", "experts_implementation")


def check_kernels(config: dict[str, Any]) -> None:
    """Raise CheckpointError where a configuration, or a part of it, asks for a kernel from the Hub: that is code."""
    parts: list[Any] = [config]
    while parts:
        part = parts.pop()
        for key, value in part.items() if isinstance(part, dict) else ():
            named = [value, *value.values()] if isinstance(value, dict) else [value]
            if key.lstrip("_").removesuffix("_internal") in _KERNELS and any("/" in str(name) for name in named):
                raise CheckpointError(f"config.json asks for a kernel from the Hub ({key} = {value!r:.80}): remove it")
            parts.append(value)
