"""The graph's inputs and outputs: names, element types and layout as the app sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.dynamic import refuse
from edgekit.backends.tflite.ir import FLOAT32, INT8, UINT8, DType, Op, Quant, Tensor, Type, int32s
from edgekit.backends.tflite.quant import Lookahead
from edgekit.backends.tflite.view import View, channels_last
from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.types import TensorSpec

_TRANSPARENT = (
    ops.named(Trait.ELEMENTWISE | Trait.PASSES | Trait.PADS | Trait.JOINS)
    - {"Min", "Max", "Gelu", "Elu", "Erf", "Reciprocal", "Dropout"}  # seldom in front of a first layer
) | {"Slice"}
_LAYOUTS = {3: ("NCL", "NLC"), 4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Creates and finishes the tensors of the boundary. ``layout`` and ``dtype`` are the compiler's options
    ``io_layout`` and ``io_dtype``."""

    builder: Builder
    lookahead: Lookahead
    layout: str
    dtype: str

    def bind_inputs(self, values: Sequence[ir.Value]) -> tuple[dict[ir.Value, View], tuple[TensorSpec, ...]]:
        """Create the input tensors; returns what each value is inside, and what the runtime sees."""
        views: dict[ir.Value, View] = {}
        specs: list[TensorSpec] = []
        for value in values:
            assert value.shape is not None
            assert value.dtype is not None
            shape = tuple(int(d) for d in value.shape.dims if isinstance(d, int))
            spatial = is_spatial(value)
            last = self.layout == "nhwc" and spatial and len(shape) in (4, 5)
            perm = channels_last(len(shape)) if last else tuple(range(len(shape)))
            boundary = self._type(value, np.dtype(value.dtype.numpy()))
            name = value.name or f"input_{len(specs)}"
            tensor = Tensor(tuple(shape[p] for p in perm), boundary.dtype, name, quant=boundary.quant)
            self.builder.graph.inputs.append(tensor)
            views[value] = View(self._as_int8(tensor), perm)
            specs.append(_spec(tensor, spatial, perm))
        return views, tuple(specs)

    def bind_outputs(self, results: Sequence[tuple[ir.Value, View]]) -> tuple[TensorSpec, ...]:
        """Bring the results into the order and type of the boundary; returns what the runtime sees."""
        specs: list[TensorSpec] = []
        graph, g = self.builder.graph, self.builder
        bound = {id(t) for t in graph.inputs}
        for value, view in results:
            last = channels_last(view.rank)
            keep = self.layout == "nhwc" and view.rank in (4, 5) and view.perm == last
            real = value.dtype is None or value.dtype.is_floating_point()
            if real and view.quant is not None and self.dtype == "float32":
                view = g.dequantize(view)
            tensor = g.layout(view, last) if keep else g.plain(view)
            if tensor.quant is not None and (self.dtype == "uint8" or value.dtype == ir.DataType.UINT8):
                tensor = g.quantize(tensor, _as_uint8(tensor.quant))
            # Float16 and bfloat16 are held in float32 inside, narrow integers in wide ones.
            if tensor.quant is None and value.dtype is not None:
                tensor = g.cast(tensor, value.dtype.numpy())  # some types are computed in a wider one
            if id(tensor) in bound or tensor.data is not None:
                tensor = self._copy(tensor)
            bound.add(id(tensor))
            tensor.name = value.name or f"output_{len(specs)}"
            graph.outputs.append(tensor)
            spatial = view.rank in (4, 5) and view.perm == last
            specs.append(_spec(tensor, spatial or keep, last if keep else tuple(range(view.rank))))
        return tuple(specs)

    def _type(self, value: ir.Value, dtype: DType) -> Type:
        """The input's type at the boundary: quantized if that was asked for and the graph quantizes it."""
        # Token ids and masks cross as they are; only images and features are quantized.
        if dtype != FLOAT32 or self.dtype == "float32":
            return Type(dtype)
        kind = self.lookahead.wanted_type(value)
        if kind is None or kind.dtype != INT8 or kind.quant is None:
            return Type(dtype)
        return kind if self.dtype == "int8" else _as_uint8(kind.quant)

    def _as_int8(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != UINT8 or tensor.quant is None:
            return tensor
        quant = Quant(tensor.quant.scale, tensor.quant.zero_point - 128)
        return self.builder.quantize(tensor, Type(INT8, quant))

    def _copy(self, tensor: Tensor) -> Tensor:
        """An output of its own: one tensor cannot be two outputs, nor an input and an output."""
        out = Tensor(tensor.shape, tensor.dtype, quant=tensor.quant)
        if tensor.dynamic is not None:
            refuse("one value as two outputs")
        shape = self.builder.ints(tensor.shape)
        options = schema.ReshapeOptionsT(newShape=int32s(tensor.shape))
        self.builder.graph.ops.append(Op("RESHAPE", [tensor, shape], [out], options))
        return out


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
            if ops.has(use.node, Trait.CHANNELS_AT_1) and use.idx == 0:
                return True
            if use.node.op_type in _TRANSPARENT:
                front.extend(use.node.outputs)
    return False


def _as_uint8(quant: Quant) -> Type:
    return Type(UINT8, Quant(quant.scale, quant.zero_point + 128, quant.axis))


def _spec(tensor: Tensor, spatial: bool, perm: Sequence[int]) -> TensorSpec:
    names = _LAYOUTS.get(tensor.rank)
    layout = ""
    if spatial and names is not None:
        layout = names[0] if tuple(perm) == tuple(range(tensor.rank)) else names[1]
    quant = None if tensor.quant is None or tensor.quant.per_channel else tensor.quant
    return TensorSpec(
        name=tensor.name,
        dtype=tensor.dtype.name,
        shape=tuple(f"{tensor.name}_{i}" if i == tensor.dynamic else d for i, d in enumerate(tensor.shape)),
        layout=layout,
        scale=None if quant is None else float(quant.scale[0]),
        zero_point=None if quant is None else int(quant.zero_point[0]),
    )
