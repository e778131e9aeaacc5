"""Sorting, running sums and products, reversal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT32, INT64, Tensor, Type
from edgekit.backends.tflite.ops.window import pad
from edgekit.backends.tflite.registry import Refusal, op
from edgekit.backends.tflite.view import View

_SORTABLE = (FLOAT32, INT32, INT64)
_AXIS = "an axis that is computed at run time"


@op("TopK", since=10)
def top_k_10(g: Builder, x: View, k: View, *, axis: int = -1) -> Sequence[View]:
    """The largest, sorted."""
    return top_k(g, x, k, axis=axis)


@op("TopK", since=11)
def top_k(
    g: Builder, x: View, k: View, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> Sequence[View]:
    """TOPK_V2 over the last axis; the smallest are the largest of the negated values."""
    del sorted  # always
    if x.dtype not in _SORTABLE:
        raise Refusal(f"sorting of {x.dtype}")
    axis %= x.rank
    order = (*(a for a in range(x.rank) if a != axis), axis)
    data = g.layout(x, order)
    # TOPK_V2 finds the largest only.
    if not largest:
        data = _reversed_order(g, data)
    count = g.known_int(k, "a count that is computed at run time: the result's shape is unknown")
    shape = (*data.shape[:-1], count)
    values, indices = g.emit_many(
        "TOPK_V2", [data, g.constant(count, INT32)], [(shape, data), (shape, INT32)]
    )
    if not largest:
        values = _reversed_order(g, values)
    return View(values, order), View(g.cast(indices, INT64), order)


def _reversed_order(g: Builder, t: Tensor) -> Tensor:
    """-x, or -1 - x for integers, where -x overflows for the smallest."""
    if t.dtype == FLOAT32:
        return g.unary("NEG", t)
    return g.emit("SUB", [g.constant(np.asarray(-1, t.dtype)), t], t.shape, t, schema.SubOptionsT())


@op("CumSum", since=11)
def cumulative_sum(g: Builder, x: View, axis: View, *, exclusive: int = 0, reverse: int = 0) -> View:
    """CUMSUM."""
    place = x.position(g.known_int(axis, _AXIS))
    options = schema.CumsumOptionsT(exclusive=bool(exclusive), reverse=bool(reverse))
    inputs = [x.tensor, g.constant(place, INT32)]
    return x.with_tensor(g.emit("CUMSUM", inputs, x.tensor.shape, x.tensor, options))


@op("CumProd", since=26)
def cumulative_product(g: Builder, x: View, axis: View, *, exclusive: int = 0, reverse: int = 0) -> View:
    """By doubling (Hillis and Steele, 1986): log2(n) products with shifted copies."""
    place = x.position(g.known_int(axis, _AXIS))
    t = _flipped(g, x.tensor, place) if reverse else x.tensor
    if exclusive:
        t = _shifted(g, t, place, 1)
    step = 1
    while step < t.shape[place]:
        t = g.binary("MUL", t, _shifted(g, t, place, step))
        step *= 2
    return x.with_tensor(_flipped(g, t, place) if reverse else t)


def _shifted(g: Builder, t: Tensor, axis: int, by: int) -> Tensor:
    """Moved by ``by`` towards the end, ones in front."""
    size = [n - by if i == axis else n for i, n in enumerate(t.shape)]
    return pad(
        g, g.slice(t, [0] * t.rank, size), [(by, 0) if i == axis else (0, 0) for i in range(t.rank)], 1.0
    )


def _flipped(g: Builder, t: Tensor, axis: int) -> Tensor:
    return g.emit("REVERSE_V2", [t, g.ints([axis])], t.shape, t)


@op("ReverseSequence", since=10)
def reverse_sequence(g: Builder, x: View, lengths: View, *, batch_axis: int = 1, time_axis: int = 0) -> View:
    """REVERSE_SEQUENCE."""
    options = schema.ReverseSequenceOptionsT(seqDim=x.position(time_axis), batchDim=x.position(batch_axis))
    inputs = [x.tensor, g.cast(g.plain(lengths), INT32)]
    kind = Type(x.dtype, x.quant)
    return x.with_tensor(g.emit("REVERSE_SEQUENCE", inputs, x.tensor.shape, kind, options))
