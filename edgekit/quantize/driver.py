"""The stage itself: float ONNX in, quantized ONNX and a report out."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from edgekit.errors import CalibrationRequiredError, UnsupportedError
from edgekit.graph import io as graphs
from edgekit.quantize import prepare, recurrent
from edgekit.quantize.auto import settle
from edgekit.quantize.dynamic import quantize_dynamic
from edgekit.quantize.dynamic import report as report_block
from edgekit.quantize.edit import Editor
from edgekit.quantize.embedding import quantize_embeddings
from edgekit.quantize.float_model import MEASURED, FloatModel
from edgekit.quantize.options import (
    STANDARD,
    WEIGHTED_MSE,
    Cause,
    QuantizeOptions,
    QuantizeReport,
    applicable,
)
from edgekit.quantize.place import place
from edgekit.quantize.plan import Plan, Ranges, make_plan
from edgekit.quantize.rules import Recurrent, table
from edgekit.quantize.trained import Trained
from edgekit.quantize.weights import quantize_weights
from edgekit.types import FLOAT8, OnnxModel, Scheme, Target

_FORMS = {
    "qdq": (("uint8", "int8", "int16", FLOAT8), ("int8", FLOAT8)),
    "dynamic": (("uint8", "float32"), ("int8",)),
    "weights": (("float32",), ("int8", "int4", "float16")),
}
"""Activation and weight dtypes by quantizer."""


def quantize(
    floats: FloatModel, target: Target, options: QuantizeOptions, out: Path
) -> tuple[OnnxModel, QuantizeReport]:
    """Quantize a float model for a target's scheme and write it to the file ``out``; its weights are integers there.

    With samples, ``auto`` measures what it chooses from, and corrections that run the model are possible; without,
    ``auto`` means the method ``mse`` and the correction ``bias``. What several targets ask of ``floats`` is computed
    once; they may ask at the same time.

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
    options, notes = _possible(options, scheme, floats)
    static = scheme.quantizer == "qdq"
    if static and floats.calibration is None:
        raise CalibrationRequiredError(
            f"{target.name} needs calibration data", hint="pass --calib with a few hundred typical inputs"
        )
    plain, trained = floats.apart()
    if scheme.weight == FLOAT8:
        options = _float8(options, trained, target)
    elif static:
        options = trained.allowed(options)
    else:
        options = dataclasses.replace(options, method="minmax")  # there are no ranges to choose
        notes += trained.without_ranges()
    write = _with_ranges if static else _in_float
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        candidates = _Candidates(lambda o, path: write(plain, scheme, o, path, trained), Path(folder))
        options, measured = settle(floats, options, candidates.model, scheme)
        quantized, report = candidates.finish(options, out)
    return quantized, dataclasses.replace(report, notes=report.notes + notes + measured)


def _float8(options: QuantizeOptions, trained: Trained, target: Target) -> QuantizeOptions:
    """Of a float8 tensor nothing is gained by cutting off its largest values: small ones keep their precision."""
    if trained:
        raise UnsupportedError(
            f"the model was trained with integers, and {target.name} computes in float8",
            hint="build an INT8 target, or the float8 one from the model before qat",
        )
    return dataclasses.replace(options, method="minmax") if options.method == "auto" else options


Write = Callable[[QuantizeOptions, Path], tuple[OnnxModel, QuantizeReport]]
"""Quantizes with given options into a file."""


class _Candidates:
    """What was quantized in order to compare it; the one that is chosen need not be made again."""

    def __init__(self, write: Write, folder: Path) -> None:
        self._write, self._folder = write, folder
        self._made: dict[QuantizeOptions, tuple[OnnxModel, QuantizeReport]] = {}

    def model(self, options: QuantizeOptions) -> OnnxModel:
        """A candidate's file."""
        if options not in self._made:
            self._made[options] = self._write(options, self._folder / f"candidate{len(self._made)}.onnx")
        return self._made[options][0]

    def finish(self, options: QuantizeOptions, out: Path) -> tuple[OnnxModel, QuantizeReport]:
        """The one with ``options``, in ``out``."""
        made = self._made.get(options)
        if made is None or graphs.external_files(made[0].path):  # whose names are in the file
            return self._write(options, out)
        made[0].path.replace(out)
        return dataclasses.replace(made[0], path=out), made[1]


def _possible(
    options: QuantizeOptions, scheme: Scheme, floats: FloatModel
) -> tuple[QuantizeOptions, tuple[str, ...]]:
    """The corrections that suit the scheme, and notes on those asked for that do not. Of the standard ones, those
    that need samples are left out where there are none."""
    can = (*applicable(scheme), "auto")
    corrections = tuple(c for c in options.corrections if c in can)
    if options.corrections == STANDARD:
        corrections = tuple(c for c in corrections if floats.samples is not None or c not in MEASURED)
        return dataclasses.replace(options, corrections=corrections), ()
    notes = tuple(
        f"correction {c} is not for {scheme.weight} weights with {scheme.activation} activations: left out"
        for c in options.corrections
        if c not in can
    )
    return dataclasses.replace(options, corrections=corrections), notes


