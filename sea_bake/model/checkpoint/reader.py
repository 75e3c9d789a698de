"""A Hugging Face checkpoint, seen through its headers: no weight is decoded unless it is asked for by name."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import mmap
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sea_bake.errors import CheckpointError
from sea_bake.io.files import read_json
from sea_bake.model.checkpoint.dtypes import Dtype, dtype_of, number
from sea_bake.model.checkpoint.leftovers import claimed, is_left_over, unclaimed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OWN_PAGES = 1 << 18  # bytes


def own_pages(size: int) -> mmap.mmap | bytearray:
    """Memory that the system takes back with the tensor that lies in it.

    malloc may keep what is smaller than 32 MiB, and that is most of a layer with many experts.
    """
    if size < _OWN_PAGES:
        return bytearray(size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class LazyTensor:
    """A tensor that is still on disk: shape and dtype for free, elements read one by one at their offset.

    Plain reads and no memory map: a shard may be larger than the memory.

    Attributes:
        path, offset: its file, and its first byte in that.
        shape: as its header says.
        form: its dtype, known without torch.
    """

    def __init__(self, path: Path, offset: int, form: Dtype, shape: list[int]) -> None:
        self.path, self.offset = path, offset
        self.shape, self.form = tuple(shape), form

    @property
    def dtype(self) -> torch.dtype:
        return self.form.torch

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.form.itemsize

    def dim(self) -> int:
        return len(self.shape)

    def is_floating_point(self) -> bool:
        return self.form.is_floating_point

    def read(self) -> Tensor:
        """All of it. Raises CheckpointError when the file is shorter than its header says."""
        import torch

        buffer = own_pages(self.nbytes)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            if file.readinto(buffer) != len(buffer):
                raise CheckpointError(f"{self.path} is truncated")
        return torch.frombuffer(buffer, dtype=self.dtype).view(self.shape)

    def element(self, index: tuple[int, ...]) -> float:
        """The element at a full index."""
        flat = 0
        for i, length in zip(index, self.shape, strict=True):
            flat = flat * length + i
        with open(self.path, "rb") as file:
            file.seek(self.offset + flat * self.form.itemsize)
            return number(file.read(self.form.itemsize), self.form)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder.

    Attributes:
        folder: where it lies.
        config: config.json as it stands there, but for a quantisation that no tensor shows.
        weight_map: tensor name -> shard file name.
        index: the index file as it stands there; None for a single-file checkpoint.
    """

    folder: Path
    config: dict[str, Any]
    weight_map: dict[str, str]
    index: dict[str, Any] | None

    @property
    def shards(self) -> list[str]:
        return sorted(set(self.weight_map.values()))

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Read the headers of every shard.

        Raises:
            CheckpointError: no safetensors, a shard missing or truncated, a tensor that its shard does not hold, an
                index that points outside the folder, JSON that cannot be read.
        """
        folder = Path(folder)
        config = read_json(folder / "config.json")
        file = weights_file(folder, config)
        if file == INDEX:
            index = read_json(folder / INDEX)
            weight_map = index.get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointError(f"{folder / INDEX} has no weight_map")
            if not all(isinstance(shard, str) for shard in weight_map.values()):
                raise CheckpointError(f"{folder / INDEX} names a shard that is no string")
            if not isinstance(index.get("metadata"), dict):
                raise CheckpointError(
                    f'{folder / INDEX} has no JSON object "metadata", without which transformers loads no shards: '
                    'write "metadata": {} into it'
                )
        elif file == SINGLE:
            _refuse_part(folder)
            index, weight_map = None, dict.fromkeys(_names(folder / SINGLE), SINGLE)
        else:
            raise no_weights(folder)
        checkpoint = cls(folder, config, weight_map, index)
        if index is not None:
            checkpoint = replace(checkpoint, weight_map=checkpoint._held())
        if is_left_over(config, checkpoint.weight_map, lambda name: checkpoint._entry(name).form):
            checkpoint = replace(checkpoint, config=unclaimed(config))
        return checkpoint

    @property
    def left_over(self) -> str | None:
        """The quantisation that config.json names and no tensor shows; ``config`` is without it."""
        return None if claimed(self.config) else claimed(read_json(self.folder / "config.json"))

    def _held(self) -> dict[str, str]:
        """Every tensor of the shards that the index names: transformers loads them all, whether listed or not."""
        held: dict[str, str] = {}
        listed: dict[str, set[str]] = {}
        for name, file in self.weight_map.items():
            listed.setdefault(file, set()).add(name)
        for shard in self.shards:
            if not isinstance(shard, str) or Path(shard).name != shard or shard.startswith("."):
                raise CheckpointError(f"{self.folder / INDEX} points outside its folder: {shard!r}")
            if not shard.endswith(".safetensors"):  # also: no name that an artefact has another file for
                raise CheckpointError(f"{self.folder / INDEX} names a shard that is no .safetensors file: {shard!r}")
            path = self.folder / shard
            if not os.path.isfile(path):  # which no name makes raise
                raise CheckpointError(f"{path} is missing, and {INDEX} names it: is the download complete?")
            names = set(_names(path))
            absent = listed[shard] - names
            if absent:
                raise CheckpointError(f"{path} lacks the tensor {sorted(absent)[0]}, which {INDEX} says it holds")
            twice = sorted(names & held.keys())
            if twice:
                raise CheckpointError(
                    f"{self.folder} holds {twice[0]} twice, in {held[twice[0]]} and in {shard}: {INDEX} names one of "
                    f"the two, and transformers loads the one in {shard}. Load the model with transformers and save it "
                    "again (from_pretrained, then save_pretrained): it then holds each tensor once."
                )
            held |= dict.fromkeys(names, shard)
        return held

    def tensor(self, name: str) -> LazyTensor | None:
        """A lazy view of a tensor, or None when the checkpoint has none of that name."""
        return self._entry(name) if name in self.weight_map else None

    def _entry(self, name: str) -> LazyTensor:
        file = self.weight_map[name]
        if file not in self._tables:
            path = self.folder / file
            self._tables[file] = path, *_header(path, path.stat().st_mtime_ns)
        return _lazy(name, *self._tables[file])

    @functools.cached_property
    def _tables(self) -> dict[str, tuple[Path, dict[str, Any], int]]:
        """Shard -> its path, its table of contents, the offset of its first tensor: looked up once."""
        return {}

    def dtypes(self) -> set[torch.dtype]:
        """:meth:`forms`, as torch's."""
        return {form.torch for form in self.forms()}

    def forms(self) -> set[Dtype]:
        """The float dtypes of its matrices; none where there are others than floats, which belong to a quantiser."""
        headers = [_header(path, path.stat().st_mtime_ns)[0] for path in (self.folder / shard for shard in self.shards)]
        entries = [entry for header in headers for name, entry in header.items() if name != "__metadata__"]
        kinds = {dtype_of(entry["dtype"]) for entry in entries if len(entry["shape"]) > 1}
        return kinds if all(kind.is_floating_point and kind.itemsize > 1 for kind in kinds) else set()

    def dtype(self) -> torch.dtype | None:
        """The one of :meth:`dtypes` that the configuration names; else the widest; None where there is none."""
        import torch

        kinds = self.dtypes()
        named = getattr(torch, str(self.config.get("dtype") or self.config.get("torch_dtype")), None)
        return named if named in kinds else max(kinds, key=lambda kind: (kind.itemsize, str(kind)), default=None)

    def size(self) -> int:
        """Bytes of all shards."""
        return sum((self.folder / shard).stat().st_size for shard in self.shards)


