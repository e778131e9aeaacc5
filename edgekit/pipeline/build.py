"""The straight line: one source, calibrated once, to an artifact for each target.

    load → compress → export → optimize → calibrate → quantize → fold → lower → verify → gates → artifact

Read :func:`run` from top to bottom: it is the whole of it. Stages are in :mod:`edgekit.pipeline.stages`; what is
already in the cache is not done again. A target that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from edgekit.artifact import limits
from edgekit.artifact.gates import Evidence, gates
from edgekit.artifact.manifest import Artifact, StepRecord
from edgekit.core import config
from edgekit.core import targets as catalogue
from edgekit.core.config import Options
from edgekit.devices.catalogue import device
from edgekit.devices.target_device import adaptation, adaptation_here, adapted, probe
from edgekit.errors import (
    DataError,
    EdgekitError,
    NotCalibratableError,
    UnsupportedOperatorsError,
    told_once,
)
from edgekit.load import parse, trust
from edgekit.load.classes import Classes
from edgekit.load.data import (
    ENDLESS,
    RANDOM,
    DataSpec,
    Endless,
    Example,
    SampleSet,
    random_samples,
    user_samples,
)
from edgekit.load.shapes import SampleForm, Shapes
from edgekit.load.source import Source
from edgekit.load.states import states_of
from edgekit.pipeline import compress, postprocessing, speed, stages
from edgekit.pipeline.candidates import (
    Candidate,
    Data,
    Prepared,
    Result,
    against_sibling,
    guarded,
    measured,
    plain_candidate,
    plain_candidates,
    refuse_missing_backend,
    refuse_missing_runtime,
    within_budget,
)
from edgekit.pipeline.deliver import Product, deliver
from edgekit.pipeline.lower import HALVES, Graph, graph_of, lower_for, shaped
from edgekit.pipeline.pixels import doubt
from edgekit.pipeline.ranges import (
    OwnExample,
    beside_example,
    covered_by,
    half_range,
    refuse_example,
    told,
    worst,
)
from edgekit.pipeline.refusal import refusal
from edgekit.pipeline.remarks import tell
from edgekit.pipeline.request import Request, check
from edgekit.pipeline.rollouts import filled, resting, rolling
from edgekit.pipeline.stages import BuildContext, Calibrated, Exported
from edgekit.pipeline.verify import CALIBRATION_SAMPLES, RANDOM_SAMPLES, fitting
from edgekit.types import (
    ASKED,
    Coverage,
    Finding,
    Gate,
    Json,
    Measurement,
    Precision,
    Severity,
    Target,
)

T = TypeVar("T")

EVALUATION = "evaluation"
"""The origin of what ``--eval`` names."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one target: an artifact, or the error that prevented it."""

    target: Target
    artifact: Artifact | None = None
    error: EdgekitError | None = None


def run(request: Request, context: BuildContext) -> tuple[Outcome, ...]:
    """Build every target. Errors of the source or the data end the build; a target's own do not."""
    check(request)
    if request.options.device:
        request, context = on_site(request, context)
    else:
        tell_of_this_processor(request, context)
    prepared = prepare(request, context)
    with plain_candidates(context, prepared, request.targets) as (prepared, plain):
        return tuple(attempt(request, context, prepared, t, plain[t.name]) for t in request.targets)


def tell_of_this_processor(request: Request, context: BuildContext) -> None:
    """What is built for any device may be less exact here, where it is verified: said, and how to build for here."""
    for target in request.targets:
        if (choice := adaptation_here(target)) is not None and choice.weight_bits:
            context.progress.note(
                f"{target.name} is built for any {choice.arch} and is less exact on this processor: without "
                f"{', '.join(choice.lacks)} sums of its products saturate; --device local builds for this one"
            )


def on_site(request: Request, context: BuildContext) -> tuple[Request, BuildContext]:
    """Look at the device, and give each target the scheme that its processor wants."""
    where = device(request.options.device)
    with context.progress.task(f"look at {where.name}"):
        site = probe(where, [t.backend for t in request.targets])
    for target in request.targets:
        if (choice := adaptation(target, site)) is not None:
            context.progress.note(f"{target.name} on {where.name}: {choice.why}")
    request = replace(request, targets=tuple(adapted(t, site) for t in request.targets))
    if not site.verifies:
        context.progress.note(f"{where.name} has no Python: verified here; edgekit bench times it there")
        return request, context
    return request, replace(context, site=site)


