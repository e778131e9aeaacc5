"""Linear maps that TensorRT's parser lacks, as products with a constant matrix: spectra, and pictures made smaller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from edgekit.backends.nvidia.infinities import Known, known_of
from edgekit.graph import io
from edgekit.graph.edit import attribute, constant, scalar
from edgekit.graph.make import Maker

if TYPE_CHECKING:
    from edgekit.types import Array

_MOST = 1 << 24
"""Elements of a matrix."""


def dft(node: ir.Node) -> Sequence[ir.Node] | None:
    """A DFT along one axis of known size: real and imaginary parts of all its places times all waves."""
    x, *more = node.inputs
    if x is None or x.dtype != ir.DataType.FLOAT or x.shape is None:
        return None
    rank, inverse = len(x.shape), bool(attribute(node, "inverse", 0))
    place = scalar(more[1]) if len(more) > 1 and more[1] is not None else -2
    axis = None if place is None else int(place) % rank
    length = more[0] if more else None
    size, parts = (x.shape[axis] if axis is not None else None), x.shape[-1]
    count = size if length is None else scalar(length)
    onesided = bool(attribute(node, "onesided", 0))
    if axis is None or not isinstance(size, int) or not isinstance(parts, int):
        return None
    if parts not in (1, 2) or (onesided and (inverse or parts == 2)) or known_of(x) is Known.INFINITE:
        return None
    if count is None or count != size or 4 * size * size > _MOST:
        return None
    waves = np.exp(
        (2j if inverse else -2j) * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    )
    waves = (waves / size if inverse else waves)[:, : (size // 2 + 1) if onesided else size]
    # [place, part, wave, part]: the real part gives (cos, sin), the imaginary one (-sin, cos)
    matrix = np.stack([np.stack([waves.real, waves.imag], -1), np.stack([-waves.imag, waves.real], -1)], 1)
    matrix = matrix[:, :parts].reshape(size * parts, -1)
    new = Maker(node)
    order = [i for i in range(rank) if i not in (axis, rank - 1)] + [axis, rank - 1]
    flat = new.add("Transpose", [x], perm=order)
    flat = new.add("Reshape", [flat, new.ints(*[0] * (rank - 2), size * parts)])
    found = new.add("MatMul", [flat, new.constant(matrix.astype(np.float32))])
    found = new.add("Reshape", [found, new.ints(*[0] * (rank - 2), waves.shape[1], 2)])
    new.add("Transpose", [found], perm=[order.index(i) for i in range(rank)])
    return new.made


def smoothed(node: ir.Node) -> Sequence[ir.Node] | None:
    """A Resize with antialiasing of known sizes: along each axis a product with the weights of its places.

    The weights are what ONNX Runtime gives for each place alone: it resizes one axis after the other, too.
    """
    x = node.inputs[0]
    before, after = _sizes(x), _sizes(node.outputs[0])
    if not attribute(node, "antialias", 0) or x is None or x.dtype != ir.DataType.FLOAT:
        return None
    if before is None or after is None or len(before) != len(after) or known_of(x) is Known.INFINITE:
        return None
    mode = attribute(node, "mode", "nearest")
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if mode not in ("linear", "cubic") or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    if "axes" in node.attributes or max(map(_pair, before, after)) > _MOST:
        return None
    if scales is not None and scales.size:
        # A scale that is not the sizes' ratio moves the places.
        if (scales[:2] != 1).any() or not _exact(scales[2:], before[2:], after[2:]):
            return None
    elif before[:2] != after[:2]:
        return None
    new, rank = Maker(node), len(before)
    for axis in range(2, rank):
        old, made = before[axis], after[axis]
        if old == made or not isinstance(old, int) or not isinstance(made, int):
            continue
        weights = _weights(node, old, made)
        order = [i for i in range(rank) if i != axis] + [axis]
        x = new.add("Transpose", [x], perm=order) if axis < rank - 1 else x
        x = new.add("MatMul", [x, new.constant(weights)])
        x = new.add("Transpose", [x], perm=[order.index(i) for i in range(rank)]) if axis < rank - 1 else x
    return new.made or None


def _exact(scales: Array, before: Sequence[object], after: Sequence[object]) -> bool:
    return all(
        isinstance(b, int) and isinstance(a, int) and abs(float(s) * b - a) < 1e-4
        for s, b, a in zip(scales, before, after, strict=True)
    )


def _pair(one: object, other: object) -> int:
    return int(one) * int(other) if isinstance(one, int) and isinstance(other, int) else 0


def _sizes(value: ir.Value | None) -> list[object] | None:
    """The dimensions; those behind batch and channels are numbers."""
    if value is None or value.shape is None or len(value.shape) < 3:
        return None
    sizes: list[object] = list(value.shape)
    return sizes if all(isinstance(d, int) for d in sizes[2:]) else None


def _weights(node: ir.Node, before: int, after: int) -> Array:
    """``[before, after]``: a Resize with the same attributes of pictures with one place each."""
    attributes = {
        name: value.value
        for name, value in node.attributes.items()
        if name not in ("keep_aspect_ratio_policy",) and not value.is_ref()
    }
    resize = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    graph = helper.make_graph(
        [resize],
        "weights",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, before, before, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, before, after, 1])],
        [onnx.numpy_helper.from_array(np.asarray([1, before, after, 1], np.int64), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    one = np.eye(before, dtype=np.float32).reshape(1, before, before, 1)
    found: Array = io.run(io.session(Path(), changed=model.SerializeToString()), {"x": one})["y"]
    return found.reshape(before, after)
