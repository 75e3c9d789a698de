"""Base and edited model side by side: what ask, chat and serve say is what the runtimes say, at every strength; through
a terminal, a pipe, and OpenAI's own client.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exports
import ggufs
import openai
import pytest
import tiny
import torch
from conftest import load, pair_of
from test_affine import CASES, EQUAL, VISIBLE, by_the_paper, difference, edit_of, logits

from sea_bake import ask, bake, chat, doctor, export_gguf, serve
from sea_bake.activations.prompt_format import prompt_format
from sea_bake.activations.rendering import without_reasoning
from sea_bake.errors import CheckpointError, MissingExtraError, SettingError
from sea_bake.io import interrupts
from sea_bake.io.llama_cpp import find_converter
from sea_bake.serving import chatting, llama_cpp, transformers_server, vllm
from sea_bake.serving import server as serving
from sea_bake.serving.conversation import Conversation
from sea_bake.serving.fields import ANSWER, CHAT, FIELDS, TEXT
from sea_bake.serving.living import Living
from sea_bake.serving.opening import opened
from sea_bake.serving.pair import BASE, EDITED, Pair, Reply, room_for
from sea_bake.serving.sampling import Sampling

CASE, LAYERS = CASES["linear SEA"], (0, 1)
STRENGTH = 0.7  # as it is stored
QUESTION = "Can bats see?"
SHORT = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module", autouse=True)
def ctrl_c() -> Iterator[None]:
    """A shell's background job starts with it ignored, and so does what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def base() -> Path:
    return exports.base()


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return load(base)


@pytest.fixture(scope="module")
def edit(base: Path, model: Any) -> Path:
    return edit_of(model, "llama", CASE, STRENGTH, layers=LAYERS).save(tiny.root() / "side-by-side.safetensors")


@pytest.fixture(scope="module")
def artefacts(base: Path, edit: Path) -> Callable[[str], Path]:
    """how -> an artefact of the edit, beside its base."""

    def make(how: str) -> Path:
        folder = tiny.root() / f"side-by-side-{how}"
        if not folder.exists():
            bake(base, edit, folder, how=how)
        return folder

    return make


def greedy(model: Any, prompt: str, count: int, *before: str) -> str:
    """By transformers alone, out of the chat template that the tiny model has."""
    turns = [f"[{('user', 'assistant')[i % 2]}] {text}\n" for i, text in enumerate((*before, prompt))]
    tokenizer = tiny.tokenizer(chat=True)
    ids = tokenizer(f"<s>{''.join(turns)}[assistant] ", add_special_tokens=False, return_tensors="pt").input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def text_of(pair: Pair, side: str, prompt: str = QUESTION, **options: Any) -> str:
    return pair.reply(side, prompt, say=lambda piece: None, **{"sampling": SHORT, **options}).text


# ----------------------------------------------------------------------------------------------------- every strength


@pytest.mark.parametrize("how", ["live", "insert"])
def test_a_strength_is_that_of_the_dense_map_and_none_is_the_base(
    base: Path, model: Any, edit: Path, artefacts: Callable[[str], Path], how: str
) -> None:
    """The base to the bit at 0, and under its own name; in between by the paper's formula; and itself afterwards."""
    before = logits(load(base))
    with pair_of(base, edit=edit) if how == "live" else pair_of(artefacts(how)) as pair:
        assert (pair.sides, pair.how, pair.fixed) == ((BASE, EDITED), how, "")
        for strength in (1.0, 0.5, -0.5, 0.0, 1.0):
            with by_the_paper(model, "llama", CASE, STRENGTH * strength, LAYERS):
                expected = logits(model)
            with pair.model(EDITED, strength) as edited:
                found = logits(edited)
            assert difference(found, expected) < EQUAL, strength
            assert (difference(found, before) > VISIBLE) == (strength != 0), strength
            if strength == 0:
                assert torch.equal(found, before)
        with pair.model(BASE, 0.5) as bare:
            assert torch.equal(logits(bare), before)
        if how == "live":
            assert torch.equal(logits(pair.any_model), before), "hooks are left on it"


@pytest.mark.parametrize("how", ["fold", "adapter"])
def test_an_edit_in_the_weights_has_its_base_beside_it_and_one_strength(
    base: Path, model: Any, artefacts: Callable[[str], Path], how: str
) -> None:
    with by_the_paper(model, "llama", CASE, STRENGTH, LAYERS):
        expected = logits(model)
    with pair_of(artefacts(how)) as pair:
        with pair.model(EDITED) as edited:
            assert difference(logits(edited), expected) < EQUAL
        with pair.model(BASE) as bare:
            assert torch.equal(logits(bare), logits(load(base)))
        with pair.model(EDITED, 0.0) as nothing:
            assert torch.equal(logits(nothing), logits(load(base)))
        for strength in (0.5, -1.0, float("nan")):
            with pytest.raises(SettingError, match="--edit" if strength == strength else "no strength"):
                pair.check(EDITED, strength)


@pytest.mark.parametrize("how", ["live", "insert"])
def test_a_strength_that_the_edit_itself_refuses_is_refused_beforehand(
    base: Path, model: Any, artefacts: Callable[[str], Path], how: str, tmp_path: Path
) -> None:
    """The bound is an Edit's own, on what is stored times what is wanted; below it, that edit can be made."""
    large = edit_of(model, "llama", CASE, 4.0, layers=LAYERS)
    bake(base, large, tmp_path / "insert", how="insert")
    with pair_of(base, edit=large) if how == "live" else pair_of(tmp_path / "insert") as pair:
        for strength in (1e6, -1e6, 250_000, 10**400, float("inf"), float("nan")):
            with pytest.raises(SettingError, match=r"no strength: use a number between -250000 and 250000"):
                pair.check(EDITED, strength)
        with pytest.raises(SettingError, match="no strength"):
            large.with_settings(alpha=4.0 * 250_000)
        pair.check(EDITED, 249_999)
        with pair.model(EDITED, -249_999.0) as edited:
            logits(edited)


@pytest.mark.slow
def test_a_fold_without_its_base_answers_alone(artefacts: Callable[[str], Path], tmp_path: Path) -> None:
    alone = tiny.changeable(artefacts("fold"), tmp_path / "alone")
    ran = tiny.run("ask", alone, "-p", QUESTION, "--max-new-tokens", 4, "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["sides"], "--base" in found["lacking"]) == (0, ["edited"], True)
    found = json.loads(tiny.run("ask", alone, "--base", exports.base(), "-p", QUESTION, "--json").out)
    assert found["sides"] == ["base", "edited"]
    tiny.refused(tiny.run("ask", alone, "--base", tmp_path / "nowhere", "-p", QUESTION), "CheckpointError", "nowhere")


def test_ask_says_what_transformers_says(base: Path, model: Any, edit: Path) -> None:
    """Base and edited, greedy; several prompts, each by itself; from Python, and as JSON."""
    other = "Is the sun a star?"
    with by_the_paper(model, "llama", CASE, STRENGTH, LAYERS):
        edited = [greedy(model, prompt, 12) for prompt in (QUESTION, other)]
    bare = [greedy(model, prompt, 12) for prompt in (QUESTION, other)]
    assert edited != bare
    heard: list[tuple[str, str]] = []
    found = ask(base, [QUESTION, other], edit=edit, max_new_tokens=12, hear=lambda *heard_: heard.append(heard_))
    assert [turn.replies[EDITED].text for turn in found.turns] == edited
    assert [turn.replies[BASE].text for turn in found.turns] == bare
    assert "".join(piece for side, piece in heard if side == EDITED) == "".join(edited)
    ran = tiny.run("ask", base, "-e", edit, "-p", QUESTION, "-p", other, "--max-new-tokens", 12, "--json")
    assert json.loads(ran.out) == json.loads(json.dumps(found.to_json()))
    ran = tiny.run("ask", base, "-e", edit, "-p", QUESTION, "--alpha", "0", "--max-new-tokens", 12, "--json")
    (turn,) = json.loads(ran.out)["answers"]
    assert turn["answers"][EDITED] == turn["answers"][BASE]
    assert turn["answers"][BASE]["text"] == bare[0]


def test_a_prompt_comes_through_a_pipe_and_answers_stand_side_by_side(
    base: Path, edit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION))
    ran = tiny.run("ask", base, "-e", edit, "-p", "-", "--max-new-tokens", 4)
    assert ran.code == 0
    assert QUESTION in ran.out
    assert [line.split()[1::2] for line in ran.out.splitlines() if "base" in line and "edited" in line]
    said = tiny.run("ask", base, "-e", edit, "-p", QUESTION, "--max-new-tokens", 4, "--quiet").out
    assert len(said.splitlines()) == 2


