"""The float graph as the planner wants it: an opset with the Q/DQ operators, means over space as pooling."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError
from edgekit.graph import io as graphs
from edgekit.quantize.blocks import attribute, constant, name_nodes
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.edit import Editor
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


def legalize_pooling(graph: ir.Graph, rules: Rules, calibration: Calibration) -> Calibration:
    """Means over all spatial axes become GlobalAveragePool where that is what has an integer kernel.

    Gives the calibration with the new tensors' ranges.
    """
    if "GlobalAveragePool" not in rules.ops or "ReduceMean" in rules.ops:
        return calibration
    aliases = dict(calibration.aliases)
    editor = Editor(graph)
    for node in tuple(graph):
        if node.domain or node.op_type != "ReduceMean" or not _is_global(node):
            continue
        pool = editor.node("GlobalAveragePool", node.name or "", node.inputs[:1])
        made = [pool]
        if not attribute(node, "keepdims", 1):
            aliases[pool.outputs[0].name or ""] = node.outputs[0].name or ""
            made.append(editor.node("Flatten", node.name or "", pool.outputs))
        name = node.name
        editor.replace(node, made)
        pool.name = name
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
