"""Files of strangers, opened without trust: no pickle is run, no length is believed, nothing is unpacked."""

from __future__ import annotations

import functools
import math
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import EditError, command, first_line_of
from sea_bake.io.files import read_json
from sea_bake.io.regular import open_regular
from sea_bake.model.source import ADAPTER_CONFIG

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SUFFIXES = (
    ".pt",
    ".pth",
    ".statedict",
    ".npy",
    ".svec",
    ".gguf",
    ".safetensors",
)  # what a folder is looked through for
_MOST_FILES = 2000
_DEPTH = 4  # of dicts and lists in one another
_HEAD = 64  # bytes that tell what a file is
_BEGINNING = 1 << 20  # bytes in which a pickle names what it holds
_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch's magic number, pickled, in files from before it wrote archives
_PLAIN = (
    "import numpy, pickle, torch; plain = lambda x: x if isinstance(x, torch.Tensor) else plain(list(x)) if "
    "isinstance(x, numpy.ndarray) and x.dtype == object else torch.tensor(x) if isinstance(x, numpy.ndarray) else "
    "x.item() if isinstance(x, numpy.generic) else {plain(k): plain(v) for k, v in x.items()} if isinstance(x, dict) "
    "else [plain(v) for v in x] if isinstance(x, (list, tuple)) else plain(vars(x)) if hasattr(x, '__dict__') else x; "
    "torch.save(plain({load}), {output!r})"
)
_PROBES = (
    "import numpy, pickle; probes = pickle.load(open({name!r}, 'rb')); numpy.save('directions.npy', "
    "numpy.stack([probe.coef_[0] for probe in probes]))"
)


@dataclass(frozen=True)
class Given:
    """The files of one edit.

    Attributes:
        paths: in the order given; in the place of a folder, what it holds (of an adapter, the folder itself).
        from_folder: whether a folder was looked through.
    """

    paths: tuple[Path, ...]
    from_folder: bool = False

    @classmethod
    def of(cls, files: str | Path | Sequence[str | Path]) -> Given:
        """Raises EditError where there is nothing to read."""
        named = [files] if isinstance(files, str | Path) else list(files)
        paths = [Path(os.path.expanduser(path)) for path in named]
        if not paths:
            raise EditError("there is no file to import: name at least one")
        found: list[Path] = []
        looked = False
        for path in paths:
            if not os.path.exists(path):  # which no name makes raise
                raise EditError(f"no such file: {path}")
            if path.is_dir() and not (path / ADAPTER_CONFIG).is_file():
                looked = True
                found += _inside(path)
            else:
                found.append(path)
        return cls(tuple(found), looked)

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """What each is: "adapter", "gguf", "torch", "numpy", "safetensors" or "json"."""
        return tuple(map(_kind, self.paths))

    def all_are(self, kind: str) -> bool:
        return set(self.kinds) == {kind}

    @functools.cached_property
    def contents(self) -> tuple[Any, ...]:
        """What each file holds, but for adapters and GGUFs, which are None. Raises EditError."""
        return tuple(_READERS.get(kind, _nothing)(path) for kind, path in zip(self.kinds, self.paths))

    def one(self, title: str) -> Path:
        """The only file. Raises EditError where there are several."""
        if len(self.paths) != 1:
            raise EditError(f"{title} is one file, and {len(self.paths)} were given: import each by itself")
        return self.paths[0]


def _inside(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()]
    if not found:
        raise EditError(f"{folder} holds no {ADAPTER_CONFIG} and no file ending in {', '.join(SUFFIXES)}")
    if len(found) > _MOST_FILES:
        raise EditError(f"{folder} holds {len(found)} files: name those that belong to one edit")
    return sorted(found, key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)][1::2])


