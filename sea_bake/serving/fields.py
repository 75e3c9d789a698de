"""What a request to each route may hold: one table, and what is not in it is refused by its name.

Fields are those of OpenAI's API, transformers' own ("generation_config", "chat_template_kwargs", "seed") and "alpha".
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from sea_bake.errors import SettingError

CHAT, TEXT, ANSWER = "chat/completions", "completions", "responses"
NEEDED = {CHAT: "messages", TEXT: "prompt", ANSWER: "input"}

DONE, FREE = "done", "free"  # read here, and its value is judged in request.py; or of no consequence for an answer
# Any other rule: what of a field that is not done asks for nothing, beside null, "auto" and what is empty. A mapping
# holds the rules of an object's own fields.
Rule = str | tuple[Any, ...] | dict[str, Any]

_PLAIN = {"type": "text"}
_ALL: dict[str, Rule] = {
    **dict.fromkeys(("model", "stream", "temperature", "top_p", "seed", "generation_config", "alpha"), DONE),
    "user": FREE,
}
_HOUSEKEEPING: dict[str, Rule] = {
    **dict.fromkeys(("metadata", "safety_identifier"), FREE),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"), FREE),
    "service_tier": ("default",), "store": (False,), "moderation": (),
}  # fmt: skip
_TOOLS: dict[str, Rule] = {"tools": DONE, "tool_choice": (), "parallel_tool_calls": (True,)}
_USAGE: Rule = {"include_usage": (True, False), "include_obfuscation": (False,)}
FIELDS: dict[str, dict[str, Rule]] = {
    CHAT: {
        **_ALL, **_HOUSEKEEPING, **_TOOLS,
        **dict.fromkeys(("messages", "chat_template_kwargs", "max_tokens", "max_completion_tokens"), DONE),
        **dict.fromkeys(("stop", "frequency_penalty", "logit_bias"), DONE),
        "stream_options": _USAGE, "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "presence_penalty": (0,),
        "functions": (), "function_call": ("none",), "response_format": (_PLAIN,), "audio": (),
        "modalities": (["text"],), "web_search_options": (), "prediction": (), "reasoning_effort": (),
        "verbosity": ("medium",),
    },
    TEXT: {
        **_ALL, **dict.fromkeys(("prompt", "suffix", "max_tokens", "stop", "frequency_penalty", "logit_bias"), DONE),
        "stream_options": _USAGE, "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,),
        "presence_penalty": (0,),
    },
    ANSWER: {
        **_ALL, **_HOUSEKEEPING, **_TOOLS, **dict.fromkeys(("input", "instructions", "max_output_tokens"), DONE),
        "stream_options": {"include_obfuscation": (False,)}, "max_tool_calls": (), "top_logprobs": (0,),
        "text": {"format": (_PLAIN,), "verbosity": ("medium",)}, "include": (), "truncation": ("disabled",),
        "prompt": (), "reasoning": {"effort": (), "summary": (), "generate_summary": ()}, "background": (False,),
        "conversation": (), "previous_response_id": (), "context_management": (),
        "access_programs": (), "background_options": (), "image": (),
    },
}  # fmt: skip
# Of OpenAI's defaults those that hold where a request has no tools.
_WITHOUT_TOOLS: dict[str, tuple[Any, ...]] = {"tool_choice": ("none",), "parallel_tool_calls": (False,)}

ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE: dict[str, Rule] = {
    **dict.fromkeys(("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"), DONE),
    **dict.fromkeys(("id", "type", "status"), FREE),
    **dict.fromkeys(("refusal", "annotations", "audio", "function_call"), ()),
}

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("length_penalty", "early_stopping")
GENERATION: dict[str, Rule] = {
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "min_length", "max_time", "stop_strings"), DONE),
    **dict.fromkeys(("do_sample", *SAMPLING, "num_beams", *BEAMS), DONE),
    **dict.fromkeys(("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias"), DONE),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"), DONE),
    **dict.fromkeys(("exponential_decay_length_penalty", "renormalize_logits", "remove_invalid_values"), DONE),
    **dict.fromkeys(("guidance_scale", "watermarking_config", "use_cache", "cache_implementation"), DONE),
    **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), DONE),
    "num_return_sequences": (1,),
}
# Of generation_config -> the fields of a request that would stand in its place.
SAID_TWICE = {
    "max_new_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"), "temperature": ("temperature",),
    "top_p": ("top_p",), "repetition_penalty": ("frequency_penalty",), "stop_strings": ("stop",),
    "sequence_bias": ("logit_bias",),
}  # fmt: skip


def done(body: dict[str, Any], route: str) -> dict[str, Any]:
    """What of a request is to be done: given, and not null.

    Raises:
        SettingError: a field that is not known here, or one that asks for what nobody here does.
    """
    rules = FIELDS[route]
    if not body.get("tools"):
        rules = rules | {name: (*rules[name], *more) for name, more in _WITHOUT_TOOLS.items() if name in rules}
    check_fields(body, rules, f"field of /v1/{route}")
    found = {name: value for name, value in body.items() if rules[name] == DONE and value is not None}
    if isinstance(body.get("stream_options"), dict) and body["stream_options"].get("include_usage"):
        found["stream_options"] = body["stream_options"]
    return found


def check_fields(given: dict[str, Any], rules: dict[str, Rule], what: str, place: str = "") -> None:
    """Raises SettingError for a field that has no rule, or one whose value its rule does not take."""
    for name, value in given.items():
        called = f"{place}.{name}" if place else name
        if name not in rules:
            near = difflib.get_close_matches(name, rules, n=1)
            cure = f"did you mean {near[0]}? Else drop it" if near else "drop it"
            raise SettingError(f"{called:.60} is no {what} that is known here: {cure}")
        rule = rules[name]
        if rule in (DONE, FREE) or value in (None, "auto", "", [], {}):
            continue
        if isinstance(rule, dict) and isinstance(value, dict):
            check_fields(value, rule, f"field of {called}", called)
            continue
        neutral = (False,) if isinstance(rule, dict) else rule
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            known = f", or give {' or '.join(json.dumps(one) for one in neutral)}" if neutral else ""
            raise SettingError(f"{called} = {shown(value)} is more than this server does: drop it{known}")


def shown(given: Any) -> str:
    text = json.dumps(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
