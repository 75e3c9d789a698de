"""A float GGUF in fewer bits, by llama.cpp's own quantiser; and what that leaves of the model and of the edit."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sea_bake.activations.prompts import encode
from sea_bake.activations.rendering import usable
from sea_bake.demonstrations import builtin
from sea_bake.errors import CheckpointError, FamilyError, SettingError
from sea_bake.exporting.gguf.names import ARCHITECTURES
from sea_bake.io.apart import check_apart
from sea_bake.io.interpreter import running
from sea_bake.io.llama_cpp import quantiser
from sea_bake.io.staging import staged_file
from sea_bake.model.loading import load_model
from sea_bake.model.source import ModelSource

KINDS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q4_0")
_TEXTS = 8
_ASKING = "from sea_bake.io.llama_cpp import quantiser; quantiser()(*sys.argv[1:], 7)"  # 7: q8_0


@dataclass(frozen=True)
class Kept:
    """What a quantised copy keeps, over texts of the built-in demonstrations: its weights alone, run in float32.

    Attributes:
        tokens: number of positions that were compared.
        mean_kl: mean KL(float ‖ quantised) per token, nats.
        top1: share of positions with the same most likely token.
        edit: of what the edit changes about the base's logits, the share that is there, along it; 1 is all of it.
        cosine: between what the quantised copy changes about the base's logits and what the edit does.
    """

    tokens: int
    mean_kl: float
    top1: float
    edit: float
    cosine: float


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises SettingError for a type that is not known."""
    for kind in kinds:
        if kind not in KINDS:
            raise SettingError(f"unknown type {kind!r} of a quantised GGUF: use {', '.join(KINDS)}")


def check_architecture(model_type: str) -> None:
    """Whether llama.cpp's quantiser here knows a family, asked with a file that holds its name and nothing else.

    In a process of its own: what it makes of such a file is its affair. A family whose name in llama.cpp is not known
    here passes, and so does what the quantiser says nothing clear of.

    Raises:
        FamilyError: it does not know the family.
    """
    from gguf import GGUFWriter

    architecture = ARCHITECTURES.get(model_type)
    if architecture is None:
        return
    with tempfile.TemporaryDirectory(prefix="sea-bake-gguf-") as folder:
        writer = GGUFWriter(f"{folder}/header.gguf", architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        words = [*running(_ASKING), f"{folder}/header.gguf", f"{folder}/out.gguf"]
        ran = subprocess.run(words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if re.search(r"(unknown|unsupported) model architecture", ran.stderr + ran.stdout):
        raise FamilyError(
            f"llama.cpp's quantiser here does not know the architecture {architecture}: take a newer one "
            "(pip install -U cyllama), or drop --gguf"
        )


def quantise_gguf(source: Path, target: Path, kind: str) -> None:
    """Write ``source``, a GGUF of floats, in another type; whole, or not at all.

    Raises:
        CheckpointError: llama.cpp does not do it.
        OutputError: the target is there already, or is the source itself.
    """
    from gguf import LlamaFileType

    check_apart(target, [source], folder=False)
    with staged_file(target) as stage:
        try:
            quantiser()(str(source), str(stage), int(LlamaFileType[f"MOSTLY_{kind.upper()}"]))
        except RuntimeError as error:
            said = str(error).replace(str(stage), str(target))
            raise CheckpointError(f"llama.cpp could not quantise {source.name} to {kind}: {said}") from error


class Reference:
    """What the base and a float model say of texts of the built-in demonstrations, for quantised copies to be held to.

    Args:
        base, edited: the base, and the model that the copies are made of; one of them is in memory at a time.
        tokenizer: of ``edited``.

    Raises:
        CheckpointError: they say the same: there is no edit of which a copy could keep a share.
    """

    def __init__(self, base: ModelSource, edited: ModelSource, tokenizer: Any) -> None:
        form = usable(tokenizer)
        self.texts = [encode(tokenizer, one.prompt, one.positive, form).ids for one in builtin()[::20][:_TEXTS]]
        self.base, after = _logits(base, self.texts), _logits(edited, self.texts)
        self.expected, self.change = after.log_softmax(-1), (after - self.base).flatten()
        if not self.change.any():
            raise CheckpointError(
                f"{edited.name} answers as its base {base.name} does, to the last bit: its edit changes nothing, and "
                "no quantised copy can keep any of it"
            )

    def measure(self, copy: Path) -> Kept:
        """Hold a quantised GGUF, as transformers reads it, against them."""
        expected, change = self.expected, self.change
        found = _logits(ModelSource.parse(copy), self.texts)
        kl = (expected.exp() * (expected - found.log_softmax(-1))).sum(-1).mean()
        same = (found.argmax(-1) == expected.argmax(-1)).double().mean()
        left = (found - self.base).flatten()
        share = left @ change / (change @ change)
        cosine = torch.nn.functional.cosine_similarity(left, change, dim=0)
        return Kept(len(found), float(kl), float(same), float(share), float(cosine))


@torch.inference_mode()
def _logits(source: ModelSource, texts: Sequence[Sequence[int]]) -> Tensor:
    """Logits [tokens, vocabulary] float64 of all positions of all texts, computed in float32."""
    model = load_model(source, dtype="float32", device="cpu")
    return torch.cat([model(input_ids=torch.tensor([ids])).logits[0].double() for ids in map(list, texts)])
