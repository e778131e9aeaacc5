"""Conv and ConvTranspose. Computed channels last; 1-D ones as 2-D with a height of 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT16, INT32, INT64, Quant, Tensor
from edgekit.backends.tflite.ops.volume import conv_transpose_3d
from edgekit.backends.tflite.ops.window import Window, WindowAttributes, crop, make_window, padded
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View, channels_last


@op("Conv", rule=Rule.FREE, quantized=("int8", "int16"), hybrid=(1,))
def conv(
    g: Builder,
    x: View,
    w: View,
    b: View | None = None,
    *,
    group: int = 1,
    **attributes: Unpack[WindowAttributes],
) -> View:
    """CONV_2D, DEPTHWISE_CONV_2D or CONV_3D; padding as SAME where it is that, else a PAD before."""
    window = make_window(x.shape[2:], attributes, w.shape[2:])
    if x.rank == 5:
        return _conv3d(g, x, w, b, window, group)
    if x.rank == 3:
        return _conv1d(g, x, w, b, window, group)
    if x.rank != 4:
        raise Refusal(f"a convolution over {x.rank - 2} axes")
    data = g.layout(x, channels_last(4))
    return View(convolve2d(g, data, w, b, window, group), channels_last(4))


def _conv1d(g: Builder, x: View, w: View, b: View | None, window: Window, group: int) -> View:
    """N, L, C as N, 1, L, C."""
    data = g.layout(x, channels_last(3))
    n, length, c = data.shape
    flat = Window((1, *window.kernel), (1, *window.strides), (1, *window.dilations), ((0, 0), *window.pads))
    weight = g.reshape_view(w, (w.shape[0], w.shape[1], 1, w.shape[2]))
    out = convolve2d(g, g.reshape(data, (n, 1, length, c)), weight, b, flat, group)
    return View(g.reshape(out, (n, out.shape[2], out.shape[3])), channels_last(3))


def convolve2d(g: Builder, x: Tensor, w: View, b: View | None, window: Window, group: int) -> Tensor:
    """A 2-D convolution of an NHWC tensor with ONNX weights ``[O, I/group, H, W]``."""
    channels, out_channels = x.shape[-1], w.shape[0]
    x, padding = padded(g, x, window)
    same = padding == schema.Padding.SAME
    sizes = (
        tuple(math.ceil(n / s) for n, s in zip(x.shape[1:3], window.strides, strict=True))
        if same
        else Window(window.kernel, window.strides, window.dilations, ((0, 0), (0, 0))).output(x.shape[1:3])
    )
    shape = (x.shape[0], *sizes, out_channels)
    kind = g.type_like(x)
    # Depthwise: TFLite has an operator of its own, with a multiplier of outputs a channel.
    if group == channels and group > 1 and w.shape[1] == 1:
        # [O, 1, H, W] → [1, H, W, O]
        weight = g.layout(w, (1, 2, 3, 0))
        options = schema.DepthwiseConv2DOptionsT(depthMultiplier=out_channels // channels)
        code = "DEPTHWISE_CONV_2D"
    else:
        if channels != group * w.shape[1]:
            raise Refusal(f"{channels} channels, {group} groups, weights of shape {w.shape}")
        weight = g.layout(w, (0, 2, 3, 1))
        options = schema.Conv2DOptionsT()
        code = "CONV_2D"
    options.padding = padding
    options.strideH, options.strideW = window.strides
    options.dilationHFactor, options.dilationWFactor = window.dilations
    bias = bias_tensor(g, b, x, weight, out_channels)
    return g.emit(code, [x, weight, bias], shape, kind, options)


def _conv3d(g: Builder, x: View, w: View, b: View | None, window: Window, group: int) -> View:
    """CONV_3D, which has no integer kernel; groups become one convolution each."""
    x, w, b = g.dequantize(x), g.dequantize(w), None if b is None else g.dequantize(b)
    data, padding = padded(g, g.layout(x, channels_last(5)), window)
    per = data.shape[-1] // group
    # [O, I, D, H, W] → [D, H, W, I, O]: CONV_3D wants its outputs last.
    filters = g.layout(w, (2, 3, 4, 1, 0))
    sizes = window.output(x.shape[2:])
    outs = []
    count = w.shape[0] // group
    for i in range(group):
        part = data if group == 1 else _channels(g, data, i * per, per)
        weight = filters if group == 1 else g.constant(_const(filters)[..., i * count : (i + 1) * count])
        bias = None if b is None else g.constant(_const(g.plain(b))[i * count : (i + 1) * count])
        options = schema.Conv3DOptionsT(padding=padding)
        options.strideD, options.strideH, options.strideW = window.strides
        options.dilationDFactor, options.dilationHFactor, options.dilationWFactor = window.dilations
        inputs = [part, weight] if bias is None else [part, weight, bias]
        outs.append(g.emit("CONV_3D", inputs, (data.shape[0], *sizes, count), options=options))
    out = g.concat(outs, 4)
    return View(out if g.result is None else g.quantize(out, g.result), channels_last(5))


@op("ConvTranspose", rule=Rule.FREE, quantized=("int8", "int16"), hybrid=(1,))
def conv_transpose(
    g: Builder,
    x: View,
    w: View,
    b: View | None = None,
    *,
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    **attributes: Unpack[WindowAttributes],
) -> View:
    """TRANSPOSE_CONV with VALID padding, then cropped (or padded) to what ONNX asks for."""
    n = x.rank - 2
    kernel = tuple(attributes.get("kernel_shape") or w.shape[2:])
    steps = tuple(attributes.get("strides") or (1,) * n)
    spread = tuple(attributes.get("dilations") or (1,) * n)
    pads, auto_pad = attributes.get("pads"), attributes.get("auto_pad", "NOTSET")
    extra = tuple(output_padding or (0,) * n)
    spans = zip(x.shape[2:], kernel, steps, spread, strict=True)
    full = [(size - 1) * s + (k - 1) * d + 1 for size, k, s, d in spans]
    margins = _transposed_margins(x.shape[2:], full, steps, extra, pads, output_shape, auto_pad)
    if n == 3:
        return conv_transpose_3d(g, x, (w, b), (steps, spread), group, margins)
    if n not in (1, 2):
        raise Refusal(f"a transposed convolution over {n} axes")
    data = g.layout(x, channels_last(x.rank))
    weight = w
    if n == 1:
        data = g.reshape(data, (data.shape[0], 1, *data.shape[1:]))
        weight = g.reshape_view(w, (w.shape[0], w.shape[1], 1, w.shape[2]))
        steps, spread, margins = (1, *steps), (1, *spread), [(0, 0), *margins]
    out = _transposed2d(g, data, weight, b, (steps, spread), group, margins)
    if n == 1:
        out = g.reshape(out, (out.shape[0], out.shape[2], out.shape[3]))
    return View(out, channels_last(x.rank))


def _transposed_margins(
    sizes: Sequence[int],
    full: Sequence[int],
    strides: Sequence[int],
    extra: Sequence[int],
    pads: Sequence[int] | None,
    output_shape: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """How much to cut off the full result, ``(before, after)`` an axis; negative: how much it is to grow."""
    n = len(sizes)
    if output_shape is None and not auto_pad.startswith("SAME"):
        both = tuple(pads or (0,) * (2 * n))
        return [(both[i], both[i + n] - extra[i]) for i in range(n)]
    target = list(output_shape[-n:]) if output_shape else [a * s for a, s in zip(sizes, strides, strict=True)]
    margins = []
    for i in range(n):
        total = full[i] + extra[i] - target[i]
        before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        margins.append((before, total - before - extra[i]))
    return margins


def _transposed2d(
    g: Builder,
    x: Tensor,
    w: View,
    b: View | None,
    steps: tuple[Sequence[int], Sequence[int]],
    group: int,
    margins: Sequence[tuple[int, int]],
) -> Tensor:
    """ONNX weights ``[I, O/group, H, W]``; dilation is spelled out in the kernel."""
    strides, dilation = steps
    if w.tensor.data is None and (group > 1 or tuple(dilation) != (1, 1)):
        raise Refusal("weights that are computed at run time, with groups or dilation")
    if any(a < 0 for a, _ in margins):
        raise Refusal("an output_shape beyond what the input reaches")
    # ONNX pads the output by less than a stride: beyond, no input reaches.
    if any(-z >= s for s, (_, z) in zip(strides, margins, strict=True)):
        raise Refusal("an output padding that is not smaller than the stride")
    weight = w if tuple(dilation) == (1, 1) else _dilated(g, w, dilation)
    per_in, per_out = x.shape[-1] // group, w.shape[1]
    padding, sizes, margins = _transposed_padding(x.shape[1:3], weight.shape[2:], strides, margins)
    kind = g.type_like(x)
    outs = []
    for i in range(group):
        part = x if group == 1 else _channels(g, x, i * per_in, per_in)
        # [I, O, H, W] → [O, H, W, I]
        filters = g.layout(weight if group == 1 else _rows(g, weight, i * per_in, per_in), (1, 2, 3, 0))
        bias = None if b is None else bias_tensor(g, b, x, filters, per_out, i * per_out)
        options = schema.TransposeConvOptionsT(padding=padding, strideH=strides[0], strideW=strides[1])
        shape = (x.shape[0], *sizes, per_out)
        inputs = [g.ints(shape), filters, part] if bias is None else [g.ints(shape), filters, part, bias]
        outs.append(g.emit("TRANSPOSE_CONV", inputs, shape, kind, options))
    out = g.concat(outs, 3)
    return crop(g, out, margins) if any(map(any, margins)) else out


def _transposed_padding(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], margins: Sequence[tuple[int, int]]
) -> tuple[int, list[int], list[tuple[int, int]]]:
    """TFLite's padding, the size that it computes, and what is left to cut off.

    SAME cuts ``kernel - stride`` off, the smaller half before. VALID cuts nothing; a negative margin (from
    output_padding) makes it compute a larger result, beyond the kernel's reach if need be.
    """
    spans = list(zip(sizes, kernel, strides, margins, strict=True))
    if all(k >= s and (a, z) == ((k - s) // 2, k - s - (k - s) // 2) for _, k, s, (a, z) in spans):
        return schema.Padding.SAME, [n * s for n, _, s, _ in spans], [(0, 0)] * len(spans)
    full = [(n - 1) * s + k + max(-z, 0) for n, k, s, (_, z) in spans]
    return schema.Padding.VALID, full, [(a, max(z, 0)) for a, z in margins]


def bias_tensor(g: Builder, b: View | None, x: Tensor, weight: Tensor, count: int, first: int = 0) -> Tensor:
    """The bias of a convolution or matrix product: zeros if there is none, int32 (int64 behind int16) with
    scale ``input * weight`` if the operator is quantized. ``first``/``count`` select a slice."""
    if x.quant is None or weight.quant is None:
        if b is None:
            return g.constant(np.zeros(count, FLOAT32))
        if b.const is None:
            return g.plain(b)
        return g.plain(b) if len(b.const) == count else g.constant(b.const[first : first + count])
    # Sums of int16 products need more than 32 bits (TFLite's specification).
    dtype = INT64 if x.dtype == INT16 else INT32
    scale = np.broadcast_to(
        weight.quant.scale * x.quant.scale, (count,) if weight.quant.per_channel else (1,)
    )
    quant = Quant(np.asarray(scale, np.float32), np.zeros(scale.size, np.int64), 0)
    if b is None:
        stored = np.zeros(count, dtype)
    elif b.tensor.data is not None and b.tensor.quant is not None and b.tensor.quant.same_as(quant):
        stored = b.tensor.data[first : first + count].astype(dtype)
    else:
        real = b.const
        if real is None:
            raise Refusal("a bias that is computed at run time, in a quantized operator")
        stored = quant.quantize(np.asarray(real, np.float64)[first : first + count], dtype)
    return g.constant(stored, dtype, quant)


def _const(x: Tensor) -> np.ndarray:
    if x.data is None:
        raise Refusal("weights that are computed at run time, with groups")
    return x.data


def _channels(g: Builder, x: Tensor, first: int, count: int) -> Tensor:
    return g.slice(x, [0] * (x.rank - 1) + [first], [*x.shape[:-1], count])


def _rows(g: Builder, w: View, first: int, count: int) -> View:
    data = _const(g.plain(w))[first : first + count]
    return View.of(Tensor(data.shape, data.dtype, w.tensor.name, data, w.tensor.quant))


def _dilated(g: Builder, w: View, dilation: Sequence[int]) -> View:
    """The kernel with zeros between its elements."""
    data = _const(g.plain(w))
    o, i, h, wd = data.shape
    dh, dw = dilation
    out = np.zeros((o, i, (h - 1) * dh + 1, (wd - 1) * dw + 1), data.dtype)
    out[:, :, ::dh, ::dw] = data
    return View.of(Tensor(out.shape, out.dtype, w.tensor.name, out, w.tensor.quant))
