"""Emits TFLite operators on tensors: one method an operator or short composition, shapes worked out here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.dynamic import dynamic_dimension
from edgekit.backends.tflite.ir import (
    BOOL,
    FLOAT,
    INT32,
    TENSOR_TYPES,
    Array,
    DType,
    Graph,
    Op,
    Options,
    Origin,
    Quant,
    Shape,
    Tensor,
    Type,
    int32s,
)
from edgekit.backends.tflite.registry import Refusal
from edgekit.errors import UnsupportedError

_OPTIONS: dict[str, Callable[[], Options]] = {
    # With the schema's default, sums of int16 tensors need power-of-two scales.
    "ADD": partial(schema.AddOptionsT, potScaleInt16=False),
    "SUB": partial(schema.SubOptionsT, potScaleInt16=False),
    "MUL": schema.MulOptionsT,
    "DIV": schema.DivOptionsT,
    "FLOOR_MOD": schema.FloorModOptionsT,
    "POW": schema.PowOptionsT,
    "MAXIMUM": schema.MaximumMinimumOptionsT,
    "MINIMUM": schema.MaximumMinimumOptionsT,
    "ABS": schema.AbsOptionsT,
    "NEG": schema.NegOptionsT,
    "SIGN": schema.SignOptionsT,
    "EXP": schema.ExpOptionsT,
    "COS": schema.CosOptionsT,
    "ATAN2": schema.ATan2OptionsT,
    "HARD_SWISH": schema.HardSwishOptionsT,
    "LOG_SOFTMAX": schema.LogSoftmaxOptionsT,
    "EQUAL": schema.EqualOptionsT,
    "NOT_EQUAL": schema.NotEqualOptionsT,
    "LESS": schema.LessOptionsT,
    "LESS_EQUAL": schema.LessEqualOptionsT,
    "GREATER": schema.GreaterOptionsT,
    "GREATER_EQUAL": schema.GreaterEqualOptionsT,
    "LOGICAL_AND": schema.LogicalAndOptionsT,
    "LOGICAL_OR": schema.LogicalOrOptionsT,
    "LOGICAL_NOT": schema.LogicalNotOptionsT,
    "BITWISE_XOR": schema.BitwiseXorOptionsT,
    "BITCAST": schema.BitcastOptionsT,
    "SELECT_V2": schema.SelectV2OptionsT,
    "SLICE": schema.SliceOptionsT,
    "PAD": schema.PadOptionsT,
    "PADV2": schema.PadV2OptionsT,
    "TILE": schema.TileOptionsT,
    "TRANSPOSE": schema.TransposeOptionsT,
    "REVERSE_V2": schema.ReverseV2OptionsT,
    "BROADCAST_TO": schema.BroadcastToOptionsT,
    "FILL": schema.FillOptionsT,
    "WHERE": schema.WhereOptionsT,
    "GATHER_ND": schema.GatherNdOptionsT,
    "SCATTER_ND": schema.ScatterNdOptionsT,
    "DYNAMIC_UPDATE_SLICE": schema.DynamicUpdateSliceOptionsT,
    "UNSORTED_SEGMENT_PROD": schema.UnsortedSegmentProdOptionsT,
    "UNSORTED_SEGMENT_MAX": schema.UnsortedSegmentMaxOptionsT,
    "UNSORTED_SEGMENT_MIN": schema.UnsortedSegmentMinOptionsT,
    "TOPK_V2": schema.TopKV2OptionsT,
    "NON_MAX_SUPPRESSION_V4": schema.NonMaxSuppressionV4OptionsT,
    "QUANTIZE": schema.QuantizeOptionsT,
    "DEQUANTIZE": schema.DequantizeOptionsT,
}
"""Options that an operator has where a handler gives none. What is not here has none then."""


class Emitter:
    """Appends operators to one graph; ``origin`` is the ONNX node that they come from."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.origin = Origin()
        self._producers: dict[int, Op] = {}
        self._constants: dict[tuple[str, Shape, bytes], Tensor] = {}

    def emit(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        kind: Type | DType | Tensor = FLOAT,
        options: Options = None,
    ) -> Tensor:
        """One operator with one output of ``shape``; ``kind`` is its type, or a tensor whose type it has."""
        return self.emit_many(code, inputs, [(shape, kind)], options)[0]

    def emit_many(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[tuple[Sequence[int], Type | DType | Tensor]],
        options: Options = None,
    ) -> list[Tensor]:
        """One operator with several outputs, each ``(shape, kind)``."""
        tensors = []
        inputs = list(inputs)
        if options is None and code in _OPTIONS:
            options = _OPTIONS[code]()
        for shape, kind in outputs:
            of = kind if isinstance(kind, Type) else type_of(kind)
            if of.dtype not in TENSOR_TYPES:
                raise Refusal(f"TFLite has no element type {of.dtype}")
            size = tuple(int(d) for d in shape)
            dynamic = dynamic_dimension(code, inputs, size, options)
            tensors.append(Tensor(size, of.dtype, quant=of.quant, dynamic=dynamic))
        op = Op(code, inputs, tensors, options, self.origin)
        self.graph.ops.append(op)
        self.adopt(op)
        return tensors

    def adopt(self, op: Op) -> None:
        """Let :meth:`producer` know an operator that this builder did not emit."""
        self._producers.update((id(t), op) for t in op.outputs)

    def producer(self, tensor: Tensor) -> Op | None:
        """The operator of this graph that writes ``tensor``."""
        return self._producers.get(id(tensor))

    def constant(
        self, value: npt.ArrayLike, dtype: DType | type | None = None, quant: Quant | None = None
    ) -> Tensor:
        """A constant tensor. Small ones are shared."""
        data = np.asarray(value, dtype)
        if data.dtype not in TENSOR_TYPES:
            raise Refusal(f"TFLite has no element type {data.dtype}")
        # Larger ones are left to the writer, which compares a sample of the bytes before all of them.
        if data.nbytes > 256 or quant is not None:
            return Tensor(data.shape, data.dtype, data=data, quant=quant)
        key = (data.dtype.name, data.shape, data.tobytes())
        if key not in self._constants:
            self._constants[key] = Tensor(data.shape, data.dtype, data=data)
        return self._constants[key]

    def ints(self, values: Sequence[int] | Array) -> Tensor:
        """A 1-D int32 constant: a shape, axes, a permutation."""
        return self.constant(_int32s(np.asarray(values, np.int64).reshape(-1).tolist()), INT32)

    # --- arithmetic ---------------------------------------------------------------------------------

    def unary(
        self, code: str, x: Tensor, kind: Type | DType | Tensor | None = None, options: Options = None
    ) -> Tensor:
        """An operator of one input, same shape and (unless ``kind`` is given) same type."""
        return self.emit(code, [x], x.shape, x if kind is None else kind, options)

    def binary(
        self,
        code: str,
        a: Tensor,
        b: Tensor | float,
        kind: Type | DType | Tensor | None = None,
        options: Options = None,
    ) -> Tensor:
        """A broadcasting operator on tensors; a number becomes a constant of ``a``'s type."""
        other = b if isinstance(b, Tensor) else self.constant(b, a.dtype)
        shape = np.broadcast_shapes(a.shape, other.shape)
        return self.emit(code, [a, other], shape, a if kind is None else kind, options)

    def compare(self, code: str, a: Tensor, b: Tensor | float) -> Tensor:
        """A comparison, as booleans."""
        return self.binary(code, a, b, BOOL)

    def select(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``np.where``; the type is that of ``a``."""
        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        return self.emit("SELECT_V2", [condition, a, b], shape, a)

    def clamp(self, x: Tensor, low: float, high: float) -> Tensor:
        """``np.clip``."""
        return self.binary("MINIMUM", self.binary("MAXIMUM", x, float(low)), float(high))

    def subtract_from(self, number: float, x: Tensor) -> Tensor:
        """``number - x`` for floats."""
        return self.emit("SUB", [self.constant(np.float32(number)), x], x.shape, x, schema.SubOptionsT())

    def cast(self, x: Tensor, dtype: DType | type) -> Tensor:
        """Convert to another element type, as numpy's ``astype`` does."""
        dtype = np.dtype(dtype)
        if x.dtype == dtype:
            return x
        if x.data is not None:
            return self.constant(x.data.astype(dtype))
        options = schema.CastOptionsT(inDataType=TENSOR_TYPES[x.dtype], outDataType=TENSOR_TYPES[dtype])
        return self.emit("CAST", [x], x.shape, dtype, options)

    def reduce(self, code: str, x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
        """A reduction over ``axes`` of the tensor."""
        # TFLite takes negative axes too, but a shape computed here has to know which they are.
        gone = {a % x.rank for a in axes}
        shape = [1 if i in gone else d for i, d in enumerate(x.shape) if keepdims or i not in gone]
        options = schema.ReducerOptionsT(keepDims=keepdims)
        return self.emit(code, [x, self.ints(sorted(gone))], shape, x, options)

    def quantize(self, x: Tensor, kind: Type) -> Tensor:
        """``x`` (float, or quantized otherwise) as ``kind``: folded for constants, else a QUANTIZE."""
        # The same parameters: the stored values mean the same, whatever they come from.
        if x.dtype == kind.dtype and x.quant is not None and x.quant.same_as(kind.quant):
            return x
        assert kind.quant is not None
        if x.data is not None:
            real = x.data if x.quant is None else x.quant.dequantize(x.data)
            return Tensor(x.shape, kind.dtype, x.name, kind.quant.quantize(real, kind.dtype), kind.quant)
        return self.emit("QUANTIZE", [x], x.shape, kind)

    # --- moves --------------------------------------------------------------------------------------

    def transpose(self, x: Tensor, perm: Sequence[int]) -> Tensor:
        """``np.transpose``: free for constants, RESHAPE where only axes of size 1 move."""
        perm = tuple(perm)
        if perm == tuple(range(x.rank)):
            return x
        shape = tuple(x.shape[p] for p in perm)
        quant = None if x.quant is None else x.quant.transposed(perm)
        if x.data is not None:
            return Tensor(shape, x.dtype, x.name, np.transpose(x.data, perm), quant)
        # An axis of size 1 has no order: moving it leaves every byte where it was.
        moved = [p for p in perm if x.shape[p] != 1]
        if moved == sorted(moved):
            return self.reshape(x, shape)
        return self.emit("TRANSPOSE", [x, self.ints(perm)], shape, Type(x.dtype, quant))

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same elements under another shape."""
        shape = tuple(int(d) for d in shape)
        if shape == x.shape:
            return x
        if x.data is not None and (x.quant is None or not x.quant.per_channel):
            return Tensor(shape, x.dtype, x.name, x.data.reshape(shape), x.quant)
        if x.quant is not None and x.quant.per_channel:
            return _reshape_per_channel(x, shape)
        options = schema.ReshapeOptionsT(newShape=_int32s(shape))
        return self.emit("RESHAPE", [x, self.ints(shape)], shape, x, options)

    def slice(self, x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
        """SLICE: ``size`` elements from ``begin`` on, an axis."""
        return self.emit("SLICE", [x, self.ints(begin), self.ints(size)], size, x)

    def strided(self, x: Tensor, ranges: Sequence[range]) -> Tensor:
        """The elements of ``x`` at ``ranges``, one an axis: nothing, SLICE or STRIDED_SLICE."""
        shape = [len(r) for r in ranges]
        if tuple(shape) == x.shape and all(r.step == 1 for r in ranges):
            return x
        # A part without elements is a constant: nothing has to be computed.
        if 0 in shape:
            return Tensor(tuple(shape), x.dtype, data=np.zeros(shape, x.dtype), quant=x.quant)
        if all(r.step == 1 or len(r) == 1 for r in ranges):
            return self.slice(x, [r.start for r in ranges], shape)
        ends = [r.start + r.step * (len(r) - 1) + (1 if r.step > 0 else -1) for r in ranges]
        # Going backwards through element 0, the end is before the first: the mask says "as far as there is".
        options = schema.StridedSliceOptionsT(endMask=sum(1 << i for i, e in enumerate(ends) if e < 0))
        rows = ([r.start for r in ranges], [max(e, 0) for e in ends], [r.step for r in ranges])
        return self.emit("STRIDED_SLICE", [x, *map(self.ints, rows)], shape, x, options)

    def part(self, x: Tensor, axis: int, run: range) -> Tensor:
        """The elements at ``run`` along one axis."""
        return self.strided(x, [run if i == axis else range(d) for i, d in enumerate(x.shape)])

    def concat(self, parts: Sequence[Tensor], axis: int, kind: Type | DType | Tensor | None = None) -> Tensor:
        """CONCATENATION; nothing for a single part."""
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(t.shape[axis] for t in parts)
        of = parts[0] if kind is None else kind
        return self.emit("CONCATENATION", parts, shape, of, schema.ConcatenationOptionsT(axis=axis))

    def gather(self, x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
        """``np.take``."""
        shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
        return self.emit("GATHER", [x, index], shape, x, schema.GatherOptionsT(axis=axis))

    def broadcast_to(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """``np.broadcast_to``."""
        if x.shape == tuple(shape):
            return x
        return self.emit("BROADCAST_TO", [x, self.ints(shape)], shape, x)


def type_of(kind: DType | Tensor) -> Type:
    """The type of a tensor, or a bare dtype's."""
    if isinstance(kind, Tensor):
        return Type(kind.dtype, kind.quant)
    return Type(np.dtype(kind))


def _reshape_per_channel(x: Tensor, shape: Shape) -> Tensor:
    assert x.quant is not None
    if x.data is None:
        raise Refusal("cannot reshape an activation that is quantized per channel")
    if x.quant.block:
        raise Refusal("cannot reshape a weight that is quantized in blocks")
    before = math.prod(x.shape[: x.quant.axis])
    for axis, size in enumerate(shape):
        if math.prod(shape[:axis]) == before and size == x.shape[x.quant.axis]:
            return Tensor(shape, x.dtype, x.name, x.data.reshape(shape), x.quant.along(axis))
    raise Refusal("cannot reshape a weight across the axis that it is quantized along")


def _int32s(values: Sequence[int]) -> Array:
    """Raises :class:`Refusal`, which names the node, for a number that the file cannot hold."""
    try:
        return int32s(values)
    except UnsupportedError as error:
        raise Refusal(error.message) from error
