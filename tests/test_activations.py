"""Activations are right: padding changes no vector, the neutral text is the model's own, processes do not matter.

The reference everywhere is the plainest there is: one sequence at a time, no padding, transformers' own hidden states
or generation.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from processes import together

from sea_bake import Activations, Demonstration, Edit, Site, collect, fit
from sea_bake.activations.capture import read, vectors
from sea_bake.activations.generating import greedy
from sea_bake.activations.prompt_format import PromptFormat, prompt_format
from sea_bake.activations.prompts import PLAIN_TEMPLATE, Tokens, encode, render
from sea_bake.activations.sharing import common
from sea_bake.activations.texts import DEFAULT_NEW_TOKENS, ROLES, sequences
from sea_bake.demonstrations import load
from sea_bake.errors import ActivationError, CheckpointError, SettingError
from sea_bake.model.hooks import hooked
from sea_bake.model.loading import load_model
from sea_bake.model.sites import site_modules

ALL = tuple(range(tiny.LAYERS))
# float32: the same products, summed in an order that depends on the shape of the batch. Each sum is off by some 1e-7 of
# its largest term; four layers deep, some 1e-6 of the largest activation. Measured: below 1e-6.
RELATIVE = 1e-5


@functools.cache
def llama() -> Any:
    return load_model(tiny.single(), device="cpu")


@functools.cache
def gpt2() -> Any:
    """Learned absolute positions: unlike Llama's, its answers change when padding shifts a text to the right."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tiny.VOCAB,
        n_embd=tiny.HIDDEN,
        n_layer=tiny.LAYERS,
        n_head=4,
        n_positions=tiny.CONTEXT,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()


MODELS = {"llama": llama, "gpt2": gpt2}


@functools.cache
def texts(neutral: str = "prompt") -> dict[str, list[Tokens]]:
    """Token ids of 11 demonstrations; 11 is no multiple of any batch size used."""
    return written(llama(), tiny.tokenizer(), tiny.demonstrations(11), neutral=neutral, max_new_tokens=9)


def written(model: Any, tokenizer: Any, demonstrations: Any, **options: Any) -> dict[str, list[Tokens]]:
    """The texts of all roles, the neutral ones written by plain generation."""
    roles, open_ended = sequences(model, tokenizer, demonstrations, **options)
    prompts = [roles["neutral"][i] for i in open_ended]
    length = options.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    for i, tokens in zip(open_ended, greedy(model, tokenizer, prompts, max_new_tokens=length, batch_size=4)):
        roles["neutral"][i] = tokens
    return roles


def read_over(model: Any, tokenizer: Any, roles: dict[str, list[Tokens]], **options: Any) -> Any:
    """The same vectors from shared passes; where the neutral texts go on from a prompt, they are written anew."""
    open_ended = [i for i, tokens in enumerate(roles["neutral"]) if tokens.start < len(tokens.ids)]
    given = {role: list(tokens) for role, tokens in roles.items()}
    for i in open_ended:
        tokens = roles["neutral"][i]
        given["neutral"][i] = Tokens(tokens.ids[: tokens.start], tokens.start, tokens.encoder)
    longest = max(len(t.ids) - t.start for t in roles["neutral"])
    found = read(model, tokenizer, given, list(open_ended), max_new_tokens=longest, **options)
    assert given == roles
    return found


READERS = {"one by one": vectors, "shared": read_over}


def module_of(model: Any, site: Site, layer: int) -> torch.nn.Module:
    block = model.transformer.h[layer] if model.config.model_type == "gpt2" else model.model.layers[layer]
    if site is Site.MLP:
        return block.mlp
    if site is Site.HEADS:
        return block.attn.c_proj if model.config.model_type == "gpt2" else block.self_attn.o_proj
    return block.attn if model.config.model_type == "gpt2" else block.self_attn


