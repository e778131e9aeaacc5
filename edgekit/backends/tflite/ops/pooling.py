"""Pools. Computed channels last; what TFLite's pools cannot say (ceil mode, margins) is padded first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Unpack

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import Tensor
from edgekit.backends.tflite.ops import separable
from edgekit.backends.tflite.ops.window import Window, WindowAttributes, make_window, pad
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View, channels_last

_NOT_NEGATIVE = frozenset({"RELU", "RELU6", "RELU_0_TO_1", "LOGISTIC", "SOFTMAX"})


@op("MaxPool", rule=Rule.SAME)
def max_pool(
    g: Builder,
    x: View,
    *,
    ceil_mode: int = 0,
    storage_order: int = 0,
    **attributes: Unpack[WindowAttributes],
) -> View | list[View]:
    """MAX_POOL_2D; a margin that SAME cannot say is padded before."""
    declared = make_window(x.shape[2:], attributes)
    wide = separable.ceiling(x.shape[2:], declared) if ceil_mode else declared
    indices = g.node.outputs[1] if g.node is not None and len(g.node.outputs) > 1 else None
    if indices is not None and (indices.uses() or indices.is_graph_output()):
        return separable.max_pool_with_indices(g, x, wide, bool(storage_order))
    if any(d != 1 for d in declared.dilations) or x.rank > 4:
        return separable.max_pool(g, x, wide)
    data, window = _flattened(g, x, declared)
    window = separable.ceiling(data.shape[1:-1], window) if ceil_mode else window
    sizes = window.output(data.shape[1:-1])
    if window.is_same(data.shape[1:-1]):
        padding = schema.Padding.SAME
    else:
        data, padding = _margin(g, data, window)
    return _restored(g, x, _pool(g, "MAX_POOL_2D", data, window, padding, sizes))


@op("AveragePool", rule=Rule.SAME)
def average_pool(
    g: Builder,
    x: View,
    *,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    **attributes: Unpack[WindowAttributes],
) -> View:
    """AVERAGE_POOL_2D, which divides by the elements inside; other divisors are corrected by a product."""
    declared = make_window(x.shape[2:], attributes)
    if any(d != 1 for d in declared.dilations) or x.rank > 4:
        result, x = g.result, g.dequantize(x)
        wide = separable.ceiling(x.shape[2:], declared) if ceil_mode else declared
        average = separable.average_pool(g, x, wide, declared, bool(count_include_pad))
        return average if result is None else average.with_tensor(g.quantize(average.tensor, result))
    data, window = _flattened(g, x, declared)
    inner = data.shape[1:-1]
    stretched = separable.ceiling(data.shape[1:-1], window) if ceil_mode else window
    sizes = stretched.output(inner)
    if stretched.is_same(inner) and (not count_include_pad or not any(map(any, window.pads))):
        return _restored(g, x, _pool(g, "AVERAGE_POOL_2D", data, stretched, schema.Padding.SAME, sizes))
    data = pad(g, data, [(0, 0), *stretched.pads, (0, 0)])
    out = _pool(g, "AVERAGE_POOL_2D", data, window, schema.Padding.VALID, sizes)
    counted = separable.divisors(inner, window, window, sizes, bool(count_include_pad))
    # VALID divides by the whole window; ONNX by what it counts.
    factor = math.prod(window.kernel) / counted
    if not np.allclose(factor, 1.0):
        if out.quant is not None:
            raise Refusal("an average over a margin that does not count, in integers")
        out = g.binary("MUL", out, g.constant(factor[None, :, :, None].astype(np.float32)))
    return _restored(g, x, out)


def _global(code: str, g: Builder, x: View) -> View:
    """MEAN or REDUCE_MAX over the spatial axes."""
    axes = [x.position(a) for a in range(2, x.rank)]
    out = g.reduce(code, x.tensor, axes)
    if g.result is not None:
        # A mean is finer than its terms: the kernel rescales, so it may have a scale of its own.
        out.dtype, out.quant = g.result.dtype, g.result.quant
    return x.with_tensor(out)


op("GlobalAveragePool", rule=Rule.FREE)(partial(_global, "MEAN"))
op("GlobalMaxPool", rule=Rule.SAME)(partial(_global, "REDUCE_MAX"))


def _flattened(g: Builder, x: View, window: Window) -> tuple[Tensor, Window]:
    """Channels last with two spatial axes: a third one is pooled in a second step by the caller's refusal."""
    if x.rank == 4:
        return g.layout(x, channels_last(4)), window
    if x.rank == 3:
        data = g.layout(x, channels_last(3))
        flat = Window((1, *window.kernel), (1, *window.strides), (1, 1), ((0, 0), *window.pads))
        return g.reshape(data, (data.shape[0], 1, *data.shape[1:])), flat
    raise Refusal(f"a pool over {x.rank - 2} axes")


def _restored(g: Builder, x: View, out: Tensor) -> View:
    if x.rank == 3:
        out = g.reshape(out, (out.shape[0], *out.shape[2:]))
    return View(out, channels_last(x.rank))


def _pool(g: Builder, code: str, x: Tensor, window: Window, padding: int, sizes: Sequence[int]) -> Tensor:
    options = schema.Pool2DOptionsT(padding=padding)
    options.filterHeight, options.filterWidth = window.kernel
    options.strideH, options.strideW = window.strides
    return g.emit(code, [x], (x.shape[0], *sizes, x.shape[-1]), x, options)


def _margin(g: Builder, x: Tensor, window: Window) -> tuple[Tensor, int]:
    """Padding that never wins: zeros around what is not negative, else the border's own elements.

    A window that reaches into the margin also holds the border's element, so repeating it changes no
    maximum. (PADV2 with the lowest number would do, but the XNNPACK delegate lacks it.)
    """
    pads = [(0, 0), *window.pads, (0, 0)]
    producer = g.producer(x)
    lowest_is_zero = x.quant is not None and x.quant.zero_point[0] == np.iinfo(x.dtype).min
    if lowest_is_zero or (producer is not None and producer.code in _NOT_NEGATIVE):
        return pad(g, x, pads), schema.Padding.VALID
    for axis, (before, after) in enumerate(window.pads, start=1):
        first, last = range(1), range(x.shape[axis] - 1, x.shape[axis])
        head = [g.part(x, axis, first)] * before if before else []
        tail = [g.part(x, axis, last)] * after if after else []
        parts = [*head, x, *tail]
        x = g.concat(parts, axis)
    return x, schema.Padding.VALID
