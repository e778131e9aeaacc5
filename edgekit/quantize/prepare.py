"""The float graph as the planner wants it: an opset with the Q/DQ operators, pooling spelled as pooling."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from edgekit import graph as graphs
from edgekit.calibrate import Calibration
from edgekit.errors import UnsupportedError
from edgekit.quantize.blocks import attribute, constant, name_nodes
from edgekit.quantize.rules import Rules
from edgekit.types import OnnxModel


def load(model: OnnxModel, opset: int) -> ir.Model:
    """Read the model, convert it to at least ``opset``, make its constants initializers, name its nodes."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    ir_model = graphs.load(model.path)
    if model.opset < opset:
        _convert(ir_model, opset)
    LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(ir_model)
    name_nodes(ir_model.graph)
    return ir_model


def _convert(model: ir.Model, opset: int) -> None:
    from onnxscript import version_converter

    version_converter.convert_version(model, opset, fallback=True)
    reached = model.opset_imports.get("", 0)
    if reached < opset:
        raise UnsupportedError(
            f"the model is in ONNX opset {reached} and cannot be converted to {opset}",
            hint=f"export it with opset {opset} or newer",
        )


def spell_pooling(graph: ir.Graph, rules: Rules, calibration: Calibration) -> Calibration:
    """Means over all spatial axes become GlobalAveragePool where that is what has an integer kernel.

    Gives the calibration with the new tensors' ranges.
    """
    if "GlobalAveragePool" not in rules.ops or "ReduceMean" in rules.ops:
        return calibration
    aliases = dict(calibration.aliases)
    for node in tuple(graph):
        if node.domain or node.op_type != "ReduceMean" or not _is_global(node):
            continue
        output = node.outputs[0]
        pool = ir.Node("", "GlobalAveragePool", [node.inputs[0]], num_outputs=1, name=node.name)
        pool.metadata_props.update(node.metadata_props)
        pooled = pool.outputs[0]
        pooled.type = output.type
        made = [pool]
        if attribute(node, "keepdims", 1):
            replacement = pooled
        else:
            pooled.name = f"{output.name}_pooled"
            aliases[pooled.name] = output.name or ""
            flat = ir.Node("", "Flatten", [pooled], num_outputs=1, name=f"{node.name}_flat")
            made.append(flat)
            replacement = flat.outputs[0]
        replacement.shape, replacement.type = output.shape, output.type
        _replace(graph, node, made, replacement)
    return dataclasses.replace(calibration, aliases=aliases)


def _is_global(node: ir.Node) -> bool:
    data = node.inputs[0]
    if data is None or data.shape is None or len(data.shape) < 3:
        return False
    axes = attribute(node, "axes", None)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = constant(node.inputs[1])
    if axes is None:
        return False
    rank = len(data.shape)
    return sorted(int(a) % rank for a in np.asarray(axes).reshape(-1)) == list(range(2, rank))


def _replace(graph: ir.Graph, node: ir.Node, made: list[ir.Node], replacement: ir.Value) -> None:
    output = node.outputs[0]
    name = output.name
    graph.insert_before(node, made)
    for use in tuple(output.uses()):
        use.node.replace_input_with(use.idx, replacement)
    for i, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[i] = replacement
    graph.remove(node, safe=True)
    output.name = None
    replacement.name = name
