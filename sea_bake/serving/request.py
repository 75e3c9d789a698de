"""What a request to the endpoint may hold: each rule with a sentence that says what to change.

transformers' own server takes what it is given. It answers what it cannot read with a failure of its own, and leaves
out, without a word, what it does not know. Bounds are those of OpenAI's API, where transformers can do as much.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from sea_bake.errors import SettingError
from sea_bake.io.files import has_utf8
from sea_bake.serving.fields import (
    BEAMS,
    GENERATION,
    MESSAGE,
    NEEDED,
    ROLES,
    SAID_TWICE,
    SAMPLING,
    check_fields,
    done,
    shown,
)
from sea_bake.serving.sampling import check_temperature

OPEN = ("generation_config", "stop", "tools")  # whose values transformers judges only as it answers
_TEXT_PARTS = ("text", "input_text", "output_text")
_COUNTS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_TEXTS = ("prompt", "suffix", "instructions")
_MOST_TOKENS = 2**31 - 1
_TOKEN = re.compile(r"0|[1-9][0-9]{0,17}")


def checked(given: dict[str, Any], route: str, *, rendering: Collection[str] = ()) -> dict[str, Any]:
    """What of a request is to be done, if it can be answered by its words alone.

    Args:
        route: a key of ``fields.FIELDS``.
        rendering: settings of a chat template's rendering, which are no variables of the template.

    Raises:
        SettingError: a field of another type, a number outside its range, text that is none, or what nobody here does.
    """
    check_text(given)
    body, needed = done(given, route), NEEDED[route]
    if needed not in body:
        raise SettingError(f"the request has no {needed}: that is where a question stands")
    _check_answer(body)
    _check_sampling(body)
    _check_generation(body)
    if "messages" in body:
        _check_messages(body["messages"])
    if not isinstance(body.get("input", ""), str):
        _check_items(body["input"], "instructions" in body)
    for name in _TEXTS:
        if not isinstance(body.get(name, ""), str):
            raise _wants(name, body[name], "a string")
    _check_tools(body.get("tools", []), flat="input" in body)
    variables = body.get("chat_template_kwargs", {})
    if not isinstance(variables, dict):
        raise _wants("chat_template_kwargs", variables, "an object")
    for name in variables:
        if name in rendering:
            raise SettingError(
                f"chat_template_kwargs holds variables of the chat template, and {name!r} is none: drop it"
            )
    return body


def check_text(body: Any) -> None:
    """Raises SettingError for half a surrogate pair, which no tokenizer reads: of a cut-off emoji, say."""
    for place, text in _strings(body):
        if not has_utf8(text):
            raise SettingError(
                f"{place or 'a name of a field'} holds half a surrogate pair (\\ud800 to \\udfff), which is no "
                "character: send the whole pair, or take it out"
            )


def _strings(body: Any) -> Iterator[tuple[str, str]]:
    """(where, text) of every string in it. Not by recursion: a stranger's JSON may be deep."""
    waiting: list[tuple[str, Any]] = [("", body)]
    while waiting:
        place, found = waiting.pop()
        if isinstance(found, str):
            yield place, found
        elif isinstance(found, list):
            waiting += [(f"{place}[{index}]", one) for index, one in enumerate(found)]
        elif isinstance(found, dict):
            for name, one in found.items():
                yield place, name
                waiting.append((f"{place}.{name}" if place else name, one))


def _check_answer(body: dict[str, Any]) -> None:
    """Its length and its form."""
    for name in _COUNTS:
        _check_number(body, name, 1, _MOST_TOKENS, whole=True)
    if len({body[name] for name in _COUNTS if name in body}) > 1:
        raise SettingError("max_tokens and max_completion_tokens are not the same: give one of them")
    if not isinstance(body.get("stream", False), bool):
        raise _wants("stream", body["stream"], "true or false")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if stop is not None and not (isinstance(stops, list) and all(isinstance(one, str) and one for one in stops)):
        raise _wants("stop", stop, "a string, or a list of strings, none of them empty")


def _check_sampling(body: dict[str, Any]) -> None:
    _check_number(body, "temperature", 0, 2)
    if body.get("temperature") is not None:
        check_temperature(body["temperature"])
    _check_number(body, "top_p", 0, 1)
    _check_number(body, "frequency_penalty", -2, 2)
    if body.get("frequency_penalty") is not None and body["frequency_penalty"] <= -1:
        raise SettingError("frequency_penalty has to be above -1 here: transformers multiplies by one more than it")
    _check_number(body, "seed", -(2**63), 2**63 - 1, whole=True)
    bias = body.get("logit_bias")
    if bias is not None:
        if not isinstance(bias, dict) or not all(_TOKEN.fullmatch(name) for name in bias):
            raise _wants("logit_bias", bias, 'an object of tokens and numbers, such as {"50": -100}')
        for name in bias:
            _check_number(bias, name, -100, 100, called=f"logit_bias.{name}")


