"""edgekit takes a PyTorch model to a measured, verified, shippable artifact on an edge runtime.

This module is the public API; the command line calls the same functions. Names are loaded on first use, so that
``import edgekit`` costs nothing. docs/api.md shows each of them.

Threads: :func:`build`, :func:`calibrate`, :func:`compress` and :meth:`Artifact.diff` import and watch the user's code
by state of the whole process (``sys.path``, seeds, the record of files that were read). In one process they run one
after the other: a second thread waits. Everything else may run side by side.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Self

from edgekit.core import versions

if TYPE_CHECKING:
    from edgekit.artifact import summary
    from edgekit.artifact.golden import Replay as Replay
    from edgekit.artifact.inspect import Inspection as Inspection
    from edgekit.artifact.manifest import Artifact as _Record
    from edgekit.artifact.manifest import Manifest as Manifest
    from edgekit.artifact.measure import Measured as Measured
    from edgekit.artifact.profile import Profile as Profile
    from edgekit.compress.recipes import Recipe as Recipe
    from edgekit.compress.step import StepReport as StepReport
    from edgekit.core.config import Options as Options
    from edgekit.core.progress import Event as Event
    from edgekit.core.progress import EventKind as EventKind
    from edgekit.core.progress import Listener
    from edgekit.devices.bench import BenchSettings as BenchSettings
    from edgekit.diff.compare import Diff as Diff
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.load.data import DataSpec
    from edgekit.package import Package as Package
    from edgekit.package.descriptor import PackageSpec as PackageSpec
    from edgekit.pipeline.api import CalibrationResult as CalibrationResult
    from edgekit.pipeline.api import ModelSource
    from edgekit.search.compress import Delivered
    from edgekit.search.limits import Limits as Limits
    from edgekit.search.run import SearchResult as SearchResult
    from edgekit.types import Array
    from edgekit.types import Device as Device
    from edgekit.types import Finding as Finding
    from edgekit.types import Measurement as Measurement
    from edgekit.types import OnnxModel as OnnxModel
    from edgekit.types import Parity as Parity
    from edgekit.types import Placement as Placement
    from edgekit.types import Precision as Precision
    from edgekit.types import Sample as Sample
    from edgekit.types import Scheme as Scheme
    from edgekit.types import Target as Target
    from edgekit.types import TensorSpec as TensorSpec
    from edgekit.types import TorchModel as TorchModel

__all__ = [
    "Artifact",
    "BenchResult",
    "BenchSettings",
    "BuildResult",
    "CalibrationResult",
    "CompressResult",
    "Device",
    "Diff",
    "EdgekitError",
    "Event",
    "EventKind",
    "Failure",
    "Finding",
    "Inspection",
    "Limits",
    "Manifest",
    "Measured",
    "Measurement",
    "OnnxModel",
    "Options",
    "Package",
    "PackageSpec",
    "Parity",
    "Placement",
    "Precision",
    "Profile",
    "Recipe",
    "Replay",
    "Sample",
    "Scheme",
    "SearchResult",
    "StepReport",
    "Target",
    "TensorSpec",
    "TorchModel",
    "__version__",
    "build",
    "calibrate",
    "compress",
    "open",
]

_LAZY = {
    "BenchSettings": "edgekit.devices.bench",
    "CalibrationResult": "edgekit.pipeline.api",
    "Device": "edgekit.types",
    "Diff": "edgekit.diff.compare",
    "EdgekitError": "edgekit.errors",
    "Event": "edgekit.core.progress",
    "EventKind": "edgekit.core.progress",
    "Finding": "edgekit.types",
    "Inspection": "edgekit.artifact.inspect",
    "Limits": "edgekit.search.limits",
    "Manifest": "edgekit.artifact.manifest",
    "Measured": "edgekit.artifact.measure",
    "Measurement": "edgekit.types",
    "OnnxModel": "edgekit.types",
    "Options": "edgekit.core.config",
    "Package": "edgekit.package",
    "PackageSpec": "edgekit.package.descriptor",
    "Parity": "edgekit.types",
    "Placement": "edgekit.types",
    "Precision": "edgekit.types",
    "Profile": "edgekit.artifact.profile",
    "Recipe": "edgekit.compress.recipes",
    "Replay": "edgekit.artifact.golden",
    "Sample": "edgekit.types",
    "Scheme": "edgekit.types",
    "SearchResult": "edgekit.search.run",
    "StepReport": "edgekit.compress.step",
    "Target": "edgekit.types",
    "TensorSpec": "edgekit.types",
    "TorchModel": "edgekit.types",
}
"""Where the public types are defined."""

__version__ = versions.EDGEKIT

_one_at_a_time = threading.RLock()


def __getattr__(name: str) -> object:
    if name == "compress":
        return importlib.import_module("edgekit.compress")
    if name in _LAZY:
        value: object = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


@dataclass(frozen=True, kw_only=True, repr=False)
class Artifact:
    """The files made for one target, in one directory, with their manifest.

    Whatever runs it takes ``device``: the name of one of your devices (``edgekit devices list``) or a
    :class:`Device`; by default it is this machine.
    """

    directory: Path
    manifest: Manifest

    @property
    def target(self) -> str:
        """The target's name."""
        return self.manifest.target.name

    @property
    def model(self) -> Path:
        """The main file."""
        return self._record.model

    @property
    def passed(self) -> bool:
        """Whether it ran and no gate refused it; ``manifest.status`` tells ``unproven`` from ``passed``."""
        return self._record.passed

    def predict(
        self,
        inputs: Iterable[Mapping[str, Array] | Array],
        *,
        device: str | Device = "local",
        trust: bool = False,
    ) -> Iterator[dict[str, Array]]:
        """Run the artifact on its real runtime, in a fresh process.

        Args:
            inputs: arrays by input name, in the source's names, shapes and layouts, batch axis included; the bare
                array where the model has one input.
            device: where to run it.
            trust: load an engine that was not built here; engines are code.

        Returns:
            For each of ``inputs`` the outputs by name, as the source has them.

        Raises:
            DataError: the names are not the model's.
            RuntimeCrashError: the runtime ended its process, or gave no answer.
            DeviceError: the device cannot be reached.
        """
        from edgekit.artifact.run import predict
        from edgekit.pipeline.api import bound

        named = bound(inputs, [spec.name for spec in self.manifest.inputs])
        return predict(self._record, named, device=_device(device), trust=trust)

    def verify(
        self,
        *,
        device: str | Device = "local",
        evaluation: DataSpec | None = None,
        source: ModelSource | None = None,
        options: Options | None = None,
    ) -> Replay:
        """Run the golden vectors again and gate the result. An artifact that could not be run where it was built gets
        its verdict from here, in its manifest too (:func:`open` it again).

        Args:
            device: where to run them.
            evaluation: samples to run as well, as :func:`build` takes them: then placement is gated, too, and the
                metric of labelled ones.
            source: what was built, to compare the artifact with on ``evaluation``.
            options: ``limit`` (in place of the target's), ``metric``, ``trust`` and ``timeout`` count.

        Raises:
            SourceError: files have changed since the build, or there are no golden vectors.
            UsageError: a limit that does not exist or that cannot be told from what is given.
            DataError: samples or labels that do not fit.
        """
        from edgekit.core.config import Options
        from edgekit.core.deadline import within
        from edgekit.pipeline.evaluate import again

        chosen = options or Options()
        alone = contextlib.nullcontext() if evaluation is None else _one_at_a_time
        with alone, within(chosen.timeout, str(self.directory)):
            return again(self._record, chosen, device=_device(device), data=evaluation, source=source)

    def bench(
        self,
        *,
        device: str | Device | Sequence[str | Device] = "local",
        baseline: Artifact | None = None,
        settings: BenchSettings | None = None,
        trust: bool = False,
    ) -> BenchResult:
        """Measure latency (ms) and memory (bytes); the figures go into the manifest.

        Args:
            device: one or several; they run side by side.
            baseline: another artifact, measured interleaved and compared.
            settings: how long and how often (default: ten fresh processes of half a second).
            trust: load engines that were not built here; engines are code.
        """
        from edgekit.artifact.measure import measure

        devices = [device] if not isinstance(device, Sequence) or isinstance(device, str) else device
        measured, errors = measure(
            [self._record],
            baseline=None if baseline is None else baseline._record,
            devices=[_device(d) for d in devices],
            settings=settings,
            trust=trust,
        )
        return BenchResult(measured=tuple(measured), failures=tuple(errors))

    def profile(self, *, device: str | Device = "local", runs: int = 50, trust: bool = False) -> Profile:
        """Microseconds and placement of every operator; profilers slow their runtimes down, :meth:`bench` does not.

        Args:
            device: where to run it.
            runs: how many runs to profile.
            trust: load an engine that was not built here; engines are code.
        """
        from edgekit.artifact.profile import profile_artifact

        return profile_artifact(self._record, device=_device(device), runs=runs, trust=trust)

    def diff(
        self,
        against: str | Path | Artifact | None = None,
        *,
        data: DataSpec | None = None,
        options: Options | None = None,
        progress: Listener | None = None,
    ) -> Diff:
        """Find the layer where this artifact begins to differ from its source, or from another model.

        Args:
            against: a source, a model file or another artifact (default: the artifact's own source).
            data: inputs to compare with (default: the artifact's golden inputs).
            options: what loading the source may do (``trust``, ``network``).
            progress: takes events while it works.
        """
        other = str(against.directory if isinstance(against, Artifact) else against or "")
        first, second = (other, str(self.directory)) if other else (str(self.directory), "")
        return _compared(first, second, data, options, progress)

    def package(self, spec: PackageSpec, out: str | Path | None = None) -> Package:
        """Write a package for an app: the model, its preprocessing, and tests that run there.

        Args:
            spec: the format, and the package's name, version and licence.
            out: a folder that does not exist yet (default: ``NAME-VERSION-FORMAT`` in the working directory).
        """
        from edgekit.package import package

        return package(self._record, spec, Path(out or f"{spec.name}-{spec.version}-{spec.format}"))

    def inspect(self) -> Inspection:
        """What is in the model file: tensors, operators, weights and their quantization. Nothing is executed.

        Raises:
            SourceError: the file is damaged.
            MissingExtraError: the package that knows its format is not installed.
        """
        from edgekit.artifact.inspect import inspect_file

        return inspect_file(self.model)

    @property
    def _record(self) -> _Record:
        from edgekit.artifact.manifest import Artifact as Record

        return Record(directory=self.directory, manifest=self.manifest)

    def __repr__(self) -> str:
        return f"Artifact({self.target!r}, {self.manifest.status}, {str(self.directory)!r})"

    def _repr_html_(self) -> str:
        return _table([self]).html()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A target without an artifact that passed: why, and what was made of it, if it came to that.

    ``artifact`` lies in ``OUT/TARGET.failed``; it did not pass and must not be shipped.
    """

    target: str
    error: EdgekitError
    artifact: Artifact | None = None

    def __repr__(self) -> str:
        return f"Failure({self.target!r}, {type(self.error).__name__}: {self.error.message.splitlines()[0]})"


@dataclass(frozen=True, kw_only=True, repr=False)
class BuildResult:
    """What a build made: the artifacts that passed, and a failure for every other target, both in the order of the
    targets."""

    artifacts: tuple[Artifact, ...]
    failures: tuple[Failure, ...]

    def raise_for_failures(self) -> Self:
        """Raise the first failure's error, with the others as notes; without one, return the result itself."""
        from edgekit.errors import told_once

        if self.failures:
            (error, ended), *others = told_once(f.error for f in self.failures)
            if len(ended) > 1:
                error.add_note(f"ended: {', '.join(self.failures[number].target for number in ended)}")
            for other, _ in others:
                error.add_note(f"also: {other.message}")
            for artifact in self.artifacts:
                error.add_note(f"passed: {artifact.target} in {artifact.directory}")
            raise error
        return self

    def __repr__(self) -> str:
        counts = f"BuildResult({len(self.artifacts)} passed, {len(self.failures)} failed)"
        table = [_table(self.artifacts).text()] if self.artifacts else []
        return "\n".join([counts, *table, *map(repr, self.failures[:10])])

    def _repr_html_(self) -> str:
        from edgekit.artifact import tables

        table = _table(self.artifacts).html() if self.artifacts else ""
        return table + tables.listed(map(repr, self.failures))


