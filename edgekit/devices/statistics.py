"""Intervals and tests for measurements: proportions, paired differences, latencies across processes.

Everything is deterministic: resampling uses a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.types import Array


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval with the name of its method."""

    low: float
    high: float
    confidence: float
    method: str

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g} ({self.confidence:.0%}, {self.method})"


def wilson(successes: int, trials: int, *, confidence: float = 0.9) -> Interval:
    """Score interval of a proportion (Wilson 1927, JASA 22:209).

    Also right at 0 and 1, where the textbook interval has no width.
    """
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, zz = successes / trials, z * z / trials
    middle = (p + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(p * (1 - p) / trials + zz / (4 * trials))
    return Interval(
        low=max(0.0, middle - half), high=min(1.0, middle + half), confidence=confidence, method="Wilson"
    )


def paired_proportions(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """90 % interval of p₁ − p₂ for paired outcomes (Newcombe 1998, Statistics in Medicine 17:2635, method 10).

    Each bound is one-sided at 5 %: the convention for showing that a drop stays within a margin. ``both``
    … ``neither`` count the pairs by which of the two was right.
    """
    confidence = 0.9
    e, f, g, h = both, only_first, only_second, neither
    n = e + f + g + h
    if n <= 0:
        raise ValueError("no pairs")
    first, second = wilson(e + f, n, confidence=confidence), wilson(e + g, n, confidence=confidence)
    p1, p2 = (e + f) / n, (e + g) / n
    margins = (e + f) * (g + h) * (e + g) * (f + h)
    # Yates-like correction of the correlation where it is positive, as the paper's method 10 has it.
    product = e * h - f * g
    numerator = max(product - n / 2, 0.0) if product > 0 else float(product)
    phi = numerator / math.sqrt(margins) if margins else 0.0
    below, above = p1 - first.low, second.high - p2
    down = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    below, above = first.high - p1, p2 - second.low
    up = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    return Interval(
        low=p1 - p2 - down, high=p1 - p2 + up, confidence=confidence, method="Newcombe paired, method 10"
    )


def paired_bootstrap(differences: Sequence[float], *, resamples: int = 2000) -> Interval:
    """90 % percentile interval of the mean of paired differences (Efron & Tibshirani 1993, ch. 13)."""
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    if not values.size:
        raise ValueError("no pairs")
    means = _resampled_means(values, resamples)
    low, high = np.quantile(means, [0.05, 0.95])
    return Interval(low=float(low), high=float(high), confidence=0.9, method="paired bootstrap")


def _resampled_means(values: Array, resamples: int) -> Array:
    import numpy as np

    generator = np.random.default_rng(0)
    means = np.empty(resamples)
    for i in range(resamples):  # one resample in memory at a time
        means[i] = values[generator.integers(0, values.size, values.size)].mean()
    return means
