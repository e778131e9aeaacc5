"""What handlers write with: emits TFLite operators, and brings tensors into the order that is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.dynamic import dynamic_dimension
from edgekit.backends.tflite.ir import (
    FLOAT,
    FLOAT32,
    INT32,
    TENSOR_TYPES,
    Array,
    DType,
    Graph,
    Op,
    Origin,
    Quant,
    Shape,
    Tensor,
    Type,
)
from edgekit.backends.tflite.quant import Lookahead
from edgekit.backends.tflite.registry import Refusal
from edgekit.backends.tflite.view import Items, Perm, View, compose, inverse, reshape_groups, reshape_order

# Without the flag, sums of int16 tensors need power-of-two scales.
ADD_LIKE: dict[str, Callable[[], Any]] = {
    "ADD": partial(schema.AddOptionsT, potScaleInt16=False),
    "SUB": partial(schema.SubOptionsT, potScaleInt16=False),
    "MUL": schema.MulOptionsT,
    "DIV": schema.DivOptionsT,
}


class Scope(Protocol):
    """What operators with subgraphs, and those that look further on, need of the walk over the ONNX graph."""

    @property
    def graphs(self) -> list[Graph]:
        """The subgraphs of the file, the main one first; handlers may append."""
        ...

    @property
    def kernels(self) -> str:
        """``"xnnpack"`` or ``"builtin"``, see :class:`edgekit.backends.tflite.compiler.CompileOptions`."""
        ...

    @property
    def lookahead(self) -> Lookahead:
        """Which quantized types later nodes ask for."""
        ...

    def inline(self, graph: ir.Graph, arguments: Sequence[View]) -> list[View]:
        """Lower a subgraph's body in place; returns its outputs."""
        ...

    def nested(
        self, name: str, graph: ir.Graph, like: Sequence[Tensor], captured: Sequence[ir.Value] = ()
    ) -> int:
        """Lower a subgraph into one of the file's; returns its index in ``graphs``."""
        ...

    def captured(self, graphs: Sequence[ir.Graph]) -> list[ir.Value]:
        """What subgraphs read of the outside and that is not constant, in order of use."""
        ...

    def view(self, value: ir.Value) -> View:
        """The view of a value that was lowered before."""
        ...

    def is_constant(self, value: ir.Value) -> bool:
        """Whether a value is constant, or a dequantized constant."""
        ...


