"""The verify stage: run the artifact on its real runtime in a fresh process, and compare with the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import plugins, stages, versions
from edgekit.data import SampleSet, fits
from edgekit.devices.arrays import ArrayFile
from edgekit.devices.execute import RunSettings, run_artifact
from edgekit.errors import DataError, NotRunnableError
from edgekit.records import read_json, write_json
from edgekit.source import Source
from edgekit.stages import Exported, LoweredFiles, Workshop
from edgekit.store import Key
from edgekit.structure import structure
from edgekit.types import OnnxModel, Parity, Placement, Sample, Target, TensorSpec, names, sha256_file

if TYPE_CHECKING:
    from edgekit.types import Array
    from edgekit.verify import Metric, Task

RANDOM_SAMPLES = 8
"""How many random inputs stand in when there are no samples: enough for parity, too few for ranges."""

CALIBRATION_SAMPLES = 64
"""How many calibration samples parity is measured on when there are no evaluation samples."""

GOLDEN_SAMPLES = 8
GOLDEN_BYTES = 8 << 20
GOLDEN_FILE = "golden.npz"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is verified: a target's files, and the ONNX that they were lowered from."""

    target: Target
    model: OnnxModel
    files: LoweredFiles

    @property
    def main(self) -> Path:
        """The file that the runtime loads."""
        return self.files.directory / self.files.lowered.files[0]

    @property
    def beside(self) -> tuple[Path, ...]:
        """What must lie next to it."""
        return tuple(self.files.directory / name for name in self.files.lowered.files[1:])


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What came of it. On a machine that cannot run the artifact ``parity`` is ``None`` and ``not_run``
    says why. ``skipped`` counts the samples whose shapes a fixed-shape target cannot take."""

    parity: Parity | None = None
    placement: Placement | None = None
    golden_parity: Parity | None = None
    golden_samples: int = 0
    golden: Path | None = None
    runtime_versions: Mapping[str, str] = field(default_factory=dict)
    not_run: str = ""
    skipped: int = 0
    seconds: float = 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """For the manifest."""
        if not self.skipped:
            return ()
        return (
            f"{self.skipped} evaluation samples have other shapes than this fixed-shape artifact: not run",
        )


def verify(
    shop: Workshop, subject: Subject, source: Source, exported: Exported, samples: SampleSet
) -> Verified:
    """Run every sample that fits the artifact, compare with the reference, keep golden vectors.

    Raises :class:`DataError` when no sample fits, and what :func:`run_artifact` raises, but for
    :class:`NotRunnableError`, which is a result.
    """
    reference, reference_sha256 = stages.reference(shop, source, exported, samples)

    def produce(out: Path) -> None:
        write_json(_measure(shop, subject, exported, samples, reference, out), out / "verified.json")

    metric = shop.options.metric
    key = Key(
        name="verify",
        inputs=(subject.files.sha256, samples.fingerprint, reference_sha256),
        options={"target": subject.target.name, "metric": metric, "metric_sha256": _file_sha256(metric)},
        versions=subject.files.step.versions | {k: str(v) for k, v in versions.machine().items()},
    )
    try:
        result = shop.store.step(key, produce)
    except NotRunnableError as error:
        return Verified(not_run=error.message)
    verified = structure(Verified, read_json(result.directory / "verified.json"), where="verified.json")
    golden = result.directory / GOLDEN_FILE
    return replace(verified, golden=golden if golden.is_file() else None, seconds=round(result.seconds, 3))


def _measure(
    shop: Workshop, subject: Subject, exported: Exported, samples: SampleSet, reference: ArrayFile, out: Path
) -> Verified:
    from edgekit.verify import compare

    chosen = _fitting(subject, samples)
    lowered = subject.files.lowered
    with shop.progress.task(f"run {subject.target.name}", total=sum(chosen)) as task:
        settings = RunSettings(
            outputs=names(lowered.outputs),
            quantize=True,
            placement=True,
            files=subject.beside,
            on_progress=_step(task.advance),
        )
        with run_artifact(
            subject.target.backend,
            subject.main,
            inputs=(to_runtime(s.inputs, lowered.inputs) for s in _kept(samples, chosen)),
            options=lowered.runtime,
            settings=settings,
        ) as run:
            rows = _Restored(run.outputs, lowered.outputs)
            parity = compare(_kept(reference, chosen), rows, task=_task(shop, exported, samples, chosen))
            golden = _golden(_kept(samples, chosen), _kept(reference, chosen), out / GOLDEN_FILE)
            golden_parity = compare(
                _first(_kept(reference, chosen), golden), _first(rows, golden), task=_plain(exported)
            )
            placement = None
            if run.placement is not None:
                backend = plugins.backend(subject.target.backend)
                placement = backend.placement(subject.model, subject.target, lowered, run.placement)
            return Verified(
                parity=parity,
                placement=placement,
                golden_parity=golden_parity,
                golden_samples=golden,
                runtime_versions=run.versions,
                skipped=len(chosen) - sum(chosen),
            )


@dataclass(frozen=True)
class _Restored:
    """The runtime's outputs in the source's layout; iterates the file anew each time."""

    outputs: ArrayFile
    specs: tuple[TensorSpec, ...]

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (_from_runtime(row, self.specs) for row in self.outputs)


def to_runtime(inputs: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Inputs as the source takes them, with channels moved last where the artifact wants them there."""
    import numpy as np

    moved = {s.name for s in specs if channels_last(s)}
    return {n: np.ascontiguousarray(np.moveaxis(a, 1, -1)) if n in moved else a for n, a in inputs.items()}


