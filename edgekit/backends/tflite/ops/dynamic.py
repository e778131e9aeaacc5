"""Operators whose result has a size that depends on the data (see :mod:`edgekit.backends.tflite.dynamic`)."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.dynamic import refuse
from edgekit.backends.tflite.ir import BOOL, INT32, INT64, Array, Tensor
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View

MAX_SUPPRESSIONS = 1024
"""Batch items times classes: an operator each."""


@op("NonZero", since=9)
def non_zero(g: Builder, x: View) -> View:
    """WHERE, which gives [n, rank] for ONNX's [rank, n]."""
    if x.rank == 0:
        raise Refusal("of a scalar")
    t = g.plain(x)
    if t.dtype != BOOL:
        zero = g.constant(np.zeros((), t.dtype))
        t = g.compare("NOT_EQUAL", t, zero)
    return View(_where(g, t), (1, 0))


def _where(g: Builder, condition: Tensor) -> Tensor:
    """The places [n, rank] where a condition holds."""
    out = g.emit("WHERE", [condition], (condition.size, condition.rank), INT64)
    out.dynamic = 0
    return out


@op("Unique", since=11)
def unique(g: Builder, x: View, *, axis: int | None = None, sorted: int = 1) -> View:
    """Refused."""
    del g, x, axis, sorted
    refuse("the different values")


@op("NonMaxSuppression", since=10)
def non_max_suppression(
    g: Builder,
    boxes: View,
    scores: View,
    most: View | None = None,
    overlap: View | None = None,
    least: View | None = None,
    *,
    center_point_box: int = 0,
) -> View:
    """NON_MAX_SUPPRESSION_V4 for every batch item and class, then the rows (item, class, box) that it counts."""
    items, classes, count = scores.shape
    limits = [0 if most is None else most.const, *(v if v is None else v.const for v in (overlap, least))]
    if any(v is not None and limit is None for v, limit in zip((most, overlap, least), limits, strict=True)):
        raise Refusal("limits that are computed at run time")
    # TFLite reserves room for as many boxes as may be chosen.
    first = min(int(np.max(np.asarray(limits[0]))), count)
    if first <= 0 or 0 in scores.shape:
        return View.of(g.constant(np.zeros((0, 3), np.int64)))
    if items * classes > MAX_SUPPRESSIONS:
        raise Refusal(
            f"{items * classes} batch items and classes: one operator each, at most {MAX_SUPPRESSIONS}"
        )
    thresholds = [g.constant(_above(limits[1])), g.constant(np.float32(_number(limits[2], -np.inf)))]
    corners = _corners(g, g.plain(boxes)) if center_point_box else g.plain(boxes)
    rated = g.plain(scores)
    boxes_by_class, counts = [], []
    for b in range(items):
        candidates = _part(g, corners, (b, 0, 0), (count, 4))
        for c in range(classes):
            values = _part(g, rated, (b, c, 0), (count,))
            inputs = [candidates, values, g.constant(first, INT32), *thresholds]
            kinds = [((first,), INT32), ((), INT32)]
            options = schema.NonMaxSuppressionV4OptionsT()
            selected, number = g.emit_many("NON_MAX_SUPPRESSION_V4", inputs, kinds, options)
            boxes_by_class.append(g.reshape(selected, (1, first)))
            counts.append(g.reshape(number, (1, 1)))
    return View.of(_selected(g, g.concat(boxes_by_class, 0), g.concat(counts, 0), (items, classes)))


def _number(limit: Array | int | None, default: float) -> float:
    return default if limit is None else float(np.max(limit))


def _above(overlap: Array | int | None) -> np.float32:
    """LiteRT suppresses from the threshold on, ONNX beyond it: the next number."""
    number = np.float32(_number(overlap, 0.0))
    if number >= 1:
        raise Refusal(f"an overlap of {number}: LiteRT takes those below 1")
    return max(np.nextafter(number, np.float32(np.inf)), np.finfo(np.float32).tiny)


def _selected(g: Builder, chosen: Tensor, counts: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Rows (item, class, box): of ``chosen`` [items·classes, k] the first ``counts`` [items·classes, 1] a row."""
    lists, first = chosen.shape
    item, kind = np.indices(sizes).reshape(2, lists, 1)
    labels = np.broadcast_to(np.stack([item, kind], -1), (lists, first, 2)).reshape(-1, 2)
    box = g.cast(g.reshape(chosen, (lists * first, 1)), INT64)
    parts = [g.constant(np.ascontiguousarray(labels), INT64), box]
    rows = g.concat(parts, 1)
    number = g.constant(np.arange(first)[None], INT32)
    valid = g.compare("LESS", number, counts)
    places = _where(g, g.reshape(valid, (lists * first,)))
    return g.emit("GATHER_ND", [rows, places], (lists * first, 3), INT64)


def _corners(g: Builder, boxes: Tensor) -> Tensor:
    """Centre and size as two opposite corners."""
    shape = (*boxes.shape[:-1], 2)
    centre, size = (g.slice(boxes, begin, shape) for begin in ((0, 0, 0), (0, 0, 2)))
    half = g.binary("MUL", size, 0.5)
    ends = [g.binary(code, centre, half) for code in ("SUB", "ADD")]
    return g.concat(ends, 2)


def _part(g: Builder, t: Tensor, begin: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    sizes = (1,) * (t.rank - len(shape)) + shape
    if sizes != t.shape:
        t = g.slice(t, begin, sizes)
    return g.reshape(t, shape)


@op("Compress", since=9, rule=Rule.SAME)
def compress(g: Builder, x: View, condition: View, *, axis: int | None = None) -> View:
    """GATHER where the condition is known."""
    if condition.const is None:
        refuse("a selection computed at run time")
    index = np.flatnonzero(condition.const)
    if axis is None:
        x, axis = g.reshape_view(x, (x.size,)), 0
    return x.with_tensor(g.gather(x.tensor, g.ints(index), x.position(axis)))
