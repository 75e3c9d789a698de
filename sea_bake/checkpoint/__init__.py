"""Checkpoints on disk: read without being loaded, written without being copied."""

from sea_bake.checkpoint.foreign import check_code, check_files, check_references
from sea_bake.checkpoint.gguf import materialise
from sea_bake.checkpoint.merging import MergedCheckpoint, merge, merged
from sea_bake.checkpoint.reader import Checkpoint, LazyTensor
from sea_bake.checkpoint.writer import carry, place, write_json

__all__ = [
    "Checkpoint",
    "LazyTensor",
    "MergedCheckpoint",
    "carry",
    "check_code",
    "check_files",
    "check_references",
    "materialise",
    "merge",
    "merged",
    "place",
    "write_json",
]
