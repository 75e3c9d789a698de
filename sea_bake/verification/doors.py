"""The two sides of a proof: what both are asked, and each asked in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.prompts import encode, pad_id
from sea_bake.activations.rendering import usable
from sea_bake.artefact import Artefact
from sea_bake.demonstrations import builtin
from sea_bake.edit import Edit
from sea_bake.errors import VerificationError
from sea_bake.io.files import read_json
from sea_bake.io.interpreter import running
from sea_bake.model.checkpoint.reader import Checkpoint, weights_file
from sea_bake.model.loading import auto_class, load_tokenizer
from sea_bake.model.source import ModelSource
from sea_bake.verification.kept import kept
from sea_bake.verification.strangers import Stranger

_PROMPTS = 6


@dataclass(frozen=True)
class Subject:
    """What is to be proved.

    Attributes:
        artefact: it; or a model of somebody else's.
        source: its base.
        edits: files of the edits, in the order in which they act.
        plain: the folder with its configuration and tokenizer: an adapter has none of its own, it lives on its base.
        device: on which all doors run.
        fresh: the base answers again, whatever it has answered before.
    """

    artefact: Artefact | Stranger
    source: ModelSource
    edits: list[Path]
    plain: Path
    device: str
    fresh: bool = False

    @property
    def form(self) -> PromptFormat:
        """How the edits' prompts were rendered."""
        return PromptFormat.shared([Edit.load(path).recipe for path in self.edits])

    @property
    def ours(self) -> Artefact:
        """It, where it is known to be an artefact."""
        assert isinstance(self.artefact, Artefact)
        return self.artefact

    @property
    def what(self) -> str:
        """What to call it in a sentence."""
        return "the model" if isinstance(self.artefact, Stranger) else "the artefact"

    @property
    def folded(self) -> bool:
        """Whether the edit is in weights, (M W) x, and no layer of its own, M (W x)."""
        return isinstance(self.artefact, Stranger) or self.artefact.kind in ("fold", "adapter")

    @functools.cached_property  # the headers of all shards are read for it
    def stored(self) -> str:
        """The dtype of its weights, of a fold the coarsest of those that were edited; whatever its configuration says.

        A GGUF base has none of its own, so the artefact's decides for all doors.
        """
        if isinstance(self.artefact, Stranger):
            return self.artefact.stored
        config = read_json(self.plain / "config.json")
        named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        if weights_file(self.plain, config) is None:
            return named
        checkpoint = Checkpoint.open(self.plain)
        found = [checkpoint.dtype()]
        if self.artefact.how == "fold" and self.artefact.bake is not None:
            found += [t.dtype for name in self.artefact.bake.changed if (t := checkpoint.tensor(name)) is not None]
        known = [dtype for dtype in found[1:] or found if dtype is not None]
        return str(max(known, key=lambda dtype: torch.finfo(dtype).eps)).removeprefix("torch.") if known else named

    @property
    def rounded(self) -> bool:
        """Folded weights were rounded to half precision: that may turn a tie, after which texts go their own ways."""
        written = isinstance(self.artefact, Stranger) or self.artefact.how == "fold"
        return written and self.stored not in ("float32", "float64")


