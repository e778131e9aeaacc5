"""Explained variance by slice: what an artifact loses of each channel and column, not of the tensor as a whole.

One energy ratio over a tensor hides what users notice: an offset of 1013 hPa, scores beside boxes in pixels, one
dead channel among many. Here each index along each axis that can carry meaning is a *slice*; over all samples and
the other axes it has a variance (its mean removed) and an error, and

    explained = 1 - mean((a - r)²) / var(r)

(the coefficient of determination: an offset of the artifact counts as error). A slice's variance has a floor below
which nothing is asked of it: what float32 can resolve of it, and a hundredth of its peers' variance, peers being
slices whose spreads lie within a factor of ten of each other. Scores are no peers of pixels, so the floor of
pixels does not excuse a lost score; a class that never appears among many that do is excused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.types import Array

MOST = 1024
"""Axes longer than this are places (pixels, anchors, time), not channels."""

PEER_FACTOR = 10.0
PEER_FLOOR = 0.01
MANY = 8
FEWEST = 32
"""Fewer values say nothing of a variance."""
_TINY = 1e-300
FLOAT32_STEPS = 8.0
"""Rounding noise of a float32 reference, in units of its last place at the slice's largest value."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One index along one axis of one output. ``explained`` is in (-inf, 1]; 1 is perfect."""

    axis: int
    index: int
    explained: float
    variance: float


@dataclass
class _Axis:
    """Sums over everything but one axis; each array has one entry a slice."""

    count: float
    total: Array
    squares: Array
    errors: Array
    largest: Array


@dataclass
class SliceTally:
    """Streaming sums of one output; :meth:`add` takes one sample, :meth:`worst` judges."""

    axes: dict[int, _Axis] = field(default_factory=dict)
    rank: int = -1

    def add(self, reference: Array, output: Array) -> None:
        """One sample: float arrays of one shape, batch first where they have two axes or more."""
        if self.rank < 0:
            self.rank = reference.ndim
            self.axes = {k: _empty(1 if k < 0 else reference.shape[k]) for k in _axes_of(reference)}
        if reference.ndim != self.rank or not reference.size:
            return
        difference = output - reference
        squared, errors, magnitude = reference * reference, difference * difference, np.abs(reference)
        for axis, sums in list(self.axes.items()):
            size = reference.shape[axis] if axis >= 0 else 1
            if size != len(sums.total):
                del self.axes[axis]  # a dynamic dimension: its indices do not mean the same in two samples
                continue
            others = tuple(k for k in range(self.rank) if k != axis)
            sums.count += reference.size / size
            sums.total += reference.sum(axis=others)
            sums.squares += squared.sum(axis=others)
            sums.errors += errors.sum(axis=others)
            np.maximum(sums.largest, magnitude.max(axis=others), out=sums.largest)

    def worst(self) -> Slice | None:
        """The slice that lost most, or ``None`` where no slice carries any variance."""
        slices = [s for axis, sums in self.axes.items() for s in _slices(axis, sums)]
        return min(slices, key=lambda s: s.explained, default=None)


def _axes_of(reference: Array) -> list[int]:
    """The axes whose indices can mean different things; -1 for the tensor as a whole."""
    return [-1, *(k for k in range(1, reference.ndim) if 1 < reference.shape[k] <= MOST)]


def _empty(size: int) -> _Axis:
    return _Axis(0.0, *(np.zeros(size) for _ in range(4)))


def _slices(axis: int, sums: _Axis) -> list[Slice]:
    if sums.count < FEWEST:
        return []
    mean = sums.total / sums.count
    variance = np.maximum(sums.squares / sums.count - mean * mean, 0.0)
    error = sums.errors / sums.count
    rounding = (FLOAT32_STEPS * np.finfo(np.float32).eps * sums.largest) ** 2
    floor = np.maximum(rounding, PEER_FLOOR * peers(variance, rounding, mean))
    carries = variance > rounding
    # Rounding of a float32 reference is nobody's loss: an output of 1013 hPa has no more than 6e-5 of them.
    explained = 1.0 - np.maximum(error - rounding, 0.0) / np.maximum(np.maximum(variance, floor), _TINY)
    return [
        Slice(axis=axis, index=int(i), explained=float(explained[i]), variance=float(variance[i]))
        for i in np.flatnonzero(carries)
    ]


def peers(variance: Array, rounding: Array, means: Array) -> Array:
    """What each slice's variance is held against at least, ``[slices]``: the mean of its peers' variances.

    Peers are neighbours in order of spread, each within a factor of ten of the next. Where there are many of them they
    share a unit (class scores, features), and how they differ from each other counts as variance, too: a network that
    always names the same class has lost nothing when that stays so.
    """
    alive = np.flatnonzero(variance > rounding)
    result = np.zeros_like(variance)
    if not alive.size:
        return result
    order = alive[np.argsort(variance[alive])]
    spread = np.sqrt(variance[order])
    starts = np.flatnonzero(spread[1:] > PEER_FACTOR * spread[:-1]) + 1
    for group in np.split(order, starts):
        result[group] = variance[group].mean()
        if len(group) >= MANY:
            result[group] += means[group].var()
    return result
