"""sea-bake verify"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import table
from sea_bake.pages.verdicts import judged, rows

if TYPE_CHECKING:
    from rich.console import Console

    from sea_bake.verification import Verification


@command("sea_bake.verification:verify", prompts=spelt("-p"))
def verify(call: Call) -> None:
    """Prove an artefact: reloaded in a fresh process, it answers like the hook-edited base, and unlike the base.

    Writes sea_verification.json into the artefact. Exit code 1 when the proof fails. An approximate
    fold is held to the error that it promises; its verdict is "approximate" at best. What somebody else baked is
    proved with its base and its edit:

      sea-bake verify THEIR_MODEL --base BASE --edit EDIT

    So is what is left of the edit in a quantised copy of a fold (bitsandbytes, torchao, GPTQ, a GGUF, ...):

      sea-bake verify FOLD --quantised COPY

    An ONNX export answers through ONNX Runtime alone: whole texts, the same through the cache, generated texts and a
    left-padded batch. Its fp16, int8 and int4 graphs are other models, never "verified": what the edit changes in
    them has to correlate with what it changes in float32.
    """
    report = call.run()
    show(report, call.console)
    if not report.passed:
        raise typer.Exit(1)
    if call["edit"] is None:  # else it is somebody else's
        beside = ["--base", call["base"]] if call["base"] and "opset" not in report.facts else []
        call.go_on("sea-bake", "chat", call["artefact"], *beside)


def show(report: Verification, console: Console) -> None:
    """The table and the verdict."""
    head = ["against", "max |Δlogit|", "mean KL", "top-1", "greedy", "left-padded"]
    console.print(table(head, rows(report), title=f"{escape(report.artefact)} ({report.dtype}, {report.device})"))
    for line in judged(report):
        console.print(line)
