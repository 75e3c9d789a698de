"""Two doors on the same examples: value, difference, confidence interval, paired test. Never a bare number."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from sea_bake.artefact.evaluation import Paired
from sea_bake.edit.measured import Estimate

RESAMPLES = 5000
LEVEL = 0.95
_CHUNK = 500  # resamples at a time: their weights are [chunk, examples]
_SEED = 0

Array = Any  # np.ndarray of float64


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where there is nothing to divide (b = 0 only where a = 0)."""
    return np.divide(a, b, out=np.zeros_like(a, dtype=float), where=b != 0)


def _bias(biased: Array, answered: Array) -> Array:
    """s_DIS of Parrish et al. 2022: -1 (against the stereotype) to 1; 0 where nothing was answered."""
    return np.where(answered > 0, 2 * _ratio(biased, answered) - 1, 0.0)


# Name -> a statistic of sums over examples. The last axis of its argument holds the sums of a measure's columns.
STATISTICS: dict[str, Callable[[Array], Array]] = {
    "ratio": lambda s: _ratio(s[..., 0], s[..., 1]),  # a mean, where the second column counts
    "bias": lambda s: _bias(s[..., 0], s[..., 1]),
    "ambiguous bias": lambda s: (1 - _ratio(s[..., 2], s[..., 3])) * _bias(s[..., 0], s[..., 1]),
    "perplexity": lambda s: np.exp(_ratio(s[..., 0], s[..., 1])),
}

FEW = 10  # examples: with fewer, resampling them says too little of others
_SPANS = {"ratio": 1.0, "bias": 2.0, "ambiguous bias": 2.0}  # how far a statistic of yes/no answers reaches


def compare(base: Array, edited: Array | None = None, statistic: str = "ratio") -> Paired:
    """Measure one door, or two on the same examples.

    Percentile intervals from 5,000 paired resamples of the examples (Efron and Tibshirani 1993, chapter 13). Yes/no
    answers are tested with the exact McNemar test, all else by exchanging the doors example by example (Fisher's
    randomisation test, 5,000 draws; its smallest p is 1/5001).

    Args:
        base, edited: [examples, columns], row i of both belongs to the same example.
        statistic: a key of ``STATISTICS``.
    """
    function = STATISTICS[statistic]
    doors = np.stack([base] if edited is None else [base, edited])  # [doors, examples, columns]
    n = doors.shape[1]
    values = function(doors.sum(1))  # [doors]
    counts, state = _resamples(n)
    drawn = np.concatenate([function(np.einsum("rn,dnc->rdc", weights.astype(float), doors)) for weights in counts])
    estimates = [_estimate(float(v), d) for v, d in zip(values, drawn.T)]
    if yes_no(doors, statistic):
        estimates = [_never(e, n) if e.value in (0, 1) else e for e in estimates]
    if edited is None:
        return Paired(n, estimates[0])
    differs = (doors[0] != doors[1]).any(-1)
    difference = _estimate(float(values[1] - values[0]), drawn[:, 1] - drawn[:, 0])
    if yes_no(doors, statistic):
        p, test = _mcnemar(doors[0, :, 0], doors[1, :, 0]), "McNemar"
    else:
        rng = np.random.default_rng()
        rng.bit_generator.state = state
        p, test = _exchanged(doors, function, rng), "randomisation"
    if not differs.any() and statistic in _SPANS and np.isin(doors, (0, 1)).all():
        # No answer changed, so no resample shows a change. With 95 % confidence fewer than 3/n of all do.
        half = _SPANS[statistic] * min(1.0, 3 / n)
        difference = Estimate(0.0, -half, half)
    return Paired(n, estimates[0], estimates[1], difference, p, test, int(differs.sum()))


@functools.lru_cache(maxsize=2)
def _resamples(n: int) -> tuple[list[Array], Any]:
    """How often each of ``n`` examples is drawn: chunks [_CHUNK, n] of all resamples, the same for every measure of as
    many examples (100 MB for 10,000 of them); and the state of the generator behind them.
    """
    rng, even = np.random.default_rng(_SEED), np.full(n, 1 / n)
    kind = np.min_scalar_type(n)
    chunks = [rng.multinomial(n, even, size=_CHUNK).astype(kind) for _ in range(RESAMPLES // _CHUNK)]
    return chunks, rng.bit_generator.state


def _never(found: Estimate, n: int) -> Estimate:
    """A share of 0 or 1, which every resample repeats: with 95 % confidence the rest is less than 3/n."""
    return Estimate(found.value, max(0.0, found.value - 3 / n), min(1.0, found.value + 3 / n))


def yes_no(doors: Array, statistic: str) -> bool:
    """Whether a measure is a share of examples, each of which is a 0 or a 1."""
    return statistic == "ratio" and bool(np.isin(doors[..., 0], (0, 1)).all() and (doors[..., 1] == 1).all())


def _estimate(value: float, drawn: Array) -> Estimate:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _mcnemar(base: Array, edited: Array) -> float:
    """McNemar's test in its exact form: a sign test of the examples whose answer turned."""
    won, lost = int((edited > base).sum()), int((edited < base).sum())
    tail, ways, n = 0, 1, won + lost
    for k in range(min(won, lost) + 1):
        tail, ways = tail + ways, ways * (n - k) // (k + 1)  # ways: n over k, exactly
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def _exchanged(doors: Array, function: Callable[[Array], Array], rng: np.random.Generator) -> float:
    sums, shift = doors.sum(1), doors[1] - doors[0]
    observed = abs(function(sums[1]) - function(sums[0]))
    extreme = 0
    for _ in range(RESAMPLES // _CHUNK):
        swapped = rng.integers(0, 2, size=(_CHUNK, doors.shape[1])) @ shift  # [chunk, columns]
        found = np.abs(function(sums[1] - swapped) - function(sums[0] + swapped))
        extreme += int((found >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (RESAMPLES + 1)
