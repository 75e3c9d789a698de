"""What sea_bake wrote, opened once: its record, edits, base, verification, evaluation, page and seal."""

from sea_bake.artefact.opened import Artefact, is_artefact
from sea_bake.artefact.record import BakeRecord, OnnxRecord

__all__ = ["Artefact", "BakeRecord", "OnnxRecord", "is_artefact"]