@dataclass(frozen=True, kw_only=True, repr=False)
class BenchResult:
    """Figures of one artifact on every device that gave some, and the errors of the others."""

    measured: tuple[Measured, ...]
    failures: tuple[EdgekitError, ...]

    def raise_for_failures(self) -> Self:
        """Raise the first device's error, with the others as notes; without one, return the result itself."""
        from edgekit.errors import told_once

        if self.failures:
            (error, _), *others = told_once(self.failures)
            for other, _ in others:
                error.add_note(f"also: {other.message}")
            raise error
        return self

    def __repr__(self) -> str:
        figures = [f"{m.measurement.device}: p50 {m.measurement.p50_ms:.3g} ms" for m in self.measured]
        return f"BenchResult({', '.join([*figures, *(e.message.splitlines()[0] for e in self.failures)])})"

    def _repr_html_(self) -> str:
        from edgekit.artifact import tables
        from edgekit.artifact.measure import figures

        table = figures(self.measured).html() if self.measured else ""
        return table + tables.listed(e.message for e in self.failures)


@dataclass(frozen=True, kw_only=True, repr=False)
class CompressResult:
    """A compressed model: ``folder`` is a source for :func:`build`, with the recipe beside it.

    ``steps`` say what each step cost and gave (none after a search); ``artifact`` and ``packed`` (in bytes:
    ``packed_bytes``) are what the recipe ships, or the winner of a search, whose whole account is ``search``.
    """

    folder: Path
    recipe: Recipe
    metric: str
    steps: tuple[StepReport, ...]
    artifact: Artifact | None
    packed: Path | None
    packed_bytes: int
    search: SearchResult | None

    def __repr__(self) -> str:
        return f"CompressResult({self.recipe.line!r}, {str(self.folder)!r})"


