"""Explained variance by slice: what an artifact loses of each channel and column, not of the tensor as a whole.

One energy ratio over a tensor hides what users notice: an offset of 1013 hPa, scores beside boxes in pixels, one
dead channel among many. Here each index along each axis that can carry meaning is a *slice*; over all samples and
the other axes it has a variance (its mean removed) and an error, and

    explained = 1 - mean((a - r)²) / var(r)

(the coefficient of determination: an offset of the artifact counts as error). A slice's variance has a floor below
which nothing is asked of it: what float32 resolves beside the tensor's largest value, what float32 itself was measured
to lose against float64 (where that is known), and a hundredth of its peers' variance, peers being slices whose spreads
lie within a factor of ten of each other. Scores are no peers of pixels, so the floor of pixels does not excuse a lost
score; a class that never appears among many that do is excused, and so are a few dead columns among hundreds.

Rows of unit length are compared by their angle, to which each column adds a product: no column of an embedding means
anything by itself, and each is held against the mean variance of all of them. One that is lost is seen, one that says
little may lose it.

Noise for inputs says little of how an output varies: networks average it out, and what is left is smaller than what
any quantizer keeps. There (``noise=True``) a slice is held against the energy of its peers, and what is seen are dead,
misplaced and misscaled slices.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

MOST = 1024
"""Axes longer than this are places (pixels, anchors, time), not channels."""

_ROWS_AND_COLUMNS = ((2, 3), (1, 2))
"""Of pictures with their channels first and last."""


def places(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, tuple[int, int]]:
    """The rows and columns of outputs that are maps of a picture of any size, by the output's name: no index of theirs
    means anything, as it stands for another place in a larger picture."""
    found: dict[str, tuple[int, int]] = {}
    for rows, columns in _ROWS_AND_COLUMNS:
        channels = 1 if rows == 2 else 3
        if any(_is_map(s, rows, columns) and isinstance(s.shape[channels], int) for s in inputs):
            found |= {s.name: (rows, columns) for s in outputs if _is_map(s, rows, columns)}
    return found


def _is_map(spec: TensorSpec, rows: int, columns: int) -> bool:
    return len(spec.shape) == 4 and isinstance(spec.shape[rows], str) and isinstance(spec.shape[columns], str)


PEER_FACTOR = 10.0
PEER_FLOOR = 0.01
MANY = 8
HUNDREDS = 64
BETWEEN = 0.25
"""Of scores and features by the hundred, what tells them from each other counts by this share: where samples change
them by less, an artifact that keeps their order keeps what they say."""
FEW_AMONG = 32
"""A group of slices this many times smaller than the largest one has no unit of its own: it is a few dead columns."""
FEWEST = 16
"""Fewer values say nothing of a variance."""
_TINY = 1e-300
FLOAT32_STEPS = 8.0
"""Rounding noise of a float32 reference, in units of the last place of the slice's largest value. One unit of the
tensor's largest value is noise, too: channels are sums over all others, and what cancels leaves its rounding."""
NOISE_MARGIN = 10.0
"""How many times the energy that float32 was measured to lose is nobody's loss: the order of sums is free."""


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
    rounding: Array
    measured: float = 0.0


@dataclass
class SliceTally:
    """Streaming sums of one output; :meth:`add` takes one sample, :meth:`worst` judges. ``noise``: the inputs are.
    ``places``: axes along which no index means anything (see :func:`places`)."""

    noise: bool = False
    places: Collection[int] = ()
    axes: dict[int, _Axis] = field(default_factory=dict)
    rank: int = -1
    directions: bool = True
    """Whether all rows so far had unit length."""

    def add(self, reference: Array, output: Array, exact: Array | None = None) -> None:
        """One sample: float arrays of one shape, batch first where they have two axes or more. ``exact``: the
        reference in float64, where it is known."""
        if self.rank < 0:
            self.rank = reference.ndim
            self.axes = {
                k: _empty(1 if k < 0 else reference.shape[k])
                for k in _axes_of(reference)
                if k not in self.places
            }
        if reference.ndim != self.rank or not reference.size:
            return
        self.directions &= _unit_rows(reference)
        difference = output - reference
        squared, errors, magnitude = reference * reference, difference * difference, np.abs(reference)
        rounding = None if exact is None else (exact - reference) ** 2
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
            if rounding is not None:
                sums.measured += reference.size / size
                sums.rounding += rounding.sum(axis=others)

    def worst(self) -> Slice | None:
        """The slice that lost most, or ``None`` where no slice carries any variance."""
        slices = [
            s for axis, sums in self.axes.items() for s in _slices(axis, sums, self.noise, self.directions)
        ]
        return min(slices, key=lambda s: s.explained, default=None)


