"""Gathering and scattering by computed indices.

Indices become positions in the flattened data, where GATHER and SCATTER_ND work on rows. SCATTER_ND starts from
zeros and adds, which is wrong for overwriting where an index comes twice: that is a GATHER from the data with the
updates behind it, in which every row reads its last writer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import BOOL, FLOAT32, INT32, INT64, Tensor
from edgekit.backends.tflite.ops.indexing import nonnegative
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View

_SEGMENTS = {
    "mul": ("UNSORTED_SEGMENT_PROD", "MUL"),
    "max": ("UNSORTED_SEGMENT_MAX", "MAXIMUM"),
    "min": ("UNSORTED_SEGMENT_MIN", "MINIMUM"),
}


@op("GatherElements", since=11, rule=Rule.SAME)
def gather_elements(g: Builder, x: View, indices: View, *, axis: int = 0) -> View:
    """GATHER from the flattened data."""
    data = g.plain(x)
    where = _element_rows(g, data.shape, indices, axis % x.rank)
    flat = g.reshape(data, (data.size,))
    return View.of(g.gather(flat, where))


@op("ScatterElements", since=11)
def scatter_elements(
    g: Builder, x: View, indices: View, updates: View, *, axis: int = 0, reduction: str = "none"
) -> View:
    """Rows of one element."""
    where = _element_rows(g, x.shape, indices, axis % x.rank)
    rows = g.reshape(where, (where.size,))
    data = g.reshape(g.plain(x), (x.size, 1))
    new = g.reshape(g.plain(updates), (updates.size, 1))
    return View.of(g.reshape(_scattered(g, data, rows, new, reduction), x.shape))


@op("Scatter", since=9)
def scatter(g: Builder, x: View, indices: View, updates: View, *, axis: int = 0) -> View:
    """ScatterElements under its old name."""
    return scatter_elements(g, x, indices, updates, axis=axis)


@op("ScatterND", since=11)
def scatter_nd(g: Builder, x: View, indices: View, updates: View, *, reduction: str = "none") -> View:
    """Rows of the trailing axes."""
    depth = indices.shape[-1]
    count = math.prod(indices.shape[:-1])
    lead, width = math.prod(x.shape[:depth]), math.prod(x.shape[depth:])
    if depth == 0 or count == 0:
        return x
    rows = _flat_rows(g, g.reshape(g.plain(indices), (count, depth)), x.shape[:depth])
    data = g.reshape(g.plain(x), (lead, width))
    new = g.reshape(g.plain(updates), (count, width))
    return View.of(g.reshape(_scattered(g, data, rows, new, reduction), x.shape))


@op("TensorScatter", since=24)
def tensor_scatter(
    g: Builder, cache: View, update: View, write: View | None = None, *, axis: int = -2, mode: str = "linear"
) -> View:
    """A cache in whose sequence axis each batch item is written from an index on."""
    axis %= cache.rank
    order = (0, axis, *(a for a in range(1, cache.rank) if a != axis))
    data, new = g.layout(cache, order), g.layout(update, order)
    batch, slots, *rest = data.shape
    steps, width = new.shape[1], math.prod(rest)
    start = g.constant(np.zeros((batch, 1), np.int32))
    if write is not None:
        start = g.reshape(g.cast(g.plain(write), INT32), (batch, 1))
    place = g.binary("ADD", start, g.constant(np.arange(steps, dtype=np.int32)[None]))
    if mode == "circular":
        place = g.binary("FLOOR_MOD", place, slots)
    base = g.constant((np.arange(batch, dtype=np.int32) * slots)[:, None])
    rows = g.reshape(g.binary("ADD", place, base), (batch * steps,))
    flat = g.reshape(data, (batch * slots, width))
    out = _scattered(g, flat, rows, g.reshape(new, (batch * steps, width)), "none")
    return View(g.reshape(out, data.shape), order)


# --- rows -------------------------------------------------------------------------------------------


def _element_rows(g: Builder, shape: Sequence[int], indices: View, axis: int) -> Tensor:
    """Positions in the flattened data of the elements that GatherElements' indices mean, int32."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    base = np.zeros(indices.shape, np.int64)
    for i, n in enumerate(indices.shape):
        if i != axis:
            base += (np.arange(n) * strides[i]).reshape([-1 if j == i else 1 for j in range(len(shape))])
    index = nonnegative(g, g.plain(indices), shape[axis])
    if index.data is not None:
        return g.constant(index.data.astype(np.int64) * strides[axis] + base, INT32)
    return g.binary("ADD", g.binary("MUL", index, strides[axis]), g.constant(base, INT32))


def _flat_rows(g: Builder, indices: Tensor, shape: Sequence[int]) -> Tensor:
    """``[N, k]`` indices into ``shape`` as ``[N]`` row numbers, int32; negative ones count from the end."""
    sizes = np.asarray(shape, np.int64)
    strides = np.asarray([math.prod(shape[i + 1 :]) for i in range(len(shape))], np.int64)
    if indices.data is not None:
        index = indices.data.astype(np.int64)
        return g.constant((np.where(index < 0, index + sizes, index) * strides).sum(axis=1), INT32)
    narrow = g.cast(indices, INT32)
    positive = g.binary("FLOOR_MOD", narrow, g.constant(sizes, INT32))
    return g.reduce("SUM", g.binary("MUL", positive, g.constant(strides, INT32)), [1], keepdims=False)


def _scattered(g: Builder, data: Tensor, rows: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """``data [L, W]`` with ``updates [N, W]`` put to ``rows [N]``."""
    if reduction == "none":
        return _overwritten(g, data, rows, updates)
    if data.dtype == BOOL:
        raise Refusal(f"reduction {reduction} of booleans")
    if reduction == "add":
        return g.binary("ADD", data, _added(g, rows, updates, data.shape))
    if reduction not in _SEGMENTS:
        raise Refusal(f"reduction {reduction}")
    code, combine = _SEGMENTS[reduction]
    count = g.constant(data.shape[0], INT32)
    total = g.emit(code, [updates, rows, count], data.shape, data)
    return g.binary(combine, data, total)


def _overwritten(g: Builder, data: Tensor, rows: Tensor, updates: Tensor) -> Tensor:
    if rows.data is not None:
        source = np.arange(data.shape[0])
        # Of equal rows the last update wins, as numpy assigns.
        source[rows.data] = data.shape[0] + np.arange(len(rows.data))
        return g.gather(g.concat([data, updates], 0), g.ints(source))
    # Which update is the last one for each row; rows that none goes to get the smallest number.
    count, kept = rows.size, data.shape[0]
    number = g.constant(np.arange(count, dtype=np.int32))
    last = g.emit("UNSORTED_SEGMENT_MAX", [number, rows, g.constant(kept, INT32)], (kept,), INT32)
    written = g.compare("GREATER", last, -1)
    own = g.constant(np.arange(kept, dtype=np.int32))
    place = g.select(written, g.binary("ADD", last, kept), own)
    wide = INT32 if data.dtype == BOOL else data.dtype
    both = g.concat([g.cast(data, wide), g.cast(updates, wide)], 0)
    return g.cast(g.gather(both, place), data.dtype)


def _added(g: Builder, rows: Tensor, updates: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of ``shape`` with the updates added at ``rows``."""
    if updates.dtype not in (FLOAT32, INT32, INT64):
        raise Refusal(f"scattering {updates.dtype} to indices computed at run time")
    index = g.reshape(rows, (rows.size, 1))
    return g.emit("SCATTER_ND", [index, updates, g.ints(shape)], shape, updates)
