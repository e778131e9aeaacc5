"""Reading images at computed positions: GridSample, AffineGrid, RoiAlign, DeformConv, MaxUnpool, Col2Im.

An image is a table of pixels (rows of channels); GATHER reads the neighbours of a position, whose weights are
elementwise arithmetic on the positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT32, Tensor
from edgekit.backends.tflite.ops.convolution import convolve2d
from edgekit.backends.tflite.ops.matmul import matmul
from edgekit.backends.tflite.ops.window import Window, WindowAttributes, crop, make_window, pad
from edgekit.backends.tflite.registry import Refusal, op
from edgekit.backends.tflite.view import View, channels_last


@op("AffineGrid", since=20)
def affine_grid(g: Builder, theta: View, size: View, *, align_corners: int = 0) -> View:
    """The base grid, known when compiling, times the matrices."""
    n, _, *spatial = (int(d) for d in g.known(size, "a size that is computed at run time"))
    axes = []
    for d in spatial:
        line = np.linspace(-1, 1, d) if align_corners and d > 1 else (np.arange(d) * 2 + 1) / d - 1
        axes.append(np.zeros(1) if align_corners and d == 1 else line)
    mesh = np.meshgrid(*axes, indexing="ij")
    points = np.stack([*(m.reshape(-1) for m in reversed(mesh)), np.ones(math.prod(spatial))], axis=1)
    base = View.of(g.constant(np.broadcast_to(points.astype(np.float32), (n, *points.shape)).copy()))
    moved = matmul(g, base, g.transpose_view(theta, (0, 2, 1)))
    return g.reshape_view(moved, (n, *spatial, len(spatial)))


@op("GridSample", since=16)
def grid_sample(
    g: Builder,
    x: View,
    grid: View,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> View:
    """Linear, nearest and cubic sampling of images and volumes."""
    spatial = x.shape[2:]
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    table = _pixels(g, x)
    points = g.plain(grid)
    position = [
        _unnormalized(g, _component(g, points, len(spatial) - 1 - i), size, bool(align_corners))
        for i, size in enumerate(spatial)
    ]
    # Cubic taps reach beyond the image by themselves: PyTorch bounds each of them, not the position between them.
    if mode == "cubic":
        pass
    elif padding_mode == "border":
        position = [g.clamp(p, 0, size - 1) for p, size in zip(position, spatial, strict=True)]
    elif padding_mode == "reflection":
        position = [
            _reflected(g, p, size, bool(align_corners)) for p, size in zip(position, spatial, strict=True)
        ]
    reflect = bool(align_corners) if padding_mode == "reflection" else None
    taps = [_taps(g, p, mode) for p in position]
    out = _weighted(g, table, taps, spatial, padding_mode == "zeros", reflect)
    return View(out, channels_last(x.rank))


def _taps(g: Builder, position: Tensor, mode: str) -> list[tuple[Tensor, Tensor | None]]:
    """(index as whole float numbers, weight) of the neighbours along one axis; weight None is one."""
    if mode == "nearest":
        return [(g.unary("ROUND", position), None)]
    low = g.unary("FLOOR", position)
    share = g.binary("SUB", position, low)
    if mode == "linear":
        return [(low, g.subtract_from(1.0, share)), (g.binary("ADD", low, 1.0), share)]
    if mode != "cubic":
        raise Refusal(f"sampling mode {mode}")
    offsets = (-1.0, 0.0, 1.0, 2.0)
    return [(g.binary("ADD", low, o), w) for o, w in zip(offsets, _cubic_weights(g, share), strict=True)]


def _cubic_weights(g: Builder, t: Tensor, a: float = -0.75) -> list[Tensor]:
    """Keys 1981, at distances 1 + t, t, 1 - t, 2 - t."""

    def polynomial(d: Tensor, coefficients: Sequence[float]) -> Tensor:
        value = g.binary("MUL", d, coefficients[0])
        for c in coefficients[1:-1]:
            value = g.binary("MUL", g.binary("ADD", value, c), d)
        return g.binary("ADD", value, coefficients[-1])

    near, far = (a + 2, -(a + 3), 0.0, 1.0), (a, -5 * a, 8 * a, -4 * a)
    back = g.subtract_from(1.0, t)
    return [
        polynomial(g.binary("ADD", t, 1.0), far),
        polynomial(t, near),
        polynomial(back, near),
        polynomial(g.binary("ADD", back, 1.0), far),
    ]


def _weighted(
    g: Builder,
    table: Tensor,
    taps: Sequence[Sequence[tuple[Tensor, Tensor | None]]],
    sizes: Sequence[int],
    zeros: bool,
    reflect: bool | None,
) -> Tensor:
    """The sum over all combinations of neighbours; outside the image they count zero or lie on its edge."""
    total: Tensor | None = None
    for corner in itertools.product(*taps):
        row: Tensor | None = None
        weight: Tensor | None = None
        for (index, share), size in zip(corner, sizes, strict=True):
            if reflect is not None:
                index = _reflected(g, index, size, reflect)
            inside = _inside(g, index, size) if zeros else None
            weight = _product(g, _product(g, weight, share), inside)
            place = g.cast(g.clamp(index, 0, size - 1), INT32)
            row = place if row is None else g.binary("ADD", g.binary("MUL", row, size), place)
        assert row is not None
        value = _read(g, table, row, math.prod(sizes))
        if weight is not None:
            value = g.binary("MUL", value, g.reshape(weight, (*weight.shape, 1)))
        total = value if total is None else g.binary("ADD", total, value)
    assert total is not None
    return total


def _read(g: Builder, table: Tensor, row: Tensor, pixels: int) -> Tensor:
    """``table [N·pixels, C]`` at ``row [N, …]`` (numbers within each image) → ``[N, …, C]``."""
    batch = row.shape[0]
    if batch > 1:
        start = (np.arange(batch, dtype=np.int32) * pixels).reshape(-1, *(1 for _ in row.shape[1:]))
        row = g.binary("ADD", row, g.constant(start))
    (*row.shape, table.shape[1])
    return g.gather(table, row)


def _pixels(g: Builder, x: View) -> Tensor:
    data = g.layout(x, channels_last(x.rank))
    return g.reshape(data, (math.prod(data.shape[:-1]), data.shape[-1]))


def _component(g: Builder, points: Tensor, index: int) -> Tensor:
    begin = [0] * (points.rank - 1) + [index]
    size = [*points.shape[:-1], 1]
    part = g.slice(points, begin, size)
    return g.reshape(part, size[:-1])


def _unnormalized(g: Builder, x: Tensor, size: int, align: bool) -> Tensor:
    """-1 … 1 to pixels."""
    scale, shift = ((size - 1) / 2, (size - 1) / 2) if align else (size / 2, (size - 1) / 2)
    return g.binary("ADD", g.binary("MUL", x, scale), shift)


def _reflected(g: Builder, x: Tensor, size: int, align: bool) -> Tensor:
    """Folded back at the borders, which are pixel centres or pixel edges."""
    low, span = (0.0, float(size - 1)) if align else (-0.5, float(size))
    if span == 0:
        return g.binary("MUL", x, 0.0)
    moved = g.binary("SUB", x, low)
    phase = g.binary("FLOOR_MOD", moved, 2 * span)
    # A triangle: span - |phase - span|.
    distance = g.unary("ABS", g.binary("SUB", phase, span))
    folded = g.emit(
        "SUB", [g.constant(np.float32(span + low)), distance], x.shape, FLOAT32, schema.SubOptionsT()
    )
    return g.clamp(folded, 0, size - 1)


def _inside(g: Builder, index: Tensor, size: int) -> Tensor:
    """1.0 where the index is in the image."""
    return g.cast(g.compare("EQUAL", g.clamp(index, 0, size - 1), index), FLOAT32)


def _product(g: Builder, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return g.binary("MUL", a, b)


# --- regions ----------------------------------------------------------------------------------------


@op("RoiAlign", since=10)
def roi_align_10(
    g: Builder,
    x: View,
    rois: View,
    batch: View,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> View:
    """Corners of regions at pixel corners."""
    out = (output_height, output_width)
    return _roi_align(g, (x, rois, batch), mode, out, sampling_ratio, (spatial_scale, 0.0))


@op("RoiAlign", since=16)
def roi_align(
    g: Builder,
    x: View,
    rois: View,
    batch: View,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> View:
    """Average or maximum of bilinear samples in every bin."""
    shift = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    out = (output_height, output_width)
    return _roi_align(g, (x, rois, batch), mode, out, sampling_ratio, (spatial_scale, shift))


def _roi_align(
    g: Builder,
    given: tuple[View, View, View],
    mode: str,
    out: tuple[int, int],
    ratio: int,
    transform: tuple[float, float],
) -> View:
    x, rois, batch = given
    # 0 asks for as many samples as a bin has pixels, which depends on the region.
    if ratio <= 0:
        raise Refusal("a number of samples that depends on each region's size")
    if mode not in ("avg", "max"):
        raise Refusal(f"mode {mode}")
    corners = g.plain(rois)
    scale, shift = transform
    scaled = g.binary("SUB", g.binary("MUL", corners, scale), shift)
    count, channels = corners.shape[0], x.shape[1]
    lines = []
    for first, bins in ((1, out[0]), (0, out[1])):
        start, end = _component(g, scaled, first), _component(g, scaled, first + 2)
        length = g.binary("SUB", end, start)
        if shift == 0.0:
            length = g.binary("MAXIMUM", length, 1.0)
        steps = ((np.arange(bins * ratio) + 0.5) / (bins * ratio)).astype(np.float32)
        span = g.binary("MUL", g.reshape(length, (count, 1)), g.constant(steps[None]))
        lines.append(g.binary("ADD", span, g.reshape(start, (count, 1))))
    samples = _roi_samples(g, x, lines, g.cast(g.plain(batch), INT32), mode == "max")
    if mode == "max":
        split = g.reshape(samples, (count * out[0], ratio, out[1] * ratio, channels))
        tall = g.reduce("REDUCE_MAX", split, [1], keepdims=False)
        wide = g.reshape(tall, (count * out[0] * out[1], ratio, channels))
        pooled = g.reduce("REDUCE_MAX", wide, [1], keepdims=False)
    else:
        options = schema.Pool2DOptionsT(
            padding=schema.Padding.VALID, strideH=ratio, strideW=ratio, filterHeight=ratio, filterWidth=ratio
        )
        pooled = g.emit("AVERAGE_POOL_2D", [samples], (count, *out, channels), samples, options)
    return View(g.reshape(pooled, (count, *out, channels)), channels_last(4))


def _roi_samples(g: Builder, x: View, lines: Sequence[Tensor], batch: Tensor, largest: bool) -> Tensor:
    """Bilinear samples ``[regions, rows, columns, C]``; positions beyond a pixel outside give zero.

    With ``largest`` the largest of the four weighted neighbours counts instead of their sum: that is how
    ONNX defines the maximum.
    """
    table, sizes = _pixels(g, x), x.shape[2:]
    count = batch.size
    parts = []
    for line, size in zip(lines, sizes, strict=True):
        valid = g.cast(
            g.compare("EQUAL", g.clamp(line, -1, size), line),
            FLOAT32,
        )
        inside = g.clamp(line, 0, size - 1)
        low = g.unary("FLOOR", inside)
        share = g.binary("SUB", inside, low)
        high = g.clamp(g.binary("ADD", low, 1.0), 0, size - 1)
        weights = (g.binary("MUL", g.subtract_from(1.0, share), valid), g.binary("MUL", share, valid))
        parts.append(((low, weights[0]), (high, weights[1])))
    total: Tensor | None = None
    base = g.reshape(g.binary("MUL", batch, sizes[0] * sizes[1]), (count, 1, 1))
    for (y, wy), (z, wz) in itertools.product(*parts):
        rows = g.reshape(g.binary("MUL", g.cast(y, INT32), sizes[1]), (count, y.shape[1], 1))
        columns = g.reshape(g.cast(z, INT32), (count, 1, z.shape[1]))
        index = g.binary("ADD", g.binary("ADD", rows, columns), base)
        (*index.shape, table.shape[1])
        value = g.gather(table, index)
        tall, wide = g.reshape(wy, (count, y.shape[1], 1, 1)), g.reshape(wz, (count, 1, z.shape[1], 1))
        value = g.binary("MUL", g.binary("MUL", value, tall), wide)
        if total is None:
            total = value
        elif largest:
            total = g.binary("MAXIMUM", total, value)
        else:
            total = g.binary("ADD", total, value)
    assert total is not None
    return total


# --- deformable convolution, unpooling --------------------------------------------------------------


@op("DeformConv", since=19)
def deform_conv(
    g: Builder,
    x: View,
    w: View,
    offset: View,
    b: View | None = None,
    mask: View | None = None,
    *,
    group: int = 1,
    offset_group: int = 1,
    **attributes: Unpack[WindowAttributes],
) -> View:
    """The samples of every kernel position side by side, then a 1 × 1 convolution."""
    if x.rank != 4:
        raise Refusal(f"a deformable convolution over {x.rank - 2} axes")
    window = make_window(x.shape[2:], attributes, w.shape[2:])
    kh, kw = window.kernel
    n, channels = x.shape[:2]
    out = window.output(x.shape[2:])
    per = channels // offset_group
    moves = g.layout(offset, (0, 2, 3, 1))
    factors = None if mask is None else g.layout(mask, (0, 2, 3, 1))
    columns = []
    for i, j in itertools.product(range(kh), range(kw)):
        for k in range(offset_group):
            place = k * kh * kw + i * kw + j
            lines = []
            for axis, (step, tap) in enumerate(zip(window.strides, (i, j), strict=True)):
                start = np.arange(out[axis]) * step - window.pads[axis][0] + tap * window.dilations[axis]
                grid = start.astype(np.float32).reshape((1, -1, 1) if axis == 0 else (1, 1, -1))
                lines.append(g.binary("ADD", _component(g, moves, 2 * place + axis), g.constant(grid)))
            part = x if offset_group == 1 else _channel_slice(g, x, k * per, per)
            taps = [_taps(g, line, "linear") for line in lines]
            value = _weighted(g, _pixels(g, part), taps, x.shape[2:], True, None)
            if factors is not None:
                value = g.binary("MUL", value, g.reshape(_component(g, factors, place), (n, *out, 1)))
            columns.append(value)
    joined = g.concat(columns, 3)  # [N, H, W, taps · C], taps outermost
    return View(_grouped_product(g, joined, (w, b), channels, group), channels_last(4))


def _grouped_product(
    g: Builder, samples: Tensor, parameters: tuple[View, View | None], channels: int, group: int
) -> Tensor:
    w, b = parameters
    weights = g.known(w, "weights that are computed at run time")
    o, per, kh, kw = w.shape
    # A dense weight with zeros between the groups: [O, C, taps].
    dense = np.zeros((o, channels, kh * kw), np.float32)
    for i in range(o):
        first = (i // (o // group)) * per
        dense[i, first : first + per] = weights[i].reshape(per, kh * kw)
    # Taps outermost, as the columns are joined.
    flat = dense.transpose(0, 2, 1).reshape(o, kh * kw * channels, 1, 1)
    one = Window((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
    return convolve2d(g, samples, View.of(g.constant(flat)), b, one, 1)


def _channel_slice(g: Builder, x: View, first: int, count: int) -> View:
    t = g.plain(x)
    begin, size = [0, first, 0, 0], [t.shape[0], count, *t.shape[2:]]
    return View.of(g.slice(t, begin, size))


@op("MaxUnpool", since=9)
def max_unpool(
    g: Builder,
    x: View,
    indices: View,
    output_shape: View | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> View:
    """SCATTER_ND of the maxima to where they were."""
    n = x.rank - 2
    around = tuple(pads or (0,) * (2 * n))
    steps = tuple(strides or (1,) * n)
    sizes = [
        (d - 1) * s - around[i] - around[i + n] + k
        for i, (d, s, k) in enumerate(zip(x.shape[2:], steps, kernel_shape, strict=True))
    ]
    pooled_shape = (*x.shape[:2], *sizes)
    rows = g.cast(g.reshape(g.plain(indices), (indices.size, 1)), INT32)
    values, total = g.reshape(g.plain(x), (x.size,)), math.prod(pooled_shape)
    flat = g.emit("SCATTER_ND", [rows, values, g.ints([total])], (total,), x.tensor)
    out = g.reshape(flat, pooled_shape)
    if output_shape is not None:
        target = g.known(output_shape, "an output shape that is computed at run time")
        margins = [(0, int(size) - m) for size, m in zip(target, pooled_shape, strict=True)]
        if min(m for _, m in margins) < 0:
            raise Refusal("an output shape smaller than what was pooled")
        out = pad(g, out, margins)
    return View.of(out)


@op("Col2Im", since=18)
def col2im(
    g: Builder,
    x: View,
    image_shape: View,
    block_shape: View,
    **attributes: Unpack[WindowAttributes],
) -> View:
    """SCATTER_ND adds the columns up where they overlap."""
    refusal = "shapes that are computed at run time"
    image, block = ([int(d) for d in g.known(v, refusal)] for v in (image_shape, block_shape))
    window = make_window(image, attributes, block)
    counts = window.output(image)
    padded = [d + sum(p) for d, p in zip(image, window.pads, strict=True)]
    place = np.zeros((1,) * (2 * len(image)), np.int64)
    for axis in range(len(image)):
        line = np.add.outer(
            np.arange(block[axis]) * window.dilations[axis], np.arange(counts[axis]) * window.strides[axis]
        )
        shape = [1] * (2 * len(image))
        shape[axis], shape[axis + len(image)] = line.shape
        place = place * padded[axis] + line.reshape(shape)
    n, channels = x.shape[0], x.shape[1] // math.prod(block)
    columns = g.reshape(g.plain(x), (n * channels, math.prod(block) * math.prod(counts)))
    last = g.transpose(columns, (1, 0))
    full = (math.prod(padded), n * channels)
    rows = g.constant(place.reshape(-1, 1), INT32)
    summed = g.emit("SCATTER_ND", [rows, last, g.ints(full)], full, columns)
    out = g.reshape(summed, (1, *padded, n * channels))
    if any(any(p) for p in window.pads):
        out = crop(g, out, window.pads)
    order = View(g.reshape(out, (*image, n * channels)), (*range(1, len(image) + 1), 0))
    return g.reshape_view(order, (n, channels, *image))
