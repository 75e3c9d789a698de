"""The proof of an ONNX export: ONNX Runtime alone, in a process without torch, against the living model in float32."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sea_bake.artefact import Artefact
from sea_bake.artefact.names import GRAPH_FILES, GRAPHS
from sea_bake.artefact.verification import Variant, Verification
from sea_bake.edit import Edit
from sea_bake.errors import SettingError, VerificationError, need
from sea_bake.io import progress
from sea_bake.verification.bypass import bypass
from sea_bake.verification.doors import Subject, open_door, open_reference
from sea_bake.verification.effect import effect_correlation
from sea_bake.verification.verdict import (
    Answers,
    compare,
    judge_reduced,
    largest_logit,
    tolerance,
    verdict,
)

# ONNX Runtime fuses and orders the same operations otherwise than torch. Measured on SmolLM2-135M, whose largest logits
# are 30 to 45: up to 1.3e-4 with linear edits, 4e-3 with Φ edits, whose inverses (atanh, log) amplify every rounding.
LINEAR, FEATURE = 1e-3, 1e-2
_LARGEST = 50.0  # larger logits have larger roundings
_SCRIPT = Path(__file__).with_name("onnx_answers.py")  # never imported here: it needs ONNX Runtime
_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}


def check(artefact: Artefact, dtype: str) -> None:
    """All that can be said before a model is loaded.

    Raises:
        VerificationError: an export of an unedited model, or one without its graph.
        SettingError: a dtype was asked for.
        MissingExtraError: ONNX Runtime is not installed.
    """
    folder, record = artefact.folder, artefact.onnx
    if record.how == "unedited":
        raise VerificationError(f"{folder} is the export of an unedited model: there is no edit in it to verify")
    if dtype != "auto":
        raise SettingError("the graphs of an export have their own dtype: drop --dtype")
    need("onnx", "Verifying an ONNX export", "onnx", "onnxruntime")
    for name in record.graphs:
        if not (folder / GRAPHS / GRAPH_FILES[name]).is_file():
            raise VerificationError(f"{folder} is incomplete: {GRAPHS}/{GRAPH_FILES[name]} is missing")


def prove(subject: Subject, request: dict[str, Any]) -> Verification:
    """Open the doors on a request, and judge: the float32 graph by equality, others by what is left of the edit."""
    record = subject.ours.onnx
    # float32 whatever the checkpoint's own dtype: the export widened its weights, and rounding is judged by itself.
    request |= {"dtype": "float32", "device": subject.device, "bare": True}
    facts: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="sea-bake-verify-") as scratch,
        progress.bar("verify", 1 + len(record.graphs), "door") as advance,
    ):
        folder = Path(scratch)
        facts["base_kept"] = open_reference(request, subject, folder)["base_kept"]
        advance(1)
        for name in record.graphs:
            facts = _open(subject, name, request, folder) | facts
            advance(1)
        doors = {file.stem: load_file(file) for file in folder.glob("*.safetensors")}
    base, live, main = doors["base"], doors["live"], record.graphs[0]
    facts |= {
        "class": record.architecture,
        "opset": record.opset,
        "sea_nodes": len(record.sea_nodes),
        "runtimes": ["onnxruntime"],
    }
    limit, failures = _limit(subject, largest_logit(live)), []
    if main == "fp32" and f"{main}.unedited" in doors:
        facts["strength_0"] = zero = compare(base, base | doors[f"{main}.unedited"]).max_abs
        if not zero <= limit:
            failures.append(f"at strength 0 logits differ from the base by {zero:.3g} (tolerance {limit:.3g})")
    variants = {name: _variant(subject, name, doors) for name in record.graphs if name != "fp32"}
    failures += [f"{name}: {failure}" for name, variant in variants.items() for failure in variant.failures]
    found = verdict(subject, base, live, doors[main], facts, limit, reduced=main != "fp32")
    return replace(found, passed=found.passed and not failures, failures=found.failures + failures, variants=variants)


def _limit(subject: Subject, scale: float) -> float:
    """Largest admissible |Δlogit| of the main graph, for logits of magnitude ``scale``."""
    if subject.ours.onnx.dtype != "fp32":
        return tolerance("float16", scale)
    linear = all(Edit.load(path).feature == "identity" for path in subject.edits)
    limit = (LINEAR if linear else FEATURE) * max(1.0, scale / _LARGEST)
    return max(limit, tolerance(subject.stored, scale, folded=True)) if subject.rounded else limit


def _open(subject: Subject, name: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Let one graph answer; and, where that can be had and says something, the same graph without its edit."""
    graph = subject.ours.folder / GRAPHS / GRAPH_FILES[name]
    bare: dict[str, Any] | None = None
    if subject.ours.onnx.strength:
        bare = {}  # the same at strength 0
    elif name != "fp32" and subject.ours.onnx.sea_nodes:
        (folder / graph.name).write_bytes(bypass(graph, subject.ours.onnx.sea_nodes))
        bare = {"graph": str(folder / graph.name), "weights": str(graph.parent)}
    asked = request | {
        "graph": str(graph),
        "output": str(folder / f"{name}.safetensors"),
        "unedited": bare,
        "unedited_output": str(folder / f"{name}.unedited.safetensors"),
    }
    return open_door([sys.executable, "-I", str(_SCRIPT)], folder, f"{name} graph's", asked)


def _variant(subject: Subject, name: str, doors: dict[str, Answers]) -> Variant:
    base, live, answers, unedited = doors["base"], doors["live"], doors[name], doors.get(f"{name}.unedited")
    equality, effect = compare(live, answers), compare(base, answers)
    correlation = None if unedited is None else effect_correlation(answers, unedited, live, base)
    failures = judge_reduced(equality, effect, correlation, _BITS[name])
    size = sum(p.stat().st_size for p in (subject.ours.folder / GRAPHS).glob(f"{GRAPH_FILES[name]}*"))
    return Variant(not failures, failures, _BITS[name], size, equality, effect, correlation)
