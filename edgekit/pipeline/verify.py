"""The verify stage: run the artifact on its real runtime in a fresh process, and compare with the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import golden
from edgekit.core import plugins, versions
from edgekit.core.store import Key
from edgekit.core.structure import structure, to_builtins
from edgekit.devices.arrays import ArrayFile
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import DataError, MissingExtraError, NotRunnableError, SourceError
from edgekit.graph.records import read_json, write_json
from edgekit.load.data import SampleSet, fits
from edgekit.load.source import Source
from edgekit.pipeline import stages
from edgekit.pipeline.pixels import Pixels
from edgekit.pipeline.stages import BuildContext, Exported, LoweredFiles
from edgekit.types import OnnxModel, Option, Parity, Placement, Target, sha256_file

if TYPE_CHECKING:
    from edgekit.artifact.parity import Metric, Task

RANDOM_SAMPLES = 8
"""How many random inputs stand in when there are no samples: enough for parity, too few for ranges."""

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
    """What came of it. On a machine that cannot run the artifact ``parity`` is ``None`` and ``not_run``
    says why. ``skipped`` counts the samples whose shapes a fixed-shape target cannot take."""

    parity: Parity | None = None
    placement: Placement | None = None
    golden_parity: Parity | None = None
    vectors: Vectors | None = None
    runtime_versions: Mapping[str, str] = field(default_factory=dict)
    not_run: str = ""
    skipped: int = 0
    seconds: float = 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """For the manifest."""
        found = []
        if self.skipped:
            found.append(f"{self.skipped} samples have other shapes than this fixed-shape artifact: not run")
        if not self.not_run and (self.placement is None or self.placement.share is None):
            found.append("the runtime does not tell what it executes: there is no placement gate")
        return tuple(found)


def verify(
    context: BuildContext, subject: Subject, source: Source, exported: Exported, samples: SampleSet
) -> Verified:
    """Run every sample that fits the artifact, compare with the reference, keep golden vectors.

    Raises :class:`DataError` when no sample fits, and what :func:`run_artifact` raises, but for
    :class:`NotRunnableError`, which is a result.
    """
    asked = samples
    if subject.pixels is not None:
        asked, samples = subject.pixels.samples_asked(samples), subject.pixels.samples_fed(samples)
    reference, reference_sha256 = stages.reference(context, source, exported, asked)
    vectors = _golden(context, subject, samples, reference, reference_sha256)

    def produce(out: Path) -> None:
        case = Case(subject=subject, exported=exported, samples=samples, reference=reference, vectors=vectors)
        write_json(_measure(context, case), out / "verified.json")

    metric = context.options.metric
    key = Key(
        name="verify",
        inputs=(subject.files.sha256, samples.fingerprint, reference_sha256),
        options={
            "lowered": to_builtins(subject.files.lowered),
            "runner_sha256": sha256_file(plugins.runner(subject.target.backend)),
            "metric": metric,
            "metric_sha256": _file_sha256(metric),
        },
        versions=dict(subject.files.step.versions) | context.machine_versions(subject.target.backend),
    )
    try:
        result = context.store.step(key, produce)
    except (NotRunnableError, MissingExtraError) as error:
        installed = context.site is not None or plugins.backend(subject.target.backend).available().usable
        if isinstance(error, MissingExtraError) and installed:
            raise
        return Verified(not_run=error.message, vectors=vectors)
    verified = structure(Verified, read_json(result.directory / "verified.json"), where="verified.json")
    return replace(verified, vectors=vectors, seconds=round(result.seconds, 3))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: what is run, on what, and what it is compared with."""

    subject: Subject
    exported: Exported
    samples: SampleSet
    reference: ArrayFile
    vectors: Vectors


