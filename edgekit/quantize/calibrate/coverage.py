"""Coverage: what of the evaluation data, and of every activation on it, lies outside the calibrated ranges.

Few values lie outside whatever the data: two samples of one distribution do not have the same extremes. What counts is
how far they lie outside, and in how many samples: a class that calibration never saw makes a few per mille of the
values, and these many times as large. So values outside are weighed by the square of their distance from the range
(the smallest and the largest value that calibration saw: what a range method clips on purpose is not meant), against
the activation's variance:

    uncovered = mean(distance²) / variance

once over all samples, and once as what the worst samples have: one in twenty has more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import observed
from edgekit.quantize.calibrate.profile import MASK
from edgekit.quantize.calibrate.taps import tap
from edgekit.types import Coverage, OnnxModel, Samples

CAP = 8192
"""Values of a tensor that are looked at, a sample."""
QUANTILE = 0.95
_TINY = 1e-30


@dataclass
class _Tally:
    """Sums over the samples of one tensor."""

    count: int = 0
    outside: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    excess: list[float] = field(default_factory=list)

    def add(self, values: npt.NDArray[np.float32], low: float, high: float) -> None:
        """One sample's values, against the calibrated range."""
        values = values[values >= MASK].astype(np.float64)
        if not values.size:
            return
        distance = np.maximum(low - values, 0.0) + np.maximum(values - high, 0.0)
        self.count += values.size
        self.outside += int(np.count_nonzero(distance))
        self.total += float(values.sum())
        self.squares += float((values * values).sum())
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.excess.append(float((distance * distance).mean()))

    def summary(self, tensor: str, low: float, high: float) -> Coverage:
        """The tensor's figures."""
        mean = self.total / max(self.count, 1)
        variance = max(self.squares / max(self.count, 1) - mean * mean, _TINY)
        worst = sorted(self.excess)[int(QUANTILE * len(self.excess))] if self.excess else 0.0
        pooled = sum(self.excess) / max(len(self.excess), 1)
        return Coverage(
            tensor=tensor,
            samples=len(self.excess),
            outside=self.outside / max(self.count, 1),
            uncovered=min(max(worst, pooled) / variance, 1.0),
            low=low,
            high=high,
            seen_low=self.low,
            seen_high=self.high,
        )


def coverage(model: OnnxModel, samples: Samples, calibration: Calibration) -> tuple[Coverage, ...]:
    """The activations of ``model`` on ``samples`` that leave what ``calibration`` saw, the worst first.

    Raises :class:`DataError` as :func:`~edgekit.quantize.calibrate.collect.calibrate` does.
    """
    tapped = tap(model, CAP)
    ranges = {t.tensor: calibration.statistics(t.tensor) for t in tapped.taps if t.tensor in calibration}
    # What a mask adds up with is told apart from it nowhere: such tensors have no range to speak of.
    ranges = {name: statistics for name, statistics in ranges.items() if not statistics.masked}
    tallies = {name: _Tally() for name in ranges}
    for run in observed(model, samples, tapped, CAP):
        for t, values in zip(tapped.taps, run["samples"], strict=True):
            if t.tensor in tallies:
                tallies[t.tensor].add(values, ranges[t.tensor].low, ranges[t.tensor].high)
    found = [tally.summary(name, ranges[name].low, ranges[name].high) for name, tally in tallies.items()]
    return tuple(sorted(found, key=lambda c: -c.uncovered))
