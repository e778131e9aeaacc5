"""What the rewrites share: constants, single uses, and taking nodes out without renaming graph outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgekit.graph.io import SCOPES

if TYPE_CHECKING:
    from edgekit.types import Array


def nodes(model: ir.Model, *ops: str) -> Iterator[ir.Node]:
    """The model's nodes of the given standard operators, subgraphs included; safe to edit meanwhile."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain in ("", "ai.onnx") and node.op_type in ops and node.graph is not None:
            yield node


def constant(value: ir.Value | None) -> Array | None:
    """The array of a constant: an initializer that no caller can override, or a Constant node's output."""
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape, when every dimension is a number."""
    if value is None or value.shape is None:
        return None
    sizes = tuple(d for d in value.shape if isinstance(d, int))
    return sizes if len(sizes) == len(value.shape) else None


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, when nothing else needs it."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or what the specification says it is when absent."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def add_constant(graph: ir.Graph, array: Array, near: str) -> ir.Value:
    """A new initializer with a name derived from ``near``, the same for the same graph."""
    name = near
    count = 0
    taken = graph.initializers
    while name in taken:
        count += 1
        name = f"{near}_{count}"
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    value.shape = ir.Shape(array.shape)
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    graph.register_initializer(value)
    return value


def home(node: ir.Node) -> ir.Graph | None:
    """The graph that holds ``node``, when initializers can be added to it."""
    return node.graph if isinstance(node.graph, ir.Graph) else None


def bypass(node: ir.Node, source: ir.Value | None = None) -> bool:
    """Let the readers of the node's first output read ``source`` (its first input), and remove the node.

    A graph output keeps its name: the source takes it over, unless the source is itself a graph input,
    output or initializer or lives in another graph; then nothing is done.
    """
    source = node.inputs[0] if source is None else source
    output = node.outputs[0]
    if source is None or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return False
    if output.is_graph_output():
        producer = source.producer()
        bound = source.is_graph_input() or source.is_graph_output() or source.is_initializer()
        if bound or producer is None or producer.graph is not node.graph:
            return False
        name = output.name
        ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
        source.shape, source.type = output.shape or source.shape, output.type or source.type
        output.name = None
        source.name = name
    else:
        ir.convenience.replace_all_uses_with(output, source)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    return True


def replace(node: ir.Node, new: Sequence[ir.Node], *, covers: Sequence[ir.Node] = ()) -> None:
    """Put ``new`` (in order; the last gives the result) in the place of ``node``.

    The result keeps name, type and shape; the new nodes get the module path of the old ones.
    ``covers`` are further nodes that die with it, named only for their module path.
    """
    graph, output, result = node.graph, node.outputs[0], new[-1].outputs[0]
    assert graph is not None
    scopes = next((n.metadata_props[SCOPES] for n in (*covers, node) if SCOPES in n.metadata_props), None)
    for made in new:
        if scopes:
            made.metadata_props[SCOPES] = scopes
    graph.insert_before(node, list(new))
    result.shape, result.type = output.shape, output.type
    name = output.name
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=output.is_graph_output())
    graph.remove(node, safe=True)
    output.name = None
    result.name = name


def sweep(model: ir.Model) -> None:
    """Remove what nothing reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
