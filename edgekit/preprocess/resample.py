"""Resizing of 8-bit images in integer arithmetic, the same bits in every language.

The algorithm is Pillow's (``src/libImaging/Resample.c``): separable, the filter's window scaled with the
reduction (antialiasing), coefficients computed in IEEE double and rounded once to 22-bit fixed point, the
horizontal pass always first, each pass rounded half up to 8 bits. With ``antialias`` the result equals
``PIL.Image.resize`` bit for bit, with two exceptions: Pillow 13 runs the vertical pass first when the
height shrinks by more than twice as many pixels as the width (one level of difference), and its nearest
accumulates a float step where this one is exact. The wrappers in ``targets/*/package`` state the same
algorithm in Java, TypeScript and C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.types import Array

PRECISION_BITS = 22
_AT_ONCE = 1 << 20
"""Values of a large picture that are worked on at a time: as doubles all of them would take gigabytes."""


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _triangle(x: float) -> float:
    x = abs(x)
    return 1.0 - x if x < 1.0 else 0.0


def _cubic(x: float) -> float:
    """Keys' cubic convolution with a = -0.5, in the order of operations that the wrappers use."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}
"""Window function and its support (half width in source pixels at scale 1)."""


def resize(image: Array, height: int, width: int, *, filter: str, antialias: bool) -> Array:
    """``image`` uint8 ``[H, W, C]`` as uint8 ``[height, width, C]``.

    ``filter`` is ``"nearest"`` or one of :data:`FILTERS`. Without ``antialias`` the window keeps its size
    of scale 1 when the image shrinks (half-pixel centres, edges renormalised).
    """
    if filter == "nearest":
        rows = _nearest(image.shape[0], height)
        return np.ascontiguousarray(image[rows][:, _nearest(image.shape[1], width)])
    # Horizontal first, as Pillow: each pass rounds to 8 bits, so that the order shows in the result.
    if image.shape[1] != width:
        image = _pass(image, width, 1, filter, antialias)
    if image.shape[0] != height:
        image = _pass(image, height, 0, filter, antialias)
    return np.ascontiguousarray(image)


def coefficients(source: int, target: int, filter: str, antialias: bool) -> list[tuple[int, list[int]]]:
    """For every target position the first source position and the fixed-point weights from there on."""
    window, support = FILTERS[filter]
    scale = source / target
    stretch = max(scale, 1.0) if antialias else 1.0
    support, shrink = support * stretch, 1.0 / stretch
    table = []
    for position in range(target):
        centre = (position + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), source)
        weights = [window((x + first - centre + 0.5) * shrink) for x in range(last - first)]
        total = 0.0
        # One by one and in this order: sum() and numpy add otherwise, and the last bit decides a rounding.
        for weight in weights:
            total += weight
        if total != 0.0:
            weights = [w / total for w in weights]
        table.append((first, [_fixed(w) for w in weights]))
    return table


def _fixed(weight: float) -> int:
    scaled = weight * (1 << PRECISION_BITS)
    return math.trunc(scaled - 0.5 if weight < 0 else scaled + 0.5)


def _pass(image: Array, target: int, axis: int, filter: str, antialias: bool) -> Array:
    moved = np.moveaxis(image, axis, 0)
    source, others, channels = moved.shape
    out = np.empty((target, others, channels), np.uint8)
    table = coefficients(source, target, filter, antialias)
    step = max(1, _AT_ONCE // (source * channels))
    for start in range(0, others, step):
        # Doubles hold these sums exactly, in whatever order they are added, and numpy multiplies them much faster.
        strip = moved[:, start : start + step].astype(np.float64, order="C")
        for position, (first, weights) in enumerate(table):
            window = strip[first : first + len(weights)].reshape(len(weights), strip[0].size)
            sums = np.asarray(weights, np.float64) @ window + (1 << (PRECISION_BITS - 1))
            pixels = np.clip(np.floor(sums / (1 << PRECISION_BITS)), 0, 255)
            out[position, start : start + step] = pixels.reshape(strip.shape[1:])
    return np.moveaxis(out, 0, axis)


def _nearest(source: int, target: int) -> Array:
    return (2 * np.arange(target, dtype=np.int64) + 1) * source // (2 * target)
