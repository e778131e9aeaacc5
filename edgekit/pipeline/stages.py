"""The stages of a build, each behind the cache. :mod:`edgekit.pipeline.build` calls them in order.

Here is what each stage depends on and what it gives; what it does is in :mod:`edgekit.pipeline.work`, which is heavy
and imported only where a stage is not cached.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact.manifest import StepRecord
from edgekit.artifact.task import declared
from edgekit.core import plugins, versions
from edgekit.core.config import Options
from edgekit.core.parallel import Once
from edgekit.core.progress import Progress
from edgekit.core.store import Store, canonical_json
from edgekit.core.structure import to_builtins
from edgekit.devices.arrays import ArrayFile
from edgekit.devices.catalogue import LOCAL
from edgekit.graph.records import MODEL_RECORD, ModelRecord, read_json, read_model, write_json
from edgekit.load.data import SampleSet
from edgekit.load.source import Source
from edgekit.pipeline.cached import Step, reader, rows_reader, run
from edgekit.pipeline.pixels import Pixels
from edgekit.quantize.options import QuantizeOptions, QuantizeReport
from edgekit.types import (
    Checks,
    Coverage,
    Device,
    Finding,
    HalfRange,
    Lowered,
    OnnxModel,
    Option,
    Target,
    sha256_bytes,
    sha256_file,
)

if TYPE_CHECKING:
    from edgekit.devices.target_device import TargetDevice
    from edgekit.pipeline.work import Work
    from edgekit.types import Array

EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
PASS_PACKAGES = ("onnx", "onnx-ir", "onnxsim", "onnxruntime")
QUANTIZE_PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What every stage needs: the cache, the user's options, where progress is shown, where artifacts are
    run (``None``: here), and what stages of several targets compute once."""

    store: Store
    options: Options
    progress: Progress
    site: TargetDevice | None = None
    shared: Once = field(default_factory=Once)

    @property
    def device(self) -> Device:
        """Where artifacts are run: ``--device``, else this machine."""
        return LOCAL if self.site is None else self.site.device

    def machine(self) -> dict[str, str | int]:
        """What computes there (see :func:`edgekit.core.versions.machine`)."""
        return versions.machine() if self.site is None else self.site.machine()

    def machine_versions(self, backend: str) -> dict[str, str]:
        """The same and the versions of ``backend``'s runtime there, as a step's key has them."""
        there = {} if self.site is None else self.site.runtimes[backend].versions
        return {k: str(v) for k, v in self.machine().items()} | {f"{k} there": v for k, v in there.items()}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The model as ONNX, with one set of example inputs."""

    record: ModelRecord
    example: ArrayFile
    step: StepRecord

    @property
    def model(self) -> OnnxModel:
        """The ONNX file."""
        return self.record.model

    def example_inputs(self) -> dict[str, Array]:
        """The example inputs as numpy arrays by input name."""
        return next(iter(self.example))


def export(context: BuildContext, source: Source) -> Exported:
    """Source to ONNX; an ONNX source is imported as it is.

    A module in memory is exported every time: nothing but its export tells what its Python code computes.
    """
    if not source.in_memory:
        return _exported(context, source, lambda out: work(context).export(source, out))
    with context.store.scratch() as fresh:
        work(context).export(source, fresh)
        record = read_model(fresh)
        source.identify(record.model.sha256)
        # Not in the graph, and yet the result's: the same weights with other class names are another model.
        contracts = (record.preprocessing, record.postprocessing)
        facts = (record.task, record.labels, *contracts, sha256_file(fresh / "example"))
        said = {"declared": sha256_bytes(canonical_json(facts))}
        return _exported(context, source, lambda out: _copy(fresh, out), said)


def _exported(
    context: BuildContext,
    source: Source,
    produce: Callable[[Path], None],
    options: Mapping[str, object] | None = None,
) -> Exported:
    def read(directory: Path) -> tuple[ModelRecord, ArrayFile]:
        names = tuple(read_json(directory / "example.json"))
        return read_model(directory), ArrayFile(path=directory / "example", names=names, count=1)

    step = Step(
        name="export",
        inputs=(source.sha256,),
        options=options or {},
        packages=EXPORT_PACKAGES,
        produce=produce,
        read=read,
        quick=source.spec.kind == "onnx",
    )
    done = run(context.store, step)
    record, example = done.value
    for warning in record.details.get("warnings", ()):
        context.progress.note(warning)
    record = replace(record, task=declared(record.task, context.options.task))
    return Exported(record=record, example=example, step=done.record(record.model.sha256, record.notes))


def _copy(source: Path, out: Path) -> None:
    for file in source.iterdir():
        shutil.copyfile(file, out / file.name)


def optimize(
    context: BuildContext, model: OnnxModel, example: Mapping[str, Array]
) -> tuple[OnnxModel, StepRecord]:
    """Simplify, then edgekit's own passes."""
    step = Step(
        name="optimize",
        inputs=(model.sha256,),
        packages=PASS_PACKAGES,
        produce=lambda out: work(context).optimize(model, example, out),
        read=read_model,
        quick=True,
    )
    return _model(context, step)


