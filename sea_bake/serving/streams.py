"""The pieces of a streamed answer, as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

_HEAD, _END = "data: ", "\n\n"


async def usage_apart(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """A stream whose usage comes in a chunk of its own behind the last one, without choices, as OpenAI's does where
    "include_usage" is asked for; transformers writes it into the last chunk.
    """
    async with aclosing(events):  # who hangs up ends the answer, too
        async for text in events:
            for event in text.split(_END)[:-1]:
                chunk = json.loads(event.removeprefix(_HEAD))
                usage = chunk.pop("usage", None)
                yield _event(chunk)
                if usage is not None:
                    yield _event({**chunk, "choices": [], "usage": usage})


def _event(chunk: dict[str, Any]) -> str:
    return f"{_HEAD}{json.dumps(chunk)}{_END}"
