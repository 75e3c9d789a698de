"""The strength at which an edit costs what it may: a few evaluations of the KL, a bracket and the secant.

KL grows with the square of a small alpha, and smoothly behind that: log KL over log alpha is nearly a line of slope 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sea_bake.errors import EvaluationError, SettingError

DEFAULT_BUDGET = 0.1  # nats per token of neutral text
LEAST = 1e-6  # the smallest of them
CLOSE = 0.08  # of the budget: an edit's KL lies within
_STEPS = 14
_FARTHEST = 8.0  # one step, up or down
_SLOPE = 2.0
_FLAT = 0.05  # slope: below it, twice in a row, KL has stopped growing
_LONGEST = 1e5  # alpha


@dataclass(frozen=True)
class Strength:
    """A strength, the KL at it, and how many evaluations it took."""

    alpha: float
    kl: float
    evaluations: int


class UnreachedError(EvaluationError):
    """A KL that no strength reaches.

    Attributes:
        largest: the largest KL seen.
    """

    def __init__(self, message: str, largest: float) -> None:
        super().__init__(message)
        self.largest = largest


def check_budget(budget: float | None) -> None:
    """Raise SettingError for what is no KL."""
    if budget is None:
        return
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not LEAST <= budget <= 100:
        raise SettingError(f"budget = {budget!r} is no KL in nats per token, such as {DEFAULT_BUDGET}")


def find(kl: Callable[[float], float], budget: float, *, start: float = 1.0, close: float = CLOSE) -> Strength:
    """The alpha whose KL is the budget, up to a share of it.

    Args:
        kl: alpha -> KL; an EvaluationError of it (NaN logits) counts as far beyond, but at the first alpha.
        budget: above 0.
        start: where to begin, on the side of 0 where all are tried.
        close: how far from the budget is near enough, as a share of it.

    Raises:
        UnreachedError: no strength reaches it; the message says the largest KL seen.
        SettingError: a budget or a start where there is no logarithm of it.
    """
    if not budget > 0 or start == 0:
        raise SettingError(f"no strength is found for a KL of {budget:g} from alpha = {start:g}: both must not be 0")
    side = math.copysign(1.0, start)
    tried: list[tuple[float, float]] = []  # log alpha, log KL
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    goal, alpha, flat = math.log(budget), abs(start), 0
    for count in range(1, _STEPS + 1):
        alpha = float(f"{alpha:.4g}")  # what is said and written is what was measured
        try:
            found = kl(side * alpha)
        except EvaluationError:
            if not tried:
                raise
            found = math.inf
        if abs(found - budget) <= close * budget:
            return Strength(side * alpha, found, count)
        at = (math.log(alpha), math.log(found) if 0 < found < math.inf else math.copysign(60.0, found - budget))
        if low is not None and found < budget:
            slope = (at[1] - low[1]) / (at[0] - low[0]) if at[0] != low[0] else 0.0
            flat = flat + 1 if at[0] > low[0] and slope < _FLAT else 0
        tried.append(at)
        low, high = (at, high) if found < budget else (low, at)
        if high is None and (alpha >= _LONGEST or flat >= 2):
            break
        step = _next(tried, low, high, goal)
        alpha = min(math.exp(step), _LONGEST)
    largest = max((value for _, value in tried), default=-60.0)
    seen = f"{math.exp(largest):.3g}" if largest > -60 else "0"
    message = (
        f"no strength brings the edit to a KL of {budget:g} nats per token: the largest seen is {seen}, up to "
        f"alpha = {side * math.exp(max(at for at, _ in tried)):.3g}. Give a smaller --budget, or fix the strength with "
        "--alpha"
        if high is None
        else f"the KL jumps over {budget:g} nats per token between alpha = {_alpha(low, side)} and "
        f"{_alpha(high, side)}: fix the strength with --alpha"
    )
    raise UnreachedError(message, float(seen))


def _next(
    tried: list[tuple[float, float]], low: tuple[float, float] | None, high: tuple[float, float] | None, goal: float
) -> float:
    """The next log alpha: by the line through the two nearest, inside of the bracket."""
    if low is not None and high is not None:
        width = high[0] - low[0]
        if min(abs(low[1]), abs(high[1])) == 60.0 or len(tried) > 7:
            return low[0] + width / 2
        step = low[0] + (goal - low[1]) * width / (high[1] - low[1])
        return min(max(step, low[0] + 0.02 * width), high[0] - 0.02 * width)
    at = tried[-1]
    slope = _SLOPE
    if len(tried) > 1 and tried[-2][0] != at[0]:
        slope = min(max((at[1] - tried[-2][1]) / (at[0] - tried[-2][0]), 0.5), 4.0)
    most = math.log(_FARTHEST)
    return at[0] + min(max((goal - at[1]) / slope, -most), most)


def _alpha(at: tuple[float, float] | None, side: float) -> str:
    return "?" if at is None else f"{side * math.exp(at[0]):.4g}"
