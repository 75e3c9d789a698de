"""The proof of what ``bake`` wrote: reloaded by transformers (and PEFT) in a process without sea_bake."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sea_bake.artefact.code import check_code
from sea_bake.artefact.verification import Verification
from sea_bake.io import progress
from sea_bake.model.placing import Placement
from sea_bake.verification import answers, copies
from sea_bake.verification.copies import Copy
from sea_bake.verification.doors import Subject, open_door, open_reference
from sea_bake.verification.effect import likeness
from sea_bake.verification.strangers import Stranger
from sea_bake.verification.verdict import largest_logit, tolerance, verdict


def prove(subject: Subject, request: dict[str, Any], dtype: str, copy: Copy | None = None) -> Verification:
    """Open the doors on a request, and judge. Raises CheckpointError where an insert's code is not ours.

    Args:
        copy: a quantised copy of the artefact, which is judged beside it.
    """
    how = subject.artefact.kind
    if how == "insert":
        check_code(subject.artefact.folder)  # which the artefact's door is about to run
    folded = subject.folded
    if dtype == "auto":  # (M W) x and M (W x) are the same but for rounding: so as little of that as can be
        dtype = "float32" if folded else subject.stored
    request |= {"dtype": dtype, "device": subject.device}
    with (
        tempfile.TemporaryDirectory(prefix="sea-bake-verify-") as scratch,
        progress.bar("verify", 2 + (copy is not None), "door") as advance,
    ):
        folder = Path(scratch)
        reference = open_reference(request, subject, folder)
        advance(1)
        place = Placement(subject.device, folder / "offload")
        reloaded = request | {
            "model": str(subject.plain),
            "adapter": str(subject.artefact.folder) if how == "adapter" else None,
            "trust_remote_code": how == "insert",
            "use_safetensors": True,
            "output": str(folder / "artefact.safetensors"),
            "placement": place.options,
        }
        facts = open_door([sys.executable, "-I", answers.__file__], folder, "artefact", reloaded)
        advance(1)
        facts["base_kept"] = reference["base_kept"]
        facts["unused_by_the_base"] = [name for name in facts["unexpected_keys"] if name in reference["unused"]]
        facts["unexpected_keys"] = [name for name in facts["unexpected_keys"] if name not in reference["unused"]]
        if copy is not None:
            facts["copy_against"] = copies.ask(copy, subject, reloaded, folder)
            advance(1)
        base, live, artefact = (load_file(folder / f"{name}.safetensors") for name in ("base", "live", "artefact"))
        variants = {}
        if copy is not None:
            variants[copy.name] = copies.judge(copy, folder, live, base, facts["copy_against"])
    ran = subject.stored if subject.rounded else facts["dtype"]
    scale = largest_logit(live)
    seen = tolerance(ran, scale, folded=folded and not subject.rounded)
    found = verdict(subject, base, live, artefact, facts, tolerance(ran, scale, folded=folded), seen=seen)
    failures = [f"{name}: {failure}" for name, variant in variants.items() for failure in variant.failures]
    passed = found.passed and not failures
    found = replace(found, passed=passed, failures=found.failures + failures, variants=variants)
    if passed or not isinstance(subject.artefact, Stranger):
        return found
    return replace(found, failures=[*found.failures, likeness(artefact, live, base)])
