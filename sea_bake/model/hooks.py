"""Watch or replace what modules give, or what they are given, with hooks that are always taken off again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def first_of(output: Any) -> Any:
    """What a module gives: its output, or the first of several."""
    return output[0] if isinstance(output, tuple) else output


@contextlib.contextmanager
def hooked(
    modules: dict[int, nn.Module],
    act: Callable[[int, torch.Tensor], torch.Tensor | None],
    *,
    first: bool = False,
    inputs: bool = False,
) -> Iterator[None]:
    """Call ``act(layer, output)`` on each module's output; what it returns, unless None, replaces that output.

    Outputs that are tuples are seen through their first element. The hooks are removed also after an exception.
    ``first``: before all other hooks, also those that transformers leaves on a model to record hidden states.
    ``inputs``: act on each module's first input instead.
    """

    def hook_of(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            replaced = act(layer, first_of(output))
            if replaced is None:
                return None
            return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

        return hook

    def input_hook_of(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, given: Any) -> Any:
            replaced = act(layer, given[0])
            return None if replaced is None else (replaced, *given[1:])

        return hook

    with contextlib.ExitStack() as stack:
        for layer, module in modules.items():
            if inputs:
                stack.callback(module.register_forward_pre_hook(input_hook_of(layer), prepend=first).remove)
            else:
                stack.callback(module.register_forward_hook(hook_of(layer), prepend=first).remove)
        yield
