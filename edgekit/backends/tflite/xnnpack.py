"""Spelling operators so that LiteRT's CPU delegate, XNNPACK, keeps the graph in one partition.

Every operator that the delegate lacks ends a partition. The rules here replace such operators by short
compositions of what it has; results stay the same to rounding. What it takes was measured with
ai-edge-litert 2.3:

* float32: all but RELU_0_TO_1, LOG_SOFTMAX, SIGN, POW, MIRROR_PAD, PADV2, RESIZE_NEAREST_NEIGHBOR,
  LOCAL_RESPONSE_NORMALIZATION, strided STRIDED_SLICE, SPLIT into more than four, SPLIT_V,
  CONCATENATION of more than five, TILE, GATHER, SELECT_V2, comparisons, CAST;
* int8: all of these but SOFTMAX, GELU, HARD_SWISH, PRELU, AVERAGE_POOL_2D, MAXIMUM, MINIMUM, RELU and its
  kin unless fused, and BATCH_MATMUL whose right-hand side has a zero point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder, Scope
from edgekit.backends.tflite.ir import FLOAT32, INT8, Graph, Op, Quant, Tensor, Type, integer_range
from edgekit.backends.tflite.xnnpack_spatial import CONCAT_LIMIT, concatenated, mirror_pad, resize_nearest

Rule = Callable[[Builder, Op], list[Tensor] | None]

_SPLIT_LIMIT = 4
# XNN_MAX_TENSOR_DIMS.
_RANK_LIMIT = 6
_CEILINGS = {"RELU": math.inf, "RELU6": 6.0, "RELU_N1_TO_1": 1.0, "RELU_0_TO_1": 1.0}
_FLOORS = {"RELU": 0.0, "RELU6": 0.0, "RELU_N1_TO_1": -1.0, "RELU_0_TO_1": 0.0}


def before_fusion(graph: Graph, scope: Scope) -> int:
    """Apply the rules that fusion builds on; returns how many operators were respelled."""
    return _apply(graph, scope, _BEFORE)


def after_fusion(graph: Graph, scope: Scope) -> int:
    """Apply the rules for what fusion left over."""
    return _apply(graph, scope, _AFTER)


def _apply(graph: Graph, scope: Scope, rules: Mapping[str, Rule]) -> int:
    scratch = Graph(graph.name)
    # A graph of its own: the old operators keep their places until the new ones are known to fit.
    g = Builder(scratch, scope, opset=0)
    kept_outputs = {id(t) for t in graph.outputs}
    alias: dict[int, Tensor] = {}
    out: list[Op] = []
    changed = 0
    for op in graph.ops:
        op.inputs = [t if t is None else alias.get(id(t), t) for t in op.inputs]
        rule = rules.get(op.code) if _known_sizes(op) else None
        g.origin = op.origin
        results = rule(g, op) if rule is not None else None
        replacement = scratch.ops[:]
        scratch.ops.clear()
        if results is None or not _replace(replacement, results, op.outputs, kept_outputs, alias):
            replacement = [op]
        else:
            changed += 1
        out += replacement
        for each in replacement:
            g.adopt(each)
    graph.ops = out
    return changed


def _known_sizes(op: Op) -> bool:
    return all(t is None or t.dynamic is None for t in (*op.inputs, *op.outputs))


def _replace(
    made: Sequence[Op],
    results: Sequence[Tensor],
    wanted: Sequence[Tensor],
    kept: Set[int],
    alias: dict[int, Tensor],
) -> bool:
    """Let the new operators write the old outputs; a result that existed before becomes an alias."""
    written = {id(t) for op in made for t in op.outputs}
    if any(
        id(r) not in written and (id(w) in kept or r.data is not None)
        for r, w in zip(results, wanted, strict=True)
    ):
        return False
    renamed = {id(r): w for r, w in zip(results, wanted, strict=True) if id(r) in written}
    for op in made:
        op.inputs = [t if t is None else renamed.get(id(t), t) for t in op.inputs]
        op.outputs = [renamed.get(id(t), t) for t in op.outputs]
    alias.update((id(w), r) for r, w in zip(results, wanted, strict=True) if id(r) not in written)
    return True


# --- before fusion ----------------------------------------------------------------------------------


def _relu_0_to_1(g: Builder, op: Op) -> list[Tensor] | None:
    """min(relu(x), 1): the RELU fuses into what is before it."""
    x = op.input()
    if x.dtype != FLOAT32:
        return None
    return [g.binary("MINIMUM", g.unary("RELU", x), 1.0)]


def _log_softmax(g: Builder, op: Op) -> list[Tensor] | None:
    """(x - max) - log(sum(exp(x - max)))."""
    x = op.input()
    if x.dtype != FLOAT32:
        return None
    last = [x.rank - 1]
    shifted = g.binary("SUB", x, g.reduce("REDUCE_MAX", x, last))
    total = g.reduce("SUM", g.unary("EXP", shifted), last)
    return [g.binary("SUB", shifted, g.unary("LOG", total))]


def _sign(g: Builder, op: Op) -> list[Tensor] | None:
    """x times a huge number, cut to [-1, 1] (exact down to 3e-39)."""
    x = op.input()
    if x.dtype != FLOAT32:
        return None
    return [g.unary("RELU_N1_TO_1", g.binary("MUL", x, float(np.finfo(np.float32).max)))]


def _split(g: Builder, op: Op) -> list[Tensor] | None:
    """A SLICE each."""
    x = op.input(1 if op.code == "SPLIT" else 0)
    if op.code == "SPLIT" and len(op.outputs) <= _SPLIT_LIMIT:
        return None
    axis = next(
        (i for i, (a, b) in enumerate(zip(x.shape, op.outputs[0].shape, strict=True)) if a != b), None
    )
    if axis is None:
        return None  # one part, or parts without elements
    parts, start = [], 0
    for out in op.outputs:
        stop = start + out.shape[axis]
        parts.append(g.part(x, axis, range(start, stop)))
        start = stop
    return parts


def _concat(g: Builder, op: Op) -> list[Tensor] | None:
    """A tree of concatenations of five, from the left: DenseNet's growing lists then share their stems."""
    parts = [t for t in op.inputs if t is not None]
    return [concatenated(g, parts, op.options.axis)] if len(parts) > CONCAT_LIMIT else None


