"""The stages of a build, each behind the cache. :mod:`edgekit.pipeline.build` calls them in order.

A stage is a key (name, inputs by sha256, options, versions of what runs it) and a function that fills a
directory. Heavy libraries are imported inside these functions only: when every stage is cached, none is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact.manifest import StepRecord
from edgekit.core import plugins, versions
from edgekit.core.config import Options
from edgekit.core.progress import Progress
from edgekit.core.store import Key, StepResult, Store, scratch
from edgekit.core.structure import structure, to_builtins
from edgekit.devices.arrays import ArrayFile, write_arrays
from edgekit.devices.catalogue import LOCAL
from edgekit.errors import DataError
from edgekit.graph.records import ModelRecord, read_json, read_model, write_json, write_model
from edgekit.load.data import SampleSet, unit_example
from edgekit.load.source import Source
from edgekit.pipeline.pixels import Pixels
from edgekit.quantize.options import QuantizeOptions, QuantizeReport
from edgekit.types import Checks, Device, Lowered, OnnxModel, Option, Target, TorchModel, sha256_file

if TYPE_CHECKING:
    from edgekit.devices.site import Site
    from edgekit.types import Array

EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir")
PASS_PACKAGES = ("onnx", "onnx-ir", "onnxsim", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What every stage needs: the cache, the user's options, where progress is shown, and where artifacts are
    run (``None``: here)."""

    store: Store
    options: Options
    progress: Progress
    site: Site | None = None

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
    """Source to ONNX; an ONNX source is taken in as it is.

    A module in memory is exported every time: nothing but its export tells what its Python code computes.
    """
    packages = versions.of(*EXPORT_PACKAGES, "onnxruntime")
    if not source.in_memory:
        key = Key(name="export", inputs=(source.sha256,), options={}, versions=packages)
        return _read_export(_run(context, key, lambda out: _write_export(context, source, out)))
    with scratch(context.store.root / "steps" / "export") as fresh:
        _write_export(context, source, fresh)
        source.identify(read_model(fresh).model.sha256)
        key = Key(name="export", inputs=(source.sha256,), options={}, versions=packages)
        return _read_export(_run(context, key, lambda out: _copy(fresh, out)))


def _write_export(context: BuildContext, source: Source, out: Path) -> None:
    with context.progress.task(f"load {source.spec.text}"):
        model = source.load()
    with context.progress.task("export to ONNX"):
        if isinstance(model, OnnxModel):
            record, example = _taken_in(model, out / "model.onnx", source)
        else:
            record, example = _exported(model, out / "model.onnx")
    write_model(record, out)
    stored = write_arrays(out / "example", [example])
    write_json(stored.names, out / "example.json")


def _read_export(result: StepResult) -> Exported:
    record = read_model(result.directory)
    step = _step(result, output=record.model.sha256, notes=record.notes)
    names = tuple(read_json(result.directory / "example.json"))
    example = ArrayFile(path=result.directory / "example", names=names, count=1)
    return Exported(record=record, example=example, step=step)


def _copy(source: Path, out: Path) -> None:
    for file in source.iterdir():
        shutil.copyfile(file, out / file.name)


def _exported(model: TorchModel, out: Path) -> tuple[ModelRecord, dict[str, Array]]:
    from edgekit.graph.export import export_with_report

    written, report = export_with_report(model, out)
    record = ModelRecord(
        model=written,
        task=model.task,
        labels=model.labels,
        preprocessing=model.preprocessing,
        notes=report.notes,
        details=to_builtins(report),
    )
    return record, {name: tensor.detach().cpu().numpy() for name, tensor in model.example_inputs.items()}


def _taken_in(model: OnnxModel, out: Path, source: Source) -> tuple[ModelRecord, dict[str, Array]]:
    """An ONNX source: copied with its external data; the example is the first sample, else random."""
    from edgekit.graph import io
    from edgekit.load.samples import from_iterable

    written = io.save(io.load(model.path), out)
    try:
        first = [source.example()] if source.example else []
    except DataError:
        first = []
    if first:
        sample = next(iter(from_iterable(first, written.inputs, name="the first sample")))
        return ModelRecord(model=written), dict(sample.inputs)
    notes = tuple(f"{s.name}: dynamic axes of the example are 1" for s in written.inputs if not s.is_static)
    return ModelRecord(model=written, notes=notes), unit_example(written.inputs)


def optimize(
    context: BuildContext, model: OnnxModel, example: Mapping[str, Array]
) -> tuple[OnnxModel, StepRecord]:
    """Simplify, then edgekit's own passes."""

    def produce(out: Path) -> None:
        from edgekit.graph import passes

        with context.progress.task("optimize the graph"):
            optimized, report = passes.optimize_with_report(model, out / "model.onnx", example=example)
        write_model(ModelRecord(model=optimized, notes=report.notes, details=to_builtins(report)), out)

    key = Key(name="optimize", inputs=(model.sha256,), options={}, versions=versions.of(*PASS_PACKAGES))
    return _model_step(context, key, produce)


