"""A GGUF that is asked: beside the base that it was made from and no other, with the same prompts in llama.cpp as in
transformers.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import exports
import ggufs
import pytest
import tiny
from conftest import load, pair_of
from test_affine import CASES, edit_of

from sea_bake import Edit, ask, bake, chat, export_gguf
from sea_bake.activations.prompt_format import PromptFormat, prompt_format
from sea_bake.artefact.gguf_record import GgufRecord, record_of
from sea_bake.errors import CheckpointError, SettingError, WrongModelError
from sea_bake.exporting.gguf.layout import parts_digest
from sea_bake.model.loading import load_tokenizer
from sea_bake.model.source import ModelSource
from sea_bake.serving import llama_cpp
from sea_bake.serving.opening import opened
from sea_bake.serving.pair import BASE, EDITED, Pair, Reply, tokens_of
from sea_bake.serving.sampling import Sampling

QUESTION = "Can bats see?"
# It shows the day, has a switch, and leaves a block of reasoning open.
TEMPLATE = (
    "{{ bos_token }}{{ strftime_now('%Y-%m-%d') }}\n"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
    "{% if add_generation_prompt and (thinking is not defined or thinking) %}<think>\n{% endif %}"
)
WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}\n{% endif %}{% endfor %}"
)
pytestmark = pytest.mark.slow
GREEDY = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def folder() -> Path:
    made = tiny.root() / "asked"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def edit() -> Edit:
    """Its record says how prompts were rendered."""
    made = edit_of(load(exports.base()), "llama", CASES["linear SEA"], 0.7, layers=(0, 1))
    return replace(made, recipe=prompt_format(system="Be brief.", date="2026-01-31").to_json())


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return ggufs.llama(folder / "base.gguf", exports.base(), template=TEMPLATE)


@pytest.fixture(scope="module")
def edited(folder: Path, base: Path, edit: Edit) -> Path:
    return export_gguf(edit, folder / "edited.gguf", base=base).output


@pytest.fixture(scope="module")
def lora(folder: Path, base: Path, edit: Edit) -> Path:
    return export_gguf(edit, folder / "lora.gguf", base=base, lora=True).output


def told(pair: Pair, side: str = BASE, sampling: Sampling = GREEDY, **options: Any) -> Reply:
    return pair.reply(side, QUESTION, sampling=sampling, say=lambda piece: None, **options)


def alone(file: Path, target: Path) -> Path:
    """A copy with its record, and without its base."""
    target.mkdir()
    for one in (file, record_of(file)):
        shutil.copy(one, target)
    return target / file.name


# ------------------------------------------------------------------------------------------------------------- its base


@pytest.mark.parametrize("runtime", ["llama.cpp", "transformers"])
def test_a_base_that_is_none_is_refused(base: Path, edited: Path, edit: Edit, tmp_path: Path, runtime: str) -> None:
    """The edited file itself, a copy of it, another edit of the same base, other weights, other keys; then the base,
    under another name (the control).
    """
    odd = {"a copy": Path(shutil.copy(edited, tmp_path / "copy.gguf"))}
    odd["another edit"] = export_gguf(replace(edit, alpha=0.3), tmp_path / "fainter.gguf", base=base).output
    other = tiny.write_llama(tmp_path / "other", chat=True, seed=7, num_hidden_layers=2)
    odd["other weights"] = ggufs.llama(tmp_path / "other.gguf", other, template=TEMPLATE)
    odd["other keys"] = ggufs.llama(tmp_path / "keys.gguf", exports.base(), template=WITHOUT_SYSTEM)
    for name, file in odd.items():
        with pytest.raises(WrongModelError, match=r"is not the GGUF that edited.gguf was made from, base.gguf"):
            opened(edited, base=file, runtime=runtime)
        assert file.stat().st_size == base.stat().st_size or name == "other keys"
    with pytest.raises(WrongModelError, match="is the edited file itself"):
        opened(edited, base=edited, runtime=runtime)
    moved = alone(edited, tmp_path / "moved")
    with pair_of(moved, base=shutil.copy(base, tmp_path / "renamed.gguf"), runtime=runtime) as pair:
        assert pair.sides == (BASE, EDITED)
    shutil.copy(odd["other weights"], moved.parent / base.name)
    ran = tiny.run("ask", moved, "-p", QUESTION, "--runtime", runtime)
    tiny.refused(ran, "WrongModelError", "is not the GGUF that edited.gguf was made from")


def test_a_lora_has_one_base_too(lora: Path, tmp_path: Path) -> None:
    other = tiny.write_llama(tmp_path / "other", chat=True, seed=7, num_hidden_layers=2)
    with pytest.raises(WrongModelError, match=r"is not the GGUF that lora\.gguf was made from"):
        opened(lora, base=ggufs.llama(tmp_path / "other.gguf", other, template=TEMPLATE))


def test_where_no_gguf_was_given_the_edits_know_their_base(base: Path, edit: Edit, tmp_path: Path) -> None:
    """A LoRA made of an adapter: its record holds the fingerprint, and the base may be of any quantisation."""
    bake(exports.base(), edit.save(tmp_path / "edit.safetensors"), tmp_path / "adapter", how="adapter")
    file = export_gguf(tmp_path / "adapter", tmp_path / "lora.gguf").output
    assert GgufRecord.read(file).gguf is None
    other = tiny.write_llama(tmp_path / "other", chat=True, seed=7, num_hidden_layers=2)
    with pytest.raises(WrongModelError, match="its weights differ"):
        opened(file, base=ggufs.llama(tmp_path / "other.gguf", other, template=TEMPLATE))
    with pair_of(file, base=base) as pair:
        assert pair.sides == (BASE, EDITED)
    garbled = json.loads(record_of(file).read_text("utf-8"))
    garbled["fingerprint"]["samples"] = {"x": [1.0]}
    record_of(file).write_text(json.dumps(garbled), "utf-8")
    with pytest.raises(CheckpointError, match="its fingerprint cannot be read"):
        opened(file, base=base)


def test_a_file_that_was_changed_is_not_taken_for_what_was_written(edited: Path, tmp_path: Path) -> None:
    """In its last byte, in its length; under a record without digests of parts, too. Without the record the file is
    asked as a base, as the cure says.
    """
    for index, change in enumerate((lambda data: data[:-1] + b"x", lambda data: data + bytes(32))):
        file = alone(edited, tmp_path / str(index))
        file.write_bytes(change(file.read_bytes()))
        with pytest.raises(CheckpointError, match=r"remove edited.gguf.sea.json, and it is asked as a base"):
            opened(file)
    record = json.loads(record_of(file).read_text("utf-8"))
    record_of(file).write_text(
        json.dumps({**record, "parts_sha256": "", "bytes_written": file.stat().st_size}), "utf-8"
    )
    with pytest.raises(CheckpointError, match="was changed since"):
        opened(file)
    record_of(file).unlink()
    with pair_of(file, runtime="transformers") as pair:
        assert (pair.sides, "no record of an edit" in pair.lacking) == ((BASE,), True)


def test_parts_of_a_file_know_it_again(tmp_path: Path) -> None:
    """By the ends and the middle of a tensor, and by the header; one byte between them does not show."""
    folder = tiny.write_llama(tmp_path / "wide", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    file = ggufs.llama(tmp_path / "wide.gguf", folder)
    data, first = bytearray(file.read_bytes()), parts_digest(file)
    from sea_bake.exporting.gguf.header import GgufFile

    tensor = max(GgufFile.open(file).tensors.values(), key=lambda one: one.size)
    assert tensor.size > 1 << 17
    ends = tensor.start, tensor.start + tensor.size - 1, tensor.start + tensor.size // 2
    at = data.index(b"context_length") + len(b"context_length") + 4
    for place, shows in [*((place, True) for place in (*ends, at)), (tensor.start + tensor.size // 4, False)]:
        data[place] ^= 1
        file.write_bytes(data)
        assert (parts_digest(file) != first) is shows, place
        data[place] ^= 1
    file.write_bytes(data)
    assert parts_digest(file) == first


@pytest.mark.parametrize("runtime", ["llama.cpp", "transformers"])
def test_what_is_lacking_is_said_only_where_something_is(
    base: Path, edited: Path, tmp_path: Path, runtime: str
) -> None:
    moved = alone(edited, tmp_path / "moved")
    options: dict[str, Any] = {"max_new_tokens": 2, "runtime": runtime}
    for found in (ask(edited, [QUESTION], **options), ask(moved, [QUESTION], base=base, **options)):
        assert (found.sides, found.lacking) == ((BASE, EDITED), "")
    found = ask(moved, [QUESTION], **options)
    assert (found.sides, "the base of edited.gguf, base.gguf, is not beside it" in found.lacking) == ((EDITED,), True)
    found = ask(base, [QUESTION], **options)
    assert (found.sides, "no record of an edit" in found.lacking) == ((BASE,), True)


# ------------------------------------------------------------------------------------------------------------- prompts

FORMS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "a system prompt": {"system": "Be brief."},
    "what answers begin with": {"response_prefix": "Answer:"},
    "a primer": {"primer": [{"prompt": "Is ice cold?", "answer": "Yes."}]},
    "an argument": {"template_args": {"thinking": False}},
    "a day": {"date": "2026-01-31"},
    "open reasoning": {"close_reasoning": False},
    "no template": {"chat_template": False},
}


def test_prompts_are_those_of_transformers_whatever_is_set(base: Path, lora: Path) -> None:
    """The same tokens, behind a conversation too; and each setting makes others."""
    tokenizer = load_tokenizer(ModelSource.parse(base))
    before, seen = [("Hello", "<think>So.</think>Hi.")], {}
    with pair_of(lora) as pair:
        ours = pair._server(BASE).tokenizer
        for name, settings in FORMS.items():
            form = prompt_format(**settings)
            pair.check_format(form)
            for turns in ((), before):
                found = tokens_of(ours, QUESTION, turns, form).ids
                assert found == tokens_of(tokenizer, QUESTION, turns, form).ids, name
                seen[name, bool(turns)] = found
        assert len(set(seen.values())) == 2 * len(FORMS)
        with pair_of(base, runtime="transformers") as theirs:
            answers = {}
            for name, settings in FORMS.items():
                pair.form = theirs.form = prompt_format(**settings)
                # Of a character that is cut, llama.cpp keeps the bytes to itself.
                answers[name], found = (told(one).text.rstrip("\ufffd") for one in (pair, theirs))
                assert answers[name] == found, name
        assert len(set(answers.values())) > 1
        for settings, words in (
            ({"template_args": {"thinkin": False}}, "did you mean 'thinking'"),
            ({"chat_template": False, "template_args": {"thinking": False}}, "--template-args"),
        ):
            with pytest.raises(SettingError, match=words):
                pair.check_format(prompt_format(**settings))


@pytest.mark.parametrize("runtime", ["llama.cpp", "transformers"])
def test_a_template_that_drops_the_system_prompt_is_told(tmp_path: Path, runtime: str) -> None:
    file = ggufs.llama(tmp_path / "x.gguf", exports.base(), template=WITHOUT_SYSTEM)
    with pytest.raises(SettingError, match="leaves out the system prompt"):
        ask(file, [QUESTION], runtime=runtime, prompt_format=prompt_format(system="Be brief."))
    written: list[str] = []
    given = iter(["/system Be brief.", QUESTION])
    talk = chat(file, runtime=runtime, read=lambda: next(given, None), write=written.append, max_new_tokens=2)
    assert "leaves out the system prompt" in "".join(written)
    assert (talk.pair.form.system, len(talk.turns)) == (None, 1)


def test_a_file_without_a_template_gets_questions_and_answers_in_both_runtimes(tmp_path: Path) -> None:
    """llama.cpp alone would render ChatML."""
    file = ggufs.llama(tmp_path / "x.gguf", exports.base())
    wanted = tokens_of(load_tokenizer(ModelSource.parse(file)), QUESTION, (), PromptFormat()).ids
    with pair_of(file, runtime="llama.cpp") as pair:
        assert tokens_of(pair._server(BASE).tokenizer, QUESTION, (), PromptFormat()).ids == wanted
    assert tiny.tokenizer().decode(wanted) == f"Q: {QUESTION}\nA:"  # the file asks for no <s>


@pytest.mark.parametrize("runtime", ["llama.cpp", "transformers"])
def test_the_record_says_how_the_demonstrations_were_rendered(
    base: Path, edited: Path, tmp_path: Path, runtime: str
) -> None:
    with pair_of(edited, runtime=runtime) as pair:
        assert pair.form == prompt_format(system="Be brief.", date="2026-01-31")
    with pair_of(edited, runtime=runtime, prompt_format=prompt_format(system="Be long.")) as pair:
        assert pair.form == prompt_format(system="Be long.")
    with pair_of(base, runtime=runtime) as pair:
        assert pair.form == PromptFormat()


# ------------------------------------------------------------------------------------------------------------- answers


def test_tokens_are_counted_as_in_transformers(tmp_path: Path) -> None:
    """Of an answer that is cut, whose pieces are fewer; and of one that ends, whose last token is told too."""
    whole = ggufs.llama(tmp_path / "whole.gguf", exports.base())
    sampling = Sampling(max_new_tokens=24)
    with pair_of(whole, runtime="transformers") as pair:
        cut = told(pair, sampling=sampling)
        ids = tokens_of(pair.tokenizer, QUESTION, (), pair.form).ids
        import torch

        out = pair.any_model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    end = next(token for token in out[4:] if token not in out[:4])
    ending = ggufs.llama(tmp_path / "ending.gguf", exports.base(), end=end)
    with pair_of(ending, runtime="transformers") as pair:
        ended = told(pair, sampling=sampling)
    assert (cut.ended, cut.tokens, ended.ended, ended.tokens) == (False, 24, True, out.index(end) + 1)
    pieces: list[str] = []
    with pair_of(whole, runtime="llama.cpp") as pair:
        found = pair.reply(BASE, QUESTION, sampling=sampling, say=pieces.append)
        assert found == cut
        assert len(pieces) < 24
    with pair_of(ending, runtime="llama.cpp") as pair:
        assert told(pair, sampling=sampling) == ended


def test_every_token_may_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's own defaults (the control) leave 40 at most."""
    file = ggufs.llama(tmp_path / "x.gguf", exports.base())
    with pair_of(file, runtime="llama.cpp") as pair:

        def drawn() -> set[str]:
            hot = [Sampling(max_new_tokens=1, temperature=50.0, seed=seed) for seed in range(150)]
            return {told(pair, sampling=one).text for one in hot}

        assert len(drawn()) > 60
        monkeypatch.setattr(llama_cpp, "_PLAIN", {})
        assert len(drawn()) <= 40
        largest = [told(pair, sampling=Sampling(max_new_tokens=8, temperature=5.0, seed=2**32 - 1)) for _ in range(2)]
        assert largest[0] == largest[1], "a seed of llama.cpp's own"