def in_float32(
    context: BuildContext, model: OnnxModel, *, keep: str = ""
) -> tuple[OnnxModel, StepRecord | None]:
    """What is quantized, or made float16 or bfloat16 (``keep``), of a source that computes in another float.

    Others pass through.
    """
    step = Step(
        name="in-float32",
        inputs=(model.sha256,),
        options={"keep": keep},
        packages=("onnx", "onnx-ir", "numpy"),
        produce=lambda out: work(context).in_float32(model, keep, out),
        read=lambda directory: read_model(directory) if (directory / MODEL_RECORD).is_file() else None,
        quick=True,
    )
    done = run(context.store, step)
    if done.value is None:
        return model, None
    return done.value.model, done.record(done.value.model.sha256, done.value.notes)


def fix_shapes(
    context: BuildContext, model: OnnxModel, example: Mapping[str, Array]
) -> tuple[OnnxModel, StepRecord | None]:
    """Dynamic axes set to the example's sizes; a static model passes through."""
    if all(spec.is_static for spec in model.inputs):
        return model, None
    shapes = {name: tuple(array.shape) for name, array in example.items()}
    step = Step(
        name="fix-shapes",
        inputs=(model.sha256,),
        options={"shapes": {name: list(shape) for name, shape in shapes.items()}},
        packages=PASS_PACKAGES,
        produce=lambda out: work(context).fix_shapes(model, shapes, out),
        read=read_model,
        quick=True,
    )
    return _model(context, step)


def fold_preprocessing(
    context: BuildContext, model: OnnxModel, pixels: Pixels
) -> tuple[OnnxModel, StepRecord]:
    """The preprocessing contract in front of the graph."""
    step = Step(
        name="fold-preprocessing",
        inputs=(model.sha256,),
        options=to_builtins(pixels),
        packages=("onnx", "onnx-ir", "numpy"),
        produce=lambda out: work(context).fold_preprocessing(model, pixels, out),
        read=read_model,
        quick=True,
    )
    return _model(context, step)


def check(context: BuildContext, model: OnnxModel, target: Target, options: Mapping[str, Option]) -> None:
    """Raise what the backend can say of ``model`` before it is quantized; backends that cannot say nothing."""
    backend = plugins.backend(target.backend)
    if not isinstance(backend, Checks):
        return
    step = Step(
        name="check",
        inputs=(model.sha256,),
        options={"target": to_builtins(target), "options": dict(options)},
        packages=("onnx", "onnx-ir"),
        produce=lambda _: backend.check(model, target, options),
        read=lambda _: None,
        quick=True,
    )
    run(context.store, step)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Statistics of every activation over the calibration samples, in one file."""

    file: Path
    sha256: str
    samples: SampleSet
    step: StepRecord


def calibrate(context: BuildContext, model: OnnxModel, samples: SampleSet) -> Calibrated:
    """One pass over the calibration samples, for all targets and all methods."""
    step = Step(
        name="calibrate",
        inputs=(model.sha256, samples.fingerprint),
        packages=("onnxruntime", "numpy"),
        produce=lambda out: work(context).calibrate(model, samples, out),
        read=lambda directory: min(directory.glob("calibration*")),
    )
    done = run(context.store, step)
    digest = sha256_file(done.value)
    return Calibrated(file=done.value, sha256=digest, samples=samples, step=done.record(digest))


def diagnose(
    context: BuildContext, calibrated: Calibrated, evaluation: SampleSet | None, exported: Exported
) -> tuple[Finding, ...]:
    """Are the calibration samples what the model will meet? Compared with the evaluation samples and with the example
    inputs."""
    example = exported.example_inputs()

    def produce(out: Path) -> None:
        if evaluation is None:
            work(context).diagnose(calibrated.samples, [example], None, calibrated.file, out)
        else:
            work(context).diagnose(calibrated.samples, evaluation, example, calibrated.file, out)

    step = Step(
        name="diagnose",
        inputs=(
            *(calibrated.sha256, calibrated.samples.fingerprint, sha256_file(exported.example.path)),
            evaluation.fingerprint if evaluation is not None else "",
        ),
        packages=("numpy",),
        produce=produce,
        read=rows_reader(Finding, "findings.json"),
    )
    return run(context.store, step).value


def coverage(
    context: BuildContext, model: OnnxModel, calibrated: Calibrated, evaluation: SampleSet
) -> tuple[Coverage, ...]:
    """The activations on ``evaluation`` that leave what ``calibrated`` saw, the worst first."""
    step = Step(
        name="coverage",
        inputs=(model.sha256, calibrated.sha256, evaluation.fingerprint),
        packages=("onnxruntime", "numpy"),
        produce=lambda out: work(context).coverage(model, calibrated.file, evaluation, out),
        read=rows_reader(Coverage, "coverage.json"),
    )
    return run(context.store, step).value


def half_range(context: BuildContext, model: OnnxModel, calibrated: Calibrated) -> HalfRange:
    """The largest activations of ``calibrated``'s samples against float16's range."""
    step = Step(
        name="half-range",
        inputs=(model.sha256, calibrated.sha256),
        packages=("onnx", "numpy"),
        produce=lambda out: work(context).half_range(model, calibrated.file, out),
        read=reader(HalfRange, "half.json"),
    )
    return run(context.store, step).value


def quantize(
    context: BuildContext,
    model: OnnxModel,
    target: Target,
    calibrated: Calibrated | None,
    options: QuantizeOptions,
) -> tuple[OnnxModel, StepRecord, QuantizeReport]:
    """Q/DQ as the target's scheme wants it. Also gives the quantizer's report."""
    calibration = (calibrated.file, calibrated.samples) if calibrated else None
    report = reader(QuantizeReport, "report.json")
    step = Step(
        name="quantize",
        inputs=(model.sha256, calibrated.sha256 if calibrated else ""),
        options={"scheme": to_builtins(target.scheme), **to_builtins(options)},
        packages=QUANTIZE_PACKAGES,
        produce=lambda out: work(context).quantize(model, calibration, target, options, out),
        read=lambda directory: (read_model(directory).model, report(directory)),
    )
    done = run(context.store, step)
    return done.value[0], done.record(done.value[0].sha256), done.value[1]


@dataclass(frozen=True, kw_only=True)
class LoweredFiles:
    """What the backend wrote, and where."""

    directory: Path
    lowered: Lowered
    step: StepRecord

    @property
    def modules(self) -> Mapping[str, str]:
        """The PyTorch module of each ONNX node that was lowered, by the node's name."""
        return dict(read_json(self.directory / "modules.json"))

    @property
    def sha256(self) -> str:
        """Identity of the files together."""
        return self.step.output_sha256

    @property
    def size(self) -> int:
        """Bytes of the files together."""
        return sum((self.directory / name).stat().st_size for name in self.lowered.files)


