"""Layer normalization that exporters have taken apart."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import (
    add_constant,
    attribute,
    constant,
    home,
    integers,
    nodes,
    only_user,
    produced_by,
    replace,
    scalar,
    static_shape,
    sweep,
)


class RecognizeLayerNorm(ir.passes.InPlacePass):
    """``(x - mean(x)) / sqrt(mean((x - mean(x))²) + ε) · γ + β`` over the last axes → LayerNormalization.

    ONNX Runtime, OpenVINO and TensorRT have one kernel for it; a quantizer leaves it whole, where it would
    put the square and the mean on eight bits.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        if model.opset_imports.get("", 0) >= 17:
            for node in nodes(model, "Div", "Mul"):
                modified |= _recognize(node)
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified=modified)


def _recognize(node: ir.Node) -> bool:
    found = _normalized(node)
    if found is None:
        return False
    x, axis, epsilon = found
    shape, graph = static_shape_of_tail(x, axis), home(node)
    if shape is None or graph is None:
        return False
    end, gamma = _affine(node, "Mul", shape)
    end, beta = _affine(end, "Add", shape)
    dtype = x.dtype.numpy() if x.dtype is not None else np.float32
    scale = gamma if gamma is not None else add_constant(graph, np.ones(shape, dtype), f"{node.name}_scale")
    attributes = [ir.AttrInt64("axis", axis), ir.AttrFloat32("epsilon", epsilon)]
    inputs = [x, scale] if beta is None else [x, scale, beta]
    replace(
        end, [ir.Node("", "LayerNormalization", inputs, attributes, name=f"{node.name}_norm")], covers=[node]
    )
    return True


def static_shape_of_tail(value: ir.Value, axis: int) -> tuple[int, ...] | None:
    """The sizes of the last ``-axis`` dimensions, when they are numbers."""
    if value.shape is None:
        return None
    tail = tuple(d for d in tuple(value.shape)[axis:] if isinstance(d, int))
    return tail if len(tail) == -axis else None


def _normalized(node: ir.Node) -> tuple[ir.Value, int, float] | None:
    """x, the (negative) first axis and ε when ``node`` is the division by the standard deviation."""
    centred, deviation = node.inputs[0], node.inputs[1]
    if node.op_type == "Mul":
        pairs = [(a, produced_by(b, "Reciprocal")) for a, b in ((centred, deviation), (deviation, centred))]
        centred, deviation = next(((a, n.inputs[0]) for a, n in pairs if n is not None), (None, None))
    root = produced_by(deviation, "Sqrt")
    shifted = produced_by(root.inputs[0], "Add") if root is not None else None
    if shifted is None or centred is None:
        return None
    for side in (0, 1):
        epsilon, variance = scalar(shifted.inputs[side]), produced_by(shifted.inputs[1 - side], "ReduceMean")
        if epsilon is None or variance is None or _squared(variance.inputs[0]) is not centred:
            continue
        subtraction = produced_by(centred, "Sub")
        mean = produced_by(subtraction.inputs[1], "ReduceMean") if subtraction is not None else None
        x = subtraction.inputs[0] if subtraction is not None else None
        if x is None or mean is None or mean.inputs[0] is not x:
            return None
        axis = _trailing(mean, x)
        return (x, axis, epsilon) if axis is not None and axis == _trailing(variance, x) else None
    return None


def _trailing(reduction: ir.Node, x: ir.Value) -> int | None:
    """The first of the reduced axes, counted from the end, when they are the last ones and are kept."""
    if x.shape is None or not attribute(reduction, "keepdims", 1):
        return None
    operand = constant(reduction.inputs[1]) if len(reduction.inputs) > 1 else None
    axes = integers(reduction, "axes") if operand is None else operand.tolist()
    if not axes:
        return None
    rank = len(x.shape)
    normal = sorted(a % rank for a in axes)
    return normal[0] - rank if normal == list(range(normal[0], rank)) else None


def _squared(value: ir.Value | None) -> ir.Value | None:
    product = produced_by(value, "Mul")
    if product is not None:
        return product.inputs[0] if product.inputs[0] is product.inputs[1] else None
    power = produced_by(value, "Pow")
    return power.inputs[0] if power is not None and scalar(power.inputs[1]) == 2.0 else None


def _affine(node: ir.Node, operator: str, shape: tuple[int, ...]) -> tuple[ir.Node, ir.Value | None]:
    """The following Mul or Add with a constant of the normalized shape, and that constant."""
    user = only_user(node.outputs[0])
    if user is None or user.op_type != operator or user.graph is not node.graph:
        return node, None
    other = user.inputs[1] if user.inputs[0] is node.outputs[0] else user.inputs[0]
    return (user, other) if constant(other) is not None and static_shape(other) == shape else (node, None)
