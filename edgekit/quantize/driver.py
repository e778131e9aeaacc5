"""The stage itself: float ONNX in, quantized ONNX and a report out."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from edgekit import graph as graphs
from edgekit.calibrate import Calibration
from edgekit.errors import CalibrationRequiredError, UnsupportedError
from edgekit.quantize import prepare
from edgekit.quantize.auto import settle
from edgekit.quantize.corrections import MEASURED, FloatModels
from edgekit.quantize.dynamic import quantize_dynamic
from edgekit.quantize.dynamic import report as report_block
from edgekit.quantize.embedding import quantize_embeddings
from edgekit.quantize.options import STANDARD, WEIGHTED_MSE, QuantizeOptions, QuantizeReport
from edgekit.quantize.place import place
from edgekit.quantize.plan import Plan, Ranges, make_plan
from edgekit.quantize.rules import table
from edgekit.quantize.trained import Trained, apart
from edgekit.quantize.weights import quantize_weights
from edgekit.types import OnnxModel, Samples, Scheme, Target

_FORMS = {
    "qdq": (("uint8", "int8", "int16"), ("int8",)),
    "dynamic": (("uint8", "float32"), ("int8",)),
    "weights": (("float32",), ("int8", "int4", "float16")),
}
"""Activation and weight dtypes by quantizer."""


def quantize(
    model: OnnxModel,
    calibration: Calibration | None,
    target: Target,
    options: QuantizeOptions,
    out: Path,
    samples: Samples | None = None,
) -> tuple[OnnxModel, QuantizeReport]:
    """Quantize ``model`` for a target's scheme and write it to the file ``out``.

    The model is the float ONNX that ``calibration`` was taken on. Dynamic and weight-only schemes need no
    calibration. The weights in the file are integers. With ``samples`` (those of the calibration), ``auto``
    measures what it chooses from, and corrections that run the model are possible; without, ``auto`` means
    the method ``mse`` and the correction ``bias``.

    Raises :class:`CalibrationRequiredError` without calibration where the scheme needs it,
    :class:`UnsupportedError` for a scheme that cannot be expressed, :class:`UnknownNameError` for patterns
    in the options that mean nothing in this model, :class:`UsageError` for corrections that need samples.
    """
    scheme = target.scheme
    if scheme is None:
        raise UnsupportedError(
            f"target {target.name} has no scheme", hint="choose one of its quantized siblings"
        )
    _check(scheme, target)
    if scheme.quantizer != "qdq":
        return _without_calibration(model, scheme, options, out)
    if calibration is None:
        raise CalibrationRequiredError(
            f"{target.name} needs calibration data", hint="pass --calib with a few hundred typical inputs"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        options = _possible(options, samples)
        plain, trained = apart(model, Path(folder))
        options = trained.allowed(options)
        floats = FloatModels(plain, calibration, samples, Path(folder))

        def attempt(candidate: QuantizeOptions) -> OnnxModel:
            return _quantize(floats, scheme, candidate, Path(folder) / "candidate.onnx", trained)[0]

        options, notes = settle(model, options, samples, attempt)
        quantized, report = _quantize(floats, scheme, options, out, trained)
    return quantized, dataclasses.replace(report, notes=report.notes + notes)


def _possible(options: QuantizeOptions, samples: Samples | None) -> QuantizeOptions:
    """The standard corrections that need no samples, where there are none; what was asked for stays."""
    if samples is not None or options.corrections != STANDARD:
        return options
    return dataclasses.replace(options, corrections=tuple(c for c in STANDARD if c not in MEASURED))


def _quantize(
    floats: FloatModels, scheme: Scheme, options: QuantizeOptions, out: Path, trained: Trained
) -> tuple[OnnxModel, QuantizeReport]:
    """Quantize with settled options."""
    floats.require_samples(options)
    model, calibration, notes = floats.corrected(options.corrections)
    rules = table(scheme.rules)
    ir_model = prepare.load(model, _needed_opset(scheme, options))
    weighted = options.method == WEIGHTED_MSE
    layers = floats.layer_ranges(model, ir_model.graph, calibration) if weighted else None
    calibration = prepare.spell_pooling(ir_model.graph, rules, calibration)
    ranges = Ranges(calibration=calibration, options=options, layers=layers, trained=trained)
    plan = make_plan(ir_model.graph, ranges, scheme, rules, options)
    if "rounding" in options.corrections:
        plan.weights.update(floats.rounded(model, plan, options))
    report = _report(plan, options, (*trained.notes, *plan.notes, *notes))
    if rules.embedding == "rows":
        report = _with_embeddings(report, quantize_embeddings(ir_model.graph))
    place(ir_model.graph, plan, scheme, rules, options.weight_bits)
    return graphs.save(ir_model, out), report


def _without_calibration(
    model: OnnxModel, scheme: Scheme, options: QuantizeOptions, out: Path
) -> tuple[OnnxModel, QuantizeReport]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        plain, trained = apart(model, Path(folder))
        ir_model = prepare.load(plain, _needed_opset(scheme, options))
        if scheme.quantizer == "dynamic":
            trained.refuse_dynamic()
            report = quantize_dynamic(ir_model.graph, options)
        else:
            report = quantize_weights(ir_model.graph, scheme.weight, options, trained.weights)
        report = dataclasses.replace(report, notes=report.notes + trained.without_ranges())
        return graphs.save(ir_model, out), report


def _check(scheme: Scheme, target: Target) -> None:
    """Refuse what has no form in ONNX."""
    activations, weights = _FORMS[scheme.quantizer]
    if scheme.activation not in activations or scheme.weight not in weights or not scheme.weight_symmetric:
        raise UnsupportedError(
            f"target {target.name}: no {scheme.quantizer} form for {scheme.activation} activations with "
            f"{'symmetric' if scheme.weight_symmetric else 'asymmetric'} {scheme.weight} weights",
            hint=f"activations: {', '.join(activations)}; weights: symmetric {', '.join(weights)}",
        )


def _needed_opset(scheme: Scheme, options: QuantizeOptions) -> int:
    """Q/DQ with a scale a channel came with opset 13, INT16 and INT4 with 21."""
    return 21 if scheme.activation == "int16" or options.int16 or scheme.weight == "int4" else 13


def _report(plan: Plan, options: QuantizeOptions, notes: tuple[str, ...]) -> QuantizeReport:
    nodes = [n for b in plan.blocks for n in report_block(b, plan.reasons.get(b, ""), plan.dtypes[b])]
    return QuantizeReport(
        method=options.method,
        corrections=options.corrections,
        nodes=tuple(nodes),
        notes=_notes(options) + notes,
    )


def _with_embeddings(report: QuantizeReport, done: dict[str, str]) -> QuantizeReport:
    nodes = (dataclasses.replace(n, quantized=True, reason="") if n.node in done else n for n in report.nodes)
    notes = tuple(
        f"table {table!r} is stored as INT8 with a scale a row" for table in sorted(set(done.values()))
    )
    return dataclasses.replace(report, nodes=tuple(nodes), notes=report.notes + notes)


def _notes(options: QuantizeOptions) -> tuple[str, ...]:
    if options.weight_bits == 7:
        return ("weights use 7 bits: UINT8 x INT8 products cannot saturate on x86 without VNNI",)
    return ()