def _with_ranges(
    plain: FloatModel, scheme: Scheme, options: QuantizeOptions, out: Path, trained: Trained
) -> tuple[OnnxModel, QuantizeReport]:
    """Q/DQ, with settled options."""
    plain.require_samples(options)
    floats = plain.corrected(options.corrections)
    assert floats.calibration is not None
    rules = table(scheme.rules)
    ir_model = floats.graph(_needed_opset(scheme, options))
    layers = floats.layer_ranges() if options.method == WEIGHTED_MSE else None
    calibration = prepare.legalize_pooling(ir_model.graph, rules, floats.calibration)
    ranges = Ranges(calibration=calibration, options=options, layers=layers, trained=trained)
    plan = make_plan(ir_model.graph, ranges, scheme, rules, options)
    if "rounding" in options.corrections:
        blocks = [b for b in plan.blocks if plan.quantized(b)]
        bits = options.weight_bits
        plan.weights.update(floats.rounding.weights(blocks, bits, per_channel=scheme.per_channel))
    report = _report(plan, options, (*trained.notes, *plan.notes, *floats.notes))
    if rules.embedding == "rows":
        report = _with_embeddings(report, quantize_embeddings(ir_model.graph))
    place(ir_model.graph, plan, scheme, floats, options.weight_bits)
    report = _with_recurrent(report, ir_model.graph, plan, rules.recurrent)
    return graphs.save(ir_model, out), report


def _with_recurrent(report: QuantizeReport, graph: ir.Graph, plan: Plan, form: Recurrent) -> QuantizeReport:
    """No scheme has static ranges for what recurrent layers compute on; their weights need not be floats in the file.
    What the runtime then multiplies as integers can fall back to float as any other layer; INT16 is float here."""
    left = [
        b for b, why in plan.in_float.items() if why.cause is Cause.UNSUPPORTED and plan.dtypes[b] != "int16"
    ]
    editor = Editor(graph)
    stored = recurrent.store_in_float({graph: editor}, left, form)
    editor.drop_unused()
    if not stored:
        return report
    nodes = report.nodes
    if form is Recurrent.MULTIPLIED:
        names = {b.core.name for b in stored}
        nodes = tuple(
            dataclasses.replace(n, quantized=True, activation="int8", cause=None, reason="")
            if n.node in names
            else n
            for n in nodes
        )
    return dataclasses.replace(report, nodes=nodes, notes=(*report.notes, recurrent.note(stored)))


def _in_float(
    plain: FloatModel, scheme: Scheme, options: QuantizeOptions, out: Path, trained: Trained
) -> tuple[OnnxModel, QuantizeReport]:
    """Schemes whose activations are stored as floats: dynamic and weight-only ones."""
    plain.require_samples(options)
    ir_model = plain.graph(_needed_opset(scheme, options))
    form = table(scheme.rules).recurrent if scheme.rules else Recurrent.MULTIPLIED
    if scheme.quantizer == "dynamic":
        trained.refuse_dynamic()
        report = quantize_dynamic(ir_model.graph, options, form)
    else:
        rounding = plain.rounding if plain.samples is not None else None
        report = quantize_weights(ir_model.graph, scheme.weight, options, trained.weights, rounding, form)
    return graphs.save(ir_model, out), report


def _check(scheme: Scheme, target: Target) -> None:
    """Refuse what has no form in ONNX."""
    activations, weights = _FORMS[scheme.quantizer]
    mixed = (scheme.activation == FLOAT8) != (scheme.weight == FLOAT8)
    known = scheme.activation in activations and scheme.weight in weights and not mixed
    if not known or not scheme.weight_symmetric:
        raise UnsupportedError(
            f"target {target.name}: no {scheme.quantizer} form for {scheme.activation} activations with "
            f"{'symmetric' if scheme.weight_symmetric else 'asymmetric'} {scheme.weight} weights",
            hint=f"activations: {', '.join(activations)}; weights: symmetric {', '.join(weights)}",
        )


def _needed_opset(scheme: Scheme, options: QuantizeOptions) -> int:
    """Q/DQ with a scale a channel came with opset 13, float8 with 19, INT16 and INT4 with 21."""
    if scheme.activation == "int16" or options.int16 or scheme.weight == "int4":
        return 21
    return 19 if scheme.weight == FLOAT8 else 13


def _report(plan: Plan, options: QuantizeOptions, notes: tuple[str, ...]) -> QuantizeReport:
    nodes = [n for b in plan.blocks for n in report_block(b, plan.in_float.get(b), plan.dtypes[b])]
    return QuantizeReport(
        method=options.method,
        corrections=options.corrections,
        nodes=tuple(nodes),
        notes=_notes(options) + notes,
        activations=tuple(value.name for value in plan.own if value.name),
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
