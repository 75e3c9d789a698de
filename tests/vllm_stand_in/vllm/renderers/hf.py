"""As there."""

from typing import Any


def resolve_chat_template(*, tokenizer: Any, **_: Any) -> Any:
    return tokenizer.chat_template
