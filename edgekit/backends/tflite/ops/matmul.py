"""MatMul and Gemm: FULLY_CONNECTED where the right-hand side is a weight matrix, else BATCH_MATMUL."""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT32, Tensor, Type
from edgekit.backends.tflite.ops.convolution import bias_tensor
from edgekit.backends.tflite.ops.elementwise import broadcast
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View


@op("Gemm", rule=Rule.FREE, quantized=("int8", "int16"), hybrid=(1,))
def gemm(
    g: Builder,
    a: View,
    b: View,
    c: View | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    broadcast: int = 1,
) -> View:
    """alpha * A' B' + beta * C."""
    del broadcast  # opset 6 and before
    a = g.transpose_view(a, (1, 0)) if transA else a
    b = b if transB else g.transpose_view(b, (1, 0))
    # The factor would have to go into a scale that the graph has fixed.
    if a.quant is not None and (alpha != 1.0 or (beta != 1.0 and c is not None)):
        raise Refusal("alpha or beta other than 1, in integers")
    if alpha != 1.0:
        b = _scaled(g, b, alpha)
    if c is not None and beta != 1.0:
        c = _scaled(g, c, beta)
    rows, columns = a.shape[0], b.shape[0]
    as_bias = c is not None and c.tensor.data is not None and c.size == columns and c.shape[-1:] == (columns,)
    bias = g.reshape_view(c, (columns,)) if c is not None and as_bias else None
    out = fully_connected(g, a, b, bias, (rows, columns))
    if c is None or as_bias:
        return out
    if g.result is not None:
        raise Refusal("a bias that is not one number a column, in integers")
    return _sum(g, out, c)


def _sum(g: Builder, a: View, b: View) -> View:
    return broadcast(g, "ADD", (a, b))


def _scaled(g: Builder, x: View, factor: float) -> View:
    if x.const is not None:
        return View.of(Tensor(x.shape, x.dtype, x.tensor.name, (x.const * factor).astype(x.dtype)))
    return x.with_tensor(g.binary("MUL", x.tensor, factor))


@op("MatMul", rule=Rule.FREE, quantized=("int8", "int16"), hybrid=(1,))
def matmul(g: Builder, a: View, b: View) -> View:
    """numpy's matmul."""
    if a.dtype.kind in "iub" and a.quant is None:
        return _integer_matmul(g, a, b)
    if b.rank == 2 and b.tensor.data is not None and a.rank >= 1:
        shape = (*a.shape[:-1], b.shape[1])
        return fully_connected(g, a, g.transpose_view(b, (1, 0)), None, shape)
    if a.rank == 1:
        out = matmul(g, g.reshape_view(a, (1, a.shape[0])), b)
        return g.reshape_view(out, () if b.rank == 1 else (*out.shape[:-2], out.shape[-1]))
    if b.rank == 1:
        out = matmul(g, a, g.reshape_view(b, (b.shape[0], 1)))
        return g.reshape_view(out, out.shape[:-1])
    return batch_matmul(g, a, b)


def fully_connected(g: Builder, x: View, w: View, bias: View | None, shape: tuple[int, ...]) -> View:
    """``x @ w.T + bias`` for ``w`` of ``[out, in]``; all axes of ``x`` but the last are rows."""
    weight = _unscrambled(g, w, x)
    data = x.tensor if x.perm[-1] == x.rank - 1 else g.plain(x)
    # Rows may lie in any order, as long as what is summed over comes last.
    keep = x.perm if x.perm[-1] == x.rank - 1 else tuple(range(x.rank))
    filters = g.plain(weight)
    kind = g.type_like(x)
    laid = tuple(shape[p] for p in keep)
    options = schema.FullyConnectedOptionsT(keepNumDims=len(shape) != 2)
    inputs = [data, filters]
    if bias is not None or data.quant is not None:
        inputs.append(bias_tensor(g, bias, data, filters, shape[-1]))
    return View(g.emit("FULLY_CONNECTED", inputs, laid, kind, options), keep)