def build(
    source: ModelSource,
    example_inputs: object = None,
    *,
    targets: str | Iterable[str] | None = None,
    calibration: DataSpec | None = None,
    evaluation: DataSpec | None = None,
    out: str | Path | None = None,
    options: Options | None = None,
    progress: Listener | None = None,
) -> BuildResult:
    """Build, run and gate one artifact for each target; the Python spelling of ``edgekit build``.

    Args:
        source: a module, an exported program or a :class:`TorchModel` in memory, or a SOURCE text
            (``model.py:factory``, ``model.onnx``, ``hf:DIR`` …).
        example_inputs: for a module: a tensor, a tuple, or a dict by name, batch axis included (default: the first
            calibration sample).
        targets: one name or several (``edgekit targets`` lists them).
        calibration, evaluation: DATA texts, or iterables of inputs or of ``(inputs, label)``.
        out: where artifacts go, ``OUT/TARGET/`` (default: ``build``).
        options: everything else, taken as it is. Without it, files and environment count as on the command line:
            ``Options.load()``.
        progress: takes events while it works.

    Returns:
        The artifacts that passed their gates, and the failures of the other targets.

    Raises:
        SourceError, DataError, UsageError: what concerns every target. A target's own error is among the failures.
    """
    from edgekit.core.deadline import within
    from edgekit.pipeline import api
    from edgekit.pipeline.build import failure

    chosen = api.options_with(options, targets=targets, out=out)
    with _one_at_a_time, within(chosen.timeout, "the build"):
        asked = api.request(source, example_inputs, chosen, calibration=calibration, evaluation=evaluation)
        outcomes = api.built(asked, api.context(chosen, progress))
    artifacts, failures = [], []
    for outcome in outcomes:
        artifact = None if outcome.artifact is None else _artifact(outcome.artifact)
        if (error := failure(outcome, chosen)) is not None:
            failures.append(Failure(target=outcome.target.name, error=error, artifact=artifact))
        elif artifact is not None:
            artifacts.append(artifact)
    return BuildResult(artifacts=tuple(artifacts), failures=tuple(failures))