def _tile(g: Builder, op: Op) -> list[Tensor] | None:
    """Concatenations of a tensor with itself."""
    x, factors = op.input(), op.input(1)
    if factors.data is None or x.dtype not in (FLOAT32, INT8):
        return None
    times = [int(f) for f in factors.data]
    if sum(f > 1 for f in times) == 0 or any(f > CONCAT_LIMIT for f in times):
        return None
    for axis, f in enumerate(times):
        x = concatenated(g, [x] * f, axis)
    return [x]


def _strided_slice(g: Builder, op: Op) -> list[Tensor] | None:
    """Every n-th element: split the axis into (size / n, n), take one of n. RESHAPE costs nothing."""
    x = op.input()
    out = op.outputs[0]
    begin, step = (op.input(i).data for i in (1, 3))
    if x.dtype not in (FLOAT32, INT8) or begin is None or step is None or np.any(step < 1):
        return None
    shape: list[int] = []
    ranges: list[range] = []
    for size, b, s, n in zip(x.shape, begin.tolist(), step.tolist(), out.shape, strict=True):
        if s == 1 or n == 1:
            shape.append(size)
            ranges.append(range(b, b + n))
        elif size % s:
            return None
        else:
            shape += [size // s, s]
            ranges += [range(b // s, b // s + n), range(b % s, b % s + 1)]
    if len(shape) > _RANK_LIMIT:
        return None
    cut = g.strided(g.reshape(x, shape), ranges)
    return [g.reshape(cut, out.shape)] if cut.shape != out.shape else [cut]


def _gather(g: Builder, op: Op) -> list[Tensor] | None:
    """A few runs of neighbours: a SLICE each."""
    x, index = op.input(), op.input(1)
    if index.data is None or index.rank != 1 or x.dtype not in (FLOAT32, INT8) or x.data is not None:
        return None
    axis = op.options.axis % x.rank
    runs = [list(run) for run in _runs(index.data.tolist())]
    if len(runs) > CONCAT_LIMIT:
        return None
    cuts = [g.part(x, axis, range(r[0], r[-1] + 1)) for r in runs]
    whole = concatenated(g, cuts, axis)
    return [whole]


def _runs(values: Sequence[int]) -> list[list[int]]:
    groups = itertools.groupby(enumerate(values), key=lambda pair: pair[1] - pair[0])
    return [[v for _, v in group] for _, group in groups]


def _average_pool(g: Builder, op: Op) -> list[Tensor] | None:
    """int8: a depthwise convolution with equal weights."""
    x, out = op.input(), op.outputs[0]
    o = op.options
    if x.dtype != INT8 or x.quant is None:
        return None
    window = (o.filterHeight, o.filterWidth)
    exact = all(
        (m - 1) * s + k <= n
        for n, m, s, k in zip(x.shape[1:3], out.shape[1:3], (o.strideH, o.strideW), window, strict=True)
    )
    if not exact:
        return None  # averages over fewer elements at the margin
    channels = x.shape[3]
    # All weights are 1: what the mean divides by is their scale.
    scale = 1.0 / math.prod(window)
    weight = g.constant(np.ones((1, *window, channels), np.int8), quant=Quant.per_tensor(scale))
    bias_quant = Quant.per_tensor(float(x.quant.scale[0]) * scale)
    bias = g.constant(np.zeros(channels, np.int32), quant=bias_quant)
    options = schema.DepthwiseConv2DOptionsT(
        padding=schema.Padding.VALID, strideH=o.strideH, strideW=o.strideW, depthMultiplier=1
    )
    return [g.emit("DEPTHWISE_CONV_2D", [x, weight, bias], out.shape, out, options)]


def _requantized(g: Builder, op: Op) -> list[Tensor] | None:
    """A scale of its own for an average, which is finer than its terms: the convolution rescales anyway."""
    out, pool = op.outputs[0], g.producer(op.input())
    if pool is None or pool.code != "DEPTHWISE_CONV_2D" or out.dtype != INT8:
        return None
    weight = pool.input(1)
    if weight.data is None or weight.data.dtype != INT8 or np.any(weight.data != 1):
        return None
    return [g.emit(pool.code, pool.inputs, out.shape, out, pool.options)]


def _batch_matmul(g: Builder, op: Op) -> list[Tensor] | None:
    """int8: the right-hand side without a zero point."""
    left, right, out = op.input(), op.input(1), op.outputs[0]
    if right.dtype != INT8 or right.quant is None or right.quant.zero_point[0] == 0:
        return None
    low, high = integer_range(INT8)
    zero = int(right.quant.zero_point[0])
    reach = float(right.quant.scale[0]) * max(high - zero, zero - low)
    kind = Type(INT8, Quant.per_tensor(reach / 127))
    return [g.emit("BATCH_MATMUL", [left, g.quantize(right, kind)], out.shape, out, op.options)]


def _nan_guard(g: Builder, op: Op) -> list[Tensor] | None:
    """``where(isnan(p), 0, p)`` behind a masked softmax, as PyTorch's attention decomposes: rows that are
    masked out altogether are 0. Said without comparisons: mask with the lowest finite number, then multiply
    by 1 for rows with something left, by 0 for the others. Exact as long as the scores are finite."""
    condition, zero, p = (op.input(i) for i in range(3))
    test, softmax = g.producer(condition), g.producer(p)
    if zero.data is None or np.any(zero.data) or test is None or softmax is None or softmax.code != "SOFTMAX":
        return None
    if test.code != "NOT_EQUAL" or test.inputs[0] is not p or test.inputs[1] is not p or p.dtype != FLOAT32:
        return None
    if _is_product(g, softmax.input()):
        return [p]
    total = g.producer(softmax.input())
    if total is None or total.code != "ADD":
        return None  # a selection, say: whatever masks in another way than by adding may mask a whole row
    mask, scores = sorted((total.input(), total.input(1)), key=lambda t: (_is_product(g, t), t.size))
    if not _is_product(g, scores) or mask.rank == 0 or mask.shape[-1] != p.shape[-1]:
        return None
    if mask.data is not None:
        empty = np.all(np.isneginf(mask.data), axis=-1)
        if not np.any(empty):
            return [p]
    finite = g.binary("MAXIMUM", mask, float(np.finfo(np.float32).min))
    top = g.reduce("REDUCE_MAX", mask, [mask.rank - 1])
    # 2e-38 brings every finite number into [-7, 7].
    some = g.unary("RELU", g.binary("ADD", g.binary("MUL", top, 2e-38), 10.0))
    weight = g.binary("MINIMUM", some, 1.0)
    shifted = g.binary("ADD", scores, finite)
    clean = g.emit("SOFTMAX", [shifted], p.shape, p, softmax.options)
    return [g.binary("MUL", clean, weight)]


def _is_product(g: Builder, t: Tensor, depth: int = 6) -> bool:
    """Whether a tensor is a matrix product, past scaling and finite constants: attention's scores, never a mask."""
    producer = g.producer(t)
    if producer is None or depth == 0 or producer.code in ("BATCH_MATMUL", "FULLY_CONNECTED"):
        return producer is not None and depth > 0
    if producer.code in ("RESHAPE", "TRANSPOSE"):
        return _is_product(g, producer.input(), depth - 1)
    if producer.code not in ("MUL", "DIV", "ADD"):
        return False
    sides = (producer.input(), producer.input(1))
    finite = [s.data is not None and bool(np.all(np.isfinite(s.data))) for s in sides]
    if producer.code != "ADD" and not any(finite):
        return False
    return not all(finite) and all(
        f or _is_product(g, s, depth - 1) for s, f in zip(sides, finite, strict=True)
    )


# --- after fusion -----------------------------------------------------------------------------------


def _integer_relu(g: Builder, op: Op) -> list[Tensor] | None:
    """int8: saturation where the output's range ends at the limits, else an ADD of zero that clamps."""
    x, out = op.input(), op.outputs[0]
    if x.dtype != INT8 or out.quant is None or x.quant is None:
        return None
    low, high = integer_range(INT8)
    step, zero = float(out.quant.scale[0]), int(out.quant.zero_point[0])
    floor, ceiling = (low - zero) * step, (high - zero) * step
    if floor >= _FLOORS[op.code] - step / 2 and ceiling <= _CEILINGS[op.code] + step / 2:
        return [g.emit("QUANTIZE", [x], out.shape, out)]
    if op.code == "RELU_0_TO_1":
        return None
    # XNNPACK clamps an int8 ADD to its fused activation; the sum with 0 only moves to the new scale.
    nothing = g.constant(np.zeros((1,), np.int8), quant=Quant.per_tensor(step))
    options = schema.AddOptionsT(fusedActivationFunction=getattr(schema.ActivationFunctionType, op.code))
    return [g.emit("ADD", [x, nothing], out.shape, out, options)]


_BEFORE: dict[str, Rule] = {
    "RELU_0_TO_1": _relu_0_to_1,
    "LOG_SOFTMAX": _log_softmax,
    "SIGN": _sign,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "CONCATENATION": _concat,
    "TILE": _tile,
    "STRIDED_SLICE": _strided_slice,
    "GATHER": _gather,
    "AVERAGE_POOL_2D": _average_pool,
    "QUANTIZE": _requantized,
    "BATCH_MATMUL": _batch_matmul,
    "SELECT_V2": _nan_guard,
    "MIRROR_PAD": mirror_pad,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
}
_AFTER: dict[str, Rule] = dict.fromkeys(_FLOORS, _integer_relu)
