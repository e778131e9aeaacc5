"""Nodes that compute nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import attribute, bypass, constant, integers, nodes, static_shape


class CleanUp(ir.passes.InPlacePass):
    """Remove Identity, inference-time Dropout, and Cast, Transpose, Reshape, Expand, Pad and others that
    give back their input."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, *_NO_OPS):
            if node.inputs and _NO_OPS[node.op_type](node):
                modified |= bypass(node)
        return ir.passes.PassResult(model, modified=modified)


class DropUnread(ir.passes.InPlacePass):
    """Remove initializers that no node of the model reads.

    The library's own pass counts readers, and folding leaves nodes behind that are in no graph and read on.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        graphs = list(model.graphs())
        read = {v for graph in graphs for node in graph for v in node.inputs}
        read |= {v for graph in graphs for v in (*graph.inputs, *graph.outputs)}
        unread = [(g, name) for g in graphs for name, v in g.initializers.items() if v not in read]
        for graph, name in unread:
            del graph.initializers[name]
        return ir.passes.PassResult(model, modified=bool(unread))


def _always(_: ir.Node) -> bool:
    return True


def _dropout(node: ir.Node) -> bool:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is None:
        return True
    value = constant(training)
    return value is not None and not value.any()


def _cast(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and source.dtype is not None and int(source.dtype) == attribute(node, "to", 0)


def _transpose(node: ir.Node) -> bool:
    order = integers(node, "perm")
    return order is not None and order == list(range(len(order)))


def _same_shape(node: ir.Node) -> bool:
    shape = static_shape(node.inputs[0])
    return shape is not None and shape == static_shape(node.outputs[0])


def _pad(node: ir.Node) -> bool:
    pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return pads is not None and not pads.any()


def _single(node: ir.Node) -> bool:
    return len(node.inputs) == 1


def _slice(node: ir.Node) -> bool:
    """A slice forwards over whole axes: the same shape also when reversed, so steps must be 1."""
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    forward = steps is None or ((array := constant(steps)) is not None and bool(np.all(array == 1)))
    return forward and len(node.inputs) > 1 and _same_shape(node)


_NO_OPS = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Expand": _same_shape,
    "Squeeze": _same_shape,
    "Unsqueeze": _same_shape,
    "Pad": _pad,
    "Concat": _single,
    "Sum": _single,
    "Slice": _slice,
}
