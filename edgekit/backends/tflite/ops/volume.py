"""Transposed convolutions over volumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32
from edgekit.backends.tflite.ops.window import pad
from edgekit.backends.tflite.view import View, channels_last


def conv_transpose_3d(
    g: Builder,
    x: View,
    parameters: tuple[View, View | None],
    steps: tuple[Sequence[int], Sequence[int]],
    group: int,
    margins: Sequence[tuple[int, int]],
) -> View:
    """CONV_3D_TRANSPOSE without padding, then ``margins`` cut off (negative ones: zeros and bias added).

    ``parameters`` are weights ``[I, O/group, D, H, W]`` and bias; dilation is spelled out in the kernel, groups
    as zeros in a dense one.
    """
    w, b = parameters
    strides, dilations = steps
    weights = g.known(w, "a transposed convolution over volumes with weights computed at run time")
    x = g.dequantize(x)  # there is no integer kernel
    kernel = _dense(weights, group, dilations)
    data = g.layout(x, channels_last(5))
    # [I, O, D, H, W] → [D, H, W, O, I]
    filters = g.constant(np.ascontiguousarray(kernel.transpose(2, 3, 4, 1, 0)))
    sizes = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], strides, kernel.shape[2:], strict=True)]
    shape = (x.shape[0], *sizes, kernel.shape[1])
    options = schema.Conv3DOptionsT(padding=schema.Padding.VALID)
    options.strideD, options.strideH, options.strideW = strides
    options.dilationDFactor = options.dilationHFactor = options.dilationWFactor = 1
    out = g.emit("CONV_3D_TRANSPOSE", [g.ints(shape), filters, data], shape, FLOAT32, options)
    # Padding is done here and not by the operator, whose SAME centres it otherwise.
    inner = [range(max(a, 0), n - max(z, 0)) for n, (a, z) in zip(sizes, margins, strict=True)]
    out = g.strided(out, [range(shape[0]), *inner, range(shape[-1])])
    out = pad(g, out, [(0, 0), *((max(-a, 0), max(-z, 0)) for a, z in margins), (0, 0)])
    if b is not None:
        out = g.binary("ADD", out, g.plain(g.dequantize(b)))
    return View(out if g.result is None else g.quantize(out, g.result), channels_last(5))


def _dense(w: np.ndarray, group: int, dilations: Sequence[int]) -> np.ndarray:
    inputs, per, *sizes = w.shape
    spread = [(k - 1) * d + 1 for k, d in zip(sizes, dilations, strict=True)]
    out = np.zeros((inputs, per * group, *spread), np.float32)
    taps = tuple(slice(None, None, d) for d in dilations)
    rows = inputs // group
    for i in range(group):
        out[(slice(i * rows, (i + 1) * rows), slice(i * per, (i + 1) * per), *taps)] = w[
            i * rows : (i + 1) * rows
        ]
    return out