def request_for(
    artefact: Path,
    source: ModelSource,
    prompts: Sequence[str] | None,
    max_new_tokens: int,
    positions: int,
    form: PromptFormat | None = None,
    *,
    what: str = "the artefact",
    has_tokenizer: bool = True,
) -> dict[str, Any]:
    """Token ids for all doors, from the artefact's own tokenizer, which must agree with the base's, rendered as the
    edits were fitted.

    Args:
        artefact: folder of its configuration and tokenizer.
        what: what to call it.
        has_tokenizer: whether it has one; else the base's is taken.
    """
    reference = load_tokenizer(source)
    tokenizer = load_tokenizer(artefact) if has_tokenizer else reference
    triples = builtin()[:: max(1, len(builtin()) // _PROMPTS)][:_PROMPTS]
    texts = [(p, None) for p in prompts] if prompts else [(d.prompt, d.positive) for d in triples]
    start, form = decoder_start(artefact), usable(tokenizer, form)
    teacher = [encode(tokenizer, p, c, form, decoder_start=start) for p, c in texts]
    if teacher != [encode(reference, p, c, form, decoder_start=start) for p, c in texts]:
        raise VerificationError(f"{what}'s tokenizer does not encode like the base's: its files are not the base's")
    rows = _rows(artefact)
    for i, tokens in enumerate(teacher):
        unknown = next((id for id in (*tokens.ids, *(tokens.encoder or ())) if rows is not None and id >= rows), None)
        if unknown is not None:
            raise VerificationError(
                f"prompt {i + 1} holds the token {tokenizer.convert_ids_to_tokens(unknown)!r} (id {unknown}), and the "
                f"model's embedding has {rows} rows: take it out of the prompt"
            )
    return {
        "auto_class": auto_class(read_json(artefact / "config.json")),
        "decoder_start": start,
        "teacher": [list(t.ids) for t in teacher],
        "prompts": [list(t.encoder or encode(tokenizer, p, form=form).ids) for t, (p, _) in zip(teacher, texts)],
        "max_new_tokens": max_new_tokens,
        "positions": positions,
        "pad": pad_id(tokenizer, rows),
    }


def decoder_start(artefact: Path) -> int | None:
    """The token that the decoder of an encoder-decoder starts with; None where there is no encoder."""
    found = read_json(artefact / "config.json")
    if not found.get("is_encoder_decoder"):
        return None
    generation = artefact / "generation_config.json"
    found |= read_json(generation) if generation.is_file() else {}
    named = (found.get(key) for key in ("decoder_start_token_id", "bos_token_id"))
    start = next((id for id in named if isinstance(id, int)), None)
    if start is None:
        raise VerificationError(
            f"{artefact} does not say which token its decoder starts with: write decoder_start_token_id into its "
            "generation_config.json"
        )
    return start


def _rows(artefact: Path) -> int | None:
    """Rows of the embedding, by the configuration; None where it does not say."""
    found = read_json(artefact / "config.json")
    parts = (found, found.get("text_config") or {})
    return next((part["vocab_size"] for part in parts if isinstance(part.get("vocab_size"), int)), None)


def open_reference(request: dict[str, Any], subject: Subject, folder: Path) -> dict[str, Any]:
    """The base, and the base under ``Edit.live``: their answers go to base.safetensors and live.safetensors.

    Those of the base are taken from an earlier verification, where that asked the same of the same.
    """
    source, base = subject.source.on_disk(), folder / "base.safetensors"
    place = None if subject.fresh else kept(source, request)
    known = place is not None and place.give(base)
    reference = request | {
        "model": str(source.path),
        "revision": source.revision,
        "edits": [str(e) for e in subject.edits],
        "output": None if known else str(base),
        "live_output": str(folder / "live.safetensors"),
    }
    facts = open_door(fresh("sea_bake.verification.reference"), folder, "reference", reference)
    if place is not None and not known:
        place.keep(base)
    return facts | {"base_kept": known}


def fresh(module: str) -> list[str]:
    """What runs a module of ours in a process of its own."""
    seldom = "from sea_bake.io.garbage import collect_seldom; collect_seldom()"
    return running(f"{seldom}; import runpy; runpy.run_module({module!r}, None, '__main__', True)")


def open_door(command: list[str], folder: Path, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run one door on a request and return its facts."""
    request = request | {"facts": str(folder / f"{name}.facts.json")}
    path = folder / f"{name}.request.json"
    path.write_text(json.dumps(request), "utf-8")
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, env={**os.environ, **quiet}, stdin=subprocess.DEVNULL
    )
    if ran.returncode != 0 or not Path(request["facts"]).is_file():
        lines = [line for line in ran.stderr.strip().splitlines() if line.strip()] or [f"exit code {ran.returncode}"]
        raise VerificationError(f"the {name} door could not be opened: {lines[-1]}")
    facts: dict[str, Any] = json.loads(Path(request["facts"]).read_text("utf-8"))
    if "error" in facts:
        raise VerificationError(f"the {name} door could not be opened: {facts['error']}")
    return facts