def prepare(request: Request, context: BuildContext) -> Prepared:
    """The shared part: load, compress, export, optimize, calibrate."""
    options = request.options
    source = Source(
        request.source,
        context.store,
        trust=options.trust,
        network=options.network,
        loaded=request.module,
        example=Example(request.calibration or request.evaluation, options.preprocessing),
        shapes=Shapes.of(options),
    )
    given = source
    source, compress_steps = compressed(request, context, source)
    graph = replace(
        graph_of(context, source), origin=given if compress_steps else plans_origin(request, context)
    )
    if not source.in_memory:
        trust.remember(context.store, source.spec, source.record)
    if not options.preprocessing and (unfit := doubt(graph.exported.record)):
        context.progress.note(f"the source's own {unfit}; [preprocessing] in edgekit.toml takes its place")
    postprocessing.stated(options, graph.exported.record)  # before the data is read
    data = gather(request, context, source, graph.exported)
    postprocessing.refuse_wrong(context, graph, data.verification)
    calibrated: Calibrated | None = None
    findings: tuple[Finding, ...] = ()
    covered: tuple[Coverage, ...] | None = None
    example: OwnExample | None = None
    quantized = [t for t in request.targets if t.uses_calibration]
    refused = refusals(context, quantized, graph, data.verification)
    if data.calibration is not None and any(t.name not in refused for t in quantized):
        model, _ = stages.in_float32(context, graph.model)
        try:
            calibrated = stages.calibrate(context, model, data.calibration)
        except NotCalibratableError as error:
            refused |= {t.name: error for t in quantized if t.needs_calibration and t.name not in refused}
    if calibrated is not None:
        findings = examine(context, calibrated, data, graph.exported)
        covered = covered_by(context, model, calibrated, data.evaluation)
        example = beside_example(context, model, calibrated, graph.exported)
        findings = (*findings, *refuse_example(context, example))
    if any(t.precision is Precision.FP16 for t in request.targets):
        model, _ = stages.in_float32(context, graph.model, keep=HALVES[Precision.FP16])
        graph = replace(graph, half=half_range(context, model, data.verification))
    return Prepared(
        graph=replace(graph, steps=(*compress_steps, *graph.steps)),
        data=data,
        calibrated=calibrated,
        findings=(*findings, *told(context, covered)),
        refused=refused,
        covered=covered,
        example=example.covered if example is not None and data.evaluation is None else None,
    )


def refusals(
    context: BuildContext, targets: Sequence[Target], graph: Graph, samples: SampleSet
) -> dict[str, EdgekitError]:
    """What is known to be impossible before minutes go into calibration, by target."""
    found: dict[str, EdgekitError] = {}
    for target in targets:
        try:
            refuse_missing_runtime(context, target)
            model, _ = stages.in_float32(context, graph.model)
            model, _ = shaped(context, graph, target, model)
            if graph.pixels is None:
                fitting(context, target, model.inputs, samples)
            stages.check(context, model, target, config.target_options(target, context.options.set))
        except EdgekitError as error:
            found[target.name] = error
    return found


def compressed(
    request: Request, context: BuildContext, source: Source
) -> tuple[Source, tuple[StepRecord, ...]]:
    """The source, or what ``--recipe`` makes of it. Parity is measured against the result; what the recipe
    cost is in its step's notes."""
    if not request.options.recipe:
        return source, ()
    from edgekit.compress import recipes

    evaluation = request.evaluation if isinstance(request.evaluation, str) else request.options.eval
    training = compress.TrainingTask(source, replace(request.options, eval=evaluation), context.store)
    made = compress.compress(context, source, recipes.read(request.options.recipe), training)
    return made.source, (made.step,)


def plans_origin(request: Request, context: BuildContext) -> Source | None:
    """The source that was compressed, where the request's source is what ``edgekit compress`` wrote."""
    if request.source.kind != "plan" or request.source.path is None:
        return None
    from edgekit.compress import plan

    options = request.options
    spec = parse(plan.read(request.source.path).source)
    return Source(
        spec, context.store, trust=options.trust, network=options.network, shapes=Shapes.of(options)
    )


