"""ONNX: one decoder graph with KV cache, in a folder that the runtimes without hooks read as it is."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.artefact import Artefact, OnnxRecord
from sea_bake.artefact.output import check_folder, staged
from sea_bake.errors import SettingError, need
from sea_bake.io import progress
from sea_bake.io.apart import check_apart
from sea_bake.io.staging import need_space

if TYPE_CHECKING:
    from sea_bake.exporting.onnx.exportable import Exportable

DTYPES = {"fp32": "float32", "fp16": "float16"}
QUANTISED = ("int8", "int4")
OPSETS = range(18, 24)  # 18: what torch's own operators are written for; 23: the first with attention as one operator
STRENGTHS = ("optional", "required")
_ROOM = 64 << 20  # graph, tokenizer, edits

__all__ = ["DTYPES", "OPSETS", "QUANTISED", "OnnxRecord", "export_onnx"]


def export_onnx(
    artefact: str | Path | Artefact,
    output: str | Path,
    *,
    dtype: str = "fp32",
    quantize: Sequence[str] = (),
    opset: int = 18,
    strength: bool | str = False,
    unedited: bool = False,
    overwrite: bool = False,
) -> OnnxRecord:
    """Write an artefact as an ONNX decoder that generates, with its KV cache, wherever ONNX Runtime does.

    The graph takes ``input_ids``, ``attention_mask`` (of past and new tokens), ``position_ids`` where the family has
    them, and ``past_key_values.N.key/value`` [batch, heads, past, head size] (empty at first); it gives ``logits``
    [batch, new, vocabulary] and ``present.N.key/value``. Padding is on the left. A graph that does not answer like the
    model it was traced from is not written.

    Args:
        artefact: folder written by sea-bake bake: inserted or folded. With ``unedited`` a checkpoint folder or Hub id.
        output: folder to write; it appears whole or not at all.
        dtype: "fp32", or "fp16" (half the size; the edit's own arithmetic stays float32).
        quantize: also write a variant of the fp32 graph: "int8" or "int4". The edit's own nodes stay float.
        opset: 18 to 21 run everywhere; 23 uses native attention operators.
        strength: give the graph one more input, sea_strength (float32, [1]): 1, its default, is the edit, 0 the base.
            In Python strength="required" is for runtimes that feed no input with a default.
        unedited: export a plain checkpoint: the base, to compare with.
        overwrite: replace an earlier output.

    Raises:
        SettingError: an unknown dtype, variant or opset; a strength without inserted layers.
        MissingExtraError: the extra "onnx" is not installed.
        FamilyError: the family cannot be one decoder graph with keys and values.
        CheckpointError: no artefact, an adapter, damaged or quantised.
        OutputError: the output exists, or the disk is too small.
    """
    kinds = _settings(dtype, quantize, opset, strength)
    target = check_folder(output, overwrite=overwrite)
    need("onnx", "Exporting to ONNX", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
    from sea_bake.exporting.onnx.exportable import exportable
    from sea_bake.model.loading import load_tokenizer

    source = exportable(artefact, unedited=unedited)
    check_apart(target, [source.folder])
    if strength and source.how != "insert":
        raise SettingError(
            "only inserted layers have a strength that can be changed at run time: bake with --how insert (this model "
            f"is {'a fold' if source.how == 'fold' else 'unedited'})"
        )
    tokenizer = load_tokenizer(source.folder)
    size = source.weights * (4 if dtype == "fp32" else 2)
    need_space(target.parent, size + len(kinds) * size // 2 + _ROOM)
    with staged(target, overwrite=overwrite) as stage, progress.bar("export", 4 + len(kinds), "step") as advance:
        steps = _Steps(advance)
        kind = "optional" if strength is True else strength or None
        found = _graph(source, stage, steps, dtype=dtype, opset=opset, strength=kind)
        gc.collect()  # a traced model hangs together in circles
        variants = _variants(stage, kinds, found["sea_nodes"], tokenizer, steps)
        from sea_bake.exporting.onnx import folder

        folder.finish_config(stage, source)
        graphs = stage / folder.GRAPHS
        record = OnnxRecord(
            output=target,
            base=source.base,
            revision=source.revision,
            how=source.how,
            architecture=source.architecture,
            dtype=dtype,
            opset=opset,
            edits=folder.copy_edits(stage, source),
            layers=source.layers,
            strength=kind,
            files={f"{folder.GRAPHS}/{p.name}": p.stat().st_size for p in sorted(graphs.iterdir())},
            variants=variants,
            seconds=steps.seconds,
            bake=source.record,
            **found,
        )
        record.write(stage)
    return record


class _Steps:
    """The steps of an export, each timed."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.began = advance, time.perf_counter()
        self.seconds: dict[str, float] = {}

    def done(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step], self.began = round(now - self.began, 2), now
        self.advance(1)


def _graph(
    source: Exportable, stage: Path, steps: _Steps, *, dtype: str, opset: int, strength: str | None
) -> dict[str, Any]:
    """Write the graph and what its readers want beside it; the parts of the report that are known from it."""
    from sea_bake.exporting.onnx import checking, experts, finishing, folder
    from sea_bake.exporting.onnx.tracing import trace

    model = source.load(DTYPES[dtype])
    config = model.config.get_text_config(decoder=True)
    asked = checking.probe(model)
    steps.done("load")
    traced = trace(model, opset=opset, strength=strength is not None)
    del model
    steps.done("trace")
    names = finishing.name_sea_nodes(traced.model)
    if source.how == "insert":
        finishing.check_sea_nodes(names, set(source.layers), source.architecture)
    if strength == "optional":
        finishing.make_optional(traced.model)
    experts.part_experts(traced.model)
    finishing.strip(traced.model)
    (stage / folder.GRAPHS).mkdir()
    path = stage / folder.GRAPHS / folder.FILES[dtype]
    finishing.save(traced.model, path)
    nodes = sum(1 for _ in traced.model.graph.all_nodes())
    folder.write_surroundings(stage, source, traced, config, dtype=dtype)
    del traced
    steps.done("finish")
    error = checking.check(path, asked, source.architecture)
    steps.done("check")
    return {"sea_nodes": names, "nodes": nodes, "error": error}


def _variants(stage: Path, kinds: list[str], keep: list[str], tokenizer: Any, steps: _Steps) -> dict[str, Any]:
    """Write the quantised variants of the fp32 graph; kind -> what was done, and how far it is from fp32."""
    from sea_bake.exporting.onnx import folder

    if not kinds:
        return {}
    from sea_bake.exporting.onnx.distance import measure
    from sea_bake.exporting.onnx.quantising import quantise

    main, *paths = (stage / folder.GRAPHS / folder.FILES[kind] for kind in ("fp32", *kinds))
    found = {}
    for kind, path in zip(kinds, paths):
        found[kind] = quantise(main, path, kind, keep)
        steps.done(kind)
    distances = measure(main, dict(zip(kinds, paths)), tokenizer, keep)
    return {kind: {**found[kind], "distance": distances[kind]} for kind in kinds}


def _settings(dtype: str, quantize: Sequence[str], opset: int, strength: bool | str) -> list[str]:
    """The variants to make, each once, after every check that needs no file."""
    kinds = [quantize] if isinstance(quantize, str) else list(dict.fromkeys(quantize))
    if dtype not in DTYPES:
        raise SettingError(f"unknown dtype {dtype!r}: use {' or '.join(DTYPES)}")
    for kind in kinds:
        if kind not in QUANTISED:
            raise SettingError(f"unknown variant {kind!r}: use {' or '.join(QUANTISED)}")
    if kinds and dtype != "fp32":
        raise SettingError("variants are quantised from the fp32 graph: drop --dtype or --quantize")
    if opset not in OPSETS:
        raise SettingError(
            f"opset {opset} is out of range: use {OPSETS[0]} to {OPSETS[-1]} (18 to 21 run everywhere; older ones lack "
            "operators that these models are written in)"
        )
    if isinstance(strength, str) and strength not in STRENGTHS:
        raise SettingError(f"unknown kind of strength {strength!r}: use {' or '.join(STRENGTHS)}")
    return kinds
