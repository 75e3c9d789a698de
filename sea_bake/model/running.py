"""What transformers itself raises when a model runs, in words of ours: its cause, and what can be done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from traceback import walk_tb
from typing import Any

from sea_bake.errors import CheckpointError, reason_of

THEIRS = (AttributeError, ImportError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def explained(model: Any) -> Iterator[None]:
    """For as long as the context lasts, a model that does not run says so in a :class:`CheckpointError`; one that has
    no memory left, as torch says it. An error out of one of our hooks stays what it is.
    """
    try:
        yield
    except THEIRS as error:
        if "memory" in str(error) or _out_of_a_hook(error):
            raise
        cure = "Does its config.json belong to these weights?"
        if model.config.get_text_config(decoder=True) is not model.config:
            cure = (
                "It wraps a text model: load that one (its own ...ForCausalLM.from_pretrained), save it, and take the "
                "folder instead."
            )
        raise CheckpointError(
            f"transformers cannot run this {type(model).__name__} on text alone: {reason_of(error)}. {cure}"
        ) from error


def _out_of_a_hook(error: Exception) -> bool:
    """Whether code of ours was at work below the model's own."""
    rooms = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    return "transformers" in rooms and "sea_bake" in rooms[rooms.index("transformers") :]
