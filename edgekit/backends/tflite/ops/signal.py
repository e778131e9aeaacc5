"""Fourier transforms as products with the matrix of the transform, known when compiling."""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, Array, Tensor
from edgekit.backends.tflite.registry import Refusal, op
from edgekit.backends.tflite.view import View

LONGEST = 8192
"""Points of a transform: the matrix has their square in elements."""


@op("DFT", since=17)
def dft_17(
    g: Builder, x: View, length: View | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> View:
    """With the axis as an attribute."""
    return _dft(g, x, _number(g, length), axis, bool(inverse), bool(onesided))


@op("DFT", since=20)
def dft(
    g: Builder,
    x: View,
    length: View | None = None,
    axis: View | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> View:
    """``[…, n, 1 or 2] → […, n, 2]``, real and imaginary parts last."""
    place = _number(g, axis)
    return _dft(g, x, _number(g, length), -2 if place is None else place, bool(inverse), bool(onesided))


def _dft(g: Builder, x: View, length: int | None, axis: int, inverse: bool, onesided: bool) -> View:
    if x.dtype != FLOAT32:
        raise Refusal(f"a Fourier transform of {x.dtype}")
    axis %= x.rank
    size = x.shape[axis]
    points = length if length is not None else 2 * (size - 1) if inverse and onesided else size
    if points > LONGEST:
        raise Refusal(f"a Fourier transform of {points} points; at most {LONGEST}")
    parts = x.shape[-1]
    # Time and its real and imaginary parts last: one matrix then multiplies both.
    order = (*(a for a in range(x.rank) if a not in (axis, x.rank - 1)), axis, x.rank - 1)
    data = g.layout(x, order)
    lead = data.shape[:-2]
    bins = points // 2 + 1 if onesided and not inverse else points
    if inverse and onesided:
        weights = _real_inverse(points)[:, : min(points // 2 + 1, size)]
        out = _product(g, data, weights, min(points // 2 + 1, size), (*lead, points, 1))
        return View(out, order)
    weights = _matrix(points, bins, parts, inverse)
    used = min(size, points)
    out = _product(g, data, weights[:, :used], used, (*lead, bins, 2))
    return View(out, order)


def _product(g: Builder, data: Tensor, weights: Array, used: int, shape: tuple[int, ...]) -> Tensor:
    """``data […, n, parts]`` cut to ``used`` points, times ``weights [out, used, parts]``."""
    *lead, size, parts = data.shape
    if used != size:
        data = g.slice(data, [0] * data.rank, [*lead, used, parts])
    flat = g.reshape(data, (math.prod(lead), used * parts))
    matrix = g.constant(np.ascontiguousarray(weights.reshape(weights.shape[0], -1).astype(np.float32)))
    product_shape = (flat.shape[0], matrix.shape[0])
    out = g.emit("FULLY_CONNECTED", [flat, matrix], product_shape, FLOAT32, schema.FullyConnectedOptionsT())
    return g.reshape(out, shape)


def _matrix(points: int, bins: int, parts: int, inverse: bool) -> Array:
    """[bins · 2, points, parts]: a complex product written in real numbers."""
    angle = 2 * np.pi * np.outer(np.arange(bins), np.arange(points)) / points
    cosine, sine = np.cos(angle), np.sin(angle) * (1 if inverse else -1)
    real, imaginary = np.stack([cosine, -sine], axis=-1), np.stack([sine, cosine], axis=-1)
    both = np.stack([real, imaginary], axis=1).reshape(bins * 2, points, 2)
    return np.asarray(both[..., :parts] / (points if inverse else 1))


def _real_inverse(points: int) -> Array:
    """[points, bins, 2]: the real signal of a one-sided spectrum."""
    bins = points // 2 + 1
    angle = 2 * np.pi * np.outer(np.arange(points), np.arange(bins)) / points
    twice = np.full(bins, 2.0)
    # Frequency 0 and, for even lengths, the highest have no mirror image.
    twice[0] = 1.0
    if points % 2 == 0:
        twice[-1] = 1.0
    return np.asarray(np.stack([np.cos(angle), -np.sin(angle)], axis=-1) * twice[None, :, None] / points)


@op("STFT", since=17)
def stft(
    g: Builder,
    signal: View,
    step: View,
    window: View | None = None,
    length: View | None = None,
    *,
    onesided: int = 1,
) -> View:
    """Frames side by side (one GATHER), then a product with the windowed transform."""
    hop, size = _number(g, step), _number(g, length)
    if hop is None or (size is None and window is None):
        raise Refusal("a frame step that is computed at run time")
    shape = window.const if window is not None else np.ones(size or 0, np.float32)
    if shape is None:
        raise Refusal("a window that is computed at run time")
    points = size or len(shape)
    parts = signal.shape[2] if signal.rank == 3 else 1
    batch, samples = signal.shape[:2]
    if points > LONGEST:
        raise Refusal(f"a Fourier transform of {points} points; at most {LONGEST}")
    frames = (samples - points) // hop + 1
    index = np.add.outer(np.arange(frames) * hop, np.arange(points)).reshape(-1)
    data = g.reshape(g.plain(signal), (batch, samples, parts))
    (batch, len(index), parts)
    cut = g.gather(data, g.ints(index), 1)
    bins = points // 2 + 1 if onesided else points
    weights = _matrix(points, bins, parts, inverse=False) * shape.reshape(1, -1, 1)
    framed = g.reshape(cut, (batch, frames, points, parts))
    return View.of(_product(g, framed, weights, points, (batch, frames, bins, 2)))


def _number(g: Builder, view: View | None) -> int | None:
    return None if view is None else g.known_int(view, "an axis or length that is computed at run time")
