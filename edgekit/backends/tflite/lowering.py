"""The walk over the ONNX graph: binds every ONNX value to a view on a TFLite tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgekit.backends.tflite.boundary import Boundary
from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.dynamic import refuse
from edgekit.backends.tflite.expand import expand
from edgekit.backends.tflite.fold import NotFoldable, fold
from edgekit.backends.tflite.ir import INT8, Array, Graph, Origin, Quant, Tensor, Type
from edgekit.backends.tflite.quant import Lookahead
from edgekit.backends.tflite.registry import Refusal, Row, Rule, lookup
from edgekit.backends.tflite.report import FloatNode
from edgekit.backends.tflite.view import View
from edgekit.backends.tflite.widen import narrowed, widened
from edgekit.errors import UnsupportedNode
from edgekit.graph.io import module_path
from edgekit.types import TensorSpec


class Lowering:
    """Lowers one model. After :meth:`run`: ``graphs``, ``inputs``, ``outputs``, ``unsupported``."""

    def __init__(self, model: ir.Model, io_layout: str, io_dtype: str, kernels: str = "xnnpack") -> None:
        self.model = inlined(model)
        self.io_layout, self.io_dtype, self.kernels = io_layout, io_dtype, kernels
        self.graphs = [Graph()]
        self.opsets = {("" if d == "ai.onnx" else d): v for d, v in self.model.opset_imports.items()}
        self.builder = Builder(self.graphs[0], self, opset=self.opsets.get("", 1))
        self.env: dict[ir.Value, View] = {}
        self.failed: set[ir.Value] = set()
        self.unsupported: list[UnsupportedNode] = []
        self.left_in_float: list[FloatNode] = []
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.lookahead = Lookahead(
            self.constant, self.builder.opset, frozenset(v for v in self.model.graph.outputs if v is not None)
        )

    def run(self) -> None:
        """Lower the main graph, inputs to outputs."""
        graph = self.model.graph
        boundary = Boundary(
            builder=self.builder, lookahead=self.lookahead, layout=self.io_layout, dtype=self.io_dtype
        )
        views, self.inputs = boundary.bind_inputs([v for v in graph.inputs if not v.is_initializer()])
        self.env |= views
        self.walk(graph)
        if self.unsupported:
            return
        try:
            self.outputs = boundary.bind_outputs([(v, self.view(v)) for v in graph.outputs])
        except Refusal as refusal:
            self.unsupported.append(
                UnsupportedNode(op="output", node=graph.name or "graph", reason=str(refusal))
            )

    def walk(self, nodes: Iterable[ir.Node]) -> None:
        """Lower nodes in order into the current builder."""
        for node in nodes:
            self.node(node)

    def inline(self, graph: ir.Graph, arguments: Sequence[View]) -> list[View]:
        """Lower a subgraph's body in place, its inputs bound to ``arguments``; returns its outputs."""
        for value, view in zip(graph.inputs, arguments, strict=True):
            self.env[value] = view
        before = len(self.unsupported)
        self.walk(graph)
        failed = [v.name for v in graph.outputs if v in self.failed]
        if failed or len(self.unsupported) > before:
            raise Refusal("its body contains operators that cannot be expressed (listed above)")
        return [self.view(v) for v in graph.outputs]

    def nested(
        self, name: str, graph: ir.Graph, like: Sequence[Tensor], captured: Sequence[ir.Value] = ()
    ) -> int:
        """Lower a subgraph into a TFLite subgraph of its own (the body of a WHILE, a branch of an IF).

        ``like`` gives the shapes and types of the subgraph's inputs. TFLite subgraphs see nothing of the
        outside: values in ``captured`` become further inputs, in that order.
        Returns the subgraph's index. All its values lie in ONNX order at the boundary.
        """
        outer, outer_env = self.builder, self.env
        index = len(self.graphs)
        self.graphs.append(Graph(name))
        self.builder = Builder(self.graphs[index], self, opset=outer.opset)
        # A subgraph has tensors of its own for constants; their buffer is shared in the file.
        self.env = {value: view for value, view in outer_env.items() if view.tensor.data is not None}
        try:
            sources = [(v.name or "", t) for v, t in zip(graph.inputs, like, strict=True)]
            sources += [(v.name or "", outer_env[v].tensor) for v in captured]
            inside = [Tensor(t.shape, t.dtype, n, quant=t.quant) for n, t in sources]
            self.builder.graph.inputs = inside
            for value, tensor in zip((*graph.inputs, *captured), inside, strict=True):
                perm = outer_env[value].perm if value in captured else tuple(range(tensor.rank))
                self.env[value] = View(tensor, perm)
            results = self.inline(graph, [self.env[v] for v in graph.inputs])
            self.builder.graph.outputs = [self.builder.plain(v) for v in results]
        finally:
            self.builder, self.env = outer, outer_env
        return index

    def captured(self, graphs: Sequence[ir.Graph]) -> list[ir.Value]:
        """What subgraphs read of the outside and that is not constant, in order of use."""
        captured: dict[ir.Value, None] = {}
        for graph in graphs:
            nodes = list(graph.all_nodes())
            own = {o for n in nodes for o in n.outputs} | set(graph.inputs)
            for value in (*(v for n in nodes for v in n.inputs), *graph.outputs):
                view = self.env.get(value) if value is not None and value not in own else None
                if value is not None and view is not None and view.tensor.data is None:
                    captured.setdefault(value)
        return list(captured)

    # --- values -------------------------------------------------------------------------------------

    def view(self, value: ir.Value) -> View:
        """The view of a value; initializers are bound on first use."""
        view = self.env.get(value)
        if view is None:
            if value.const_value is None:
                raise Refusal(f"input {value.name!r} has no value")
            data = value.const_value.numpy()
            view = View.of(Tensor(tuple(data.shape), data.dtype, value.name or "", data))
            self.env[value] = view
        return view

    def constant(self, value: ir.Value) -> Array | None:
        """A value's stored contents if it is constant."""
        view = self.env.get(value)
        if view is not None:
            return view.const if view.quant is None else None
        return None if value.const_value is None else value.const_value.numpy()

    def is_constant(self, value: ir.Value) -> bool:
        """Whether a value is constant, or a dequantized constant: also for nodes further on."""
        view = self.env.get(value)
        if view is not None:
            return view.tensor.data is not None
        if value.const_value is not None:
            return True
        producer = value.producer()
        if producer is None or producer.op_type not in (
            "DequantizeLinear",
            "Transpose",
            "Reshape",
            "Constant",
        ):
            return False
        return all(v is None or self.is_constant(v) for v in producer.inputs)

    # --- nodes --------------------------------------------------------------------------------------

    def node(self, node: ir.Node) -> None:
        """Lower one node; a refusal is recorded, and what depends on it is only looked up."""
        row = lookup(node.domain, node.op_type, self._opset(node))
        # What depends on a refused node is reported only if it has no handler itself: one cause, one line.
        blocked = any(v in self.failed for v in node.inputs if v is not None)
        if blocked:
            self._fail(node, None if row else _no_handler(node))
            return
        self.builder.origin = origin(node)
        try:
            results = self._results(node, row)
        except Refusal as refusal:
            self._fail(node, str(refusal))
            return
        for value, view in zip(node.outputs, results, strict=False):
            if view is not None:
                self.env[value] = view
                if not view.tensor.name:
                    view.tensor.name = value.name or ""

    def _results(self, node: ir.Node, row: Row | None) -> Sequence[View | None]:
        attributes = {name: attribute_value(a) for name, a in node.attributes.items()}
        inputs = [None if v is None else self.view(v) for v in node.inputs]
        folded = self._fold(node, inputs, attributes)
        if folded is not None:
            return folded
        if row is None:
            return self._expanded(node, inputs)
        unknown = sorted(set(attributes) - row.attributes)
        if unknown:
            raise Refusal(f"attribute {', '.join(unknown)} is not supported")
        # Before quantization is looked at: quantized tensors pass through unchanged.
        inputs, narrow = widened(self.builder, node, row, inputs)
        inputs, result = self._quantized(node, row, inputs)
        self.builder.result = result
        self.builder.node = node
        produced = row.handler(self.builder, *inputs, **attributes)
        self.builder.result = None
        return narrowed(self.builder, node, [produced] if isinstance(produced, View) else produced, narrow)

    def _expanded(self, node: ir.Node, inputs: Sequence[View | None]) -> Sequence[View | None]:
        """A node without a handler, by the function that ONNX defines it with."""
        floats = [None if v is None else self.builder.dequantize(v) for v in inputs]
        body = expand(node, floats, self._opset(node))
        if body is None:
            raise Refusal(_no_handler(node))
        opsets, opset = self.opsets, self.builder.opset
        self.opsets = opsets | body.opsets
        self.builder.opset = self.opsets.get("", opset)
        try:
            results = dict(
                zip(body.outputs, self.inline(body.graph, [v for v in floats if v is not None]), strict=True)
            )
        finally:
            self.opsets, self.builder.opset = opsets, opset
        return [results.get(i) for i in range(len(node.outputs))]

    def _fold(
        self, node: ir.Node, inputs: Sequence[View | None], attributes: dict[str, Any]
    ) -> list[View] | None:
        if (
            node.op_type in ("Shape", "Size")
            and inputs[0] is not None
            and inputs[0].tensor.dynamic is not None
        ):
            refuse(f"{node.op_type} of something whose size is not known")
        if node.op_type == "Shape" and node.domain == "" and inputs[0] is not None:
            dims = inputs[0].shape[attributes.get("start", 0) : attributes.get("end")]
            return [View.of(self.builder.constant(np.asarray(dims, np.int64)))]
        if node.op_type == "Size" and node.domain == "" and inputs[0] is not None:
            return [View.of(self.builder.constant(np.asarray(inputs[0].size, np.int64)))]
        if any(v is not None and (v.tensor.data is None or v.quant is not None) for v in inputs):
            return None
        arrays = [None if v is None else v.const for v in inputs]
        try:
            outputs = fold(
                node.domain, node.op_type, self._opset(node), arrays, attributes, count=len(node.outputs)
            )
        except NotFoldable:
            return None
        named = zip(node.outputs, outputs, strict=False)
        return [View.of(Tensor(tuple(o.shape), o.dtype, v.name or "", o)) for v, o in named]

    def _quantized(
        self, node: ir.Node, row: Row, inputs: list[View | None]
    ) -> tuple[list[View | None], Type | None]:
        """Decide whether the node computes in integers; if not, hand it float inputs."""
        # Shape arithmetic has no scale to agree about.
        if row.rule is Rule.ANY:
            return inputs, None
        active = [v for v in inputs if v is not None and v.tensor.data is None and v.quant is not None]
        if not active and row.rule is Rule.SAME and inputs[0] is not None and inputs[0].quant is not None:
            # A quantized table: look up first, expand what was read.
            active = [] if inputs[0].quant.per_channel else [inputs[0]]
        kind, reason = self._integer_type(node, row, inputs) if active else (None, "")
        if kind is not None:
            return inputs, kind
        # Integer weights stay where a kernel may read them under floats: see storage.expand_weights.
        stay = [i in row.hybrid and (not active or _constant(v)) for i, v in enumerate(inputs)]
        if active and not any(stay):
            self.left_in_float.append(FloatNode(node.op_type, node.name or "", reason))
        return [
            v if v is None or kept else self.builder.dequantize(v)
            for v, kept in zip(inputs, stay, strict=True)
        ], None

    def _integer_type(
        self, node: ir.Node, row: Row, inputs: Sequence[View | None]
    ) -> tuple[Type | None, str]:
        """The integer type of the node's result, or the reason why there is none."""
        first = next(v for v in inputs if v is not None and v.quant is not None)
        if row.rule is Rule.FLOAT or str(first.dtype) not in row.quantized:
            return None, f"LiteRT has no {first.dtype} kernel for it"
        if self.kernels == "xnnpack" and first.dtype == INT8 and not row.delegated:
            return None, "XNNPACK has no int8 kernel for it; in float the delegate's partition stays whole"
        data = [v for v in inputs if v is not None and v.tensor.data is None and v.dtype.kind == "f"]
        if data and row.rule is not Rule.SAME:
            return None, "another input is not quantized"
        if any(v is not None and v.quant is not None and v.quant.block for v in inputs):
            return None, "LiteRT has no integer kernel for weights in blocks under integer activations"
        # The specification lets the output have no other parameters: whoever wants others puts a QUANTIZE
        # behind.
        if row.rule is Rule.SAME:
            return Type(first.dtype, first.quant), ""
        kind = self.lookahead.wanted_type(node.outputs[0])
        if kind is None:
            return None, "its output is not quantized"
        if row.rule is Rule.FIXED and row.fixed is not None:
            scale, zero = row.fixed[str(first.dtype)]
            return Type(first.dtype, Quant.per_tensor(scale, zero)), ""
        # Only QUANTIZE changes the width.
        if kind.dtype != first.dtype:
            return None, f"its input is {first.dtype}, its output {kind.dtype}"
        return kind, ""

    def _fail(self, node: ir.Node, reason: str | None) -> None:
        self.failed.update(node.outputs)
        if reason is not None:
            o = origin(node)
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            self.unsupported.append(
                UnsupportedNode(op=name, node=o.node, reason=reason, module_path=o.module)
            )

    def _opset(self, node: ir.Node) -> int:
        return self.opsets.get("" if node.domain == "ai.onnx" else node.domain, 1)

    # --- names --------------------------------------------------------------------------------------

    def name_tensors(self) -> None:
        """Give every tensor a unique name that leads back to its ONNX value and PyTorch module.

        Inputs and outputs keep the source's names.
        """
        for graph in self.graphs:
            # LiteRT allows equal names; profilers and edgekit diff find an operator by its tensor's name.
            names = {t.name for t in (*graph.inputs, *graph.outputs)}
            fixed = {id(t) for t in (*graph.inputs, *graph.outputs)}
            origins = {id(t): op.origin for op in graph.ops for t in op.outputs}
            for n, t in enumerate(graph.tensors()):
                if id(t) in fixed:
                    continue
                o = origins.get(id(t), Origin())
                stem = "/".join(p for p in (o.module, t.name or o.node) if p) or f"constant_{n}"
                name, count = stem, 0
                while name in names:
                    count += 1
                    name = f"{stem}:{count}" if count < 4 else f"{stem}:{n}"
                names.add(name)
                t.name = name


def _constant(view: View | None) -> bool:
    return view is not None and view.tensor.data is not None


def inlined(model: ir.Model) -> ir.Model:
    """The model with its local functions expanded (on a copy; a model without functions is itself)."""
    if not model.functions:
        return model
    copy = model.clone()
    InlinePass()(copy)
    return copy


def attribute_value(attribute: ir.Attr) -> Any:
    """An attribute as Python: numbers, str, tuples of them, numpy arrays for tensors, ``ir.Graph``."""
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().numpy()
    if attribute.type == ir.AttributeType.STRING:
        return attribute.as_string()
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return tuple(attribute.value)
    return attribute.value


def origin(node: ir.Node) -> Origin:
    """The node's name and the PyTorch module that made it, from the exporter's metadata."""
    fallback = node.outputs[0].name if node.outputs else ""
    return Origin(node.name or fallback or "", node.op_type, module_path(node))


def _no_handler(node: ir.Node) -> str:
    domain = node.domain or "ai.onnx"
    return f"there is no lowering for {domain}::{node.op_type}"
