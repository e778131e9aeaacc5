"""The guard that torch puts behind an attention's softmax."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import bypass, constant, nodes, produced_by, scalar, sweep


class DropSoftmaxGuard(ir.passes.InPlacePass):
    """``Where(IsNaN(p), 0, p)`` with ``p = Softmax(scores)`` → ``p``, where no row can be masked as a whole.

    A softmax is NaN only for a row of minus infinities. Scores that are a matrix product, scaled, plus at
    most a constant mask that leaves something in every row, have none. With a mask that is computed or
    given, the guard stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "Where"):
            condition, zero, value = node.inputs[0], node.inputs[1], node.inputs[2]
            check, softmax = produced_by(condition, "IsNaN"), produced_by(value, "Softmax")
            if check is None or softmax is None or check.inputs[0] is not value or scalar(zero) != 0.0:
                continue
            if _has_no_masked_row(softmax.inputs[0]):
                modified |= bypass(node, value)
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified=modified)


def _has_no_masked_row(scores: ir.Value | None) -> bool:
    for _ in range(8):
        node = produced_by(scores, "MatMul", "Mul", "Div", "Add")
        if node is None or node.op_type == "MatMul":
            return node is not None
        sides = [constant(v) for v in node.inputs]
        side = next((i for i, c in enumerate(sides) if c is not None), None)
        if side is None or (node.op_type == "Div" and side == 0):
            return False
        mask = sides[side]
        if mask is None or np.isnan(mask).any() or (mask == np.inf).any():
            return False
        if node.op_type != "Add" and not np.isfinite(mask).all():
            return False
        if mask.ndim and not np.isfinite(mask).any(axis=-1).all():
            return False
        scores = node.inputs[1 - side]
    return False
