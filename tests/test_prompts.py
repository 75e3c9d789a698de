"""How a prompt becomes tokens: templates that drop it, open a block of reasoning or show the date; what users say of it
is recorded in the edit, and used again.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
import transformers.utils.chat_template_utils as theirs

from sea_bake import Demonstration, Edit, collect, fit
from sea_bake.activations.generating import decoder_start
from sea_bake.activations.preview import preview
from sea_bake.activations.prompt_format import PromptFormat, parse_args, prompt_format
from sea_bake.activations.prompts import encode, render
from sea_bake.activations.rendering import REASONING, pinned, usable
from sea_bake.activations.texts import sequences
from sea_bake.demonstrations.primers import PRIMERS, primer_pairs
from sea_bake.errors import DemonstrationError, SettingError, VerificationError
from sea_bake.fitting.tuning.folder import Folder
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.pages import edits
from sea_bake.publishing.recipe import describe
from sea_bake.verification.doors import request_for

TURNS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
ASKED = "{% if add_generation_prompt %}[assistant] {% endif %}"
# Contents as lists of parts, as multimodal models want them: a plain string renders as nothing.
PARTS = (
    "{% for m in messages %}[{{ m['role'] }}] {% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] }}{% endfor %}{{ '\\n' }}{% endfor %}" + ASKED
)
DATED = "Today is {{ strftime_now('%d %b %Y (%A, week %V), 100%%') }}.\n" + TURNS + ASKED
LLAMA_3_1 = (
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}Today Date: {{ date_string }}\n"
    + TURNS
    + ASKED
)
LLAMA_3_2 = LLAMA_3_1.replace("'26 Jul 2024'", "strftime_now('%d %b %Y')")
THINKS = (
    TURNS + "{% if add_generation_prompt %}[assistant] "
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def chat(template: Any) -> Any:
    """The tests' tokenizer with this template."""
    made = tiny.tokenizer().__class__(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = template
    return made


def base_with(template: str, folder: Path, **changes: Any) -> Path:
    base = tiny.changeable(tiny.single(), folder)
    (base / "chat_template.jinja").write_text(template, "utf-8")
    return base


def text(tokenizer: Any, prompt: str = "Is it so?", **settings: Any) -> str:
    return render(tokenizer, prompt, prompt_format(**settings))[0]


class NewYear(datetime.datetime):
    """Another day than today, as the machine's clock tells it."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime(2031, 1, 1, 12, 30)


# --------------------------------------------------------------------------------------------- a prompt that is dropped


@pytest.mark.parametrize(
    "template",
    [
        PARTS,
        # Parts for the user alone, text for the rest.
        PARTS.replace("{% for c", "{% if m['role'] == 'system' %}{{ m['content'] }}{% else %}{% for c").replace(
            "{% endfor %}{{ '\\n' }}", "{% endfor %}{% endif %}{{ '\\n' }}"
        ),
        # One that fails on text.
        PARTS.replace("{% for c", "{{ m['content'][0]['text'][:0] + m['content'][0].type[:0] }}{% for c"),
    ],
    ids=["all", "the user alone", "fails on text"],
)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_contents_as_parts_are_tried(template: str, system: str | None) -> None:
    head = "" if system is None else f"[system] {system}\n"
    assert text(chat(template), system=system) == f"{head}[user] Is it so?\n[assistant] "


@pytest.mark.parametrize(
    ("template", "settings", "words"),
    [
        ("Hello.{{ messages | length }}", {}, ("the prompt ('Is it so?')", "Hello.1", "--no-chat-template")),
        ("{% for m in messages if m['role'] == 'tool' %}{{ m['content'] }}{% endfor %}>", {}, ("the prompt", "'>'")),
        (TURNS.replace("messages", "messages if m['role'] == 'user'"), {"system": "Be brief."}, ("the system prompt",)),
        (TURNS.replace("messages", "messages[-1:]"), {"primer": "truthfulqa"}, ("the primer", "--primer")),
        ("{{ messages[0]['content'][:4] }}", {}, ("the prompt ('Is it so?')", "'Is i'")),
    ],
)
def test_a_rendering_without_the_text_is_refused(
    template: str, settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(SettingError) as raised:
        text(chat(template), **settings)
    assert "leaves out" in str(raised.value)
    assert all(word in str(raised.value) for word in words), raised.value
    # The cure, followed.
    assert "Q: Is it so?\nA:" in text(chat(template), **settings, chat_template=False)


def test_a_rendering_may_trim_and_escape() -> None:
    """What is there, only written otherwise, is there."""
    assert text(chat(TURNS.replace("m['content']", "m['content'] | trim")), "  Is it so?\n") == "[user] Is it so?\n"
    quoted = chat("{% for m in messages %}{{ m | tojson }}{% endfor %}")
    assert 'Is it \\"so\\"?' in text(quoted, 'Is it "so"?\nOr not?')
    assert "é" in text(quoted, "Où est l'été?")
    joined = chat("{% for m in messages %}{{ m['content'].split() | join(' ') }}{% endfor %}")
    assert text(joined, "Is  it\nso?") == "Is it so?"


def test_a_fit_is_refused_before_the_model_runs(tmp_path: Path) -> None:
    base = base_with("Hello.", tmp_path / "model")
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    data = ("-d", tiny.demonstrations_file(), "-o", tmp_path / "edit", "--neutral", "prompt")
    for more in ((), ("--show-prompt",)):
        tiny.refused(tiny.run("fit", base, *data, *more), "SettingError", "leaves out the prompt", "'Hello.'")
    assert tiny.run("fit", base, *data, "--no-chat-template").code == 0


# ------------------------------------------------------------------------------------------------ what users say of it


def test_template_arguments() -> None:
    tokenizer = chat(THINKS + "{{ tone }}")
    assert text(tokenizer, template_args={"enable_thinking": False, "tone": "so"}).endswith("<think>\n\n</think>\n\nso")
    for wrong, words in (
        ({"enable_thinkng": False}, "does not read the argument 'enable_thinkng': did you mean 'enable_thinking'"),
        ({"zzz": 1}, "does not read the argument 'zzz': drop it"),
        ({"messages": []}, "'messages' cannot be given to a chat template"),
        ({"tokenize": True}, "'tokenize' cannot be given"),
        ({"tone": {1, 2}}, "more than plain data"),
        ([1], "names with values"),
    ):
        with pytest.raises(SettingError, match=words):
            text(tokenizer, template_args=wrong)
    with pytest.raises(SettingError, match="none is used here: drop --template-args"):
        text(tiny.tokenizer(), template_args={"tone": "so"})
    assert parse_args(["a=false", "b=3", "c=so so", 'd={"x": 1}', '{"e": null, "f": "g"}', "h=True"]) == {
        "a": False, "b": 3, "c": "so so", "d": {"x": 1}, "e": None, "f": "g", "h": True,
    }  # fmt: skip
    for bad in ("enable_thinking", "=3", "{a: 1}", "{1"):
        with pytest.raises(SettingError, match="--template-args"):
            parse_args([bad])


@pytest.mark.parametrize(
    ("prefix", "chatty", "plain"),
    [
        ("Answer:", "Answer: It is.", " Answer: It is."),
        ("Answer: ", "Answer: It is.", " Answer: It is."),
        ("Answer:\n", "Answer:\nIt is.", " Answer:\nIt is."),
        ("</think>", "</think>It is.", " </think>It is."),
        ("「", "「It is.", " 「It is."),
    ],
)
def test_a_response_prefix_begins_every_answer(prefix: str, chatty: str, plain: str) -> None:
    form = prompt_format(response_prefix=prefix)
    tokenizer = chat(TURNS + ASKED)
    whole = encode(tokenizer, "Is it so?", "It is.", form)
    assert tokenizer.decode(whole.ids) == f"[user] Is it so?\n[assistant] {chatty}"
    assert tokenizer.decode(whole.ids[whole.start :]).strip() == "It is."
    bare = encode(tokenizer, "Is it so?", None, form)
    assert tokenizer.decode(bare.ids) == f"[user] Is it so?\n[assistant] {prefix}"
    expected = tiny.tokenizer()(f"Q: Is it so?\nA:{plain}")["input_ids"]
    assert list(encode(tiny.tokenizer(), "Is it so?", "It is.", form).ids) == expected


def test_the_prefix_is_the_decoders() -> None:
    """In an encoder-decoder the encoder reads the prompt; the answer, with what it begins with, is the decoder's."""
    model, tokenizer, form = families.tiny("t5"), families.tokenizer(), prompt_format(response_prefix="Answer:")
    start = decoder_start(model)
    found = encode(tokenizer, "Is it so?", "It is.", form, decoder_start=start)
    plain = encode(tokenizer, "Is it so?", "It is.", decoder_start=start)
    assert found.encoder == plain.encoder
    assert tokenizer.decode(found.ids[1:]).lower() == "answer: it is."
    assert tokenizer.decode(found.ids[found.start :]).strip().lower() == "it is."
    bare = encode(tokenizer, "Is it so?", None, form, decoder_start=start)
    assert found.ids[: bare.start] == bare.ids
    roles, _ = sequences(model, tokenizer, families.demonstrations(), prompt_format=form, max_new_tokens=4)
    assert all(tokens.ids[: bare.start] == bare.ids for role in roles.values() for tokens in role)


def test_a_primer_stands_before_every_prompt(tmp_path: Path) -> None:
    pairs = primer_pairs("truthfulqa")
    assert len(pairs) == 6
    shots = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in pairs)
    form = prompt_format(primer="truthfulqa", system="Be brief.")
    assert render(tiny.tokenizer(), "Is it so?", form) == (f"Be brief.\n\n{shots}Q: Is it so?\nA:", True)
    turns = "".join(f"[user] {question}\n[assistant] {answer}\n" for question, answer in pairs)
    assert render(chat(TURNS + ASKED), "Is it so?", form)[0] == (
        f"[system] Be brief.\n{turns}[user] Is it so?\n[assistant] "
    )
    # A user's own, in every format that demonstrations come in, recorded with its words.
    (tmp_path / "own.csv").write_text("question,answer\nWhy?,Because.\n", "utf-8")
    (tmp_path / "own.jsonl").write_text('{"prompt": "Why?", "positive": "Because."}\n', "utf-8")
    for source in (tmp_path / "own.csv", str(tmp_path / "own.jsonl"), [{"prompt": "Why?", "answer": "Because."}]):
        own = prompt_format(primer=source)
        assert text(tiny.tokenizer(), primer=source) == "Q: Why?\nA: Because.\n\nQ: Is it so?\nA:"
        assert own.to_json()["primer"] == [{"prompt": "Why?", "answer": "Because."}]
        assert PromptFormat.from_json(own.to_json()) == own
    for wrong, words in (
        ("truthful", "no primer 'truthful': it is a built-in one \\(truthfulqa\\)"),
        ([], "no question-answer pair"),
        ([{"prompt": "Why?"}], r"primer, pair 1: 'answer' \(or 'positive'\) is empty"),
        ([{"answer": "Because.", "prompt": 3}], "'prompt' .* is not a string"),
    ):
        with pytest.raises(DemonstrationError, match=words):
            prompt_format(primer=wrong)


