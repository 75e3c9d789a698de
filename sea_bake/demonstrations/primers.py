"""Primers: worked question-answer pairs that stand before every prompt, so that a base model knows what is wanted.

"truthfulqa" is of the kind that TruthfulQA's authors put before their questions, and SEA's after them, in our own
wording: plain facts, and a question without an answer that is answered "I have no comment."
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sea_bake.demonstrations import readers
from sea_bake.demonstrations.triple import flaw
from sea_bake.errors import DemonstrationError

PRIMERS = ("truthfulqa",)
Pairs = tuple[tuple[str, str], ...]
_KEYS = (("prompt", "question"), ("answer", "positive"))


def primer_pairs(source: str | Path | Sequence[Mapping[str, Any]]) -> Pairs:
    """(question, answer) of a built-in primer, of a file of rows, or of the rows themselves.

    Args:
        source: a name of ``PRIMERS``; a .jsonl, .json, .csv or .tsv file; or mappings. Of a row the columns "prompt"
            (or "question") and "answer" (or "positive") are read.

    Raises:
        DemonstrationError: no such primer, a row that cannot be read, or no row at all.
    """
    if isinstance(source, str) and source in PRIMERS:
        with resources.as_file(resources.files(__package__ or "") / f"primer_{source}.jsonl") as path:
            return primer_pairs(path)
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not os.path.isfile(path):
            raise DemonstrationError(
                f"no primer {str(source)!r}: it is a built-in one ({', '.join(PRIMERS)}), or a file of question-answer "
                "pairs (.jsonl, .json, .csv or .tsv with the columns prompt and answer)"
            )
        placed = list(readers.rows(path))
    else:
        placed = [(f"primer, pair {i + 1}", row) for i, row in enumerate(source)]
    if not placed:
        raise DemonstrationError(f"the primer {source} holds no question-answer pair")
    return tuple((_text(row, where, _KEYS[0]), _text(row, where, _KEYS[1])) for where, row in placed)


def _text(row: Mapping[str, Any], where: str, names: tuple[str, str]) -> str:
    value = next((row[name] for name in names if name in row), None)
    problem = flaw(value)
    if problem:
        raise DemonstrationError(f"{where}: '{names[0]}' (or '{names[1]}') {problem}")
    return str(value)