def _check_generation(body: dict[str, Any]) -> None:
    """Settings of transformers' generation, by their names; most of their values are transformers' own to judge."""
    given = body.get("generation_config")
    if given is None:
        return
    try:
        config = json.loads(given)
    except (TypeError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        example = '"{\\"do_sample\\": true, \\"top_k\\": 5}"'
        raise _wants("generation_config", given, f"a string that holds an object in JSON, such as {example}")
    if config.get("max_length") is not None:
        raise SettingError("generation_config.max_length would count the prompt, too: give max_new_tokens in its place")
    check_fields(config, GENERATION, "setting of a generation", "generation_config")
    held = {name: value for name, value in config.items() if value is not None}
    called = "generation_config.max_new_tokens"
    if "max_new_tokens" in held:
        _check_number(held, "max_new_tokens", 1, _MOST_TOKENS, whole=True, called=called)
    for name, others in SAID_TWICE.items():
        for other in others:
            if name in held and other in body:
                raise SettingError(f"generation_config.{name} and {other} say the same thing: give one of them")
    if not isinstance(held.get("do_sample", True), bool):
        raise _wants("generation_config.do_sample", held["do_sample"], "true or false")
    if held.get("do_sample") is False and draws(body):
        raise SettingError(
            "generation_config.do_sample is false, so nothing is drawn, and a temperature, top_k, top_p or the like "
            "would have no say: drop it, or them"
        )
    beams = next((name for name in BEAMS if held.get(name)), None)
    if beams is not None and held.get("num_beams") in (None, 1):
        raise SettingError(f"generation_config.{beams} is of a search with beams: give num_beams above 1, or drop it")


def draws(body: dict[str, Any]) -> bool:
    """Whether a request, checked, has a setting that acts only where tokens are drawn."""
    if "temperature" in body:
        return bool(body["temperature"])
    config = json.loads(body.get("generation_config", "{}"))
    return "top_p" in body or any(config.get(name) for name in SAMPLING)


def _check_number(
    body: dict[str, Any], name: str, least: float, most: float, *, whole: bool = False, called: str = ""
) -> None:
    """NaN is no number of a range, and true is no number at all."""
    given = body.get(name)
    if given is None and not called:
        return
    number = isinstance(given, int if whole else int | float) and not isinstance(given, bool)
    if not number or not least <= given <= most:  # type: ignore[operator]
        what = "a whole number" if whole else "a number"
        bounds = f"of at least {least}" if most == _MOST_TOKENS else f"from {least} to {most}"
        raise _wants(called or name, given, f"{what} {bounds}")


def _check_tools(tools: Any, *, flat: bool) -> None:
    """Functions, with a name: in /v1/responses without an object of their own around it, too."""
    if not isinstance(tools, list):
        raise _wants("tools", tools, "a list of objects")
    example = '{"type": "function", "name": "..."}' if flat else '{"type": "function", "function": {"name": "..."}}'
    for index, tool in enumerate(tools):
        function = tool.get("function", tool if flat else None) if isinstance(tool, dict) else None
        function = function if isinstance(function, dict) else {}
        if not isinstance(function.get("name"), str) or tool.get("type", "function") != "function":
            raise _wants(f"tools[{index}]", tool, f"a function, the one kind of tool here, such as {example}")
        if function.get("strict"):
            raise SettingError(f"tools[{index}] is strict, which nothing here sees to: drop strict")


def _check_items(items: Any, instructed: bool) -> None:
    """Of /v1/responses: messages, calls and their results; or the parts of one message."""
    if not isinstance(items, list) or not items:
        raise _wants("input", items, "a string, or a list of at least one message")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise _wants(f"input[{index}]", item, 'an object, such as {"role": "user", "content": "..."}')
    if "role" not in items[0] and items[0].get("type") not in ("reasoning", "function_call", "function_call_output"):
        _check_content(items, "input")
        return
    for index, item in enumerate(items):
        if "role" in item:
            _check_message(item, f"input[{index}]")
        elif isinstance(item.get("output"), list):
            _check_content(item["output"], f"input[{index}].output")
    if instructed and items[0].get("role") == "system":
        raise SettingError("instructions would stand in the place of the system message in input: give one of them")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise _wants("messages", messages, 'a list of at least one, such as [{"role": "user", "content": "..."}]')
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")


def _check_message(message: Any, place: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _wants(place, message, 'an object with a role, such as {"role": "user", "content": "..."}')
    if message["role"] not in ROLES:
        raise _wants(f"{place}.role", message["role"], f"one of {', '.join(ROLES)}")
    check_fields(message, MESSAGE, "field of a message", place)
    content, calls = message.get("content"), message.get("tool_calls")
    if calls and message["role"] != "assistant":
        raise SettingError(f"{place} has tool_calls, and is not the assistant's: drop them")
    if isinstance(content, str) or (not content and calls):
        return
    if not isinstance(content, list) or not content:
        raise _wants(f"{place}.content", content, "a string, or a list of parts")
    _check_content(content, f"{place}.content")


def _check_content(parts: list[Any], place: str) -> None:
    """Text alone: both sides are models of language, and a picture would be left out without a word."""
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            raise _wants(
                f"{place}[{index}]", part, 'text, the one kind that is read here: {"type": "text", "text": "..."}'
            )


def _wants(name: str, given: Any, what: str) -> SettingError:
    return SettingError(f"{name} = {shown(given)} cannot be used: give {what}")
