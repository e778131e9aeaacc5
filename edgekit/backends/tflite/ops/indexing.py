"""Gather and its relatives, arg-reductions, one-hot."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import BOOL, FLOAT32, INT32, INT64, Array, Tensor
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View


def nonnegative(g: Builder, indices: Tensor, size: int) -> Tensor:
    """Indices that may count from the end, as indices from the start, int32."""
    if indices.data is not None:
        index = indices.data.astype(np.int64)
        return g.constant(np.where(index < 0, index + size, index), INT32)
    narrow = g.cast(indices, INT32)
    return g.binary("FLOOR_MOD", narrow, size)


def _never_negative(g: Builder) -> bool:
    """An embedding's indices: PyTorch refuses negative ones."""
    if g.node is None:
        return False
    return "aten.embedding" in g.node.metadata_props.get("pkg.torch.onnx.fx_node", "")


@op("Gather", rule=Rule.SAME)
def gather(g: Builder, x: View, indices: View, *, axis: int = 0) -> View:
    """GATHER; a scalar constant index is a slice."""
    axis %= x.rank
    size = x.shape[axis]
    where = g.plain(indices)
    plain_index = indices.const is not None or not _never_negative(g)
    index = nonnegative(g, where, size) if plain_index else where
    # A constant table stays one GATHER; of an activation XNNPACK takes a SLICE, and no GATHER.
    run = None if x.tensor.data is not None or index.data is None else _progression(index.data.reshape(-1))
    if run is not None:
        return _picked(g, x, axis, run, indices.shape)
    if index.rank == 1 or x.is_plain:
        out = g.gather(x.tensor, index, x.position(axis))
        return View.of(out) if x.is_plain else View(out, x.perm)
    return View.of(g.gather(g.plain(x), index, axis))


def _progression(values: Array) -> range | None:
    """The values as a range with a positive step, if they are one."""
    if values.size == 0:
        return None
    step = int(values[1] - values[0]) if values.size > 1 else 1
    if step < 1 or np.any(np.diff(values) != step):
        return None
    return range(int(values[0]), int(values[-1]) + 1, step)


def _picked(g: Builder, x: View, axis: int, run: range, index_shape: tuple[int, ...]) -> View:
    """A slice instead of a GATHER."""
    cut = x.with_tensor(g.part(x.tensor, x.position(axis), run))
    return g.reshape_view(cut, (*x.shape[:axis], *index_shape, *x.shape[axis + 1 :]))


@op("GatherND", since=11)
def gather_nd(g: Builder, x: View, indices: View, *, batch_dims: int = 0) -> View:
    """GATHER_ND; indices that count from the end are normalized, batch axes become indices."""
    if _reads_everything(x, indices, batch_dims):
        return g.reshape_view(x, (*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :]))
    t, index = g.plain(x), g.plain(indices)
    depth = index.shape[-1]
    sizes = np.asarray(t.shape[batch_dims : batch_dims + depth], np.int64)
    if index.data is not None:
        values = index.data.astype(np.int64)
        index = g.constant(np.where(values < 0, values + sizes, values), INT32)
    else:
        index = g.binary("FLOOR_MOD", g.cast(index, INT32), g.constant(sizes, INT32))
    if batch_dims:
        lead = index.shape[:batch_dims]
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in lead), indexing="ij"), -1).astype(np.int32)
        grid = grid.reshape(*lead, *(1,) * (index.rank - 1 - batch_dims), batch_dims)
        full = np.broadcast_to(grid, (*index.shape[:-1], batch_dims))
        joined = [g.constant(np.ascontiguousarray(full)), index]
        index = g.concat(joined, index.rank - 1)
    out = (*index.shape[:-1], *t.shape[index.shape[-1] :])
    return View.of(g.emit("GATHER_ND", [t, index], out, t))


