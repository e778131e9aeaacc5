"""Pools that TFLite's own cannot say: over volumes, dilated, with indices, of order p.

Maximum and sum over a box are taken along one axis after the other, each as a chain of MAXIMUM or ADD over
shifted, strided slices: kernel sizes add up instead of multiplying.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT64, Array, Tensor, integer_range
from edgekit.backends.tflite.ops.window import Window, WindowAttributes, make_window, pad
from edgekit.backends.tflite.registry import Refusal, op
from edgekit.backends.tflite.view import View, channels_last


def ceiling(sizes: Sequence[int], window: Window) -> Window:
    """The window with so much margin behind that rounding the output sizes up is what it gives."""
    pads = []
    spans = zip(sizes, window.kernel, window.strides, window.dilations, window.pads, strict=True)
    for n, k, s, d, (a, b) in spans:
        reach = (k - 1) * d + 1
        out = math.ceil((n + a + b - reach) / s) + 1
        if (out - 1) * s >= n + a:  # a window that would start in the margin behind does not exist
            out -= 1
        pads.append((a, max(b, (out - 1) * s + reach - n - a)))
    return Window(window.kernel, window.strides, window.dilations, tuple(pads))


def max_pool(g: Builder, x: View, window: Window) -> View:
    """The maxima; the margin holds the lowest number."""
    data = g.layout(x, channels_last(x.rank))
    sizes = window.output(x.shape[2:])
    padded = pad(g, data, [(0, 0), *window.pads, (0, 0)], _lowest(data))
    for axis in range(len(sizes)):
        parts = _slices(g, padded, axis, window, sizes[axis])
        options = schema.MaximumMinimumOptionsT
        padded = functools.reduce(lambda a, b: g.binary("MAXIMUM", a, b, options=options()), parts)
    return View(padded, channels_last(x.rank))


def max_pool_with_indices(g: Builder, x: View, window: Window, column_major: bool) -> list[View]:
    """The maxima and where they were in the flattened input; of equals the first."""
    data = g.layout(x, channels_last(x.rank))
    sizes = window.output(x.shape[2:])
    margins = [(0, 0), *window.pads, (0, 0)]
    values = pad(g, data, margins, _lowest(data))
    places = g.constant(np.pad(_positions(x.shape, column_major), margins, mode="edge"), np.int32)
    # The last axis first, so that of equals the first in memory is kept.
    for axis in reversed(range(len(sizes))):
        best, *others = _slices(g, values, axis, window, sizes[axis])
        where, *wheres = _slices(g, places, axis, window, sizes[axis])
        for other, place in zip(others, wheres, strict=True):
            above = g.compare("GREATER", other, best)
            where = g.select(above, place, where)
            best = g.binary("MAXIMUM", best, other)
        values, places = best, where
    order = channels_last(x.rank)
    return [View(values, order), View(g.cast(places, INT64), order)]


def average_pool(g: Builder, x: View, window: Window, asked: Window, include_pad: bool) -> View:
    """Sums times one over what ONNX counts; margins that only ceil mode added (beyond ``asked``) never count."""
    sizes = window.output(x.shape[2:])
    summed = _box_sum(g, g.layout(x, channels_last(x.rank)), window, sizes)
    counted = divisors(x.shape[2:], window, asked, sizes, include_pad)
    factor = g.constant((1.0 / counted)[None, ..., None].astype(np.float32))
    return View(g.binary("MUL", summed, factor), channels_last(x.rank))


@op("LpPool", since=1)
def lp_pool(
    g: Builder,
    x: View,
    *,
    ceil_mode: int = 0,
    p: float = 2,
    **attributes: Unpack[WindowAttributes],
) -> View:
    """(sum |x|^p)^(1/p)."""
    window = make_window(x.shape[2:], attributes)
    window = ceiling(x.shape[2:], window) if ceil_mode else window
    data = g.layout(x, channels_last(x.rank))
    summed = _box_sum(g, _power(g, data, float(p)), window, window.output(x.shape[2:]))
    return View(_root(g, summed, float(p)), channels_last(x.rank))


@op("GlobalLpPool", since=2)
def global_lp_pool(g: Builder, x: View, *, p: float = 2) -> View:
    """(sum |x|^p)^(1/p) over all spatial axes."""
    axes = [x.position(a) for a in range(2, x.rank)]
    summed = g.reduce("SUM", _power(g, x.tensor, float(p)), axes)
    return x.with_tensor(_root(g, summed, float(p)))


def divisors(
    sizes: Sequence[int], window: Window, asked: Window, out: Sequence[int], include_pad: bool
) -> Array:
    """How many elements ONNX divides by at each output position."""
    lines = []
    for i, (n, k, s, d) in enumerate(
        zip(sizes, window.kernel, window.strides, window.dilations, strict=True)
    ):
        before, after = asked.pads[i]
        low, high = (-before, n + after) if include_pad else (0, n)
        taps = np.arange(out[i])[:, None] * s - window.pads[i][0] + np.arange(k) * d
        lines.append(((taps >= low) & (taps < high)).sum(axis=1))
    return np.asarray(functools.reduce(np.multiply.outer, lines), np.float64)


def _box_sum(g: Builder, data: Tensor, window: Window, sizes: Sequence[int]) -> Tensor:
    data = pad(g, data, [(0, 0), *window.pads, (0, 0)])
    for axis in range(len(sizes)):
        parts = _slices(g, data, axis, window, sizes[axis])
        data = functools.reduce(lambda a, b: g.binary("ADD", a, b), parts)
    return data


def _slices(g: Builder, x: Tensor, axis: int, window: Window, count: int) -> list[Tensor]:
    """One slice a kernel element along spatial ``axis`` of a channels-last tensor."""
    out = []
    for j in range(window.kernel[axis]):
        first, step = j * window.dilations[axis], window.strides[axis]
        run = range(first, first + step * (count - 1) + 1, step)
        if x.data is not None:
            out.append(g.constant(np.ascontiguousarray(np.take(x.data, run, axis + 1))))
        else:
            out.append(g.part(x, axis + 1, run))
    return out


def _lowest(x: Tensor) -> float:
    if x.quant is not None:
        low, _ = integer_range(x.dtype)
        return float((low - x.quant.zero_point[0]) * x.quant.scale[0])
    if x.dtype == FLOAT32:
        return float(np.finfo(np.float32).min)
    return float(np.iinfo(x.dtype).min)


def _positions(shape: Sequence[int], column_major: bool) -> Array:
    """ONNX's flattened index of every element, laid channels last."""
    n, c, *spatial = shape
    inner = np.arange(math.prod(spatial))
    grid = inner.reshape(spatial, order="F" if column_major else "C")
    start = (np.arange(n * c) * math.prod(spatial)).reshape(n, c, *(1 for _ in spatial))
    return np.transpose(start + grid, channels_last(len(shape)))


def _power(g: Builder, x: Tensor, p: float) -> Tensor:
    if p == 2:
        return g.binary("MUL", x, x)
    magnitude = g.unary("ABS", x)
    return magnitude if p == 1 else g.binary("POW", magnitude, p)


def _root(g: Builder, x: Tensor, p: float) -> Tensor:
    if p <= 0:
        raise Refusal(f"a norm of order {p}")
    if p == 2:
        return g.unary("SQRT", x)
    return x if p == 1 else g.binary("POW", x, 1 / p)
