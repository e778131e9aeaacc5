"""The work of the stages: each method fills one step's directory. Heavy: imported once a step has to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from edgekit.core.parallel import Once
from edgekit.core.progress import Progress, Task
from edgekit.core.structure import to_builtins
from edgekit.devices.arrays import write_arrays
from edgekit.graph import io, ops, passes
from edgekit.graph.edit import constant
from edgekit.graph.ops import Trait
from edgekit.graph.passes.fold_preprocessing import fold_preprocessing
from edgekit.graph.records import ModelRecord, write_json, write_model
from edgekit.graph.widen import in_float32
from edgekit.load.data import SampleSet, unit_example
from edgekit.load.shapes import refuse_open, resized
from edgekit.load.source import Source
from edgekit.load.states import States
from edgekit.pipeline.pixels import Pixels
from edgekit.pipeline.reference import answers, in_float64
from edgekit.pipeline.rolling import roll_out
from edgekit.quantize.calibrate import doctor
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.calibrate.coverage import coverage
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.half import half_range
from edgekit.quantize.options import QuantizeOptions
from edgekit.quantize.sensitivity import sensitivity
from edgekit.types import OnnxModel, Target, TorchModel, sha256_file

if TYPE_CHECKING:
    from edgekit.types import Array

MODEL = "model.onnx"
_FUSED = ops.named(Trait.ACTIVATION | Trait.QUANTIZES) - {"HardSwish", "Gelu", "Elu", "PRelu"}
"""Operators that runtimes fuse into the one before; the others have kernels of their own."""


class Work:
    """What the stages do, shown on ``progress``. In ``shared`` is what the stages of several targets have in common."""

    def __init__(self, progress: Progress, shared: Once) -> None:
        self._progress, self._shared = progress, shared

    def export(self, source: Source, out: Path) -> None:
        """The source as ONNX, and one set of example inputs."""
        with self._progress.task(f"load {source.spec.text}"):
            model = source.load()
        with self._progress.task("export to ONNX"):
            if isinstance(model, OnnxModel):
                record, example = _imported(model, source, out)
            else:
                record, example = _exported(model, out)
        write_model(record, out)
        stored = write_arrays(out / "example", [example])
        write_json(stored.names, out / "example.json")

    def optimize(self, model: OnnxModel, example: Mapping[str, Array], out: Path) -> None:
        """Simplify, then edgekit's own passes."""
        with self._progress.task("optimize the graph"):
            optimized, report = passes.optimize_with_report(model, out / MODEL, example=example)
        write_model(ModelRecord(model=optimized, notes=report.notes, details=to_builtins(report)), out)

    def in_float32(self, model: OnnxModel, keep: str, out: Path) -> None:
        """Products and convolutions of other floats in float32; nothing is written where there are none."""
        widened = in_float32(model, out / MODEL, keep=keep)
        if widened is not None:
            note = "written in float32 first: the source computes in another float"
            write_model(ModelRecord(model=widened, notes=(note,)), out)

    def fix_shapes(self, model: OnnxModel, shapes: Mapping[str, tuple[int, ...]], out: Path) -> None:
        """Dynamic dimensions set to ``shapes``."""
        write_model(ModelRecord(model=passes.fix_shapes(model, shapes, out / MODEL)), out)

    def fold_preprocessing(self, model: OnnxModel, pixels: Pixels, out: Path) -> None:
        """The preprocessing contract in front of the graph."""
        folded, _ = fold_preprocessing(model, pixels.contract, out / MODEL, dtype=pixels.dtype)
        write_model(ModelRecord(model=folded), out)

    def calibrate(self, model: OnnxModel, samples: SampleSet, out: Path) -> None:
        """Statistics of every activation."""
        with self._progress.task("calibrate", total=len(samples)) as task:
            calibrate(model, samples, out=out / "calibration", progress=lambda *_: task.advance())

    def diagnose(
        self,
        samples: SampleSet,
        reference: SampleSet | Sequence[Mapping[str, Array]],
        example: Mapping[str, Array] | None,
        calibration: Path,
        out: Path,
    ) -> None:
        """What is wrong with calibration samples."""
        with self._progress.task("check the calibration samples"):
            findings = doctor.diagnose(
                samples, reference=reference, example=example, calibration=Calibration.load(calibration)
            )
        write_json(findings, out / "findings.json")

    def coverage(self, model: OnnxModel, calibration: Path, samples: SampleSet, out: Path) -> None:
        """What evaluation samples hold that calibration never saw."""
        with self._progress.task("compare evaluation with the calibrated ranges"):
            write_json(coverage(model, samples, Calibration.load(calibration)), out / "coverage.json")

    def half_range(self, model: OnnxModel, calibration: Path, out: Path) -> None:
        """The largest activations, and which nodes they keep out of float16."""
        write_json(half_range(model, Calibration.load(calibration)), out / "half.json")

    def quantize(
        self,
        model: OnnxModel,
        calibration: tuple[Path, SampleSet] | None,
        target: Target,
        options: QuantizeOptions,
        out: Path,
    ) -> None:
        """Q/DQ, and the quantizer's report. ``calibration``: the statistics and the samples they are of."""
        with self._progress.task(f"quantize for {target.name}"):
            quantized, report = quantize(self._floats(model, calibration), target, options, out / MODEL)
        write_model(ModelRecord(model=quantized), out)
        write_json(report, out / "report.json")

    def sensitivity(
        self,
        model: OnnxModel,
        calibration: tuple[Path, SampleSet],
        target: Target,
        options: QuantizeOptions,
        out: Path,
    ) -> None:
        """What each layer costs alone in integers."""
        floats = self._floats(model, calibration)
        with self._progress.task("sensitivity of each layer") as task:
            layers = sensitivity(floats, target, options, out, progress=_counting(task))
        write_json(layers, out / "sensitivity.json")

    def _floats(self, model: OnnxModel, calibration: tuple[Path, SampleSet] | None) -> FloatModel:
        file, samples = calibration or (None, None)

        def make() -> FloatModel:
            return FloatModel(model, Calibration.load(file) if file else None, samples)

        return self._shared.get(("float model", model.sha256, file), make)

    def reference(self, source: Source, record: ModelRecord, samples: SampleSet, out: Path) -> None:
        """The source's own outputs, one row a sample."""
        with self._progress.task("reference outputs", total=len(samples)) as task:
            rows = _counted(answers(source.load(), record, samples), task)
            stored = write_arrays(out / "outputs", rows)
        facts = {"names": stored.names, "count": stored.count, "sha256": sha256_file(stored.path)}
        write_json(facts, out / "outputs.json")

    def rollout(
        self, source: Source, record: ModelRecord, samples: SampleSet, states: States, steps: int, out: Path
    ) -> None:
        """The source's outputs step by step, each with the states of the one before."""
        with self._progress.task("the source's rollout", total=steps) as task:
            facts = roll_out(source.load(), record, samples, states, steps, out / "outputs", task.advance)
        write_json(facts, out / "rollout.json")

    def float64(self, source: Source, record: ModelRecord, samples: SampleSet, out: Path) -> None:
        """The source's outputs in float64 for the first ``samples``, as far as it can compute them."""
        with self._progress.task("the source in float64"):
            stored = write_arrays(out / "outputs", in_float64(source.load(), record, samples), least=0)
        write_json({"names": stored.names, "count": stored.count}, out / "outputs.json")

    def modules(self, model: OnnxModel, out: Path) -> None:
        """The PyTorch module of each node, by the node's name and its outputs': what a profile of the runtime is read
        with. A runtime names a fused operator by its last output: an activation's belongs to what it is fused into."""
        paths: dict[str, str] = {}
        for node in onnx.load(model.path, load_external_data=False).graph.node:
            path = io.module_path(node)
            if path and node.name:
                paths[node.name] = path
            if not path and node.op_type in _FUSED:
                path = paths.get(node.input[0], "")
            paths |= {name: path for name in node.output if name and path}
        write_json(paths, out / "modules.json")


