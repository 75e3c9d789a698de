"""A server of llama.cpp as prompts meet it: its client, its limits, and its file's own way of writing messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sea_bake.exporting.gguf.layout import Layout


@dataclass(frozen=True)
class Server:
    """A server that runs, and what it says of its model.

    Attributes:
        client: of OpenAI.
        tokenizer: what rendering wants of one.
        positions: how many tokens a conversation may have.
        limit: whose limit that is, in words.
    """

    client: Any
    tokenizer: Tokenizer
    positions: int
    limit: str

    @classmethod
    @contextlib.contextmanager
    def at(cls, address: str, layout: Layout) -> Iterator[Server]:
        """At an address, of a file with these keys."""
        from openai import OpenAI

        with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=None) as client:
            told = client.get(f"{address}/props", cast_to=dict[str, Any])
            positions = int(told["default_generation_settings"]["n_ctx"])
            whole = layout.context or positions
            limit = (
                "" if whole <= positions else f"llama.cpp is given {positions} of the model's {whole} positions here"
            )
            yield cls(client, Tokenizer(client, address, layout, told), positions, limit)


class Tokenizer:
    """A file's chat template in the hands of transformers, and its tokens as llama.cpp reads them: so prompts are the
    same in both runtimes, whatever of them is set.
    """

    def __init__(self, client: Any, address: str, layout: Layout, told: dict[str, Any]) -> None:
        from tokenizers import Tokenizer as Empty
        from tokenizers.models import BPE
        from transformers import PreTrainedTokenizerFast

        self._client, self._address = client, address
        template = layout.keys.get("tokenizer.chat_template")  # /props tells ChatML where the file has none
        self.chat_template = template if isinstance(template, str) else None
        self.eos_token_id = layout.keys.get("tokenizer.ggml.eos_token_id")
        names = {name: told.get(name) or None for name in ("bos_token", "eos_token")}
        self._renders = PreTrainedTokenizerFast(
            tokenizer_object=Empty(BPE()), chat_template=self.chat_template, **names
        )

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        return self._renders.apply_chat_template(messages, **options)

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool = False) -> dict[str, list[int]]:
        body = {"content": text, "add_special": add_special_tokens, "parse_special": True}
        found = self._client.post(f"{self._address}/tokenize", body=body, cast_to=dict[str, Any])
        return {"input_ids": found["tokens"]}
