"""How a prompt is rendered: one frozen setting, spelt once in :func:`prompt_format`, recorded in every edit and used
again wherever that edit is fitted again, judged or shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sea_bake.demonstrations.primers import PRIMERS, Pairs, primer_pairs
from sea_bake.errors import DemonstrationError, SettingError
from sea_bake.io.files import has_utf8

# What a template gets from us and from transformers, so that no argument of a user may stand in its place.
_RESERVED = (
    *("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("tokenizer_kwargs", "sanitize_control_tokens", "self", "strftime_now", "raise_exception", "sea_bake_date"),
)


@dataclass(frozen=True)
class PromptFormat:
    """How prompts are rendered; made by :func:`prompt_format`, which says what each part means and checks it.

    Attributes:
        primer: (question, answer) pairs.
        primer_name: of a built-in one.
        date: what a template shows as today's; None: the day on which it is rendered.
    """

    system: str | None = None
    chat_template: bool = True
    template_args: Mapping[str, Any] = field(default_factory=dict)
    response_prefix: str | None = None
    primer: Pairs = ()
    primer_name: str | None = None
    close_reasoning: bool = True
    date: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys of :func:`prompt_format`, as a recipe and an edit's own record hold them."""
        pairs = [{"prompt": question, "answer": answer} for question, answer in self.primer]
        day = None if self.date is None else self.date.isoformat().removesuffix("T00:00:00")
        return {
            "system": self.system,
            "chat_template": self.chat_template,
            "template_args": dict(self.template_args) or None,
            "response_prefix": self.response_prefix,
            "primer": self.primer_name or pairs or None,
            "close_reasoning": self.close_reasoning,
            "date": day,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PromptFormat:
        """Of an edit's record; what it does not say is as it was before that was recorded.

        Raises:
            SettingError: a value that no setting can have. A path is none: a record is somebody else's.
        """
        known = {key: record[key] for key in cls().to_json() if key in record}
        primer = known.get("primer")
        if isinstance(primer, str) and primer not in PRIMERS:
            raise SettingError(f"the primer {primer!r} is not built into this sea_bake ({', '.join(PRIMERS)} are)")
        try:
            return prompt_format(**{"close_reasoning": False, **known})
        except (DemonstrationError, TypeError, AttributeError) as error:
            raise SettingError(f"the record of how prompts were rendered is garbled: {error}") from error

    @classmethod
    def shared(cls, records: Sequence[Mapping[str, Any]]) -> PromptFormat:
        """That of all these records, or the default where they differ or say nothing."""
        return cls.agreed(records) or cls()

    @classmethod
    def agreed(cls, records: Sequence[Mapping[str, Any]]) -> PromptFormat | None:
        """That of all these records; None where they differ or say nothing."""
        found = [cls.from_json(record) for record in records if "chat_template" in record]
        return found[0] if found and all(one == found[0] for one in found) else None


def prompt_format(
    *,
    system: str | None = None,
    chat_template: bool = True,
    template_args: Mapping[str, Any] | None = None,
    response_prefix: str | None = None,
    primer: str | Path | Sequence[Mapping[str, str]] | None = None,
    close_reasoning: bool = True,
    date: str | None = None,
) -> PromptFormat:
    """How demonstrations become texts.

    Args:
        system: system prompt.
        chat_template: put prompts through the tokenizer's chat template, where it has one; else "Q: ... A:".
        template_args: arguments of the chat template, such as enable_thinking=false.
        response_prefix: text that every answer begins with, such as "Answer:". A space follows where words would else
            run together.
        primer: worked question-answer pairs before every prompt: "truthfulqa" (six of the paper's kind), or a .jsonl,
            .json, .csv or .tsv file with the columns prompt and answer.
        close_reasoning: close a reasoning block (<think> and its like) that the chat template leaves open, so that
            answers do not stand inside it.
        date: the day that the chat template shows, as 2026-01-31. Default: today. It is recorded and used again.

    Raises:
        SettingError: a value of another type, an argument that is ours, a date that is none.
        DemonstrationError: a primer that cannot be read.
    """
    for name, text in (("system", system), ("response_prefix", response_prefix)):
        if text is not None and not isinstance(text, str):
            raise SettingError(f"{name} = {text!r:.60} is no text")
        if text is not None and not has_utf8(text):
            raise SettingError(f"{name} = {text!r:.60} is no UTF-8, and no tokenizer reads it: convert it")
    args = {} if template_args is None else template_args
    if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
        raise SettingError(f"template_args = {args!r:.60}: names with values are wanted, such as enable_thinking=false")
    taken = [name for name in args if name in _RESERVED or not name.isidentifier()]
    if taken:
        raise SettingError(f"template_args: {taken[0]!r} cannot be given to a chat template; it has that from us")
    try:
        plain = json.loads(json.dumps(dict(args), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SettingError(f"template_args hold more than plain data (text, numbers, true, lists): {error}") from error
    builtin = primer if isinstance(primer, str) and primer in PRIMERS else None
    return PromptFormat(
        system=system,
        chat_template=bool(chat_template),
        template_args=plain,
        response_prefix=response_prefix or None,
        primer=() if primer is None else primer_pairs(primer),
        primer_name=builtin,
        close_reasoning=bool(close_reasoning),
        date=None if date is None else _day(date),
    )


def parse_args(texts: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs, or JSON objects of several, as one mapping; a value that is JSON (false, 3) is read as such.

    Raises:
        SettingError: neither.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if text.lstrip().startswith("{"):
            try:
                found |= json.loads(text)
            except (ValueError, TypeError) as error:
                raise SettingError(f"--template-args {text!r:.80} is no JSON object: {error}") from None
        elif equals and name.strip():
            found[name.strip()] = _value(value)
        else:
            raise SettingError(
                f"--template-args {text!r:.80}: KEY=VALUE is wanted (enable_thinking=false), or a JSON object"
            )
    return found


def _value(text: str) -> Any:
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


def _day(text: Any) -> datetime:
    try:
        return datetime.fromisoformat(str(text)).replace(tzinfo=None, microsecond=0)
    except ValueError:
        raise SettingError(f"date = {text!r:.40} is no day: write it as 2026-01-31") from None
