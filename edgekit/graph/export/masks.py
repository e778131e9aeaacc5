"""Boolean attention masks as PyTorch means them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import add_constant, home, nodes, produced_by, scalar

_NEVER = -1e30


def mask_whole_rows(model: ir.Model) -> None:
    """Let rows without any key give 0, in place.

    The exporter writes a boolean mask as 0 and float32's lowest number, and guards the softmax against NaN, which then
    never comes: a row that is masked as a whole gets the mean of all values. PyTorch gives 0, as the guard does once
    the mask is minus infinity.
    """
    for guard in nodes(model, "Where"):
        check = produced_by(guard.inputs[0], "IsNaN")
        softmax = produced_by(check.inputs[0], "Softmax") if check is not None else None
        total = produced_by(softmax.inputs[0], "Add") if softmax is not None else None
        for side in () if total is None else total.inputs:
            mask = produced_by(side, "Where")
            graph = home(mask) if mask is not None else None
            if mask is None or graph is None or scalar(mask.inputs[1]) != 0.0:
                continue
            lowest = scalar(mask.inputs[2])
            if lowest is not None and np.isfinite(lowest) and lowest < _NEVER:
                never = add_constant(graph, np.asarray(-np.inf, np.float32), "minus_infinity")
                mask.replace_input_with(2, never)
