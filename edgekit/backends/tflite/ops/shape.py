"""Operators that only move, repeat, cut or join elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.fold import target_shape
from edgekit.backends.tflite.ir import BOOL, INT32, INT64, Tensor, Type
from edgekit.backends.tflite.ops.window import pad as pad_tensor
from edgekit.backends.tflite.registry import Refusal, Rule, op
from edgekit.backends.tflite.view import View
from edgekit.graph import ops
from edgekit.graph.ops import Trait


def constant_ints(g: Builder, view: View | None, what: str) -> tuple[int, ...] | None:
    """The values of an input that has to be known at compile time, None if it is absent."""
    return None if view is None else tuple(g.known(view, f"{what} computed at run time").reshape(-1).tolist())


@op("Reshape", since=5, rule=Rule.SAME)
def reshape(g: Builder, x: View, shape: View, *, allowzero: int = 0) -> View:
    """RESHAPE, or nothing; in front of fully connected layers the weights are permuted instead."""
    target = constant_ints(g, shape, "a shape")
    return _reshaped(g, x, target_shape(x.shape, target or (), allowzero))


@op("Flatten", rule=Rule.SAME)
def flatten(g: Builder, x: View, *, axis: int = 1) -> View:
    """RESHAPE to a matrix."""
    axis = axis % x.rank if axis < 0 else axis
    return _reshaped(g, x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _reshaped(g: Builder, x: View, shape: tuple[int, ...]) -> View:
    # Flatten behind a convolution: the weights behind it are permuted once, the activations never.
    merges_tail = (
        len(shape) == 2 and x.rank > 2 and shape[0] == x.shape[0] and x.perm[0] == 0 and not x.is_plain
    )
    if merges_tail and x.tensor.data is None and _feeds_weights(g):
        order = np.arange(math.prod(x.shape[1:])).reshape(x.shape[1:])
        laid = np.transpose(order, [p - 1 for p in x.perm[1:]]).reshape(-1)
        if not np.array_equal(laid, np.arange(laid.size)):
            return View(g.reshape(x.tensor, shape), (0, 1), tuple(laid.tolist()))
    return g.reshape_view(x, shape)


_POINTWISE = ops.named(Trait.ACTIVATION | Trait.PASSES | Trait.QUANTIZES) - {
    "PRelu",  # has a slope a channel
    "HardSigmoid",
}


def _feeds_weights(g: Builder) -> bool:
    """Whether everything behind the current node ends in products with constant matrices."""
    assert g.node is not None
    front = [g.node.outputs[0]]
    while front:
        value = front.pop()
        uses = list(value.uses())
        if not uses or value in g.lowering.lookahead.outputs:
            return False
        for use in uses:
            node = use.node
            if node.domain == "" and node.op_type in _POINTWISE and use.idx == 0:
                front.append(node.outputs[0])
                continue
            if node.op_type not in ("Gemm", "MatMul") or use.idx != 0 or node.inputs[1] is None:
                return False
            transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
            if transposed or not g.lowering.is_constant(node.inputs[1]):
                return False
    return True


@op("Transpose", rule=Rule.SAME)
def transpose(g: Builder, x: View, *, perm: Sequence[int] | None = None) -> View:
    """Nothing: the view changes."""
    return g.transpose_view(x, tuple(perm) if perm is not None else tuple(reversed(range(x.rank))))


@op("Squeeze", since=13, rule=Rule.SAME)
def squeeze(g: Builder, x: View, axes: View | None = None) -> View:
    """RESHAPE."""
    return squeeze_by_attribute(g, x, axes=constant_ints(g, axes, "axes"))


@op("Squeeze", since=1, rule=Rule.SAME)
def squeeze_by_attribute(g: Builder, x: View, *, axes: Sequence[int] | None = None) -> View:
    """RESHAPE."""
    gone = {a % x.rank for a in axes} if axes else {i for i, d in enumerate(x.shape) if d == 1}
    return _reshaped(g, x, tuple(d for i, d in enumerate(x.shape) if i not in gone))


@op("Unsqueeze", since=13, rule=Rule.SAME)
def unsqueeze(g: Builder, x: View, axes: View) -> View:
    """RESHAPE."""
    return unsqueeze_by_attribute(g, x, axes=constant_ints(g, axes, "axes") or ())


@op("Unsqueeze", since=1, rule=Rule.SAME)
def unsqueeze_by_attribute(g: Builder, x: View, *, axes: Sequence[int]) -> View:
    """RESHAPE."""
    rank = x.rank + len(axes)
    new = {a % rank for a in axes}
    sizes = iter(x.shape)
    return g.reshape_view(x, tuple(1 if i in new else next(sizes) for i in range(rank)))


@op("Concat", rule=Rule.FREE)
def concat(g: Builder, *views: View, axis: int) -> View:
    """CONCATENATION in the order of axes that most of the data has; quantized inputs are brought to the
    output's parameters, as TFLite demands."""
    if not all(v.rank for v in views):
        raise Refusal("scalars are not concatenated")
    shown = [v for v in views if v.shape[axis % v.rank] != 0] or list(views[:1])
    if len(shown) == 1:
        return shown[0]
    rank = views[0].rank
    perm = g.common_order(shown, rank)
    tensors = [g.layout(v, perm) for v in shown]
    kind = g.type_like(next((t for t in tensors if t.data is None), tensors[0]))
    if kind.quant is not None:
        tensors = [g.quantize(t, kind) for t in tensors]
    place = perm.index(axis % rank)
    return View(g.concat(tensors, place, kind), perm)


