"""Resize and Upsample.

Interpolation is linear in the input and separable: along each axis the output is a matrix times the input.
The matrix follows from ONNX's attributes alone. Where it is the matrix of RESIZE_BILINEAR or the index list of
RESIZE_NEAREST_NEIGHBOR under some setting of theirs, these are used; else nearest becomes GATHER, and
everything else (cubic, antialiased, cropped, one or three axes) a product with the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, Array
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View, channels_last

_INTEGERS = ("int8", "uint8", "int16")
_SAME_MATRIX = 1e-5
"""Difference of weights that is still the same interpolation: LiteRT computes coordinates in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """How one axis is resized. ``roi`` is ``(start, end)`` in fractions of the input."""

    size: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """ONNX's attributes."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


@op("Resize", since=10, rule=Rule.SAME, quantized=_INTEGERS)
def resize_10(g: Builder, x: View, scales: View, *, mode: str = "nearest") -> View:
    """Opset 10: asymmetric, floor."""
    return _upsample(g, x, scales, mode)


@op("Upsample", since=9, rule=Rule.SAME, quantized=_INTEGERS)
def upsample(g: Builder, x: View, scales: View, *, mode: str = "nearest") -> View:
    """Resize of opset 10 under its old name."""
    return _upsample(g, x, scales, mode)


@op("Upsample", since=7, rule=Rule.SAME, quantized=_INTEGERS)
def upsample_7(g: Builder, x: View, *, scales: Sequence[float], mode: str = "nearest") -> View:
    """With the scales as an attribute."""
    return _upsample(g, x, View.of(g.constant(np.asarray(scales, np.float32))), mode)


@op("Resize", since=11, rule=Rule.SAME, quantized=_INTEGERS)
def resize(
    g: Builder,
    x: View,
    roi: View | None = None,
    scales: View | None = None,
    sizes: View | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> View:
    """All modes; the sizes must be known when compiling."""
    which = [a % x.rank for a in (axes if axes is not None else range(x.rank))]
    factors, targets = _factors(g, x, which, scales, sizes, keep_aspect_ratio_policy)
    crop = None
    if coordinate_transformation_mode == "tf_crop_and_resize":
        crop = _known(g, roi, "roi").reshape(2, -1)
    spans = {
        a: Axis(
            size=x.shape[a],
            out=targets[i],
            scale=factors[i],
            roi=(0.0, 1.0) if crop is None else (float(crop[0, i]), float(crop[1, i])),
        )
        for i, a in enumerate(which)
    }
    method = Method(
        mode="linear" if mode == "bilinear" else mode,
        coordinates=coordinate_transformation_mode,
        nearest=nearest_mode,
        cubic=cubic_coeff_a,
        exclude_outside=bool(exclude_outside),
        antialias=bool(antialias),
        extrapolation=extrapolation_value,
    )
    return _resized(g, x, spans, method)


def _upsample(g: Builder, x: View, scales: View, mode: str) -> View:
    factors = _known(g, scales, "scales").astype(np.float64)
    spans = {
        a: Axis(size=n, out=math.floor(n * float(f)), scale=float(f))
        for a, (n, f) in enumerate(zip(x.shape, factors, strict=True))
    }
    method = Method(
        mode="nearest" if mode == "nearest" else "linear",
        coordinates="asymmetric",
        nearest="floor",
        cubic=-0.75,
        exclude_outside=False,
        antialias=False,
        extrapolation=0.0,
    )
    return _resized(g, x, spans, method)


def _factors(
    g: Builder, x: View, axes: Sequence[int], scales: View | None, sizes: View | None, policy: str
) -> tuple[list[float], list[int]]:
    """Scale and output size of each axis in ``axes``."""
    before = [x.shape[a] for a in axes]
    if sizes is not None and sizes.size:
        targets = [int(n) for n in _known(g, sizes, "sizes")]
        if policy != "stretch":
            pick = min if policy == "not_larger" else max
            scale = pick(w / b for w, b in zip(targets, before, strict=True))
            targets = [math.floor(scale * b + 0.5) for b in before]
            return [scale] * len(axes), targets
        return [w / b for w, b in zip(targets, before, strict=True)], targets
    factors = [float(f) for f in _known(g, scales, "scales")]
    return factors, [math.floor(b * f) for b, f in zip(before, factors, strict=True)]


def _known(g: Builder, view: View | None, what: str) -> Array:
    return g.known(view, f"its {what} are computed at run time; TFLite files have fixed shapes")


# --- lowering ---------------------------------------------------------------------------------------


def _resized(g: Builder, x: View, spans: dict[int, Axis], method: Method) -> View:
    cropped = method.coordinates == "tf_crop_and_resize"
    moving = {
        a: s
        for a, s in spans.items()
        if s.out != s.size or s.scale != 1.0 or (cropped and s.roi != (0.0, 1.0))
    }
    if not moving:
        return x
    if min(s.out for s in moving.values()) < 1:
        raise Refusal("an output without elements")
    builtin = _as_builtin(g, x, moving, method)
    if builtin is not None:
        return builtin
    if method.mode == "nearest" and not cropped:
        for axis, span in moving.items():
            x = _gathered(g, x, axis, nearest_indices(span, method))
        return x
    result, x = g.result, g.dequantize(x)
    if x.dtype != FLOAT32:
        raise Refusal(f"{method.mode} interpolation of {x.dtype}")
    outside: list[tuple[int, Array]] = []
    for axis, span in moving.items():
        x = _multiplied(g, x, axis, matrix(span, method))
        if cropped:
            outside.append((axis, _outside(span, method)))
    x = _extrapolated(g, x, outside, method.extrapolation)
    return x if result is None else x.with_tensor(g.quantize(x.tensor, result))


def _as_builtin(g: Builder, x: View, moving: dict[int, Axis], method: Method) -> View | None:
    """RESIZE_BILINEAR or RESIZE_NEAREST_NEIGHBOR, if one of their settings computes the same."""
    if (
        x.rank not in (3, 4)
        or not set(moving) <= set(range(2, x.rank))
        or method.mode == "cubic"
        or method.antialias
    ):
        return None
    if x.dtype != FLOAT32 and x.quant is None:
        return None
    setting = _setting(moving, method)
    if setting is None:
        return None
    align, half = setting
    data = g.layout(x, channels_last(x.rank))
    n, *spatial, c = data.shape
    out = [moving[a].out if a in moving else x.shape[a] for a in range(2, x.rank)]
    if x.rank == 3:
        data, out = g.reshape(data, (n, 1, *spatial, c)), [1, *out]
    if method.mode == "nearest":
        code, options = "RESIZE_NEAREST_NEIGHBOR", schema.ResizeNearestNeighborOptionsT
    else:
        code, options = "RESIZE_BILINEAR", schema.ResizeBilinearOptionsT
    result = g.emit(
        code, [data, g.ints(out)], (n, *out, c), data, options(alignCorners=align, halfPixelCenters=half)
    )
    if x.rank == 3:
        result = g.reshape(result, (n, out[1], c))
    return View(result, channels_last(x.rank))


def _setting(moving: dict[int, Axis], method: Method) -> tuple[bool, bool] | None:
    """``(align_corners, half_pixel_centers)`` under which LiteRT computes the same on every axis."""
    # Most exporters mean half-pixel centres: these first.
    for align, half in ((False, True), (False, False), (True, False)):
        if method.mode == "nearest":
            same = all(
                np.array_equal(nearest_indices(s, method), _litert_nearest(s, align, half))
                for s in moving.values()
            )
        else:
            same = all(
                np.abs(matrix(s, method) - _litert_bilinear(s, align, half)).max() < _SAME_MATRIX
                for s in moving.values()
            )
        if same:
            return align, half
    return None


def _gathered(g: Builder, x: View, axis: int, indices: Array) -> View:
    return x.with_tensor(g.gather(x.tensor, g.ints(indices), x.position(axis)))


def _multiplied(g: Builder, x: View, axis: int, weights: Array) -> View:
    """``weights [out, in]`` times ``x`` along ``axis``, which is brought to the end."""
    order = (*(a for a in x.perm if a != axis), axis)
    data = g.layout(x, order)
    shape = (*data.shape[:-1], weights.shape[0])
    options = schema.FullyConnectedOptionsT(keepNumDims=True)
    filters = g.constant(weights.astype(np.float32))
    return View(g.emit("FULLY_CONNECTED", [data, filters], shape, FLOAT32, options), order)


def _extrapolated(g: Builder, x: View, outside: Sequence[tuple[int, Array]], value: float) -> View:
    """``value`` where some axis samples outside the image."""
    mask = np.zeros((1,) * x.rank, bool)
    for axis, flags in outside:
        mask = mask | flags.reshape([-1 if a == axis else 1 for a in range(x.rank)])
    if not mask.any():
        return x
    laid = np.transpose(
        np.broadcast_to(mask, [d if m > 1 else 1 for d, m in zip(x.shape, mask.shape, strict=True)]), x.perm
    )
    return x.with_tensor(g.select(g.constant(laid), g.constant(np.float32(value)), x.tensor))


# --- coordinates and weights ------------------------------------------------------------------------


def coordinates(axis: Axis, method: Method) -> Array:
    """Where each output element samples the input, in input elements (ONNX operator Resize)."""
    x = np.arange(axis.out, dtype=np.float64)
    exact = axis.scale * axis.size
    mode = method.coordinates
    if mode == "align_corners":
        return x * 0.0 if exact == 1 else x * (axis.size - 1) / (exact - 1)
    if mode == "asymmetric":
        return x / axis.scale
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / axis.scale
    if mode == "tf_crop_and_resize":
        start, end = axis.roi
        if axis.out == 1:
            return np.asarray([(start + end) * (axis.size - 1) / 2])
        return start * (axis.size - 1) + x * (end - start) * (axis.size - 1) / (axis.out - 1)
    if mode == "pytorch_half_pixel" and axis.out == 1:
        return np.zeros(1)
    shift = 0.0
    if mode == "half_pixel_symmetric":
        shift = axis.size / 2 * (1 - axis.out / exact)
    elif mode not in ("half_pixel", "pytorch_half_pixel"):
        raise Refusal(f"coordinate_transformation_mode {mode}")
    return shift + (x + 0.5) / axis.scale - 0.5


def nearest_indices(axis: Axis, method: Method) -> Array:
    """The input element that each output element copies."""
    x = coordinates(axis, method)
    rounded: dict[str, Callable[[Array], Array]] = {
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    if method.nearest not in rounded:
        raise Refusal(f"nearest_mode {method.nearest}")
    return np.asarray(np.clip(rounded[method.nearest](x), 0, axis.size - 1), np.int64)


def matrix(axis: Axis, method: Method) -> Array:
    """Interpolation weights ``[out, in]``; rows sum to one."""
    if method.mode == "nearest":
        return np.asarray(np.eye(axis.size)[nearest_indices(axis, method)])
    x = coordinates(axis, method)
    base = np.ceil(x) - 1
    # The kernel widens when the image shrinks, as Pillow and PyTorch do.
    shrink = min(axis.scale, 1.0) if method.antialias else 1.0
    reach = 2 if method.mode == "cubic" else 1
    start = math.floor(-reach / shrink) + 1
    offsets = np.arange(start, 2 - start)
    distance = (offsets[None, :] - (x - base)[:, None]) * shrink
    weights = (
        _cubic(distance, method.cubic) if method.mode == "cubic" else np.clip(1 - np.abs(distance), 0, 1)
    )
    indices = (base[:, None] + offsets).astype(np.int64)
    if method.exclude_outside:
        weights = np.where((indices < 0) | (indices >= axis.size), 0.0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    out = np.zeros((axis.out, axis.size))
    np.add.at(out, (np.arange(axis.out)[:, None], np.clip(indices, 0, axis.size - 1)), weights)
    return out


def _cubic(distance: Array, a: float) -> Array:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _outside(axis: Axis, method: Method) -> Array:
    x = coordinates(axis, method)
    return np.asarray((x < 0) | (x > axis.size - 1))


def _litert_scale(axis: Axis, align: bool) -> np.float32:
    if align and axis.out > 1:
        return np.float32(axis.size - 1) / np.float32(axis.out - 1)
    return np.float32(axis.size) / np.float32(axis.out)


def _litert_nearest(axis: Axis, align: bool, half: bool) -> Array:
    """tflite/kernels/internal/reference/resize_nearest_neighbor.h."""
    x = (np.arange(axis.out, dtype=np.float32) + np.float32(0.5 if half else 0)) * _litert_scale(axis, align)
    rounded = np.floor(x + np.float32(0.5)) if align else np.floor(x)
    return np.asarray(np.clip(rounded, 0, axis.size - 1), np.int64)


def _litert_bilinear(axis: Axis, align: bool, half: bool) -> Array:
    """tflite/kernels/internal/reference/resize_bilinear.h."""
    x = np.arange(axis.out, dtype=np.float32)
    scale = _litert_scale(axis, align)
    at = (x + np.float32(0.5)) * scale - np.float32(0.5) if half else x * scale
    low = np.maximum(np.floor(at), 0).astype(np.int64)
    high = np.minimum(np.ceil(at), axis.size - 1).astype(np.int64)
    low = np.minimum(low, axis.size - 1)
    share = at - low
    out = np.zeros((axis.out, axis.size))
    rows = np.arange(axis.out)
    np.add.at(out, (rows, low), 1 - share)
    np.add.at(out, (rows, high), share)
    return out
