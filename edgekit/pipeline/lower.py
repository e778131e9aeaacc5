"""The only way to a runtime's file: a source's graph, quantized, shaped and lowered for one target."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgekit.artifact.manifest import StepRecord
from edgekit.artifact.proof import percent
from edgekit.core import config
from edgekit.errors import CalibrationRequiredError, NotCalibratableError, OpenAxesError, UnsupportedError
from edgekit.load.data import RANDOM, SampleSet
from edgekit.load.source import Source
from edgekit.pipeline import pixels, stages
from edgekit.pipeline.pixels import Pixels
from edgekit.pipeline.stages import BuildContext, Calibrated, Exported
from edgekit.pipeline.verify import Subject
from edgekit.quantize.options import QuantizeOptions, QuantizeReport
from edgekit.types import KEEP_FLOAT32, HalfRange, OnnxModel, Precision, Target


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A source as float ONNX, which all targets share: as it was exported, and optimized (``model``).

    ``origin``: the source that a recipe made this one of; the task's metric is held against its. ``half``: the largest
    activations, where float16 targets are asked for and there are samples.
    """

    source: Source
    exported: Exported
    model: OnnxModel
    origin: Source | None = None
    pixels: Pixels | None = None
    steps: tuple[StepRecord, ...] = ()
    half: HalfRange | None = None


HALVES = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}
"""What targets of these compute in."""


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """The runtime's own files, the steps that led there, and the quantizer's report where there was one."""

    subject: Subject
    steps: tuple[StepRecord, ...]
    report: QuantizeReport | None = None


def graph_of(context: BuildContext, source: Source) -> Graph:
    """``source`` exported and optimized."""
    exported = stages.export(context, source)
    folded = pixels.asked_for(context.options.set, exported.record, context.options.preprocessing)
    model, step = stages.optimize(context, exported.model, exported.example_inputs())
    return Graph(source=source, exported=exported, model=model, pixels=folded, steps=(exported.step, step))


def lower_for(
    context: BuildContext,
    graph: Graph,
    target: Target,
    samples: SampleSet | None = None,
    quantization: QuantizeOptions | None = None,
) -> Lowering:
    """Quantize as ``target``'s scheme wants it, fix shapes where it must, fold the preprocessing in where asked, lower.

    ``samples`` are those of the calibration; a float target takes none. A model that the runtime does not take with
    open axes (a branch for a batch of one gives another rank) gets the example's shapes: the subject's target says that
    they are fixed. Raises :class:`CalibrationRequiredError` where samples are missing, and what the stages raise.
    """
    try:
        return _lower_for(context, graph, target, samples, quantization)
    except OpenAxesError:
        if target.fixed_shapes:
            raise
        lowering = _lower_for(context, graph, replace(target, fixed_shapes=True), samples, quantization)
    files = lowering.subject.files
    lowered = replace(files.lowered, notes=(*files.lowered.notes, FIXED))
    return replace(lowering, subject=replace(lowering.subject, files=replace(files, lowered=lowered)))


FIXED = "the runtime does not take the model with open axes: its shapes are those of the example"


def _lower_for(
    context: BuildContext,
    graph: Graph,
    target: Target,
    samples: SampleSet | None,
    quantization: QuantizeOptions | None,
) -> Lowering:
    model, steps, report = graph.model, list(graph.steps), None
    if target.scheme is not None or target.precision in HALVES:
        model, widened = stages.in_float32(context, model, keep=HALVES.get(target.precision, ""))
        steps += [widened] if widened else []
    if target.scheme is not None:
        calibrated = calibration_for(context, graph, target, samples)
        steps += [calibrated.step] if calibrated else []
        chosen = quantization or QuantizeOptions.of(context.options, target)
        model, quantized, report = stages.quantize(context, model, target, calibrated, chosen)
        steps.append(quantized)
        _refuse_without_four_bits(target, report)
    model, fixed = shaped(context, graph, target, model)
    steps += [fixed] if fixed else []
    if graph.pixels is not None:
        model, fold = stages.fold_preprocessing(context, model, graph.pixels)
        steps.append(fold)
    options = config.target_options(target, context.options.set)
    kept = graph.half.kept if graph.half is not None and target.precision is Precision.FP16 else ()
    if kept:
        options = {**options, KEEP_FLOAT32: "\n".join(kept)}
    files = stages.lower(context, model, target, options)
    if graph.pixels is not None:
        files = replace(files, lowered=graph.pixels.declared(files.lowered))
    if remark := _four_bits(report):
        files = replace(files, lowered=replace(files.lowered, notes=(*files.lowered.notes, remark)))
    subject = Subject(target=target, model=model, files=files, pixels=graph.pixels)
    return Lowering(subject=subject, steps=(*steps, files.step), report=report)


def calibration_for(
    context: BuildContext, graph: Graph, target: Target, samples: SampleSet | None
) -> Calibrated | None:
    """The calibration where it serves ``target``; random inputs only where ranges have to come from somewhere.

    Raises :class:`CalibrationRequiredError` where the target needs samples and there are none, and
    :class:`NotCalibratableError` where it needs what samples cannot tell of this graph.
    """
    if samples is None and target.needs_calibration:
        raise CalibrationRequiredError(
            f"{target.name} needs calibration data: INT8 ranges come from real inputs",
            hint="pass --calib file.py:callable, a directory of .npz, or of images",
        )
    random = samples is not None and samples.origin == RANDOM
    if samples is None or not target.uses_calibration or (random and not target.needs_calibration):
        return None
    model, _ = stages.in_float32(context, graph.model)
    try:
        return stages.calibrate(context, model, samples)
    except NotCalibratableError:
        if target.needs_calibration:
            raise
        return None


def shaped(
    context: BuildContext, graph: Graph, target: Target, model: OnnxModel
) -> tuple[OnnxModel, StepRecord | None]:
    """The model as the target wants it: dynamic axes set to the example's sizes, or left alone."""
    if not target.fixed_shapes:
        return model, None
    return stages.fix_shapes(context, model, graph.exported.example_inputs())


def _refuse_without_four_bits(target: Target, report: QuantizeReport) -> None:
    """Raise :class:`UnsupportedError` where nothing is in four bits: the file would be that of another target."""
    if report.four_bits == 0:
        raise UnsupportedError(
            f"{target.name}: none of the weights can be stored in four bits: convolutions and recurrent layers "
            "are not, nor products whose inputs do not divide into blocks",
            hint="build the target with INT8 weights: the file would be the same",
        )


def _four_bits(report: QuantizeReport | None) -> str:
    share = None if report is None else report.four_bits
    if share is None or share == 1:
        return ""
    return f"{percent(share)} of the integer weights have four bits, the others eight"
