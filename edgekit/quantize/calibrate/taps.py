"""The float model with its statistics as extra outputs.

Reductions and subsampling run inside ONNX Runtime, where a tensor is still in cache and threads are at
hand: fetching MobileNetV2's 7 million activations per image into numpy and counting them there would
take several times as long as the inference itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import NotCalibratableError
from edgekit.graph import io as graphs
from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.types import OnnxModel

OFFSET = "edgekit.offset"
"""The extra graph input: which residue of the stride this sample's subsample takes."""

_ALIASES = ops.named(Trait.VIEW | Trait.PERMUTES | Trait.SELECTS | Trait.REPEATS | Trait.PASSES) - {
    "Gather",  # picks one token or channel of many: its own range is often far narrower
    "GatherElements",
}
"""Operators whose output holds only values of their input: its range serves."""

OUTPUTS = ("edgekit.values", "edgekit.sizes")
"""The extra graph outputs, see :class:`Tapped`."""

_MINIMUM_OPSET = 13
_STEPS = (3, 5, 7)
"""Large rectified images are thinned to every third row and column before they are sampled, or to every fifth or
seventh: the step divides no side, so that what an upscaling by it repeats is seen whole."""
_LEFT, _PLACES = 3, 5  # times the sample, and places a side, that are left at least
_CLIPPED = ops.named(Trait.WEIGHTED) | {"Add", "Sub", "Mul", "Div", "BatchNormalization"}
"""Operators whose values an activation clips at once. Those quantized with it (``quantize/blocks.py``) are pooling
besides, and not Div: a range that nobody asks for costs little."""


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One tensor under observation. ``axis`` is the channel axis counted from the end, 0 for none, ``channels`` its
    size (1 without).

    ``pooled``: an image-like tensor that a Relu, or a Clip at zero, writes. It is reduced by pooling, which does not
    tell the least value: that is taken to be 0.
    """

    tensor: str
    axis: int
    channels: int = 1
    pooled: bool = False


@dataclass(frozen=True, kw_only=True)
class Tapped:
    """The model with taps: serialized, with two extra outputs.

    ``edgekit.values``, float32, holds tap after tap its channels' least values (not of a pooled one), their largest,
    their means, and the subsample. ``edgekit.sizes`` (int64, one a tap) gives the length of the subsample: see
    :class:`Layout`.
    """

    model: bytes
    taps: tuple[Tap, ...]
    aliases: dict[str, str]


class Layout:
    """Where the statistics of ``taps`` lie in what a run gives."""

    def __init__(self, taps: tuple[Tap, ...]) -> None:
        self.channels = np.array([t.channels for t in taps], np.int64)
        pooled = np.array([t.pooled for t in taps], bool)
        self._fixed = np.where(pooled, 2, 3) * self.channels
        self._owner = np.repeat(np.arange(len(taps)), self.channels)
        first = np.cumsum(self.channels) - self.channels
        self._within = np.arange(self.channels.sum()) - first[self._owner]
        self._to_high = np.where(pooled, 0, self.channels)[self._owner]
        self._pooled = pooled[self._owner]

    def separate(self, values: npt.NDArray[np.float32], sizes: npt.NDArray[np.int64]) -> dict[str, Any]:
        """``low``, ``high`` and ``mean`` with all taps' channels end to end, and ``samples``, a list."""
        ends = np.cumsum(self._fixed + sizes)
        starts = ends - self._fixed - sizes
        at = starts[self._owner] + self._within
        high = values[at + self._to_high]
        samples = [values[e - n : e] for e, n in zip(ends.tolist(), sizes.tolist(), strict=True)]
        return {
            "low": np.where(self._pooled, np.minimum(high, np.float32(0)), values[at]),
            "high": high,
            "mean": values[at + self._to_high + self.channels[self._owner]],
            "samples": samples,
        }


def tap(model: OnnxModel, cap: int, guarded: Collection[str] = ()) -> Tapped:
    """Observe every float32 activation that quantization may ask for, ``cap`` elements of each a run.

    Of the tensors ``guarded``, what is NaN or +inf counts as 0: the model itself puts something else in its place.
    """
    if model.opset < _MINIMUM_OPSET:
        raise NotCalibratableError(
            f"{model.path.name} is in ONNX opset {model.opset}; calibration needs {_MINIMUM_OPSET} or newer",
            hint="convert it with onnx.version_converter, or export it again",
        )
    proto = graphs.read_proto(model.path)
    inferred = _infer(proto, model)
    shapes = _float_shapes(inferred.graph)
    taps, aliases = _choose(proto.graph, shapes)
    if not taps:
        raise NotCalibratableError(
            f"{model.path.name} has no float32 activations to calibrate",
            hint="calibrate a model that computes in floating point",
        )
    for kept in ("value_info", "metadata_props"):
        proto.graph.ClearField(kept)
    builder = _Builder(proto.graph, cap, axes_as_input=model.opset >= 18)
    for t in taps:
        builder.observe(t, shapes[t.tensor], guarded=t.tensor in guarded)
    builder.finish()
    return Tapped(model=proto.SerializeToString(), taps=taps, aliases=aliases)


