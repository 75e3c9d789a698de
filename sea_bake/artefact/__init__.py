"""What sea_bake wrote, opened once: its record, edits, base, verification, evaluation, page and seal."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sea_bake.artefact.opened import Artefact, is_artefact
    from sea_bake.artefact.record import BakeRecord, OnnxRecord

# Found on first use, so that who needs the files' names alone does not wait for torch.
_HOMES = {"Artefact": "opened", "is_artefact": "opened", "BakeRecord": "record", "OnnxRecord": "record"}
__all__ = ["Artefact", "BakeRecord", "OnnxRecord", "is_artefact"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
