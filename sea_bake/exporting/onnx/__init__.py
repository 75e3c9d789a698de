"""ONNX: one decoder graph with KV cache, in a folder that the runtimes without hooks read as it is."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sea_bake import progress
from sea_bake.checkpoint import write_json
from sea_bake.edit import Edit
from sea_bake.errors import SettingError, missing_extra
from sea_bake.exporting.record import EXPORT
from sea_bake.staging import check_output, need_space, staged_folder

DTYPES = {"fp32": "float32", "fp16": "float16"}
QUANTISED = ("int8", "int4")
OPSETS = range(18, 24)  # 18: what torch's own operators are written for; 23: the first with attention as one operator
STRENGTHS = ("optional", "required")
_ROOM = 64 << 20  # graph, tokenizer, edits
_EXTRA = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")


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
        variants: "int8", "int4" -> what ``quantising`` says of it.
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
    files: dict[str, int] = field(default_factory=dict)
    variants: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}


def export_onnx(
    artefact: str | Path,
    output: str | Path,
    *,
    dtype: str = "fp32",
    quantize: Sequence[str] = (),
    opset: int = 18,
    strength: bool | str = False,
    unedited: bool = False,
    overwrite: bool = False,
) -> OnnxReport:
    """Write an artefact as an ONNX decoder that generates, with its KV cache, wherever ONNX Runtime does.

    The graph takes ``input_ids``, ``attention_mask`` (of past and new tokens), ``position_ids`` where the family has
    them, and ``past_key_values.N.key/value`` [batch, heads, past, head size] (empty at first); it gives ``logits``
    [batch, new, vocabulary] and ``present.N.key/value``. Left padding is masked.

    Args:
        artefact: a folder written by ``bake``, inserted or folded; with ``unedited`` a checkpoint folder or a Hub id.
        output: folder to write; it appears whole or not at all.
        dtype: "fp32", or "fp16" (the edit's own arithmetic stays float32). A bfloat16 checkpoint is widened.
        quantize: also write variants of the fp32 graph: "int8", "int4". The edit's nodes stay float.
        opset: 18 to 23; up to 21 runs everywhere.
        strength: add an input ``sea_strength`` (float32, [1]) that scales the edit: 1 as baked, 0 the base. True or
            "optional": with the default 1; "required": for runtimes that feed no input with a default.
        unedited: export a base, to compare with.
        overwrite: replace an earlier output of ours.

    Raises:
        SettingError: an unknown dtype, variant or opset; a strength without inserted layers.
        MissingExtraError: the extra "onnx" is not installed.
        FamilyError: the family cannot be one decoder graph with keys and values.
        CheckpointError: no artefact, an adapter, damaged or quantised.
        OutputError: the output exists, or the disk is too small.
    """
    from sea_bake.exporting.onnx.source import exportable

    kinds = _settings(dtype, quantize, opset)
    target = check_output(output, overwrite=overwrite, folder=True)
    for package in _EXTRA:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "onnx", "Exporting to ONNX")
    source = exportable(artefact, unedited=unedited)
    kind = _strength(strength, source.how)
    size = source.weights * (4 if dtype == "fp32" else 2)
    need_space(target.parent, size + len(kinds) * size // 2 + _ROOM)
    from sea_bake.exporting.onnx import finishing, folder
    from sea_bake.exporting.onnx.checking import check, probe
    from sea_bake.exporting.onnx.experts import part_experts
    from sea_bake.exporting.onnx.tracing import takes_positions, trace

    seconds: dict[str, float] = {}
    with staged_folder(target, overwrite=overwrite) as stage, progress.bar("export", 4 + len(kinds), "step") as advance:

        def done(step: str, began: float) -> float:
            seconds[step] = round(time.perf_counter() - began, 2)
            advance(1)
            return time.perf_counter()

        now = time.perf_counter()
        model = source.load(DTYPES[dtype])
        asked = probe(model, positions=takes_positions(model))
        now = done("load", now)
        traced = trace(model, opset=opset, strength=kind is not None)
        config = model.config.get_text_config(decoder=True)
        del model
        now = done("trace", now)
        graph = traced.model
        names = finishing.name_sea_nodes(graph)
        layers = _layers(source.edits)
        if source.how == "insert":
            finishing.check_sea_nodes(names, set(layers), source.architecture)
        if kind == "optional":
            finishing.make_optional(graph)
        part_experts(graph)
        finishing.strip(graph)
        (stage / folder.GRAPHS).mkdir()
        main = stage / folder.GRAPHS / folder.FILES[dtype]
        finishing.save(graph, main)
        nodes = sum(1 for _ in graph.graph.all_nodes())
        folder.write_surroundings(stage, source, traced, config, dtype=dtype)
        del graph, traced
        now = done("finish", now)
        error = check(main, asked, source.architecture)
        now = done("check", now)
        variants: dict[str, Any] = {}
        for variant in kinds:
            from sea_bake.exporting.onnx.quantising import quantise

            variants[variant] = quantise(main, main.with_name(folder.FILES[variant]), variant, names).to_json()
            now = done(variant, now)
        folder.finish_config(stage, source)
        report = OnnxReport(
            target,
            source.base,
            source.revision,
            source.how,
            source.architecture,
            dtype,
            opset,
            folder.copy_edits(stage, source),
            layers,
            names,
            kind,
            nodes,
            error,
            {f"{folder.GRAPHS}/{p.name}": p.stat().st_size for p in sorted((stage / folder.GRAPHS).iterdir())},
            variants,
            seconds,
        )
        _record(stage, report, source.record)
    return report


def _settings(dtype: str, quantize: Sequence[str], opset: int) -> list[str]:
    """The variants to make, each once."""
    kinds = [quantize] if isinstance(quantize, str) else list(dict.fromkeys(quantize))
    if dtype not in DTYPES:
        raise SettingError(f"unknown dtype {dtype!r}: use {' or '.join(DTYPES)}")
    for kind in kinds:
        if kind not in QUANTISED:
            raise SettingError(f"unknown variant {kind!r}: use {' or '.join(QUANTISED)}")
    if kinds and dtype != "fp32":
        raise SettingError("variants are quantised from the fp32 graph: leave --dtype away, or --quantize")
    if opset not in OPSETS:
        raise SettingError(
            f"opset {opset} is out of range: use {OPSETS[0]} to {OPSETS[-1]} (18 to 21 run everywhere; what older ones "
            "lack is how these models are written)"
        )
    return kinds


def _strength(strength: bool | str, how: str) -> str | None:
    kind = "optional" if strength is True else strength or None
    if kind is not None and kind not in STRENGTHS:
        raise SettingError(f"unknown kind of strength {strength!r}: use {' or '.join(STRENGTHS)}")
    if kind is not None and how != "insert":
        raise SettingError(
            "only inserted layers have a strength that can be changed at run time: bake with --how insert (this one is "
            f"{'a fold' if how == 'fold' else 'unedited'})"
        )
    return kind


def _layers(edits: Sequence[Path]) -> tuple[int, ...]:
    return tuple(sorted({layer for path in edits for layer in Edit.load(path).layers}))


def _record(stage: Path, report: OnnxReport, bake: dict[str, Any] | None) -> None:
    data = {"format": "onnx", **report.to_json(), "bake": bake}
    data["versions"] = {name: version(name) for name in ("sea-bake", "torch", "transformers", "onnx", "onnxscript")}
    del data["output"], data["seconds"]  # this machine's business
    write_json(stage / EXPORT, data)