def _unscrambled(g: Builder, w: View, x: View) -> View:
    """The weights with their columns in the order in which the flattened input lies."""
    if x.scramble is None:
        return w
    if w.quant is not None and w.quant.block:
        w = g.dequantize(w)  # its blocks are of neighbours
    order = np.asarray(x.scramble)
    axis = w.position(1)
    assert w.tensor.data is not None
    data = np.take(w.tensor.data, order, axis=axis)
    return w.with_tensor(Tensor(w.tensor.shape, w.tensor.dtype, w.tensor.name, data, w.tensor.quant))


def batch_matmul(g: Builder, a: View, b: View) -> View:
    """BATCH_MATMUL; a transposition of the last two axes is absorbed as adjX / adjY."""
    rank = max(a.rank, b.rank)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    left, adj_x = _operand(g, a, rank)
    right, adj_y = _operand(g, b, rank)
    kind = g.type_like(a)
    options = schema.BatchMatMulOptionsT(adjX=adj_x, adjY=adj_y)
    # The kernel counts batch axes up to three.
    if rank > 5:
        lead = math.prod(batch)
        if left.shape[:-2] != batch or right.shape[:-2] != batch:
            raise Refusal(f"a batched product that broadcasts over {rank} axes")
        left, right = (g.reshape(t, (lead, *t.shape[-2:])) for t in (left, right))
        out = g.emit("BATCH_MATMUL", [left, right], (lead, *shape[-2:]), kind, options)
        return View.of(g.reshape(out, shape))
    return View.of(g.emit("BATCH_MATMUL", [left, right], shape, kind, options))


def _operand(g: Builder, x: View, rank: int) -> tuple[Tensor, bool]:
    swapped = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
    if x.perm == swapped and x.tensor.data is None:
        t, adjoint = x.tensor, True
    else:
        t, adjoint = g.plain(x), False
    return g.reshape(t, (1,) * (rank - t.rank) + t.shape), adjoint


def _integer_matmul(g: Builder, a: View, b: View) -> View:
    """Through float32, exact while the sums stay below 2^24."""
    bits = 8 * (a.dtype.itemsize + b.dtype.itemsize)
    if bits + math.ceil(math.log2(max(a.shape[-1], 1))) > 24:
        raise Refusal(f"a product of {a.dtype} matrices")
    out = matmul(g, *(g.as_type(v, FLOAT32) for v in (a, b)))
    return g.as_type(out, a.dtype)


@op("MatMulInteger", since=10)
def matmul_integer(
    g: Builder, a: View, b: View, a_zero: View | None = None, b_zero: View | None = None
) -> View:
    """int32 products of 8-bit matrices, through float32 where that is exact."""
    if 16 + math.ceil(math.log2(max(a.shape[-1], 1))) > 24:
        raise Refusal("sums of more than 256 products of 8-bit numbers")
    x, y = (g.as_type(v, FLOAT32) for v in (a, b))
    if a_zero is not None:
        zero = g.as_type(a_zero, FLOAT32)
        zero = g.reshape_view(zero, (zero.size, 1)) if zero.size > 1 else zero
        x = broadcast(g, "SUB", (x, zero))
    if b_zero is not None:
        y = broadcast(g, "SUB", (y, g.as_type(b_zero, FLOAT32)))
    out = matmul(g, x, y)
    return g.as_type(out, INT32)


@op("FusedMatMul", domain="com.microsoft")
def fused_matmul(
    g: Builder,
    a: View,
    b: View,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> View:
    """alpha * A' B'."""
    if transBatchA or transBatchB:
        raise Refusal("transposed batch axes")
    a, b = (
        g.transpose_view(v, (*range(v.rank - 2), v.rank - 1, v.rank - 2)) if t else v
        for v, t in ((a, transA), (b, transB))
    )
    out = matmul(g, a, b)
    return out if alpha == 1.0 else out.with_tensor(g.binary("MUL", out.tensor, alpha, Type(FLOAT32)))
