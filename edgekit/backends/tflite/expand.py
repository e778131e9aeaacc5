"""ONNX operators that ONNX itself defines by a function of simpler ones.

A node without a handler is lowered by its function body, if its schema has one: losses, attention variants and
whatever newer opsets add. A handler always wins: it knows the better TFLite form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TypeProto, helper

from edgekit.backends.tflite.view import View


@dataclass(frozen=True, slots=True)
class Body:
    """A function's body as a graph. Its inputs are the node's present inputs, in order; its outputs are the
    node's outputs at ``outputs``: those that somebody wants and that the function computes."""

    graph: ir.Graph
    opsets: dict[str, int]
    outputs: tuple[int, ...]


def expand(node: ir.Node, views: Sequence[View | None], opset: int) -> Body | None:
    """The body of ``node``, for inputs of these types and shapes; None where ONNX defines none."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    proto = _named(ir.to_proto(node), views)
    types = [_type(view) for view in views]
    function = _function(schema, proto, types, opset)
    if function is None:
        return None
    bound = dict(zip(function.input, views, strict=False))
    present = [name for name, view in bound.items() if view is not None]
    absent = {name for name in function.input if bound.get(name) is None}
    attributes = _attributes(schema, function, proto)
    nodes = [_resolved(n, attributes, absent) for n in function.node]
    inputs = [
        helper.make_value_info(name, kind)
        for name, kind in zip(function.input, types, strict=False)
        if name in present
    ]
    produced = {name for n in nodes for name in n.output}
    # Optional outputs that nobody reads are left out, and with them what only they need.
    kept_outputs = [i for i, o in enumerate(node.outputs) if o.name and function.output[i] in produced]
    outputs = [helper.make_value_info(function.output[i], TypeProto()) for i in kept_outputs]
    graph = ir.serde.deserialize_graph(helper.make_graph(nodes, node.op_type, inputs, outputs))
    return Body(graph, {i.domain: i.version for i in function.opset_import}, tuple(kept_outputs))


def _function(
    schema: Any,  # onnx's stubs lack the methods used here
    node: NodeProto,
    types: Sequence[TypeProto],
    opset: int,
) -> FunctionProto | None:
    fixed = [v for v in schema.function_opset_versions if v <= opset]
    if fixed:
        return _parsed(schema.get_function_with_opset_version(max(fixed)))
    # These bodies depend on types or attributes, so onnx has to build them for this very node.
    dependent = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    if dependent:
        serialized = [t.SerializeToString() for t in types]
        return _parsed(
            schema.get_context_dependent_function_with_opset_version(
                max(dependent), node.SerializeToString(), serialized
            )
        )
    return None


def _parsed(data: bytes) -> FunctionProto | None:
    function = FunctionProto()
    function.ParseFromString(data)
    return function if function.node else None


def _named(node: NodeProto, views: Sequence[View | None]) -> NodeProto:
    """The node with a name for every present input: the schema looks which are there."""
    del node.input[:]
    node.input.extend("" if view is None else f"i{n}" for n, view in enumerate(views))
    return node


def _type(view: View | None) -> TypeProto:
    if view is None:
        return TypeProto()
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(view.dtype), view.shape)


def _attributes(
    schema: onnx.defs.OpSchema, function: FunctionProto, node: NodeProto
) -> dict[str, AttributeProto]:
    """Values for the function's attribute references: the node's, else the defaults."""
    table = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    table |= {a.name: a for a in function.attribute_proto}
    return table | {a.name: a for a in node.attribute}


def _resolved(node: NodeProto, attributes: Mapping[str, AttributeProto], absent: set[str]) -> NodeProto:
    """The node with references replaced by values, and absent inputs left out."""
    out = NodeProto()
    out.CopyFrom(node)
    del out.attribute[:]
    for i, name in enumerate(out.input):
        if name in absent:
            out.input[i] = ""
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            value = attributes.get(attribute.ref_attr_name)
            if value is not None:
                copy = out.attribute.add()
                copy.CopyFrom(value)
                copy.name = attribute.name
            continue
        copy = out.attribute.add()
        copy.CopyFrom(attribute)
        if attribute.type == AttributeProto.GRAPH:
            copy.g.CopyFrom(_resolved_graph(attribute.g, attributes, absent))
    return out


def _resolved_graph(
    graph: GraphProto, attributes: Mapping[str, AttributeProto], absent: set[str]
) -> GraphProto:
    out = GraphProto()
    out.CopyFrom(graph)
    del out.node[:]
    out.node.extend(_resolved(n, attributes, absent) for n in graph.node)
    return out