def _golden(
    context: BuildContext, subject: Subject, samples: SampleSet, reference: ArrayFile, reference_sha256: str
) -> Vectors:
    """Written whether or not this machine can run the artifact: another may have to."""

    def produce(out: Path) -> None:
        chosen = _fitting(subject, samples)
        count = golden.write(_kept(samples, chosen), _kept(reference, chosen), out / golden.FILE)
        write_json({"count": count, "chosen": chosen}, out / "golden.json")

    shapes = {s.name: list(s.shape) for s in subject.model.inputs} if subject.target.fixed_shapes else {}
    key = Key(
        name="golden",
        inputs=(samples.fingerprint, reference_sha256),
        options={"shapes": shapes},
        versions=versions.of("numpy"),
    )
    directory = context.store.step(key, produce).directory
    facts = read_json(directory / "golden.json")
    return Vectors(file=directory / golden.FILE, count=facts["count"], chosen=tuple(facts["chosen"]))


def _measure(context: BuildContext, case: Case) -> Verified:
    from edgekit.artifact.parity import compare

    subject, exported, samples = case.subject, case.exported, case.samples
    reference, chosen = case.reference, case.vectors.chosen
    lowered = subject.files.lowered
    with context.progress.task(f"run {subject.target.name}", total=sum(chosen)) as task:
        runnable = replace(subject.runnable, options={**lowered.runtime, **_alone(context)})
        with run_artifact(
            runnable,
            (s.inputs for s in _kept(samples, chosen)),
            device=context.device,
            placement=True,
            on_progress=_step(task.advance),
        ) as run:
            rows = run.outputs
            parity = compare(_kept(reference, chosen), rows, task=_task(context, exported, samples, chosen))
            count = case.vectors.count
            golden_parity = compare(
                _first(_kept(reference, chosen), count), _first(rows, count), task=_plain(exported)
            )
            placement = None
            if run.placement is not None:
                backend = plugins.backend(subject.target.backend)
                placement = backend.placement(subject.model, subject.target, lowered, run.placement)
            return Verified(
                parity=parity,
                placement=placement,
                golden_parity=golden_parity,
                runtime_versions=run.versions,
                skipped=len(chosen) - sum(chosen),
            )


def _alone(context: BuildContext) -> dict[str, Option]:
    """One thread on an emulated processor, where threads that spin for work keep each other from it."""
    return {"threads": 1} if context.site is not None and context.site.emulated else {}


def _fitting(subject: Subject, samples: SampleSet) -> list[bool]:
    if not subject.target.fixed_shapes:
        return [True] * len(samples)
    shapes = {s.name: tuple(int(d) for d in s.shape) for s in subject.model.inputs}
    chosen = [fits(shapes, sample) for sample in samples]
    if not any(chosen):
        taken = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise DataError(
            f"{subject.target.name} has fixed shapes ({taken}, from the example inputs) and no sample has them",
            hint="give samples of that shape, or example inputs of the samples' shape",
        )
    return chosen


def _kept(rows: Iterable[Any], chosen: Sequence[bool]) -> Iterator[Any]:
    return (row for row, keep in zip(rows, chosen, strict=True) if keep)


def _first(rows: Iterable[Any], count: int) -> Iterator[Any]:
    return (row for _, row in zip(range(count), rows, strict=False))


def _step(advance: Callable[[int], None]) -> Callable[[int], None]:
    seen = 0

    def progressed(done: int) -> None:
        nonlocal seen
        advance(done - seen)
        seen = done

    return progressed


def _task(context: BuildContext, exported: Exported, samples: SampleSet, chosen: Sequence[bool]) -> Task:
    plain = _plain(exported)
    if not samples.labelled:
        return plain
    labels = [s.label for s in _kept(samples, chosen)]
    return replace(plain, labels=labels, metric=_user_metric(context.options.metric))


def _plain(exported: Exported) -> Task:
    from edgekit.artifact.parity import Task

    return Task(name=exported.record.task)


def _user_metric(text: str) -> Metric | None:
    if not text:
        return None
    from edgekit.artifact.parity import Metric
    from edgekit.load.usercode import run

    def described(function: object) -> Metric:
        if not callable(function):
            raise SourceError(f"{text} is no function", hint="name a function of (outputs, label)")
        name = getattr(function, "__name__", text)
        return Metric(name=name, score=function, whole=bool(getattr(function, "whole", False)))

    return run(text, described)


def _file_sha256(text: str) -> str:
    path = Path(text.rpartition(":")[0])
    return sha256_file(path) if text and path.is_file() else ""
