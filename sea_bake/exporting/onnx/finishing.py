"""A traced graph becomes a file to give away: the edit's nodes named, no local path in it, weights beside the graph."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from sea_bake.errors import FamilyError
from sea_bake.exporting.onnx.tracing import STRENGTH

_SCOPES = "pkg.torch.onnx.name_scopes"
# Inside the modules of the model: decoder layer, edited module (none: the layer itself), behind it or in front of it
# ("sea_in", the site heads), number of the SEALayer there.
_SEA = re.compile(r"\.(\d+)(?:\.([\w.]+))?\.(sea|sea_in)\.(\d+)$")


def name_sea_nodes(model: Any) -> list[str]:
    """Call each SEALayer's nodes ``/model/layers.{layer}/sea.{module}.{number}/{operator}_{k}``, or ``sea_in.`` in
    front of a module; returns all names.

    Quantisers take nodes to leave alone by name, and ``verify`` counts them. To be called before ``strip``, which
    removes what says where a node comes from.
    """
    names: list[str] = []
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))
        found = next((m for scope in reversed(scopes) if (m := _SEA.search(scope))), None)
        if found is None:
            continue
        stem = f"/model/layers.{found[1]}/{found[3]}.{found[2] or 'block'}.{found[4]}"
        number = counts.get(stem, 0)
        counts[stem] = number + 1
        node.name = f"{stem}/{node.op_type}_{number}"
        names.append(node.name)
    return names


def check_sea_nodes(names: list[str], expected: set[int], architecture: str) -> None:
    """Raise FamilyError unless every edited layer has its nodes: a trace without them would be the unedited base."""
    found = {int(name.split("/")[2].removeprefix("layers.")) for name in names}
    if found != expected:
        lost = sorted(expected ^ found)
        raise FamilyError(f"the edit of layer {lost[0]} left no trace in the ONNX graph of {architecture}")


def make_optional(model: Any) -> None:
    """Give the input ``sea_strength`` the default 1: an initialiser that a caller may override (ONNX IR 4)."""
    import onnx_ir

    (value,) = (v for v in model.graph.inputs if v.name == STRENGTH)
    value.const_value = onnx_ir.tensor(np.ones(1, dtype=np.float32), name=STRENGTH)
    model.graph.initializers[STRENGTH] = value


def strip(model: Any) -> None:
    """Remove metadata and comments: stack traces with the paths of this machine, and 15 of 16 parts of the file."""
    for part in (model.graph, *model.functions.values()):
        nodes = list(part.all_nodes())
        values = [*part.inputs, *getattr(part, "initializers", {}).values(), *(v for n in nodes for v in n.outputs)]
        for thing in (model, part, *nodes, *values):
            thing.metadata_props.clear()
            thing.doc_string = None


def save(model: Any, path: Path) -> None:
    """Write the graph to ``path``, and its weights beside it, to ``path`` + "_data" (the name transformers.js wants).

    Always beside it, also below the 2 GB that one protobuf can hold: ONNX Runtime then maps the weights into memory
    instead of parsing them, every runtime reads them so, and a small model is laid out like a large one. They are
    written one tensor at a time.
    """
    import onnx_ir

    onnx_ir.save(model, path, external_data=f"{path.name}_data", size_threshold_bytes=1024)