def examine(
    context: BuildContext, calibrated: Calibrated, data: Data, exported: Exported
) -> tuple[Finding, ...]:
    """The calibration doctor's findings: all are shown, the grave ones end the build unless accepted."""
    if calibrated.samples.origin == RANDOM:
        return ()
    findings = stages.diagnose(context, calibrated, data.evaluation, exported)
    for finding in findings:
        context.progress.note(f"calibration {finding.severity} ({finding.code}): {finding.message}")
    accepted = context.options.accept_data
    grave = [f for f in findings if f.severity is Severity.ERROR and f.code not in accepted]
    if grave:
        codes = " ".join(f"--accept-data {code}" for code in dict.fromkeys(f.code for f in grave))
        raise DataError(
            "the calibration samples are not what the model will meet: "
            + "; ".join(f.message for f in grave),
            hint="; ".join(dict.fromkeys(f.hint for f in grave)) + f"; {codes} builds with them all the same",
        )
    return findings


def gather(request: Request, context: BuildContext, source: Source, exported: Exported) -> Data:
    """Open the user's samples. Parity is measured on the evaluation samples, else on those of the
    calibration, else on the example and seeded variations of it. Of a model with states each sample gets the state
    that the source has by then."""

    def named(data: DataSpec | None, origin: str) -> SampleSet | None:
        if data is None or data == "":
            return None
        if data == RANDOM:
            return random_samples(exported.example_inputs(), RANDOM_SAMPLES)
        preprocessing = request.options.preprocessing or exported.record.preprocessing
        return user_samples(
            context.store,
            data,
            exported.model.inputs,
            origin=origin,
            preprocessing=preprocessing,
            classes=Classes(names=exported.record.labels, required=origin == EVALUATION),
            endless=ENDLESS if origin == EVALUATION else Endless.calibration(request.options.samples),
            form=SampleForm.of(exported.example_inputs(), preprocessing, Shapes.of(request.options)),
        )

    calibration = named(request.calibration, "calibration")
    evaluation = named(request.evaluation, EVALUATION)
    for samples in (calibration, evaluation):
        if samples is not None and samples.endless:
            context.progress.note(f"{samples.text} does not end: its first {len(samples)} samples are used")
    stream = evaluation or calibration or random_samples(exported.example_inputs(), RANDOM_SAMPLES)
    states = states_of(exported.model.inputs, exported.model.outputs, request.options.state)
    suspected = resting(context, exported, states, (calibration, evaluation))
    roll = rolling(context, source, exported, states)
    rolled, calibration, evaluation = roll(stream), filled(roll, calibration), filled(roll, evaluation)
    if calibration is not None:
        calibration = calibration.spread(request.options.samples)
    fallback = calibration.spread(CALIBRATION_SAMPLES) if calibration is not None else None
    verification = evaluation or fallback or (rolled.filled() if rolled else stream)
    if request.targets:
        refuse_unusable_metric(request.options, verification)
    if rolled is not None:
        context.progress.note(
            f"a step of a stream: {states}; run over {len(rolled)} steps with states of its own, too"
        )
    return Data(
        calibration=calibration,
        evaluation=evaluation,
        verification=verification,
        rolled=rolled,
        resting=suspected,
    )


def refuse_unusable_metric(options: Options, samples: SampleSet) -> None:
    """A metric or a budget of it without a label to measure it on. Raises :class:`DataError`."""
    given = [
        flag
        for flag, value in (
            ("--metric", options.metric),
            ("--max-drop", options.max_drop),
            ("--limit metric-drop", "metric-drop" in options.limit),
        )
        if value
    ]
    if not given or samples.labelled:
        return
    where = (
        "there are no evaluation samples" if samples.origin != EVALUATION else f"{samples.text} has no labels"
    )
    raise DataError(
        f"{' and '.join(given)} cannot be measured: {where}",
        hint="give labelled samples, --eval file.py:callable that yields (inputs, label), or leave it out; without "
        "labels --limit agreement=99% says how many rows must keep their class",
    )


def attempt(
    request: Request, context: BuildContext, prepared: Prepared, target: Target, plain: Result
) -> Outcome:
    """One target; its typed errors become its outcome."""
    result = guarded(target, lambda: make(request, context, prepared, target, plain))
    if isinstance(result, UnsupportedOperatorsError):
        result = with_alternatives(result, context, prepared, target)
    if isinstance(result, EdgekitError):
        return Outcome(target=target, error=result)
    return Outcome(target=target, artifact=result)


