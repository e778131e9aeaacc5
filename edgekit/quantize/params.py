"""Affine parameters: ``real = scale * (stored - zero_point)``, and integers (or float8) from weights and biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgekit.types import FLOAT8

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[Any]

_INT32 = 2**31 - 1


def limits(dtype: str) -> tuple[int, int]:
    """The smallest and largest number of a stored type."""
    if dtype == FLOAT8:
        return -448, 448
    found = np.iinfo(dtype)
    return int(found.min), int(found.max)


@dataclass(frozen=True, kw_only=True)
class Affine:
    """One scale and zero point for a whole tensor. ``dtype`` is ``uint8``, ``int8``, ``int16`` or
    :data:`FLOAT8`, whose zero point is 0."""

    scale: float
    zero_point: int
    dtype: str

    @property
    def low(self) -> float:
        """The smallest value that can be stored."""
        return self.scale * (limits(self.dtype)[0] - self.zero_point)

    @property
    def high(self) -> float:
        """The largest value that can be stored."""
        return self.scale * (limits(self.dtype)[1] - self.zero_point)


def affine(low: float, high: float, dtype: str, *, symmetric: bool) -> Affine:
    """Parameters that cover ``[low, high]`` and represent zero exactly.

    Symmetric ranges use zero point 0 and leave the most negative integer unused.
    """
    least, most = limits(dtype)
    low, high = min(low, 0.0), max(high, 0.0)
    smallest = float(np.finfo(np.float32).tiny) * 256
    if symmetric:
        scale = max(-low, high) / float(most)
        return Affine(scale=_float32(scale, smallest), zero_point=0, dtype=dtype)
    scale = _float32((high - low) / float(most - least), smallest)
    zero_point = int(np.clip(round(least - low / scale), least, most))
    return Affine(scale=scale, zero_point=zero_point, dtype=dtype)


def fixed_affine(low: float, high: float, dtype: str, *, symmetric: bool) -> Affine:
    """Parameters of an operator whose output range is given: power-of-two steps, the top value left out.

    ``[0, 1]`` in INT8 is scale 1/256 and zero point -128; ``[-1, 1]`` is 1/128 and 0; both are 1/32768 and
    0 in symmetric INT16 (TFLite's quantization specification).
    """
    least, most = limits(dtype)
    if dtype == FLOAT8:
        return affine(low, high, dtype, symmetric=True)  # steps grow with the numbers: nothing is gained
    if symmetric:
        return Affine(scale=max(-low, high) / (most + 1), zero_point=0, dtype=dtype)
    scale = (high - low) / (most - least + 1)
    return Affine(scale=scale, zero_point=int(least - low / scale), dtype=dtype)


def _float32(scale: float, smallest: float) -> float:
    """As the file will store it; a tensor that is all zeros gets scale 1."""
    return float(np.float32(scale)) if scale > smallest else 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """Integers (or float8) for the file: ``values`` in the tensor's shape; ``scale`` ``[channels]`` along ``axis``, or
    scalar."""

    values: Integers
    scale: Floats
    axis: int | None = None
    zero_point: int = 0

    @property
    def real(self) -> Floats:
        """The values that the integers stand for."""
        return ((self.values.astype(np.float32) - self.zero_point) * self.spread).astype(np.float32)

    @property
    def spread(self) -> Floats:
        """``scale`` shaped to broadcast against the weight."""
        if self.axis is None:
            return self.scale
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape)


def weight_scale(weight: Floats, axis: int | None, bits: int) -> Floats:
    """Max |w| over the largest integer, by channel of ``axis`` or for the whole; 1 where all is zero."""
    return _reach_over(weight, axis, (1 << (bits - 1)) - 1)


def float8_weight(weight: Floats, axis: int | None) -> Stored:
    """The largest magnitude of a channel of ``axis`` (or of the whole) becomes float8's largest number."""
    most = limits(FLOAT8)[1]
    scale = _reach_over(weight, axis, most)
    empty = Stored(values=np.zeros(weight.shape, np.int8), scale=scale, axis=axis)
    values = np.clip(weight / empty.spread, -most, most).astype(ml_dtypes.float8_e4m3fn)
    return Stored(values=values, scale=scale, axis=axis)


def _reach_over(weight: Floats, axis: int | None, most: int) -> Floats:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    reach = np.abs(weight).max(axis=others if axis is not None else None, initial=0.0)
    scale = (reach / most).astype(np.float32)
    positive: Floats = np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1.0)).astype(np.float32)
    return positive


def quantize_weight(weight: Floats, axis: int | None, bits: int, scale: Floats | None = None) -> Stored:
    """Round to nearest on ``scale`` (by default from the largest magnitude), clipped to the symmetric range."""
    scale = weight_scale(weight, axis, bits) if scale is None else scale
    top = (1 << (bits - 1)) - 1
    empty = Stored(values=np.zeros(weight.shape, np.int8), scale=scale, axis=axis)
    values = np.clip(np.rint(weight / empty.spread), -top, top).astype(np.int8)
    return Stored(values=values, scale=scale, axis=axis)


def room_for_bias(scale: Floats, bias: Floats, activation: float) -> Floats:
    """Weight scales raised where ``bias / (activation * scale)`` would not fit INT32.

    Channels whose weights are almost zero have almost no scale; their bias is what matters.
    """
    least = np.abs(bias).astype(np.float64) / (activation * _INT32 * 0.5)
    return np.maximum(scale, least.astype(np.float32))


def quantize_bias(bias: Floats, scale: Floats) -> Integers:
    """INT32 on ``scale`` = activation scale times weight scale."""
    return np.clip(np.rint(bias.astype(np.float64) / scale), -_INT32, _INT32).astype(np.int32)


def quantize_blocks(weight: Floats, size: int) -> Stored:
    """A ``[K, N]`` matrix as INT4 with one scale for ``size`` consecutive inputs of an output.

    Of a few scales around max |w| / 7.5 the one of least squared error is taken, a block at a time.
    """
    blocks = weight.reshape(-1, size, weight.shape[1])
    reach = np.abs(blocks).max(axis=1, keepdims=True)
    best = np.full(reach.shape, np.inf, np.float32)
    scale = np.ones(reach.shape, np.float32)
    for steps in (7.0, 7.5, 8.0, 8.5, 9.0):
        candidate = np.where(reach > 0, reach / np.float32(steps), 1).astype(np.float32)
        error = ((np.clip(np.rint(blocks / candidate), -8, 7) * candidate - blocks) ** 2).sum(
            axis=1, keepdims=True
        )
        scale = np.where(error < best, candidate, scale)
        best = np.minimum(error, best)
    values = np.clip(np.rint(blocks / scale), -8, 7).reshape(weight.shape)
    return Stored(values=values.astype(ml_dtypes.int4), scale=scale[:, 0, :], axis=0)
