"""Histograms that merge exactly.

A bin is ``2**exponent`` wide and the grid is aligned to zero, so doubling the width joins pairs of bins
and never splits one. The exponent follows from the largest magnitude alone. Whatever the order of the
data, and however it was divided over histograms that were merged, the counts come out the same, bit for
bit. Range growth by powers of two is the idea; equal-width grids that start at the minimum do not have
this property.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 4096
"""Bins on either side of zero. The larger side of the data always fills more than half of its bins."""

_SMALLEST = -126  # exponents below this would make 1 / width overflow float32


@dataclass
class Histogram:
    """Counts on the grid ``[-SIDE, SIDE) * 2**exponent``; ``exponent`` is ``None`` while all data is zero."""

    exponent: int | None = None
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * SIDE, np.int64))

    def add(self, values: npt.NDArray[np.float32], *, largest: float | None = None) -> None:
        """Count float32 ``values`` (any shape, finite). ``largest``, max |value|, saves a pass if known."""
        if values.size == 0:
            return
        if largest is None:
            largest = float(max(values.max(), -values.min()))
        self.grow(largest)
        if self.exponent is None:
            self.counts[SIDE] += values.size
            return
        # Scaling by a power of two and floor are exact in float32; adding the offset in float would not be.
        flat = values.ravel()
        index = np.floor(flat * np.float32(2.0**-self.exponent)).astype(np.int64)
        if self.exponent > 0:  # only then can the product underflow to zero, and lose its sign
            index[(index == 0) & (flat < 0)] = -1
        index += SIDE
        self.counts += np.bincount(index, minlength=2 * SIDE)

    def grow(self, largest: float) -> None:
        """Make room for magnitudes up to ``largest``."""
        if largest == 0.0:
            return
        needed = max(math.frexp(largest)[1] - int(math.log2(SIDE)), _SMALLEST)
        if self.exponent is None:
            self.exponent = needed
        elif needed > self.exponent:
            self.counts = _join(self.counts, needed - self.exponent)
            self.exponent = needed

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts to this one's; ``other`` is not changed."""
        if other.exponent is None:
            self.counts[SIDE] += other.counts[SIDE]
            return
        if self.exponent is None:
            zeros = self.counts[SIDE]
            self.exponent, self.counts = other.exponent, other.counts.copy()
            self.counts[SIDE] += zeros
            return
        target = max(self.exponent, other.exponent)
        mine = _join(self.counts, target - self.exponent)
        self.counts, self.exponent = mine + _join(other.counts, target - other.exponent), target

    @property
    def width(self) -> float:
        """Width of a bin in the tensor's unit."""
        return 0.0 if self.exponent is None else 2.0**self.exponent

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    def bins(self, limit: int = 2 * SIDE) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Edges ``[n + 1]`` and counts ``[n]`` from the first to the last occupied bin, ``n <= limit``."""
        occupied = np.flatnonzero(self.counts)
        if self.exponent is None or occupied.size == 0:
            return np.zeros(1), np.zeros(0, np.int64)
        first, last = int(occupied[0]) - SIDE, int(occupied[-1]) - SIDE + 1
        shift = max(0, math.ceil(math.log2((last - first) / limit)))
        step = 1 << shift
        first, last = first // step * step, -(-last // step) * step
        padded = np.zeros(last - first, np.int64)
        low, high = max(first, -SIDE), min(last, SIDE)
        padded[low - first : high - first] = self.counts[low + SIDE : high + SIDE]
        edges = np.arange(first, last + 1, step, dtype=np.float64) * self.width
        return edges, padded.reshape(-1, step).sum(axis=1)


def _join(counts: npt.NDArray[np.int64], doublings: int) -> npt.NDArray[Any]:
    """The same counts on a grid whose bins are ``2**doublings`` times as wide."""
    if doublings == 0:
        return counts
    joined = np.zeros_like(counts)
    step = 1 << min(doublings, int(math.log2(SIDE)))
    half = SIDE // step
    # Beyond SIDE doublings everything is in the two bins beside zero, and stays there.
    joined[SIDE - half : SIDE + half] = counts.reshape(-1, step).sum(axis=1)
    return joined
