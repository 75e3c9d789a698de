"""What a task was asked under, kept among the harness' figures: worked examples, and requests that were cut.

    {task: {door: {leaf: {"num_fewshot": 5, "requests": 24, "truncated": 3, "tokens_cut": 310, "acc,none": ...}}}}

"tokens_cut": most of any one request.
"""

from __future__ import annotations

from collections.abc import Mapping

Figures = Mapping[str, Mapping[str, float]]  # leaf -> figures


def sentences(harness: Mapping[str, Mapping[str, Figures]]) -> list[str]:
    """For people, each once; nothing where no task was shown worked examples, and nothing was cut."""
    shots = {task: _shots(next(iter(doors.values()))) for task, doors in harness.items()}
    counts = ", ".join(f"{task} {count}" for task, count in shots.items() if count)
    found = [f"worked examples: {counts}"] if set(shots.values()) - {"", "0"} else []
    cut = [sentence for task, doors in harness.items() for told in doors.values() for sentence in truncated(task, told)]
    return found + list(dict.fromkeys(cut))


def _shots(told: Figures) -> str:
    """ "5", or "0 to 5" where the tasks of a group differ; "" for answers that were kept before this was."""
    counts = {int(figures["num_fewshot"]) for figures in told.values() if "num_fewshot" in figures}
    return " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else ""


def truncated(task: str, told: Figures) -> list[str]:
    """A sentence, where requests were longer than the model can read."""
    counted = [figures for figures in told.values() if figures.get("truncated")]
    if not counted:
        return []
    cut, most = sum(int(f["truncated"]) for f in counted), max(int(f["tokens_cut"]) for f in counted)
    asked = sum(int(figures.get("requests", 0)) for figures in told.values())
    return [
        f"{cut} of {asked} requests of {task} are longer than the model can read, and lost up to {most} tokens of "
        "their beginnings, as lm-evaluation-harness cuts them"
    ]
