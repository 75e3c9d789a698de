"""From a prompt to text: the tokenizer's chat template where it has one, else a plain one.

A chat template is somebody else's program, and what it does with a prompt decides what is learnt: whatever it renders
is looked at before it is used.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.errors import SettingError

PLAIN_TEMPLATE = "Q: {prompt}\nA:"
Message = dict[str, Any]

# What opens a block of reasoning, and what closes it, in the families that have one of their own; and all that is
# called so: <think>, <seed:think>, <longcat_think>, [THINK].
REASONING = {
    "◁think▷": "◁/think▷",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
}
_CALLED = re.compile(r"<([\w:-]*(?:think|thought|reason)[\w:-]*)>|\[([A-Z_]*(?:THINK|THOUGHT|REASON)[A-Z_]*)\]")
_ENDED = re.compile(
    r"</[\w:-]*(?:think|thought|reason)[\w:-]*>|\[/[A-Z_]*(?:THINK|THOUGHT|REASON)[A-Z_]*\]|"
    + "|".join(map(re.escape, REASONING.values()))
)
# A template's own clock, put in front of it: the day is given instead of being read off the machine's.
_CLOCK = (
    "{% macro strftime_now(format) %}{% set made = namespace(text=format) %}"
    "{% for directive, value in sea_bake_date %}{% set made.text = made.text.replace(directive, value) %}{% endfor %}"
    "{{ made.text }}{% endmacro %}\n"
)
_DIRECTIVES = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAwdbBmyYHIMpSfzZjUWcxXGuVeDFTRhklsnt"]
_RAW = "{'type': 'text'"
_SHOWN = 500
# The roles whose content is given as a list of parts: tried in this order.
_PARTS: tuple[tuple[str, ...], ...] = ((), ("system", "user", "assistant"), ("user", "assistant"), ("user",))


@dataclass(frozen=True)
class Rendered:
    """A prompt as text.

    Attributes:
        text: all before the answer.
        prefix: what the answer begins with; "" where nothing is given.
        special: whether the tokenizer is still to add its special tokens.
        reasoning: what opens a block of reasoning at the end of the text, as the template left it; None: nothing.
    """

    text: str
    prefix: str
    special: bool
    reasoning: str | None = None

    def before(self, text: str) -> str:
        """What stands between ``text`` and an answer behind it."""
        if self.prefix:
            last = self.prefix[-1]
            return "" if last.isspace() or last in ">]}|" or ord(last) > 0x2E80 else " "
        return "" if text[-1:].isspace() or not self.special else " "

    @property
    def whole(self) -> str:
        """The text with the answer's prefix behind it."""
        apart = " " if self.special and self.prefix and not self.text[-1:].isspace() else ""
        return self.text + apart + self.prefix


def rendered(tokenizer: Any, prompt: str, form: PromptFormat | None = None) -> Rendered:
    """A prompt under a format.

    Raises:
        SettingError: the chat template refuses it, or leaves out the prompt, the system prompt or the primer; an
            argument that it does not read.
    """
    form = form or PromptFormat()
    prefix = form.response_prefix or ""
    if not has_template(tokenizer, form):
        if form.template_args:
            raise SettingError("template_args are for a chat template, and none is used here: drop --template-args")
        shots = [f"{PLAIN_TEMPLATE.format(prompt=question)} {answer}" for question, answer in form.primer]
        head = [] if form.system is None else [form.system]
        return Rendered("\n\n".join([*head, *shots, PLAIN_TEMPLATE.format(prompt=prompt)]), prefix, True)
    messages: list[Message] = [{"role": "user", "content": prompt}]
    for question, answer in reversed(form.primer):
        messages[:0] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if form.system is not None:
        messages.insert(0, {"role": "system", "content": form.system})
    text = render_messages(tokenizer, messages, form)
    opened = _opened(text, prompt)
    return Rendered(text + _closing(opened, form), prefix, False, opened)


def render(tokenizer: Any, prompt: str, form: PromptFormat | None = None) -> tuple[str, bool]:
    """The text that an answer is appended to, and whether special tokens are still to be added by the tokenizer.

    Raises:
        SettingError: as :func:`rendered`.
    """
    found = rendered(tokenizer, prompt, form)
    return found.whole, found.special


def has_template(tokenizer: Any, form: PromptFormat) -> bool:
    """Whether prompts go through a chat template."""
    return form.chat_template and bool(getattr(tokenizer, "chat_template", None))


def pinned(tokenizer: Any, form: PromptFormat | None = None) -> PromptFormat:
    """The format as it is recorded: whether there is a chat template, and the day that it shows, if it shows one.

    Raises:
        SettingError: a date for a template that shows none.
    """
    form = form or PromptFormat()
    if not has_template(tokenizer, form):
        if form.date is not None:
            raise SettingError("a date is for a chat template, and none is used here: drop --date")
        return replace(form, chat_template=False)
    template = _template(tokenizer)
    if form.date is not None and not ("strftime_now" in template or "date_string" in template):
        raise SettingError("the chat template shows no date: drop --date")
    today = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
    return replace(form, date=form.date or (today if "strftime_now" in template else None))


def usable(tokenizer: Any, form: PromptFormat | None = None) -> PromptFormat:
    """The format, or the plain one where the chat template refuses it: for proofs, to which any text will do."""
    form = form or PromptFormat()
    try:
        rendered(tokenizer, "Is it so?", form)
    except SettingError:
        return PromptFormat(chat_template=False)
    return form


