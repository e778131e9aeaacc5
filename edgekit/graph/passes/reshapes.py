"""Views of views."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph import ops
from edgekit.graph.edit import (
    add_constant,
    attribute,
    constant,
    home,
    nodes,
    produced_by,
    static_shape,
    sweep,
)
from edgekit.graph.ops import Trait


class MergeReshapes(ir.passes.InPlacePass):
    """``Reshape(view(x))`` → ``Reshape(x)`` where the outer shape says everything by itself.

    It does when it is constant, without a 0 (which copies a dimension of the inner view) unless the output's
    shape is known anyway. Squeeze, Unsqueeze and Flatten to a known shape become a Reshape likewise when they
    follow a view.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "Reshape"):
            while (inner := _view(node)) is not None and _stands_alone(node):
                node.replace_input_with(0, inner.inputs[0])
                modified = True
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified=modified)


def _view(node: ir.Node) -> ir.Node | None:
    inner = produced_by(node.inputs[0], *ops.named(Trait.VIEW))
    return inner if inner is not None and inner.graph is node.graph else None


def _stands_alone(node: ir.Node) -> bool:
    shape = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if shape is None:
        return False
    copies = bool((shape == 0).any()) and not attribute(node, "allowzero", 0)
    if not copies:
        return True
    known = static_shape(node.outputs[0])
    source = static_shape(node.inputs[0])
    return known is not None and source is not None and 0 not in known and _restate(node, known)


def _restate(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Write the output's shape as a constant; only where nothing is dynamic, so that no batch axis gets fixed."""
    graph = home(node)
    if graph is None:
        return False
    node.replace_input_with(
        1, add_constant(graph, np.array(shape, np.int64), f"{node.name or 'reshape'}_shape")
    )
    return True
