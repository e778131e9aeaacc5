"""Operators that TensorRT's parser lacks, or reads as something else, in operators that it has.

    MaxPool, AveragePool with dilations                → the largest, or the sum, of shifted slices
    Col2Im                                             → a transposed convolution with ones
    ConvTranspose with strides and dilations           → one whose weights have zeros between (its builder lacks these)
    DFT, Resize with antialiasing                      → products with constant matrices
    ScatterElements, ScatterND that add, multiply, …   → products with, or choices by, where an index is
    com.microsoft's Attention                          → its products and softmax (the parser takes it for ONNX's
                                                         operator of that name)

What does not have the form that is written here stays as it is, and the parser says what it thinks of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgekit.backends.nvidia import plain_linear, plain_scatter, plain_windows
from edgekit.graph.edit import attribute, home, integers, replace, static_shape, sweep
from edgekit.graph.make import Maker

MICROSOFT = "com.microsoft"


def write_plainly(model: ir.Model) -> tuple[str, ...]:
    """Rewrite ``model`` in place; a note for each kind of operator that was rewritten."""
    done: dict[str, int] = {}
    # From the end: what a node reads is then as the source has it, without the infinities of what is written here.
    for node in reversed(list(model.graph)):
        rewrite = _REWRITES.get((node.domain, node.op_type))
        made = rewrite(node) if rewrite is not None and home(node) is not None else None
        if made:
            done[node.op_type] = done.get(node.op_type, 0) + 1
            replace(node, made)
    if done:
        sweep(model)
    return tuple(
        f"{count} × {name} written in operators that TensorRT has" for name, count in sorted(done.items())
    )


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
    new = Maker(node)
    packed = new.add("MatMul", [x, weights])
    if bias is not None:
        packed = new.add("Add", [packed, bias])
    split = new.ints(0, 0, heads, hidden // heads)
    factor = attribute(node, "scale", 0.0) or 1 / math.sqrt(hidden // heads)
    parts = []
    for number, order in enumerate(((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))):
        columns = new.part(packed, 2, number * hidden, (number + 1) * hidden)
        parts.append(new.add("Transpose", [new.add("Reshape", [columns, split])], perm=order))
    query, key, value = parts
    scaled = new.add("Mul", [query, new.constant(np.asarray(factor, np.float32))])
    chances = new.add("Softmax", [new.add("MatMul", [scaled, key])], axis=-1)
    seen = new.add("Transpose", [new.add("MatMul", [chances, value])], perm=(0, 2, 1, 3))
    new.add("Reshape", [seen, new.ints(0, 0, hidden)])
    return new.made


_Rewrite = Callable[[ir.Node], Sequence[ir.Node] | None]
_REWRITES: Mapping[tuple[str, str], _Rewrite] = {
    ("", "MaxPool"): plain_windows.pool,
    ("", "AveragePool"): plain_windows.pool,
    ("", "Col2Im"): plain_windows.col2im,
    ("", "ConvTranspose"): plain_windows.spread,
    ("", "DFT"): plain_linear.dft,
    ("", "Resize"): plain_linear.smoothed,
    ("", "ScatterElements"): plain_scatter.elements,
    ("", "ScatterND"): plain_scatter.slices,
    (MICROSOFT, "Attention"): _attention,
}
