"""ONNX operators that OpenVINO's reader refuses or reads wrongly, in operators that it reads rightly.

Measured with OpenVINO 2026.4: Pad that wraps is refused, DFT has other shapes or is; Resize reads neither
``antialias`` nor ``exclude_outside``; pools that round up count the margin (AveragePool) or give a window that begins
in it (both); Softmax before opset 13 is taken for today's; TopK does not keep equals in order (mended in the read
model, :func:`keep_order`).
A cast to truth values behind an operator of several outputs (TopK, Split) is not compiled.
A reduction of integers over other than the last axes, followed by arithmetic, gives something else.
ReduceMax and ReduceMin take a rounding behind them in, and then give noise; so do kernels of 16 with few channels a
group in integers. Every reduction that drops its axes gives noise where arithmetic by channel and a rounding follow:
the mean over a text's tokens before a quantized classifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import attribute, constant, home, integers, nodes, produced_by, replace, static_shape
from edgekit.graph.make import Maker

if TYPE_CHECKING:
    import openvino as ov

    from edgekit.types import Array

_PER_AXIS = 13
"""The opset from which Softmax and its kin normalize along one axis."""

_New: TypeAlias = "list[ir.Node] | None"


def rewrite(model: ir.Model) -> None:
    """Replace what the reader cannot be given, in place."""
    for node in nodes(model, *_RULES):
        made = _RULES[node.op_type](node) if home(node) is not None else None
        if made:
            replace(node, made)


# --- margins ----------------------------------------------------------------------------------------


def _wrapping_pad(node: ir.Node) -> _New:
    """One axis after the other: its end, itself, its beginning."""
    x, shape = node.inputs[0], static_shape(node.inputs[0])
    pads = constant(node.inputs[1])
    if attribute(node, "mode", "constant") != "wrap" or x is None or shape is None or pads is None:
        return None
    given = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    axes = range(len(shape)) if given is None else [int(a) % len(shape) for a in given]
    make, value = Maker(node), x
    for axis, before, after in zip(axes, *np.split(pads, 2), strict=True):
        size = shape[axis]
        if not (0 <= before <= size and 0 <= after <= size):
            return None
        parts = [make.part(value, axis, size - int(before), size)] if before else []
        parts.append(value)
        parts += [make.part(value, axis, 0, int(after))] if after else []
        if len(parts) > 1:
            value = make.add("Concat", parts, axis=axis)
    return make.made


# --- pools ------------------------------------------------------------------------------------------


def _rounded_up_pool(node: ir.Node) -> _New:
    """Margins as data, so that a mean counts them; the window that would begin in the margin behind is cut off."""
    x, shape = node.inputs[0], static_shape(node.inputs[0])
    automatic = attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    indices = len(node.outputs) > 1 and bool(node.outputs[1].uses())
    if not attribute(node, "ceil_mode", 0) or x is None or shape is None or automatic or indices:
        return None
    rank = len(shape) - 2
    pads = integers(node, "pads") or [0] * 2 * rank
    counted = node.op_type == "AveragePool" and bool(attribute(node, "count_include_pad", 0)) and any(pads)
    spans = [_span(node, i, n, pads[i], pads[i + rank]) for i, n in enumerate(shape[2:])]
    surplus = [(axis, wants) for axis, (has, wants) in enumerate(spans, start=2) if has > wants]
    if not counted and not surplus:
        return None
    make, value = Maker(node), x
    if counted:
        margins = make.ints(0, 0, *pads[:rank], 0, 0, *pads[rank:])
        value = make.add("Pad", [value, margins, make.constant(np.zeros((), np.float32))])
        pads = [0] * 2 * rank
    kept = {k: a.value for k, a in node.attributes.items() if k not in ("pads", "count_include_pad")}
    value = make.add(node.op_type, [value], pads=pads, **kept)
    for axis, wants in surplus:
        value = make.part(value, axis, 0, wants)
    return make.made


def _span(node: ir.Node, i: int, size: int, before: int, after: int) -> tuple[int, int]:
    """How many windows OpenVINO finds along spatial axis ``i``, and how many there are."""
    kernel, strides, dilations = (integers(node, n) for n in ("kernel_shape", "strides", "dilations"))
    assert kernel is not None
    step, reach = (strides[i] if strides else 1), (kernel[i] - 1) * (dilations[i] if dilations else 1) + 1
    found = -(-(size + before + after - reach) // step) + 1
    return found, found - ((found - 1) * step >= size + before)


def _quantized_extreme(node: ir.Node) -> _New:
    """No smaller (larger) than any number is: a reduction to the maximum or minimum takes the rounding behind it in,
    and gives noise; what stands between the two computes nothing."""
    x = node.inputs[0]
    if x is None or x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or not _is_quantized(node):
        return None
    make, largest, drops = Maker(node), node.op_type == "ReduceMax", _drops_axes(node)
    given = _keeping(node) if drops else {k: a.value for k, a in node.attributes.items()}
    reduced = make.add(node.op_type, node.inputs, **given)
    limits = np.finfo(x.dtype.numpy())
    bound = make.constant(np.asarray(limits.min if largest else limits.max, x.dtype.numpy()))
    bounded = make.add("Max" if largest else "Min", [reduced, bound])
    if drops:
        _dropped_behind(node, make, bounded)
    return make.made


def _reduction(node: ir.Node) -> _New:
    """Of integers over rows; of floats in a quantized graph with its axes kept, and dropped behind it."""
    x = node.inputs[0]
    if x is None or x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return _integer_reduction(node)
    if not _drops_axes(node) or not _is_quantized(node):
        return None
    make = Maker(node)
    _dropped_behind(node, make, make.add(node.op_type, node.inputs, **_keeping(node)))
    return make.made


def _drops_axes(node: ir.Node) -> bool:
    """Whether the reduction is over named axes, and leaves them out of its result."""
    named = (len(node.inputs) > 1 and node.inputs[1] is not None) or integers(node, "axes")
    return bool(named) and not attribute(node, "keepdims", 1)


def _keeping(node: ir.Node) -> dict[str, Any]:
    """The reduction's attributes, its axes kept."""
    return {k: a.value for k, a in node.attributes.items()} | {"keepdims": 1}


