"""What the values of one input look like over a set of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
MASK = -1e30
"""Below it are what attention masks use for "never": finfo.min or -inf."""
_SMALLEST = 8  # pixels a side: smaller images have no texture to speak of


@dataclass(frozen=True, kw_only=True, eq=False)
class InputProfile:
    """Figures over all samples. ``zero``, ``constant`` and ``not_finite`` count samples.

    ``levels`` has each sample's mean and deviation, ``[n, 2]``. ``colours`` is :func:`_colours` of each sample, for
    (N, 3, H, W), ``grey`` counts those without colour. ``smoothness`` is the correlation of
    neighbours along the last axes, ``period`` how much more alike values are at a distance of as many places
    as there are channels than next to each other; both ``None`` where the input is no image. ``period_error`` is the
    standard error that ``period`` has on noise.
    """

    name: str
    samples: int
    real: bool
    not_finite: int = 0
    zero: int = 0
    constant: int = 0
    mean: float = 0.0
    deviation: float = 0.0
    rms: float = 0.0
    low: float = 0.0
    levels: Floats | None = None
    colours: Floats | None = None
    grey: int = 0
    smoothness: float | None = None
    period: float | None = None
    period_error: float = 0.0


def profile(name: str, arrays: Sequence[npt.NDArray[Any]]) -> InputProfile:
    """Profile one input."""
    real = bool(arrays) and all(a.size and np.issubdtype(a.dtype, np.floating) for a in arrays)
    if not real:
        return InputProfile(name=name, samples=len(arrays), real=False)
    broken = sum(bool(np.isnan(a).any() or np.isposinf(a).any()) for a in arrays)
    if broken:
        return InputProfile(name=name, samples=len(arrays), real=True, not_finite=broken)
    arrays = [
        np.where(a.astype(np.float64) < MASK, np.zeros_like(a), a) for a in arrays
    ]  # attention masks: "never" is no value
    moments = np.array([[a.mean(dtype=np.float64), np.square(a, dtype=np.float64).mean()] for a in arrays])
    mean, square = moments.mean(axis=0)
    image = all(a.ndim == 4 and min(a.shape[2:]) >= _SMALLEST for a in arrays)
    coloured = image and all(a.shape[1] == 3 for a in arrays)
    return InputProfile(
        name=name,
        samples=len(arrays),
        real=True,
        zero=sum(not a.any() for a in arrays),
        constant=sum(a.size > 1 and a.min() == a.max() for a in arrays),
        mean=float(mean),
        deviation=float(np.sqrt(max(square - mean**2, 0.0))),
        rms=float(np.sqrt(square)),
        low=float(min(a.min() for a in arrays)),
        levels=np.stack(
            [moments[:, 0], np.sqrt(np.maximum(moments[:, 1] - moments[:, 0] ** 2, 0.0))], axis=1
        ),
        colours=np.array([_colours(a) for a in arrays]) if coloured else None,
        grey=sum(_grey(a) for a in arrays) if coloured else 0,
        smoothness=float(np.median([_alike(a, 1) for a in arrays])) if image else None,
        period=float(np.median([_period(a) for a in arrays])) if image else None,
        period_error=_MEDIAN * float(np.mean([_period_error(a) for a in arrays])) / math.sqrt(len(arrays))
        if image
        else 0.0,
    )


def _colours(array: npt.NDArray[Any]) -> Floats:
    """Means and deviations of the outer channels' differences from the middle one, ``[4]``: no brightness."""
    channels = array.transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64)
    outer = channels[[0, 2]] - channels[1]
    return np.concatenate((outer.mean(axis=1), outer.std(axis=1)))


def _grey(array: npt.NDArray[Any]) -> bool:
    """Whether the three channels hold the same picture, each with a mean and deviation of its own."""
    channels = array.transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64)
    centred = channels - channels.mean(axis=1, keepdims=True)
    energy = np.square(centred).sum(axis=1)
    with_middle = (centred[[0, 2]] * centred[1]).sum(axis=1)
    return bool((np.square(with_middle) >= 0.9999 * energy[[0, 2]] * energy[1]).all())


def exchange(colours: Floats) -> Floats:
    """The colours of the same samples with the first and the last channel exchanged."""
    exchanged: Floats = colours[:, [1, 0, 3, 2]]
    return exchanged


def _period(array: npt.NDArray[Any]) -> float:
    channels = array.shape[1]
    if channels < 2 or channels >= array.shape[3]:
        return 0.0
    return _alike(array, channels) - _alike(array, 1)


def _period_error(array: npt.NDArray[Any]) -> float:
    """A correlation of ``n`` independent pairs scatters by ``1 / sqrt(n)``; this is of a difference of two."""
    channels, width = array.shape[1], array.shape[3]
    if channels < 2 or channels >= width:
        return 0.0
    rows = array.size / width
    return math.sqrt(1 / (rows * (width - channels)) + 1 / (rows * (width - 1)))


_MEDIAN = 1.25
"""How much more a median scatters than a mean."""


def _alike(array: npt.NDArray[Any], distance: int) -> float:
    """Correlation of values ``distance`` places apart along the last axis."""
    left, right = array[..., :-distance].ravel(), array[..., distance:].ravel()
    left, right = left - left.mean(dtype=np.float64), right - right.mean(dtype=np.float64)
    scale = float(np.sqrt(np.square(left).sum() * np.square(right).sum()))
    return float((left * right).sum()) / scale if scale > 0.0 else 1.0