def channels_last(spec: TensorSpec) -> bool:
    """Whether the artifact's tensor is the source's with channels moved to the end."""
    return spec.layout in ("NWC", "NHWC", "NDHWC")


def _from_runtime(row: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    import numpy as np

    moved = {s.name for s in specs if channels_last(s)}
    return {n: np.moveaxis(a, -1, 1) if n in moved else a for n, a in row.items()}


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


def _kept(rows: Iterable[Any], chosen: list[bool]) -> Iterator[Any]:
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


def _task(shop: Workshop, exported: Exported, samples: SampleSet, chosen: list[bool]) -> Task:
    plain = _plain(exported)
    if not samples.labelled:
        return plain
    labels = [s.label for s in _kept(samples, chosen)]
    return replace(plain, labels=labels, metric=_user_metric(shop.options.metric))


def _plain(exported: Exported) -> Task:
    from edgekit.verify import Task

    return Task(name=exported.record.task)


def _user_metric(text: str) -> Metric | None:
    if not text:
        return None
    from edgekit.usercode import run
    from edgekit.verify import Metric

    def described(function: Callable[[Any, Any], float]) -> Metric:
        name = getattr(function, "__name__", text)
        return Metric(name=name, score=function, whole=bool(getattr(function, "whole", False)))

    return run(text, described)


def _file_sha256(text: str) -> str:
    path = Path(text.rpartition(":")[0])
    return sha256_file(path) if text and path.is_file() else ""


def _golden(samples: Iterable[Sample], reference: Iterable[Mapping[str, Array]], path: Path) -> int:
    """Write ``input/<i>/<name>`` and ``output/<i>/<name>`` of the first samples; returns how many."""
    import numpy as np

    arrays: dict[str, Array] = {}
    count = 0
    for sample, outputs in zip(samples, reference, strict=True):
        size = sum(a.nbytes for a in (*arrays.values(), *sample.inputs.values(), *outputs.values()))
        if count == GOLDEN_SAMPLES or (count and size > GOLDEN_BYTES):
            break
        arrays |= {f"input/{count}/{n}": a for n, a in sample.inputs.items()}
        arrays |= {f"output/{count}/{n}": a for n, a in outputs.items()}
        count += 1
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # names are data, not keywords
    return count
