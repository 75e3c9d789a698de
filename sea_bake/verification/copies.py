"""A quantised copy of an artefact, made by somebody else's tool: what is left of the edit in it."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact.verification import Variant
from sea_bake.errors import VerificationError
from sea_bake.io.files import read_json
from sea_bake.model.checkpoint.gguf import materialise
from sea_bake.model.checkpoint.leftovers import claimed
from sea_bake.model.source import ModelSource
from sea_bake.verification import answers, strangers
from sea_bake.verification.doors import Subject, open_door, request_for
from sea_bake.verification.effect import NOTHING_CHANGED, along, effect_correlation
from sea_bake.verification.verdict import KEPT, Answers, compare, judge_reduced

# What transformers does to plain weights while it loads them. Others need texts, or tools of their own: there the base
# cannot be quantised likewise.
_ONLINE = ("bitsandbytes", "torchao", "quanto", "hqq")
# Where the base is not quantised likewise, rounding counts as a change, too: as large as the edit's, it leaves 0.7.
# Measured with scripts/check_quantised: 0.66 in q4_k_m of SmolLM2-135M, where the answers are all others.
PRESENT = 0.5
# An edit that has this share of its strength or less is not there. By rounding alone, q4_k_m of SmolLM2-135M without
# any edit goes 0.23 along it: with coarser rounding this does not tell the two apart.
ABSENT = 0.25


@dataclass(frozen=True)
class Copy:
    """What somebody made of a fold.

    Attributes:
        name: as it is called in the verdict.
        folder: a checkpoint that transformers loads; of a GGUF, its weights as they were rounded.
        bits: of its quantised weights.
        bytes: its size on disk.
        likewise: the entry of its configuration by which transformers quantises the base likewise; or None.
    """

    name: str
    folder: Path
    bits: int
    bytes: int
    likewise: dict[str, Any] | None
    has_tokenizer: bool


@contextlib.contextmanager
def opened(copy: str | Path, base: ModelSource) -> Iterator[Copy]:
    """A copy, after every check that needs no model.

    Raises:
        CheckpointError: it is damaged, has pickles alone, or code of its own.
        VerificationError: its weights are not quantised, or it has another width, depth or vocabulary than the base.
    """
    source = strangers.located(copy)
    if source.is_adapter:
        raise VerificationError(f"'{source.name}' is a LoRA: name a whole model, quantised")
    with strangers.opened(source, base, quantised=True) as model:
        if source.is_gguf:
            file = source.folder()
            yield Copy(source.name, model.folder, _bits_of_gguf(file), file.stat().st_size, None, model.has_tokenizer)
            return
        config = read_json(model.folder / "config.json")
        method = claimed(config)
        if method is None:
            raise VerificationError(
                f"'{source.name}' is not quantised: prove it as any model that somebody else made, sea-bake verify "
                f"{source.name} --base BASE --edit EDIT"
            )
        entry = config.get("quantization_config")
        likewise = entry if method in _ONLINE and isinstance(entry, dict) and not base.is_adapter else None
        size = sum(path.stat().st_size for path in model.folder.glob("*.safetensors"))
        yield Copy(source.name, model.folder, _bits(entry or config), size, likewise, model.has_tokenizer)


def _bits(entry: dict[str, Any]) -> int:
    """Of quantised weights, by what a configuration says; 8 where it does not."""
    for key in ("bits", "nbits", "w_bit"):
        if isinstance(entry.get(key), int):
            return int(entry[key])
    if entry.get("load_in_4bit") or entry.get("load_in_8bit"):
        return 4 if entry.get("load_in_4bit") else 8
    text = json.dumps(entry)
    named = re.findall(r'"num_bits": (\d+)', text) or re.findall(r"(?i)(?:u?intx?|float|mxfp|fp)(\d)(?!\d)", text)
    return min(map(int, named), default=8)


def _bits_of_gguf(path: Path) -> int:
    """Of matrices, on average. Raises VerificationError where they are plain."""
    from gguf import GGUFReader

    matrices = [tensor for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1]
    bits = round(8 * sum(int(t.n_bytes) for t in matrices) / max(1, sum(int(t.n_elements) for t in matrices)))
    if bits >= 16:
        raise VerificationError(
            f"{path.name} is not quantised: prove it as any model that somebody else made, sea-bake verify {path.name} "
            "--base BASE --edit EDIT"
        )
    return bits


def check_tokenizer(
    copy: Copy,
    base: ModelSource,
    request: dict[str, Any],
    prompts: Sequence[str] | None,
    form: PromptFormat | None,
) -> None:
    """Raises VerificationError where a copy's own tokenizer makes other tokens of the texts than the base's."""
    if copy.has_tokenizer:
        sizes = request["max_new_tokens"], request["positions"]
        request_for(copy.folder, base, prompts, *sizes, form, what="the copy")


def ask(copy: Copy, subject: Subject, request: dict[str, Any], folder: Path) -> str:
    """Let a copy answer, and the base quantised likewise where that can be had.

    Args:
        request: as the artefact's own door was given it.
        folder: copy.safetensors and likewise.safetensors are written there.

    Returns:
        What the copy's answers are held against.
    """
    plain = {"adapter": None, "trust_remote_code": False, "use_safetensors": True}
    door = [sys.executable, "-I", answers.__file__]
    own = request | plain | {"model": str(copy.folder), "dtype": "auto", "output": str(folder / "copy.safetensors")}
    facts = open_door(door, folder, "copy", own)
    if copy.likewise is None:
        return "the base in float32"
    with _as_folder(subject.source) as base:
        likewise = own | {
            "model": str(base),
            "dtype": facts["dtype"],
            "quantization": copy.likewise,
            "output": str(folder / "likewise.safetensors"),
        }
        open_door(door, folder, "quantised base", likewise)
    return "the base, quantised likewise"


@contextlib.contextmanager
def _as_folder(source: ModelSource) -> Iterator[Path]:
    if not source.is_gguf:
        yield source.folder()
        return
    with tempfile.TemporaryDirectory(prefix="sea-bake-verify-") as scratch:
        materialise(source, Path(scratch))
        yield Path(scratch)


def judge(copy: Copy, folder: Path, live: Answers, base: Answers, against: str) -> Variant:
    """What is left of the edit in a copy, from what :func:`ask` has left in a folder."""
    theirs, file = load_file(folder / "copy.safetensors"), folder / "likewise.safetensors"
    unedited = load_file(file) if file.is_file() else base
    equality, effect = compare(live, theirs), compare(base, theirs)
    correlation = effect_correlation(theirs, unedited, live, base)
    way = along(theirs, unedited, live, base)
    failures = judge_reduced(equality, effect, correlation, copy.bits, least=KEPT if file.is_file() else PRESENT)
    if way is None:
        failures = [NOTHING_CHANGED]
    elif not way[0] > ABSENT:
        failures.insert(
            0,
            f"the edit is not in it: from {against}, it moves {way[0]:.2f} times as far along what the edit changes "
            "(1 expected). It is a copy of the base or of another model: quantise the artefact itself",
        )
    return Variant(not failures, failures, copy.bits, copy.bytes, equality, effect, correlation)
