"""sea-bake verify"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import table
from sea_bake.pages.text import size

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

    An ONNX export answers through ONNX Runtime alone: whole texts, the same through the cache, generated texts and a
    left-padded batch. Its fp16, int8 and int4 graphs are other models, never "verified": what the edit changes in
    them has to correlate with what it changes in float32.
    """
    report = call.run()
    show(report, call.console)
    if not report.passed:
        raise typer.Exit(1)


def show(report: Verification, console: Console) -> None:
    """The table and the verdict."""
    rows = [
        [
            name,
            f"{c.largest:.2e}",
            f"{c.mean_kl:.2e}",
            f"{100 * c.top1:.1f}%",
            f"{c.greedy_equal}/{c.prompts}",
            f"{c.padded_equal}/{c.prompts}",
        ]
        for name, c in (("live hooks", report.equality), ("base", report.effect))
    ]
    head = ["against", "max |Δlogit|", "mean KL", "top-1", "greedy", "left-padded"]
    console.print(table(head, rows, title=f"{escape(report.artefact)} ({report.dtype}, {report.device})"))
    for name, variant in report.variants.items():
        kept = "" if variant.effect_correlation is None else f", effect correlation {variant.effect_correlation:.3f}"
        console.print(
            f"{name}: [bold]{variant.verdict}[/] ({size(variant.bytes)}): mean KL {variant.equality.mean_kl:.2e} to "
            f"the edit, {variant.effect.mean_kl:.2e} to the base{kept}, top-1 {100 * variant.equality.top1:.1f}%"
        )
    if "strength_0" in report.facts:
        console.print(f"at strength 0: within {report.facts['strength_0']:.1e} of the base")
    loading = "" if report.variants or "opset" in report.facts else ", no missing or unexpected keys"
    unused = report.facts.get("unused_by_the_base")
    if unused:
        console.print(f"tensors that the base does not use either: {', '.join(unused)}", markup=False)
    if report.passed and report.approximate and report.kl_limit is None:
        console.print(f"[bold yellow]approximate[/]: not equal to the hook-edited base ({report.dtype}), but near it")
    elif report.passed and report.approximate:
        assert report.baseline is not None
        console.print(
            f"[bold yellow]approximate[/]: not equal to the hook-edited base, but as near as promised (mean KL "
            f"{report.equality.mean_kl:.2e}, at most {report.kl_limit:.2e}; the base is at "
            f"{report.baseline.mean_kl:.2e}), different from the base{loading}"
        )
    elif report.passed:
        console.print(
            f"[bold green]verified[/]: equal to the hook-edited base (tolerance {report.tolerance:.1e}), "
            f"different from the base{loading}"
        )
    else:
        console.print("[bold red]NOT verified[/]")
        for failure in report.failures:
            console.print(f"  - {failure}", markup=False)