def _axes_of(reference: Array) -> list[int]:
    """The axes whose indices can mean different things; -1 for the tensor as a whole."""
    return [-1, *(k for k in range(1, reference.ndim) if 1 < reference.shape[k] <= MOST)]


def _empty(size: int) -> _Axis:
    return _Axis(0.0, np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size))


def _unit_rows(reference: Array) -> bool:
    """Whether these are embeddings, ``[rows, columns]``: of unit length, by the hundred, and no probabilities."""
    if reference.ndim != 2 or reference.shape[1] < HUNDREDS or not bool((reference < 0).any()):
        return False
    return bool(np.allclose(np.linalg.norm(reference, axis=1), 1.0, atol=1e-3))


def _slices(axis: int, sums: _Axis, noise: bool, directions: bool) -> list[Slice]:
    if sums.count < FEWEST:
        return []
    mean = sums.total / sums.count
    variance = np.maximum(sums.squares / sums.count - mean * mean, 0.0)
    error = sums.errors / sums.count
    steps = np.maximum(FLOAT32_STEPS * sums.largest, sums.largest.max())
    rounding = np.maximum(
        (np.finfo(np.float32).eps * steps) ** 2, NOISE_MARGIN * sums.rounding / max(sums.measured, 1.0)
    )
    floor = np.maximum(rounding, PEER_FLOOR * peers(variance, rounding, mean))
    if directions:
        floor = np.maximum(floor, variance.mean())
    if noise:
        floor = np.maximum(floor, _energy(variance, mean))
    carries = (variance > rounding) | (noise & (mean * mean > rounding))
    # Rounding of a float32 reference is nobody's loss: an output of 1013 hPa has no more than 6e-5 of them.
    explained = 1.0 - np.maximum(error - rounding, 0.0) / np.maximum(np.maximum(variance, floor), _TINY)
    return [
        Slice(axis=axis, index=int(i), explained=float(explained[i]), variance=float(variance[i]))
        for i in np.flatnonzero(carries)
    ]


def _energy(variance: Array, mean: Array) -> Array:
    """What each slice is held against where inputs are noise, ``[slices]``: its energy; among many slices the
    differences between them and within them."""
    if len(mean) >= MANY:
        return np.full_like(mean, variance.mean() + mean.var())
    energy: Array = variance + mean * mean
    return energy


def peers(variance: Array, rounding: Array, means: Array) -> Array:
    """What each slice's variance is held against at least, ``[slices]``: the mean of its peers' variances.

    Peers are neighbours in order of spread, each within a factor of ten of the next. Where there are many of them they
    share a unit (class scores, features), and how they differ from each other counts as variance, too: a network that
    always names the same class has lost nothing when that stays so. A few that vary less than hundreds of others do
    are dead columns, and held against those.
    """
    alive = np.flatnonzero(variance > rounding)
    result = np.zeros_like(variance)
    if not alive.size:
        return result
    order = alive[np.argsort(variance[alive])]
    spread = np.sqrt(variance[order])
    starts = np.flatnonzero(spread[1:] > PEER_FACTOR * spread[:-1]) + 1
    groups = np.split(order, starts)
    largest = max(groups, key=len)
    for group in groups:
        result[group] = _within(variance, means, group)
        if len(group) * FEW_AMONG <= len(largest):
            result[group] = np.maximum(result[group], _within(variance, means, largest))
    return result


def _within(variance: Array, means: Array, group: Array) -> float:
    found = float(variance[group].mean())
    if len(group) >= MANY:
        found += float(means[group].var())
    if len(group) >= HUNDREDS:
        found = max(found, BETWEEN / PEER_FLOOR * _between(means[group]))
    return found


def _between(means: Array) -> float:
    """The variance of most columns' means, by the median absolute deviation: a few outliers do not count."""
    return float((1.4826 * np.median(np.abs(means - np.median(means)))) ** 2)
