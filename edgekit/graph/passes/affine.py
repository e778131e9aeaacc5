"""Scales and shifts into the weights before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.graph.edit import add_constant, attribute, bypass, constant, home, nodes, only_user, produced_by

if TYPE_CHECKING:
    from edgekit.types import Array


class FoldAffine(ir.passes.InPlacePass):
    """``Mul | Div | Add | Sub (Conv, constant by channel)`` → the Conv with other weights or bias.

    This is what batch normalization looks like once another exporter has taken it apart.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "Mul", "Div", "Add", "Sub"):
            modified |= _fold(node)
        return ir.passes.PassResult(model, modified=modified)


def _fold(node: ir.Node) -> bool:
    side = 0 if produced_by(node.inputs[0], "Conv") is not None else 1
    conv, other = produced_by(node.inputs[side], "Conv"), constant(node.inputs[1 - side])
    if conv is None or other is None or (side == 1 and node.op_type in ("Sub", "Div")):
        return False
    source = node.inputs[side]
    if source is None or only_user(source) is not node or conv.graph is not node.graph:
        return False
    weight = constant(conv.inputs[1])
    bias_value = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = constant(bias_value)
    if weight is None or (bias_value is not None and bias is None):
        return False
    by_channel = _by_channel(other, weight.shape[0], weight.ndim)
    if by_channel is None:
        return False
    return _rewrite(conv, node, weight.astype(np.float64), bias, by_channel)


def _by_channel(other: Array, channels: int, rank: int) -> Array | None:
    """The constant as one value a channel; ``None`` when it varies along another axis."""
    if other.ndim > rank or other.dtype.kind != "f":
        return None
    shape = (1,) * (rank - other.ndim) + other.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(other.reshape(-1).astype(np.float64), (channels,))


def _rewrite(conv: ir.Node, node: ir.Node, weight: Array, bias: Array | None, by_channel: Array) -> bool:
    graph = home(conv)
    dtype = conv.inputs[1].dtype if conv.inputs[1] is not None else None
    if graph is None or dtype is None or attribute(conv, "auto_pad", "NOTSET") is None:
        return False
    shift = np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)
    if node.op_type in ("Mul", "Div"):
        scale = by_channel if node.op_type == "Mul" else 1 / by_channel
        if not np.isfinite(scale).all():
            return False
        weight, shift = weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), shift * scale
    else:
        shift = shift + by_channel if node.op_type == "Add" else shift - by_channel
    name = (conv.inputs[1].name if conv.inputs[1] is not None else "") or "weight"
    if not bypass(node, conv.outputs[0]):
        return False
    conv.replace_input_with(1, add_constant(graph, weight.astype(dtype.numpy()), f"{name}_folded"))
    if len(conv.inputs) < 3:
        conv.resize_inputs(3)
    conv.replace_input_with(2, add_constant(graph, shift.astype(dtype.numpy()), f"{name}_folded_bias"))
    return True
