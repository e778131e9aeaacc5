"""Scalar factors into the weights before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.graph import ops
from edgekit.graph.edit import (
    add_constant,
    attribute,
    bypass,
    constant,
    home,
    nodes,
    only_user,
    scalar,
)
from edgekit.graph.ops import Trait

if TYPE_CHECKING:
    from edgekit.types import Array

_TRANSPARENT = ops.named(Trait.VIEW) | {"Transpose", "Identity"}  # DepthToSpace would do, too: not seen there


class FoldScale(ir.passes.InPlacePass):
    """``Mul | Div (reshaped product of weights, scalar)`` → the product with scaled weights and bias.

    Attention is exported with queries and keys multiplied by ``d^-1/4`` each: two operators a layer that cost
    time, and two roundings when everything is quantized.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "Mul", "Div"):
            modified |= _fold(node)
        return ir.passes.PassResult(model, modified=modified)


def _fold(node: ir.Node) -> bool:
    for side in (0, 1):
        factor, source = scalar(node.inputs[1 - side]), node.inputs[side]
        if factor is None or source is None or (side == 1 and node.op_type == "Div"):
            continue
        other = constant(node.inputs[1 - side])
        if other is None or other.dtype.kind != "f" or _widens(other, source):
            continue
        factor = 1 / factor if node.op_type == "Div" and factor else factor
        places = _weights(source, node)
        if not np.isfinite(factor) or not factor or places is None or not bypass(node, source):
            return False
        for owner, index in places:
            _scale(owner, index, factor)
        return True
    return False


def _widens(other: Array, source: ir.Value) -> bool:
    return other.ndim > (len(source.shape) if source.shape is not None else 0)


def _weights(value: ir.Value, reader: ir.Node) -> list[tuple[ir.Node, int]] | None:
    """The constant inputs that ``value`` is linear in together; ``None`` if they cannot be scaled for it alone."""
    while True:
        node = value.producer()
        if node is None or only_user(value) is not reader or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type not in _TRANSPARENT or node.inputs[0] is None:
            break
        value, reader = node.inputs[0], node
    if node.op_type == "Add":
        for side in (0, 1):
            inner = node.inputs[side]
            if inner is not None and _own(node, 1 - side):
                rest = _weights(inner, node)
                return None if rest is None else [*rest, (node, 1 - side)]
        return None
    if node.op_type == "MatMul" and _own(node, 1):
        return [(node, 1)]
    if node.op_type in ("Gemm", "Conv") and _own(node, 1) and attribute(node, "beta", 1.0) == 1.0:
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return [(node, 1)]
        return [(node, 1), (node, 2)] if _own(node, 2) else None
    return None


def _own(node: ir.Node, index: int) -> bool:
    """Whether the input is a float constant that nobody else reads (a second copy would cost memory)."""
    value = node.inputs[index]
    array = constant(value)
    return value is not None and array is not None and array.dtype.kind == "f" and len(value.uses()) == 1


def _scale(node: ir.Node, index: int, factor: float) -> None:
    value, graph = node.inputs[index], home(node)
    array = constant(value)
    assert value is not None
    assert array is not None
    assert graph is not None
    scaled = (array.astype(np.float64) * factor).astype(array.dtype)
    node.replace_input_with(index, add_constant(graph, scaled, f"{value.name}_scaled"))