@torch.inference_mode()
def one_by_one(model: Any, tokens: Tokens, site: Site) -> torch.Tensor:
    """[layers, tokens, d]: a text's activations at a site, from a pass of its own."""
    ids = torch.tensor([tokens.ids])
    if site is Site.BLOCK:
        states = model.get_decoder()(ids, output_hidden_states=True, use_cache=False).hidden_states
        # transformers applies the final norm to the last of them: the last block is seen through a hook instead.
        return torch.stack([*(s[0] for s in states[1:-1]), last_block(model, ids)])
    seen: list[torch.Tensor] = []
    if site is Site.HEADS:
        handles = [
            module_of(model, site, layer).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
            for layer in ALL
        ]
    else:
        handles = [
            module_of(model, site, layer).register_forward_hook(
                lambda _, __, out: seen.append((out[0] if isinstance(out, tuple) else out)[0])
            )
            for layer in ALL
        ]
    model.get_decoder()(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def last_block(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What goes into the final norm."""
    seen = []
    norm = model.transformer.ln_f if model.config.model_type == "gpt2" else model.model.norm
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    model.get_decoder()(ids, use_cache=False)
    handle.remove()
    return seen[0]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest activation of the same layer."""
    return float(((found - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2))).max())


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("position", ["last", "mean"])
@pytest.mark.parametrize("site", list(Site))
def test_padding_changes_no_vector(family: str, site: Site, position: str, reader: str) -> None:
    model = MODELS[family]()
    roles = written(model, tiny.tokenizer(), tiny.demonstrations(11), max_new_tokens=9)
    assert len({len(t.ids) for role in ROLES for t in roles[role]}) > 10, "texts of one length need no padding"
    options: dict[str, Any] = {"sites": [site], "layers": ALL, "position": position, "batch_size": 8}
    found = READERS[reader](model, tiny.tokenizer(), roles, **options)[site]
    for role in ROLES:
        reference = [(one_by_one(model, tokens, site), tokens) for tokens in roles[role]]
        expected = torch.stack(
            [a[:, -1] if position == "last" else a[:, t.start :].mean(1) for a, t in reference], dim=1
        )
        assert found[role].shape == (tiny.LAYERS, 11, tiny.HIDDEN)
        assert found[role].dtype == torch.float32
        assert difference(found[role], expected) < RELATIVE
        # The control: one token beside the right one, and the difference is of the activations' own size.
        beside = torch.stack([a[:, -2] if position == "last" else a[:, t.start - 1 :].mean(1) for a, t in reference], 1)
        assert difference(found[role], beside) > 100 * RELATIVE


@pytest.mark.parametrize("neutral", ["generate", "prompt"])
def test_no_token_is_read_twice(monkeypatch: pytest.MonkeyPatch, neutral: str) -> None:
    """Counted where tokens enter: the common beginning once, each prompt once, each answer once, padding apart."""
    model, demonstrations = llama(), tiny.demonstrations(11)
    options: dict[str, Any] = {"sites": [Site.ATTN], "layers": ALL, "max_new_tokens": 9, "batch_size": 1}
    counts: dict[str, int] = {}
    for reader in ("shared", "one by one"):
        form = prompt_format(system="You are asked things, and you answer them with care.")
        roles, open_ended = sequences(
            model, tiny.tokenizer(chat=True), demonstrations, neutral=neutral, prompt_format=form
        )
        prompts = [t.ids[: t.start] for t in roles["neutral"]]
        if reader == "one by one":
            monkeypatch.setattr("sea_bake.activations.capture.shared", lambda *_, **__: None)
        seen: list[int] = []
        handle = model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args, s=seen: s.append(args[0].numel())
        )
        read(model, tiny.tokenizer(chat=True), roles, open_ended, **options)
        handle.remove()
        counts[reader] = sum(seen)
    begin = len(common(prompts))
    assert begin >= 8
    answers = sum(len(t.ids) - len(p) for role in ("positive", "negative") for t, p in zip(roles[role], prompts))
    said = sum(len(t.ids) - len(p) for t, p in zip(roles["neutral"], prompts))
    once = begin + sum(len(p) - begin for p in prompts) + answers + said
    # One demonstration is run again to be compared, and two tokens try the cache; batches of one have no padding.
    shortest = min(range(11), key=lambda i: len(prompts[i]))
    again = sum(len(roles[role][shortest].ids) for role in ROLES) + 2
    # Where a prompt's last token is the neutral text's too, or merges with an answer's first, each text reads it.
    parted = [min(len(common([p, roles[role][i].ids])) for role in ROLES[1:]) for i, p in enumerate(prompts)]
    joins = sum(max(len(p) - at, neutral == "prompt") for p, at in zip(prompts, parted))
    assert counts["shared"] <= once + again + 3 * joins
    assert counts["one by one"] > 1.4 * counts["shared"]