def test_the_words_of_a_primer_are_its_name() -> None:
    """An edit records the name alone: other words need another name."""
    assert PRIMERS == ("truthfulqa",)
    path = resources.files("sea_bake.demonstrations") / "primer_truthfulqa.jsonl"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == PRIMER_SHA256
    with pytest.raises(SettingError, match="'/etc/passwd' is not built into this sea_bake"):
        PromptFormat.from_json({"primer": "/etc/passwd"})


PRIMER_SHA256 = "dddd26c12831a689a5d8c2687031fa6a07d1cb9e9695660481fc0465476bcee4"


# ----------------------------------------------------------------------------------------------- a block of reasoning


BLOCKS = {
    **REASONING,
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "<longcat_think>": "</longcat_think>",
    "[THINK]": "[/THINK]",
}


@pytest.mark.parametrize("opened", BLOCKS)
def test_an_open_block_of_reasoning_is_closed(opened: str) -> None:
    closing = BLOCKS[opened]
    for tail in (opened, f"{opened}\n", f"{opened}\nLet me see. "):
        tokenizer = chat(f"{TURNS}[assistant] {{{{ {json.dumps(tail)} }}}}")
        after = text(tokenizer).partition("[assistant] ")[2]
        assert after.startswith(tail)
        assert after.removeprefix(tail).strip() == closing
        assert text(tokenizer, close_reasoning=False).endswith(tail)
        # A prefix that closes it is the user's own way of doing so.
        own = text(tokenizer, response_prefix=f"Nothing to think about.{closing}")
        assert own.endswith(f"{tail}Nothing to think about.{closing}")
        assert own.count(closing) == 1
    for tail in (f"{opened}\n\n{closing}\n\n", f"{opened}a{closing}{opened}b{closing}", ""):
        tokenizer = chat(f"{TURNS}[assistant] {{{{ {json.dumps(tail)} }}}}")
        assert text(tokenizer).endswith(f"[assistant] {tail}")
    # What the prompt itself says opens nothing.
    assert closing not in text(chat(TURNS + ASKED), f"What is {opened} for?")


