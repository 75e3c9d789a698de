"""Where a model's weights lie: on one device, over several, or off them all until they are needed (by accelerate)."""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.errors import SettingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ROOM = re.compile(r"(cpu|\d+)=(\d+(?:\.\d+)?)([kMGT]?)B")
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SPREAD = "auto"


def rooms(device: str) -> dict[int | str, int] | None:
    """What ``auto:0=20GB,cpu=8GB`` allows each device, in bytes: GPUs by number; None where no room is named.

    Raises:
        SettingError: a room that cannot be read.
    """
    name, _, named = device.partition(":")
    if name != SPREAD or device == SPREAD:
        return None
    found: dict[int | str, int] = {}
    for one in named.split(","):
        match = _ROOM.fullmatch(one.strip())
        if match is None:
            raise SettingError(
                f"unknown room {one!r} in device {device!r}: name GPUs by number and the memory as cpu, such as "
                "auto:0=20GB,cpu=8GB"
            )
        where, size, unit = match.groups()
        found["cpu" if where == "cpu" else int(where)] = int(float(size) * _UNITS[unit])
    return found


class Placement:
    """``from_pretrained``'s arguments for a device as users name it, and the folder for weights that stay on disk.

    Those that can be read from the checkpoint as they are stay in it; others, such as experts that are stacked, are
    written to the folder: a temporary one, unless one is given.

    Attributes:
        options: the arguments.
    """

    def __init__(self, device: str, folder: Path | None = None) -> None:
        found = rooms(device)
        spread = device.partition(":")[0] == SPREAD
        self.options: dict[str, Any] = {} if device == "cpu" else {"device_map": SPREAD if spread else device}
        if found is not None:
            self.options["max_memory"] = found
        self.folder = folder or (Path(tempfile.mkdtemp(prefix="sea-bake-offload-")) if spread else None)
        self.own = folder is None
        if spread:
            self.options["offload_folder"] = str(self.folder)

    def of(self, model: Any) -> None:
        """The folder goes with this model."""
        if self.own and self.folder is not None:
            weakref.finalize(model, shutil.rmtree, self.folder, ignore_errors=True)

    def cure(self, error: Exception) -> str:
        """What to do where an error says that there is no room; else ""."""
        if out_of_memory(error):
            less = "name less room" if "max_memory" in self.options else f"spread it: --device {SPREAD}"
            return f" There is no room for it: use a smaller dtype, or {less}."
        if self.folder is not None and re.search(r"no space left|os error 28", str(error), re.IGNORECASE):
            beside = self.folder.parent
            return f" Weights that stay on disk are written to {beside}: set TMPDIR to a folder with more room."
        return ""

    def drop(self) -> None:
        """There is no model."""
        if self.own and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch says so, in whichever of its wordings."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def input_device(model: Any) -> torch.device:
    """Where token ids go: the device of the embeddings; where accelerate reads these when they are needed, the one that
    it reads them to.
    """
    import torch

    table = model.get_input_embeddings()
    found: torch.device = table.weight.device
    if found.type != "meta":
        return found
    to = getattr(getattr(table, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu" if to is None else to)


@dataclass(frozen=True)
class Offloaded:
    """A parameter that accelerate reads when it is needed: its numbers for free, values when they are looked at.

    Attributes:
        shape, form: of the parameter; ``form`` its dtype in the model.
        read: all of it, as it is stored: a map of the file where it lies in one.
    """

    shape: tuple[int, ...]
    form: torch.dtype
    read: Callable[[], Tensor]

    def dim(self) -> int:
        return len(self.shape)

    def is_floating_point(self) -> bool:
        return self.form.is_floating_point

    def elements(self, places: Sequence[tuple[int, ...]]) -> list[float]:
        """The elements at full indices."""
        found: list[float] = self.read()[tuple(zip(*places))].to(self.form).tolist()
        return found


def weights(model: Any) -> dict[str, Any]:
    """Name -> parameter, each once; of those that are not in memory an :class:`Offloaded`, where somebody has them."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # on the meta device nothing is shared
    return {
        name: _known(model, name, parameter.detach())
        for name, parameter in model.named_parameters()
        if not (parameter.is_meta and name in tied)
    }


def _known(model: Any, name: str, parameter: Tensor) -> Any:
    if not parameter.is_meta:
        return parameter
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        hook: Any = getattr(model.get_submodule(".".join(parts[:end])), "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            kept = getattr(one, "weights_map", None)
            if kept is not None and (end == len(parts) - 1 or one.place_submodules):
                read = partial(kept.__getitem__, ".".join(parts[end:]))
                return Offloaded(tuple(parameter.shape), parameter.dtype, read)
    return parameter