def _exported(model: TorchModel, out: Path) -> tuple[ModelRecord, dict[str, Array]]:
    from edgekit.graph.export import export_with_report  # PyTorch: an ONNX source does without

    written, report = export_with_report(model, out / MODEL)
    record = ModelRecord(
        model=written,
        task=model.task,
        labels=model.labels,
        preprocessing=model.preprocessing,
        postprocessing=model.postprocessing,
        notes=(*model.notes, *report.notes),
        details=to_builtins(report),
    )
    return record, {name: tensor.detach().cpu().numpy() for name, tensor in model.example_inputs.items()}


def _imported(model: OnnxModel, source: Source, out: Path) -> tuple[ModelRecord, dict[str, Array]]:
    """An ONNX source: copied with its external data. The example is the first sample, else random; a batch that was
    not given is 1, any other dynamic axis has to be."""
    graph = io.load(model.path)
    source.shapes.bound.into(graph, model, source.spec.text)
    io.correct_ranks(graph)
    io.name_axes(graph)
    io.lower_ir_version(graph)
    warnings = tuple(_random(graph))
    details = {"warnings": warnings} if warnings else {}
    written = io.save(graph, out / MODEL)
    what = source.spec.text
    shapes = source.shapes.resolved(written, what)
    if source.first_sample is not None:
        rows = source.first_sample.items()
        example = {name: resized(a, shapes[name]) if name in shapes else a for name, a in rows}
        return ModelRecord(model=written, notes=warnings, details=details), example
    refuse_open([s for s in written.inputs if s.name not in shapes], what)
    free = [s.name for s in written.inputs if not s.is_static and s.name not in shapes]
    notes = tuple(f"{name}: the batch of the example is 1" for name in free)
    record = ModelRecord(model=written, notes=(*warnings, *notes), details=details)
    return record, unit_example(written.inputs, shapes)


def _random(model: ir.Model) -> Iterator[str]:
    """What is to be known of a graph whose answers are others each time."""
    drawing = [n for n in model.graph.all_nodes() if ops.is_op(n, *ops.RANDOM) or _drops(n)]
    if drawing:
        first = ", ".join(f"{n.op_type} at {n.name or n.outputs[0].name}" for n in drawing[:3])
        more = f" and {len(drawing) - 3} more" if len(drawing) > 3 else ""
        yield (
            f"the graph draws random numbers ({first}{more}): the same inputs give other outputs each time. What "
            "agrees in comparisons has ONNX Runtime's generator and seed on both sides; other runtimes have their own"
        )


def _drops(node: ir.Node) -> bool:
    """A Dropout as in training."""
    mode = node.inputs[2] if ops.is_op(node, "Dropout") and len(node.inputs) > 2 else None
    known = constant(mode)
    return mode is not None and (known is None or bool(known.any()))


def _counted(rows: Iterator[dict[str, Array]], task: Task) -> Iterator[dict[str, Array]]:
    for row in rows:
        task.advance()
        yield row


def _counting(task: Task) -> Callable[[int, int], None]:
    def progressed(done: int, total: int) -> None:
        if done == 1:
            task.total(total)
        task.advance()

    return progressed
