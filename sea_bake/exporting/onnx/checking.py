"""A graph that answers otherwise than the model it was traced from is not written: a first look, before ``verify``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sea_bake.errors import FamilyError
from sea_bake.exporting.onnx.tracing import takes_positions
from sea_bake.verification.onnx_answers import Decoder

# Of the norm of all logits. Rounding gives 1e-6 in float32, at most 1e-2 in float16 or behind a Φ⁻¹; a mask, position,
# expert or cached token in the wrong place changes whole rows, and gives 0.3 or more (tests/test_onnx.py).
LIMIT = 0.1
_LENGTH, _PREFILL, _PADDING = 6, 4, 2


@dataclass(frozen=True)
class Probe:
    """Two rows of token ids, the first padded on the left, and what the model says to them.

    Attributes:
        ids, mask: [2, length] int64.
        logits: [2, length, vocabulary] float32; those at the padding mean nothing.
    """

    ids: np.ndarray
    mask: np.ndarray
    logits: np.ndarray


def probe(model: Any) -> Probe:
    """Ask the living model, without a cache."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.arange(2 * _LENGTH).reshape(2, _LENGTH) * 7919 % vocabulary
    mask = torch.ones_like(ids)
    mask[0, :_PADDING] = 0
    more = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)} if takes_positions(model) else {}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits
    return Probe(ids.numpy(), mask.numpy(), logits.float().numpy())


def check(path: Path, asked: Probe, architecture: str) -> float:
    """Ask the graph the same, the first tokens with an empty cache, the others one by one; the relative difference.

    Raises:
        FamilyError: it is larger than ``LIMIT``, or no number.
    """
    decoder = Decoder({"graph": str(path), "mapped": True, "plain": True})
    pieces, cache = [], None
    for begin, end in [(0, _PREFILL), *((i, i + 1) for i in range(_PREFILL, _LENGTH))]:
        logits, cache = decoder(asked.ids[:, begin:end], asked.mask[:, :end], cache)
        pieces.append(logits)
    real = asked.mask.astype(bool)
    expected = asked.logits[real]
    difference = float(np.linalg.norm(np.concatenate(pieces, axis=1)[real] - expected) / np.linalg.norm(expected))
    if not difference <= LIMIT:
        raise FamilyError(
            f"the ONNX graph of {architecture} does not answer like the model (relative difference {difference:.2g}, "
            f"at most {LIMIT} expected): nothing was written. Please report the family."
        )
    return difference
