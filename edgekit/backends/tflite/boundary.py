"""The graph's inputs and outputs: names, element types and layout as the app sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Type
from edgekit.backends.tflite.extent import refuse
from edgekit.backends.tflite.ir import FLOAT32, INT8, UINT8, DType, Op, Quant, Tensor
from edgekit.backends.tflite.view import View, channels_last
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from edgekit.backends.tflite.lowering import Lowering

_SPATIAL = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "Resize",
        "Upsample",
        "DepthToSpace",
        "SpaceToDepth",
        "LRN",
    ]
)
_TRANSPARENT = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Relu",
        "Clip",
        "Sigmoid",
        "Tanh",
        "Identity",
        "Cast",
        "Pad",
        "QuantizeLinear",
        "DequantizeLinear",
        "HardSwish",
        "HardSigmoid",
        "LeakyRelu",
        "PRelu",
        "Concat",
        "Slice",
        "Neg",
        "Sqrt",
        "Pow",
    ]
)
_LAYOUTS = {3: ("NCL", "NLC"), 4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}


def bind_inputs(lowering: Lowering) -> tuple[TensorSpec, ...]:
    """Create the input tensors and bind them; returns what the runtime sees."""
    specs: list[TensorSpec] = []
    for value in lowering.model.graph.inputs:
        if value.is_initializer():
            continue
        assert value.shape is not None
        assert value.dtype is not None
        shape = tuple(int(d) for d in value.shape.dims if isinstance(d, int))
        spatial = is_spatial(value)
        last = lowering.io_layout == "nhwc" and spatial and len(shape) in (4, 5)
        perm = channels_last(len(shape)) if last else tuple(range(len(shape)))
        dtype = np.dtype(value.dtype.numpy())
        boundary = _boundary_type(lowering, value, dtype)
        name = value.name or f"input_{len(specs)}"
        tensor = Tensor(tuple(shape[p] for p in perm), boundary.dtype, name, quant=boundary.quant)
        lowering.builder.graph.inputs.append(tensor)
        lowering.env[value] = View(_as_int8(lowering, tensor), perm)
        specs.append(_spec(tensor, spatial, perm))
    return tuple(specs)


def bind_outputs(lowering: Lowering) -> tuple[TensorSpec, ...]:
    """Bring the results into the order and type of the boundary; returns what the runtime sees."""
    specs: list[TensorSpec] = []
    graph, g = lowering.builder.graph, lowering.builder
    taken = {id(t) for t in graph.inputs}
    for value in lowering.model.graph.outputs:
        view = lowering.view(value)
        last = channels_last(view.rank)
        keep = lowering.io_layout == "nhwc" and view.rank in (4, 5) and view.perm == last
        real = value.dtype is None or value.dtype.is_floating_point()
        if real and view.quant is not None and lowering.io_dtype == "float32":
            view = g.dequantize(view)
        tensor = g.layout(view, last) if keep else g.plain(view)
        if tensor.quant is not None and (lowering.io_dtype == "uint8" or _stored_uint8(value)):
            tensor = g.quantize(tensor, _as_uint8(tensor))
        if tensor.quant is None and value.dtype is not None:
            tensor = g.cast(tensor, value.dtype.numpy())  # some types are computed in a wider one
        if id(tensor) in taken or tensor.data is not None:
            tensor = _copy(lowering, tensor)
        taken.add(id(tensor))
        tensor.name = value.name or f"output_{len(specs)}"
        graph.outputs.append(tensor)
        spatial = view.rank in (4, 5) and view.perm == last
        specs.append(_spec(tensor, spatial or keep, last if keep else tuple(range(view.rank))))
    return tuple(specs)


def is_spatial(value: ir.Value) -> bool:
    """Whether an input is an image (or volume, or sequence of channels): a spatial operator reads it."""
    if value.shape is None or len(value.shape) not in _LAYOUTS:
        return False
    seen: set[ir.Value] = set()
    front = [value]
    while front:
        v = front.pop()
        if v in seen:
            continue
        seen.add(v)
        for use in v.uses():
            if use.node.op_type in _SPATIAL and use.idx == 0:
                return True
            if use.node.op_type in _TRANSPARENT:
                front.extend(use.node.outputs)
    return False


def _boundary_type(lowering: Lowering, value: ir.Value, dtype: DType) -> Type:
    """The input's type at the boundary: quantized if that was asked for and the graph quantizes it."""
    if dtype != FLOAT32 or lowering.io_dtype == "float32":
        return Type(dtype)
    kind = lowering.lookahead.wanted_type(value)
    if kind is None or kind.dtype != INT8:
        return Type(dtype)
    return kind if lowering.io_dtype == "int8" else _as_uint8(Tensor((), kind.dtype, quant=kind.quant))


def _as_uint8(tensor: Tensor) -> Type:
    assert tensor.quant is not None
    return Type(UINT8, Quant(tensor.quant.scale, tensor.quant.zero_point + 128, tensor.quant.axis))


def _as_int8(lowering: Lowering, tensor: Tensor) -> Tensor:
    if tensor.dtype != UINT8 or tensor.quant is None:
        return tensor
    quant = Quant(tensor.quant.scale, tensor.quant.zero_point - 128)
    return lowering.builder.quantize(tensor, Type(INT8, quant))


def _stored_uint8(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.UINT8


def _copy(lowering: Lowering, tensor: Tensor) -> Tensor:
    """An output of its own: one tensor cannot be two outputs, nor an input and an output."""
    out = Tensor(tensor.shape, tensor.dtype, quant=tensor.quant)
    if tensor.open is not None:
        refuse("one value as two outputs")
    shape = lowering.builder.ints(tensor.shape)
    options = schema.ReshapeOptionsT(newShape=np.asarray(tensor.shape, np.int32))
    lowering.builder.graph.ops.append(Op("RESHAPE", [tensor, shape], [out], options))
    return out


def _spec(tensor: Tensor, spatial: bool, perm: Sequence[int]) -> TensorSpec:
    names = _LAYOUTS.get(tensor.rank)
    layout = ""
    if spatial and names is not None:
        layout = names[0] if tuple(perm) == tuple(range(tensor.rank)) else names[1]
    per_tensor = tensor.quant is not None and not tensor.quant.per_channel
    return TensorSpec(
        name=tensor.name,
        dtype=tensor.dtype.name,
        shape=tuple(f"{tensor.name}_{i}" if i == tensor.open else d for i, d in enumerate(tensor.shape)),
        layout=layout,
        scale=float(tensor.quant.scale[0]) if per_tensor and tensor.quant is not None else None,
        zero_point=int(tensor.quant.zero_point[0]) if per_tensor and tensor.quant is not None else None,
    )
