"""What an export did: told to the caller, and kept in the folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sea_bake.artefact.export import EXPORT
from sea_bake.io.files import write_json

_VERSIONS = ("sea-bake", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxReport:
    """What an export wrote.

    Attributes:
        output: the folder.
        base, revision: the base model as it is named in the folder.
        how: "insert" or "fold", as the artefact was baked; "unedited" for a base.
        architecture: the class that was traced.
        dtype: "fp32" or "fp16".
        opset: version of the ONNX operators.
        edits: the edits' copies in the folder.
        layers: edited decoder layers.
        sea_nodes: names of the edit's own nodes in the graph; a fold has none.
        strength: None, or "optional" or "required": whether the input ``sea_strength`` may be left away.
        nodes: number of nodes of the graph.
        error: norm of the difference between the graph's logits and the model's, over the norm of the model's, at a few
            tokens (left-padded, with the cache).
        files: graph or weight file -> bytes.
        variants: "int8", "int4" -> what ``quantise`` says of it, and its "distance" from the fp32 graph.
        seconds: step -> wall time.
    """

    output: Path
    base: str
    revision: str | None
    how: str
    architecture: str
    dtype: str
    opset: int
    edits: list[str]
    layers: tuple[int, ...]
    sea_nodes: list[str]
    strength: str | None
    nodes: int
    error: float
    files: dict[str, int]
    variants: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}


def record(stage: Path, report: OnnxReport, bake: dict[str, Any] | None) -> None:
    """Leave the report inside an export that is being made, with the record of its artefact's bake."""
    data = {"format": "onnx", **report.to_json(), "bake": bake, "versions": {name: version(name) for name in _VERSIONS}}
    del data["output"], data["seconds"]  # this machine's business
    write_json(stage / EXPORT, data)
