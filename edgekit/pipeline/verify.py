"""The verify stage: run the artifact on its real runtime in a fresh process, and compare with the source."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgekit.artifact import golden
from edgekit.artifact.interface import Vector, as_found, differences
from edgekit.artifact.parity import compare
from edgekit.artifact.rollout import Rollout
from edgekit.artifact.slices import places
from edgekit.artifact.task import Task
from edgekit.core import plugins, versions
from edgekit.core.progress import Task as Progress
from edgekit.core.structure import to_builtins
from edgekit.devices import pack
from edgekit.devices.engines import builder_of
from edgekit.devices.execute import Ports, run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import BackendError, DataError, EdgekitError, MissingExtraError, NotRunnableError
from edgekit.graph.records import read_json, write_json
from edgekit.load import Recorder
from edgekit.load.data import RANDOM, SampleSet, fits
from edgekit.load.source import Source
from edgekit.pipeline import stages
from edgekit.pipeline.cached import Step, reader, run
from edgekit.pipeline.graph_check import RUNTIME, GraphCheck, Rows, check_graph
from edgekit.pipeline.metric import opened
from edgekit.pipeline.pixels import Pixels
from edgekit.pipeline.rollouts import Rolled, measured
from edgekit.pipeline.stages import BuildContext, Exported, LoweredFiles, Reference
from edgekit.types import OnnxModel, Option, Parity, Placement, Precision, Target, TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

T = TypeVar("T")

RANDOM_SAMPLES = 8
"""How many random inputs stand in when there are no samples: enough for parity, too few for ranges."""

_EXACT_DB = 100.0
"""Below it a float32 artifact may differ from its source by rounding alone: then the source's own is measured."""

