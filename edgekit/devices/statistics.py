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
    low = max(0.0, middle - half) if successes else 0.0  # exactly, where rounding would leave 1e-17
    high = min(1.0, middle + half) if successes < trials else 1.0
    return Interval(low=low, high=high, confidence=confidence, method="Wilson")


def share_below(successes: int, trials: int, limit: float) -> float:
    """P-value of the exact binomial test that the true share is at least ``limit``: small means below it.

    It is the probability of at most ``successes`` of ``trials``, each succeeding with probability ``limit``.
    """
    if not 0 <= successes <= trials or not 0 <= limit <= 1:
        raise ValueError(f"{successes} of {trials} against {limit}")
    if limit in (0.0, 1.0):
        return 1.0 if limit == 0.0 or successes == trials else 0.0
    lower = successes < trials / 2  # the tail with fewer terms
    counts = range(successes + 1) if lower else range(successes + 1, trials + 1)
    logs = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(limit)
        + (trials - k) * math.log(1 - limit)
        for k in counts
    )
    tail = math.fsum(math.exp(x) for x in logs)
    return min(1.0, max(0.0, tail if lower else 1.0 - tail))


SURE = 0.05
"""One-sided error of every verdict about a share or a mean: what is claimed would have been seen with 95 %."""


def unseen(rows: int) -> float:
    """The share of all rows that may be unlike each of ``rows`` that were looked at: so many of another kind would have
    been seen with 95 % (the rule of three: about 3 / rows)."""
    return 1.0 - math.pow(SURE, 1.0 / rows) if rows > 0 else 1.0


def would_be_seen(losses: int, rows: int, share: float) -> bool:
    """Whether more than ``losses`` of ``rows`` would have been lost with 95 %, had the true share been ``share``."""
    if share <= 0:
        return False
    return share_below(losses, rows, min(share, 1.0)) <= SURE


_MOST_ROWS = 1_000_000
"""Beyond that nobody is helped by a number."""


def rows_to_see(lost: float, share: float) -> int | None:
    """The fewest rows on which a loss of ``share`` would be seen while they go on being ``lost`` at that lower share;
    ``None`` where that takes more than a million."""
    if not lost < share:
        return None

    def enough(rows: int) -> bool:
        return would_be_seen(math.ceil(lost * rows - 1e-9), rows, share)

    high = 1
    while not enough(high):
        high *= 2
        if high > _MOST_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


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


def jackknife(parts: Sequence[float], whole: float) -> Interval:
    """90 % interval of a statistic of a whole set from its values with one of ``parts`` groups left out each time.

    The delete-a-group jackknife (Efron & Tibshirani 1993, ch. 11; Kott 2001), for metrics that are no mean.
    """
    groups = len(parts)
    if groups < 2:
        raise ValueError("a jackknife needs at least two groups")
    middle = math.fsum(parts) / groups
    error = math.sqrt((groups - 1) / groups * math.fsum((p - middle) ** 2 for p in parts))
    half = student(1 - SURE, groups - 1) * error
    return Interval(low=whole - half, high=whole + half, confidence=0.9, method="jackknife over groups")


def _resampled_means(values: Array, resamples: int) -> Array:
    import numpy as np

    generator = np.random.default_rng(0)
    means = np.empty(resamples)
    for i in range(resamples):  # one resample in memory at a time
        means[i] = values[generator.integers(0, values.size, values.size)].mean()
    return means


# --- latencies: samples within processes --------------------------------------------------------------

_P99_NEEDS = 1000
"""Samples below which a 99th percentile would rest on fewer than ten of them."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Quantiles of a mixture in which every process weighs the same; in the samples' unit.

    ``cv`` is the coefficient of variation of the processes' medians; ``outliers`` counts samples beyond
    five MADs of their own process's median (flagged, never dropped).
    """

    p50: float
    p90: float
    p99: float | None
    mad: float
    cv: float
    outliers: int
    interval: Interval