def open(path: str | Path) -> Artifact:
    """The artifact in a directory.

    Raises:
        SourceError: there is none, it names files outside its folder, or a newer edgekit wrote it.
    """
    from edgekit.artifact import manifest

    return _artifact(manifest.read(Path(path)))


def calibrate(
    source: ModelSource,
    example_inputs: object = None,
    *,
    calibration: DataSpec | None = None,
    evaluation: DataSpec | None = None,
    options: Options | None = None,
    progress: Listener | None = None,
) -> CalibrationResult:
    """Statistics of every activation over the calibration samples, and what is suspicious about the samples.

    A later :func:`build` with the same source and samples finds them in the cache. The arguments are those of
    :func:`build`.
    """
    from edgekit.core.deadline import within
    from edgekit.pipeline import api

    chosen = api.options_with(options, targets=None, out=None)
    with _one_at_a_time, within(chosen.timeout, "the calibration"):
        asked = api.request(source, example_inputs, chosen, calibration=calibration, evaluation=evaluation)
        return api.calibrated(asked, api.context(chosen, progress))


def _compress(
    source: str | Path,
    *,
    recipe: str | None = None,
    budget: str | None = None,
    limits: Limits | None = None,
    seed: int | None = None,
    out: str | Path = "build/compressed",
    options: Options | None = None,
    progress: Listener | None = None,
) -> CompressResult:
    """Compress a model in PyTorch: by a recipe of steps, or by searching for one that holds a budget.

    Args:
        source: a SOURCE text; the plan names it, and must be able to load it again.
        recipe: a recipe file, or steps on one line: ``"prune(sparsity=0.9);cluster"``.
        budget: what the result may cost: ``"drop<=1pt,ekz<=300KB,latency<=5ms@pi5"``; also ``file<=``, ``download<=``.
        limits: how long to search (default: ten minutes).
        seed: of everything random (default: the recipe's).
        out: gets the plan, the recipe and what is shipped.
        options: what steps learn and are measured on (``task``, ``train``, ``eval``), as for :func:`build`.
        progress: takes events while it works.

    Raises:
        UsageError: not exactly one of ``recipe`` and ``budget``, or steps that train without a task.
        GateFailedError: nothing holds the budget.
    """
    from edgekit.core.deadline import within
    from edgekit.pipeline import api
    from edgekit.search import compress

    chosen = api.options_with(options, targets=None, out=out)
    with _one_at_a_time, within(chosen.timeout, "the compression"):
        context = api.context(chosen, progress)
        done = compress.compress(context, source, recipe=recipe, budget=budget, limits=limits, seed=seed)
    return _delivered(done)


