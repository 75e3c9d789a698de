"""Batches: rows padded to one length, dealt out to all processes, their results in the order of the jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sea_bake.io import progress
from sea_bake.model.processes import dealt, gathered, in_step


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


def distributed(
    description: str,
    jobs: Sequence[Any],
    batch_size: int,
    run: Callable[[list[Any]], list[Any]],
    key: Callable[[Any], int] = lambda tokens: len(tokens.ids),
) -> list[Any]:
    """``run`` over batches of similar length, dealt out to all processes; results in the order of ``jobs`` on each.

    The batches do not depend on the number of processes, so neither do the results.
    """
    order = sorted(range(len(jobs)), key=lambda i: -key(jobs[i]))  # longest first: out of memory shows at once
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    mine: list[tuple[int, Any]] = []
    own = dealt(batches)
    with in_step(), progress.bar(description, sum(map(len, own)), "seq") as advance:
        for batch in own:
            mine += zip(batch, run([jobs[i] for i in batch]))
            advance(len(batch))
    results: list[Any] = [None] * len(jobs)
    for i, result in gathered(mine):
        results[i] = result
    return results
