"""Prove an artefact: the same tokens through base, live hooks and the reloaded artefact, each in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sea_bake import progress
from sea_bake.activations.prompts import encode, pad_id
from sea_bake.baking.report import RECORD, edit_files, is_artefact, read_record, recorded_base
from sea_bake.checkpoint import write_json
from sea_bake.checkpoint.reader import read_json
from sea_bake.demonstrations import builtin
from sea_bake.errors import CheckpointError, SettingError, VerificationError
from sea_bake.loading import DTYPES, auto_class, default_device, load_tokenizer
from sea_bake.source import ModelSource
from sea_bake.staging import staged_file
from sea_bake.verification import answers
from sea_bake.verification.report import (
    Comparison,
    Report,
    compare,
    inconsistent,
    judge,
    judge_approximate,
    largest_kl,
    promised_kl,
    tolerance,
)
from sea_bake.verification.seal import seal

REPORT = "sea_verification.json"
_PROMPTS = 6

__all__ = ["REPORT", "Comparison", "Report", "verify"]


def verify(
    artefact: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    edit: str | Path | Sequence[str | Path] | None = None,
    dtype: str = "auto",
    device: str | None = None,
    prompts: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    positions: int = 64,
    write: bool = True,
) -> Report:
    """Reload an artefact in a fresh process and hold it against the hook-edited base, and against the base.

    An approximate fold is held to the error that it promises, and at best called "approximate".

    Three doors answer the same token ids: the base, the base under ``Edit.live`` (one process, with sea_bake), and the
    artefact (another process, in which sea_bake cannot be imported). One model is in memory at a time.

    Args:
        artefact: a folder written by ``bake``.
        base: its base model; None takes what the artefact records (a Hub id, or a folder beside the artefact).
        edit: the edit, or several in the order they act; None takes the copies inside the artefact.
        dtype: a float dtype for all doors; "auto": the checkpoint's own, and float32 for folds and adapters.
        prompts: texts to continue; None takes six built-in questions.
        max_new_tokens: length of the greedy continuations.
        positions: logits are compared at so many last positions of each teacher-forced text.
        write: leave ``sea_verification.json`` inside the artefact.

    Raises:
        VerificationError: the base cannot be found, or a door cannot be opened (which is not the same as a failed
            verification: that is a Report whose ``passed`` is False).
    """
    artefact = Path(artefact).expanduser().absolute()
    if not is_artefact(artefact):
        raise VerificationError(f"{artefact} is not an artefact of sea_bake: it has no {RECORD}")
    record = read_record(artefact)
    promise = promised_kl(record)
    if dtype != "auto" and dtype not in DTYPES:
        raise SettingError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    try:
        source = recorded_base(artefact, record, base, revision)
    except CheckpointError as error:
        raise VerificationError(str(error)) if base is None else error from error
    given = [edit] if isinstance(edit, str | Path) else edit
    edits = [Path(e).absolute() for e in given] if given is not None else edit_files(artefact)
    device = device or default_device()
    # An adapter has neither configuration nor tokenizer of its own: it lives on its base.
    is_adapter = record.get("how") == "adapter"
    if is_adapter and source.is_gguf:
        raise VerificationError(
            f"an adapter is verified on a checkpoint, and {source.path} is a GGUF: name one with --base"
        )
    plain = source.folder() if is_adapter else artefact
    request = _request(plain, source, prompts, max_new_tokens, positions)
    sealed = seal(artefact) if write else {}
    stored = _dtype(plain, "auto")
    folded = record.get("how") in ("fold", "adapter")
    if folded and dtype == "auto":
        dtype = "float32"  # (M W) x and M (W x) are the same but for rounding: so as little of that as can be
    request |= {"dtype": _dtype(plain, dtype), "device": device}
    with (
        tempfile.TemporaryDirectory(prefix="sea-bake-verify-") as scratch,
        progress.bar("verify", 2, "door") as advance,
    ):
        folder = Path(scratch)
        reference = request | {
            "model": str(source.path or source.name),
            "revision": source.revision,
            "edits": [str(e) for e in edits],
            "output": str(folder / "base.safetensors"),
            "live_output": str(folder / "live.safetensors"),
        }
        _open_door([sys.executable, "-m", "sea_bake.verification.reference"], folder, "reference", reference)
        advance(1)
        reloaded = request | {
            "model": str(plain),
            "adapter": str(artefact) if is_adapter else None,
            "trust_remote_code": record.get("how") == "insert",
            "output": str(folder / "artefact.safetensors"),
        }
        facts = _open_door([sys.executable, "-I", answers.__file__], folder, "artefact", reloaded)
        advance(1)
        found = {name: load_file(folder / f"{name}.safetensors") for name in ("base", "live", "artefact")}
    equality, effect = compare(found["live"], found["artefact"]), compare(found["base"], found["artefact"])
    scale = max(float(t.abs().max()) for key, t in found["live"].items() if key.startswith("logits."))
    rounded = record.get("how") == "fold" and stored != "float32"
    limit = tolerance(stored if rounded else facts["dtype"], scale, folded=folded)
    approximate: dict[str, Any] = {}
    if promise is None:
        failures = judge(equality, effect, facts, limit, texts=not rounded)
    else:
        kl_limit, baseline = largest_kl(promise, limit), compare(found["live"], found["base"])
        odd = inconsistent(found["artefact"], found["live"], facts["dtype"])
        failures = judge_approximate(equality, effect, baseline, facts, limit, kl_limit, odd)
        approximate = {"approximate": True, "kl_limit": kl_limit, "baseline": baseline}
    report = Report(
        passed=not failures,
        failures=failures,
        artefact=artefact.name,
        base=source.name,
        how=str(record.get("how")),
        dtype=facts["dtype"],
        device=device,
        tolerance=limit,
        equality=equality,
        effect=effect,
        facts=facts,
        **approximate,
    )
    if write:
        with staged_file(artefact / REPORT, overwrite=True) as stage:
            write_json(stage, report.to_json() | {"files": sealed})
    return report


def _dtype(artefact: Path, dtype: str) -> str:
    """Every door has to run in one dtype: a GGUF base has none of its own, so the artefact's decides."""
    if dtype != "auto":
        return dtype
    config = read_json(artefact / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _request(
    artefact: Path, source: ModelSource, prompts: Sequence[str] | None, max_new_tokens: int, positions: int
) -> dict[str, Any]:
    """Token ids for all doors, from the artefact's own tokenizer, which must agree with the base's."""
    tokenizer, reference = load_tokenizer(artefact), load_tokenizer(source)
    triples = builtin()[:: max(1, len(builtin()) // _PROMPTS)][:_PROMPTS]
    texts = [(p, None) for p in prompts] if prompts else [(d.prompt, d.positive) for d in triples]
    start = _decoder_start(artefact)
    teacher = [encode(tokenizer, p, c, decoder_start=start) for p, c in texts]
    if teacher != [encode(reference, p, c, decoder_start=start) for p, c in texts]:
        raise VerificationError(
            "the artefact's tokenizer does not encode like the base's: its files are not the base's"
        )
    return {
        "auto_class": auto_class(read_json(artefact / "config.json")),
        "decoder_start": start,
        "teacher": [list(t.ids) for t in teacher],
        "prompts": [list(t.encoder or encode(tokenizer, p).ids) for t, (p, _) in zip(teacher, texts)],
        "max_new_tokens": max_new_tokens,
        "positions": positions,
        "pad": pad_id(tokenizer),
    }


def _decoder_start(artefact: Path) -> int | None:
    """The token that the decoder of an encoder-decoder starts with; None where there is no encoder."""
    found = read_json(artefact / "config.json")
    if not found.get("is_encoder_decoder"):
        return None
    generation = artefact / "generation_config.json"
    found |= read_json(generation) if generation.is_file() else {}
    start = found.get("decoder_start_token_id")
    return int(found["bos_token_id"] if start is None else start)


def _open_door(command: list[str], folder: Path, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run one door on a request and return its facts."""
    request = request | {"facts": str(folder / f"{name}.facts.json")}
    path = folder / f"{name}.request.json"
    path.write_text(json.dumps(request), "utf-8")
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, env={**os.environ, **quiet}, stdin=subprocess.DEVNULL
    )
    if ran.returncode != 0 or not Path(request["facts"]).is_file():
        lines = [line for line in ran.stderr.strip().splitlines() if line.strip()] or [f"exit code {ran.returncode}"]
        raise VerificationError(f"the {name} door could not be opened: {lines[-1]}")
    facts: dict[str, Any] = json.loads(Path(request["facts"]).read_text("utf-8"))
    if "error" in facts:
        raise VerificationError(f"the {name} door could not be opened: {facts['error']}")
    return facts