def fix_shapes(
    context: BuildContext, model: OnnxModel, example: Mapping[str, Array]
) -> tuple[OnnxModel, StepRecord | None]:
    """Dynamic axes set to the example's sizes; a static model passes through."""
    if all(spec.is_static for spec in model.inputs):
        return model, None
    shapes = {name: tuple(array.shape) for name, array in example.items()}

    def produce(out: Path) -> None:
        from edgekit.graph import passes

        write_model(ModelRecord(model=passes.fix_shapes(model, shapes, out / "model.onnx")), out)

    options = {"shapes": {name: list(shape) for name, shape in shapes.items()}}
    key = Key(
        name="fix-shapes", inputs=(model.sha256,), options=options, versions=versions.of(*PASS_PACKAGES)
    )
    return _model_step(context, key, produce)


def fold_preprocessing(
    context: BuildContext, model: OnnxModel, pixels: Pixels
) -> tuple[OnnxModel, StepRecord]:
    """The preprocessing contract in front of the graph."""

    def produce(out: Path) -> None:
        from edgekit.graph.passes.fold_preprocessing import fold_preprocessing as run

        folded, _ = run(model, pixels.contract, out / "model.onnx", dtype=pixels.dtype)
        write_model(ModelRecord(model=folded), out)

    key = Key(
        name="fold-preprocessing",
        inputs=(model.sha256,),
        options=to_builtins(pixels),
        versions=versions.of("onnx", "onnx-ir", "numpy"),
    )
    return _model_step(context, key, produce)


def check(context: BuildContext, model: OnnxModel, target: Target, options: Mapping[str, Option]) -> None:
    """Raise what the backend can say of ``model`` before it is quantized; backends that cannot say nothing."""
    backend = plugins.backend(target.backend)
    if not isinstance(backend, Checks):
        return

    def produce(out: Path) -> None:
        del out
        backend.check(model, target, options)

    key = Key(
        name="check",
        inputs=(model.sha256,),
        options={"target": to_builtins(target), "options": dict(options)},
        versions=versions.of("onnx", "onnx-ir"),
    )
    _run(context, key, produce)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Statistics of every activation over the calibration samples, in one file."""

    file: Path
    sha256: str
    samples: SampleSet
    step: StepRecord


def calibrate(context: BuildContext, model: OnnxModel, samples: SampleSet) -> Calibrated:
    """One pass over the calibration samples, for all targets and all methods."""

    def produce(out: Path) -> None:
        from edgekit.quantize.calibrate.collect import calibrate as run

        with context.progress.task("calibrate", total=len(samples)) as task:
            run(model, samples, out=out / "calibration", progress=lambda *_: task.advance())

    key = Key(
        name="calibrate",
        inputs=(model.sha256, samples.fingerprint),
        options={},
        versions=versions.of("onnxruntime", "numpy"),
    )
    result = _run(context, key, produce)
    file = next(p for p in sorted(result.directory.iterdir()) if p.name.startswith("calibration"))
    digest = sha256_file(file)
    return Calibrated(file=file, sha256=digest, samples=samples, step=_step(result, output=digest))


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """One finding of the calibration doctor (see :mod:`edgekit.quantize.calibrate.doctor`)."""

    code: str
    severity: str
    tensor: str
    message: str
    hint: str
    evidence: Mapping[str, float] = field(default_factory=dict)


def diagnose(
    context: BuildContext, calibrated: Calibrated, evaluation: SampleSet | None, exported: Exported
) -> tuple[Suspicion, ...]:
    """Are the calibration samples what the model will meet? Compared with the evaluation samples, else with
    the example inputs."""

    def produce(out: Path) -> None:
        from edgekit.quantize.calibrate import doctor
        from edgekit.quantize.calibrate.calibration import Calibration

        with context.progress.task("check the calibration samples"):
            known = evaluation if evaluation is not None else [exported.example_inputs()]
            findings = doctor.diagnose(
                calibrated.samples, reference=known, calibration=Calibration.load(calibrated.file)
            )
        write_json(findings, out / "findings.json")

    reference = evaluation.fingerprint if evaluation is not None else exported.model.sha256
    key = Key(
        name="diagnose",
        inputs=(calibrated.sha256, calibrated.samples.fingerprint, reference),
        options={},
        versions=versions.of("numpy"),
    )
    rows = read_json(_run(context, key, produce).directory / "findings.json")
    return tuple(structure(Suspicion, row, where="findings.json") for row in rows)


def quantize(
    context: BuildContext,
    model: OnnxModel,
    target: Target,
    calibrated: Calibrated | None,
    options: QuantizeOptions,
) -> tuple[OnnxModel, StepRecord, QuantizeReport]:
    """Q/DQ as the target's scheme wants it. Also gives the quantizer's report."""

    def produce(out: Path) -> None:
        from edgekit.quantize.calibrate.calibration import Calibration
        from edgekit.quantize.driver import quantize as run

        calibration = Calibration.load(calibrated.file) if calibrated else None
        samples = calibrated.samples if calibrated else None
        with context.progress.task(f"quantize for {target.name}"):
            quantized, report = run(model, calibration, target, options, out / "model.onnx", samples)
        write_model(ModelRecord(model=quantized), out)
        write_json(report, out / "report.json")

    key = Key(
        name="quantize",
        inputs=(model.sha256, calibrated.sha256 if calibrated else ""),
        options={"scheme": to_builtins(target.scheme), **to_builtins(options)},
        versions=versions.of("onnx", "onnx-ir", "onnxruntime", "numpy"),
    )
    result = _run(context, key, produce)
    record = read_model(result.directory)
    report = structure(QuantizeReport, read_json(result.directory / "report.json"), where="report.json")
    return record.model, _step(result, output=record.model.sha256), report


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


def lower(
    context: BuildContext, model: OnnxModel, target: Target, options: Mapping[str, Option]
) -> LoweredFiles:
    """ONNX to the runtime's own files."""
    backend = plugins.backend(target.backend)

    def produce(out: Path) -> None:
        with context.progress.task(f"lower to {target.name}"):
            lowered = backend.lower(model, target, options, out)
        write_json(lowered, out / "lowered.json")
        write_json(_modules(model), out / "modules.json")

    version = {target.backend: backend.available().version}
    key = Key(
        name="lower",
        inputs=(model.sha256,),
        options={"target": to_builtins(target), "options": dict(options)},
        versions=versions.of("onnx", "onnx-ir") | version,
    )
    result = _run(context, key, produce)
    lowered = structure(Lowered, read_json(result.directory / "lowered.json"), where="lowered.json")
    digest = versions.digest(*(sha256_file(result.directory / name) for name in lowered.files))
    step = _step(result, output=digest, notes=lowered.notes)
    return LoweredFiles(directory=result.directory, lowered=lowered, step=step)


