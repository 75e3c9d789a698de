"""A PEFT adapter merged into its base's checkpoint, streamed: as a view of it, and as files."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import CheckpointError
from sea_bake.io import progress
from sea_bake.model.checkpoint.reader import INDEX, Checkpoint, LazyTensor
from sea_bake.model.checkpoint.writer import carry, place
from sea_bake.model.source import ModelSource

if TYPE_CHECKING:
    from torch import Tensor

    from sea_bake.model.lora import Change

_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
    "sentencepiece*.model", "chat_template*",
)  # fmt: skip


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """The base's checkpoint, in which the adapted tensors read as merged.

    Attributes:
        changes: on-disk tensor name -> what the adapter does to it.
        source: the adapter.
    """

    changes: dict[str, Change] = field(default_factory=dict)
    source: ModelSource = field(default_factory=lambda: ModelSource("adapter"))

    def tensor(self, name: str) -> LazyTensor | None:
        found = super().tensor(name)
        return _MergedTensor(found, self.changes[name]) if found is not None and name in self.changes else found

    @property
    def touched(self) -> set[str]:
        """Shards that hold an adapted tensor."""
        return {self.weight_map[name] for name in self.changes}


class _MergedTensor(LazyTensor):
    def __init__(self, tensor: LazyTensor, change: Change) -> None:
        self.__dict__.update(tensor.__dict__)
        self._change = change

    def read(self) -> Tensor:
        return self._change(super().read())

    def element(self, index: tuple[int, ...]) -> float:
        import torch

        value = torch.tensor(super().element(index), dtype=self.dtype)
        return float(self._change.element(value, index))


def merged(source: ModelSource, base: Checkpoint, model_class: Any, config: Any) -> MergedCheckpoint:
    """An adapter and its base, from headers alone.

    Args:
        source: the adapter.
        model_class, config: transformers' class and configuration of the base.

    Raises:
        CheckpointError: the adapter is damaged or not of the kind that can be merged, or one of its tensors has no
            counterpart on disk: none is ever left out.
    """
    from sea_bake.model.lora import changes, check_plain

    found = {}
    for name, change in changes(source, model_class, config).items():
        on_disk = _on_disk(base, name, model_class.base_model_prefix)
        if on_disk is None:
            raise CheckpointError(
                f"the adapter '{source.name}' changes {name}, and {base.folder} has no tensor of that name: the base "
                "keeps it otherwise on disk (fused, split or quantised). Merge the adapter yourself "
                "(PeftModel.merge_and_unload(), then save_pretrained) and give the merged model."
            )
        check_plain(base.tensor(on_disk), on_disk, change, source)
        found[on_disk] = change
    return MergedCheckpoint(base.folder, base.config, base.weight_map, base.index, found, source)


def merge(checkpoint: MergedCheckpoint, folder: Path) -> None:
    """Write the merged checkpoint into an existing folder; peak memory is one tensor, old and new, and its factors.

    Shards without an adapted tensor are hard-linked where that is possible. The tokenizer is the adapter's own, if it
    has one.
    """
    import torch

    base = checkpoint.folder
    touched = checkpoint.touched
    with progress.bar("merge", len(checkpoint.changes), "tensor") as advance:
        for shard in checkpoint.shards:
            if shard not in touched:
                place(base / shard, folder / shard)
                continue
            shutil.copyfile((base / shard).resolve(), folder / shard)
            with open(folder / shard, "r+b") as file:
                for name in (n for n in checkpoint.changes if checkpoint.weight_map[n] == shard):
                    tensor: Any = checkpoint.tensor(name)
                    file.seek(tensor.offset)
                    file.write(tensor.read().contiguous().reshape(-1).view(torch.uint8).numpy())
                    advance(1)
                file.flush()
                os.fsync(file.fileno())  # it ends up in the artefact as a hard link
    index = [INDEX] if checkpoint.index is not None else []
    for name in ("config.json", *index):
        shutil.copyfile(base / name, folder / name)
    carry(base, folder, written=["config.json", *index], shards=checkpoint.shards)
    own = checkpoint.source.folder()
    if (own / "tokenizer_config.json").is_file():
        for pattern in _TOKENIZER:
            for path in folder.glob(pattern):
                path.unlink() if path.is_file() else shutil.rmtree(path)
            for path in own.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
                else:
                    shutil.copytree(path, folder / path.name)


def _on_disk(base: Checkpoint, name: str, prefix: str) -> str | None:
    """A living model's tensor name on disk: the same, or without the backbone's prefix where that was saved alone."""
    names = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((n for n in names if n in base.weight_map), None)
