"""What float32 can tell of scores between 0 and 1: no more than the rounding of a number about 1.

Runtimes compute a sigmoid by 0.5 plus a quotient, or by one minus a complement, and round there: where the score is
1e-6 or 1e-5 ("nothing"), as right an answer is 1e-7 away, and relative distances measure that alone. PyTorch's own is
no excuse: it is exact there, in float32 as in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.types import Array

ROUNDING = 2.0**-22
"""Two roundings of a number about 1. ONNX Runtime's Sigmoid is up to 1.7e-7 from the truth."""
_LOW = 0.01
"""Above it so little is told by no limit: 93 dB."""
_SHARE = 0.1
"""Of the largest value, at most: what is that small throughout may be a quantity in another unit."""
_SUMS_TO_ONE = 1e-3


def without_rounding(expected: Array, got: Array) -> Array:
    """``got``, nearer to ``expected`` (float64, finite, of one shape) where a low score's rounding may be; as it is
    where ``expected`` holds none: values beyond 0 and 1, or a distribution, which is divided by its own sum."""
    if not expected.size or expected.shape != got.shape:
        return got
    largest = float(expected.max())
    if float(expected.min()) < 0 or largest > 1 or _distribution(expected):
        return got
    difference = got - expected
    left = np.maximum(np.abs(difference) - min(ROUNDING, _SHARE * largest), 0.0)
    return np.where(expected <= _LOW, expected + np.copysign(left, difference), got)


def _distribution(array: Array) -> bool:
    """Whether each row sums to 1 along the last axis, or the one of channels."""
    axes = {a for a in (1, array.ndim - 1) if 0 <= a < array.ndim and array.shape[a] > 1}
    return any(bool((np.abs(array.sum(axis=a) - 1) <= _SUMS_TO_ONE).all()) for a in axes)
