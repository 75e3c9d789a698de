"""One exported folder, unchanged, in the runtimes that people use: SmolLM2 with an edit of 20 MLPs, traced once.

ONNX Runtime (through ``verify``), onnxruntime-genai, transformers.js under Node, and the page of ``serve-web`` in
headless Chromium: each gives the greedy text of ``Edit.live`` in PyTorch, and not the base's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import real
import torch
from javascript import NODE, needs_chromium, needs_node, node

from sea_bake import Edit, verify
from sea_bake.activations.prompts import encode
from sea_bake.exporting.web import serve_web
from sea_bake.exporting.web.local import hosted
from sea_bake.model.loading import load_model, load_tokenizer

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]
PROMPTS = ["Do goldfish forget everything after three seconds?", "Why do we have seasons on Earth?"]
LENGTH = 32


@dataclass(frozen=True)
class World:
    """The model, its export, and what PyTorch says.

    Attributes:
        base: the checkpoint.
        export: the folder that all runtimes open; with a strength whose default is 1.
        prompts: ids of ``PROMPTS`` in the chat template.
        texts: "base", "edited" -> greedy ids of each prompt, up to and without an end.
        tokenizer: transformers' own.
    """

    base: Path
    export: Path
    prompts: list[list[int]]
    texts: dict[str, list[list[int]]]
    tokenizer: Any

    def until_end(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids[: ids.index(end)] if end in ids else ids

    def words(self, side: str) -> list[str]:
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in self.texts[side]]


@pytest.fixture(scope="module")
def world(smollm2: Path) -> World:
    model, tokenizer = load_model(smollm2, dtype="float32"), load_tokenizer(smollm2)
    export = real.l2() / "onnx"
    prompts = [list(encode(tokenizer, prompt).ids) for prompt in PROMPTS]

    def greedy() -> list[list[int]]:
        found: list[list[int]] = []
        for ids in prompts:
            given = torch.tensor([ids])
            out = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=LENGTH, do_sample=False, use_cache=True
            )
            found.append(out[0, len(ids) :].tolist())
        return found

    texts = {"base": greedy()}
    with Edit.load(real.edit(export)).live(model):
        texts["edited"] = greedy()
    made = World(smollm2, export, prompts, {}, tokenizer)
    made.texts.update({side: [made.until_end(ids) for ids in told] for side, told in texts.items()})
    assert all(a != b for a, b in zip(*made.texts.values()))  # the control: another text than the base's
    return made


@pytest.mark.slow
def test_onnxruntime(world: World) -> None:
    """Two texts and their continuations; at strength 0 the base."""
    report = verify(world.export, base=world.base, prompts=PROMPTS, max_new_tokens=16, write=False)
    assert report.failures == []
    # The issue's own bound; measured 1.1e-4 on logits up to 41.
    assert max(report.equality.largest, report.facts["strength_0"]) <= 1e-3
    assert report.equality.greedy_equal == report.equality.padded_equal == 2
    assert report.effect.greedy_equal < 2


@pytest.mark.slow
def test_onnxruntime_genai(world: World) -> None:
    import onnxruntime_genai as og

    model = og.Model(str(world.export))
    tokenizer = og.Tokenizer(model)
    for prompt, ids, expected in zip(PROMPTS, world.prompts, world.texts["edited"]):
        messages = f'[{{"role": "user", "content": "{prompt}"}}]'
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert tokenizer.encode(text).tolist() == ids
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + LENGTH, do_sample=False, batch_size=1)
        generator = og.Generator(model, params)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        assert world.until_end(generator.get_sequence(0).tolist()[len(ids) :]) == expected


@pytest.mark.slow
@needs_node
def test_transformers_js_in_node(world: World) -> None:
    """Offline; also as one left-padded batch."""
    found = node(
        "generate.mjs", folder=str(world.export.parent), name=world.export.name, prompts=PROMPTS, length=LENGTH
    )
    assert [world.until_end(ids) for ids in found["ids"]] == world.texts["edited"]
    assert [world.until_end(ids) for ids in found["padded"]] == world.texts["edited"]


@pytest.mark.slow
@needs_chromium
def test_the_page_in_chromium(world: World, tmp_path: Path) -> None:
    """Both sides stream their own greedy text; at strength 0 they are one; nothing outside is asked for."""
    site = serve_web(world.export, tmp_path / "site", offline=NODE / "node_modules").output
    asks = [
        {"prompt": PROMPTS[0], "strength": 1, "length": LENGTH},
        {"prompt": PROMPTS[1], "strength": 0, "length": LENGTH, "fresh": True},
    ]
    with hosted(site) as address:
        seen = node("page.mjs", url=address, asks=asks)
    assert seen["problems"] == []
    assert {re.sub(r"^blob:", "", url).startswith(address) for url in seen["requests"]} == {True}
    first, second = seen["answers"]
    base, edited = world.words("base"), world.words("edited")
    assert (first["base"], first["edited"]) == (base[0], edited[0])
    assert second["base"] == second["edited"] == base[1] != edited[1]
    assert min(first["steps"].values()) > 5  # streamed, not told at once
