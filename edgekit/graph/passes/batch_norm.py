"""Batch normalization into the weights before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgekit.graph import ops
from edgekit.graph.edit import add_constant, attribute, bypass, constant, home, nodes, only_user, produced_by
from edgekit.graph.ops import Trait

if TYPE_CHECKING:
    from edgekit.types import Array

_FOLDABLE = ops.named(Trait.WEIGHTED) - {"MatMul"}  # which has no bias to take the shift


class FoldBatchNorm(ir.passes.InPlacePass):
    """``BatchNormalization(Conv | ConvTranspose | Gemm)`` → the same operator with scaled weights.

    With scale s = gamma / sqrt(var + epsilon): W' = s·W along the output channels and
    b' = s·(b - mean) + beta (Jacob et al. 2018, section 3.2). Computed in float64.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for norm in nodes(model, "BatchNormalization"):
            source = norm.inputs[0]
            node = produced_by(source, *_FOLDABLE)
            if node is None or source is None or only_user(source) is not norm:
                continue
            if not attribute(norm, "training_mode", 0):
                modified |= _fold(node, norm)
        return ir.passes.PassResult(model, modified=modified)


def _fold(node: ir.Node, norm: ir.Node) -> bool:
    graph = home(node)
    weight = constant(node.inputs[1])
    parameters = [constant(v) for v in norm.inputs[1:5]]
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(bias_value)
    if graph is None or weight is None or (bias_value is not None and bias is None):
        return False
    if node.graph is not norm.graph or any(p is None for p in parameters):
        return False
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    scaled = _scaled(node, weight, scale)
    if scaled is None or (bias is not None and bias.size not in (1, scale.size)):
        return False
    shift = (np.zeros_like(scale) if bias is None else bias.astype(np.float64).reshape(-1)) * _beta(
        node
    ) - mean
    new_bias = (shift * scale + beta).astype(weight.dtype)
    name = (node.inputs[1].name if node.inputs[1] is not None else None) or node.name or "weight"
    if not bypass(norm):
        return False
    node.replace_input_with(1, add_constant(graph, scaled.astype(weight.dtype), f"{name}_folded"))
    bias_input = add_constant(graph, new_bias, f"{name}_folded_bias")
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, bias_input)
    if node.op_type == "Gemm":
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    return True


def _beta(node: ir.Node) -> float:
    return float(attribute(node, "beta", 1.0)) if node.op_type == "Gemm" else 1.0


def _scaled(node: ir.Node, weight: Array, scale: Array) -> Array | None:
    """``weight`` times ``scale`` along its output channels; ``None`` where the sizes do not fit."""
    wide = weight.astype(np.float64)
    if node.op_type == "Gemm":
        axis = 0 if attribute(node, "transB", 0) else 1
        return _along(wide, scale, axis)
    if node.op_type == "Conv":
        return _along(wide, scale, 0)
    groups = attribute(node, "group", 1)  # ConvTranspose: (inputs, outputs / groups, …)
    if wide.shape[0] % groups or wide.shape[1] * groups != scale.size:
        return None
    split = wide.reshape(groups, wide.shape[0] // groups, *wide.shape[1:])
    by_group = scale.reshape(groups, 1, wide.shape[1], *[1] * (wide.ndim - 2))
    return np.asarray((split * by_group).reshape(wide.shape))


def _along(wide: Array, scale: Array, axis: int) -> Array | None:
    if wide.shape[axis] != scale.size:
        return None
    return np.asarray(wide * scale.reshape([-1 if i == axis else 1 for i in range(wide.ndim)]))
