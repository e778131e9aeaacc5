"""Windows that TensorRT's parser does not take, written plainly: dilated pooling, and patches back to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.backends.nvidia.infinities import Known, apart, known_of
from edgekit.graph.edit import attribute, constant, integers, produced_by
from edgekit.graph.make import Maker

_MOST_SLICES = 96
_END = (1 << 63) - 1


def pool(node: ir.Node) -> Sequence[ir.Node] | None:
    """A dilated MaxPool or AveragePool, one axis after the other: the largest (the mean) of shifted slices.

    Sizes of the batch and of the image may be open, but for what is rounded up and for means that leave padding out.
    """
    kernel = integers(node, "kernel_shape") or []
    rank = len(kernel)
    dilations = integers(node, "dilations") or [1] * rank
    x = node.inputs[0]
    if x is None or x.dtype != ir.DataType.FLOAT or len(node.outputs) > 1:
        return None
    if all(d == 1 for d in dilations) or sum(kernel) > _MOST_SLICES:
        return None
    strides = integers(node, "strides") or [1] * rank
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = _pads(node, spans, strides)
    largest = node.op_type == "MaxPool"
    means = None if largest else _means(node, kernel, dilations, strides)
    if pads is None or (not largest and means is None):
        return None
    new = Maker(node)
    if any(pads):
        around = new.ints(0, 0, *pads[:rank], 0, 0, *pads[rank:])
        x = new.add("Pad", [x, around, new.constant(np.asarray(-np.inf if largest else 0, np.float32))])
    for i, (size, step, stride) in enumerate(zip(kernel, dilations, strides, strict=True)):
        last = step * (size - 1)
        where, by = new.ints(2 + i), new.ints(stride)
        parts = [
            new.add("Slice", [x, new.ints(p * step), new.ints(p * step - last or _END), where, by])
            for p in range(size)
        ]
        x = new.add("Max" if largest else "Sum", parts) if size > 1 else parts[0]
        if not largest and size > 1:
            x = new.add("Mul", [x, new.constant(np.asarray(1 / size, np.float32))])
    if means is not None and means.size:
        new.add("Mul", [x, new.constant(means)])
    return new.made


def _pads(node: ir.Node, spans: Sequence[int], strides: Sequence[int]) -> list[int] | None:
    """What is padded before and behind, what rounding up takes included; ``None`` where that is not known."""
    rank = len(spans)
    pads = integers(node, "pads") or [0] * (2 * rank)
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    if not attribute(node, "ceil_mode", 0):
        return pads
    sizes = _image(node.inputs[0], rank)
    if sizes is None or node.op_type != "MaxPool":
        return None
    for i, (size, span, stride) in enumerate(zip(sizes, spans, strides, strict=True)):
        whole = size + pads[i] + pads[rank + i]
        count = -(-(whole - span) // stride) + 1
        if (count - 1) * stride >= size + pads[i]:  # no window starts in the padding behind
            count -= 1
        pads[rank + i] += max(0, (count - 1) * stride + span - whole)
    return pads


def _means(
    node: ir.Node, kernel: Sequence[int], dilations: Sequence[int], strides: Sequence[int]
) -> np.ndarray | None:
    """What the mean over whole windows is multiplied by, where padding does not count; empty: by nothing."""
    rank = len(kernel)
    pads = integers(node, "pads") or [0] * (2 * rank)
    if attribute(node, "count_include_pad", 0) or not any(pads):
        return np.empty(0, np.float32)
    sizes = _image(node.inputs[0], rank)
    if sizes is None or attribute(node, "ceil_mode", 0):
        return None
    factors = np.ones([1] * (2 + rank), np.float32)
    for i, size in enumerate(sizes):
        inside = np.pad(np.ones(size), (pads[i], pads[rank + i]))
        last = dilations[i] * (kernel[i] - 1)
        starts = range(0, inside.size - last, strides[i])
        counts = [inside[s : s + last + 1 : dilations[i]].sum() for s in starts]
        shape = [-1 if axis == 2 + i else 1 for axis in range(2 + rank)]
        factors = factors * (kernel[i] / np.maximum(counts, 1)).astype(np.float32).reshape(shape)
    return factors


def _image(value: ir.Value | None, rank: int) -> list[int] | None:
    """The sizes behind batch and channels, where they are numbers."""
    shape = value.shape if value is not None else None
    if shape is None or len(shape) != 2 + rank:
        return None
    sizes = [d for d in shape[2:] if isinstance(d, int)]
    return sizes if len(sizes) == rank else None


def col2im(node: ir.Node) -> Sequence[ir.Node] | None:
    """Patches are added where they were: a transposed convolution, each channel for itself, with a one a place."""
    x, image, block = node.inputs
    size, kernel, shape = constant(image), constant(block), x.shape if x is not None else None
    if x is None or size is None or kernel is None or shape is None or x.dtype != ir.DataType.FLOAT:
        return None
    places, rank = math.prod(kernel.tolist()), kernel.size
    width = shape[1] if len(shape) == 3 else None
    if not isinstance(width, int) or places < 1 or width % places:
        return None
    strides = integers(node, "strides") or [1] * rank
    dilations = integers(node, "dilations") or [1] * rank
    pads = integers(node, "pads") or [0] * (2 * rank)
    spans = [int(d * (k - 1) + 1) for d, k in zip(dilations, kernel, strict=True)]
    whole = [int(size[i]) + pads[i] + pads[rank + i] for i in range(rank)]
    counts = [(whole[i] - spans[i]) // strides[i] + 1 for i in range(rank)]
    channels = width // places
    new = Maker(node)
    ones = np.eye(places, dtype=np.float32).reshape(1, places, 1, *kernel.tolist())
    weights = np.broadcast_to(ones, (channels, *ones.shape[1:])).reshape(width, 1, *kernel.tolist())
    weights = _with_zeros(weights, dilations)
    patches = new.add("Reshape", [x, new.ints(0, width, *counts)])
    kept = new.constant(np.ascontiguousarray(weights))

    def added(patches: ir.Value) -> ir.Value:
        return new.add("ConvTranspose", [patches, kept], group=channels, strides=strides, kernel_shape=spans)

    full = apart(new, patches, added)
    made = [(c - 1) * s + n for c, s, n in zip(counts, strides, spans, strict=True)]
    missing = [max(0, pads[i] + int(size[i]) - made[i]) for i in range(rank)]
    if any(missing):
        full = new.add("Pad", [full, new.ints(*[0] * (2 + rank), 0, 0, *missing)])
    if any(pads) or not any(missing):
        starts, ends = new.ints(*pads[:rank]), new.ints(*(pads[i] + int(size[i]) for i in range(rank)))
        new.add("Slice", [full, starts, ends, new.ints(*range(2, 2 + rank))])
    return new.made


def spread(node: ir.Node) -> Sequence[ir.Node] | None:
    """A ConvTranspose with strides and dilations: the same weights with zeros between them, stored as they were."""
    strides, dilations = integers(node, "strides") or [1], integers(node, "dilations") or [1]
    x, weights, *more = node.inputs
    if x is None or weights is None or max(strides) == 1 or max(dilations) == 1:
        return None
    if known_of(x) is Known.INFINITE:
        return None  # the zeros between would make NaN of it
    dequantize = produced_by(weights, "DequantizeLinear")
    stored = constant(weights if dequantize is None else dequantize.inputs[0])
    if stored is None:
        return None
    new = Maker(node)
    wide = _with_zeros(stored, dilations)
    value = new.constant(wide)
    if dequantize is not None:
        axis = attribute(dequantize, "axis", 1)
        if attribute(dequantize, "block_size", 0) or axis % stored.ndim > 1:
            return None
        value = new.add("DequantizeLinear", [value, *dequantize.inputs[1:]], axis=axis)
    kept = {n: a.value for n, a in node.attributes.items() if n not in ("dilations", "kernel_shape")}
    new.add("ConvTranspose", [x, value, *more], kernel_shape=list(wide.shape[2:]), **kept)
    return new.made


def _with_zeros(weights: np.ndarray, dilations: Sequence[int]) -> np.ndarray:
    """``[…, kernel…]``, each axis of the kernel as long as what it spans."""
    sizes = [d * (k - 1) + 1 for d, k in zip(dilations, weights.shape[2:], strict=True)]
    wide = np.zeros((*weights.shape[:2], *sizes), weights.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = weights
    return wide