def lazy(path: Path, name: str) -> LazyTensor:
    """A tensor of a shard."""
    return _lazy(name, path, *_header(path, path.stat().st_mtime_ns))


def _lazy(name: str, path: Path, entries: dict[str, Any], start: int) -> LazyTensor:
    entry = entries[name]
    return LazyTensor(path, start + entry["data_offsets"][0], dtype_of(entry["dtype"]), entry["shape"])


def weights_file(folder: Path, config: dict[str, Any]) -> str | None:
    """Which file transformers' loader starts from: the single one before an index; None where there is neither.

    Raises:
        CheckpointError: the configuration names another file.
    """
    found = next((name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)
    named = config.get("transformers_weights")
    if named is not None and named != found:
        raise CheckpointError(
            f"{folder / 'config.json'} names {named!r} as its weights (transformers_weights), and only {SINGLE} or "
            f"{INDEX} is read here: rename the file, and remove that line"
        )
    return found


def no_weights(folder: Path) -> CheckpointError:
    """What is said of a folder whose weights are not where transformers' loader looks first: which it has instead."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    cure = "Is the download complete?"
    if len(others) == 1:
        cure = f"It holds {others[0]}: rename it to {SINGLE}, if that is all of the model."
    elif others:
        cure = f"It holds {len(others)} shards, such as {others[0]}: download {INDEX} too."
    elif pickles:
        cure = (
            f"It holds {pickles[0]}: convert it first, since pickles are never loaded here (from_pretrained, then "
            "save_pretrained, writes safetensors)."
        )
    return CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}. {cure}")


def _refuse_part(folder: Path) -> None:
    listed = read_json(folder / INDEX).get("weight_map") if (folder / INDEX).is_file() else None
    if isinstance(listed, dict) and SINGLE in listed.values():
        raise CheckpointError(
            f"{folder / SINGLE} is one of the shards that {INDEX} names, and transformers takes it for the whole: "
            "rename it, in the index too"
        )


def _names(path: Path) -> list[str]:
    # "np" maps the file read-only; "pt" reserves memory for all of it, which fails for a shard larger than the memory.
    with _readable(path), safe_open(str(path), framework="np") as file:
        return list(file.keys())


@functools.lru_cache(maxsize=1024)  # DeepSeek-V3 has 163 shards
def _header(path: Path, _changed: int) -> tuple[dict[str, Any], int]:
    """A shard's own table of contents, and the offset of its first tensor; ``open`` has let safetensors check it."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries: dict[str, Any] = json.loads(file.read(length))
    return entries, 8 + length


@contextlib.contextmanager
def _readable(path: Path) -> Any:
    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: it is truncated, damaged or no safetensors file ({error})"
        ) from error