def make(
    request: Request,
    context: BuildContext,
    prepared: Prepared,
    target: Target,
    plain: Result,
) -> Artifact:
    """Within the budget where there is one, gated, and put in its place."""
    if isinstance(plain, EdgekitError):
        raise plain
    made = within_budget(context, prepared, target, plain or plain_candidate(context, prepared, target))
    options = request.options
    timing = measured(context, prepared, made) if limits.parse(options.limit).timed else None
    verdicts = judge(target, made, options, prepared, timing)
    swiftness = against_sibling(context, prepared, made)
    if swiftness is not None:
        placement = made.verified.placement
        verdicts = (*verdicts, speed.gate(swiftness, placement, target, device=options.device))
    tell(context, target, made, verdicts)
    return deliver(
        Path(request.options.out),
        Product(
            target=made.lowering.subject.target,
            options=request.options,
            source=prepared.graph.source.record,
            exported=prepared.graph.exported,
            calibrated=prepared.calibrated,
            findings=prepared.findings,
            files=made.lowering.subject.files,
            pixels=prepared.graph.pixels,
            verified=made.verified,
            evaluation=prepared.data.evaluation,
            gates=verdicts,
            steps=made.lowering.steps,
            quantization=made.lowering.report,
            guard=made.guard,
            speed=swiftness,
            measurement=timing,
            machine=context.machine(),
        ),
    )


def judge(
    target: Target, made: Candidate, options: Options, prepared: Prepared, timing: Measurement | None = None
) -> tuple[Gate, ...]:
    """The target's limits, with ``--max-drop`` and ``--limit`` in place of the row's where they are given.

    Layers that the user or the guard took out of integers do not count against the placement.
    """
    tolerance, verified, report = target.tolerance, made.verified, made.lowering.report
    own = limits.parse(options.limit)
    if options.max_drop is not None:
        own = replace(own, tolerance={**own.tolerance, "metric_drop": options.max_drop})
    if verified.not_run and not prepared.data.verification.labelled:
        tolerance = replace(tolerance, metric_drop=None)  # no run of it would measure a metric
    if tolerance.placement is not None and report is not None and target.scheme is not None:
        share = 1.0 - report.kept_out(target.scheme.activation)
        tolerance = replace(tolerance, placement=tolerance.placement * share)
    if tolerance.integer_weights is not None and report is not None:
        share = 1.0 - report.weights_kept_out()
        tolerance = replace(tolerance, integer_weights=tolerance.integer_weights * share)
    evidence = Evidence(
        parity=verified.parity,
        placement=verified.placement,
        half=prepared.graph.half if target.precision is Precision.FP16 else None,
        integer_weights=made.lowering.subject.files.lowered.integer_weights,
        size_bytes=made.lowering.subject.files.size,
        measurement=timing,
        coverage=worst(prepared.covered, report.activations) if report is not None else None,
        example=worst(prepared.example, report.activations) if report is not None else None,
        rollout=verified.rollout,
        resting=prepared.data.resting,
        not_run=verified.not_run,
        graph=verified.graph.parity if verified.graph is not None else None,
        graph_not_run=verified.graph.why_not if verified.graph is not None else "",
        graph_wrong=verified.graph.wrong if verified.graph is not None else "",
        asked=_share(made.lowering.subject.files.lowered.details.get(ASKED)),
    )
    return gates(evidence, tolerance, own)


def _share(detail: Json) -> float | None:
    return float(detail) if isinstance(detail, int | float) else None


def with_alternatives(
    error: UnsupportedOperatorsError, context: BuildContext, prepared: Prepared, target: Target
) -> UnsupportedOperatorsError:
    """The same error, naming the other backends' float targets that can express the model: each was tried."""
    able = [row.name for row in catalogue.known().values() if _expresses(row, target, context, prepared)]
    return UnsupportedOperatorsError(error.target, error.nodes, supported_by=able)


def _expresses(row: Target, instead_of: Target, context: BuildContext, prepared: Prepared) -> bool:
    if row.scheme is not None or row.backend == instead_of.backend or not row.name.endswith("-fp32"):
        return False

    def lowered() -> bool:
        refuse_missing_backend(row)
        lower_for(context, prepared.graph, row)
        return True

    return guarded(row, lowered) is True  # whatever happens here must not hide the refusal


def raise_failures(outcomes: Sequence[Outcome], options: Options) -> None:
    """Raise the first failure, if there is one, with the others as notes."""
    errors = [e for e in (failure(o, options) for o in outcomes) if e is not None]
    if not errors:
        return
    (error, _), *others = told_once(errors)
    for other, _ in others:
        error.add_note(f"also: {other.message}")
    raise error


def failure(outcome: Outcome, options: Options) -> EdgekitError | None:
    """The error of an outcome that is not an artifact that passed."""
    if outcome.error is not None:
        return outcome.error
    assert outcome.artifact is not None
    return refusal(outcome.artifact, allow_not_run=options.allow_not_run, strict=options.strict)
