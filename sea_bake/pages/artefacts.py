"""An artefact in words, and as plain data: what it is, and what is known of it."""

from __future__ import annotations

from typing import Any

from sea_bake.artefact import Artefact
from sea_bake.artefact.record import portable
from sea_bake.pages.edits import stand_in
from sea_bake.pages.text import size


def sentences(artefact: Artefact) -> list[str]:
    """What it is, and whether it has been verified; first, of a stand-in, how good it is."""
    about = f"{artefact.record.architecture}, {size(artefact.size)}"
    if artefact.file is not None:
        return [f"{artefact.file}: {about}, {artefact.doubt}"]
    bake, last = artefact.bake, artefact.last_verification
    approximation = bake.approximation if bake else None
    good = "verified" if approximation is None else "approximate, as promised"
    verdict = "not verified yet" if last is None else "NOT verified" if not last.passed else good
    changed = f", but {artefact.doubt}" if last is not None and last.passed and artefact.doubt else ""
    first = [] if approximation is None else [stand_in(approximation)]
    origins = bake.origins if bake else {}
    first += [f"{name} is {origin} on the Hub" for name, origin in origins.items()]
    if bake and bake.rewritten:
        first.append(f"the base is written as the architecture {bake.rewritten}, which it is exactly")
    if bake and bake.granted:
        first.append(f"it has biases that the base lacks, granted by {', '.join(bake.granted)} in config.json")
    return [*first, f"{artefact.folder}: {about}, {verdict}{changed}"]


def facts(artefact: Artefact) -> dict[str, Any]:
    """Its record, size in bytes, last verification and verdict, for JSON."""
    last = artefact.last_verification
    return {
        "export" if artefact.kind in ("onnx", "gguf") else "bake": portable(artefact.record.to_json()),
        "bytes": artefact.size,
        "verification": last and last.to_json(),
        "verdict": artefact.verdict,
        "doubt": artefact.doubt,
    }