def _dropped_behind(node: ir.Node, make: Maker, reduced: ir.Value) -> None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    make.add("Squeeze", [reduced, make.ints(*(integers(node, "axes") or ())) if axes is None else axes])


def _is_quantized(node: ir.Node) -> bool:
    graph = home(node)
    return graph is not None and any(n.op_type == "QuantizeLinear" for n in graph)


def _integer_reduction(node: ir.Node) -> _New:
    """Over the rows of a matrix: of integers, a reduction over other than the last axes takes in the arithmetic behind
    it, and gets that wrong; behind a Reshape there is none."""
    x, shape = node.inputs[0], static_shape(node.inputs[0])
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if x is None or shape is None or axes is None or x.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    over = sorted({int(a) % len(shape) for a in axes.reshape(-1)})
    others = [i for i in range(len(shape)) if i not in over]
    if not over or not others or max(others) < min(over):
        return None
    make = Maker(node)
    moved = make.add("Transpose", [x], perm=[*others, *over])
    rows = make.ints(math.prod(shape[i] for i in others), math.prod(shape[i] for i in over))
    reduced = make.add(node.op_type, [make.add("Reshape", [moved, rows]), make.ints(1)], keepdims=0)
    kept = range(len(shape)) if attribute(node, "keepdims", 1) else others
    make.add("Reshape", [reduced, make.ints(*(1 if i in over else shape[i] for i in kept))])
    return make.made


def _extreme(node: ir.Node) -> _New:
    return _integer_reduction(node) or _quantized_extreme(node)


_FEW_CHANNELS = 32
_WRONG_KERNEL = 16


def _sixteen_taps(node: ir.Node) -> _New:
    """A tap of zeros more: of integers, kernels of 16 with few channels a group are computed wrongly."""
    x, stored = node.inputs[0], produced_by(node.inputs[1], "DequantizeLinear")
    shape = static_shape(node.inputs[1])
    weight = constant(stored.inputs[0]) if stored is not None else None
    automatic = attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    if x is None or stored is None or weight is None or shape is None or automatic:
        return None
    spatial = shape[2:]
    if shape[1] >= _FEW_CHANNELS or _WRONG_KERNEL not in spatial or weight.dtype.itemsize != 1:
        return None
    zero = constant(stored.inputs[2]) if len(stored.inputs) > 2 else None
    if zero is not None and zero.any():
        return None
    more = [int(k == _WRONG_KERNEL) for k in spatial]
    make = Maker(node)
    wide = make.constant(np.pad(weight, [(0, 0), (0, 0), *((0, m) for m in more)]))
    kept = {k: a.value for k, a in stored.attributes.items()}
    weights = make.add("DequantizeLinear", [wide, *stored.inputs[1:]], **kept)
    attributes = {k: a.value for k, a in node.attributes.items()}
    pads = list(attributes.get("pads") or [0] * 2 * len(spatial))
    dilations = attributes.get("dilations") or [1] * len(spatial)
    for i, m in enumerate(more):
        pads[len(spatial) + i] += m * dilations[i]
    attributes |= {"pads": pads, "kernel_shape": [k + m for k, m in zip(spatial, more, strict=True)]}
    make.add("Conv", [x, weights, *node.inputs[2:]], **attributes)
    return make.made