_FUSED = ("Clip", "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "QuantizeLinear", "DequantizeLinear")


def _modules(model: OnnxModel) -> dict[str, str]:
    """The PyTorch module of each node, by the node's name and its outputs': what a profile of the runtime is read
    with. A runtime names a fused operator by its last output: an activation's belongs to what it is fused into."""
    import onnx

    from edgekit.graph import io

    found: dict[str, str] = {}
    for node in onnx.load(model.path, load_external_data=False).graph.node:
        path = io.module_path(node)
        if path and node.name:
            found[node.name] = path
        if not path and node.op_type in _FUSED:
            path = found.get(node.input[0], "")
        found |= {name: path for name in node.output if name and path}
    return found


def reference(
    context: BuildContext, source: Source, exported: Exported, samples: SampleSet
) -> tuple[ArrayFile, str]:
    """What the source itself answers to ``samples``: a module in PyTorch, an ONNX file in ONNX Runtime.

    Returns the outputs by name, one row a sample, and their sha256.
    """

    def produce(out: Path) -> None:
        from edgekit.pipeline.reference import answers

        with context.progress.task("reference outputs", total=len(samples)) as task:
            rows = answers(source.load(), exported.record, samples)
            stored = write_arrays(out / "outputs", _counted(rows, task.advance))
        facts = {"names": stored.names, "count": stored.count, "sha256": sha256_file(stored.path)}
        write_json(facts, out / "outputs.json")

    key = Key(
        name="reference",
        inputs=(source.sha256, exported.model.sha256, samples.fingerprint),
        options={},
        versions=versions.of("torch", "onnxruntime") | {k: str(v) for k, v in versions.machine().items()},
    )
    result = _run(context, key, produce)
    facts = read_json(result.directory / "outputs.json")
    outputs = ArrayFile(path=result.directory / "outputs", names=tuple(facts["names"]), count=facts["count"])
    return outputs, facts["sha256"]


def _counted(rows: Iterator[Any], advance: Any) -> Iterator[Any]:
    for row in rows:
        advance()
        yield row


def _model_step(context: BuildContext, key: Key, produce: Any) -> tuple[OnnxModel, StepRecord]:
    result = _run(context, key, produce)
    record = read_model(result.directory)
    return record.model, _step(result, output=record.model.sha256, notes=record.notes)


def _run(context: BuildContext, key: Key, produce: Any) -> StepResult:
    return context.store.step(key, produce)


def _step(result: StepResult, *, output: str, notes: tuple[str, ...] = ()) -> StepRecord:
    key = result.key
    return StepRecord(
        name=key.name,
        options=key.options,
        input_sha256=key.inputs[0] if key.inputs else "",
        output_sha256=output,
        versions=key.versions,
        seconds=round(result.seconds, 3),
        notes=notes,
    )
