"""Integer operators of ONNX that are not Q/DQ: parameters that are computed at run time, or that come as inputs.

They are computed in float32, which is exact as long as the sums of products stay below 2^24.
"""

from __future__ import annotations

import math
from typing import Unpack

import numpy as np

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT32, DType, integer_range
from edgekit.backends.tflite.ops.convolution import conv
from edgekit.backends.tflite.ops.elementwise import broadcast
from edgekit.backends.tflite.ops.matmul import matmul
from edgekit.backends.tflite.ops.window import WindowAttributes
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View

_EXACT_BITS = 24


def quantized(g: Builder, x: View, scale: View, zero: View | None, dtype: DType, axis: int = 1) -> View:
    """round(x / scale) + zero, saturated to ``dtype``, as stored integers."""
    # Divided, not multiplied by 1 / scale: ONNX rounds the quotient, and ties would fall elsewhere.
    ratio = broadcast(g, "DIV", (x, _spread(g, g.as_type(scale, FLOAT32), x.rank, axis)))
    whole = ratio.with_tensor(g.unary("ROUND", ratio.tensor))
    if zero is not None:
        whole = broadcast(g, "ADD", (whole, _spread(g, g.as_type(zero, FLOAT32), x.rank, axis)))
    low, high = integer_range(dtype)
    return whole.with_tensor(g.cast(g.clamp(whole.tensor, low, high), dtype))


def dequantized(g: Builder, x: View, scale: View, zero: View | None, axis: int = 1) -> View:
    """(x - zero) * scale in float32."""
    centred = g.as_type(x, FLOAT32)
    if zero is not None:
        centred = broadcast(g, "SUB", (centred, _spread(g, g.as_type(zero, FLOAT32), x.rank, axis)))
    return broadcast(g, "MUL", (centred, _spread(g, g.as_type(scale, FLOAT32), x.rank, axis)))


def _spread(g: Builder, x: View, rank: int, axis: int) -> View:
    """A scalar as it is; one number a slice along ``axis`` in a shape that broadcasts; one an element."""
    if x.size == 1:
        return g.reshape_view(x, ())
    if x.rank == rank and rank > 1:
        return x
    axis %= rank
    return g.reshape_view(x, [x.size if i == axis else 1 for i in range(rank)])


def _exact(depth: int) -> None:
    # Products of two 8-bit numbers have 16 bits, the sum of n of them log2(n) more.
    if 16 + math.ceil(math.log2(max(depth, 1))) > _EXACT_BITS:
        raise Refusal(f"sums of {depth} products of 8-bit numbers: not exact in float32")


@op("QLinearMatMul", since=10, rule=Rule.ANY)
def qlinear_matmul(g: Builder, *inputs: View) -> View:
    """a, its scale and zero point, b with the same, those of the result."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
    left = dequantized(g, a, a_scale, a_zero, axis=-2)
    right = dequantized(g, b, b_scale, b_zero, axis=-1)
    return quantized(g, matmul(g, left, right), y_scale, y_zero, y_zero.dtype)


@op("QLinearConv", since=10, rule=Rule.ANY)
def qlinear_conv(
    g: Builder,
    *inputs: View,
    group: int = 1,
    **attributes: Unpack[WindowAttributes],
) -> View:
    """x, w with scales and zero points, those of the result, and perhaps an int32 bias."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = inputs[:8]
    data = dequantized(g, x, x_scale, x_zero)
    weight = dequantized(g, w, w_scale, w_zero, axis=0)
    out = conv(g, data, weight, None, group=group, **attributes)
    if len(inputs) > 8:
        factors = g.reshape_view(g.as_type(w_scale, FLOAT32), (w_scale.size,))
        step = broadcast(g, "MUL", (g.as_type(x_scale, FLOAT32), factors))
        bias = broadcast(g, "MUL", (g.as_type(inputs[8], FLOAT32), step))
        out = broadcast(g, "ADD", (out, _spread(g, bias, out.rank, 1)))
    return quantized(g, out, y_scale, y_zero, y_zero.dtype)


@op("ConvInteger", since=10, rule=Rule.ANY)
def conv_integer(
    g: Builder,
    x: View,
    w: View,
    x_zero: View | None = None,
    w_zero: View | None = None,
    *,
    group: int = 1,
    **attributes: Unpack[WindowAttributes],
) -> View:
    """int32 sums of 8-bit products."""
    _exact(math.prod(w.shape[1:]))
    one = View.of(g.constant(np.float32(1)))
    data, weight = dequantized(g, x, one, x_zero), dequantized(g, w, one, w_zero, axis=0)
    out = conv(g, data, weight, None, group=group, **attributes)
    return g.as_type(out, INT32)
