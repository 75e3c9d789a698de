"""What a chat template reads, and what it is given: nothing of a request goes past it in silence."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

from jinja2 import Environment, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from sea_bake.errors import SettingError

# For a tokenizer without a chat template, as prompts are rendered elsewhere.
PLAIN = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n"
    "{% elif m.role == 'assistant' %}A: {{ m.content }}\n\n{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
_CARRIED = ("name", "reasoning_content")  # of a message; transformers' server leaves them out


class _Generation(Extension):
    """transformers' mark around what the assistant said: here only what stands inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def variables_of(template: str) -> frozenset[str]:
    """Names that a chat template reads and does not set. Raises TemplateError."""
    environment = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"])
    return frozenset(meta.find_undeclared_variables(environment.parse(template)))


def check_template(tokenizer: Any, tools: Any, given: Collection[str]) -> None:
    """Raises SettingError for tools, or variables, that the chat template does not read."""
    if not tools and not given:
        return
    read = variables_of(tokenizer.get_chat_template(tools=tools))
    if tools and "tools" not in read:
        raise SettingError(
            "the chat template of this model takes no tools, so they would not be in the prompt: drop them"
        )
    for name in given:
        if name not in read:
            raise SettingError(
                f"the chat template of this model does not read {name!r}: drop it from chat_template_kwargs"
            )


def in_full(convert: Callable[[Any], Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a chat template reads them, with what the server's own ``convert`` leaves out: who is speaking, what
    was thought, and what was said beside a call.
    """
    found: list[dict[str, Any]] = convert(messages)
    for message, one in zip(messages, found, strict=True):
        one.update({name: message[name] for name in _CARRIED if message.get(name)})
        if message.get("tool_calls") and message.get("content"):
            (beside,) = convert([{"role": message["role"], "content": message["content"]}])
            one["content"] = beside["content"]
    return found
