"""A model that somebody else made, by whatever means: without a record of ours, and without running anything of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sea_bake.errors import CheckpointError, VerificationError, need, reason_of
from sea_bake.io.edits import hub_name
from sea_bake.io.files import read_json
from sea_bake.io.staging import need_space
from sea_bake.model.checkpoint.gguf import materialise
from sea_bake.model.checkpoint.reader import Checkpoint
from sea_bake.model.kernels import check_kernels
from sea_bake.model.loading import architecture, language_models
from sea_bake.model.lora import WEIGHTS, changes
from sea_bake.model.sites import decoder_config
from sea_bake.model.source import ModelSource

_SIZES = {"hidden_size": "width", "num_hidden_layers": "layers", "vocab_size": "tokens in its vocabulary"}
_PLAIN_GGUF = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class Stranger:
    """A model of somebody else's, that is said to be an edited base.

    Attributes:
        name: its Hub id, or the last part of its path.
        kind, how: "checkpoint", "adapter" (a PEFT LoRA) or "gguf".
        folder: of the checkpoint, or of the adapter.
        stored: the coarsest float dtype of its weights.
        bake, hub_id: what an artefact of ours would have.
    """

    name: str
    kind: str
    folder: Path
    stored: str
    bake: None = None
    hub_id: None = None

    @property
    def how(self) -> str:
        return self.kind

    @property
    def has_tokenizer(self) -> bool:
        """Whether it brings one along; many merged checkpoints do not."""
        return self.kind != "adapter" and any((self.folder / name).is_file() for name in _TOKENIZERS)


def located(model: str | Path) -> ModelSource:
    """The files of a model that is named like one, or as USER/REPO@REVISION. Raises CheckpointError."""
    named = None if os.path.exists(os.path.expanduser(model)) else hub_name(model)
    return (ModelSource.parse(*named) if named else ModelSource.parse(model)).on_disk()


@contextlib.contextmanager
def opened(source: ModelSource, base: ModelSource, *, quantised: bool = False) -> Iterator[Stranger]:
    """What there is to prove, after every check that needs no model; a GGUF becomes a checkpoint for as long.

    Args:
        quantised: let quantised weights through.

    Raises:
        CheckpointError: it is damaged, has pickles alone, custom code, or is more than a plain LoRA of this base.
        VerificationError: quantised, or of another width, depth or vocabulary than the base: no answer of it could be
            that of the edited base.
        MissingExtraError: the package ``gguf`` is not installed.
    """
    if source.is_adapter:
        yield _adapter(source, base)
        return
    if not source.is_gguf:
        yield _checkpoint(source.name, source.folder(), base, quantised=quantised)
        return
    stored = "float32" if quantised else _plain_dtype(source.folder())
    with tempfile.TemporaryDirectory(prefix="sea-bake-verify-") as scratch:
        folder = Path(scratch, "model")
        folder.mkdir()
        need_space(folder, 8 * source.folder().stat().st_size)
        materialise(source, folder)
        _check_biases(source, folder)
        yield replace(_checkpoint(source.name, folder, base), kind="gguf", stored=stored)


def _checkpoint(name: str, folder: Path, base: ModelSource, *, quantised: bool = False) -> Stranger:
    checkpoint = Checkpoint.open(folder)
    config = read_json(folder / "config.json")
    check_kernels(config)
    named, known = architecture(config), language_models(str(config.get("model_type")))
    if not known or (named is not None and named not in known.values()):
        raise CheckpointError(
            f"'{name}' is a {named or config.get('model_type')}, which is no language model of transformers, and "
            "verify runs no code of somebody else's: give it as a plain checkpoint (merged, of the base's own class)"
        )
    if config.get("quantization_config") and checkpoint.left_over is None and not quantised:
        raise VerificationError(
            f"'{name}' is quantised: what rounding does to its answers hides whether the edit in it is right. Give the "
            "checkpoint that it was quantised from"
        )
    theirs, ours = _sizes(ModelSource(name, folder)), _sizes(base)
    for key, what in _SIZES.items():
        if theirs[key] != ours[key]:
            raise VerificationError(
                f"'{name}' is no edited '{base.name}': {theirs[key]} {what}, and the base has {ours[key]}. Name the "
                "base that it was made of (--base)"
            )
    floats = [dtype for dtype in checkpoint.dtypes() if dtype.is_floating_point and dtype.itemsize > 1]
    coarsest = max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    return Stranger(name, "checkpoint", folder, str(coarsest).removeprefix("torch."))


def _adapter(source: ModelSource, base: ModelSource) -> Stranger:
    """Held against the base first: PEFT leaves out what finds no place, and imports what a configuration names."""
    import transformers
    from transformers import AutoConfig

    folder = source.folder()
    if base.is_adapter:
        raise VerificationError(
            f"the base '{base.name}' is an adapter itself: name a model that '{source.name}' loads on"
        )
    config = AutoConfig.from_pretrained(**_named(base))
    named = architecture(config.to_dict()) or next(iter(language_models(config.model_type).values()), "")
    changes(source, getattr(transformers, named), config)
    with safe_open(str(folder / WEIGHTS), framework="pt") as file:
        dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 (not a dict)
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    return Stranger(source.name, "adapter", folder, str(coarsest).removeprefix("torch."))


def _sizes(source: ModelSource) -> dict[str, int | None]:
    """Width, depth and vocabulary of a model. Raises CheckpointError where transformers cannot read them."""
    from transformers import AutoConfig

    source = source.base() if source.is_adapter else source
    try:
        found = decoder_config(AutoConfig.from_pretrained(**_named(source)))
    except Exception as error:
        raise CheckpointError(f"the configuration of '{source.name}' cannot be read: {reason_of(error)}") from error
    return {key: getattr(found, key, None) for key in _SIZES}


def _named(source: ModelSource) -> dict[str, Any]:
    """A source as transformers' ``from_pretrained`` takes it."""
    path = source.folder()
    if source.is_gguf:
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path), "trust_remote_code": False}


def _plain_dtype(path: Path) -> str:
    """The coarsest float dtype of a GGUF's tensors. Raises VerificationError where some are quantised."""
    need("gguf", "Reading a GGUF model", "gguf")
    from gguf import GGUFReader

    try:
        types = {tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as GGUF: {reason_of(error)}") from error
    quantised = sorted(types - _PLAIN_GGUF.keys())
    if quantised:
        raise VerificationError(
            f"{path.name} is quantised ({', '.join(quantised)}): what rounding does to its answers hides whether the "
            "edit in it is right. Give the F32, F16 or BF16 file, or the checkpoint, that it was made from"
        )
    return max((_PLAIN_GGUF[name] for name in types), key=lambda name: torch.finfo(getattr(torch, name)).eps)


def _check_biases(source: ModelSource, folder: Path) -> None:
    """Raise VerificationError where transformers' reader drops a bias that the GGUF has: llama.cpp would add it."""
    from gguf import GGUFReader

    there = {t.name for t in GGUFReader(source.folder()).tensors if t.name.endswith(".bias")}
    read = [name for name in Checkpoint.open(folder).weight_map if name.endswith(".bias")]
    if len(there) > len(read):
        raise VerificationError(
            f"{source.name} has {len(there)} biases, and transformers reads {len(read)} of them: what llama.cpp "
            "answers cannot be told here. Give the checkpoint that it was made from"
        )