@pytest.mark.parametrize("family", MODELS)
def test_padding_can_change_a_vector(family: str) -> None:
    """The control of the proof above: padded on the left, and without saying so, the same texts give other vectors."""
    model, roles = MODELS[family](), texts()
    rows = [tokens.ids for tokens in roles["positive"][:8]]
    expected = torch.stack([one_by_one(model, t, Site.BLOCK)[-2, -1] for t in roles["positive"][:8]])[None]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = torch.arange(width).expand_as(ids)  # as if nothing had been shifted
    with torch.inference_mode():
        unsaid = model.get_decoder()(ids, output_hidden_states=True).hidden_states[-2][:, -1]
        unshifted = model.get_decoder()(
            ids, attention_mask=mask, position_ids=positions, output_hidden_states=True
        ).hidden_states[-2][:, -1]
    assert difference(unsaid[None], expected) > 100 * RELATIVE
    if family == "gpt2":  # Llama's rotary positions are relative: a shift alone is not seen
        assert difference(unshifted[None], expected) > 100 * RELATIVE


def test_layers_come_in_the_order_asked_for() -> None:
    options: dict[str, Any] = {"sites": [Site.MLP], "batch_size": 4}
    everything = vectors(llama(), tiny.tokenizer(), texts(), layers=ALL, **options)[Site.MLP]
    some = vectors(llama(), tiny.tokenizer(), texts(), layers=(3, 1), **options)[Site.MLP]
    for role in ROLES:
        assert torch.equal(some[role], everything[role][[3, 1]])
        assert not torch.equal(some[role], everything[role][[1, 3]])


def test_several_sites_come_from_the_same_passes() -> None:
    together = vectors(llama(), tiny.tokenizer(), texts(), sites=list(Site), layers=ALL, batch_size=4)
    for site in Site:
        alone = vectors(llama(), tiny.tokenizer(), texts(), sites=[site], layers=ALL, batch_size=4)[site]
        assert all(torch.equal(together[site][role], alone[role]) for role in ROLES)
    assert not torch.equal(together[Site.MLP]["neutral"], together[Site.ATTN]["neutral"])


@pytest.mark.slow
@pytest.mark.parametrize("site", list(Site))
def test_a_random_token_depends_on_the_seed_alone(site: Site) -> None:
    def take(seed: int, batch_size: int) -> dict[str, torch.Tensor]:
        return vectors(
            llama(),
            tiny.tokenizer(),
            texts(),
            sites=[site],
            layers=ALL,
            position="random",
            seed=seed,
            batch_size=batch_size,
        )[site]

    reference = take(0, 8)
    for role in ROLES:
        for batch_size in (1, 3, 64):
            assert difference(take(0, batch_size)[role], reference[role]) < RELATIVE
    assert difference(take(1, 8)["positive"], reference["positive"]) > 100 * RELATIVE
    # Each one is a token of the continuation, and not always its last one.
    places = []
    for i, tokens in enumerate(texts()["positive"]):
        distance = (one_by_one(llama(), tokens, site) - reference["positive"][:, i, None]).abs().amax((0, 2))
        places.append(int(distance.argmin()))
        assert distance[places[-1]] < RELATIVE * float(reference["positive"].abs().max())
        assert tokens.start <= places[-1] < len(tokens.ids)
    assert len({place - t.start for place, t in zip(places, texts()["positive"])}) > 3


# ----------------------------------------------------------------------------------------------------- the neutral text


def test_generated_neutral_texts_are_the_models_own() -> None:
    prompts = [encode(tiny.tokenizer(), d.prompt) for d in tiny.demonstrations(11)]
    found = greedy(llama(), tiny.tokenizer(), prompts, max_new_tokens=12, batch_size=8)
    for prompt, tokens in zip(prompts, found):
        ids = torch.tensor([prompt.ids])
        alone = llama().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        expected = alone[0].tolist()
        assert tokens.ids == tuple(expected[:-1] if expected[-1] == 2 else expected)
        assert tokens.start == len(prompt.ids)
    assert all(len(tokens.ids) > tokens.start for tokens in found)