def test_what_is_no_block_of_reasoning_is_left_alone() -> None:
    for tail in ("<thinking_mode>chat</thinking_mode>", "<think></think>", "<answer>", "[think]"):
        assert text(chat(f"{TURNS}[assistant] {tail}")).endswith(f"[assistant] {tail}")


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_a_template_that_the_processor_keeps_is_used(file: str, tmp_path: Path) -> None:
    """As in repositories of models that read images: the tokenizer itself has none."""
    base = tiny.changeable(tiny.single(), tmp_path / "model")
    assert load_tokenizer(base).chat_template is None
    (base / file).write_text(json.dumps({"chat_template": TURNS + ASKED}))
    assert text(load_tokenizer(base)) == text(chat(TURNS + ASKED))
    (base / "chat_template.jinja").write_text(THINKS)
    assert text(load_tokenizer(base)) == text(chat(THINKS))  # the tokenizer's own comes first


def test_an_empty_block_is_written_as_qwen_writes_it() -> None:
    assert text(chat(THINKS)) == text(chat(THINKS), template_args={"enable_thinking": False})


def test_a_fit_says_that_it_closed_one(tmp_path: Path) -> None:
    base = base_with(THINKS, tmp_path / "model")
    fitted = {}
    for name, more, said, recorded in (
        ("closed", (), "(<think>): it is closed before the answer", True),
        ("open", ("--no-close-reasoning",), "(<think>) and the answer stands inside it", False),
        ("off", ("--template-args", "enable_thinking=false"), "", True),
    ):
        data = ("-d", tiny.demonstrations_file(), "--neutral", "prompt", *more)
        ran = tiny.run("fit", base, *data, "-o", tmp_path / name)
        assert ran.code == 0, ran
        assert said in ran.out
        assert ("reasoning" in ran.out) == bool(said)
        fitted[name] = Edit.load(tmp_path / name)
        assert fitted[name].recipe["close_reasoning"] is recorded
        assert fitted[name].recipe["reasoning"] == ("<think>" if said else None)
    same = [fitted[name].projectors[3].positive for name in ("closed", "off", "open")]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])


