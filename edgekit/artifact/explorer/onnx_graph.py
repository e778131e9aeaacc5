"""``.onnx``: the graph, its bodies and functions; shapes by ONNX's own inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from edgekit.artifact.explorer.graph import INPUT, OUTPUT, Edge, Graph, Names, Node, Tensor
from edgekit.core.foreign import translated
from edgekit.graph import io, macs

_LONGEST = 200
_WIDE = frozenset({ir.AttributeType.TENSOR, ir.AttributeType.TENSORS, ir.AttributeType.SPARSE_TENSOR})
_BODIES = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


def read(path: Path) -> tuple[Graph, ...]:
    """Raises :class:`SourceError` for a file that is damaged."""
    model = io.load(path)
    with translated(f"{path} is not a valid ONNX model", hint="export it again"):
        counted = {node.name: node.macs for node in macs.count_macs(path)}
        model = common.ShapeInferencePass(check_type=False, strict_mode=False)(model).model
        return tuple(_graphs(model, counted))


def _graphs(model: ir.Model, counted: Mapping[str, int | None]) -> Iterator[Graph]:
    scopes = {id(graph): graph for graph in model.graphs()}
    called = {id(f.graph): f.name for f in model.functions.values()}
    scopes |= {id(f.graph): f.graph for f in model.functions.values()}
    names = Names()
    ids = {key: names.new(_text(graph.name) or called.get(key) or "graph") for key, graph in scopes.items()}
    functions = {identifier: ids[id(f.graph)] for identifier, f in model.functions.items()}
    main = id(model.graph)
    for key in [main, *(k for k in scopes if k != main)]:
        reader = _Reader(counted, ids, functions)
        yield Graph(id=ids[key], nodes=tuple(reader.nodes(scopes[key])))


class _Reader:
    """Makes the nodes of one graph. ``ids`` are those of all graphs, by :func:`id`; ``functions``: of functions."""

    def __init__(
        self,
        counted: Mapping[str, int | None],
        ids: Mapping[int, str],
        functions: Mapping[ir.OperatorIdentifier, str],
    ) -> None:
        self._counted, self._ids, self._functions = counted, ids, functions
        self._names = Names()
        self._made: dict[int, tuple[str, int]] = {}

    def nodes(self, graph: ir.Graph) -> Iterator[Node]:
        """Inputs, operators in the file's order, outputs."""
        for value in graph.inputs:
            if not value.is_initializer():
                node_id = self._names.new(_text(value.name) or "input")
                self._made[id(value)] = node_id, 0
                yield Node(id=node_id, op=INPUT, names=(_text(value.name),), outputs=(_tensor(value),))
        named = [(node, self._names.new(_text(_name(node)))) for node in graph]
        for node, node_id in named:
            self._made |= {id(value): (node_id, slot) for slot, value in enumerate(node.outputs)}
        for node, node_id in named:
            yield self._node(node, node_id)
        for value in graph.outputs:
            edges = self._edges([value])
            node_id = self._names.new(f"{_text(value.name) or 'output'} (output)")
            yield Node(id=node_id, op=OUTPUT, names=(), inputs=(_tensor(value),), edges=edges)

    def _node(self, node: ir.Node, node_id: str) -> Node:
        op = _text(node.op_type)
        outputs = [_text(value.name) for value in node.outputs]
        return Node(
            id=node_id,
            op=op if node.domain in ("", "ai.onnx") else f"{_text(node.domain)}.{op}",
            names=tuple(dict.fromkeys(filter(None, (_text(node.name), *outputs)))),
            inputs=tuple(None if value is None else _tensor(value) for value in node.inputs),
            outputs=tuple(map(_tensor, node.outputs)),
            edges=self._edges(node.inputs),
            macs=self._counted.get(_name(node), 0),
            module=io.module_path(node),
            bodies=tuple(self._bodies(node)),
            attributes=dict(_options(node)),
        )

    def _edges(self, values: Iterable[ir.Value | None]) -> tuple[Edge, ...]:
        """Of constants, and of values from around a body, there are none."""
        found = []
        for slot, value in enumerate(values):
            if value is not None and id(value) in self._made:
                source, output = self._made[id(value)]
                found.append(Edge(source=source, output=output, input=slot))
        return tuple(found)

    def _bodies(self, node: ir.Node) -> Iterator[str]:
        for attribute in node.attributes.values():
            if attribute.is_ref() or attribute.type not in _BODIES:
                continue
            inner = (
                [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
            )
            yield from (self._ids[id(graph)] for graph in inner if id(graph) in self._ids)
        if node.op_identifier() in self._functions:
            yield self._functions[node.op_identifier()]


def _text(name: str | bytes | None) -> str:
    """A name; protobuf gives bytes that are no UTF-8 as they are."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""


def _name(node: ir.Node) -> str:
    """As the count of multiply-accumulates names it."""
    return node.name or next((value.name for value in node.outputs if value.name), "") or node.op_type


def _options(node: ir.Node) -> Iterator[tuple[str, str]]:
    for name, attribute in node.attributes.items():
        if not attribute.is_ref() and attribute.type not in _WIDE | _BODIES:
            text = str(attribute.value)
            yield _text(name), text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _tensor(value: ir.Value) -> Tensor:
    constant = value.is_initializer() or value.const_value is not None
    dtype = value.dtype if value.dtype is not None or value.const_value is None else value.const_value.dtype
    shape = value.shape if value.shape is not None or value.const_value is None else value.const_value.shape
    return Tensor(
        name=_text(value.name) or "?",
        dtype=_type(dtype),
        shape=None if shape is None else tuple(d if isinstance(d, int) else str(d) for d in shape),
        stored=_stored(value),
        constant=constant,
    )


def _stored(value: ir.Value) -> str:
    """The integers that a DequantizeLinear in front has made floats of."""
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or not producer.inputs:
        return ""
    source = producer.inputs[0]
    if source is None:
        return ""
    if source.dtype is None and (quantizer := source.producer()) is not None and len(quantizer.inputs) > 2:
        source = quantizer.inputs[2]
    return "" if source is None else _type(source.dtype)


def _type(dtype: ir.DataType | None) -> str:
    if dtype is None:
        return ""
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())