def _delivered(done: Delivered) -> CompressResult:
    shipped = done.shipped
    return CompressResult(
        folder=done.folder,
        recipe=done.recipe,
        metric=done.metric,
        steps=done.steps,
        artifact=None if shipped is None else _artifact(shipped.artifact),
        packed=None if shipped is None else shipped.packed,
        packed_bytes=0 if shipped is None else shipped.size,
        search=done.search,
    )


def _compared(
    first: str, second: str, data: DataSpec | None, options: Options | None, progress: Listener | None
) -> Diff:
    from edgekit.core.deadline import within
    from edgekit.diff.compare import compare
    from edgekit.pipeline import api

    chosen = api.options_with(options, targets=None, out=None)
    with _one_at_a_time, within(chosen.timeout, "the comparison"):
        return compare(first, second, data, api.context(chosen, progress))


def _artifact(record: _Record) -> Artifact:
    return Artifact(directory=record.directory, manifest=record.manifest)


def _device(device: str | Device) -> Device:
    from edgekit.devices import catalogue

    return catalogue.device(device) if isinstance(device, str) else device


def _table(artifacts: Sequence[Artifact]) -> summary.Table:
    from edgekit.artifact import summary

    return summary.table(artifacts)


class _Compress(ModuleType):
    """The package ``edgekit.compress``, which is the function of that name too."""

    __call__ = staticmethod(_compress)


class _Api(ModuleType):
    """This module. An import of ``edgekit.compress.…`` sets the package as its attribute, whatever was there."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "compress" and isinstance(value, ModuleType):
            value.__class__ = _Compress
        super().__setattr__(name, value)


if TYPE_CHECKING:
    compress = _compress
sys.modules[__name__].__class__ = _Api
