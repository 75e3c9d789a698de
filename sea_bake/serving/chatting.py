"""A chat in the terminal, or through a pipe: lines in, answers out as they grow, and a few commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import OutputError, SeaBakeError, SettingError
from sea_bake.io import interrupts
from sea_bake.io.files import json_text
from sea_bake.io.staging import staged_file
from sea_bake.pages.text import harmless
from sea_bake.serving.sampling import DEFAULT_ANSWER, Runtime, Sampling, at_terminal, check_there, keep_bytes

if TYPE_CHECKING:
    from sea_bake.activations.prompt_format import PromptFormat
    from sea_bake.artefact import Artefact
    from sea_bake.edit import Edit
    from sea_bake.serving.conversation import Conversation

HELP = {
    "/base": "the base answers alone",
    "/edit": "the edited model answers alone",
    "/both": "both answer, one below the other",
    "/alpha": "X: strength of the edit, times the one that is stored; 0 is the base",
    "/system": "TEXT: system prompt, for all that was said too; without TEXT there is none",
    "/new": "begin a new conversation",
    "/save": "FILE: write the conversation there, as JSON",
    "/help": "these lines",
    "/quit": "end; so does Ctrl-D. Ctrl-C ends an answer alone",
}
Read = Callable[[], str | None]
Write = Callable[[str], None]


def chat(
    model: str | Path | Artefact,
    *,
    edit: Edit | str | Path | Sequence[Edit | str | Path] | None = None,
    base: str | Path | None = None,
    alpha: float = 1.0,
    max_new_tokens: int = DEFAULT_ANSWER,
    temperature: float = 0.0,
    seed: int = 0,
    prompt_format: PromptFormat | None = None,
    runtime: Runtime = "auto",
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    read: Read | None = None,
    write: Write | None = None,
) -> Conversation:
    """Talk with base and edited model, side by side or with one of them; each goes on from its own answers.

    Args:
        model: see :func:`sea_bake.serving.asking.ask`.
        edit: see :func:`sea_bake.serving.asking.ask`.
        base: see :func:`sea_bake.serving.asking.ask`.
        alpha: see :func:`sea_bake.serving.asking.ask`.
        max_new_tokens: see :func:`sea_bake.serving.asking.ask`.
        temperature: see :func:`sea_bake.serving.asking.ask`.
        seed: see :func:`sea_bake.serving.asking.ask`.
        prompt_format: how prompts are rendered. Default: as the demonstrations of the edits were.
        runtime: see :func:`sea_bake.serving.asking.ask`.
        revision: branch, tag or commit of a model on the Hub.
        dtype: see :func:`sea_bake.model.loading.load_model`.
        device: see :func:`sea_bake.model.loading.load_model`.
        read: gives the next line, and None at the end. Default: the terminal, or what comes in through a pipe.
        write: takes text as it comes. Default: stdout.

    Returns:
        What was said, and what was refused.

    Raises:
        SeaBakeError: as :func:`sea_bake.serving.asking.ask`, before the first line is read. What goes wrong later is
            written, and the conversation goes on.
    """
    sampling = Sampling(max_new_tokens, temperature, seed)  # no refusal of it waits for torch
    check_there(model, edit, revision)
    from sea_bake.serving.conversation import Conversation
    from sea_bake.serving.opening import opened

    pair = opened(
        model, edit=edit, base=base, runtime=runtime, prompt_format=prompt_format, revision=revision, dtype=dtype,
        device=device,
    )  # fmt: skip
    try:
        write = write or _out
        talk = Conversation(pair, strength=alpha, sampling=sampling)
        write(f"{_opening(talk)}\n")
        _loop(talk, read or reader(write), write)
        return talk
    finally:
        pair.close()


def _opening(talk: Conversation) -> str:
    pair = talk.pair
    who = " and ".join(pair.sides)
    said = f"{pair.name} in {pair.runtime}: {who}. /help lists the commands; Ctrl-C ends an answer, Ctrl-D the chat."
    return harmless(f"{said}\n({pair.lacking})" if pair.lacking else said)


def _loop(talk: Conversation, read: Read, write: Write) -> None:
    ended = False
    while not ended:
        with interrupts.taken():  # a second one, while it is told of the first
            with interrupts.taken() as came:  # at the prompt, in a command, behind an answer
                ended = _step(talk, read, write)
            if came:
                write("(Ctrl-D or /quit ends the chat)\n")


def _step(talk: Conversation, read: Read, write: Write) -> bool:
    """One line, and what comes of it; True at the end."""
    line = read()
    line = None if line is None else line.strip()
    if line is None or line == "/quit":
        return True
    try:
        if line:
            write(_obey(talk, line) if line.startswith("/") else _answered(talk, line, write))
    except SeaBakeError as error:
        talk.refused.append(f"{line}: {error}")
        write(harmless(f"{error}\n"))
    return False


def _answered(talk: Conversation, line: str, write: Write) -> str:
    """Answers as they grow, each behind the name of its side; returns what ends them."""
    speaking: list[str] = []

    def hear(side: str, piece: str) -> None:
        if speaking != [side]:
            write(f"\n{side}: " if speaking else f"{side}: ")
            speaking[:] = [side]
        write(harmless(piece))

    try:
        turn = talk.ask(line, hear)
    except SeaBakeError:
        if speaking:
            write("\n")
        raise
    cut = [side for side, reply in turn.replies.items() if not reply.ended]
    if turn.interrupted:
        return "\n(interrupted)\n"
    return f"\n(cut at {talk.sampling.max_new_tokens} tokens: --max-new-tokens)\n" if cut else "\n"


def _obey(talk: Conversation, line: str) -> str:
    """Do what a command says; returns what to write."""
    from sea_bake.serving.conversation import BASE, EDITED

    word, *behind = line.split(None, 1)
    rest = behind[0] if behind else ""
    if word == "/alpha":
        try:
            strength = float(rest)
        except ValueError:
            raise SettingError(f"/alpha {rest}: a number is wanted, such as /alpha 0.5") from None
        talk.set_strength(strength)
        return f"alpha {strength:g}\n"
    if word == "/system":
        talk.set_system(rest)
        return "system prompt set\n" if rest else "no system prompt\n"
    if word == "/save":
        return f"wrote {_save(talk, rest)}\n"
    if rest and word in HELP:
        raise SettingError(f"{word} takes nothing behind it")
    if word in ("/base", "/edit", "/both"):
        chosen = {"/base": (BASE,), "/edit": (EDITED,), "/both": (BASE, EDITED)}[word]
        talk.choose(*chosen)
        return f"{' and '.join(chosen)} from now on\n"
    if word == "/new":
        talk.clear()
        return "a new conversation\n"
    if word == "/help":
        return "".join(f"{name:8} {text}\n" for name, text in HELP.items())
    raise SettingError(harmless(f"there is no command {word}: /help lists them"))


def _save(talk: Conversation, name: str) -> Path:
    if not name:
        raise SettingError("/save wants a file: /save chat.json")
    if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'":  # as a shell takes it
        name = name[1:-1]
    path = Path(os.path.expanduser(name))
    if not path.parent.is_dir():
        raise SettingError(f"there is no folder {path.parent}: make it first, or save somewhere else")
    if os.path.lexists(path):
        raise SettingError(f"{path} is there already: give another name")
    try:
        with staged_file(path) as stage:
            stage.write_text(json_text(talk.to_json()), "utf-8")
    except (OSError, ValueError) as error:  # ValueError: a name that no system has
        raise OutputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return path


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def reader(write: Write) -> Read:
    """Lines of a terminal, with history and completion where prompt_toolkit is; of a pipe as they come."""
    if sys.stdin is None:  # closed
        return lambda: None
    if not at_terminal():
        keep_bytes()
        return lambda: next(iter(sys.stdin.readline, ""), None)
    if find_spec("prompt_toolkit") is None:
        write("(history and completion: pip install 'sea-bake[chat]')\n")
        return _plain
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    session: Any = PromptSession(completer=WordCompleter(list(HELP), sentence=True), complete_while_typing=False)

    def line() -> str | None:
        try:
            return str(session.prompt("> "))
        except EOFError:
            return None

    return line


def _plain() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None
