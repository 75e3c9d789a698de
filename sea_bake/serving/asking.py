"""One prompt, or several, answered by base and edited model side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.serving.sampling import DEFAULT_ANSWER, Runtime, Sampling, check_there

if TYPE_CHECKING:
    from sea_bake.activations.prompt_format import PromptFormat
    from sea_bake.artefact import Artefact
    from sea_bake.edit import Edit
    from sea_bake.serving.conversation import Turn


@dataclass(frozen=True)
class Answers:
    """What was answered.

    Attributes:
        model: what was asked, by its name.
        how: how the edit acts: "live", "insert", "fold", "adapter", "onnx", "gguf"; None of a base alone.
        runtime: what ran it.
        sides: of "base" and "edited" those that answered.
        turns: one for each prompt, each by itself: the answers of both sides.
        lacking: why a side did not answer; "" where both did.
    """

    model: str
    how: str | None
    runtime: str
    sides: tuple[str, ...]
    turns: list[Turn]
    lacking: str = ""

    def to_json(self) -> dict[str, Any]:
        facts = {"model": self.model, "how": self.how, "runtime": self.runtime, "sides": list(self.sides)}
        return {**facts, "lacking": self.lacking, "answers": [turn.to_json() for turn in self.turns]}


def ask(
    model: str | Path | Artefact,
    prompts: Sequence[str],
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
    hear: Callable[[str, str], None] = lambda side, piece: None,
) -> Answers:
    """Let base and edited model answer the same prompts, each prompt by itself.

    Args:
        model: a base (folder, .gguf file or Hub id), with ``edit``; an artefact that sea-bake bake or export wrote; or
            a GGUF.
        prompts: a question; "-" on the command line is what comes in through a pipe.
        edit: edit file that acts live on the base: here, or "USER/REPO[@REVISION]" on the Hub.
        base: base of an artefact, where it is neither beside it nor on the Hub.
        alpha: strength: times the edit as it is stored; 0 is the base. Of a live or inserted edit, an ONNX export with
            a strength, and of a LoRA for llama.cpp.
        max_new_tokens: the longest answer.
        temperature: 0: the most likely token, always; higher: drawn.
        seed: of what is drawn.
        prompt_format: how prompts are rendered. Default: as the demonstrations of the edits were.
        runtime: of a GGUF: "llama.cpp", "transformers", or "auto": the first of them that is installed.
        revision: branch, tag or commit of a model on the Hub.
        dtype: see :func:`sea_bake.model.loading.load_model`.
        device: see :func:`sea_bake.model.loading.load_model`.
        hear: is called with side and text, as answers grow.

    Raises:
        SettingError: no prompt, or an empty one; a strength that cannot be changed; an edit for an artefact.
        CheckpointError, EditError, WrongModelError: something cannot be read, or does not belong together.
        MissingExtraError: a runtime that is not installed.
    """
    sampling = Sampling(max_new_tokens, temperature, seed)
    check_there(model, edit, revision, prompts)
    from sea_bake.serving.conversation import Conversation
    from sea_bake.serving.opening import opened

    pair = opened(
        model, edit=edit, base=base, runtime=runtime, prompt_format=prompt_format, revision=revision, dtype=dtype,
        device=device,
    )  # fmt: skip
    try:
        talk = Conversation(pair, strength=alpha, sampling=sampling, goes_on=False)
        turns = []
        for prompt in prompts:
            turns.append(talk.ask(prompt, hear))
            talk.clear()
        return Answers(pair.name, pair.how, pair.runtime, talk.sides, turns, pair.lacking)
    finally:
        pair.close()
