"""Whether a figure grows over a long run: a robust slope with its interval, and what would have gone unseen.

The slope is Theil's and Sen's (Theil 1950; Sen 1968, "Estimates of the Regression Coefficient Based on Kendall's Tau"):
the median of the slopes of all pairs, which a few odd windows do not move. Its interval supposes that the windows are
independent, which memory is not: it grows in steps, where an allocator takes another piece from the system. So growth
counts only where both halves of the run show it by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 8
"""Points without which nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """``slope`` per unit of x with its 95 % interval ``low`` to ``high``; ``change`` of y over the whole of x by it.

    ``lasting``: both halves grow by themselves. ``middle``: the median of y. ``span``: of x.
    """

    slope: float
    low: float
    high: float
    change: float
    lasting: bool
    middle: float
    span: float
    points: int


def trend(x: Sequence[float], y: Sequence[float]) -> Trend | None:
    """``None`` for fewer than :data:`FEWEST` points, or where x does not grow."""
    if len(x) < FEWEST or len(x) != len(y) or x[-1] <= x[0]:
        return None
    slope, low, high = _theil_sen(x, y)
    half = len(x) // 2
    halves = (_theil_sen(x[:half], y[:half]), _theil_sen(x[half:], y[half:]))
    return Trend(
        slope=slope,
        low=low,
        high=high,
        change=slope * (x[-1] - x[0]),
        lasting=all(found[1] > 0 for found in halves),
        middle=float(np.median(y)),
        span=float(x[-1] - x[0]),
        points=len(x),
    )


def _theil_sen(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    from scipy.stats import theilslopes

    found = theilslopes(np.asarray(y, np.float64), np.asarray(x, np.float64), alpha=0.95)
    return float(found.slope), float(found.low_slope), float(found.high_slope)


def later(points: Sequence[object], *, skipped: float) -> int:
    """The index from which on a run counts: what comes before is warming up."""
    return int(len(points) * skipped)
