"""A graph opened in ONNX Runtime on the CPU, with what it is fed before the first token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def opened(
    graph: Path, *, rows: int = 1, mapped: bool = False, optimized: bool = True
) -> tuple[Any, dict[str, np.ndarray]]:
    """A session, and its feeds for ``rows`` empty caches (and for a strength without a default: 1).

    Args:
        mapped: leave the weights where they lie on disk, instead of a copy in the order that the kernels like best.
        optimized: let ONNX Runtime fuse what it can.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            kind = np.float16 if value.type == "tensor(float16)" else np.float32
            feeds[value.name] = np.zeros((rows, value.shape[1], 0, value.shape[3]), dtype=kind)
        elif value.type == "tensor(float)":
            feeds[value.name] = np.ones(1, dtype=np.float32)
    return session, feeds
