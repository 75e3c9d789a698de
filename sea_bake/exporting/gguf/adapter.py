"""A LoRA adapter as llama.cpp reads it (``llama-cli --lora``): one rank, zero-padded, and alpha equal to it.

llama.cpp scales each pair by alpha / (rank of this very pair), so with pairs of several ranks one alpha is right for
one of them only. The factors are those of ``baking.adapter``: B = [U+, -U-] and A = [U+, U-]ᵀ W.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sea_bake.baking.adapter import factors
from sea_bake.baking.linear import Change
from sea_bake.baking.stored_pairs import stored_pairs
from sea_bake.errors import CheckpointError
from sea_bake.exporting.gguf.header import GgufFile
from sea_bake.exporting.gguf.names import GgufWriter, tensor_name
from sea_bake.io import progress
from sea_bake.model.anatomy import Family, Site
from sea_bake.model.lora import WEIGHTS

ADAPTER_TYPES = {"keep": np.float32, "f32": np.float32, "f16": np.float16}
_EXPERTS = "Give the base's GGUF (--base): the factors are then made from its own weights, expert by expert."
Pair = tuple[Any, Any]  # lora_a [..., rank, in] and lora_b [..., d, rank], float32


def of_gguf(
    file: GgufFile, writers: Sequence[GgufWriter], changes: Mapping[tuple[Site, int], Change]
) -> dict[str, Pair]:
    """The factors of each writer, from the GGUF's own weights: exact on that file, whatever its types.

    A stack of experts gets one pair per expert, in the layout of its weights: [experts, rank, in], [experts, d, rank].
    """
    rank = max(1, *(changes[w.site, w.layer].rank for w in writers))
    found: dict[str, Pair] = {}
    with progress.bar("adapter", len(writers), "tensor") as advance:
        for writer in writers:
            tensor, change = writer.tensor, changes[writer.site, writer.layer]
            rows = tensor.shape[-2]
            pairs = [
                factors(torch.from_numpy(file.rows(tensor, i * rows, rows)), change, rank)
                for i in range(tensor.shape[0] if len(tensor.shape) == 3 else 1)
            ]
            A, B = (torch.stack(part).numpy() for part in zip(*pairs))
            found[tensor.name] = (A, B) if len(tensor.shape) == 3 else (A[0], B[0])
            advance(1)
    return found


def of_artefact(folder: Path, row: Family) -> dict[str, Pair]:
    """The factors that an adapter artefact holds, under the names of a GGUF.

    Raises:
        CheckpointError: fused experts, whose layout is PEFT's own; or it is not as ``bake`` wrote it.
    """
    pairs = stored_pairs(folder, experts=_EXPERTS)
    pattern = re.compile(rf".*\.{re.escape(row.layers)}\.(\d+)\.(.+)")
    sites = {row.writer(site): site for site in (Site.ATTN, Site.MLP)}
    found = {}
    for path, (A, B) in pairs.items():
        match = pattern.fullmatch(path)
        if match is None or match[2] not in sites:
            raise CheckpointError(f"{folder / WEIGHTS} adapts {path}, which no adapter of an edit does")
        found[f"{tensor_name(sites[match[2]], int(match[1]))}.weight"] = (A.numpy(), B.numpy())
    return found


def rank_of(pairs: Mapping[str, Pair]) -> int:
    """The one rank of all pairs."""
    (rank,) = {A.shape[-2] for A, _ in pairs.values()}
    return int(rank)


def write(target: Path, architecture: str, pairs: Mapping[str, Pair], kind: str) -> None:
    """Write the adapter's file.

    Args:
        kind: a key of ``ADAPTER_TYPES``.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(str(target), architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank_of(pairs)))
    for name, pair in pairs.items():
        for part, values in zip(("lora_a", "lora_b"), pair):
            cast = values.astype(ADAPTER_TYPES[kind])
            if not np.isfinite(cast).all():
                raise CheckpointError(f"{name}.{part} does not fit into {kind}: take --edited-type f32")
            writer.add_tensor(f"{name}.{part}", np.ascontiguousarray(cast))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