# --- spectra ----------------------------------------------------------------------------------------

_LONGEST = 4096
"""Elements of a transform that becomes a product with a matrix: 64 MiB."""


def _transform(node: ir.Node) -> _New:
    """A product with cosines and sines; of a one-sided spectrum the upper half mirrors the lower."""
    x, shape = node.inputs[0], static_shape(node.inputs[0])
    axis = constant(node.inputs[2]) if len(node.inputs) > 2 else np.asarray(-2)
    if x is None or shape is None or axis is None or shape[-1] not in (1, 2):
        return None
    place, parts = int(axis.reshape(-1)[0]) % len(shape), shape[-1]
    length = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    inverse, onesided = bool(attribute(node, "inverse", 0)), bool(attribute(node, "onesided", 0))
    have = shape[place]
    n = int(length.reshape(-1)[0]) if length is not None else 2 * (have - 1) if inverse and onesided else have
    if n > _LONGEST or have != (n // 2 + 1 if inverse and onesided else n) or (inverse and parts != 2):
        return None
    matrix = _matrix(n, have, inverse, onesided)[:parts]
    _, _, count, results = matrix.shape
    make = Maker(node)
    order = [i for i in range(len(shape) - 1) if i != place]
    # Real and imaginary parts side by side: one product gives what is asked for.
    last = make.add("Transpose", [x], perm=[*order, len(shape) - 1, place])
    flat = make.add("Reshape", [last, make.ints(*(shape[i] for i in order), parts * have)])
    weights = make.constant(matrix.reshape(parts * have, count * results).astype(np.float32))
    product = make.add("MatMul", [flat, weights])
    split = make.add("Reshape", [product, make.ints(*(shape[i] for i in order), count, results)])
    back = [*range(place), len(shape) - 2, *range(place, len(shape) - 2), len(shape) - 1]
    make.add("Transpose", [split], perm=back)
    return make.made


def _matrix(n: int, have: int, inverse: bool, onesided: bool) -> Array:
    """``[part, element, result, part]``: what the real and the imaginary part of each element add to each result's."""
    count = n if inverse or not onesided else n // 2 + 1
    turns = np.outer(np.arange(have), np.arange(count)) % n
    angle = turns * (2 * math.pi / n)
    cos, sin = np.cos(angle), np.sin(angle) * (1 if inverse else -1)
    matrix: Array = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)])
    if not inverse:
        return matrix
    factor: Array = np.full((have, 1, 1), 1.0 / n)
    if onesided:  # all but the first and, of even lengths, the middle one stand for two
        k = np.arange(have)
        factor[(k > 0) & (2 * k != n)] *= 2
        matrix = matrix[..., :1]
    return matrix * factor


# --- sizes ------------------------------------------------------------------------------------------


def _resize(node: ir.Node) -> _New:
    """A product with a matrix of weights an axis."""
    x, shape, out = node.inputs[0], static_shape(node.inputs[0]), static_shape(node.outputs[0])
    mode = attribute(node, "mode", "nearest")
    odd = attribute(node, "antialias", 0) or attribute(node, "exclude_outside", 0)
    if x is None or shape is None or out is None or mode not in ("linear", "cubic") or not odd:
        return None
    transform = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if transform not in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        return None
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    given = [int(a) % len(shape) for a in integers(node, "axes") or range(len(shape))]
    make, value = Maker(node), x
    for axis, (n, m) in enumerate(zip(shape, out, strict=True)):
        exact = scales is not None and scales.size and axis in given
        scale = float(scales[given.index(axis)]) if exact and scales is not None else m / n
        if n == m and scale == 1.0:
            continue
        weights = make.constant(_axis_weights(node, n, m, scale, transform).T.astype(np.float32))
        order = [*(i for i in range(len(shape)) if i != axis), axis]
        back = [order.index(i) for i in range(len(shape))]
        moved = make.add("Transpose", [value], perm=order)
        value = make.add("Transpose", [make.add("MatMul", [moved, weights])], perm=back)
    return make.made


