"""A verification in sentences, with rich's markup for the terminal."""

from __future__ import annotations

from rich.markup import escape

from sea_bake.artefact.verification import Verification
from sea_bake.pages.text import size


def rows(report: Verification) -> list[list[str]]:
    """Against the hooks, and against the base: distances, and how many greedy and left-padded texts are the same."""
    return [
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


def judged(report: Verification) -> list[str]:
    """A sentence for each reduced graph, what else was seen, and the verdict with its reasons."""
    found = []
    for name, variant in report.variants.items():
        kept = "" if variant.effect_correlation is None else f", effect correlation {variant.effect_correlation:.3f}"
        found.append(
            f"{name}: [bold]{variant.verdict}[/] ({size(variant.bytes)}): mean KL {variant.equality.mean_kl:.2e} to "
            f"the edit, {variant.effect.mean_kl:.2e} to the base{kept}, top-1 {100 * variant.equality.top1:.1f}%"
        )
    if "strength_0" in report.facts:
        found.append(f"at strength 0: within {report.facts['strength_0']:.1e} of the base")
    loading = "" if report.variants or "opset" in report.facts else ", no missing or unexpected keys"
    unused = report.facts.get("unused_by_the_base")
    if unused:
        found.append(escape(f"tensors that the base does not use either: {', '.join(unused)}"))
    if report.passed and report.approximate and report.kl_limit is None:
        found.append(f"[bold yellow]approximate[/]: not equal to the hook-edited base ({report.dtype}), but near it")
    elif report.passed and report.approximate:
        assert report.baseline is not None
        found.append(
            f"[bold yellow]approximate[/]: not equal to the hook-edited base, but as near as promised (mean KL "
            f"{report.equality.mean_kl:.2e}, at most {report.kl_limit:.2e}; the base is at "
            f"{report.baseline.mean_kl:.2e}), different from the base{loading}"
        )
    elif report.passed:
        found.append(
            f"[bold green]verified[/]: equal to the hook-edited base (tolerance {report.tolerance:.1e}), "
            f"different from the base{loading}"
        )
    else:
        found += ["[bold red]NOT verified[/]", *(escape(f"  - {failure}") for failure in report.failures)]
    return found
