"""The proof of an ONNX export: ONNX Runtime alone, in a process without torch, against the living model in float32."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sea_bake.artefact import Artefact
from sea_bake.artefact.names import GRAPH_FILES, GRAPHS
from sea_bake.artefact.verification import Variant, Verification
from sea_bake.errors import SettingError, VerificationError, missing_extra
from sea_bake.io import progress
from sea_bake.verification import onnx_answers
from sea_bake.verification.bypass import bypass
from sea_bake.verification.doors import Subject, dtype_of, open_door, open_reference
from sea_bake.verification.reduced import effect_correlation, judge_reduced
from sea_bake.verification.verdict import (
    compare,
    inconsistent,
    judge,
    judge_approximate,
    largest_kl,
    largest_logit,
    tolerance,
)

# ONNX Runtime fuses and orders the same operations otherwise than torch. Measured on SmolLM2-135M, whose largest logits
# are 30 to 45: up to 1.3e-4 with linear edits, 4e-3 with Φ edits, whose inverses (atanh, log) amplify every rounding.
LINEAR, FEATURE = 1e-3, 1e-2
_LARGEST = 50.0  # larger logits have larger roundings
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
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "onnx", "Verifying an ONNX export")
    for name in record.graphs:
        if not (folder / GRAPHS / GRAPH_FILES[name]).is_file():
            raise VerificationError(f"{folder} is incomplete: {GRAPHS}/{GRAPH_FILES[name]} is missing")


def prove(subject: Subject, request: dict[str, Any]) -> Verification:
    """Open the doors on a request, and judge: the float32 graph by equality, others by what is left of the edit."""
    record = subject.artefact.onnx
    names = record.graphs
    # float32 whatever the checkpoint's own dtype: the export widened its weights, and rounding is judged by itself.
    request |= {"dtype": "float32", "device": subject.device, "bare": True}
    with (
        tempfile.TemporaryDirectory(prefix="sea-bake-verify-") as scratch,
        progress.bar("verify", 1 + len(names), "door") as advance,
    ):
        folder = Path(scratch)
        open_reference(request, subject, folder)
        advance(1)
        base, live = (load_file(folder / f"{name}.safetensors") for name in ("base", "live"))
        facts: dict[str, Any] = {}
        answers: dict[str, dict[str, Tensor]] = {}
        unedited: dict[str, dict[str, Tensor]] = {}
        for name in names:
            found = _open(subject, name, request, folder)
            facts = facts or found
            answers[name] = load_file(folder / f"{name}.safetensors")
            bare = folder / f"{name}.unedited.safetensors"
            unedited |= {name: load_file(bare)} if bare.is_file() else {}
            advance(1)
    main = names[0]
    variants = {
        name: _variant(subject, name, answers[name], unedited.get(name), live, base) for name in names if name != "fp32"
    }
    equality, effect = compare(live, answers[main]), compare(base, answers[main])
    facts |= {
        "class": record.architecture,
        "opset": record.opset,
        "sea_nodes": len(record.sea_nodes),
        "runtimes": ["onnxruntime"],
    }
    limit = _limit(subject, largest_logit(live))
    failures, more = _judge_main(subject, answers[main], live, base, facts, limit)
    if main == "fp32" and main in unedited:
        facts["strength_0"] = zero = compare(base, base | unedited[main]).max_abs
        if not zero <= limit:
            failures.append(f"at strength 0 logits differ from the base by {zero:.3g} (tolerance {limit:.3g})")
    failures += [f"{name}: {failure}" for name, variant in variants.items() for failure in variant.failures]
    return subject.verification(
        failures, facts, tolerance=limit, equality=equality, effect=effect, variants=variants, **more
    )


def _limit(subject: Subject, scale: float) -> float:
    """Largest admissible |Δlogit| of the main graph, for logits of magnitude ``scale``."""
    if subject.artefact.onnx.dtype != "fp32":
        return tolerance("float16", scale)
    limit = (LINEAR if subject.linear else FEATURE) * max(1.0, scale / _LARGEST)
    return max(limit, tolerance(dtype_of(subject.plain, "auto"), scale, folded=True)) if _rounded(subject) else limit


def _rounded(subject: Subject) -> bool:
    """Folded weights were rounded to half precision: that may turn a tie, after which texts go their own ways."""
    return subject.artefact.how == "fold" and dtype_of(subject.plain, "auto") != "float32"


def _open(subject: Subject, name: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Let one graph answer; and, where that can be had and says something, the same graph without its edit."""
    graph = subject.artefact.folder / GRAPHS / GRAPH_FILES[name]
    bare: dict[str, Any] | None = None
    if subject.artefact.onnx.strength:
        bare = {"graph": str(graph), "weights": None}
    elif name != "fp32" and subject.artefact.onnx.sea_nodes:
        (folder / graph.name).write_bytes(bypass(graph, subject.artefact.onnx.sea_nodes))
        bare = {"graph": str(folder / graph.name), "weights": str(graph.parent)}
    asked = request | {
        "graph": str(graph),
        "weights": None,
        "output": str(folder / f"{name}.safetensors"),
        "unedited": bare,
        "unedited_output": str(folder / f"{name}.unedited.safetensors"),
    }
    return open_door([sys.executable, "-I", onnx_answers.__file__], folder, f"{name} graph's", asked)


def _judge_main(
    subject: Subject,
    answers: dict[str, Tensor],
    live: dict[str, Tensor],
    base: dict[str, Tensor],
    facts: dict[str, Any],
    limit: float,
) -> tuple[list[str], dict[str, Any]]:
    """Failures, and what the report of an approximate graph says besides."""
    equality, effect, baseline = compare(live, answers), compare(base, answers), compare(live, base)
    if subject.artefact.onnx.dtype != "fp32":
        return [], {"approximate": True, "baseline": baseline}  # judged as a variant
    promise = subject.promised_kl
    if promise is None:
        return judge(equality, effect, facts, limit, texts=not _rounded(subject)), {}
    kl_limit, odd = largest_kl(promise, limit), inconsistent(answers, live, facts["dtype"])
    failures = judge_approximate(equality, effect, baseline, facts, limit, kl_limit, odd)
    return failures, {"approximate": True, "kl_limit": kl_limit, "baseline": baseline}


def _variant(
    subject: Subject,
    name: str,
    answers: dict[str, Tensor],
    unedited: dict[str, Tensor] | None,
    live: dict[str, Tensor],
    base: dict[str, Tensor],
) -> Variant:
    equality, effect = compare(live, answers), compare(base, answers)
    correlation = None if unedited is None else effect_correlation(answers, unedited, live, base)
    failures = judge_reduced(equality, effect, correlation, _BITS[name])
    size = sum(p.stat().st_size for p in (subject.artefact.folder / GRAPHS).glob(f"{GRAPH_FILES[name]}*"))
    return Variant(not failures, failures, _BITS[name], size, equality, effect, correlation)