@op("Split", since=18, rule=Rule.SAME)
def split(
    g: Builder, x: View, sizes: View | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> Sequence[View]:
    """SPLIT, or SPLIT_V for unequal parts."""
    parts = constant_ints(g, sizes, "split sizes")
    total = x.shape[axis % x.rank]
    if parts is None:
        count = num_outputs or (len(g.node.outputs) if g.node is not None else 1)
        each = math.ceil(total / count)
        parts = (*(each,) * (count - 1), total - each * (count - 1))
    return _split(g, x, axis, parts)


@op("Split", since=13, rule=Rule.SAME)
def split_13(g: Builder, x: View, sizes: View | None = None, *, axis: int = 0) -> Sequence[View]:
    """SPLIT or SPLIT_V."""
    return split(g, x, sizes, axis=axis)


@op("Split", since=1, rule=Rule.SAME)
def split_by_attribute(
    g: Builder, x: View, *, axis: int = 0, split: Sequence[int] | None = None
) -> Sequence[View]:
    """SPLIT or SPLIT_V."""
    count = len(g.node.outputs) if g.node is not None else 1
    return _split(g, x, axis, split or (x.shape[axis] // count,) * count)


def _split(g: Builder, x: View, axis: int, sizes: Sequence[int]) -> Sequence[View]:
    if len(sizes) == 1:
        return [x]
    place = x.position(axis)
    kinds = [
        ((*x.tensor.shape[:place], size, *x.tensor.shape[place + 1 :]), Type(x.dtype, x.quant))
        for size in sizes
    ]
    where = g.constant(np.int32(place))
    if len(set(sizes)) == 1:
        outs = g.emit_many("SPLIT", [where, x.tensor], kinds, schema.SplitOptionsT(numSplits=len(sizes)))
    else:
        options = schema.SplitVOptionsT(numSplits=len(sizes))
        outs = g.emit_many("SPLIT_V", [x.tensor, g.ints(sizes), where], kinds, options)
    return [x.with_tensor(t) for t in outs]


@op("Slice", since=10, rule=Rule.SAME)
def slice_(
    g: Builder, x: View, starts: View, ends: View, axes: View | None = None, steps: View | None = None
) -> View:
    """SLICE, STRIDED_SLICE where the steps are not 1."""
    first = constant_ints(g, starts, "slice starts") or ()
    last = constant_ints(g, ends, "slice ends") or ()
    return _slice(
        g, x, first, last, constant_ints(g, axes, "slice axes"), constant_ints(g, steps, "slice steps")
    )


@op("Slice", since=1, rule=Rule.SAME)
def slice_by_attributes(
    g: Builder, x: View, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None
) -> View:
    """SLICE."""
    return _slice(g, x, starts, ends, axes, None)


def _slice(
    g: Builder,
    x: View,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> View:
    ranges = [range(d) for d in x.shape]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[i] if axes is not None else i) % x.rank
        step = steps[i] if steps is not None else 1
        # Going backwards, an end before the first element means "through element 0".
        stop = None if step < 0 and end < -x.shape[axis] else end
        ranges[axis] = range(x.shape[axis])[start:stop:step]
    laid = [ranges[p] for p in x.perm]
    return x.with_tensor(g.strided(x.tensor, laid))


@op("Pad", since=11, rule=Rule.SAME)
def pad(
    g: Builder,
    x: View,
    pads: View,
    value: View | None = None,
    axes: View | None = None,
    *,
    mode: str = "constant",
) -> View:
    """PAD, PADV2, MIRROR_PAD; edge by repeating slices; negative pads crop."""
    margins = constant_ints(g, pads, "pads") or ()
    fill = 0.0
    if value is not None and value.size:
        fill = g.known(value, "a padding value computed at run time").reshape(-1)[0].item()
    which = constant_ints(g, axes, "axes") or tuple(range(len(margins) // 2))
    return _pad(g, x, margins, which, mode, fill)


@op("Pad", since=1, rule=Rule.SAME)
def pad_by_attributes(
    g: Builder, x: View, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0
) -> View:
    """Pad before opset 11."""
    return _pad(g, x, pads, range(len(pads) // 2), mode, value)


def _pad(g: Builder, x: View, pads: Sequence[int], axes: Sequence[int], mode: str, fill: float) -> View:
    half = len(pads) // 2
    both = [(0, 0)] * x.rank
    for i, axis in enumerate(axes):
        both[axis % x.rank] = (int(pads[i]), int(pads[i + half]))
    laid = [both[p] for p in x.perm]
    t = x.tensor
    if any(a < 0 or b < 0 for a, b in laid):
        inner = [range(max(-a, 0), d - max(-b, 0)) for d, (a, b) in zip(t.shape, laid, strict=True)]
        t = g.strided(t, inner)
        laid = [(max(a, 0), max(b, 0)) for a, b in laid]
    if not any(a or b for a, b in laid):
        return x.with_tensor(t)
    if mode == "constant":
        return x.with_tensor(_constant_pad(g, t, laid, fill))
    if mode == "reflect" and all(a < d and b < d for d, (a, b) in zip(t.shape, laid, strict=True)):
        shape = [d + a + b for d, (a, b) in zip(t.shape, laid, strict=True)]
        options = schema.MirrorPadOptionsT(mode=schema.MirrorPadMode.REFLECT)
        return x.with_tensor(
            g.emit("MIRROR_PAD", [t, g.constant(np.asarray(laid, np.int32))], shape, t, options)
        )
    return x.with_tensor(_gathered_pad(g, t, laid, mode))


def _constant_pad(g: Builder, t: Tensor, pads: Sequence[tuple[int, int]], fill: float) -> Tensor:
    # PAD has no kernel for booleans, nor for narrow integers without a scale.
    if t.dtype == BOOL:
        return g.cast(_constant_pad(g, g.cast(t, INT32), pads, float(fill)), BOOL)
    if t.quant is None and t.dtype.kind in "iu" and t.dtype not in (INT32, INT64):
        return g.cast(_constant_pad(g, g.cast(t, INT64), pads, fill), t.dtype)
    return pad_tensor(g, t, pads, fill)


def _gathered_pad(g: Builder, t: Tensor, pads: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Any padding that only repeats elements, axis by axis, by GATHER."""
    modes = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}
    if mode not in modes:
        raise Refusal(f"padding mode {mode!r}")
    for axis, (before, after) in enumerate(pads):
        if before or after:
            index = np.pad(np.arange(t.shape[axis]), (before, after), mode=modes[mode])  # type: ignore[call-overload]
            (*t.shape[:axis], index.size, *t.shape[axis + 1 :])
            t = g.gather(t, g.ints(index), axis)
    return t


@op("Expand", since=8, rule=Rule.SAME)
def expand(g: Builder, x: View, shape: View) -> View:
    """RESHAPE where only axes of size 1 are added, else BROADCAST_TO."""
    target = np.broadcast_shapes(x.shape, constant_ints(g, shape, "a shape") or ())
    return broadcast_to(g, x, target)


def broadcast_to(g: Builder, x: View, shape: tuple[int, ...]) -> View:
    """numpy's broadcast_to."""
    lifted = g.reshape_view(x, (1,) * (len(shape) - x.rank) + x.shape)
    if shape == lifted.shape:
        return lifted
    laid = tuple(shape[p] for p in lifted.perm)
    factors = [n // d for n, d in zip(laid, lifted.tensor.shape, strict=True)]
    return lifted.with_tensor(tiled(g, lifted.tensor, factors))


@op("Tile", since=6, rule=Rule.SAME)
def tile(g: Builder, x: View, repeats: View) -> View:
    """TILE."""
    times = constant_ints(g, repeats, "repeats") or ()
    return x.with_tensor(tiled(g, x.tensor, [times[p] for p in x.perm]))


def tiled(g: Builder, t: Tensor, factors: Sequence[int]) -> Tensor:
    """``np.tile``; a constant is computed if small."""
    if all(f == 1 for f in factors):
        return t
    shape = [d * f for d, f in zip(t.shape, factors, strict=True)]
    if 0 in shape:
        return Tensor(tuple(shape), t.dtype, data=np.zeros(shape, t.dtype), quant=t.quant)
    return g.emit("TILE", [t, g.ints(factors)], shape, Type(t.dtype, t.quant))


@op("DepthToSpace", since=1, rule=Rule.SAME, quantized=("int8", "uint8"))
def depth_to_space(g: Builder, x: View, *, blocksize: int, mode: str = "DCR") -> View:
    """DEPTH_TO_SPACE for DCR; CRD (PixelShuffle) by permuting the channels before."""
    n, c, h, w = x.shape
    out = c // blocksize**2
    perm = (0, 2, 3, 1)
    t = g.layout(x, perm)
    # The channels of PixelShuffle come as (out, row, column); DEPTH_TO_SPACE wants (row, column, out).
    if mode == "CRD":
        index = np.arange(c).reshape(out, blocksize, blocksize).transpose(1, 2, 0).reshape(-1)
        if out > 1:
            t = g.gather(t, g.ints(index), 3)
    options = schema.DepthToSpaceOptionsT(blockSize=blocksize)
    return View(g.emit("DEPTH_TO_SPACE", [t], (n, h * blocksize, w * blocksize, out), t, options), perm)


@op("SpaceToDepth", since=1, rule=Rule.SAME, quantized=("int8", "uint8"))
def space_to_depth(g: Builder, x: View, *, blocksize: int, mode: str = "DCR") -> View:
    """SPACE_TO_DEPTH; with the channels outermost (CRD) a transposition."""
    n, c, h, w = x.shape
    if mode == "CRD":
        blocks = g.reshape_view(x, (n, c, h // blocksize, blocksize, w // blocksize, blocksize))
        moved = g.transpose_view(blocks, (0, 1, 3, 5, 2, 4))
        return g.reshape_view(moved, (n, c * blocksize**2, h // blocksize, w // blocksize))
    t = g.layout(x, (0, 2, 3, 1))
    shape = (n, h // blocksize, w // blocksize, c * blocksize**2)
    options = schema.SpaceToDepthOptionsT(blockSize=blocksize)
    return View(g.emit("SPACE_TO_DEPTH", [t], shape, t, options), (0, 2, 3, 1))