def test_what_is_drawn_is_drawn_again(base: Path, edit: Path) -> None:
    drawn = [
        ask(base, [QUESTION], edit=edit, temperature=2.0, max_new_tokens=12, seed=seed).turns[0].replies[EDITED].text
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_prompts_are_rendered_as_the_edits_own_were_and_otherwise_when_that_is_said(base: Path, edit: Path) -> None:
    from dataclasses import replace

    from sea_bake import Edit

    primed = replace(Edit.load(edit), recipe=prompt_format(system="Be brief.", chat_template=True).to_json())
    with pair_of(base, edit=primed) as own, pair_of(base, edit=edit) as plain:
        assert own.form.system == "Be brief."
        assert text_of(own, BASE) != text_of(plain, BASE)
        said = ask(base, [QUESTION], edit=edit, max_new_tokens=12, prompt_format=prompt_format(system="Be brief."))
        assert said.turns[0].replies[BASE].text == text_of(own, BASE)
        assert plain.reply(BASE, QUESTION, sampling=SHORT, say=lambda piece: None).tokens == 12


# ----------------------------------------------------------------------------------------------------- other runtimes


@pytest.fixture(scope="module")
def files(base: Path, model: Any, artefacts: Callable[[str], Path]) -> dict[str, Path]:
    """The base as GGUF, with the edited tensors rewritten, and the edit as a LoRA."""
    folder = tiny.root() / "ggufs"
    folder.mkdir()
    found = {"base": ggufs.llama(folder / "base.gguf", base)}
    for name, how in (("rewritten", "fold"), ("lora", "adapter")):
        found[name] = folder / f"{name}.gguf"
        export_gguf(artefacts(how), found[name], base=found["base"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("server", ["xllamacpp", "llama-server"])
def test_a_gguf_answers_in_llama_cpp(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """Base and edited differ; a LoRA's strength is free, at 0 it is the base, and half of it is something else."""
    if server == "llama-server":
        program = tmp_path / server
        program.write_text(f"#!{sys.executable}\n{LLAMA_SERVER}", "utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(llama_cpp, "installed", lambda: str(program))
    with pair_of(files["lora"], runtime="llama.cpp") as pair:
        assert (pair.runtime, pair.sides, pair.fixed) == ("llama.cpp", (BASE, EDITED), "")
        told = {strength: text_of(pair, EDITED, strength=strength) for strength in (0.0, 0.5, 1.0)}
        bare = text_of(pair, BASE)
        assert told[0.0] == bare
        assert len(set(told.values())) == 3
    with pair_of(files["rewritten"]) as pair:
        assert text_of(pair, BASE) == bare
        assert text_of(pair, EDITED) == told[1.0]
        assert text_of(pair, EDITED, strength=0.0) == bare
        with pytest.raises(SettingError, match="--lora"):
            pair.check(EDITED, 0.5)


# llama.cpp's program is no Python package: the wheel's server under its options.
LLAMA_SERVER = """
import argparse, time, xllamacpp
parser = argparse.ArgumentParser()
for name in ("-m", "--host", "--port", "-np", "-c", "--lora"):
    parser.add_argument(name)
given = parser.parse_args()
settings = xllamacpp.CommonParams()
settings.model.path, settings.port, settings.n_ctx = given.m, int(given.port), int(given.c)
settings.n_parallel, settings.warmup, settings.verbosity = int(given.np), False, -1
if given.lora:
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(given.lora, 1.0)]
server = xllamacpp.Server(settings)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_gguf_answers_in_transformers_too(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As its base with the live edit does; of its own accord where llama.cpp is not there."""
    monkeypatch.setattr(llama_cpp, "installed", lambda: None)
    with pair_of(files["rewritten"]) as pair:
        assert (pair.runtime, pair.sides) == ("transformers", (BASE, EDITED))
        assert text_of(pair, BASE) != text_of(pair, EDITED)
    for odd, words in (({"runtime": "llama.cpp"}, "pip install xllamacpp"), ({"base": "x.gguf"}, "wants the GGUF")):
        with pytest.raises(SettingError, match=words):
            opened(files["rewritten"], **odd)
    with pytest.raises(SettingError, match="pip install xllamacpp"):
        opened(files["lora"])
    moved = files["lora"].parent / "moved"
    moved.mkdir()
    for file in files["lora"].parent.glob("lora.gguf*"):
        (moved / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="--base"):
        opened(moved / "lora.gguf")


# -------------------------------------------------------------------------------------------------------- conversations


def lines(*given: str) -> Callable[[], str | None]:
    waiting = iter(given)
    return lambda: next(waiting, None)


def talked(*given: str, model: Any, **options: Any) -> tuple[str, Conversation]:
    """What a chat wrote to these lines, and the conversation."""
    written: list[str] = []
    talk = chat(model, read=lines(*given), write=written.append, **{"max_new_tokens": 8, **options})
    return "".join(written), talk


def test_each_side_goes_on_from_its_own_answers(base: Path, model: Any, edit: Path) -> None:
    _, talk = talked("Hello", QUESTION, model=base, edit=edit)
    first, second = (turn.replies for turn in talk.turns)
    assert second[BASE].text == greedy(model, QUESTION, 8, "Hello", first[BASE].text)
    with by_the_paper(model, "llama", CASE, STRENGTH, LAYERS):
        assert first[EDITED].text == greedy(model, "Hello", 8)
        assert second[EDITED].text == greedy(model, QUESTION, 8, "Hello", first[EDITED].text)
        assert second[EDITED].text != greedy(model, QUESTION, 8)


def test_commands_change_what_follows(
    base: Path, model: Any, edit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a home that nobody has is a folder's name
    place = tmp_path / "a chat.json"
    said, talk = talked(
        "/alpha 0", QUESTION, "/new", "/edit", "/alpha 0.5", QUESTION, "/new", "/base", QUESTION, "/new", "/both",
        "/system Be brief.", QUESTION, "/alpha x", "/alpha nan", "/base now", "/nothing", "/save", f"/save '{place}'",
        f"/save {place}", "/save a\0b", "/save ~nobody.at.all/x", "  ", "/alpha\t0.5",
        "/help", "/system", "/quit", "not read any more", model=base, edit=edit,
    )  # fmt: skip
    saved = json.loads(place.read_text("utf-8"))
    assert len(talk.turns) == len(saved["turns"]) == 1
    whole = json.loads(json.dumps(talk.to_json()))
    assert saved == whole | {"prompt_format": saved["prompt_format"], "refused": whole["refused"][:5]}
    assert whole["refused"][0].startswith("/alpha x: /alpha x: a number is wanted")
    assert (saved["prompt_format"]["system"], talk.pair.form.system) == ("Be brief.", None)
    bare = greedy(model, QUESTION, 8)
    assert said.count(f"base: {tiny_text(bare)}") == 2  # at first, and by itself
    assert f"edited: {tiny_text(bare)}" in said  # at strength 0
    for words in ("a number is wanted", "no strength", "takes nothing behind it", "/help lists them", "wants a file",
                  "is there already", "cannot be written", "there is no folder ~nobody.at.all: make it", "alpha 0.5",
                  "/quit", f"wrote {place}", "edited from now on"):  # fmt: skip
        assert words in said
    assert "not read" not in said


def tiny_text(text: str) -> str:
    from sea_bake.pages.text import harmless

    return harmless(text)


def test_a_chat_through_a_pipe(base: Path, edit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = f"{QUESTION}\n/alpha 0\n{QUESTION}"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    ran = tiny.run("chat", base, "--edit", edit, "--max-new-tokens", 4, "--quiet")
    assert (ran.code, ran.out.count("edited: "), "alpha 0\n" in ran.out, "> " in ran.out) == (0, 2, True, False)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    ran = tiny.run("chat", base, "--edit", edit, "--max-new-tokens", 4, "--json")
    turns = json.loads(ran.out)["turns"]
    assert [turn["alpha"] for turn in turns] == [1.0, 0.0]
    latin = QUESTION.encode() + b"\ncaf\xe9\n" + QUESTION.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(latin), encoding="utf-8"))
    ran = tiny.run("chat", base, "--edit", edit, "--max-new-tokens", 4, "--quiet")
    assert (ran.code, ran.out.count("edited: "), ran.out.count("no UTF-8")) == (2, 2, 1)  # the conversation goes on
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(latin), encoding="utf-8"))
    tiny.refused(tiny.run("ask", base, "--edit", edit, "-p", "-"), "SettingError", "no UTF-8")
    asked = tiny.run("ask", base, "--edit", edit, "-p", QUESTION, "--max-new-tokens", 4, "--json")
    assert turns[0] == json.loads(asked.out)["answers"][0], "the end of a line is no part of it"


class Interrupted(Pair):
    """Says a word; then Ctrl-C comes while the edited side speaks."""

    name, how, runtime, sides = "x", "live", "none", (BASE, EDITED)

    def __init__(self, swallowed: bool) -> None:
        self.swallowed, self.before = swallowed, []

    def check_format(self, form: Any) -> None: ...

    def close(self) -> None: ...

    def reply(self, side: str, prompt: str, *, before: Any = (), say: Any, **options: Any) -> Reply:
        self.before.append((side, *before))
        say("word ")
        if side == EDITED and prompt == "stop":
            with contextlib.suppress(KeyboardInterrupt) if self.swallowed else contextlib.nullcontext():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
        return Reply("word ", 1, True)


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_ends_an_answer_and_not_the_conversation(swallowed: bool) -> None:
    pair = Interrupted(swallowed)
    talk = Conversation(pair)
    with interrupts.heeded():
        turn = talk.ask("stop")
        assert turn.interrupted
        assert turn.replies[EDITED].text == "word "
        assert not interrupts.interrupted()
        interrupts.check()
        assert not talk.ask("on").interrupted
    assert pair.before[-1] == (EDITED, ("stop", "word "))
    with interrupts.heeded(), pytest.raises(KeyboardInterrupt):  # the control: outside of an answer it ends all
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_between_answers_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a prompt without prompt_toolkit, and in a command: the next question is answered all the same."""
    talk, written, said = Conversation(Interrupted(False)), [], iter(["interrupt", "on", "/system x", "on", None])

    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    def read() -> str | None:
        line = next(said)
        return interrupt() if line == "interrupt" else line

    monkeypatch.setattr(Interrupted, "check_format", interrupt)
    with interrupts.heeded():
        chatting._loop(talk, read, written.append)
        assert not interrupts.interrupted()
    assert [turn.interrupted for turn in talk.turns] == [False, False]
    assert "".join(written).count("(Ctrl-D or /quit ends the chat)") == 2


def test_a_second_ctrl_c_behind_the_first_ends_no_chat() -> None:
    """It comes while the chat tells what ends it; and the control: it was heard."""
    talk, came, said = Conversation(Interrupted(False)), [], iter(["stop", "interrupt", "on", None])

    def read() -> str | None:
        line = next(said)
        if line == "interrupt":
            signal.raise_signal(signal.SIGINT)
        return line

    def write(text: str) -> None:
        if "Ctrl-D" in text:
            came.append(text)
            signal.raise_signal(signal.SIGINT)

    with interrupts.heeded():
        chatting._loop(talk, read, write)
    assert [turn.prompt for turn in talk.turns] == ["stop", "on"]
    assert len(came) == 1


def test_what_one_side_has_said_is_kept_when_the_other_fails() -> None:
    class Half(Interrupted):
        def reply(self, side: str, prompt: str, **options: Any) -> Reply:
            if side == EDITED or prompt == "never":
                raise SettingError("too long")
            return super().reply(side, prompt, **options)

    talk, written = Conversation(Half(False)), []
    chatting._loop(talk, lines("Hello", "never", "on"), written.append)
    assert [list(turn.replies) for turn in talk.turns] == [[BASE], [BASE]]  # a turn of which nothing came is none
    assert talk.before(BASE) == [("Hello", "word "), ("on", "word ")]
    assert "".join(written).splitlines() == ["base: word ", "too long", "too long", "base: word ", "too long"]
    assert talk.refused == ["Hello: too long", "never: too long", "on: too long"]


def test_a_pipe_is_told_what_was_refused(base: Path, edit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, code in ((f"{QUESTION}\n/alpha x\n/save there/is/none.json\n", 2), (f"{QUESTION}\n", 0)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        ran = tiny.run("chat", base, "--edit", edit, "--max-new-tokens", 2, "--json")
        refused = json.loads(ran.out)["refused"]
        assert (ran.code, [line.partition(": ")[0] for line in refused]) == (
            code, ["/alpha x", "/save there/is/none.json"] if code else []
        )  # fmt: skip


def test_ctrl_c_ends_ask_as_it_ends_every_command(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(*given: Any, **options: Any) -> Reply:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setattr(Living, "reply", reply)
    ran = tiny.run("ask", base, "-p", QUESTION)
    assert (ran.code, ran.out, ran.err) == (130, "", "interrupted: nothing half-written was left behind\n")


def test_an_error_in_an_answer_is_no_interrupt() -> None:
    with pytest.raises(SettingError), interrupts.taken():
        raise SettingError("odd")


def test_what_is_said_of_reasoning_is_not_said_again() -> None:
    for end in ("</think>", "</seed:think>", "[/THINK]", "<|END_THINKING|>", "<channel|>"):
        assert without_reasoning(f"hm\n{end}\n\nYes.") == "Yes."
    assert without_reasoning("Yes.") == "Yes."
    assert room_for(10, 12, 100) == 2
    assert room_for(10, None, 100) == 100
    with pytest.raises(SettingError, match="/new"):
        room_for(12, 12, 100)


# ----------------------------------------------------------------------------------------------------------- a terminal


class Terminal:
    """A command behind a pseudo-terminal."""

    def __init__(self, *words: Any, **more: str) -> None:
        ours, theirs = pty.openpty()
        environment = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "200", "LINES": "50", **more}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sea_bake", *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, **environment}, start_new_session=True, preexec_fn=_takes_the_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.ours, self.seen, self.read = ours, "", 0

    def until(self, words: str, seconds: float = 90) -> str:
        """Read on until these words come; returns what was read."""
        end = time.monotonic() + seconds
        while words not in self.seen[self.read :]:
            assert time.monotonic() < end, (words, self.seen)
            if select.select([self.ours], [], [], 0.2)[0]:
                self.seen += os.read(self.ours, 4096).decode("utf-8", "replace")
        began, self.read = self.read, self.seen.index(words, self.read) + len(words)
        return self.seen[began : self.read]

    def types(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def ends(self) -> int:
        with contextlib.suppress(OSError):
            while os.read(self.ours, 4096):
                pass
        os.close(self.ours)
        return self.process.wait(60)


def _takes_the_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_a_chat_in_a_terminal(base: Path, edit: Path, tmp_path: Path) -> None:
    """An answer is interrupted, the conversation goes on, is saved, and Ctrl-D ends it."""
    # 400 tokens of a tiny model take seconds, and its context holds them.
    terminal = Terminal("chat", base, "--edit", edit, "--max-new-tokens", 400)
    terminal.until(">")
    terminal.types("Hello\r")
    terminal.until("base: ")
    terminal.types("\x03")
    terminal.until("(interrupted)")
    terminal.until(">")
    terminal.types("/edit\r")
    terminal.until("edited from now on")
    terminal.until(">")
    terminal.types("/alpha 0.5\r")
    terminal.until("alpha 0.5")
    terminal.until(">")
    terminal.types(f"/save {tmp_path / 'chat.json'}\r")
    terminal.until("wrote ")
    terminal.until(">")
    terminal.types("\x03")  # with nothing to interrupt
    terminal.until("Ctrl-D")
    terminal.until(">")
    terminal.types("\x04")
    assert terminal.ends() == 0
    (turn,) = json.loads((tmp_path / "chat.json").read_text("utf-8"))["turns"]
    assert (turn["prompt"], turn["interrupted"]) == ("Hello", True)


def test_a_terminal_without_prompt_toolkit_has_lines_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(chatting, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "stdin", Typed("Hello\n"))
    written: list[str] = []
    read = chatting.reader(written.append)
    assert (read(), read()) == ("Hello", None)
    monkeypatch.setattr(sys, "stdin", None)  # chat <&-
    assert chatting.reader(written.append)() is None
    assert "pip install 'sea-bake[chat]'" in "".join(written)


# --------------------------------------------------------------------------------------------------------- the endpoint


@contextlib.contextmanager
def client_of(pair: Living, **options: Any) -> Iterator[openai.OpenAI]:
    place = serving.listening("127.0.0.1", 0)
    with (
        transformers_server.served(pair, place, hosts=serving.HERE, **options) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


def answer(client: openai.OpenAI, name: str, count: int = 8, prompt: str = QUESTION, **more: Any) -> str:
    messages: Any = [{"role": "user", "content": prompt}]
    found = client.chat.completions.create(
        model=name, messages=messages, max_tokens=count, temperature=0, extra_body=more
    )
    return str(found.choices[0].message.content)


@pytest.mark.slow
def test_the_endpoint_answers_as_ask_does(base: Path, edit: Path, artefacts: Callable[[str], Path]) -> None:
    """At every strength, whole and streamed; and it refuses in OpenAI's own words."""
    with pair_of(base, edit=edit) as pair, client_of(pair) as client:
        expected = {strength: text_of(pair, EDITED, sampling=Sampling(8), strength=strength) for strength in (1, 0.5)}
        bare = text_of(pair, BASE, sampling=Sampling(8))
        assert len({bare, *expected.values()}) == 3
        assert [one.id for one in client.models.list()] == ["base", "edited"]
        assert answer(client, "base") == answer(client, "edited", alpha=0) == bare
        assert {strength: answer(client, "edited", alpha=strength) for strength in expected} == expected
        assert answer(client, "edited") == expected[1]
        told = client.responses.create(model="edited", input=QUESTION, max_output_tokens=8, temperature=0)
        assert told.output_text == expected[1]
        streamed = client.chat.completions.create(
            model="edited", messages=[{"role": "user", "content": QUESTION}], max_tokens=8, temperature=0, stream=True
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in streamed) == expected[1]
        for name, more, words in (
            ("base", {"alpha": 1}, "belongs to the model 'edited'"),
            ("edited", {"alpha": "much"}, "no number"),
            ("edited", {"alpha": True}, "no number"),
            ("edited", {"alpha": 10**400}, "no strength"),
            ("edited", {"beta": 1}, "beta"),
            ("else", {}, "base and edited are served"),
        ):
            with pytest.raises(openai.APIStatusError, match=words):
                answer(client, name, **more)
        for host, code in (("localhost", 200), ("evil.example", 400)):
            request = urllib.request.Request(f"{client.base_url}models", headers={"Host": host})
            with contextlib.suppress(urllib.error.HTTPError) if code == 400 else contextlib.nullcontext():
                assert urllib.request.urlopen(request).status == code == 200
    with pair_of(artefacts("insert")) as pair, client_of(pair, alpha=0.5) as client:
        assert (answer(client, "edited"), answer(client, "base")) == (expected[0.5], bare)
    with pair_of(artefacts("fold")) as pair, client_of(pair) as client:
        assert (answer(client, "edited"), answer(client, "base")) == (expected[1], bare)
        assert answer(client, "edited", alpha=0) == bare
        with pytest.raises(openai.APIStatusError, match="its strength is fixed"):
            answer(client, "edited", alpha=0.5)


@pytest.mark.slow
def test_a_conversation_longer_than_the_model_reads_is_refused_and_blocks_nobody(base: Path, edit: Path) -> None:
    with pair_of(base, edit=edit) as pair, client_of(pair) as client:
        for stream in (False, True):
            for messages in ([], [{"role": "user", "content": "word " * 600}]):
                with pytest.raises(openai.UnprocessableEntityError, match=r"positions for 512|at least one"):
                    client.chat.completions.create(model="edited", messages=messages, stream=stream)
        with pytest.raises(openai.UnprocessableEntityError, match="positions for 512"):
            client.completions.create(model="edited", prompt="word " * 600)
        told = client.completions.create(model="base", prompt="word " * 200, max_tokens=10**6, temperature=0).usage
        assert told is not None
        assert told.prompt_tokens < told.total_tokens <= 512
        assert answer(client, "edited") == text_of(pair, EDITED, sampling=Sampling(8))


SAID = {"role": "user", "content": QUESTION}
CALL = {"function": {"name": "look", "arguments": "{"}}
NO_ARGUMENTS = {"type": "function", "id": "x", "function": {"name": "look", "arguments": "{}"}}
ASKED = ("model", "messages", "prompt", "input")
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
# Route, what is wrong with the request, and words of the refusal.
UNREADABLE: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": QUESTION}, "messages = .* a list"),
    (CHAT, {"messages": []}, "at least one"),
    (CHAT, {"messages": None}, "no messages"),
    (CHAT, {"messages": [QUESTION]}, r"messages\[0\] = .* an object"),
    (CHAT, {"messages": [SAID, None]}, r"messages\[1\] = null"),
    (CHAT, {"messages": [{"content": QUESTION}]}, "with a role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, r"messages\[0\].content = 5"),
    (CHAT, {"messages": [{"role": "user", "content": [QUESTION]}]}, r"content\[0\]"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "the one kind"),
    (CHAT, {"messages": [{"role": "user", "content": "\ud83d"}]}, r"messages\[0\].content holds half a surrogate"),
    (CHAT, {"messages": [SAID, {"role": "assistant", "tool_calls": [CALL]}]}, "messages cannot be read"),
    (CHAT, {"messages": [SAID, {"role": "assistant", "tool_calls": "x"}]}, "messages cannot be read"),
    (CHAT, {"temperature": -1}, "from 0 to 2"),
    (CHAT, {"temperature": 2.5}, "from 0 to 2"),
    (CHAT, {"temperature": float("nan")}, "from 0 to 2"),
    (CHAT, {"temperature": "warm"}, "from 0 to 2"),
    (CHAT, {"temperature": 1e-45}, "use 0"),
    (CHAT, {"top_p": 1.5}, "from 0 to 1"),
    (CHAT, {"top_p": -0.1}, "from 0 to 1"),
    (CHAT, {"n": 2}, "n = 2 is more .* or give 1"),
    (CHAT, {"logprobs": True}, "logprobs"),
    (CHAT, {"presence_penalty": 0.5}, "presence_penalty"),
    (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {"max_tokens": 0}, "at least 1"),
    (CHAT, {"max_tokens": "5"}, "at least 1"),
    (CHAT, {"max_tokens": True}, "at least 1"),
    (CHAT, {"max_completion_tokens": -3}, "at least 1"),
    (CHAT, {"stop": 5}, "stop = 5"),
    (CHAT, {"stop": ["a", ""]}, "none of them empty"),
    (CHAT, {"seed": 2**70}, "seed = "),
    (CHAT, {"frequency_penalty": -1}, "above -1"),
    (CHAT, {"logit_bias": [1]}, "logit_bias"),
    (CHAT, {"logit_bias": {"-1": 1}}, "logit_bias"),
    (CHAT, {"logit_bias": {"512": 1}}, "token 512"),
    (CHAT, {"logit_bias": {"5": 1000}}, "from -100 to 100"),
    (CHAT, {"tools": ["look"]}, "tools"),
    (CHAT, {"chat_template_kwargs": {"tokenize": False}}, "'tokenize' is none"),
    (CHAT, {"generation_config": "[1]"}, "an object in JSON"),
    (CHAT, {"generation_config": '{"do_sample": true, "temperature": "x"}'}, "with generation_config as given"),
    (CHAT, {"stream": "false"}, "true or false"),
    (CHAT, {"alpha": 1e6}, "no strength"),
    (CHAT, {"alpha": float("nan")}, "no strength"),
    (CHAT, {"stream": True, "messages": QUESTION}, "messages = "),
    (TEXT, {"prompt": "\udc80"}, "prompt holds half"),
    (TEXT, {"prompt": [QUESTION]}, "prompt = "),
    (TEXT, {"suffix": 5}, "suffix = 5"),
    (TEXT, {"echo": True}, "echo"),
    (ANSWER, {"input": "\udc80"}, "input holds half"),
    (ANSWER, {"input": None}, "no input"),
    (ANSWER, {"input": ["role"]}, r"input\[0\]"),
    (ANSWER, {"input": [SAID, {"type": "function_call"}]}, "call_id"),
    (ANSWER, {"instructions": 5}, "instructions = 5"),
    (ANSWER, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (ANSWER, {"text": {"format": {"type": "json_object"}}}, "text.format = "),
    (ANSWER, {"max_output_tokens": 0}, "at least 1"),
    (CHAT, {"temprature": 1}, "no field of /v1/chat/completions .* did you mean temperature"),
    (CHAT, {"max_output_tokens": 5}, "max_output_tokens is no field"),
    (CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, "give one of them"),
    (CHAT, {"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation = true"),
    (CHAT, {"stream_options": {"other": True}}, "stream_options.other"),
    (CHAT, {"stream_options": 5}, "stream_options = 5"),
    (CHAT, {"reasoning_effort": "low"}, "reasoning_effort"),
    (CHAT, {"prediction": {"type": "content", "content": "x"}}, "prediction"),
    (CHAT, {"service_tier": "flex"}, 'service_tier = .* or give "default"'),
    (CHAT, {"store": True}, "store = true .* or give false"),
    (CHAT, {"verbosity": "low"}, "verbosity"),
    (CHAT, {"parallel_tool_calls": False, "tools": [LOOK]}, "parallel_tool_calls = false .* or give true"),
    (CHAT, {"tool_choice": "none", "tools": [LOOK]}, "tool_choice"),
    (CHAT, {"tools": [LOOK]}, "takes no tools"),
    (CHAT, {"tools": [LOOK["function"]]}, r"tools\[0\] = .* a function"),
    (CHAT, {"tools": [{"function": {**LOOK["function"], "strict": True}}]}, "drop strict"),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, "does not read 'enable_thinking'"),
    (CHAT, {"chat_template_kwargs": [1]}, "an object"),
    (CHAT, {"messages": [{"role": "wizard", "content": QUESTION}]}, r"messages\[0\].role = .wizard. .* developer"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content = null"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, r"messages\[0\].content = \[\]"),
    (CHAT, {"messages": [SAID, {"role": "assistant"}]}, r"messages\[1\].content = null"),
    (CHAT, {"messages": [{**SAID, "tool_calls": [CALL]}]}, "not the assistant's"),
    (CHAT, {"messages": [{**SAID, "audio": {"id": "x"}}]}, r"messages\[0\].audio"),
    (CHAT, {"messages": [{**SAID, "weight": 1}]}, r"messages\[0\].weight is no field"),
    (CHAT, {"generation_config": '{"foo": 5}'}, "generation_config.foo is no setting"),
    (CHAT, {"generation_config": '{"num_return_sequences": 2}'}, "generation_config.num_return_sequences = 2"),
    (CHAT, {"generation_config": '{"max_length": 50}'}, "give max_new_tokens"),
    (CHAT, {"generation_config": '{"max_new_tokens": "5"}'}, "at least 1"),
    (CHAT, {"generation_config": '{"max_new_tokens": 5}'}, "max_new_tokens and max_tokens say the same"),
    (CHAT, {"generation_config": '{"do_sample": false, "top_k": 5}'}, "nothing is drawn"),
    (CHAT, {"generation_config": '{"do_sample": false}', "temperature": 1}, "nothing is drawn"),
    (CHAT, {"generation_config": '{"do_sample": "no"}'}, "true or false"),
    (CHAT, {"generation_config": '{"length_penalty": 2.0}'}, "num_beams above 1"),
    (CHAT, {"logit_bias": {"1" * 5000: 1}}, "logit_bias = .* cannot be used"),
    (CHAT, {"logit_bias": {"05": 1}}, "logit_bias = .* cannot be used"),
    (TEXT, {"prompt": None}, "no prompt"),
    (TEXT, {"messages": [SAID]}, "messages is no field of /v1/completions"),
    (TEXT, {"logit_bias": {"512": 1}}, "token 512"),
    (ANSWER, {"include": ["message.output_text.logprobs"]}, "include"),
    (ANSWER, {"truncation": "middle"}, "truncation"),
    (ANSWER, {"max_tool_calls": 1}, "max_tool_calls"),
    (ANSWER, {"prompt": {"id": "x"}}, "prompt = "),
    (ANSWER, {"reasoning": {"effort": "low"}}, "reasoning.effort = "),
    (ANSWER, {"text": {"verbosity": "low"}}, 'text.verbosity = "low" .* or give "medium"'),
    (ANSWER, {"store": True}, "store = true"),
    (ANSWER, {"stop": "x"}, "stop is no field of /v1/responses"),
    (ANSWER, {"tools": [{"type": "web_search"}]}, "the one kind of tool"),
    (ANSWER, {"tools": [{"type": "function", "name": "look"}]}, "takes no tools"),
    (ANSWER, {"input": [{"role": "wizard", "content": QUESTION}]}, r"input\[0\].role"),
    (ANSWER, {"input": [{"role": "user"}]}, r"input\[0\].content = null"),
    (ANSWER, {"input": [{"role": "system", "content": "x"}, SAID], "instructions": "y"}, "give one of them"),
    ("systemone", {"state": "\ud800", "questions": {}}, "state holds half"),
]  # fmt: skip
# Everything that a client sends of its own accord, and asks for nothing by it.
HARMLESS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"n": 1, "logprobs": False, "presence_penalty": 0.0, "user": "ada", "store": False, "tool_choice": "auto"}),
    (CHAT, {"stop": [], "logit_bias": {}, "seed": None, "response_format": {"type": "text"}}),
    (CHAT, {"stop": "zzz", "logit_bias": {"5": -100}, "top_p": 0.5, "temperature": 2, "seed": -1}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": "\ud83d\ude00"}]}),  # both halves
    (CHAT, {"user": "ada", "metadata": {"x": "y"}, "safety_identifier": "z", "prompt_cache_key": "k"}),
    (CHAT, {"service_tier": "auto", "verbosity": "medium", "parallel_tool_calls": False, "tool_choice": "none"}),
    (CHAT, {"stream_options": {"include_usage": True}, "tools": [], "functions": [], "chat_template_kwargs": {}}),
    (CHAT, {"generation_config": '{"max_new_tokens": null, "num_return_sequences": 1}'}),
    (CHAT, {"messages": [{**SAID, "name": "ada", "refusal": None, "tool_calls": [], "annotations": []}]}),
    (CHAT, {"messages": [SAID, {"role": "assistant", "content": None, "tool_calls": [NO_ARGUMENTS]}]}),
    *((route, {name: None for name in fields if name not in ASKED}) for route, fields in FIELDS.items()),
    (TEXT, {"prompt": ""}),
    (ANSWER, {"text": {"verbosity": "medium", "format": {"type": "text"}}, "truncation": "auto", "include": []}),
    (ANSWER, {"reasoning": {"effort": None}, "parallel_tool_calls": True, "store": False, "user": "ada"}),
    (ANSWER, {"input": [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]}),
]  # fmt: skip


def posted(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """As any client could write it: OpenAI's own sends no half characters, and no NaN."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.loads(found.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.slow
def test_a_request_that_cannot_be_read_is_refused_with_what_to_change(base: Path, edit: Path) -> None:
    """In OpenAI's shape, and the next one is answered; what asks for nothing more is answered as without it."""
    whole = {
        CHAT: {"messages": [SAID], "max_tokens": 4},
        TEXT: {"prompt": QUESTION, "max_tokens": 4},
        ANSWER: {"input": QUESTION, "max_output_tokens": 4},
        "systemone": {},
    }
    with pair_of(base, edit=edit) as pair, client_of(pair) as client:
        expected = answer(client, "edited")
        for route, odd, words in UNREADABLE:
            body = json.dumps({"model": "edited", **whole[route], **odd}).encode()
            code, found = posted(f"{client.base_url}{route}", body)
            assert (code, found["error"]["type"]) == (422, "invalid_request_error"), (odd, found)
            assert re.search(words, found["error"]["message"]), (odd, found)
        for body in (b"{", b"[1]", b"", b'{"model": "\xff"}', b"[" * 100_000):
            code, found = posted(f"{client.base_url}{CHAT}", body)
            assert (code, "one JSON object" in found["error"]["message"]) == (400, True), (body[:20], found)
        root = str(client.base_url).removesuffix("/v1/")
        for url in (f"{client.base_url}nowhere", f"{client.base_url}audio/transcriptions", f"{root}/load_model"):
            code, found = posted(url, b'{"model": 5}')
            assert (code, found["error"]["type"]) == (404, "invalid_request_error"), url
        for route, more in HARMLESS:
            body = json.dumps({"model": "edited", **whole[route], **more}).encode()
            code, found = posted(f"{client.base_url}{route}", body)
            assert code == 200, (more, found)
        assert answer(client, "edited") == expected


@pytest.mark.slow
def test_a_temperature_has_its_say_and_a_failure_of_the_server_is_its_own(base: Path, edit: Path) -> None:
    """Drawn, though the model's own configuration draws nothing; and no 4xx for what no other request would mend."""
    with pair_of(base, edit=edit) as pair, client_of(pair) as client:
        assert not pair.any_model.generation_config.do_sample

        def drawn(**options: Any) -> str:
            said = client.chat.completions.create(model="edited", messages=[SAID], max_tokens=12, **options)  # type: ignore[list-item]
            return str(said.choices[0].message.content)

        assert drawn(temperature=2, seed=1) == drawn(temperature=2, seed=1) != drawn(temperature=2, seed=2)
        assert drawn(temperature=0, seed=1) == drawn(temperature=2, top_p=0, seed=2)

        def broken(*_: Any) -> None:
            raise ValueError("a broken part")

        hook = pair.any_model.register_forward_pre_hook(broken)
        with pytest.raises(openai.InternalServerError, match="see its terminal: a broken part"):
            drawn(temperature=0)
        hook.remove()
        assert drawn(temperature=0)


def chosen(found: dict[str, Any]) -> dict[str, Any]:
    """What a whole answer says, and how it ended."""
    (one,) = found["choices"]
    return {"text": one.get("text") or one["message"]["content"], "end": one["finish_reason"], **found["usage"]}


@pytest.mark.slow
def test_what_a_refusal_advises_does_what_it_says(base: Path, edit: Path) -> None:
    """The example of generation_config draws among so many, for as long as an answer is without one; half a default is
    none; and what is said of transformers' settings beside the fields of OpenAI has its say.
    """
    whole = {"model": "edited", "messages": [SAID]}
    with pair_of(base, edit=edit) as pair, client_of(pair) as client:

        def told(route: str = CHAT, **more: Any) -> dict[str, Any]:
            given = whole if route == CHAT else {"model": "edited", "prompt": QUESTION}
            code, found = posted(f"{client.base_url}{route}", json.dumps({**given, **more}).encode())
            assert code == 200, found
            return chosen(found)

        _, found = posted(f"{client.base_url}{CHAT}", json.dumps({**whole, "generation_config": "x"}).encode())
        example = json.loads(re.search(r"such as (\".*\")$", found["error"]["message"])[1])  # type: ignore[index]
        assert json.loads(example) == {"do_sample": True, "top_k": 5}
        plain = told()
        assert plain["completion_tokens"] > 20
        assert told(generation_config='{"max_new_tokens": null}') == told(generation_config="{}") == plain
        drawn = {told(generation_config=example, seed=seed)["text"] for seed in (1, 1, 2)}
        assert len(drawn | {plain["text"]}) == 3
        assert told(generation_config='{"top_k": 5}', seed=1)["text"] in drawn
        assert told(generation_config='{"top_k": 1}', seed=1) == plain  # among one
        assert told(generation_config='{"max_new_tokens": 3}') == told(max_tokens=3)
        assert (told(max_tokens=3)["completion_tokens"], told(max_tokens=3)["end"]) == (3, "length")
        first = told(TEXT, max_tokens=1, temperature=0)["text"]
        ids = pair.tokenizer(first, add_special_tokens=False).input_ids
        assert told(TEXT, max_tokens=1, temperature=0, logit_bias={str(ids[0]): -100})["text"] != first


@pytest.mark.slow
def test_usage_is_streamed_in_a_chunk_of_its_own_where_it_is_asked_for(base: Path, edit: Path) -> None:
    with pair_of(base, edit=edit) as pair, client_of(pair) as client:
        for asked in (
            lambda **more: client.chat.completions.create(model="base", messages=[SAID], max_tokens=4, **more),
            lambda **more: client.completions.create(model="base", prompt=QUESTION, max_tokens=4, **more),
        ):
            usage = asked().usage
            *pieces, last = asked(stream=True, stream_options={"include_usage": True})
            assert (last.choices, last.usage) == ([], usage)
            assert not any(piece.usage for piece in pieces)
            assert pieces[-1].choices[0].finish_reason == "length"
            plain = list(asked(stream=True))
            assert [one.choices for one in plain] == [piece.choices for piece in pieces]


@pytest.mark.slow
def test_a_template_is_given_all_that_a_request_holds(base: Path, edit: Path) -> None:
    """Tools and variables where it reads them; a name, what was thought, and what was said beside a call."""
    template = (
        "{% for m in messages %}[{{ m.role }}|{{ m.name }}|{{ m.reasoning_content }}] {{ m.content }}\n{% endfor %}"
        "{% generation %}{% for one in tools or [] %}{{ one.function.name }}{% continue %}{% endfor %}{{ mood }}"
        "{% endgeneration %}"
    )
    with pair_of(base, edit=edit) as pair:
        pair.tokenizer.chat_template = template
        seen: list[str] = []
        whole, hook = {"model": "edited", "max_tokens": 1}, lambda _module, _given, more: seen.append(more["input_ids"])
        handle = pair.any_model.register_forward_pre_hook(hook, with_kwargs=True)
        with client_of(pair) as client:
            for route, more, words in (
                (CHAT, {"messages": [{**SAID, "name": "ada"}]}, f"[user|ada|] {QUESTION}\n"),
                (CHAT, {"messages": [SAID], "tools": [LOOK]}, "\nlook"),
                (CHAT, {"messages": [SAID], "chat_template_kwargs": {"mood": "glad"}}, "\nglad"),
                (
                    CHAT,
                    {"messages": [SAID, {"role": "assistant", "content": "So.", "tool_calls": [NO_ARGUMENTS]}]},
                    "] So.\n",
                ),
                (
                    CHAT,
                    {"messages": [SAID, {"role": "assistant", "content": "So.", "reasoning_content": "hm"}]},
                    "[assistant||hm] So.\n",
                ),
                (ANSWER, {"input": QUESTION, "tools": [{"type": "function", "name": "look"}]}, "\nlook"),
            ):
                given = whole if route == CHAT else {"model": "edited", "max_output_tokens": 16}
                code, found = posted(f"{client.base_url}{route}", json.dumps({**given, **more}).encode())
                assert code == 200, found
                prompt = next(one for one in seen if one.shape[1] > 1)
                assert words in pair.tokenizer.decode(prompt[0]), (more, pair.tokenizer.decode(prompt[0]))
                seen.clear()
        handle.remove()


@pytest.mark.slow
def test_a_prompt_of_no_token_is_refused(base: Path) -> None:
    """A tokenizer that puts nothing in front of a text."""
    with pair_of(base) as pair:
        pair.tokenizer._tokenizer.post_processor = None
        assert pair.tokenizer("").input_ids == []
        with client_of(pair) as client:
            for stream in (False, True):
                with pytest.raises(openai.UnprocessableEntityError, match="say something"):
                    client.completions.create(model="base", prompt="", stream=stream)
            assert client.completions.create(model="base", prompt="Hm", max_tokens=1).choices


@pytest.mark.slow
def test_both_sides_at_once_are_served_one_after_the_other(base: Path, edit: Path) -> None:
    """Hooks on one model: an answer of the base must not begin while they are on."""
    from concurrent.futures import ThreadPoolExecutor

    with pair_of(base, edit=edit) as pair, client_of(pair) as client:
        expected = {name: answer(client, name, 24) for name in ("base", "edited")}
        assert expected["base"] != expected["edited"]
        with ThreadPoolExecutor(6) as pool:
            names = ["base", "edited"] * 3
            assert list(pool.map(lambda name: answer(client, name, 24), names)) == [expected[name] for name in names]


def test_a_model_without_a_chat_template_and_one_that_takes_no_system_prompt(edit: Path, base: Path) -> None:
    with pair_of(exports.base(chat=False)) as pair, client_of(pair) as client:
        assert [one.id for one in client.models.list()] == ["base"]
        assert answer(client, "base") == text_of(pair, BASE, sampling=Sampling(8))
        with pytest.raises(openai.NotFoundError, match="--edit"):
            answer(client, "edited")
    with pair_of(base, edit=edit) as pair:
        refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
        pair.tokenizer.chat_template = refusal + pair.tokenizer.chat_template
        messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
        with client_of(pair) as client, pytest.raises(openai.APIStatusError, match="no system prompt"):
            client.chat.completions.create(model="edited", messages=messages)
        with pytest.raises(SettingError, match="no system prompt"):
            Conversation(pair).set_system("Be brief.")
        assert pair.form.system is None


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c(base: Path, edit: Path) -> None:
    words = ["serve", base, "--edit", edit, "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sea_bake", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    told = ""
    while not told.rstrip().endswith("\n}"):
        line = process.stdout.readline()
        assert line, process.stderr.read()
        told += line
    facts = json.loads(told)
    assert (facts["models"], facts["server"], facts["alpha"]) == (["base", "edited"], "transformers", True)
    assert facts["url"].startswith("http://127.0.0.1:")
    with openai.OpenAI(base_url=facts["url"], api_key="none") as client:
        assert answer(client, "edited", alpha=0) == answer(client, "base") != answer(client, "edited")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
    process.stdout.close()
    process.stderr.close()


VLLM = """
import http.server, json, sys
given = sys.argv[1:]
json.dump(given, open(sys.argv[0] + ".json", "w"))
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *given): pass
http.server.HTTPServer(("127.0.0.1", int(given[given.index("--port") + 1])), Healthy).serve_forever()
"""


@pytest.mark.slow
def test_vllm_is_given_the_edit_as_a_lora_where_it_is_installed(
    base: Path, edit: Path, artefacts: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of that name writes down what it was given; ``scripts/check_vllm`` runs the real one."""
    assert not vllm.suits(base, edit)
    for how in ("auto", "vllm"):
        monkeypatch.setenv("PATH", str(tmp_path))
        program = tmp_path / "vllm"
        program.write_text(f"#!{sys.executable}\n{VLLM}", "utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        told: list[dict[str, Any]] = []
        given: list[list[str]] = []

        def ready(facts: dict[str, Any], told: list[Any] = told, given: list[Any] = given) -> None:
            told.append(facts)
            given.append(json.loads(Path(f"{tmp_path / 'vllm'}.json").read_text("utf-8")))
            adapter = given[0][given[0].index("--lora-modules") + 1].partition("=")[2]
            assert (Path(adapter) / "adapter_model.safetensors").is_file()
            raise KeyboardInterrupt

        what = {"edit": edit} if how == "auto" else {}
        serve(base if how == "auto" else artefacts("adapter"), server=how, port=port, ready=ready, **what)
        assert (told[0]["server"], told[0]["models"], told[0]["alpha"]) == ("vllm", ["base", "edited"], False)
        (words,) = given
        assert words[:4] == ["serve", str(base), "--served-model-name", "base"]
        assert words[words.index("--max-lora-rank") + 1] == "8"
    assert vllm.suits(base, edit)
    other = edit_of(load(base), "llama", CASES["mean difference"], 1.0, layers=LAYERS)
    assert not any((vllm.suits(artefacts("fold"), None), vllm.suits(base, other), vllm.suits(base, None)))
    for model, words in ((base, "name an edit"), (artefacts("fold"), "no adapter")):
        with pytest.raises(SettingError, match=words):
            serve(model, server="vllm", port=port)


# -------------------------------------------------------------------------------------------------------------- SmolLM2


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_is_asked_and_served(smollm2: Path, tmp_path: Path) -> None:
    """Real weights, edited in one of their layers: live, and in every artefact; by ask, a chat and OpenAI's client."""
    place = tmp_path / "edit.safetensors"
    with pair_of(smollm2) as pair:
        edit_of(pair.any_model, "llama", CASE, 4.0, layers=(14,)).save(place)
        bare = text_of(pair, BASE, sampling=Sampling(6))
    with pair_of(smollm2, edit=place) as pair:
        told = {strength: text_of(pair, EDITED, sampling=Sampling(6), strength=strength) for strength in (0.0, 1.0)}
        assert told[0.0] == bare != told[1.0]
        ids = torch.arange(100, 112)[None]
        with pair.model(EDITED, 0.0) as model:
            nothing = logits(model, ids)
        with pair.model(BASE) as model:
            assert torch.equal(nothing, logits(model, ids))
        with pair.model(EDITED, 0.5) as model:
            assert difference(logits(model, ids), nothing) > VISIBLE
        with client_of(pair) as client:
            assert (answer(client, "base", 6), answer(client, "edited", 6)) == (bare, told[1.0])
            assert answer(client, "edited", 6, alpha=0) == bare
    for how, source in (("insert", None), ("fold", smollm2)):
        bake(smollm2, place, tmp_path / how, how=how)
        _, talk = talked(QUESTION, model=tmp_path / how, base=source, max_new_tokens=6)
        assert {side: reply.text for side, reply in talk.turns[0].replies.items()} == {BASE: bare, EDITED: told[1.0]}
        with pair_of(tmp_path / how, base=source) as pair, client_of(pair) as client:
            assert (answer(client, "base", 6), answer(client, "edited", 6)) == (bare, told[1.0])
            assert answer(client, "edited", 6, alpha=0) == bare
            with pair.model(EDITED, 0.0) as model:
                assert torch.equal(logits(model, ids), nothing)
    ran = tiny.run("ask", tmp_path / "insert", "-p", QUESTION, "--max-new-tokens", 6, "--alpha", 0, "--json")
    replies = json.loads(ran.out)["answers"][0]["answers"]
    assert {side: reply["text"] for side, reply in replies.items()} == {BASE: bare, EDITED: bare}
    terminal = Terminal("chat", tmp_path / "insert", "--max-new-tokens", 6)
    terminal.until(">")
    terminal.types(f"{QUESTION}\r")
    terminal.until("edited: ")
    assert " ".join(told[1.0].split()) in " ".join(terminal.until(">").split())
    terminal.types("\x04")
    assert terminal.ends() == 0


# ------------------------------------------------------------------------------------------------------------ bad input

REFUSED: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "no such model": (("ask", "./nowhere", "-p", "x"), "CheckpointError", "nowhere"),
    "no such edit": (("chat", "BASE", "--edit", "nowhere.safetensors"), "EditError", "nowhere.safetensors"),
    "an empty prompt": (("ask", "BASE", "-p", " "), "SettingError", "-p"),
    "a prompt of other bytes": (("ask", "BASE", "-p", "caf\udce9"), "SettingError", "no UTF-8"),
    "a system prompt of other bytes": (("chat", "BASE", "--system", "caf\udce9"), "SettingError", "no UTF-8"),
    "an edit for an artefact": (("ask", "INSERT", "--edit", "EDIT", "-p", "x"), "SettingError", "drop --edit"),
    "a base for a base": (("ask", "BASE", "--base", "BASE", "-p", "x"), "SettingError", "--base"),
    "a strength without an edit": (("ask", "BASE", "--alpha", "0.5", "-p", "x"), "SettingError", "--edit"),
    "a strength of a fold": (("chat", "FOLD", "--alpha", "0.5"), "SettingError", "--edit"),
    "no number": (("ask", "BASE", "-e", "EDIT", "--alpha", "nan", "-p", "x"), "SettingError", "no strength"),
    "a length": (("ask", "BASE", "--max-new-tokens", "0", "-p", "x"), "SettingError", "at least 1"),
    "a temperature": (("ask", "BASE", "--temperature", "-1", "-p", "x"), "SettingError", "temperature"),
    "a temperature of nothing": (("ask", "BASE", "--temperature", "1e-45", "-p", "x"), "SettingError", "use 0"),
    "a runtime": (("ask", "BASE", "--runtime", "tea", "-p", "x"), "SettingError", "llama.cpp"),
    "a runtime for a GGUF": (("ask", "BASE", "--runtime", "llama.cpp", "-p", "x"), "SettingError", "export gguf"),
    "another model's edit": (("ask", "OTHER", "-e", "EDIT", "-p", "x"), "WrongModelError", ""),
    "a long prompt": (("ask", "BASE", "-p", "word " * 600), "SettingError", "positions for 512"),
    "a port": (("serve", "BASE", "--port", "70000"), "SettingError", "--port"),
    "a host": (("serve", "BASE", "--host", "0.0.0.0"), "SettingError", "--allow-host"),
    "a host of others": (("serve", "BASE", "--host", "192.0.2.1", "--allow-host", "x"), "SettingError", "192.0.2.1"),
    "a server": (("serve", "BASE", "--server", "tea"), "SettingError", "vllm"),
    "no vLLM": (("serve", "BASE", "--server", "vllm"), "SettingError", "--server transformers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(
    base: Path, edit: Path, artefacts: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, kind, said = REFUSED[name]
    known: dict[str, Callable[[], Path]] = {
        "BASE": lambda: base, "EDIT": lambda: edit, "OTHER": lambda: tiny.single(), "FOLD": lambda: artefacts("fold"),
        "INSERT": lambda: artefacts("insert"),
    }  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    ran = tiny.run(*(known[word]() if word in known else word for word in words))
    tiny.refused(ran, kind, said)


def test_a_port_that_is_taken(base: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tiny.refused(tiny.run("serve", base, "--port", taken.getsockname()[1]), "SettingError", "--port")


def test_an_export_is_not_served(base: Path, tmp_path: Path) -> None:
    from sea_bake.artefact.names import EXPORT
    from sea_bake.artefact.record import OnnxRecord

    (tmp_path / EXPORT).parent.mkdir()
    (tmp_path / "config.json").write_text("{}", "utf-8")
    OnnxRecord("x", "unedited").write(tmp_path)
    tiny.refused(tiny.run("serve", tmp_path), "SettingError", "ONNX export")
    file = ggufs.llama(tmp_path / "x.gguf", base)
    tiny.refused(tiny.run("serve", file), "SettingError", f"llama-server -m {file}")


def test_what_is_not_installed_is_named_with_its_cure(base: Path, edit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else find(name))
    with pytest.raises(MissingExtraError, match=r"sea-bake\[serve\]"):
        serve(base, edit=edit, server="transformers")


# --------------------------------------------------------------------------------------------------------------- doctor


def test_doctor_says_what_is_here_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions by packaging's own reading of the same metadata; a package that is gone, or too old, is named."""
    import importlib.metadata as metadata

    from packaging.requirements import Requirement

    here = doctor()
    assert here.healthy
    assert here.versions["torch"] == torch.__version__
    for extra in here.extras:
        asked = [Requirement(text) for text in metadata.requires("sea-bake") or []]
        mine = [one for one in asked if one.marker and one.marker.evaluate({"extra": extra.name})]
        mine = [one for one in mine if "extra" in str(one.marker)]
        for other in [extra for one in mine if one.name == "sea-bake" for extra in one.extras]:
            mine += [one for one in asked if one.marker and f'extra == "{other}"' in str(one.marker)]
        mine = [one for one in mine if one.name != "sea-bake"]
        there = all(tiny_satisfied(one) for one in mine)
        assert extra.works == there, extra
        assert (extra.cure == "") == there
    devices = {finding.name: finding for finding in here.devices}
    assert set(devices) == {"processor", "bfloat16", "graphics cards", "disk"}
    assert bool(devices["bfloat16"].works) == torch.ops.mkldnn._is_mkldnn_bf16_supported()  # what torch itself asks
    assert bool(devices["bfloat16"].cure) != bool(devices["bfloat16"].works)
    assert not any(finding.cure for finding in here.tools if finding.works)
    assert all(finding.cure for finding in here.tools if not finding.works)
    ran = tiny.run("doctor")
    assert (ran.code, "Extras" in ran.out, torch.__version__ in ran.out) == (0, True, True)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == "peft" else version(name))
    ran = tiny.run("doctor", "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["healthy"]) == (1, False)
    (broken,) = [one for one in found["needed"] if not one["works"]]
    assert (broken["name"], broken["found"]) == ("peft", "0.0.1 is too old")
    assert broken["cure"].startswith("pip install -U 'peft>=")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("raise ImportError('libggml.so: no such file')", "does not load: ImportError: libggml.so: no such file"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "does not load: it ends with signal 4"),
    ],
)
def test_doctor_loads_the_libraries_that_it_ticks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, words: str
) -> None:
    """In their place here: modules that break as a library does that is incomplete, or of another processor."""

    def found() -> dict[str, Any]:
        return {one.name.partition(" (")[0]: one for one in doctor().tools}

    names = {"llama.cpp": "xllamacpp", "llama.cpp's quantiser": "cyllama"}
    for name, package in names.items():
        assert (found()[name].works, found()[name].found.split()[0], found()[name].cure) == (True, package, "")
    for place in ("xllamacpp.py", "cyllama/__init__.py", "cyllama/llama/__init__.py", "cyllama/llama/llama_cpp.py"):
        file = tmp_path / place
        file.parent.mkdir(exist_ok=True)
        file.write_text("" if file.name == "__init__.py" else broken)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name, package in names.items():
        assert found()[name].works is False
        assert words in found()[name].found
        assert found()[name].cure.startswith(f"pip install --force-reinstall --no-deps {package}, or ")


def test_doctor_finds_the_converter_where_an_export_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLAMA_CPP is the folder, or the script itself; what it names and is not there, an export does not pass over."""
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for home, there in ((None, True), (str(tmp_path), True), (str(script), True), (str(tmp_path / "nowhere"), False)):
        monkeypatch.setenv("LLAMA_CPP", home) if home else monkeypatch.delenv("LLAMA_CPP", raising=False)
        (one,) = [tool for tool in doctor().tools if "converter" in tool.name]
        assert (bool(one.works), one.found) == (there, str(script) if there else "not here"), home
        with contextlib.nullcontext() if there else pytest.raises(SettingError, match="nowhere"):
            assert find_converter(None) == script


def tiny_satisfied(requirement: Any) -> bool:
    import importlib.metadata as metadata

    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
