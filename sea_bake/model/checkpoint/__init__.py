"""Checkpoints on disk: read without being loaded, written without being copied."""

from sea_bake.model.checkpoint.foreign import check_references
from sea_bake.model.checkpoint.merging import MergedCheckpoint, merge, merged
from sea_bake.model.checkpoint.reader import Checkpoint, LazyTensor
from sea_bake.model.checkpoint.writer import carry, place

__all__ = [
    "Checkpoint",
    "LazyTensor",
    "MergedCheckpoint",
    "carry",
    "check_references",
    "merge",
    "merged",
    "place",
]
