"""Scattering that adds, multiplies or takes the least or largest: TensorRT's parser only overwrites.

Along one axis of ``size`` places, where ``index`` says to which each update goes:

    sums     data + one_hot(index) @ updates, where the index is the same all along another axis
    else     data ∘ reduce(where(one_hot(index), updates, neutral)), for all places at once
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.backends.nvidia.infinities import apart
from edgekit.graph.edit import attribute, constant, produced_by
from edgekit.graph.make import Maker

_MOST = 1 << 24
"""Elements of the largest tensor between."""

_OPS = {
    "add": ("ReduceSum", "Add"),
    "mul": ("ReduceProd", "Mul"),
    "min": ("ReduceMin", "Min"),
    "max": ("ReduceMax", "Max"),
}
_TYPES = (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64)


def elements(node: ir.Node) -> Sequence[ir.Node] | None:
    """ScatterElements with a reduction; places and updates are as many on all other axes."""
    data, index, updates = node.inputs
    reduction = attribute(node, "reduction", "none")
    if reduction not in _OPS or data is None or index is None or updates is None:
        return None
    if data.dtype not in _TYPES or data.shape is None or index.shape is None:
        return None
    shape, places = list(data.shape), list(index.shape)
    axis = attribute(node, "axis", 0) % len(shape)
    size = shape[axis]
    others = [i for i in range(len(shape)) if i != axis]
    if not isinstance(size, int) or any(not _same(shape[i], places[i]) for i in others):
        return None
    same = [i for i in others if i in _repeated(index)]
    new = Maker(node)
    if reduction == "add" and data.dtype == ir.DataType.FLOAT and same:
        if size * _count([p for i, p in enumerate(places) if i not in same]) > _MOST:
            return None
        order = [*(i for i in others if i != same[-1]), axis, same[-1]]
        index = _positive(new, index, size)
        for other in same:
            index = new.part(index, other, 0, 1)
        flat = new.add("Squeeze", [new.add("Transpose", [index], perm=order), new.ints(len(order) - 1)])
        ones = _one_hot(new, flat, len(order) - 2, size, len(order) - 1)
        new.add("Add", [data, _products(new, ones, updates, order)])
        return new.made
    if _count([*places, size]) > _MOST:
        return None
    hits = _hits(new, _positive(new, index, size), axis, size, len(places))
    reduced = _choices(new, hits, updates, axis, reduction, data.dtype)
    new.add(_OPS[reduction][1], [data, reduced])
    return new.made


def slices(node: ir.Node) -> Sequence[ir.Node] | None:
    """ScatterND with a reduction: the places of several axes are counted along one."""
    data, index, updates = node.inputs
    reduction = attribute(node, "reduction", "none")
    if reduction not in _OPS or data is None or index is None or updates is None:
        return None
    if data.dtype not in _TYPES or data.shape is None or index.shape is None or not len(index.shape):
        return None
    depth, shape = index.shape[-1], list(data.shape)
    if not isinstance(depth, int):
        return None
    sizes = [d for d in shape[:depth] if isinstance(d, int)]
    if not sizes or len(sizes) != depth:
        return None
    size, rest, count = math.prod(sizes), shape[depth:], _whole(list(index.shape[:-1]))
    row = _whole(rest)
    dense = reduction != "add" or data.dtype != ir.DataType.FLOAT
    if (row is None and count is None) or size * (count or 1) * ((row or 1) if dense else 1) > _MOST:
        return None
    new = Maker(node)
    flat = _counted(new, index, sizes)
    rows = new.add("Reshape", [updates, new.ints(count or -1, -1 if row is None else row)])
    if dense:
        hits = _hits(new, new.add("Unsqueeze", [flat, new.ints(1)]), 0, size, 2)
        found = _choices(new, hits, rows, 0, reduction, data.dtype)
    else:
        ones = _one_hot(new, flat, 0, size, 1)
        found = apart(new, rows, lambda x: new.add("MatMul", [ones, x]))
    whole = [d for d in shape if isinstance(d, int)]
    target = new.ints(*whole) if len(whole) == len(shape) else new.add("Shape", [data])
    new.add(_OPS[reduction][1], [data, new.add("Reshape", [found, target])])
    return new.made


def _counted(new: Maker, index: ir.Value, sizes: Sequence[int]) -> ir.Value:
    """The number of each place, counted along the axes ``sizes``, as a vector."""
    total: ir.Value | None = None
    for i, size in enumerate(sizes):
        one = new.add("Reshape", [new.part(index, -1, i, i + 1), new.ints(-1)])
        one = _positive(new, one, size)
        if math.prod(sizes[i + 1 :]) > 1:
            one = new.add("Mul", [one, new.ints(math.prod(sizes[i + 1 :]))])
        total = one if total is None else new.add("Add", [total, one])
    assert total is not None
    return total


def _positive(new: Maker, index: ir.Value, size: int) -> ir.Value:
    """Places counted from the end are counted from the start; INT64."""
    known = constant(index)
    if known is not None:
        return new.constant(np.where(known < 0, known + size, known).astype(np.int64))
    if index.dtype is not None and index.dtype != ir.DataType.INT64:
        index = new.add("Cast", [index], to=int(ir.DataType.INT64))
    below = new.add("Less", [index, new.ints(0)])
    return new.add("Where", [below, new.add("Add", [index, new.ints(size)]), index])


def _one_hot(new: Maker, index: ir.Value, axis: int, size: int, rank: int) -> ir.Value:
    """1.0 where a place is named: ``index`` with an axis of ``size`` before ``axis``."""
    return new.add("Cast", [_hits(new, index, axis, size, rank)], to=int(ir.DataType.FLOAT))


def _hits(new: Maker, index: ir.Value, axis: int, size: int, rank: int) -> ir.Value:
    numbers = np.arange(size, dtype=np.int64).reshape([size, *[1] * (rank - axis)])
    return new.add("Equal", [new.add("Unsqueeze", [index, new.ints(axis)]), new.constant(numbers)])


def _choices(
    new: Maker, hits: ir.Value, updates: ir.Value, axis: int, reduction: str, dtype: ir.DataType
) -> ir.Value:
    """The updates of each place, reduced: those that ``hits`` it."""
    kind = dtype.numpy()
    # The least number is not neutral: the largest of it and -inf is the number.
    ends = (-np.inf, np.inf) if dtype == ir.DataType.FLOAT else (np.iinfo(kind).min, np.iinfo(kind).max)
    neutral = np.asarray({"add": 0, "mul": 1, "min": ends[1], "max": ends[0]}[reduction], kind)
    spread = new.add("Unsqueeze", [updates, new.ints(axis)])
    chosen = new.add("Where", [hits, spread, new.constant(neutral)])
    return new.add(_OPS[reduction][0], [chosen, new.ints(axis + 1)], keepdims=0)


def _products(new: Maker, ones: ir.Value, updates: ir.Value, order: Sequence[int]) -> ir.Value:
    """Sums as a product; the axes of the places and of the product's columns come last in ``order``."""
    found = apart(new, new.add("Transpose", [updates], perm=order), lambda x: new.add("MatMul", [ones, x]))
    return new.add("Transpose", [found], perm=[order.index(i) for i in range(len(order))])


def _repeated(index: ir.Value) -> frozenset[int]:
    """The axes along which it is known to be the same everywhere."""
    known = constant(index)
    if known is not None:
        axes = range(known.ndim)
        return frozenset(a for a in axes if (known == np.take(known, [0], axis=a)).all() and known.size)
    expand = produced_by(index, "Expand")
    source = expand.inputs[0] if expand is not None else None
    if source is None or source.shape is None or index.shape is None:
        return frozenset()
    sizes = [*[1] * (len(index.shape) - len(source.shape)), *source.shape]
    return frozenset(i for i, size in enumerate(sizes) if size == 1)


def _same(one: object, other: object) -> bool:
    """Whether two dimensions are known to be equal."""
    return one == other and (isinstance(one, int) or str(one) not in ("", "?", "None"))


def _count(sizes: Sequence[object]) -> int:
    """Elements; open axes count as one."""
    return math.prod(d for d in sizes if isinstance(d, int))


def _whole(sizes: Sequence[object]) -> int | None:
    numbers = [d for d in sizes if isinstance(d, int)]
    return math.prod(numbers) if len(numbers) == len(sizes) else None
