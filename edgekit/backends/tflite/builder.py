"""What handlers write with: an emitter that knows views, and brings tensors into the order that is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import onnx_ir as ir

from edgekit.backends.tflite.emitter import Emitter, type_of
from edgekit.backends.tflite.ir import FLOAT, FLOAT32, Array, DType, Graph, Tensor, Type
from edgekit.backends.tflite.quant import Lookahead
from edgekit.backends.tflite.registry import Refusal
from edgekit.backends.tflite.view import Items, Perm, View, compose, inverse, reshape_groups, reshape_order


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


class Builder(Emitter):
    """Appends operators to one graph. Handlers get it as ``g``.

    ``result`` is the type that the current node's first output has to have: a quantized one when the node
    is lowered to integer arithmetic, else None (see :meth:`type_like`). ``node`` is the current ONNX node
    (how many outputs, who consumes them); ``lowering`` is for operators with subgraphs.
    """

    def __init__(self, graph: Graph, lowering: Scope, *, opset: int) -> None:
        super().__init__(graph)
        self.lowering = lowering
        self.opset = opset
        self.result: Type | None = None
        self.node: ir.Node | None = None
        # Keyed by id: the source is kept beside the result so that its id stays taken.
        self._orders: dict[tuple[int, Perm], tuple[Tensor, Tensor]] = {}
        self._floats: dict[int, tuple[Tensor, Tensor]] = {}
        self._casts: dict[tuple[int, DType], tuple[Tensor, Tensor]] = {}

    @contextmanager
    def inside(self, graph: Graph) -> Iterator[None]:
        """Emit into another subgraph meanwhile. What was computed outside is not seen there."""
        outer = self.graph, self._orders, self._floats, self._casts
        self.graph, self._orders, self._floats, self._casts = graph, {}, {}, {}
        try:
            yield
        finally:
            self.graph, self._orders, self._floats, self._casts = outer

    def type_like(self, source: View | Tensor) -> Type:
        """The type of this node's output: the quantized type it was asked to have, else that of its input."""
        if self.result is not None:
            return self.result
        return type_of(source.tensor if isinstance(source, View) else source)

    # --- views --------------------------------------------------------------------------------------

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

    def transpose_view(self, view: View, perm: Sequence[int]) -> View:
        """ONNX Transpose: nothing is emitted."""
        return View(view.tensor, compose(view.perm, perm))

    def reshape_view(self, view: View, shape: Sequence[int]) -> View:
        """ONNX Reshape to a known shape, with as few transpositions as the grouping of axes allows."""
        shape = tuple(int(d) for d in shape)
        before = view.shape
        if shape == before:
            return view
        # Nothing to keep: groups of axes are found by their sizes, which 0 does not tell apart.
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
        # One number broadcasts against every order of axes.
        if view.size == 1 and view.tensor.data is not None:
            return view.tensor
        if perm == tuple(range(rank)):
            return self.plain(view)
        lead = rank - view.rank
        shape = (1,) * lead + view.shape
        order = (*range(lead), *(p + lead for p in view.perm))
        padded = self.reshape(view.tensor, [shape[a] for a in order])
        return self.layout(View(padded, order), perm)

    def known(self, view: View | None, refusal: str) -> Array:
        """The value of an input that has to be constant. Raises :class:`Refusal` where it is not."""
        if view is None or view.const is None:
            raise Refusal(refusal)
        return view.const

    def known_int(self, view: View | None, refusal: str) -> int:
        """:meth:`known`, of one integer."""
        return int(self.known(view, refusal).reshape(-1)[0])

    def as_type(self, view: View, dtype: DType | type) -> View:
        """The value converted to another element type."""
        return view.with_tensor(self.cast(view.tensor, dtype))

    def as_type_once(self, view: View, dtype: DType) -> View:
        """:meth:`as_type`, shared by everyone who asks for the same."""
        key = (id(view.tensor), dtype)
        if key not in self._casts:
            self._casts[key] = (view.tensor, self.cast(view.tensor, dtype))
        return view.with_tensor(self._casts[key][1])

    def dequantize(self, view: View) -> View:
        """The value as float32: folded for constants, else a DEQUANTIZE (one a tensor)."""
        t = view.tensor
        if t.quant is None:
            return view
        # Once a tensor: a second DEQUANTIZE would be a second copy of the activation.
        if id(t) not in self._floats:
            if t.data is not None:
                real = Tensor(t.shape, FLOAT32, t.name, t.quant.dequantize(t.data))
            else:
                real = self.emit("DEQUANTIZE", [t], t.shape, FLOAT)
            self._floats[id(t)] = (t, real)
        return view.with_tensor(self._floats[id(t)][1])


def compose_between(have: Perm, want: Perm) -> Perm:
    """The transposition that brings a tensor from order ``have`` to order ``want``."""
    place = inverse(have)
    return tuple(place[axis] for axis in want)
