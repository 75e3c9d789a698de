"""A checkpoint with tensors of zeros that its files do not hold yet: biases that its configuration grants."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import CheckpointError
from sea_bake.model.checkpoint.dtypes import Dtype
from sea_bake.model.checkpoint.reader import SINGLE, Checkpoint, LazyTensor, lazy

if TYPE_CHECKING:
    from torch import Tensor


class Zeros(LazyTensor):
    """A tensor of zeros that lies nowhere."""

    def __init__(self, shape: tuple[int, ...], form: Dtype) -> None:
        self.shape, self.form = shape, form

    def read(self) -> Tensor:
        import torch

        return torch.zeros(self.shape, dtype=self.dtype)

    def element(self, index: tuple[int, ...]) -> float:
        return 0.0


@dataclass(frozen=True)
class ExtendedCheckpoint(Checkpoint):
    """A checkpoint under a configuration of ours, and the biases that this one needs besides.

    Attributes:
        zeros: on-disk tensor name -> what it reads as.
        shard: the file that they are going to lie in.
        keys: of the configuration, which grant them.
    """

    zeros: dict[str, Zeros] = field(default_factory=dict)
    shard: str = ""
    keys: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, base: Checkpoint, config: dict[str, Any], zeros: dict[str, Zeros], shard: str, keys: tuple[str, ...]
    ) -> ExtendedCheckpoint:
        """Raises CheckpointError where a shard of the base has that name."""
        if shard in base.shards:
            raise CheckpointError(
                f"{base.folder} has a shard called like one of ours ({shard}): rename it, in the index too"
            )
        if isinstance(base, ExtendedCheckpoint):
            zeros, keys = base.zeros | zeros, (*base.keys, *keys)
        weight_map = base.weight_map | dict.fromkeys(zeros, shard)
        return cls(base.folder, config, weight_map, base.index, zeros, shard, keys)

    @property
    def shards(self) -> list[str]:
        """Those on disk."""
        return sorted({*self.weight_map.values()} - {self.shard})

    def tensor(self, name: str) -> LazyTensor | None:
        return self.zeros[name] if name in self.zeros else super().tensor(name)

    def write_zeros(self, folder: Path) -> dict[str, LazyTensor]:
        """Write the new shard, and say where each tensor lies in it."""
        from safetensors.torch import save_file

        path = folder / self.shard
        save_file({name: zero.read() for name, zero in self.zeros.items()}, str(path), {"format": "pt"})
        return {name: lazy(path, name) for name in self.zeros}


def renamed_shards(base: Checkpoint, own: str) -> dict[str, str]:
    """Old -> new names of a checkpoint's shards, beside one of ours. A single model.safetensors has to change its:
    loaders take it before any index.

    Raises:
        CheckpointError: the base has a shard of such a name.
    """
    names = {shard: "model-base.safetensors" if shard == SINGLE else shard for shard in base.shards}
    if len({*names.values(), own}) <= len(names):
        raise CheckpointError(
            f"{base.folder} has a shard called like one of ours ({own}, ...): rename it, in the index too"
        )
    return names


def index_with(base: Checkpoint, names: dict[str, str], own: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The index of a checkpoint with one more shard.

    Args:
        names: as :func:`renamed_shards` gives them.
        own: the new shard.
        tensors: name -> what lies in it, with shape and dtype.
    """
    metadata = dict((base.index or {}).get("metadata") or {})
    size = sum(_count(t) * t.dtype.itemsize for t in tensors.values())
    known = metadata.get("total_size")
    metadata["total_size"] = size + (known if isinstance(known, int) else base.size())
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += sum(map(_count, tensors.values()))
    weight_map = {name: names[shard] for name, shard in base.weight_map.items() if name not in tensors}
    return {"metadata": metadata, "weight_map": weight_map | dict.fromkeys(tensors, own)}


def _count(tensor: Any) -> int:
    return math.prod(tensor.shape)