def _reads_everything(x: View, indices: View, batch_dims: int) -> bool:
    """Whether constant indices visit every element in order: masks are exported like that."""
    if indices.const is None or batch_dims:
        return False
    depth = indices.shape[-1]
    lead = x.shape[:depth]
    if indices.size != math.prod(lead) * depth:
        return False
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in lead), indexing="ij"), -1)
    return np.array_equal(grid.reshape(-1), indices.const.reshape(-1))


def _arg(
    code: str, g: Builder, x: View, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> View:
    """ARG_MAX or ARG_MIN; the last of equals by reversing before."""
    x = _comparable(g, x)
    place = x.position(axis)
    t = x.tensor
    if select_last_index:
        flipped = g.emit("REVERSE_V2", [t, g.ints([place])], t.shape, t)
        t = flipped
    shape = [d for i, d in enumerate(t.shape) if i != place]
    options = schema.ArgMaxOptionsT if code == "ARG_MAX" else schema.ArgMinOptionsT
    out = g.emit(
        code, [t, g.constant(np.int32(place))], shape, INT64, options(outputType=schema.TensorType.INT64)
    )
    if select_last_index:
        out = g.emit(
            "SUB", [g.constant(np.int64(t.shape[place] - 1)), out], shape, INT64, schema.SubOptionsT()
        )
    axis %= x.rank
    perm = tuple(p - (p > axis) for p in x.perm if p != axis)
    view = View(out, perm)
    return g.reshape_view(view, (*x.shape[:axis], 1, *x.shape[axis + 1 :])) if keepdims else view


op("ArgMax", rule=Rule.ANY)(partial(_arg, "ARG_MAX"))
op("ArgMin", rule=Rule.ANY)(partial(_arg, "ARG_MIN"))


def _comparable(g: Builder, x: View) -> View:
    if x.dtype in (FLOAT32, INT32) or (x.quant is not None and x.dtype.itemsize == 1):
        return x
    return g.dequantize(x) if x.quant is not None else g.as_type(x, INT32)


@op("OneHot", since=9)
def one_hot(g: Builder, indices: View, depth: View, values: View, *, axis: int = -1) -> View:
    """ONE_HOT."""
    refusal = "depth or values computed at run time"
    n, levels = g.known_int(depth, refusal), g.known(values, refusal)
    index = g.cast(g.plain(indices), INT32)
    if index.data is None:
        # From the end if negative; what is out of range then is off everywhere.
        below = g.compare("LESS", index, 0)
        moved = g.binary("ADD", index, n)
        index = g.select(below, moved, index)
    else:
        index = g.constant(np.where(index.data < 0, index.data + n, index.data), INT32)
    off, on = (g.constant(v) for v in levels)
    axis = axis % (index.rank + 1)
    shape = (*index.shape[:axis], n, *index.shape[axis:])
    options = schema.OneHotOptionsT(axis=-1 if axis == index.rank else axis)
    return View.of(g.emit("ONE_HOT", [index, g.constant(np.int32(n)), on, off], shape, on.dtype, options))


@op("Range", since=11)
def range_(g: Builder, start: View, limit: View, delta: View) -> View:
    """Known at compile time (then folded), else its length is unknown."""
    del g, start, limit, delta
    raise Refusal("limits computed at run time: the result's shape is unknown")


@op("Trilu", since=14)
def trilu(g: Builder, x: View, k: View | None = None, *, upper: int = 1) -> View:
    """Product with (for numbers) or selection by a constant mask."""
    offset = 0 if k is None else g.known_int(k, "a diagonal computed at run time")
    t = g.plain(x)
    full = np.ones(t.shape[-2:], np.bool_)
    mask = np.triu(full, offset) if upper else np.tril(full, offset)
    if t.dtype == BOOL:
        return View.of(g.emit("LOGICAL_AND", [t, g.constant(mask)], t.shape, BOOL))
    zero = g.constant(np.zeros((), t.dtype))
    return View.of(g.select(g.constant(mask), t, zero))
