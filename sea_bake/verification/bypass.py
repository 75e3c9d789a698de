"""An ONNX graph without its edit: what each SEALayer is given goes on in place of what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError


def bypass(graph_file: str | Path, sea_nodes: Sequence[str]) -> bytes:
    """The graph of a file with some of its SEALayers led past; its weights stay where they are.

    Args:
        graph_file: an exported graph; its external data is not read.
        sea_nodes: names of the nodes to lead past, as the export's record lists them: ``{layer}/{operator}_{k}``.
            All those of one SEALayer, or none of them.

    Raises:
        CheckpointError: a node is not there, or a SEALayer has not one input and one output.
    """
    import onnx

    model = onnx.load(str(graph_file), load_external_data=False)
    graph = model.graph
    nodes = {node.name: node for node in graph.node if node.name}
    lost = [name for name in sea_nodes if name not in nodes]
    if lost:
        raise CheckpointError(f"{graph_file} has no node {lost[0]}, which the export's record lists")
    layers: dict[str, list[Any]] = {}
    for name in sea_nodes:
        layers.setdefault(name.rpartition("/")[0], []).append(nodes[name])
    given = {value.name for value in (*graph.initializer, *graph.input)}
    instead: dict[str, str] = {}
    for layer, members in layers.items():
        inside = {name for node in members for name in node.output}
        names = {node.name for node in members}
        read = {name for node in members for name in node.input if name} - inside - given
        told = {name for node in graph.node if node.name not in names for name in node.input} & inside
        if not told:  # nobody reads what it gives: it is led past already
            continue
        if len(read) != 1 or len(told) != 1:
            raise CheckpointError(f"{layer} in {graph_file} has {len(read)} inputs and {len(told)} outputs, not one")
        instead[told.pop()] = read.pop()
    for node in graph.node:
        for k, name in enumerate(node.input):
            while name in instead:  # several edits of one module stand in a row
                name = instead[name]
            node.input[k] = name
    return model.SerializeToString()
