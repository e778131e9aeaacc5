"""The stage itself: float ONNX in, quantized ONNX and a report out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir

from edgekit import graph as graphs
from edgekit.calibrate import Calibration
from edgekit.errors import CalibrationRequiredError, UnsupportedError
from edgekit.quantize.blocks import name_nodes
from edgekit.quantize.options import NodeReport, QuantizeOptions, QuantizeReport
from edgekit.quantize.place import place
from edgekit.quantize.plan import Plan, make_plan
from edgekit.quantize.rules import table
from edgekit.types import OnnxModel, Scheme, Target

_WEIGHT_BITS = {"int8": 8}
_ACTIVATIONS = ("uint8", "int8", "int16")


def quantize(
    model: OnnxModel, calibration: Calibration | None, target: Target, options: QuantizeOptions, out: Path
) -> tuple[OnnxModel, QuantizeReport]:
    """Quantize ``model`` for a target's scheme and write it to the file ``out``.

    The model is the float ONNX that ``calibration`` was taken on. Dynamic and weight-only schemes need no
    calibration. The weights in the file are integers.

    Raises :class:`CalibrationRequiredError` without calibration where the scheme needs it,
    :class:`UnsupportedError` for a scheme that cannot be expressed, :class:`UnknownNameError` for patterns
    in the options that mean nothing in this model.
    """
    scheme = target.scheme
    if scheme is None:
        raise UnsupportedError(
            f"target {target.name} has no scheme", hint="choose one of its quantized siblings"
        )
    if scheme.quantizer != "qdq":
        raise UnsupportedError(f"scheme {scheme.quantizer!r} of {target.name}", hint="choose a qdq target")
    if calibration is None:
        raise CalibrationRequiredError(
            f"{target.name} needs calibration data", hint="pass --calib with a few hundred typical inputs"
        )
    _check(scheme, target)
    if options.method == "auto":
        options = dataclasses.replace(options, method="mse")
    ir_model = _prepare(model, scheme, options)
    rules = table(scheme.rules)
    plan = make_plan(ir_model.graph, calibration, scheme, rules, options)
    report = _report(plan, options)
    bits = min(_WEIGHT_BITS[scheme.weight], options.weight_bits)
    place(ir_model.graph, plan, scheme, rules, bits)
    return graphs.save(ir_model, out), report


def _check(scheme: Scheme, target: Target) -> None:
    if (
        scheme.activation not in _ACTIVATIONS
        or scheme.weight not in _WEIGHT_BITS
        or not scheme.weight_symmetric
    ):
        raise UnsupportedError(
            f"target {target.name}: no Q/DQ form for {scheme.activation} activations with "
            f"{'symmetric' if scheme.weight_symmetric else 'asymmetric'} {scheme.weight} weights",
            hint=f"activations: {', '.join(_ACTIVATIONS)}; weights: symmetric {', '.join(_WEIGHT_BITS)}",
        )


def _prepare(model: OnnxModel, scheme: Scheme, options: QuantizeOptions) -> ir.Model:
    """The model in an opset that has the Q/DQ operators needed, its constants as initializers."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    ir_model = graphs.load(model.path)
    needed = 21 if scheme.activation == "int16" or options.int16 or scheme.weight == "int4" else 13
    if model.opset < needed:
        ir_model = _convert(ir_model, needed)
    LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(ir_model)
    name_nodes(ir_model.graph)
    return ir_model


def _convert(model: ir.Model, opset: int) -> ir.Model:
    from onnxscript import version_converter

    version_converter.convert_version(model, opset, fallback=True)
    if model.opset_imports[""] < opset:
        raise UnsupportedError(
            f"the model is in ONNX opset {model.opset_imports['']} and cannot be converted to {opset}",
            hint=f"export it with opset {opset} or newer",
        )
    return model


def _report(plan: Plan, options: QuantizeOptions) -> QuantizeReport:
    nodes = []
    for block in plan.blocks:
        for node in block.nodes:
            core = node is block.core
            nodes.append(
                NodeReport(
                    node=node.name or "",
                    op=block.op if core else node.op_type,
                    module_path=graphs.module_path(node),
                    quantized=plan.quantized(block),
                    activation=plan.dtypes[block] if plan.quantized(block) else "",
                    reason=plan.reasons.get(block, ""),
                    macs=block.macs if core else 0,
                )
            )
    return QuantizeReport(method=options.method, corrections=(), nodes=tuple(nodes), notes=_notes(options))


def _notes(options: QuantizeOptions) -> tuple[str, ...]:
    if options.weight_bits == 7:
        return ("weights use 7 bits: UINT8 x INT8 products cannot saturate on x86 without VNNI",)
    return ()