def _infer(proto: onnx.ModelProto, model: OnnxModel) -> onnx.ModelProto:
    from onnx.shape_inference import InferenceError, infer_shapes

    try:
        return infer_shapes(proto, data_prop=True)
    except (InferenceError, RuntimeError, ValueError) as error:
        raise NotCalibratableError(
            f"the shapes of {model.path.name} are inconsistent: {error}", hint="export the model again"
        ) from error


def _float_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int | None, ...] | None]:
    """Shapes of the float32 activations by name; ``None`` where the rank or a dimension is unknown."""
    constants = {i.name for i in graph.initializer}
    shapes: dict[str, tuple[int | None, ...] | None] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type != TensorProto.FLOAT or value.name in constants:
            continue
        dims = (d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
        shapes[value.name] = tuple(dims) if kind.HasField("shape") else None
    return shapes


def _choose(
    graph: onnx.GraphProto, shapes: dict[str, tuple[int | None, ...] | None]
) -> tuple[tuple[Tap, ...], dict[str, str]]:
    """Taps in topological order. Left out: what an activation clips at once, and what only moves values."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    aliases: dict[str, str] = {}
    chosen: list[str] = [i.name for i in graph.input if i.name in shapes]
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        for name in node.output:
            if name not in shapes:
                continue
            users = readers.get(name, [])
            clipped = node.op_type in _CLIPPED and len(users) == 1 and ops.has(users[0], Trait.CLIPS)
            if clipped and name not in outputs:
                continue
            if node.op_type in _ALIASES and node.input[0] in shapes:
                aliases[name] = node.input[0]
                if not any(ops.has(u, Trait.WEIGHTED) for u in users):
                    continue
            chosen.append(name)
    rectified = _rectified(graph)
    taps = [_tap(n, shapes[n], rectified=n in rectified) for n in dict.fromkeys(chosen)]
    return tuple(taps), aliases


def _tap(name: str, shape: tuple[int | None, ...] | None, *, rectified: bool) -> Tap:
    axis = _channel_axis(shape)
    channels = (shape[axis] or 1) if axis and shape is not None else 1
    pooled = rectified and axis != 0 and shape is not None and len(shape) == 4
    return Tap(tensor=name, axis=axis, channels=channels, pooled=pooled)


def _rectified(graph: onnx.GraphProto) -> set[str]:
    """What a Relu or a Clip with the constant lower limit 0 writes."""
    inputs = {i.name for i in graph.input}
    zeros = {i.name for i in graph.initializer if i.name not in inputs and _is_zero(i)}
    for node in graph.node:
        if node.op_type == "Constant" and any(_is_zero(a.t) for a in node.attribute if a.name == "value"):
            zeros.add(node.output[0])
    clips = [n for n in graph.node if n.op_type == "Clip" and len(n.input) > 1 and n.input[1] in zeros]
    return {n.output[0] for n in (*clips, *(n for n in graph.node if n.op_type == "Relu"))}


def _is_zero(tensor: TensorProto) -> bool:
    """Whether a tensor in the file itself is the single value 0."""
    here = tensor.data_location != TensorProto.EXTERNAL
    return here and prod(tensor.dims) == 1 and not numpy_helper.to_array(tensor).any()


def _channel_axis(shape: tuple[int | None, ...] | None) -> int:
    """Axis 1 of images and sequences of them (N, C, …), else the last; 0 where it has no fixed size."""
    if shape is None or len(shape) < 2:
        return 0
    axis = 1 - len(shape) if len(shape) >= 4 else -1
    return axis if shape[axis] else 0


class _Builder:
    """Appends the observing nodes to a graph."""

    def __init__(self, graph: onnx.GraphProto, cap: int, *, axes_as_input: bool) -> None:
        self.graph, self.cap, self.axes_as_input = graph, cap, axes_as_input
        self.parts: list[list[str]] = []
        self.sizes: list[str] = []
        self.constants: dict[str, str] = {}
        graph.input.append(helper.make_tensor_value_info(OFFSET, TensorProto.INT64, [1]))

    def observe(self, tap: Tap, shape: tuple[int | None, ...] | None, *, guarded: bool) -> None:
        """Reduce and subsample one tensor."""
        if guarded:
            tap = replace(tap, tensor=self._finite(tap.tensor))
        sizes = tuple(d for d in shape or () if d)
        known = shape is not None and len(sizes) == len(shape)
        source = tap.tensor
        if tap.pooled:
            step = _thinning(sizes, self.cap) if known else 1
            if step > 1:
                thin = {"kernel_shape": [1, 1], "strides": [step, step]}
                source = self.node("MaxPool", [tap.tensor], thin)
                sizes = (*sizes[:2], *(-(-d // step) for d in sizes[2:]))
            parts = self._pool(tap.tensor, one=sizes[0] == 1 if known else False)
            flat = self.node("Reshape", [source, self.constant([-1])])
        else:
            flat = self.node("Reshape", [source, self.constant([-1])])
            parts = self._reduce(tap, shape, flat)
        stride = self.constant([_stride(prod(sizes), self.cap)]) if known else self._dynamic_stride(flat)
        start = self.once("Mod", [OFFSET, stride])
        end, axis = self.constant([np.iinfo(np.int64).max]), self.constant([0])
        part = self.node("Slice", [flat, start, end, axis, stride])
        self.parts.append([*parts, part])
        self.sizes.append(self.node("Shape", [part]))

    def _finite(self, tensor: str) -> str:
        """A tensor with 0 for NaN and +inf."""
        infinite = self.node("IsInf", [tensor], {"detect_negative": 0})
        bad = self.node("Or", [self.node("IsNaN", [tensor]), infinite])
        zero = self.node("Constant", [], {"value": numpy_helper.from_array(np.array(0, np.float32))})
        return self.node("Where", [bad, zero, tensor])

    def _pool(self, tensor: str, *, one: bool) -> list[str]:
        """Largest values and means of a rectified image-like tensor (``one``: a single image) by operators that
        read ONNX Runtime's blocked layout as it is.

        Others would have every activation reordered first, which costs as much as all reductions.
        """
        found = []
        for op, over in (("GlobalMaxPool", "ReduceMax"), ("GlobalAveragePool", "ReduceMean")):
            pooled = self.node(op, [tensor])
            flat = self.node("Reshape", [pooled, self.constant([-1])]) if one else ""
            found.append(flat or self.reduce(over, pooled, [0, 2, 3], keep=False))
        return found

    def _reduce(self, tap: Tap, shape: tuple[int | None, ...] | None, flat: str) -> list[str]:
        """Least and largest values and means, ``[channels]``."""
        tensor, axes = flat, [0]
        if tap.axis and shape is not None:
            tensor = tap.tensor
            axes = [i for i in range(len(shape)) if i != len(shape) + tap.axis]
        ops = ("ReduceMin", "ReduceMax", "ReduceMean")
        return [self.reduce(op, tensor, axes, keep=not tap.axis) for op in ops]

    def _dynamic_stride(self, flat: str) -> str:
        """The stride from the size at run time: a prime from a table."""
        table = self.constant([_stride(i * self.cap, self.cap) for i in range(4096)])
        ratio = self.node("Div", [self.node("Shape", [flat]), self.constant([self.cap])])
        place = self.node("Min", [ratio, self.constant([4095])])
        return self.node("Gather", [table, place])

    def finish(self) -> None:
        """Join the parts into two extra outputs, so that one run does not return thousands.

        ONNX Runtime runs nodes in the order in which the last Concat asks for them: what belongs to one tap is
        joined first, so that it is reduced while it still is in cache, and its memory is free for the next.
        """
        joined = [self.node("Concat", parts, {"axis": 0}) for parts in self.parts]
        kinds = (TensorProto.FLOAT, TensorProto.INT64)
        for output, names, dtype in zip(OUTPUTS, (joined, self.sizes), kinds, strict=True):
            self.graph.node.append(helper.make_node("Concat", names, [output], axis=0))
            self.graph.output.append(helper.make_tensor_value_info(output, dtype, [None]))

    def node(self, op: str, inputs: list[str], attributes: Mapping[str, Any] | None = None) -> str:
        """One new node; the name of its output."""
        output = f"edgekit.{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(op, inputs, [output], **(attributes or {})))
        return output

    def reduce(self, op: str, tensor: str, axes: list[int], *, keep: bool) -> str:
        """A reduction over ``axes``, which opset 18 made an input."""
        output = f"edgekit.{len(self.graph.node)}"
        if self.axes_as_input:
            node = helper.make_node(op, [tensor, self.constant(axes)], [output], keepdims=int(keep))
        else:
            node = helper.make_node(op, [tensor], [output], keepdims=int(keep), axes=axes)
        self.graph.node.append(node)
        return output

    def once(self, op: str, inputs: list[str]) -> str:
        """Like :meth:`node`, shared by equal requests."""
        key = " ".join([op, *inputs])
        if key not in self.constants:
            self.constants[key] = self.node(op, inputs)
        return self.constants[key]

    def constant(self, values: list[int]) -> str:
        """An int64 vector, shared by equal requests."""
        key = repr(values)
        if key not in self.constants:
            name = f"edgekit.constant{len(self.constants)}"
            self.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
            self.constants[key] = name
        return self.constants[key]


def _thinning(shape: tuple[int, ...], cap: int) -> int:
    """Every how many rows and columns of an image are enough for a sample of ``cap``; 1 for all of them."""
    for step in _STEPS:
        if prod(shape) < _LEFT * cap * step**2 or min(shape[2:]) <= step * (_PLACES - 1):
            return 1
        if all(side % step for side in shape[2:]):
            return step
    return 1


def _stride(size: int, cap: int) -> int:
    """1 for tensors up to ``cap`` elements, else a prime of at least 11: no axis of 2, 3, 5, 7 … aliases with it."""
    if size <= cap:
        return 1
    candidate = max(11, -(-size // cap)) if size > 4 * cap else -(-size // cap)
    while candidate > 3 and any(candidate % d == 0 for d in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