def summarize(samples: Sequence[Sequence[float]]) -> Summary:
    """Summary of raw samples, one sequence a process; every process needs at least one."""
    import numpy as np

    processes = [np.sort(np.asarray(p, dtype=np.float64)) for p in samples]
    if not processes or any(not p.size for p in processes):
        raise ValueError("every process needs at least one sample")
    values = np.concatenate(processes)
    weights = np.concatenate([np.full(p.size, 1 / p.size) for p in processes])
    p50 = _quantile(values, weights, 0.5)
    medians = np.array([np.median(p) for p in processes])
    spread = float(medians.std(ddof=1) / medians.mean()) if medians.size > 1 and medians.mean() > 0 else 0.0
    return Summary(
        p50=p50,
        p90=_quantile(values, weights, 0.9),
        p99=_quantile(values, weights, 0.99) if values.size >= _P99_NEEDS else None,
        mad=_quantile(np.abs(values - p50), weights, 0.5),
        cv=spread,
        outliers=sum(_outliers(p) for p in processes),
        interval=median_interval(processes),
    )


def _quantile(values: Array, weights: Array, q: float) -> float:
    """The smallest value with at least ``q`` of the weight at or below it, halfway on a tie."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    target = q * cumulative[-1]
    tolerance = 1e-9 * cumulative[-1]
    low = min(int(np.searchsorted(cumulative, target - tolerance)), values.size - 1)
    high = min(int(np.searchsorted(cumulative, target + tolerance)), values.size - 1)
    return float((values[order[low]] + values[order[high]]) / 2)


def _outliers(process: Array) -> int:
    import numpy as np

    deviations = np.abs(process - np.median(process))
    return int((deviations > 5 * max(float(np.median(deviations)), 1e-12)).sum())


def median_interval(processes: Sequence[Array], *, resamples: int = 2000) -> Interval:
    """95 % interval of the median of process medians: processes resampled, then samples within them.

    The hierarchical bootstrap (Davison & Hinkley 1997, section 3.8; Kalibera & Jones 2013 for
    benchmarks): resampling within one process would miss what differs from process to process.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    ordered = [np.sort(np.asarray(p, dtype=np.float64)) for p in processes]
    chosen = generator.integers(0, len(ordered), (resamples, len(ordered)))
    medians = np.empty_like(chosen, dtype=np.float64)
    for index, process in enumerate(ordered):
        where = chosen == index
        medians[where] = bootstrap_medians(process, int(where.sum()), generator)
    low, high = np.quantile(np.median(medians, axis=1), [0.025, 0.975])
    return Interval(low=float(low), high=float(high), confidence=0.95, method="hierarchical bootstrap")


def bootstrap_medians(ordered: Array, count: int, generator: object) -> Array:
    """Medians of ``count`` bootstrap resamples of sorted values, without drawing the resamples.

    The m-th of n uniform order statistics is Beta(m, n - m + 1) distributed, so the resample's median is
    the value at that fraction of the sorted sample. For even n the upper middle one is taken.
    """
    import numpy as np

    assert isinstance(generator, np.random.Generator)
    n = ordered.size
    middle = n // 2 + 1
    positions = generator.beta(middle, n - middle + 1, count)
    return np.asarray(ordered[np.minimum((positions * n).astype(np.int64), n - 1)])


# --- A against B --------------------------------------------------------------------------------------

SIGNIFICANCE = 0.02
"""Two-sided error of an A/B verdict: 100 comparisons of equals give 2 false verdicts on average."""

RELEVANT = 0.01
"""A smaller relative change is no verdict, however sure: below it where code and data come to lie in memory decides
(Mytkowicz et al., ASPLOS 2009). Of 100 comparisons of one artifact with itself on a loaded machine 6 were sure of a
change, of 0.3 to 0.8 %."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Whether B is faster than A. ``ratio`` is B's latency over A's; ``p_value`` is the signed-rank test's.

    ``detectable`` is the smallest relative change that this comparison finds with 80 % power, at least
    :data:`RELEVANT`.
    """

    verdict: str
    ratio: float
    interval: Interval
    p_value: float
    detectable: float


def in_times(ratio: float) -> str:
    """A ratio of latencies in words: 0.15 as ``6.7× as fast``, 2.0 as ``2.0× as slow``."""
    times, word = (ratio, "slow") if ratio >= 1 else (1 / ratio, "fast")
    return f"{times:.{2 if times < 2 else 1 if times < 10 else 0}f}× as {word}"