def lower(
    context: BuildContext, model: OnnxModel, target: Target, options: Mapping[str, Option]
) -> LoweredFiles:
    """ONNX to the runtime's own files."""
    backend = plugins.backend(target.backend)

    def produce(out: Path) -> None:
        with context.progress.task(f"lower to {target.name}"):
            lowered = backend.lower(model, target, options, out)
        write_json(lowered, out / "lowered.json")
        work(context).modules(model, out)

    step = Step(
        name="lower",
        inputs=(model.sha256,),
        options={"target": to_builtins(target), "options": dict(options)},
        packages=("onnx", "onnx-ir"),
        versions={target.backend: backend.available().version},
        produce=produce,
        read=reader(Lowered, "lowered.json"),
        quick=target.runs_on == "cpu",  # builders of engines time what they choose from
    )
    done = run(context.store, step)
    directory, lowered = done.result.directory, done.value
    digest = versions.digest(*(sha256_file(directory / name) for name in lowered.files))
    return LoweredFiles(directory=directory, lowered=lowered, step=done.record(digest, lowered.notes))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the source itself answers to samples: outputs by name, one row a sample, and their sha256."""

    outputs: ArrayFile
    sha256: str


def reference(context: BuildContext, source: Source, exported: Exported, samples: SampleSet) -> Reference:
    """The source's answers to ``samples``: a module's in PyTorch, an ONNX file's in ONNX Runtime."""

    def read(directory: Path) -> Reference:
        facts = read_json(directory / "outputs.json")
        names, count = tuple(facts["names"]), facts["count"]
        outputs = ArrayFile(path=directory / "outputs", names=names, count=count)
        return Reference(outputs=outputs, sha256=facts["sha256"])

    step = Step(
        name="reference",
        inputs=(source.sha256, exported.model.sha256, samples.fingerprint),
        packages=("torch", "onnxruntime"),
        versions={k: str(v) for k, v in versions.machine().items()},
        produce=lambda out: work(context).reference(source, exported.record, samples, out),
        read=read,
    )
    return run(context.store, step).value


FLOAT64_SAMPLES = 8


def float64(context: BuildContext, source: Source, exported: Exported, samples: SampleSet) -> ArrayFile:
    """The source's answers in float64 to the first :data:`FLOAT64_SAMPLES`; fewer or none where it has none."""

    def read(directory: Path) -> ArrayFile:
        facts = read_json(directory / "outputs.json")
        return ArrayFile(path=directory / "outputs", names=tuple(facts["names"]), count=facts["count"])

    step = Step(
        name="float64",
        inputs=(source.sha256, exported.model.sha256, samples.fingerprint),
        options={"samples": FLOAT64_SAMPLES},
        packages=("torch",),
        versions={k: str(v) for k, v in versions.machine().items()},
        produce=lambda out: work(context).float64(
            source, exported.record, samples.first(FLOAT64_SAMPLES), out
        ),
        read=read,
    )
    return run(context.store, step).value


def _model(context: BuildContext, step: Step[ModelRecord]) -> tuple[OnnxModel, StepRecord]:
    done = run(context.store, step)
    model = done.value.model
    return model, done.record(model.sha256, done.value.notes)


def work(context: BuildContext) -> Work:
    """What fills the directories of the steps."""
    from edgekit.pipeline.work import Work  # torch, onnx and the runtimes come with it

    return Work(context.progress, context.shared)