@pytest.mark.slow
@pytest.mark.parametrize("site", Site)
@pytest.mark.parametrize("family", ["t5", "opt", "llava"])
def test_vectors_of_other_layouts(family: str, site: Site) -> None:
    """An encoder in front, an MLP that sees all tokens in one row, a wrapper: each text alone, its last position."""
    model, tokenizer = families.tiny(family), families.tokenizer()
    roles, open_ended = sequences(model, tokenizer, families.demonstrations(), max_new_tokens=6)
    options: dict[str, Any] = {"sites": [site], "layers": ALL, "max_new_tokens": 6, "batch_size": 4}
    found = read(model, tokenizer, roles, open_ended, **options)[site]
    seen: dict[int, torch.Tensor] = {}
    for role in ROLES:
        for i, (demonstration, tokens) in enumerate(zip(families.demonstrations(), roles[role])):
            inputs = {"input_ids": torch.tensor([tokens.ids])}
            if family == "t5":
                prompt = tokenizer(PLAIN_TEMPLATE.format(prompt=demonstration.prompt))["input_ids"]
                assert tokens.encoder == tuple(prompt)
                assert (tokens.ids[0], tokens.start) == (model.generation_config.decoder_start_token_id, 1)
                inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": inputs["input_ids"]}
            with torch.inference_mode():
                look = site_modules(model, site, ALL)
                with hooked(look, lambda layer, h: seen.update({layer: h.clone()}), inputs=site.is_input):
                    model(**inputs, use_cache=False)
                if role == "neutral":
                    asked = torch.tensor([prompt if family == "t5" else tokens.ids[: tokens.start]])
                    said = model.generate(asked, max_new_tokens=6, do_sample=False)[0].tolist()
                    ends = [place for place, token in enumerate(said) if token == 2]
                    assert tokens.ids == tuple(said[: ends[0]] if ends else said)
            for layer in ALL:
                expected = seen[layer].reshape(-1, seen[layer].shape[-1])
                room = RELATIVE * float(expected.abs().max())
                assert float((found[role][layer, i] - expected[-1]).abs().max()) < room
                if len(expected) > 1:  # control: the position before is told from the last one
                    assert float((found[role][layer, i] - expected[-2]).abs().max()) > 10 * room


def test_an_end_of_sequence_is_dropped() -> None:
    """Whatever the model would say third is made its end of sequence: two tokens remain, nothing else."""
    model, prompt = tiny.new_llama(), encode(tiny.tokenizer(), "Is it so?")
    free = greedy(model, tiny.tokenizer(), [prompt], max_new_tokens=8, batch_size=1)[0].ids[prompt.start :]
    assert free[2] not in free[:2]
    model.generation_config.eos_token_id = [2, free[2]]
    other = encode(tiny.tokenizer(), "Do goldfish forget everything after three seconds?")
    stopped, _ = greedy(model, tiny.tokenizer(), [prompt, other], max_new_tokens=8, batch_size=2)
    assert stopped.ids == (*prompt.ids, *free[:2])