def _axis_weights(node: ir.Node, n: int, m: int, scale: float, transform: str) -> Array:
    """How much of each of ``n`` elements is in each of ``m``, as the specification's reference computes it."""
    cubic = attribute(node, "mode", "nearest") == "cubic"
    coefficient = float(attribute(node, "cubic_coeff_a", -0.75))
    stretch = max(1.0, 1.0 / scale) if attribute(node, "antialias", 0) else 1.0
    inside = bool(attribute(node, "exclude_outside", 0))
    reach = math.ceil((2 if cubic else 1) * stretch)
    weights = np.zeros((m, n))
    for i in range(m):
        if transform == "align_corners":
            at = i * (n - 1) / (m - 1) if m > 1 else 0.0
        elif transform == "asymmetric":
            at = i / scale
        else:
            at = 0.0 if transform == "pytorch_half_pixel" and m == 1 else (i + 0.5) / scale - 0.5
        taps = np.arange(math.floor(at) - reach, math.floor(at) + reach + 2)
        distance = np.abs(taps - at) / stretch
        shares = _cubic(distance, coefficient) if cubic else np.maximum(0.0, 1.0 - distance)
        if inside:
            shares = np.where((taps >= 0) & (taps < n), shares, 0.0)
        np.add.at(weights[i], np.clip(taps, 0, n - 1), shares / shares.sum())
    return weights


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


# --- softmax ----------------------------------------------------------------------------------------


def _old_softmax(node: ir.Node) -> _New:
    """Before opset 13 an axis split the tensor into a matrix whose rows are normalized; the reader takes one axis."""
    graph, x, shape = home(node), node.inputs[0], static_shape(node.inputs[0])
    if graph is None or graph.opset_imports.get("", _PER_AXIS) >= _PER_AXIS or x is None or shape is None:
        return None
    axis = int(attribute(node, "axis", 1)) % len(shape)
    if axis == len(shape) - 1:
        return None
    make = Maker(node)
    rows = make.add("Reshape", [x, make.ints(math.prod(shape[:axis]), math.prod(shape[axis:]))])
    make.add("Reshape", [make.add(node.op_type, [rows], axis=1), make.ints(*shape)])
    return make.made


# --- truth values -----------------------------------------------------------------------------------


def _truth_of_several(node: ir.Node) -> _New:
    """Whether it is not zero: a cast to truth values behind an operator of several outputs is not compiled."""
    x = node.inputs[0]
    producer = x.producer() if x is not None else None
    if attribute(node, "to", 0) != ir.DataType.BOOL or x is None or producer is None:
        return None
    if len(producer.outputs) < 2 or x.dtype is None or x.dtype == ir.DataType.BOOL:
        return None
    make = Maker(node)
    zero = make.constant(np.zeros((), x.dtype.numpy()))
    make.add("Not", [make.add("Equal", [x, zero])])
    return make.made


_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"),
    "ReduceSumSquare",
)
_RULES: dict[str, Callable[[ir.Node], _New]] = {
    "Cast": _truth_of_several,
    "Pad": _wrapping_pad,
    "AveragePool": _rounded_up_pool,
    "MaxPool": _rounded_up_pool,
    "ReduceMax": _extreme,
    "ReduceMin": _extreme,
    **dict.fromkeys(_REDUCTIONS, _reduction),
    "Conv": _sixteen_taps,
    "DFT": _transform,
    "Resize": _resize,
    "Softmax": _old_softmax,
    "LogSoftmax": _old_softmax,
    "Hardmax": _old_softmax,
}


# --- the read model ---------------------------------------------------------------------------------


def keep_order(model: ov.Model, runtime: object) -> None:
    """Let TopK give the lower index first among equals, as ONNX says: a flag that the reader does not set."""
    operators = [op for op in model.get_ordered_ops() if op.get_type_name() == "TopK"]
    for op in operators:
        flags = op.get_attributes()
        if flags["sort"] == "none":  # nothing has an order then
            continue
        made = runtime.opset11.topk(  # type: ignore[attr-defined]
            op.input_value(0),
            op.input_value(1),
            flags["axis"],
            flags["mode"],
            flags["sort"],
            flags.get("index_element_type", "i64"),
            True,
        )
        made.set_friendly_name(op.get_friendly_name())
        for old, new in zip(op.outputs(), made.outputs(), strict=True):
            new.set_names(old.get_names())
        runtime.utils.replace_node(op, made)  # type: ignore[attr-defined]
