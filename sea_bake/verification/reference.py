"""The other side of a proof, in its own process: the base, and the base under ``Edit.live``.

python -m sea_bake.verification.reference request.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from sea_bake.edit import Edit, live
from sea_bake.errors import SeaBakeError
from sea_bake.model.loading import is_mixed, load_reported
from sea_bake.model.source import ModelSource
from sea_bake.verification.answers import answer


def main(path: str) -> int:
    """Answer as the base into "output" (None: its answers are known), as the hook-edited base into "live_output".

    A SeaBakeError goes to "facts".
    """
    request = json.loads(Path(path).read_text("utf-8"))
    facts: dict[str, Any] = {}
    try:
        source = ModelSource.parse(request["model"], request["revision"])
        # Widened only after the edits were checked: rounded weights are the checkpoint's own, whatever they run in.
        wide = request["dtype"] == "float32"
        model, facts["unused"] = load_reported(
            source, dtype="auto" if wide else request["dtype"], device=request["device"]
        )
        edits = [Edit.load(path, model) for path in request["edits"]]
        if wide and not getattr(model, "is_quantized", False) and not is_mixed(source):
            model = model.float()
        elif (
            wide and not source.is_gguf
        ):  # no quantised model is widened once it is there, nor what was rounded; a GGUF is wide
            model, _ = load_reported(source, dtype=request["dtype"], device=request["device"])
        if request.get("bare"):  # the other door knows no penalties and no end, only the most likely token
            model.generation_config = GenerationConfig()
        if request["output"] is not None:
            answer(model, request | {"alone": 0}, request["output"])
        with live(edits, model, check=False):
            answer(model, request, request["live_output"])
        facts["dtype"] = str(model.dtype).removeprefix("torch.")
    except SeaBakeError as error:
        facts["error"] = str(error)
    Path(request["facts"]).write_text(json.dumps(facts), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
