"""What a request to the endpoint may hold: each rule with a sentence that says what to change.

transformers' own server takes what it is given. It answers what it cannot read with a failure of its own, and leaves
out, without a word, what it does not know. Bounds are those of OpenAI's API, where transformers can do as much.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from sea_bake.errors import SettingError
from sea_bake.io.files import has_utf8
from sea_bake.serving.sampling import check_temperature

OPEN = ("generation_config", "stop")  # whose values transformers judges only as it answers
_TEXT_PARTS = ("text", "input_text", "output_text")
_COUNTS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_TEXTS = ("prompt", "suffix", "instructions")
_PLAIN = {"type": "text"}
# Field -> what of it asks for nothing that this server does not do. Anything else would be left out without a word.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,), "presence_penalty": (0,),
    "functions": ([],), "function_call": ("auto", "none"), "tool_choice": ("auto",), "response_format": (_PLAIN,),
    "audio": (), "modalities": (["text"],), "web_search_options": (), "background": (False,), "conversation": (),
    "previous_response_id": (),
}  # fmt: skip


def check_request(body: dict[str, Any], *, needed: str | None = None, rendering: Collection[str] = ()) -> None:
    """Whether a request can be answered, by its words alone.

    Args:
        needed: the field that holds what is asked.
        rendering: settings of a chat template's rendering, which are no variables of the template.

    Raises:
        SettingError: a field of another type, a number outside its range, text that is none, or what nobody here does.
    """
    check_text(body)
    if needed is not None and body.get(needed) is None:
        raise SettingError(f"the request has no {needed}: that is where a question stands")
    _check_answer(body)
    _check_sampling(body)
    if "messages" in body:
        _check_messages(body["messages"])
    given = body.get("input")
    if given is not None and not isinstance(given, str):
        _check_items(given)
    for name in _TEXTS:
        if body.get(name) is not None and not isinstance(body[name], str):
            raise _wants(name, body[name], "a string")
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(one, dict) for one in tools)):
        raise _wants("tools", tools, "a list of objects")
    variables = body.get("chat_template_kwargs")
    if variables is not None and not isinstance(variables, dict):
        raise _wants("chat_template_kwargs", variables, "an object")
    for name in variables or ():
        if name in rendering:
            raise SettingError(
                f"chat_template_kwargs holds variables of the chat template, and {name!r} is none: drop it"
            )


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
    """Its length, its form, and what is asked for beside it."""
    for name in _COUNTS:
        _check_number(body, name, 1, 2**31 - 1, whole=True)
    if body.get("stream") is not None and not isinstance(body["stream"], bool):
        raise _wants("stream", body["stream"], "true or false")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if stop is not None and not (isinstance(stops, list) and all(isinstance(one, str) and one for one in stops)):
        raise _wants("stop", stop, "a string, or a list of strings, none of them empty")
    for name, neutral in _NOT_DONE.items():
        given = body.get(name)
        same = any(given == one and isinstance(given, bool) == isinstance(one, bool) for one in neutral)
        if given is not None and not same:
            known = f", or give {' or '.join(json.dumps(one) for one in neutral)}" if neutral else ""
            raise SettingError(f"{name} = {_shown(given)} is more than this server does: drop it{known}")
    form = body["text"].get("format") if isinstance(body.get("text"), dict) else body.get("text")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise SettingError(f"text = {_shown(body['text'])} is more than this server does: drop it")


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
        if not isinstance(bias, dict) or not all(name.isascii() and name.isdigit() for name in bias):
            raise _wants("logit_bias", bias, 'an object of tokens and numbers, such as {"50": -100}')
        for name in bias:
            _check_number(bias, name, -100, 100, called=f"logit_bias.{name}")
    config = body.get("generation_config")
    if config is not None:
        try:
            known = isinstance(json.loads(config), dict)
        except (TypeError, ValueError, RecursionError):
            known = False
        if not known:
            raise _wants(
                "generation_config", config, 'a string that holds an object in JSON, such as "{\\"top_k\\": 5}"'
            )


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
        bounds = f"of at least {least}" if most == 2**31 - 1 else f"from {least} to {most}"
        raise _wants(called or name, given, f"{what} {bounds}")


def _check_items(items: Any) -> None:
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


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise _wants("messages", messages, 'a list of at least one, such as [{"role": "user", "content": "..."}]')
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")


def _check_message(message: Any, place: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _wants(place, message, 'an object with a role, such as {"role": "user", "content": "..."}')
    content = message.get("content")
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
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
    return SettingError(f"{name} = {_shown(given)} cannot be used: give {what}")


def _shown(given: Any) -> str:
    text = json.dumps(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