def render_messages(tokenizer: Any, messages: Sequence[Message], form: PromptFormat) -> str:
    """Messages through the chat template, up to where the answer begins; contents as text, or as parts where the
    template wants these.

    Raises:
        SettingError: as :func:`rendered`.
    """
    template = _template(tokenizer)
    unread = [name for name in form.template_args if not re.search(rf"\b{re.escape(name)}\b", template)]
    if unread:
        words = set(re.findall(r"\b[A-Za-z_]\w{2,}\b", template))
        near = difflib.get_close_matches(unread[0], words, n=1)
        raise SettingError(
            f"the chat template does not read the argument {unread[0]!r}"
            + (f": did you mean {near[0]!r}?" if near else ": drop it from --template-args")
        )
    options: dict[str, Any] = {**form.template_args, "tokenize": False, "add_generation_prompt": True}
    if "strftime_now" in template:
        day = form.date or datetime.now()
        shown = [(directive, _strftime(day, directive)) for directive in _DIRECTIVES]
        options |= {"chat_template": _CLOCK + template, "sea_bake_date": [*shown, ("%%", "%")]}
    elif form.date is not None and "date_string" in template and "date_string" not in form.template_args:
        options["date_string"] = form.date.strftime("%d %b %Y")
    refusals: list[Exception] = []
    lacking: tuple[Message, str] | None = None
    for roles in _PARTS:
        asked = [_in_parts(message) if message["role"] in roles else message for message in messages]
        try:
            text = str(tokenizer.apply_chat_template(asked, **options))
        except Exception as error:
            refusals.append(error)
            continue
        if roles and _RAW in text:  # a template that knows no parts has printed the list itself
            continue
        missing = next((m for m in messages if not _holds(text, m["content"])), None)
        if missing is None:
            return text
        lacking = lacking or (missing, text)
    if lacking is not None:
        raise _left_out(*lacking, last=messages[-1])
    asked_system = form.system if messages[0]["role"] == "system" else None
    raise SettingError(
        f"the tokenizer's chat template refused the prompt (system={asked_system!r}): {refusals[0]}. Give it what it "
        f"wants (--template-args){', drop --system' if asked_system is not None else ''}, or pass --no-chat-template"
    ) from refusals[0]


def _left_out(message: Message, text: str, *, last: Message) -> SettingError:
    role = message["role"]
    what, cure = "the primer", "drop --primer, or pass --no-chat-template"
    if role == "system":
        what, cure = "the system prompt", "drop --system, or pass --no-chat-template"
    elif message is last:
        what, cure = "the prompt", "give it what it wants (--template-args), or pass --no-chat-template"
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return SettingError(
        f"the chat template leaves out {what} ({message['content']!r:.80}), whether that is given as text or as a list "
        f"of parts. It renders {shown!r}: {cure}"
    )


def _in_parts(message: Message) -> Message:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _holds(text: str, part: str) -> bool:
    """Whether a rendering shows a text: as it is, trimmed, with other white space, or written as JSON."""
    forms = [part.strip(), *(json.dumps(part, ensure_ascii=plain)[1:-1].strip() for plain in (False, True))]
    spaced, wanted = (" ".join(one.split()) for one in (text, part))
    return any(one in text for one in forms) or wanted in spaced


def _template(tokenizer: Any) -> str:
    """The text of the chat template that is used.

    Raises:
        SettingError: several, and none of them is the default.
    """
    found = tokenizer.chat_template
    if isinstance(found, str):
        return found
    try:
        return str(tokenizer.get_chat_template())
    except Exception as error:
        raise SettingError(
            f"the tokenizer's chat template cannot be told ({error}): save the one that you want as "
            "chat_template.jinja beside the tokenizer, or pass --no-chat-template"
        ) from error


def said_of_reasoning(opened: str | None, *, closed: bool) -> str:
    """What a fit says of a block of reasoning that the chat template leaves open; "" where there is none."""
    if opened is None:
        return ""
    if closed:
        return f"The chat template opens a block of reasoning ({opened}): it is closed before the answer."
    return (
        f"The chat template opens a block of reasoning ({opened}) and the answer stands inside it: give it what closes "
        "it (--template-args), a --response-prefix, or --close-reasoning."
    )


def _opened(text: str, prompt: str) -> str | None:
    """What opens a block of reasoning behind the prompt and is not closed again."""
    tail = text[text.rfind(prompt.strip()) + len(prompt.strip()) :] if prompt.strip() in text else text[-_SHOWN:]
    places = {tail.rfind(marker): marker for marker in REASONING if marker in tail}
    places |= {found.start(): found[0] for found in _CALLED.finditer(tail)}
    if not places:
        return None
    last = max(places)
    return None if _closed_by(places[last]) in tail[last:] else places[last]


def _closed_by(opened: str) -> str:
    return REASONING.get(opened) or f"{opened[0]}/{opened[1:]}"


def without_reasoning(answer: str) -> str:
    """What an answer says behind its last block of reasoning: chat templates leave these out of what was said."""
    ends = [found.end() for found in _ENDED.finditer(answer)]
    return answer[ends[-1] :].strip() if ends else answer


def complete(tokenizer: Any, messages: Sequence[Message], form: PromptFormat) -> str:
    """:func:`render_messages`, with an open block of reasoning closed.

    Raises:
        SettingError: as :func:`rendered`.
    """
    text = render_messages(tokenizer, messages, form)
    return text + _closing(_opened(text, messages[-1]["content"]), form)


def _closing(opened: str | None, form: PromptFormat) -> str:
    """As the families themselves write an empty block: Qwen's "<think>\\n\\n</think>\\n\\n", Cohere's without lines."""
    if opened is None or not form.close_reasoning or _closed_by(opened) in (form.response_prefix or ""):
        return ""
    lines = opened.startswith("<") and not opened.startswith("<|")
    return f"\n{_closed_by(opened)}\n\n" if lines else _closed_by(opened)


def _strftime(day: datetime, directive: str) -> str:
    try:
        return day.strftime(directive)
    except ValueError:  # not on every platform
        return directive