CALIBRATION_SAMPLES = 64
"""How many calibration samples parity is measured on when there are no evaluation samples."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is verified: a target's files, and the ONNX that they were lowered from. ``pixels`` says how it is
    fed where that differs from the source."""

    target: Target
    model: OnnxModel
    files: LoweredFiles
    pixels: Pixels | None = None

    @property
    def runnable(self) -> Runnable:
        """The files as the runtime takes them."""
        return Runnable.of(self.files.lowered, self.files.directory, self.target.backend)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Golden vectors in a file (see :mod:`edgekit.artifact.golden`), and which samples fit the target at all."""

    file: Path
    count: int
    chosen: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What came of it. On a machine that cannot run the artifact ``parity`` is ``None`` and ``not_run`` says why;
    ``graph`` is then what the ONNX graph computes that its engine is made of. ``skipped`` counts the samples whose
    shapes a fixed-shape target cannot take. ``outputs`` are the lowered ones with the sizes that the runtime found
    where the source left them open."""

    parity: Parity | None = None
    placement: Placement | None = None
    golden_parity: Parity | None = None
    vectors: Vectors | None = None
    runtime_versions: Mapping[str, str] = field(default_factory=dict)
    rollout: Rollout | None = None
    not_run: str = ""
    graph: GraphCheck | None = None
    skipped: int = 0
    outputs: tuple[TensorSpec, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """For the manifest."""
        notes = []
        if self.skipped:
            notes.append(f"{self.skipped} samples have other shapes than this fixed-shape artifact: not run")
        if not self.not_run and (self.placement is None or self.placement.share is None):
            notes.append("the runtime does not tell what it executes: there is no placement gate")
        return tuple(notes)


def verify(
    context: BuildContext,
    subject: Subject,
    source: Source,
    exported: Exported,
    samples: SampleSet,
    origin: Source | None = None,
    rolled: Rolled | None = None,
) -> Verified:
    """Run every sample that fits the artifact, compare with the reference, keep golden vectors.

    ``origin``: the source before its recipe. Parity is measured against ``source``, the task's metric against
    ``origin``: what the recipe cost is part of what the artifact lost. ``rolled``: the source's rollout, where the
    model has states; the artifact's own is measured beside it.

    Raises :class:`DataError` when no sample fits, and what :func:`run_artifact` raises, but for
    :class:`NotRunnableError`, which is a result.
    """
    pixels = subject.pixels
    reference = reference_of(context, source, exported, samples, pixels)
    asked, first = samples if pixels is None else pixels.samples_asked(samples), None
    if origin is not None and samples.labelled:
        first = reference_of(context, origin, exported, samples, pixels)
    samples = samples if pixels is None else pixels.samples_fed(samples)
    vectors = _golden(context, subject, samples, reference)
    metric = context.options.metric
    case = Case(
        subject=subject,
        exported=exported,
        samples=samples,
        reference=reference,
        origin=first,
        vectors=vectors,
        rolled=rolled,
        reads=Recorder() if metric else None,
        float64=lambda: stages.float64(context, source, exported, asked),
    )
    unusable = _unusable(context, subject.target)

    def produce(out: Path) -> None:
        try:
            verified = _measure(context, case)
        except (NotRunnableError, MissingExtraError) as error:
            if not unusable:
                raise  # what only the run can tell may be otherwise next time
            verified = _not_run(context, case, error)
        write_json(verified, out / "verified.json")

    step = Step(
        name="verify",
        inputs=(subject.files.sha256, samples.fingerprint, reference.sha256, first.sha256 if first else "")
        + ((rolled.sha256, rolled.samples.fingerprint) if rolled else ()),
        options={
            "states": dict(rolled.states.pairs) if rolled else {},
            "lowered": to_builtins(subject.files.lowered),
            "runner_sha256": pack.code(plugins.runner(subject.target.backend)),
            "task": exported.record.task,
            "classes": exported.record.labels,
            "samples": samples.origin,
            "metric": metric,
            "metric_folder": str(Path.cwd()) if metric else "",
            "metric_environment": versions.environment() if metric else "",
            "unusable": unusable,
            "precision": subject.target.precision.value,
            "graph_runtime": versions.installed(RUNTIME) if unusable else "",
        },
        versions=dict(subject.files.step.versions) | context.machine_versions(subject.target.backend),
        reads=case.reads,
        produce=produce,
        read=reader(Verified, "verified.json"),
    )
    try:
        verified = run(context.store, step).value
    except NotRunnableError as error:
        verified = _not_run(context, case, error)
    return replace(verified, vectors=vectors)


_GRAPH_SAMPLES = 64
"""Of an artifact that is not run its graph is, on so many samples: enough to see one in twenty that is wrong."""


def _not_run(context: BuildContext, case: Case, error: EdgekitError) -> Verified:
    """Why it was not run, and what its graph does in ONNX Runtime."""
    chosen, target = case.vectors.chosen, case.subject.target
    count = min(sum(chosen), _GRAPH_SAMPLES)
    label = f"run the graph of {target.name} in ONNX Runtime"
    rows = Rows(
        inputs=islice((s.inputs for s in kept(case.samples, chosen)), count),
        expected=lambda: islice(kept(case.reference.outputs, chosen), count),
        exact=lambda: kept(islice(chain(case.float64(), repeat({})), len(chosen)), chosen),
        count=count,
        data=case.samples.origin,
        task=case.exported.record.task,
    )
    with context.progress.task(label):
        graph = check_graph(target, case.subject.runnable, rows, near=lambda p: near_float32(target, p))
    return Verified(not_run=error.message, graph=graph)


def reference_of(
    context: BuildContext, source: Source, exported: Exported, samples: SampleSet, pixels: Pixels | None
) -> Reference:
    """The source's answers to what an artifact is verified on."""
    asked = samples if pixels is None else pixels.samples_asked(samples)
    return stages.reference(context, source, exported, asked)


def _unusable(context: BuildContext, target: Target) -> str:
    """Why this machine cannot run the target's artifacts, as far as can be told without trying."""
    if context.site is not None and builder_of(target.backend) is not None:
        runtime = context.site.runtimes.get(target.backend)
        return "" if runtime is None or runtime.versions else runtime.problem
    available = plugins.backend(target.backend).available()
    return "" if context.site is not None or available.usable else available.why_not or "not usable"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: what is run, on what, and what it is compared with; what the user's metric ``reads`` is noted."""

    subject: Subject
    exported: Exported
    samples: SampleSet
    reference: Reference
    origin: Reference | None
    vectors: Vectors
    rolled: Rolled | None
    reads: Recorder | None
    float64: Callable[[], Iterable[Mapping[str, Array]]]


def _golden(context: BuildContext, subject: Subject, samples: SampleSet, reference: Reference) -> Vectors:
    """Written whether or not this machine can run the artifact: another may have to."""

    chosen = fitting(context, subject.target, subject.model.inputs, samples)

    def produce(out: Path) -> None:
        count = golden.write(kept(samples, chosen), kept(reference.outputs, chosen), out / golden.FILE)
        write_json({"count": count}, out / "golden.json")

    def read(directory: Path) -> Vectors:
        count = read_json(directory / "golden.json")["count"]
        return Vectors(file=directory / golden.FILE, count=count, chosen=chosen)

    step = Step(
        name="golden",
        inputs=(samples.fingerprint, reference.sha256),
        options={"shapes": _shapes(subject.target, subject.model.inputs)},
        packages=("numpy",),
        produce=produce,
        read=read,
    )
    return run(context.store, step).value


def _measure(context: BuildContext, case: Case) -> Verified:
    subject, chosen = case.subject, case.vectors.chosen
    lowered, expected = subject.files.lowered, case.reference.outputs
    runnable = replace(subject.runnable, options={**lowered.runtime, **_alone(context)})
    with (
        context.progress.task(f"run {subject.target.name}", total=sum(chosen)) as task,
        one_at_a_time if context.site is not None else nullcontext(),
        run_artifact(
            runnable,
            (s.inputs for s in kept(case.samples, chosen)),
            device=context.device,
            placement=True,
            on_progress=_advancing(task),
        ) as result,
    ):
        outputs = _as_found(case, result.ports)
        plain = Task(name=case.exported.record.task)
        data = case.samples.origin
        labelled, noise = _labelled(context, case, plain), case.samples.noise
        maps = places(case.exported.model.inputs, case.exported.model.outputs)

        def compared(exact: Iterable[Mapping[str, Array]]) -> Parity:
            return compare(
                kept(expected, chosen),
                result.outputs,
                task=labelled,
                origin=None if case.origin is None else kept(case.origin.outputs, chosen),
                exact=kept(islice(chain(exact, repeat({})), len(chosen)), chosen),
                noise=noise,
                places=maps,
            )

        parity = compared(())
        if near_float32(subject.target, parity):
            parity = compared(case.float64())
        count = case.vectors.count
        first = compare(islice(kept(expected, chosen), count), islice(result.outputs, count), task=plain)
        placement = None
        if result.placement is not None:
            backend = plugins.backend(subject.target.backend)
            placement = backend.placement(subject.model, subject.target, lowered, result.placement)
        return Verified(
            parity=replace(parity, data=data),
            placement=placement,
            golden_parity=replace(first, data="random" if data == RANDOM else "golden"),
            rollout=_rolled_out(context, case),
            runtime_versions=result.versions,
            skipped=len(chosen) - sum(chosen),
            outputs=outputs,
        )


def _rolled_out(context: BuildContext, case: Case) -> Rollout | None:
    """The model's states over many steps of the artifact's own."""
    if (reference := case.rolled) is None:
        return None
    subject = case.subject
    if not all(case.vectors.chosen):
        raise DataError(
            f"{subject.target.name} has fixed shapes, and {case.vectors.chosen.count(False)} samples of the stream "
            f"have others: its states ({reference.states}) cannot be fed through",
            hint="leave the samples out that are shorter, or pad them",
        )
    lowered = subject.files.lowered
    runnable = replace(subject.runnable, options={**lowered.runtime, **_alone(context)})
    fed = reference.samples if subject.pixels is None else subject.pixels.samples_fed(reference.samples)
    return measured(context, runnable, reference, fed)


def _as_found(case: Case, ports: Ports) -> tuple[TensorSpec, ...]:
    """The outputs as the runtime found them in the file, where the source left sizes open. What the manifest will say
    of inputs and outputs otherwise is what the runtime found, or :class:`BackendError` is raised."""
    lowered = case.subject.files.lowered
    (inputs, *_), (expected, *_) = golden.read(case.vectors.file)
    preprocess = case.subject.runnable.preprocess
    vector = Vector(inputs=preprocess(inputs) if preprocess else inputs, outputs=expected)
    outputs = as_found(lowered.outputs, lowered.channels_moved, ports, vector)
    for problem in differences(lowered.inputs, outputs, lowered.channels_moved, ports, vector):
        raise BackendError(
            f"{case.subject.target.name}: the manifest would say that {problem}",
            hint="this is a defect of edgekit: report it with the model",
        )
    return outputs


def near_float32(target: Target, parity: Parity) -> bool:
    """Whether the reference's own rounding may be what a float32 artifact differs by."""
    return target.precision is Precision.FP32 and parity.snr_db < _EXACT_DB


one_at_a_time = threading.Lock()
"""Targets are built side by side here; a device is given one artifact after the other."""


def _alone(context: BuildContext) -> dict[str, Option]:
    """One thread on an emulated processor, where threads that spin for work keep each other from it."""
    return {"threads": 1} if context.site is not None and context.site.emulated else {}


def fitting(
    context: BuildContext, target: Target, inputs: Sequence[TensorSpec], samples: SampleSet
) -> tuple[bool, ...]:
    """Which samples ``target`` can take as ``inputs``: all, unless its shapes are fixed.

    Raises :class:`DataError` where more than :data:`MISFITS` of them do not fit: what is measured on the rest says
    little of the data that were given.
    """
    shapes = _shapes(target, inputs)
    if not shapes:
        return (True,) * len(samples)

    def produce(out: Path) -> None:
        rows: list[bool] = []
        seen: dict[str, set[tuple[int, ...]]] = {name: set() for name in shapes}
        for sample in samples:
            rows.append(fits(shapes, sample))
            for name, found in seen.items():
                found.add(sample.inputs[name].shape)
        extents = {name: _extent(found) for name, found in seen.items()}
        write_json({"fits": rows, "seen": extents}, out / "fitting.json")

    step = Step(
        name="fitting",
        inputs=(samples.fingerprint,),
        options={"shapes": shapes},
        packages=("numpy",),
        produce=produce,
        read=lambda directory: read_json(directory / "fitting.json"),
    )
    facts = run(context.store, step).value
    chosen = tuple(map(bool, facts["fits"]))
    missing = len(chosen) - sum(chosen)
    if missing > MISFITS * len(chosen):
        wanted = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise DataError(
            f"{target.name} has fixed shapes ({wanted}, from the example inputs), and {missing} of "
            f"{len(chosen)} samples have others",
            hint=_ways(shapes, facts["seen"]),
        )
    return chosen


MISFITS = 0.05
"""The share of samples that may have other shapes than a target with fixed shapes takes; they are not run, and said."""


def _shapes(target: Target, inputs: Sequence[TensorSpec]) -> dict[str, list[int]]:
    """The shapes that a target with fixed shapes takes; empty for any other."""
    return {s.name: [int(d) for d in s.shape] for s in inputs} if target.fixed_shapes else {}


def _extent(shapes: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """The smallest and largest size of each axis."""
    return [[min(sizes), max(sizes)] for sizes in zip(*shapes, strict=True)]


def _ways(shapes: Mapping[str, list[int]], seen: Mapping[str, list[list[int]]]) -> str:
    """What to do about samples that do not fit: another shape where all have one, else padding."""
    other = {name: seen[name] for name, shape in shapes.items() if [[d, d] for d in shape] != seen[name]}
    flags = " ".join(f"--shape {n}={'x'.join(str(high) for _, high in axes)}" for n, axes in other.items())
    if all(low == high for axes in other.values() for low, high in axes):
        return f"the samples all have one shape: pass {flags}"
    longest = max(high for axes in other.values() for low, high in axes if low != high)
    return (
        f"their sizes differ, up to {longest}: a source with a tokenizer (hf:) pads them with --sequence-length "
        f"{longest}; else pad them in the data callable, and pass {flags}"
    )


def kept(rows: Iterable[T], chosen: Sequence[bool]) -> Iterator[T]:
    """The rows that were chosen."""
    return (row for row, keep in zip(rows, chosen, strict=True) if keep)


def _advancing(task: Progress) -> Callable[[int], None]:
    """Takes how many are done in all, and moves the bar by what is new."""
    before = 0

    def progressed(done: int) -> None:
        nonlocal before
        task.advance(done - before)
        before = done

    return progressed


def _labelled(context: BuildContext, case: Case, task: Task) -> Task:
    """The task with the labels of the samples that were run, and the user's metric."""
    text, budget = context.options.metric, context.options.max_drop
    labels = [s.label for s in kept(case.samples, case.vectors.chosen)] if case.samples.labelled else []
    if all(label is None for label in labels):
        if not text and budget is None:
            return task
        raise DataError(
            f"none of the {sum(case.vectors.chosen)} samples that {case.subject.target.name} can be run on has a label",
            hint="--metric and --max-drop are measured on labelled samples: give some in --eval, or leave them out",
        )
    task = replace(task, labels=labels, classes=case.exported.record.labels)
    return task if case.reads is None else replace(task, metric=opened(text, case.reads))