LEFTOVERS: dict[str, dict[str, Any]] = {
    "stop strings": {"stop_strings": ["</answer>"]},
    "another form of output": {"return_dict_in_generate": True, "output_scores": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "beams": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2},
    "penalties": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "encoder_repetition_penalty": 2.0},
    "sampling": {"do_sample": True, "temperature": 0.6, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
    "lengths": {"max_length": 3, "min_length": 40, "min_new_tokens": 40, "max_time": 0.0001},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "a static cache": {"cache_implementation": "static"},
    "a bias": {"sequence_bias": [[[7], 100.0]], "forced_eos_token_id": 9, "forced_bos_token_id": 7},
    "guidance": {"guidance_scale": 3.0},
    "a custom decoding": {"custom_generate": "somebody/code"},
}


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_generation_is_ours_alone(leftover: str) -> None:
    """Whatever a checkpoint's generation_config says, the neutral text is the most likely token, again and again."""
    prompts = [encode(tiny.tokenizer(), d.prompt) for d in tiny.demonstrations(3)]
    expected = []
    for prompt in prompts:
        ids = list(prompt.ids)
        for _ in range(6):
            with torch.inference_mode():
                ids.append(int(llama()(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(tuple(ids))
    model = tiny.new_llama()
    model.load_state_dict(llama().state_dict())
    for name, value in LEFTOVERS[leftover].items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    assert 2 not in {token for ids in expected for token in ids}, "no end of sequence in these texts"
    found = greedy(model, tiny.tokenizer(), prompts, max_new_tokens=6, batch_size=2)
    assert [tokens.ids for tokens in found] == expected
    assert model.generation_config.to_dict() == before  # and stays as it was


def test_what_a_model_must_not_say_is_not_said() -> None:
    """Suppressed tokens are the ids that are taken, as far as the model has them."""
    model, prompt = tiny.new_llama(), encode(tiny.tokenizer(), "Is it so?")

    def said() -> tuple[int, ...]:
        return greedy(model, tiny.tokenizer(), [prompt], max_new_tokens=4, batch_size=1)[0].ids[prompt.start :]

    first = said()[0]
    for name, value in (
        ("suppress_tokens", [first, 99999]),
        ("begin_suppress_tokens", [first]),
        ("bad_words_ids", [[first], [99999]]),
    ):
        setattr(model.generation_config, name, value)
        assert said()[0] != first, name
        setattr(model.generation_config, name, None)
        assert said()[0] == first  # the control


def test_padding_is_a_token_that_the_embedding_has() -> None:
    """A tokenizer whose [PAD] was added behind the embedding's last row, as many fine-tunes have."""
    added = tiny.tokenizer().__class__(tokenizer_object=tiny.tokenizer().backend_tokenizer, eos_token="</s>")
    for missing in ({"pad_token": "[PAD]"}, {"pad_token": "[PAD]", "eos_token": "[END]", "bos_token": "[GO]"}):
        added.add_special_tokens(missing)
        assert added.pad_token_id >= tiny.VOCAB
        options: dict[str, Any] = {"source": "x", "neutral": "generate", "max_new_tokens": 5, "batch_size": 4}
        found = collect(llama(), added, tiny.demonstrations(6), **options)
        expected = collect(llama(), tiny.tokenizer(), tiny.demonstrations(6), **options)
        assert all(torch.equal(getattr(found, role), getattr(expected, role)) for role in ROLES)


def test_the_same_text_has_one_vector() -> None:
    """Whichever batch it falls into: equal vectors are told from ones that differ by rounding."""
    repeated = [Demonstration("Is it so?", f"It is {'so ' * i}{i}.", f"No {i}.") for i in range(9)]
    found = collect(llama(), tiny.tokenizer(), repeated, source="x", neutral="prompt", batch_size=4)
    assert bool((found.neutral == found.neutral[:, :1]).all())
    assert not bool((found.positive == found.positive[:, :1]).all())


def test_a_decoder_that_does_not_say_how_it_starts() -> None:
    model = families.tiny("t5")
    for name in ("decoder_start_token_id", "bos_token_id"):
        setattr(model.generation_config, name, None)
        setattr(model.config, name, None)
    with pytest.raises(CheckpointError, match=r"write decoder_start_token_id into its generation_config.json"):
        sequences(model, families.tokenizer(), families.demonstrations(), neutral="prompt")
    model.config.decoder_start_token_id = 0
    found, _ = sequences(model, families.tokenizer(), families.demonstrations(), neutral="prompt")
    assert found["positive"][0].ids[0] == 0


def test_the_neutral_text_of_a_demonstration_wins() -> None:
    own = [Demonstration("Is it so?", "It is.", "It is not.", "It may be."), *tiny.demonstrations(2)]
    found = written(llama(), tiny.tokenizer(), own, neutral="generate", max_new_tokens=5)["neutral"]
    assert found[0] == encode(tiny.tokenizer(), "Is it so?", "It may be.")
    assert len(found[1].ids) > found[1].start
    bare = sequences(llama(), tiny.tokenizer(), own, neutral="prompt")[0]["neutral"]
    assert bare[0] == found[0]
    assert bare[1:] == [encode(tiny.tokenizer(), d.prompt) for d in own[1:]]
    assert all(tokens.start == len(tokens.ids) for tokens in bare[1:])


def test_a_bare_prompt_is_read_at_its_last_token() -> None:
    found = vectors(llama(), tiny.tokenizer(), texts(), sites=[Site.BLOCK], layers=ALL, position="mean")[Site.BLOCK][
        "neutral"
    ]
    expected = torch.stack([one_by_one(llama(), t, Site.BLOCK)[:, -1] for t in texts()["neutral"]], dim=1)
    assert difference(found, expected) < RELATIVE


# -------------------------------------------------------------------------------------------------------------- prompts


def test_a_chat_template_is_used_where_there_is_one() -> None:
    tokenizer = tiny.tokenizer(chat=True)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it so?"}]
    for system, chat in ((None, messages[1:]), ("Be brief.", messages)):
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        expected = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert expected.count(tokenizer.bos_token_id) == 1  # the template's own, not doubled
        prompt = encode(tokenizer, "Is it so?", form=PromptFormat(system=system))
        assert list(prompt.ids) == expected
        whole = encode(tokenizer, "Is it so?", "It is.", PromptFormat(system=system))
        assert tokenizer.decode(whole.ids) == rendered + "It is."
        assert tokenizer.decode(whole.ids[whole.start :]).strip() == "It is."
    assert encode(tokenizer, "Is it so?") != encode(tokenizer, "Is it so?", form=PromptFormat(system="Be brief."))


def test_the_plain_template_else() -> None:
    tokenizer = tiny.tokenizer()
    for system, expected in ((None, "Q: Is it so?\nA:"), ("Be brief.", "Be brief.\n\nQ: Is it so?\nA:")):
        assert render(tokenizer, "Is it so?", PromptFormat(system=system)) == (expected, True)
        assert (
            list(encode(tokenizer, "Is it so?", form=PromptFormat(system=system)).ids)
            == tokenizer(expected)["input_ids"]
        )
        whole = encode(tokenizer, "Is it so?", "It is.", PromptFormat(system=system))
        assert list(whole.ids) == tokenizer(f"{expected} It is.")["input_ids"]
        assert whole.ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(whole.ids[whole.start :]) == " It is."
    assert PLAIN_TEMPLATE == "Q: {prompt}\nA:"


def test_a_tokenizer_that_appends_an_end_of_sequence() -> None:
    """It would be everybody's last token, and stand between a prompt and the model's own continuation."""
    appending, plain = tiny.tokenizer(appends_eos=True), tiny.tokenizer()
    assert appending("Is it so?")["input_ids"][-1] == appending.eos_token_id
    for continuation in (None, "It is."):
        assert encode(appending, "Is it so?", continuation) == encode(plain, "Is it so?", continuation)


def test_a_template_that_refuses() -> None:
    tokenizer = tiny.tokenizer(chat=True).__class__(
        tokenizer_object=tiny.tokenizer().backend_tokenizer,
        chat_template="{{ raise_exception('no system prompt here') }}",
    )
    with pytest.raises(SettingError, match=r"chat template refused the prompt.*no system prompt here"):
        encode(tokenizer, "Is it so?", form=PromptFormat(system="Be brief."))


def test_chat_texts_reach_the_fit(tmp_path: Path) -> None:
    found = collect(
        load_model(tiny.single(chat=True)),
        tiny.tokenizer(chat=True),
        tiny.demonstrations(4),
        source="chatty",
        neutral="prompt",
        prompt_format=PromptFormat(system="Be brief."),
    )
    assert found.recipe["chat_template"] is True
    assert found.recipe["system"] == "Be brief."
    bare = collect(llama(), tiny.tokenizer(), tiny.demonstrations(4), source="plain", neutral="prompt")
    assert bare.recipe["chat_template"] is False
    assert difference(found.positive, bare.positive) > 100 * RELATIVE  # the same weights, other texts


# --------------------------------------------------------------------------------------------------------------- errors


def test_the_first_bad_layer_is_named() -> None:
    model = tiny.new_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[5] = float("inf")
    demonstrations = tiny.demonstrations(3)
    for site, layer in ((Site.MLP, 1), (Site.BLOCK, 1), (Site.ATTN, 2)):
        with pytest.raises(ActivationError, match=rf"neutral activation of demonstration 1 .* at layer {layer} "):
            collect(model, tiny.tokenizer(), demonstrations, source="x", site=site, neutral="prompt")
    # The control: layers before the bad one are fitted on.
    assert torch.isfinite(
        collect(model, tiny.tokenizer(), demonstrations, source="x", layers=(0,), neutral="prompt").positive
    ).all()


def test_a_text_has_to_fit_into_the_context() -> None:
    model = tiny.new_llama(max_position_embeddings=100)
    fits, long = tiny.demonstrations(2), Demonstration("Is it so? " * 50, "Yes.", "No.")
    with pytest.raises(ActivationError, match=r"demonstration 3 takes .* tokens, and the model has positions for 100"):
        sequences(model, tiny.tokenizer(), [*fits, long], neutral="prompt")
    assert sequences(model, tiny.tokenizer(), fits, neutral="prompt")[0]["positive"]
    # Generated tokens count too, before they are generated.
    with pytest.raises(ActivationError, match=r"neutral text of demonstration 1 .* lower --max-new-tokens"):
        sequences(model, tiny.tokenizer(), fits, neutral="generate", max_new_tokens=100)


def test_two_demonstrations_are_the_least() -> None:
    with pytest.raises(ActivationError, match="1 usable triples: a cross-covariance needs at least two"):
        collect(llama(), tiny.tokenizer(), tiny.demonstrations(1), source="x")
    found = collect(llama(), tiny.tokenizer(), tiny.demonstrations(2), source="x", neutral="prompt")
    assert found.positive.shape == (tiny.LAYERS, 2, tiny.HIDDEN)


# ------------------------------------------------------------------------------------------------ devices and processes


def same_edit(found: Edit, expected: Edit, tolerance: float = 1e-6) -> None:
    """Equal but for rounding: 1e-6 per element of P = U Uᵀ, which unlike U has no free signs."""
    assert found.ranks == expected.ranks
    assert found.base == expected.base
    for layer in expected.layers:
        for part in ("positive", "negative"):
            a, b = (getattr(e.projectors[layer], part).double() for e in (found, expected))
            assert float((a.T @ a - b.T @ b).abs().max()) < tolerance
    signatures = [e.recipe["signatures"] for e in (found, expected)]
    assert signatures[0] == pytest.approx(signatures[1], rel=1e-5)
    for edit in (found, expected):
        assert {k: v for k, v in edit.recipe.items() if k != "signatures"} == {
            k: v for k, v in expected.recipe.items() if k != "signatures"
        }
    assert (found.site, found.merge, found.feature, found.alpha) == (
        expected.site,
        expected.merge,
        expected.feature,
        expected.alpha,
    )


@pytest.mark.slow
def test_two_processes_fit_the_same_edit_as_one(tmp_path: Path) -> None:
    """As ``torchrun`` starts them, with gloo: batches of 3 out of 10 texts, so that one process has more of them than
    the other.
    """
    data = tiny.demonstrations_file(10)
    args = ["fit", tiny.single(), "-d", data, "--layers", "all", "--max-new-tokens", 8, "--batch-size", 3, "-K", 0.9]
    two, one = tmp_path / "two" / "edit.safetensors", tmp_path / "one" / "edit.safetensors"
    two.parent.mkdir()
    ran = together([[*args, "-o", two, "--save-activations", two.parent / "acts.safetensors"]] * 2)
    assert [process.code for process in ran] == [0, 0], ran
    assert sum(process.out.count("wrote ") for process in ran) == 1  # one process speaks, and one writes
    assert tiny.listing(two.parent) == {"edit.safetensors", "acts.safetensors"}
    assert tiny.run(*args, "-o", one).code == 0
    same_edit(Edit.load(two), Edit.load(one))
    assert Activations.load(two.parent / "acts.safetensors").positive.shape == (tiny.LAYERS, 10, tiny.HIDDEN)
    # The control: one demonstration less is another edit.
    assert tiny.run(*args, "--limit", 9, "-o", tmp_path / "other").code == 0
    with pytest.raises(AssertionError):
        same_edit(Edit.load(tmp_path / "other"), Edit.load(one))


def test_a_model_spread_by_accelerate(tmp_path: Path) -> None:
    """``device_map="auto"``, and a map that leaves two layers on disk, where their weights are seen only in passing."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"source": "x", "neutral": "prompt", "batch_size": 4}
    expected = collect(llama(), tiny.tokenizer(), tiny.demonstrations(6), **options)
    spread = load_model(tiny.single(), device="auto")  # all on the one device here
    layers = {f"model.layers.{i}": "disk" if i in (1, 2) else "cpu" for i in ALL}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    offloaded = AutoModelForCausalLM.from_pretrained(
        tiny.single(), device_map={**layers, **rest}, offload_folder=tmp_path, dtype=torch.float32
    )
    assert offloaded.model.layers[1].mlp.down_proj.weight.is_meta
    for model in (spread, offloaded):
        found = collect(model, tiny.tokenizer(), tiny.demonstrations(6), **options)
        for role in ROLES:
            assert torch.equal(getattr(found, role), getattr(expected, role))  # the same operations on the same device
    # An edit of the whole model belongs to the spread one too, and is applied there.
    edit, ids = Edit.load(tiny.edit_file()), torch.arange(3, 30)[None]
    with torch.inference_mode(), edit.live(llama()), edit.live(offloaded):
        assert torch.equal(offloaded(ids).logits, llama()(ids).logits)


# ---------------------------------------------------------------------------------------------------- saved activations


@pytest.fixture(scope="module")
def saved() -> Path:
    path = tiny.root() / "acts.safetensors"
    data = ("-d", tiny.demonstrations_file(), "--neutral", "prompt", "--layers", "last:2")
    ran = tiny.run("fit", tiny.single(), *data, "-o", tiny.root() / "acts-edit", "--save-activations", path)
    assert ran.code == 0, ran
    return path


def test_saved_activations_are_the_same_bit_for_bit(saved: Path, tmp_path: Path) -> None:
    found = Activations.load(saved)
    assert found.layers == ALL  # of all layers, whatever was fitted
    triples = load(tiny.demonstrations_file())  # as the command line did: where they are from is recorded
    direct = collect(llama(), tiny.tokenizer(), triples, source="single-0", neutral="prompt")
    assert all(torch.equal(getattr(found, role), getattr(direct, role)) for role in ROLES)
    assert found.base == direct.base
    assert found.recipe == direct.recipe
    assert found.save(tmp_path / "again").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": "last:2", "K": 0.95},
        {"layers": "0,2", "K": 3},
        {"layers": "all", "K": 0.5, "K_negative": 0.99},
        {"layers": "signature:0.5", "K": 0.9},
        {"layers": "all", "feature": "tanh", "merge": "sum"},
        {"layers": "first:1", "centre": True, "alpha": 0.5, "parts": "negative"},
    ],
    ids=str,
)
def test_a_refit_is_the_direct_fit_bit_for_bit(saved: Path, settings: dict[str, Any]) -> None:
    again = fit(None, activations=Activations.load(saved), **settings)
    direct = fit(
        tiny.single(), load(tiny.demonstrations_file()), neutral="prompt", device="cpu", budget=None, **settings
    )
    assert again.layers == direct.layers
    for layer in direct.layers:
        for name in ("positive", "negative", "positive_spectrum", "negative_spectrum"):
            assert torch.equal(getattr(again.projectors[layer], name), getattr(direct.projectors[layer], name))
    assert again.base == direct.base
    ours, theirs = dict(again.recipe), dict(direct.recipe)
    # Signatures of all saved layers are kept; the direct fit has seen its own alone.
    assert theirs.pop("signatures").items() <= ours.pop("signatures").items()
    assert ours == theirs
    assert (again.merge, again.feature, again.parts, again.alpha) == (
        direct.merge,
        direct.feature,
        direct.parts,
        direct.alpha,
    )


def test_the_command_line_refits(saved: Path, tmp_path: Path) -> None:
    layers, outputs = ("1-2", "all"), []
    for i, chosen in enumerate(layers):
        outputs.append(tmp_path / f"edit-{i}")
        ran = tiny.run("fit", "--activations", saved, "-K", 2 + i, "--layers", chosen, "-o", outputs[-1])
        assert ran.code == 0, ran
    first, second = map(Edit.load, outputs)
    assert (first.layers, second.layers) == ((1, 2), ALL)
    assert set(first.ranks.values()) == {(2, 2)}
    assert set(second.ranks.values()) == {(3, 3)}


def test_signature_selects_from_saved_activations(saved: Path) -> None:
    activations = Activations.load(saved)
    everything = fit(None, activations=activations, layers="all").recipe["signatures"]
    # sum of the singular values of [mean of H+, mean of H-], as in the paper
    for i in ALL:
        means = torch.stack([activations.positive[i].double().mean(0), activations.negative[i].double().mean(0)], 1)
        assert everything[str(i)] == pytest.approx(float(torch.linalg.matrix_norm(means, "nuc")), rel=1e-6)
    shares = sorted(value / max(everything.values()) for value in everything.values())
    for share in (0.01, (shares[0] + shares[1]) / 2, (shares[-2] + 1) / 2):
        expected = tuple(int(k) for k, v in everything.items() if v >= share * max(everything.values()))
        assert fit(None, activations=activations, layers=f"signature:{share}").layers == expected


def test_few_layers_cannot_be_refitted_as_many() -> None:
    few = collect(llama(), tiny.tokenizer(), tiny.demonstrations(4), source="x", layers=(0, 2, 3), neutral="prompt")
    assert fit(None, activations=few, layers="2-3").layers == (2, 3)
    with pytest.raises(SettingError, match=r"the activations lack layer 1; they hold layers 0, 2-3"):
        fit(None, activations=few, layers="all")


def test_damaged_activations_are_refused(saved: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    path = tmp_path / "acts"

    def write(header: dict[str, str] = metadata, **changes: torch.Tensor) -> None:
        save_file({k: v for k, v in {**tensors, **changes}.items() if v is not None}, path, metadata=header)

    write()
    assert Activations.load(path).layers == ALL  # the control
    for changes, message in (
        ({"positive": tensors["positive"][:3].contiguous()}, r"expected three \[4, n, d\] tensors"),
        ({"positive": tensors["positive"][:, :3].contiguous()}, r"expected three"),
        ({"neutral": None}, "lacks or garbles 'neutral'"),
        ({"negative": torch.full_like(tensors["negative"], float("nan"))}, "negative activation of demonstration 1"),
    ):
        write(**changes)
        with pytest.raises(ActivationError, match=message):
            Activations.load(path)
    for old, new in (
        ('"layers": [0, 1, 2, 3]', '"layers": [0, 1, 2, Infinity]'),
        ('"layers": [0, 1, 2, 3]', '"layers": 4'),
        ('"site": "attn"', '"site": "nose"'),
        ('"config": {', '"config": [], "c": {'),
        ('"recipe": {', '"recipe": 3, "r": {'),
        ('"version": 1', '"version": 9'),
        ('"format": "sea_bake.activations"', '"format": "sea_bake.other"'),
    ):
        assert old in metadata["sea_bake"]
        write({"sea_bake": metadata["sea_bake"].replace(old, new)})
        with pytest.raises(ActivationError):
            Activations.load(path)
