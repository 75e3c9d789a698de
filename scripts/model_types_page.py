"""MODEL_TYPES.md, from what scripts/check_model_types saw."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent / "MODEL_TYPES.md"
_HEAD = """# Every type of language model

Written by `scripts/check_model_types --write`; not by hand. {title}, on {date}.

One tiny random model of each causal or encoder-decoder type, and of each that reads images, sounds or films beside
text, is edited at `attn`, `mlp` and `block`: inserted, folded, as an adapter.

- right: what is loaded again answers like a dense float64 hook on the module that was seen to be the site, and unlike
  the base. A type is right where one of its bakes is and none is wrong.
- refused: with the reason below.
- not run: transformers itself does not build, run or load the type at a tiny size, or not on text alone.
"""


def write(found: Sequence[dict[str, Any]], table: Any, outcome: Callable[[dict[str, Any]], str], date: str) -> None:
    """Write the page."""
    lines = [_HEAD.format(title=table.title, date=date), *_table(table.columns, table.rows)]
    right = [one for one in found if outcome(one) == "right"]
    lines += ["", "## Right", "", *_table(["type", "class", "attn", "mlp", "block"], map(_row, right))]
    for name, title in (("refused", "Refused"), ("wrong", "Wrong"), ("crash", "Crash"), ("not run", "Not run")):
        rows = [[one["type"], one["class"], _reason(one)] for one in found if outcome(one) == name]
        if rows:
            lines += ["", f"## {title}", "", *_table(["type", "class", "why"], rows)]
    PAGE.write_text("\n".join(lines) + "\n", "utf-8")


def _table(columns: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join('---' for _ in columns)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _row(one: dict[str, Any]) -> list[str]:
    ways = [
        ", ".join(way for way, bake in one["sites"].get(site, {}).items() if bake["outcome"] == "right") or "no"
        for site in ("attn", "mlp", "block")
    ]
    return [one["type"], one["class"], *ways]


def _reason(one: dict[str, Any]) -> str:
    """The first reason, in one short line without paths of one run."""
    whys = [bake["why"] for ways in one.get("sites", {}).values() for bake in ways.values() if bake["why"]]
    text = one.get("not run") or whys[0]
    text = re.sub(r"/tmp/\S+", "the checkpoint", text)
    text = re.sub(r"<class '(\w+\.)*(\w+)'>", r"\2", text)
    text = text.partition(" A decoder with the same parts needs")[0].partition(" Model type should be one of")[0]
    return text[:300].replace("|", "\\|").replace("`", "'").replace("<", "&lt;").replace("*", "\\*")