def _kind(path: Path) -> str:
    if path.is_dir():
        return "adapter"
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise EditError(f"{path} cannot be read: {error}") from error
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith(b"\x93NUMPY"):
        return "numpy"
    if head.startswith((b"PK\x03\x04", b"\x80")):  # an archive of torch; and what came before those
        return "torch"
    if head[8:9] == b"{":
        return "safetensors"
    if head.lstrip()[:1] == b"{":
        return "json"
    raise EditError(
        f"{path} is no file that can be imported: it is neither GGUF, safetensors, NumPy, JSON nor a file of torch.save"
    )


def _nothing(path: Path) -> None:
    return None


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote: plain tensors in dicts and lists, on the CPU; no pickle is run.

    Raises:
        EditError: it holds other objects, a tensor larger than the file, or is packed, truncated or damaged.
    """
    import torch

    archive = _is_archive(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, **({"mmap": True} if archive else {}))
    except Exception as error:
        raise EditError(
            f"{path} cannot be read as a plain tensor file: {first_line_of(error)[:200]} Pickles are never loaded "
            f"here. If you trust whoever made it, turn it into plain tensors yourself: {conversion(path)}"
        ) from error
    for tensor in _tensors(found, path):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_nested:
            raise EditError(f"{path} holds a tensor that is no plain array ({tensor.layout}, {tensor.dtype})")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise EditError(
                f"{path} holds a tensor of shape {tuple(tensor.shape)}, larger than the file: it is damaged"
            )
    return found


def conversion(path: Path) -> str:
    """The command that turns a pickle of a known tool into plain tensors here, for who trusts it: "NAME_plain.pt", or
    "directions.npy" of probes.
    """
    with open_regular(path) as file:
        head = file.read(_BEGINNING)
    if b"coef_" in head:  # of scikit-learn
        return command("python", "-c", _PROBES.format(name=str(path)))
    by_torch = head.startswith(b"PK") or _TORCH in head[:_HEAD]
    load = "torch.load({!r}, weights_only=False)" if by_torch else "pickle.load(open({!r}, 'rb'))"
    lines = _PLAIN.replace("{load}", load.format(str(path))).replace("{output!r}", repr(f"{path.stem}_plain.pt"))
    return command("python", "-c", lines)


def _is_archive(path: Path) -> bool:
    """Whether it is a zip, as torch writes it: nothing in it is packed, or a few bytes could become gigabytes."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise EditError(
            f"{path} cannot be read as a plain tensor file: it is truncated or damaged ({error})"
        ) from error
    if packed:
        raise EditError(f"{path} cannot be read as a plain tensor file: {packed[0]!r} in it is compressed")
    return True


def _tensors(value: Any, path: Path, depth: int = 0) -> Iterator[Tensor]:
    from torch import Tensor

    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        if depth == _DEPTH:
            raise EditError(f"{path} holds containers in containers, {_DEPTH} deep: it is no file of vectors")
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner, path, depth + 1)


def _read_numpy(path: Path) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise EditError(
            f"{path} cannot be read as a NumPy array: {first_line_of(error)}. Pickles are never loaded here: save "
            "plain numbers (numpy.save of an array of floats or integers)"
        ) from error
    if found.dtype.kind not in "fiub" or math.prod(found.shape) == 0:
        raise EditError(f"{path} holds an array {found.shape} of {found.dtype}, and numbers are needed")
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise EditError(f"{path} cannot be read: it is truncated, damaged or no safetensors file ({error})") from error


_READERS = {"torch": read_torch, "numpy": _read_numpy, "safetensors": _read_safetensors, "json": read_json}


def vector(value: Any, where: str, *, dims: int = 1) -> Tensor:
    """A tensor of finite floats, as float64.

    Args:
        dims: how many dimensions it has.

    Raises:
        EditError: it is something else.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise EditError(f"{where} is a {type(value).__name__}, not a tensor")
    if value.dim() != dims or not value.numel() or not value.is_floating_point():
        raise EditError(f"{where} is {tuple(value.shape)} {value.dtype}, not {dims}-dimensional floats")
    found = value.detach().double()
    if not bool(torch.isfinite(found).all()):
        raise EditError(f"{where} holds NaN or infinity")
    return found
