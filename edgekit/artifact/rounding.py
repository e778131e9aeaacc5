"""The reference's own rounding: how far the source in float32 is from itself in float64.

No artifact can be asked to be closer to the float32 reference than that reference is to the truth: another order
of the same sums is as right. Where the distance is known, limits that ask for more give way to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.energy import decibels, row_snr
from edgekit.types import Parity, Rounding, Tolerance

if TYPE_CHECKING:
    from edgekit.types import Array

MARGIN_DB = 10.0
"""An artifact may have ten times the energy of the reference's own rounding: fused kernels round at other places."""

LEAST_DB = 50.0
"""Below this float32 and float64 are not one computation: the module does something else in float64, or overflows."""

_LARGEST_ERROR = 0.1
"""Of one value against the largest, where all together are rounding."""


def as_rounding(reference: Array, exact: Array | None) -> Array | None:
    """``exact`` where its distance from ``reference`` can be rounding, else ``None``.

    What a module that branches on the data type, or gives NaN, does in float64 must not widen any limit.
    """
    if exact is None or exact.size != reference.size or not np.isfinite(exact).all():
        return None
    wide = exact.reshape(reference.shape)
    with np.errstate(over="ignore"):  # an energy beyond float64 is no rounding, either
        signal, noise = float((wide * wide).sum()), float(((reference - wide) ** 2).sum())
    return wide if decibels(signal, noise) >= LEAST_DB else None


def can_be_rounding(claimed: Rounding) -> bool:
    """Whether figures that somebody claims are such as :func:`worst_rounding` gives."""
    return (
        claimed.snr_db >= LEAST_DB
        and 0 <= claimed.relative_error <= _LARGEST_ERROR
        and math.isfinite(claimed.sample_snr_db)
    )


@dataclass
class RoundingTally:
    """Sums over the samples of one output whose float64 values are known."""

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    largest_error: float = 0.0
    rows: list[float] = field(default_factory=list)

    def add(self, reference: Array, exact: Array) -> None:
        """One sample, ``[rows, values]`` each."""
        if not reference.size:
            return
        difference = reference - exact
        self.signal += float((exact * exact).sum())
        self.noise += float((difference * difference).sum())
        self.largest = max(self.largest, float(np.abs(exact).max()))
        self.largest_error = max(self.largest_error, float(np.abs(difference).max()))
        self.rows += row_snr(exact, reference)


def worst_rounding(tallies: Sequence[RoundingTally]) -> Rounding | None:
    """The worst output's; ``None`` where no float64 values are known."""
    known = [t for t in tallies if t.largest > 0]
    if not known:
        return None
    return Rounding(
        snr_db=min(decibels(t.signal, t.noise) for t in known),
        sample_snr_db=min((min(t.rows) for t in known if t.rows), default=0.0),
        relative_error=max(t.largest_error / t.largest for t in known),
    )


def beside_rounding(tolerance: Tolerance, parity: Parity | None) -> Tolerance:
    """The limits, none of which asks for more than the reference's own rounding allows. Slices have it in
    their own figures (see :mod:`edgekit.artifact.slices`)."""
    if parity is None or parity.rounding is None:
        return tolerance
    rounding, factor = parity.rounding, 10 ** (MARGIN_DB / 20)

    def least(limit: float | None, measured: float) -> float | None:
        return None if limit is None else min(limit, measured - MARGIN_DB)

    relative = tolerance.relative_error
    return replace(
        tolerance,
        snr_db=least(tolerance.snr_db, rounding.snr_db),
        explained=tolerance.slice_limit,
        sample_snr_db=least(tolerance.sample_limit, rounding.sample_snr_db),
        relative_error=None if relative is None else max(relative, factor * rounding.relative_error),
    )