class Builder:
    """Appends operators to one graph. Handlers get it as ``g``.

    ``result`` is the type that the current node's first output has to have: a quantized one when the node
    is lowered to integer arithmetic, else None (see :meth:`type_like`). ``node`` is the current ONNX node
    (how many outputs, who consumes them); ``lowering`` is for operators with subgraphs.
    """

    def __init__(self, graph: Graph, lowering: Scope, *, opset: int) -> None:
        self.graph = graph
        self.lowering = lowering
        self.opset = opset
        self.origin = Origin()
        self.result: Type | None = None
        self.node: ir.Node | None = None
        # Keyed by id: the source is kept beside the result so that its id stays taken.
        self._orders: dict[tuple[int, Perm], tuple[Tensor, Tensor]] = {}
        self._floats: dict[int, tuple[Tensor, Tensor]] = {}
        self.casts: dict[tuple[int, DType], tuple[Tensor, Tensor]] = {}
        self._producers: dict[int, Op] = {}
        self._constants: dict[tuple[str, Shape, bytes], Tensor] = {}

    @contextmanager
    def inside(self, graph: Graph) -> Iterator[None]:
        """Emit into another subgraph meanwhile. What was computed outside is not seen there."""
        outer = self.graph, self._orders, self._floats, self.casts
        self.graph, self._orders, self._floats, self.casts = graph, {}, {}, {}
        try:
            yield
        finally:
            self.graph, self._orders, self._floats, self.casts = outer

    # --- emission -----------------------------------------------------------------------------------

    def emit(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        kind: Type | DType | Tensor = FLOAT,
        options: Any = None,
    ) -> Tensor:
        """One operator with one output of ``shape``; ``kind`` is its type, or a tensor whose type it has."""
        return self.emit_many(code, inputs, [(shape, kind)], options)[0]

    def emit_many(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[tuple[Sequence[int], Type | DType | Tensor]],
        options: Any = None,
    ) -> list[Tensor]:
        """One operator with several outputs, each ``(shape, kind)``."""
        tensors = []
        inputs = list(inputs)
        for shape, kind in outputs:
            of = kind if isinstance(kind, Type) else _type_of(kind)
            if of.dtype not in TENSOR_TYPES:
                raise Refusal(f"TFLite has no element type {of.dtype}")
            size = tuple(int(d) for d in shape)
            dynamic = dynamic_dimension(code, inputs, size, options)
            tensors.append(Tensor(size, of.dtype, quant=of.quant, dynamic=dynamic))
        op = Op(code, inputs, tensors, options, self.origin)
        self.graph.ops.append(op)
        self._producers.update((id(t), op) for t in tensors)
        return tensors

    def adopt(self, op: Op) -> None:
        """Let :meth:`producer` know an operator that this builder did not emit."""
        self._producers.update((id(t), op) for t in op.outputs)

    def producer(self, tensor: Tensor) -> Op | None:
        """The operator of this graph that writes ``tensor``."""
        return self._producers.get(id(tensor))

    def constant(self, value: Any, dtype: DType | type | None = None, quant: Quant | None = None) -> Tensor:
        """A constant tensor. Small ones are shared."""
        data = np.asarray(value, dtype)
        if data.dtype not in TENSOR_TYPES:
            raise Refusal(f"TFLite has no element type {data.dtype}")
        if data.nbytes > 256 or quant is not None:
            return Tensor(data.shape, data.dtype, data=data, quant=quant)
        key = (data.dtype.name, data.shape, data.tobytes())
        if key not in self._constants:
            self._constants[key] = Tensor(data.shape, data.dtype, data=data)
        return self._constants[key]

    def ints(self, values: Sequence[int] | Array) -> Tensor:
        """A 1-D int32 constant: a shape, axes, a permutation."""
        return self.constant(np.asarray(values, np.int64).reshape(-1), INT32)

    def type_like(self, source: View | Tensor) -> Type:
        """The type of this node's output: the quantized type it was asked to have, else that of its input."""
        if self.result is not None:
            return self.result
        return _type_of(source.tensor if isinstance(source, View) else source)

    # --- order of axes ------------------------------------------------------------------------------

    def plain(self, view: View) -> Tensor:
        """The tensor in ONNX order."""
        return self.layout(view, range(view.rank))

    def layout(self, view: View, perm: Sequence[int]) -> Tensor:
        """The tensor with ONNX axis ``perm[i]`` as its axis ``i``; transposes if it lies otherwise."""
        if isinstance(view, Items):
            raise Refusal("a sequence of tensors: TFLite has none, and its length is not known here")
        want = tuple(perm)
        if view.perm == want:
            return view.tensor
        key = (id(view.tensor), compose_between(view.perm, want))
        if key not in self._orders:
            self._orders[key] = (view.tensor, self.transpose(view.tensor, key[1]))
        return self._orders[key][1]

    def transpose(self, x: Tensor, perm: Sequence[int]) -> Tensor:
        """``np.transpose``: free for constants, RESHAPE where only axes of size 1 move."""
        perm = tuple(perm)
        if perm == tuple(range(x.rank)):
            return x
        shape = tuple(x.shape[p] for p in perm)
        quant = None if x.quant is None else x.quant.transposed(perm)
        if x.data is not None:
            return Tensor(shape, x.dtype, x.name, np.transpose(x.data, perm), quant)
        moved = [p for p in perm if x.shape[p] != 1]
        if moved == sorted(moved):
            return self.reshape(x, shape)
        return self.emit(
            "TRANSPOSE", [x, self.ints(perm)], shape, Type(x.dtype, quant), schema.TransposeOptionsT()
        )

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same elements under another shape."""
        shape = tuple(int(d) for d in shape)
        if shape == x.shape:
            return x
        if x.data is not None and (x.quant is None or not x.quant.per_channel):
            return Tensor(shape, x.dtype, x.name, x.data.reshape(shape), x.quant)
        if x.quant is not None and x.quant.per_channel:
            return self._reshape_per_channel(x, shape)
        options = schema.ReshapeOptionsT(newShape=np.asarray(shape, np.int32))
        return self.emit("RESHAPE", [x, self.ints(shape)], shape, x, options)

    def _reshape_per_channel(self, x: Tensor, shape: Shape) -> Tensor:
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

    def transpose_view(self, view: View, perm: Sequence[int]) -> View:
        """ONNX Transpose: nothing is emitted."""
        return View(view.tensor, compose(view.perm, perm))

    def reshape_view(self, view: View, shape: Sequence[int]) -> View:
        """ONNX Reshape to a known shape, with as few transpositions as the grouping of axes allows."""
        shape = tuple(int(d) for d in shape)
        before = view.shape
        if shape == before:
            return view
        if view.is_plain or 0 in shape:
            return View.of(self.reshape(self.plain(view), shape))
        groups = reshape_groups(before, shape)
        needed, result, lies_so = reshape_order(view.perm, before, groups)
        tensor = view.tensor if lies_so else self.layout(view, needed)
        return View(self.reshape(tensor, [shape[a] for a in result]), result)

    def common_order(self, views: Sequence[View], rank: int) -> Perm:
        """The order of axes in which ``views`` (to be broadcast to ``rank``) cost least to bring together."""
        full = [v for v in views if v.rank == rank and v.tensor.data is None]
        if not full:
            return tuple(range(rank))
        return max(full, key=lambda v: (v.size, not v.is_plain)).perm

    def aligned(self, view: View, rank: int, perm: Perm) -> Tensor:
        """``view``, broadcast in ONNX terms to ``rank`` axes, in order ``perm``."""
        if view.rank == rank:
            return self.layout(view, perm)
        if view.size == 1 and view.tensor.data is not None:
            return view.tensor
        if perm == tuple(range(rank)):
            return self.plain(view)
        lead = rank - view.rank
        shape = (1,) * lead + view.shape
        order = (*range(lead), *(p + lead for p in view.perm))
        padded = self.reshape(view.tensor, [shape[a] for a in order])
        return self.layout(View(padded, order), perm)

    # --- arithmetic that compositions are made of ---------------------------------------------------

    def unary(
        self, code: str, x: Tensor, kind: Type | DType | Tensor | None = None, options: Any = None
    ) -> Tensor:
        """An operator of one input, same shape and (unless ``kind`` is given) same type."""
        return self.emit(code, [x], x.shape, x if kind is None else kind, options)

    def binary(
        self,
        code: str,
        a: Tensor,
        b: Tensor | float,
        kind: Type | DType | Tensor | None = None,
        options: Any = None,
    ) -> Tensor:
        """A broadcasting operator on tensors; a number becomes a constant of ``a``'s type."""
        other = b if isinstance(b, Tensor) else self.constant(b, a.dtype)
        shape = np.broadcast_shapes(a.shape, other.shape)
        if options is None and code in ADD_LIKE:
            options = ADD_LIKE[code]()
        return self.emit(code, [a, other], shape, a if kind is None else kind, options)

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
        gone = {a % x.rank for a in axes}
        shape = [1 if i in gone else d for i, d in enumerate(x.shape) if keepdims or i not in gone]
        options = schema.ReducerOptionsT(keepDims=keepdims)
        return self.emit(code, [x, self.ints(sorted(gone))], shape, x, options)

    def dequantize(self, view: View) -> View:
        """The value as float32: folded for constants, else a DEQUANTIZE (one a tensor)."""
        t = view.tensor
        if t.quant is None:
            return view
        if id(t) not in self._floats:
            if t.data is not None:
                real = Tensor(t.shape, FLOAT32, t.name, t.quant.dequantize(t.data))
            else:
                real = self.emit("DEQUANTIZE", [t], t.shape, FLOAT, schema.DequantizeOptionsT())
            self._floats[id(t)] = (t, real)
        return view.with_tensor(self._floats[id(t)][1])

    def quantize(self, x: Tensor, kind: Type) -> Tensor:
        """``x`` (float, or quantized otherwise) as ``kind``: folded for constants, else a QUANTIZE."""
        if x.dtype == kind.dtype and x.quant is not None and x.quant.same_as(kind.quant):
            return x
        assert kind.quant is not None
        if x.data is not None:
            real = x.data if x.quant is None else x.quant.dequantize(x.data)
            return Tensor(x.shape, kind.dtype, x.name, kind.quant.quantize(real, kind.dtype), kind.quant)
        return self.emit("QUANTIZE", [x], x.shape, kind, schema.QuantizeOptionsT())


def compose_between(have: Perm, want: Perm) -> Perm:
    """The transposition that brings a tensor from order ``have`` to order ``want``."""
    place = inverse(have)
    return tuple(place[axis] for axis in want)


def _type_of(kind: DType | Tensor) -> Type:
    if isinstance(kind, Tensor):
        return Type(kind.dtype, kind.quant)
    return Type(np.dtype(kind))
