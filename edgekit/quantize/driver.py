"""The stage itself: float ONNX in, quantized ONNX and a report out."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from edgekit.errors import CalibrationRequiredError, UnsupportedError
from edgekit.graph import io as graphs
from edgekit.quantize import prepare
from edgekit.quantize.auto import settle
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.corrections import MEASURED, FloatModels, require_samples
from edgekit.quantize.dynamic import quantize_dynamic
from edgekit.quantize.dynamic import report as report_block
from edgekit.quantize.embedding import quantize_embeddings
from edgekit.quantize.inputs import LayerInputs
from edgekit.quantize.options import STANDARD, WEIGHTED_MSE, QuantizeOptions, QuantizeReport, applicable
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
    options, told = _possible(options, scheme, samples)
    out.parent.mkdir(parents=True, exist_ok=True)
    if scheme.quantizer != "qdq":
        quantized, report = _in_float(model, scheme, options, out, samples)
        return quantized, dataclasses.replace(report, notes=report.notes + told)
    if calibration is None:
        raise CalibrationRequiredError(
            f"{target.name} needs calibration data", hint="pass --calib with a few hundred typical inputs"
        )
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        plain, trained = apart(model, Path(folder))
        options = trained.allowed(options)
        floats = FloatModels(plain, calibration, samples, Path(folder))

        def attempt(candidate: QuantizeOptions) -> OnnxModel:
            return _quantize(floats, scheme, candidate, Path(folder) / "candidate.onnx", trained)[0]

        options, notes = settle(model, options, samples, attempt, scheme)
        quantized, report = _quantize(floats, scheme, options, out, trained)
    return quantized, dataclasses.replace(report, notes=report.notes + told + notes)


def _possible(
    options: QuantizeOptions, scheme: Scheme, samples: Samples | None
) -> tuple[QuantizeOptions, tuple[str, ...]]:
    """The corrections that suit the scheme, and notes on those asked for that do not. Of the standard ones, those
    that need samples are left out where there are none."""
    can = (*applicable(scheme), "auto")
    kept = tuple(c for c in options.corrections if c in can)
    if options.corrections == STANDARD:
        kept = tuple(c for c in kept if samples is not None or c not in MEASURED)
        return dataclasses.replace(options, corrections=kept), ()
    notes = tuple(
        f"correction {c} is not for {scheme.weight} weights with {scheme.activation} activations: left out"
        for c in options.corrections
        if c not in can
    )
    return dataclasses.replace(options, corrections=kept), notes


def _quantize(
    floats: FloatModels, scheme: Scheme, options: QuantizeOptions, out: Path, trained: Trained
) -> tuple[OnnxModel, QuantizeReport]:
    """Quantize with settled options."""
    require_samples(options, floats.samples)
    model, calibration, notes = floats.corrected(options.corrections)
    rules = table(scheme.rules)
    ir_model = prepare.load(model, _needed_opset(scheme, options))
    weighted = options.method == WEIGHTED_MSE
    layers = floats.layer_ranges(model, ir_model.graph, calibration) if weighted else None
    calibration = prepare.spell_pooling(ir_model.graph, rules, calibration)
    ranges = Ranges(calibration=calibration, options=options, layers=layers, trained=trained)
    plan = make_plan(ir_model.graph, ranges, scheme, rules, options)
    if "rounding" in options.corrections:
        integers = floats.rounded(model, plan, options.weight_bits, per_channel=scheme.per_channel)
        plan.weights.update(integers)
    report = _report(plan, options, (*trained.notes, *plan.notes, *notes))
    if rules.embedding == "rows":
        report = _with_embeddings(report, quantize_embeddings(ir_model.graph))
    place(ir_model.graph, plan, scheme, rules, options.weight_bits)
    return graphs.save(ir_model, out), report


def _in_float(
    model: OnnxModel, scheme: Scheme, options: QuantizeOptions, out: Path, samples: Samples | None
) -> tuple[OnnxModel, QuantizeReport]:
    """Schemes whose activations are stored as floats: dynamic and weight-only ones."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        plain, trained = apart(model, Path(folder))
        inputs = LayerInputs(plain, samples) if samples is not None else None

        def attempt(candidate: QuantizeOptions, path: Path) -> tuple[OnnxModel, QuantizeReport]:
            require_samples(candidate, samples)
            ir_model = prepare.load(plain, _needed_opset(scheme, candidate))
            if scheme.quantizer == "dynamic":
                trained.refuse_dynamic()
                report = quantize_dynamic(ir_model.graph, candidate)
            else:
                report = quantize_weights(ir_model.graph, scheme.weight, candidate, trained.weights, inputs)
            return graphs.save(ir_model, path), report

        trial = Path(folder) / "candidate.onnx"
        options = dataclasses.replace(options, method="minmax")  # there are no ranges to choose
        options, notes = settle(model, options, samples, lambda o: attempt(o, trial)[0], scheme)
        quantized, report = attempt(options, out)
        return quantized, dataclasses.replace(report, notes=report.notes + trained.without_ranges() + notes)


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
    nodes = [n for b in plan.blocks for n in report_block(b, plan.in_float.get(b), plan.dtypes[b])]
    return QuantizeReport(
        method=options.method,
        corrections=options.corrections,
        nodes=tuple(nodes),
        notes=_notes(options) + notes,
    )


def _with_embeddings(report: QuantizeReport, done: dict[str, str]) -> QuantizeReport:
    nodes = (
        dataclasses.replace(n, quantized=True, cause=None, reason="") if n.node in done else n
        for n in report.nodes
    )
    notes = tuple(
        f"table {table!r} is stored as INT8 with a scale a row" for table in sorted(set(done.values()))
    )
    return dataclasses.replace(report, nodes=tuple(nodes), notes=report.notes + notes)


def _notes(options: QuantizeOptions) -> tuple[str, ...]:
    if options.weight_bits == 7:
        return ("weights use 7 bits: UINT8 x INT8 products cannot saturate on x86 without VNNI",)
    return ()