# ------------------------------------------------------------------------------------------------------------ the date


@pytest.mark.parametrize("template", [DATED, LLAMA_3_2, DATED.replace("strftime_now", "(strftime_now)"), "\n" + DATED])
def test_the_date_is_recorded_and_used_again(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat(template)
    day = datetime.datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
    messages = [{"role": "user", "content": "Is it so?"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    form = pinned(tokenizer)
    assert render(tokenizer, "Is it so?", form)[0] == expected  # as transformers itself renders it today
    assert form.date == day
    again = PromptFormat.from_json(json.loads(json.dumps(form.to_json())))
    assert again == form
    monkeypatch.setattr(theirs, "datetime", NewYear)
    assert render(tokenizer, "Is it so?", again)[0] == expected
    assert "2031" in tokenizer.apply_chat_template(messages, tokenize=False)  # the control
    given = prompt_format(date="1999-12-31")
    theirs.datetime = type("Then", (NewYear,), {"now": classmethod(lambda cls, tz=None: given.date)})
    assert render(tokenizer, "Is it so?", given)[0] == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_a_date_that_the_template_takes_as_an_argument() -> None:
    tokenizer = chat(LLAMA_3_1)
    assert pinned(tokenizer).date is None
    assert text(tokenizer).startswith("Today Date: 26 Jul 2024\n")
    assert text(tokenizer, date="2026-01-31").startswith("Today Date: 31 Jan 2026\n")
    assert text(tokenizer, template_args={"date_string": "today"}, date="2026-01-31").startswith("Today Date: today\n")
    for wrong, on, words in (
        ("yesterday", tokenizer, "date = 'yesterday' is no day: write it as 2026-01-31"),
        ("2026-01-31", chat(TURNS), "shows no date: drop --date"),
        ("2026-01-31", tiny.tokenizer(), "none is used here: drop --date"),
    ):
        with pytest.raises(SettingError, match=words):
            pinned(on, prompt_format(date=wrong))


# --------------------------------------------------------------------------------------------- recorded, and used again

EVERYTHING: dict[str, Any] = {
    "system": "Be brief.",
    "template_args": {"enable_thinking": False, "tone": "kind"},
    "response_prefix": "Answer:",
    "primer": "truthfulqa",
    "date": "2025-02-03",
}
ALL_OF_IT = DATED.replace("Today", "{{ tone }} {{ enable_thinking }} Today")


def test_what_is_recorded_makes_the_same_texts() -> None:
    """Through JSON, as in the edit's header and in a published recipe."""
    for settings in ({}, EVERYTHING, {**EVERYTHING, "primer": [{"prompt": "Why?", "answer": "So."}]}):
        form = prompt_format(**settings)
        again = PromptFormat.from_json(json.loads(json.dumps({**form.to_json(), "seed": 3})))
        assert again == form
        assert prompt_format(**form.to_json()) == form  # and as settings of a recipe
    for garbled in ({"template_args": 3}, {"primer": 3}, {"primer": [3]}, {"date": []}, {"system": 3}, {"date": "x"}):
        with pytest.raises(SettingError):
            PromptFormat.from_json(garbled)
    form = prompt_format(**EVERYTHING)
    assert PromptFormat.shared([form.to_json(), form.to_json()]) == form
    assert PromptFormat.shared([form.to_json(), PromptFormat().to_json()]) == PromptFormat()
    assert PromptFormat.shared([{"imported": "dense"}]) == PromptFormat()


@pytest.fixture(scope="module")
def published() -> Path:
    """An artefact of an edit with everything said, made on the command line."""
    folder = tiny.root() / "all-of-it"
    base = tiny.write_llama(folder / "model", max_position_embeddings=1024)
    (base / "chat_template.jinja").write_text(ALL_OF_IT, "utf-8")
    args = ["--system", "Be brief.", "--primer", "truthfulqa", "--response-prefix", "Answer:", "--date", "2025-02-03"]
    args += ["--template-args", '{"enable_thinking": false}', "--template-args", "tone=kind", "--max-new-tokens", "4"]
    ran = tiny.run("fit", base, "-d", tiny.demonstrations_file(), "-o", folder / "edit", "-K", "3", *args)
    assert ran.code == 0, ran
    assert tiny.run("bake", base, folder / "edit", "-o", folder / "artefact").code == 0
    return folder / "artefact"


def test_an_edit_says_how_it_was_rendered(published: Path) -> None:
    edit = Edit.load(published.parent / "edit")
    assert {key: edit.recipe[key] for key in EVERYTHING} == EVERYTHING
    assert (edit.recipe["chat_template"], edit.recipe["close_reasoning"]) == (True, True)
    said = edits.settings(edit)["prompts"]
    for word in (
        "chat template",
        "enable_thinking=False",
        "primer truthfulqa",
        "system prompt",
        "'Answer:'",
        "2025-02-03",
    ):
        assert word in said
    told = describe(published)
    assert {key: told["fit"][0][key] for key in EVERYTHING} == EVERYTHING
    (line,) = [line for line in told["provenance"]["commands"] if "fit" in line.split()]
    assert '--template-args \'{"enable_thinking": false, "tone": "kind"}\'' in line
    assert "--primer truthfulqa" in line
    assert "--date 2025-02-03" in line


@pytest.mark.slow
def test_a_published_edit_is_rendered_again(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs, "datetime", NewYear)
    args = ("reproduce", published, "--model", published.parent / "model", "-d", tiny.demonstrations_file())
    ran = tiny.run(*args, "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["edits"][0]["same_texts"] is True
    # The control: any part of it left out is another edit.
    edit = Edit.load(published.parent / "edit")
    tokenizer, model = load_tokenizer(published.parent / "model"), load_model(published.parent / "model")
    form = PromptFormat.from_json(edit.recipe)
    options: dict[str, Any] = {"source": "x", "max_new_tokens": 4}

    def neutral(form: PromptFormat) -> str:
        return str(
            collect(model, tokenizer, tiny.demonstrations(), prompt_format=form, **options).recipe["neutral_sha256"]
        )

    assert neutral(form) == edit.recipe["neutral_sha256"]
    for key in EVERYTHING:
        less = {**form.to_json(), key: None} if key != "template_args" else {**form.to_json(), key: {"tone": "kind"}}
        assert neutral(prompt_format(**less)) != edit.recipe["neutral_sha256"], key


@pytest.mark.slow
def test_verify_evaluation_and_report_render_as_the_edit_says(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sea_bake.evaluation import units
    from sea_bake.evaluation.running import Session
    from sea_bake.model.source import ModelSource
    from sea_bake.reporting.living import Living

    base = published.parent / "model"
    edit, tokenizer = Edit.load(published.parent / "edit"), load_tokenizer(base)
    form = PromptFormat.from_json(edit.recipe)
    request = request_for(published, ModelSource.parse(base), ["Is it so?"], 4, 4, form)
    assert request["prompts"] == [list(encode(tokenizer, "Is it so?", form=form).ids)]
    assert request_for(published, ModelSource.parse(base), ["Is it so?"], 4, 4)["prompts"] != request["prompts"]

    seen: list[str] = []
    told = load_model(base)
    generate = told.generate

    def watch(**options: Any) -> Any:
        seen.append(tokenizer.decode(options["input_ids"][0]))
        return generate(**options)

    monkeypatch.setattr(told, "generate", watch)
    units.generation(form).answer(Session(told, tokenizer, 4, print), lambda count: None)
    assert all("kind False Today" in one and "03 Feb 2025" in one and one.endswith("Answer:") for one in seen)
    assert seen
    assert units.generation(form).inputs != units.generation(PromptFormat()).inputs  # what is kept is not mixed up
    triples = [Demonstration("Is it so?", "It is.", "It is not."), Demonstration("Why?", "So.", "No.")]
    assert units.demonstrations(triples, form).inputs != units.demonstrations(triples, PromptFormat()).inputs

    living = Living(base, [edit])
    found = living.activations(edit, tiny.demonstrations())
    assert found.recipe["neutral_sha256"] == edit.recipe["neutral_sha256"]
    assert {key: found.recipe[key] for key in form.to_json()} == form.to_json()


def test_a_proof_pads_and_reads_with_what_the_embedding_has(tmp_path: Path) -> None:
    from sea_bake.model.source import ModelSource

    base = tiny.changeable(tiny.single(), tmp_path / "model")
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<novel>"])
    tokenizer.save_pretrained(base)
    asked = (base, ModelSource.parse(base))
    assert request_for(*asked, ["Is it so?"], 4, 4)["pad"] == 2
    with pytest.raises(VerificationError, match=r"prompt 2 holds the token '<novel>' \(id 513\).* 512 rows"):
        request_for(*asked, ["Is it so?", "Is <novel> so?"], 4, 4)
    families.save("t5", tmp_path / "t5")
    asked = (tmp_path / "t5", ModelSource.parse(tmp_path / "t5"))
    assert request_for(*asked, ["Is it so?"], 4, 4)["decoder_start"] == 0
    for name in ("config.json", "generation_config.json"):
        tiny.patch_json(tmp_path / "t5" / name, decoder_start_token_id=None, bos_token_id=None)
    with pytest.raises(VerificationError, match="which token its decoder starts with: write decoder_start_token_id"):
        request_for(*asked, ["Is it so?"], 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("leftover", [{"stop_strings": ["</answer>"]}, {"return_dict_in_generate": True}], ids=str)
def test_a_proof_takes_token_ids_alone(leftover: dict[str, Any], tmp_path: Path) -> None:
    """Of generation_config, in all of its processes."""
    base = tiny.changeable(tiny.single(), tmp_path / "model")
    tiny.patch_json(base / "generation_config.json", **leftover)
    data = ("-d", tiny.demonstrations_file(), "--max-new-tokens", 4, "-o", tmp_path / "edit")
    assert tiny.run("fit", base, *data).code == 0
    for how in ("fold", "insert"):
        assert tiny.run("bake", base, tmp_path / "edit", "-o", tmp_path / how, "--how", how).code == 0
        ran = tiny.run("verify", tmp_path / how, "--base", base)
        assert ran.code == 0, ran


def test_the_harness_renders_as_the_edit_says() -> None:
    from sea_bake.evaluation.language_model import SharedPrefixLM

    tokenizer = chat(ALL_OF_IT + "{% if add_generation_prompt %}<think>{% endif %}")
    lm = SharedPrefixLM(load_model(tiny.single()), tokenizer)
    lm.form = prompt_format(date="2025-02-03", template_args={"tone": "kind"})
    found = lm.apply_chat_template([{"role": "user", "content": "Is it so?"}])
    assert found.startswith("kind  Today is 03 Feb 2025")
    assert found.endswith("[assistant] <think>\n</think>\n\n")


def test_a_search_knows_how_its_activations_were_rendered(tmp_path: Path) -> None:
    folder, triples = Folder(tmp_path / "tuning"), tiny.demonstrations(4)
    folder.path.mkdir()
    tokenizer, form = chat(DATED), prompt_format(system="Be brief.")
    settings = {"position": "last", "neutral": "prompt", "max_new_tokens": 4, "seed": 0, "batch_size": 16}
    found = collect(load_model(tiny.single()), tokenizer, triples, source="x", prompt_format=form, **settings)
    folder.keep("attn", found)

    def kept(form: PromptFormat) -> bool:
        return folder.activations("attn", found.base, triples, settings, form) is not None

    assert kept(form)
    assert kept(PromptFormat.from_json(found.recipe))  # the day on which they were collected
    for other in ({}, {"system": "Be long."}, {"system": "Be brief.", "date": "1999-12-31"}):
        assert not kept(prompt_format(**other))


def test_an_edit_of_before_is_read_as_before() -> None:
    """Made when prompts had a system prompt and nothing else."""
    path = Path(__file__).parent / "files" / "edit-before-prompt-formats.safetensors"
    model, tokenizer = load_model(tiny.single(chat=True)), load_tokenizer(tiny.single(chat=True))
    old = Edit.load(path, model)
    form = PromptFormat.from_json(old.recipe)
    assert form == PromptFormat(system="Be brief.", close_reasoning=False)
    assert tiny.run("inspect", path).code == 0
    again = fit(
        model, tiny.demonstrations(), tokenizer=tokenizer, layers="1-2", K=2, prompt_format=form, max_new_tokens=8
    )
    assert again.recipe["neutral_sha256"] == old.recipe["neutral_sha256"]
    for layer in old.layers:
        P, Q = (edit.projectors[layer].positive.double() for edit in (old, again))
        assert float((P.T @ P - Q.T @ Q).abs().max()) < 1e-6
    # What was not said then is as it was then: a block of reasoning stays open.
    assert text(chat(THINKS), **{**form.to_json(), "system": None}).endswith("<think>\n")


def test_a_proof_needs_no_template_that_works() -> None:
    broken = chat("{{ raise_exception('not today') }}")
    assert usable(broken) == PromptFormat(chat_template=False)
    assert usable(chat(TURNS)) == PromptFormat()
    with pytest.raises(SettingError, match=r"save the one that you want as chat_template\.jinja"):
        text(chat({"tools": TURNS, "rag": TURNS}))
    assert text(chat({"default": TURNS + ASKED, "rag": "x"})) == "[user] Is it so?\n[assistant] "


# -------------------------------------------------------------------------------------------------------- --show-prompt


def test_one_triple_is_shown_as_the_model_reads_it(tmp_path: Path) -> None:
    base = base_with(DATED, tmp_path / "model")
    (base / "model.safetensors").unlink()  # the model is not run: it is not even there
    data = ("-d", tiny.demonstrations_file(), "--date", "2025-02-03")
    ran = tiny.run("fit", base, *data, "--show-prompt")
    assert ran.code == 0, ran
    triple = tiny.demonstrations(1)[0]
    head = f"Today is 03 Feb 2025 (Monday, week 06), 100%.\n[user] {triple.prompt}\n[assistant] "
    assert f"{head}{triple.positive[:-1]}⟦.⟧" in ran.out
    assert f"{head}{triple.negative[:-1]}⟦.⟧" in ran.out
    assert f"{head}⟦the model's own answer, of up to 32 tokens⟧" in ran.out
    assert tiny.listing(tmp_path) == {"model"}
    told = json.loads(tiny.run("fit", base, *data, "--show-prompt", "--json").out)
    assert told["format"]["date"] == "2025-02-03"
    mean = tiny.run("fit", base, *data, "--show-prompt", "--position", "mean", "--neutral", "prompt").out
    assert f"{head}⟦{triple.positive}⟧" in mean
    tiny.refused(tiny.run("fit", "--activations", base, "--show-prompt"), "SettingError", "--show-prompt has no effect")


@pytest.mark.parametrize("position", ["last", "mean", "random"])
def test_the_marked_token_is_the_captured_one(position: Any, tmp_path: Path) -> None:
    """The activation of a fit is that of the marked tokens."""
    base = tiny.single()
    shown = preview(base, tiny.demonstrations(2), position=position, neutral="prompt", seed=3)
    model, tokenizer = load_model(base), load_tokenizer(base)
    options: dict[str, Any] = {"source": "x", "position": position, "neutral": "prompt", "seed": 3, "site": "block"}
    found = collect(model, tokenizer, tiny.demonstrations(2), **options)
    for role in ("neutral", "positive", "negative"):
        ids = torch.tensor([shown.ids[role]])
        with torch.inference_mode():
            states = model.model(ids, output_hidden_states=True).hidden_states[2][0]
        before, _, rest = shown.texts[role].partition("⟦")
        inside = rest.partition("⟧")[0]
        first = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        count = len(tokenizer(inside, add_special_tokens=False)["input_ids"])
        expected = states[first : first + count].mean(0)
        assert float((getattr(found, role)[1, 0] - expected).abs().max()) < 1e-4


def test_an_encoder_decoder_is_shown_too(tmp_path: Path) -> None:
    families.save("t5", tmp_path / "t5")
    shown = preview(tmp_path / "t5", families.demonstrations())
    assert "(decoder:)" in shown.texts["positive"]
    assert shown.texts["positive"].count("⟦") == 1
