"""The proof of what ``bake`` wrote: reloaded by transformers (and PEFT) in a process without sea_bake."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sea_bake.artefact.code import check_code
from sea_bake.artefact.verification import Verification
from sea_bake.io import progress
from sea_bake.verification import answers
from sea_bake.verification.doors import Subject, dtype_of, open_door, open_reference
from sea_bake.verification.verdict import (
    compare,
    inconsistent,
    judge,
    judge_approximate,
    largest_kl,
    largest_logit,
    tolerance,
)


def prove(subject: Subject, request: dict[str, Any], dtype: str) -> Verification:
    """Open the doors on a request, and judge. Raises CheckpointError where an insert's code is not ours."""
    how = subject.artefact.kind
    if how == "insert":
        check_code(subject.artefact.folder)  # which the artefact's door is about to run
    promise = subject.promised_kl
    stored = dtype_of(subject.plain, "auto")
    folded = how in ("fold", "adapter")
    if folded and dtype == "auto":
        dtype = "float32"  # (M W) x and M (W x) are the same but for rounding: so as little of that as can be
    request |= {"dtype": dtype_of(subject.plain, dtype), "device": subject.device}
    with (
        tempfile.TemporaryDirectory(prefix="sea-bake-verify-") as scratch,
        progress.bar("verify", 2, "door") as advance,
    ):
        folder = Path(scratch)
        open_reference(request, subject, folder)
        advance(1)
        reloaded = request | {
            "model": str(subject.plain),
            "adapter": str(subject.artefact.folder) if how == "adapter" else None,
            "trust_remote_code": how == "insert",
            "output": str(folder / "artefact.safetensors"),
        }
        facts = open_door([sys.executable, "-I", answers.__file__], folder, "artefact", reloaded)
        advance(1)
        found = {name: load_file(folder / f"{name}.safetensors") for name in ("base", "live", "artefact")}
    equality, effect = compare(found["live"], found["artefact"]), compare(found["base"], found["artefact"])
    rounded = how == "fold" and stored != "float32"
    limit = tolerance(stored if rounded else facts["dtype"], largest_logit(found["live"]), folded=folded)
    approximate: dict[str, Any] = {}
    if promise is None:
        failures = judge(equality, effect, facts, limit, texts=not rounded)
    else:
        kl_limit, baseline = largest_kl(promise, limit), compare(found["live"], found["base"])
        odd = inconsistent(found["artefact"], found["live"], facts["dtype"])
        failures = judge_approximate(equality, effect, baseline, facts, limit, kl_limit, odd)
        approximate = {"approximate": True, "kl_limit": kl_limit, "baseline": baseline}
    return subject.verification(failures, facts, tolerance=limit, equality=equality, effect=effect, **approximate)
