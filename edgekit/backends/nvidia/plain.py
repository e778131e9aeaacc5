"""Operators that TensorRT's parser lacks, or reads as something else, in operators that it has.

    MaxPool with dilations        → the largest of shifted slices
    ScatterND that adds           → a product with the matrix of ones where an index is
    com.microsoft's Attention     → its products and softmax (the parser takes it for ONNX's operator of that name)

What does not have the form that is written here stays as it is, and the parser says what it thinks of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import add_constant, attribute, constant, home, integers, replace, static_shape

MICROSOFT = "com.microsoft"
_LOWEST = float(np.finfo(np.float32).min)
_MOST_SLICES = 81
_MOST_ONES = 1 << 24


def write_plainly(model: ir.Model) -> tuple[str, ...]:
    """Rewrite ``model`` in place; a note for each kind of operator that was rewritten."""
    done: dict[str, int] = {}
    for node in list(model.graph):
        rewrite = _REWRITES.get((node.domain, node.op_type))
        made = rewrite(node) if rewrite is not None and home(node) is not None else None
        if made:
            done[node.op_type] = done.get(node.op_type, 0) + 1
            replace(node, made)
    return tuple(
        f"{count} × {name} written in operators that TensorRT has" for name, count in sorted(done.items())
    )


@dataclass
class _Builder:
    """New nodes in the place of one, named after it."""

    node: ir.Node
    made: list[ir.Node] = field(default_factory=list)

    def op(self, kind: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """One more."""
        name = f"{self.node.name}/{len(self.made)}"
        made = ir.node(kind, list(inputs), attributes=attributes or None, name=name)  # type: ignore[arg-type]
        self.made.append(made)
        made.outputs[0].name = f"{name}:0"
        return made.outputs[0]

    def constant(self, values: object, dtype: type = np.int64) -> ir.Value:
        """A number, or several."""
        graph = home(self.node)
        assert graph is not None
        return add_constant(graph, np.asarray(values, dtype), f"{self.node.name}/constant")


# --- MaxPool ------------------------------------------------------------------------------------------------


def _max_pool(node: ir.Node) -> Sequence[ir.Node] | None:
    kernel = integers(node, "kernel_shape") or []
    rank = len(kernel)
    dilations = integers(node, "dilations") or [1] * rank
    x, shape = node.inputs[0], static_shape(node.inputs[0])
    if x is None or shape is None or all(d == 1 for d in dilations) or math.prod(kernel) > _MOST_SLICES:
        return None
    plain = attribute(node, "auto_pad", "NOTSET") == "NOTSET" and not attribute(node, "ceil_mode", 0)
    if not plain or len(node.outputs) > 1 or x.dtype != ir.DataType.FLOAT:
        return None
    strides = integers(node, "strides") or [1] * rank
    pads = integers(node, "pads") or [0] * (2 * rank)
    b = _Builder(node)
    if any(pads):
        around = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
        x = b.op("Pad", x, b.constant(around), b.constant(_LOWEST, np.float32))
    sizes = [n + pads[i] + pads[rank + i] for i, n in enumerate(shape[2:])]
    counts = [
        (n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(sizes, dilations, kernel, strides, strict=True)
    ]
    axes, steps = b.constant(range(2, 2 + rank)), b.constant(strides)
    slices = []
    for place in itertools.product(*map(range, kernel)):
        starts = [p * d for p, d in zip(place, dilations, strict=True)]
        ends = [a + (c - 1) * s + 1 for a, c, s in zip(starts, counts, strides, strict=True)]
        slices.append(b.op("Slice", x, b.constant(starts), b.constant(ends), axes, steps))
    b.op("Max", *slices)
    return b.made


# --- ScatterND ----------------------------------------------------------------------------------------------


def _scatter(node: ir.Node) -> Sequence[ir.Node] | None:
    """Along the first axis: ``data + ones @ updates``, where ``ones`` is 1 at [index of the update, update]."""
    data, indices, updates = node.inputs
    if attribute(node, "reduction", "none") != "add" or data is None or indices is None or updates is None:
        return None
    shape, where, rows = static_shape(data), static_shape(indices), static_shape(updates)
    if shape is None or where is None or rows is None or data.dtype != ir.DataType.FLOAT:
        return None
    if len(where) != 2 or where[1] != 1 or len(rows) not in (1, 2) or shape[0] * where[0] > _MOST_ONES:
        return None
    b = _Builder(node)
    known = constant(indices)
    if known is not None:
        ones = np.zeros((shape[0], where[0]), np.float32)
        ones[known.reshape(-1) % shape[0], np.arange(where[0])] = 1
        matrix = b.constant(ones, np.float32)
    else:
        flat = b.op("Squeeze", indices, b.constant([1]))
        counted = b.op("Add", flat, b.constant(shape[0]))
        positive = b.op("Where", b.op("Less", flat, b.constant(0)), counted, flat)
        values = b.constant([0.0, 1.0], np.float32)
        matrix = b.op("OneHot", positive, b.constant(shape[0]), values, axis=0)
    b.op("Add", data, b.op("MatMul", matrix, updates))
    return b.made


# --- Attention ----------------------------------------------------------------------------------------------


def _attention(node: ir.Node) -> Sequence[ir.Node] | None:
    """``softmax(q k' scale) v`` of one product's columns; masks, caches and rotations are not written here."""
    x, weights, *more = node.inputs
    bias, rest = (more[0] if more else None), more[1:]
    width = static_shape(weights)
    heads = attribute(node, "num_heads", 0)
    sizes = integers(node, "qkv_hidden_sizes") or []
    if x is None or weights is None or width is None or heads < 1 or any(v is not None for v in rest):
        return None
    hidden = width[1] // 3
    if attribute(node, "unidirectional", 0) or attribute(node, "do_rotary", 0) or len(node.outputs) > 1:
        return None
    if sizes not in ([], [0], [hidden] * 3) or hidden * 3 != width[1] or hidden % heads:
        return None
    b = _Builder(node)
    packed = b.op("MatMul", x, weights)
    if bias is not None:
        packed = b.op("Add", packed, bias)
    split = b.constant([0, 0, heads, hidden // heads])
    factor = attribute(node, "scale", 0.0) or 1 / math.sqrt(hidden // heads)
    parts = []
    for number, order in enumerate(((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))):
        ends = b.constant([number * hidden]), b.constant([(number + 1) * hidden])
        columns = b.op("Slice", packed, *ends, b.constant([2]))
        parts.append(b.op("Transpose", b.op("Reshape", columns, split), perm=order))
    query, key, value = parts
    scores = b.op("MatMul", b.op("Mul", query, b.constant(factor, np.float32)), key)
    seen = b.op("MatMul", b.op("Softmax", scores, axis=-1), value)
    b.op("Reshape", b.op("Transpose", seen, perm=(0, 2, 1, 3)), b.constant([0, 0, hidden]))
    return b.made


_Rewrite = Callable[[ir.Node], Sequence[ir.Node] | None]
_REWRITES: Mapping[tuple[str, str], _Rewrite] = {
    ("", "MaxPool"): _max_pool,
    ("", "ScatterND"): _scatter,
    (MICROSOFT, "Attention"): _attention,
}
