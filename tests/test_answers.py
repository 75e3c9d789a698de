"""What a door answers: a prompt's own text is that of ``generate``, whether it was generated or recognised in
one pass over the text of a padded batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from conftest import Workshop
from safetensors.torch import load_file

from sea_bake.verification import answers

PROMPTS = [[5, 9, 21, 7], [11, 3], [8, 30, 41, 17, 26, 9, 12], [64, 33, 90]]
TRIED = ("llama", "gemma2", "gpt2", "mixtral", "qwen3_next", "bamba", "t5", "bart")


def asked(model: Any, **changes: Any) -> dict[str, Any]:
    start = model.generation_config.decoder_start_token_id if model.config.is_encoder_decoder else None
    teacher = [[start, 4, 6]] * len(PROMPTS) if start is not None else PROMPTS
    return {
        "teacher": teacher, "prompts": PROMPTS, "max_new_tokens": 9, "positions": 4, "pad": 0, "decoder_start": start,
    } | changes  # fmt: skip


class Counted:
    """How often, and on how many rows, a model was asked to generate."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        original = model.generate

        def generate(**options: Any) -> Any:
            self.rows.append(len(options["input_ids"]))
            return original(**options)

        monkeypatch.setattr(model, "generate", generate)


def one_by_one(model: Any, request: dict[str, Any]) -> list[list[int]]:
    length = request["max_new_tokens"]
    found = []
    for ids in request["prompts"]:
        out = model.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0
        )
        found.append(out[0, -length:].tolist())
    return found


def told(model: Any, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    with torch.inference_mode():
        answers.answer(model, request, str(folder / "answers.safetensors"))
    return load_file(folder / "answers.safetensors")


@pytest.mark.parametrize("family", TRIED)
def test_a_prompts_own_text_is_the_generated_one(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    assert family in families.CONFIGS
    model = workshop.model(family)
    monkeypatch.setattr(model, "generation_config", model.generation_config)
    request = asked(model)
    expected = one_by_one(model, request)
    counted = Counted(model, monkeypatch)
    found = told(model, request, tmp_path)
    assert [found[f"greedy.{i}"].tolist() for i in range(len(PROMPTS))] == expected
    assert counted.rows[:2] == [len(PROMPTS), 1]
    parted = sum(found[f"padded.{i}"].tolist() != expected[i] for i in range(1, len(PROMPTS)))
    assert len(counted.rows) <= 2 + len(PROMPTS) - 1
    assert len(counted.rows) >= 2 + parted


def test_most_texts_are_recognised(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(model := workshop.model("llama"), monkeypatch)
    told(model, asked(model), tmp_path)
    assert counted.rows == [len(PROMPTS), 1]
    told(model, asked(model, alone=0), tmp_path)
    assert counted.rows[2:] == [len(PROMPTS)]


@pytest.mark.parametrize("name", ["eos_token_id", "suppress_tokens", "begin_suppress_tokens"])
def test_tokens_that_are_never_said_are_heeded(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Those that the model would say first: with them left alone the text is another one."""
    model = workshop.model("llama")
    free = one_by_one(model, asked(model))
    settings = type(model.generation_config)(**{name: sorted({text[0] for text in free})})
    monkeypatch.setattr(model, "generation_config", settings)
    expected = one_by_one(model, asked(model))
    assert all(one != other for one, other in zip(expected, free))
    counted = Counted(model, monkeypatch)
    found = told(model, asked(model), tmp_path)
    assert [found[f"greedy.{i}"].tolist() for i in range(len(PROMPTS))] == expected
    assert counted.rows == [len(PROMPTS), 1]


def test_what_padding_changes_is_seen(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a model that heeds no mask says something else in a batch, and its own texts are generated."""
    model = workshop.model("llama")
    expected = one_by_one(model, asked(model))
    original = model.generate

    def blind(**options: Any) -> Any:
        options["attention_mask"] = torch.ones_like(options["attention_mask"])
        return original(**options)

    monkeypatch.setattr(model, "generate", blind)
    found = told(model, asked(model), tmp_path)
    padded = [found[f"padded.{i}"].tolist() for i in range(len(PROMPTS))]
    assert sum(text != own for text, own in zip(padded, expected)) >= 2
    assert [found[f"greedy.{i}"].tolist() for i in range(len(PROMPTS))] == expected