def test_a_conversation_as_long_as_the_model_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shorter, and a longer one is refused as everywhere; or what the limit of llama.cpp's memory is."""
    file = ggufs.llama(tmp_path / "x.gguf", exports.base())
    long = "word " * 160
    with pair_of(file, runtime="llama.cpp") as pair:
        used = len(tokens_of(pair._server(BASE).tokenizer, long, (), pair.form).ids)
        reply = pair.reply(BASE, long, sampling=Sampling(max_new_tokens=600), say=lambda piece: None)
        assert (reply.tokens, 256 < used < 512) == (tiny.CONTEXT - used, True)
        with pytest.raises(SettingError, match=rf"positions for {tiny.CONTEXT}: begin a new one \(/new"):
            pair.reply(BASE, long * 2, sampling=GREEDY, say=lambda piece: None)
    monkeypatch.setattr(llama_cpp, "LONGEST", 256)
    with pair_of(file, runtime="llama.cpp") as pair:
        words = rf"takes {used} tokens, and llama.cpp is given 256 of the model's {tiny.CONTEXT} positions here: .*/new"
        with pytest.raises(SettingError, match=words):
            pair.reply(BASE, long, sampling=GREEDY, say=lambda piece: None)
        assert told(pair).tokens == 8


def test_what_llama_cpp_does_not_choose_is_refused(edited: Path, lora: Path) -> None:
    for given in ({"dtype": "float32"}, {"device": "cpu"}):
        with pytest.raises(SettingError, match="drop --dtype and --device, or take --runtime transformers"):
            opened(edited, runtime="llama.cpp", **given)
        with pytest.raises(SettingError, match=r"drop --dtype and --device$"):
            opened(lora, **given)
