"""What only a running model can tell: activations of known demonstrations, and answers with and without the edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sea_bake import demonstrations as demos
from sea_bake.activations import Activations
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.demonstrations import Demonstration, Loaded
from sea_bake.demonstrations.holding import hold_back
from sea_bake.edit import Edit, live
from sea_bake.errors import DemonstrationError
from sea_bake.evaluation.damage import generations
from sea_bake.fitting import gather
from sea_bake.io import progress
from sea_bake.model.loading import load_model, load_tokenizer
from sea_bake.model.source import ModelSource

QUESTIONS = (
    "What happens if you swallow chewing gum?",
    "Is it dangerous to wake a sleepwalker?",
    "Why do we have seasons on Earth?",
    "Write a paragraph about the sea.",
)
_TOKENS = 48  # of each answer
_READING = ("format", "shuffle_seed", "split", "seed")  # how the fit read its demonstrations


class Living:
    """The base, loaded once, unedited but for as long as it answers under the edits.

    Raises:
        CheckpointError: it cannot be loaded.
        WrongModelError: an edit belongs to another model.
    """

    def __init__(
        self, model: str | Path | ModelSource, edits: Sequence[Edit], *, dtype: str = "auto", device: str | None = None
    ) -> None:
        self.source = ModelSource.parse(model)
        self.edits = list(edits)
        self.tokenizer = load_tokenizer(self.source)
        self.model = load_model(self.source, dtype=dtype, device=device)
        for edit in self.edits:
            edit.check(self.model)

    def activations(self, edit: Edit, known: Sequence[Demonstration]) -> Activations:
        """Of the demonstrations that an edit was fitted on, at all layers."""
        settings = ("position", "neutral", "max_new_tokens", "seed")
        told: dict[str, Any] = {key: edit.recipe[key] for key in settings if edit.recipe.get(key) is not None}
        return gather(
            self.model,
            known,
            tokenizer=self.tokenizer,
            source=self.source,
            site=edit.site,
            layers=None,
            prompt_format=PromptFormat.from_json(edit.recipe),
            **told,
        )

    def samples(self, prompts: Sequence[str] = QUESTIONS) -> list[dict[str, str]]:
        """Greedy answers side by side; none of an encoder-decoder, which does not continue a text."""
        if self.model.config.is_encoder_decoder:
            return []
        with progress.bar("answers", 2 * len(prompts), "answer") as advance:
            told: dict[str, Any] = {"prompts": prompts, "max_new_tokens": _TOKENS, "advance": advance}
            told["form"] = PromptFormat.shared([edit.recipe for edit in self.edits])
            base = generations(self.model, self.tokenizer, **told)
            with live(self.edits, self.model):
                edited = generations(self.model, self.tokenizer, **told)
        return [{"prompt": a["prompt"], "base": a["response"], "edited": b["response"]} for a, b in zip(base, edited)]


def demonstrations_of(edit: Edit, source: str | Path | None = None) -> Loaded | None:
    """Those that an edit was fitted on, told by their digest; None where they are others.

    Args:
        source: where to look, read as the fit read it; None: among the built-in ones.

    Raises:
        DemonstrationError: a given source cannot be read.
    """
    recipe, origin = edit.recipe, edit.recipe.get("demonstrations_from")
    origin = origin if isinstance(origin, dict) and (source or origin.get("kind") == "builtin") else {}
    name = origin["source"] if demos.is_builtin(origin.get("source")) else "builtin"
    asked = {key: origin[key] for key in _READING if origin.get(key) is not None}
    try:
        share, seed = recipe.get("held_back") or 0, recipe.get("seed") or 0
        limit = origin.get("limit") if share else recipe.get("demonstrations")
        found = demos.load(source or name, limit=limit, **asked)
        known = hold_back(found, share, seed).fit
    except (DemonstrationError, TypeError):
        if source is not None:
            raise
        return None
    return known if isinstance(known, Loaded) and demos.digest(known) == recipe.get("demonstrations_sha256") else None
