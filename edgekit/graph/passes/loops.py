"""Loops carry only what changes."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.graph.edit import nodes


class HoistInvariants(ir.passes.InPlacePass):
    """What each turn of a ``Loop`` hands on as it came is read from outside, and carried no more.

    Exporters of ``while`` carry all that the body reads, weights too: no quantizer sees that they are constant, and
    OpenVINO reads no body in which a carried value has the name of a weight outside.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "Loop"):
            modified |= _hoist(node)
        return ir.passes.PassResult(model, modified=modified)


def _hoist(node: ir.Node) -> bool:
    body = node.attributes["body"].as_graph()
    count = len(node.inputs) - 2
    fixed = [i for i in range(count) if _is_invariant(node, body, i)]
    if not fixed:
        return False
    kept = [i for i in range(count) if i not in fixed]
    formals = [body.inputs[2 + i] for i in fixed]
    body.outputs[:] = [body.outputs[0], *(body.outputs[1 + i] for i in kept), *body.outputs[1 + count :]]
    body.inputs[:] = [*body.inputs[:2], *(body.inputs[2 + i] for i in kept)]
    for i, formal in zip(fixed, formals, strict=True):
        value = node.inputs[2 + i]
        assert value is not None
        formal.replace_all_uses_with(value)
        node.outputs[i].replace_all_uses_with(value)
    _replace(node, body, kept, count)
    return True


def _is_invariant(node: ir.Node, body: ir.Graph, i: int) -> bool:
    value, formal, result = node.inputs[2 + i], body.inputs[2 + i], body.outputs[1 + i]
    while (giver := result.producer()) is not None and giver.op_type == "Identity" and giver.graph is body:
        source = giver.inputs[0]
        if source is None:
            return False
        result = source
    return (
        value is not None
        and result is formal
        and not any(o is formal for j, o in enumerate(body.outputs) if j != 1 + i)
        and not node.outputs[i].is_graph_output()
        and not _is_hidden(value.name, body, formal)
    )


def _is_hidden(name: str | None, body: ir.Graph, formal: ir.Value) -> bool:
    """Whether another value in the body is called so: it would be read in the outer one's place."""
    inside = [*body.inputs, *body.initializers.values()]
    inside += [o for n in ir.traversal.RecursiveGraphIterator(body) for o in n.outputs]
    return any(v.name == name for v in inside if v is not formal)


def _replace(node: ir.Node, body: ir.Graph, kept: list[int], count: int) -> None:
    """A ``Loop`` with fewer inputs and outputs is another node."""
    node.attributes.pop("body")
    inputs = [*node.inputs[:2], *(node.inputs[2 + i] for i in kept)]
    outputs = [*(node.outputs[i] for i in kept), *node.outputs[count:]]
    others = list(node.attributes.values())
    graph = node.graph
    assert graph is not None
    made = ir.Node(
        node.domain,
        "Loop",
        inputs,
        [ir.AttrGraph("body", body), *others],
        num_outputs=len(outputs),
        name=node.name,
    )
    made.metadata_props.update(node.metadata_props)
    for old, new in zip(outputs, made.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, made)
    for old, new in zip(outputs, made.outputs, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