def interleave(pairs: int) -> str:
    """The order of fresh processes: ABBA BAAB ABBA …, so that drift hits both variants alike."""
    block = "ABBABAAB"
    return (block * (pairs // 4 + 1))[: 2 * pairs]


def paired_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    """A verdict from processes run in :func:`interleave`'s order, the k-th of A beside the k-th of B.

    Of log(median B / median A) over the pairs, the signed-rank statistic (Wilcoxon 1945) decides and the
    Hodges-Lehmann estimator (1963; the median of all means of two) tells the ratio: on a busy machine a process
    that was kept waiting is far off, and a mean would follow it. The p-value is exact up to 16 pairs (all sign
    flips), of 65,536 random flips beyond. The interval is a hierarchical bootstrap: pairs, then samples within.
    """
    import numpy as np

    if len(first) != len(second) or len(first) < 2:
        raise ValueError("an A/B comparison needs the same number of processes on both sides, at least 2")
    logs = np.array([math.log(np.median(b) / np.median(a)) for a, b in zip(first, second, strict=True)])
    p_value = _sign_flip(np.sign(logs) * _ranks(np.abs(logs)))
    ratio = math.exp(float(hodges_lehmann(logs[None, :])[0]))
    verdict = "no detectable difference"
    if p_value < SIGNIFICANCE and abs(math.log(ratio)) >= math.log1p(RELEVANT):
        verdict = "faster" if ratio < 1 else "slower"
    n, interval = logs.size, _ratio_interval(first, second)
    # The bootstrap's own spread, which is too small by (n - 1) / n.
    spread = math.log(interval.high / interval.low) / (2 * NormalDist().inv_cdf(0.975))
    error = spread * math.sqrt(n / (n - 1))
    detectable = (student(1 - SIGNIFICANCE / 2, n - 1) + student(0.8, n - 1)) * error
    return Difference(
        verdict=verdict,
        ratio=ratio,
        interval=interval,
        p_value=p_value,
        detectable=max(math.expm1(min(detectable, 20.0)), RELEVANT),
    )


def _ranks(values: Array) -> Array:
    """Ranks from 1 on; equals share the mean of theirs."""
    import numpy as np

    ordered = np.sort(values)
    low, high = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return np.asarray((low + high + 1) / 2)


def hodges_lehmann(rows: Array) -> Array:
    """The median of the means of every two values (each with itself too), row by row."""
    import numpy as np

    i, j = np.triu_indices(rows.shape[1])
    found = np.empty(rows.shape[0])
    step = max(1, 1_000_000 // i.size)
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        found[start : start + step] = np.median((part[:, i] + part[:, j]) / 2, axis=1)
    return found


def _sign_flip(values: Array) -> float:
    import numpy as np

    n = values.size
    if n <= 16:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, (65_536, n))
        bits[0] = 0
    sums = np.abs((values * (1 - 2 * bits)).sum(axis=1))
    return float((sums >= abs(values.sum()) * (1 - 1e-12)).mean())


def _ratio_interval(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Interval:
    import numpy as np

    generator, resamples, pairs = np.random.default_rng(0), 2000, len(first)
    chosen = generator.integers(0, pairs, (resamples, pairs))
    logs = np.empty_like(chosen, dtype=np.float64)
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        where = chosen == index
        count = int(where.sum())
        below = bootstrap_medians(np.sort(np.asarray(a, dtype=np.float64)), count, generator)
        above = bootstrap_medians(np.sort(np.asarray(b, dtype=np.float64)), count, generator)
        logs[where] = np.log(above / below)
    low, high = np.exp(np.quantile(hodges_lehmann(logs), [0.025, 0.975]))
    return Interval(
        low=float(low), high=float(high), confidence=0.95, method="hierarchical bootstrap of pairs"
    )


def student(probability: float, degrees: int) -> float:
    """Quantile of Student's t (Cornish-Fisher expansion, Abramowitz & Stegun 26.7.5; exact for 1 and 2)."""
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / degrees ** (k + 1) for k, term in enumerate(terms)))
