"""The float model with its statistics as extra outputs.

Reductions and subsampling run inside ONNX Runtime, where a tensor is still in cache and threads are at
hand: fetching MobileNetV2's 7 million activations per image into numpy and counting them there would
take several times as long as the inference itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit import graph as graphs
from edgekit.errors import SourceError
from edgekit.types import OnnxModel

OFFSET = "edgekit.offset"
"""The extra graph input: which residue of the stride this sample's subsample takes."""

ALIASING = frozenset(
    [
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "MaxPool",
        "Slice",
        "Expand",
        "Tile",
        "DepthToSpace",
        "SpaceToDepth",
        "Split",
        "Dropout",
    ]
)
"""Operators whose output holds only values of their input: its range serves."""

_MINIMUM_OPSET = 13
_CLIPS = frozenset({"Relu", "Clip"})
_CLIPPED = frozenset(
    ["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "BatchNormalization"]
)
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One tensor under observation. ``axis`` is the channel axis counted from the end, 0 for none."""

    tensor: str
    axis: int


@dataclass(frozen=True, kw_only=True)
class Tapped:
    """The model with taps: serialized, with four extra outputs.

    ``edgekit.low``, ``edgekit.high`` and ``edgekit.mean``: float32, all taps' channels end to end.
    ``edgekit.sample``: float32, all subsamples end to end. ``edgekit.sizes`` (int64, one a tap) gives the
    subsamples' lengths and ``edgekit.channels`` those of the reductions.
    """

    model: bytes
    taps: tuple[Tap, ...]
    aliases: dict[str, str]


def tap(model: OnnxModel, cap: int) -> Tapped:
    """Observe every float32 activation that quantization may ask for, ``cap`` elements of each a run."""
    if model.opset < _MINIMUM_OPSET:
        raise SourceError(
            f"{model.path.name} is in ONNX opset {model.opset}; calibration needs {_MINIMUM_OPSET} or newer",
            hint="convert it with onnx.version_converter, or export it again",
        )
    proto = graphs.read_proto(model.path)
    inferred = _infer(proto, model)
    shapes = _float_shapes(inferred.graph)
    taps, aliases = _choose(proto.graph, shapes)
    if not taps:
        raise SourceError(
            f"{model.path.name} has no float32 activations to calibrate",
            hint="calibrate the float32 export, not a quantized or float16 model",
        )
    for kept in ("value_info", "metadata_props"):
        proto.graph.ClearField(kept)
    builder = _Builder(proto.graph, cap, axes_as_input=model.opset >= 18)
    for t in taps:
        builder.observe(t, shapes[t.tensor])
    builder.finish()
    return Tapped(model=proto.SerializeToString(), taps=taps, aliases=aliases)


def _infer(proto: onnx.ModelProto, model: OnnxModel) -> onnx.ModelProto:
    from onnx.shape_inference import InferenceError, infer_shapes

    try:
        return infer_shapes(proto, data_prop=True)
    except (InferenceError, RuntimeError, ValueError) as error:
        raise SourceError(
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
            clipped = node.op_type in _CLIPPED and len(users) == 1 and users[0].op_type in _CLIPS
            if clipped and name not in outputs:
                continue
            if node.op_type in ALIASING and node.input[0] in shapes:
                aliases[name] = node.input[0]
                if not any(u.op_type in _WEIGHTED for u in users):
                    continue
            chosen.append(name)
    return tuple(Tap(tensor=n, axis=_channel_axis(shapes[n])) for n in dict.fromkeys(chosen)), aliases


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
        self.parts: dict[str, list[str]] = {
            k: [] for k in ("low", "high", "mean", "channels", "sample", "sizes")
        }
        self.constants: dict[str, str] = {}
        graph.input.append(helper.make_tensor_value_info(OFFSET, TensorProto.INT64, [1]))

    def observe(self, tap: Tap, shape: tuple[int | None, ...] | None) -> None:
        """Reduce and subsample one tensor."""
        flat = self.node("Reshape", [tap.tensor, self.constant([-1])])
        self._reduce(tap, shape, flat)
        known = shape is not None and all(shape)
        stride = self.constant([_stride(prod(d or 1 for d in shape or ()), self.cap)]) if known else None
        if stride is None:
            stride = self._dynamic_stride(flat)
        start = self.once("Mod", [OFFSET, stride])
        end, axis = self.constant([np.iinfo(np.int64).max]), self.constant([0])
        part = self.node("Slice", [flat, start, end, axis, stride])
        self.parts["sample"].append(part)
        self.parts["sizes"].append(self.node("Shape", [part]))

    def _reduce(self, tap: Tap, shape: tuple[int | None, ...] | None, flat: str) -> None:
        tensor, axes = flat, [0]
        if tap.axis and shape is not None:
            tensor = tap.tensor
            axes = [i for i in range(len(shape)) if i != len(shape) + tap.axis]
        for kind, op in (("low", "ReduceMin"), ("high", "ReduceMax"), ("mean", "ReduceMean")):
            reduced = self.reduce(op, tensor, axes)
            self.parts[kind].append(self.node("Reshape", [reduced, self.constant([-1])]))
        self.parts["channels"].append(self.node("Shape", [self.parts["low"][-1]]))

    def _dynamic_stride(self, flat: str) -> str:
        """The stride from the size at run time: a prime from a table."""
        table = self.constant([_stride(i * self.cap, self.cap) for i in range(4096)])
        ratio = self.node("Div", [self.node("Shape", [flat]), self.constant([self.cap])])
        place = self.node("Min", [ratio, self.constant([4095])])
        return self.node("Gather", [table, place])

    def finish(self) -> None:
        """Join the parts into the extra outputs, so that one run returns six arrays and not thousands."""
        for kind, names in self.parts.items():
            dtype = TensorProto.INT64 if kind in ("channels", "sizes") else TensorProto.FLOAT
            output = f"edgekit.{kind}"
            self.graph.node.append(helper.make_node("Concat", names, [output], axis=0))
            self.graph.output.append(helper.make_tensor_value_info(output, dtype, [None]))

    def node(self, op: str, inputs: list[str]) -> str:
        """One new node; the name of its output."""
        output = f"edgekit.{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(op, inputs, [output]))
        return output

    def reduce(self, op: str, tensor: str, axes: list[int]) -> str:
        """A reduction over ``axes``, which opset 18 made an input."""
        output = f"edgekit.{len(self.graph.node)}"
        if self.axes_as_input:
            node = helper.make_node(op, [tensor, self.constant(axes)], [output], keepdims=0)
        else:
            node = helper.make_node(op, [tensor], [output], keepdims=0, axes=axes)
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


def _stride(size: int, cap: int) -> int:
    """1 for tensors up to ``cap`` elements, else a prime of at least 11: no axis of 2, 3, 5, 7 … aliases with it."""
    if size <= cap:
        return 1
    candidate = max(11, -(-size // cap)) if size > 4 * cap else -(-size // cap)
    while candidate > 3 and any(candidate % d == 0 for d in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
