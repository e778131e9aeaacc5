"""Reading and changing ONNX graphs: constants, attributes, single uses, nodes taken out without renaming outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeGuard, TypeVar, cast

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.graph import ops
from edgekit.graph.io import SCOPES

if TYPE_CHECKING:
    from edgekit.types import Array

T = TypeVar("T")


def nodes(model: ir.Model, *names: str) -> Iterator[ir.Node]:
    """The model's nodes of the standard operators ``names``, subgraphs included; safe to edit meanwhile."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if ops.is_op(node, *names) and node.graph is not None:
            yield node


def is_constant(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is an initializer that no caller can override, or a Constant node's output."""
    return _tensor(value) is not None


def constant(value: ir.Value | None) -> Array | None:
    """The array of a constant (see :func:`is_constant`), a copy of what the file holds."""
    tensor = _tensor(value)
    return None if tensor is None else tensor.numpy()


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)


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


def attribute(node: ir.Node, name: str, default: T) -> T:
    """An attribute's value, or what the specification says it is when absent."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else cast(T, attribute.value)


def integers(node: ir.Node, name: str) -> list[int] | None:
    """The value of an attribute that has no default but the operator's own logic."""
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else list(attribute.as_ints())


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


def produced_by(value: ir.Value | None, *names: str) -> ir.Node | None:
    """The node that writes ``value``, when it is one of the standard operators ``names``."""
    node = value.producer() if value is not None else None
    return node if ops.is_op(node, *names) else None


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
    RemoveUnusedNodesPass()(model)
