"""A build without PyTorch, ONNX or a runtime: the stages' work and the run on the device are fakes, all else is real.

The model gives its input back. What a target's artifact gives is that plus ``Fake.noise[target]``.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from edgekit.core import plugins
from edgekit.core import targets as catalogue
from edgekit.core.config import Options
from edgekit.core.store import Store
from edgekit.devices.arrays import write_arrays
from edgekit.devices.execute import Ports
from edgekit.graph.records import ModelRecord, write_json, write_model
from edgekit.load.data import SampleSet
from edgekit.pipeline import stages, verify
from edgekit.pipeline.request import Request
from edgekit.pipeline.stages import BuildContext
from edgekit.quantize.options import NodeReport, QuantizeReport
from edgekit.types import (
    Availability,
    HalfRange,
    Lowered,
    OnnxModel,
    Placement,
    Precision,
    Scheme,
    SourceSpec,
    Target,
    TensorSpec,
    Tolerance,
    TorchModel,
    sha256_bytes,
)

X = TensorSpec(name="x", dtype="float32", shape=("batch", "width"))
Y = TensorSpec(name="y", dtype="float32", shape=("batch", "width"))
TOLERANCE = Tolerance(snr_db=30.0, metric_drop=0.0, placement=0.9)


def target(name, **changes):
    """A row; ``-int8`` ones are quantized."""
    backend, _, precision = name.partition("-")
    quantized = Scheme(activation="int8", weight="int8", bias="int32", rules="onnxruntime")
    row = Target(
        name=name,
        backend=backend,
        precision=Precision(precision),
        runs_on="cpu",
        file="model.bin",
        scheme=quantized if precision == "int8" else None,
        tolerance=TOLERANCE,
    )
    return replace(row, **changes)


def samples(count=4, labels=True):
    """Rows whose largest value names their class."""
    rows = [{"x": 4 * np.eye(4, dtype=np.float32)[[i % 4]]} for i in range(count)]
    return [(row, i % 4) for i, row in enumerate(rows)] if labels else rows


@dataclass
class Fake:
    """What the fakes do, by the name of the target, and what was done, in order."""

    noise: dict[str, float] = field(default_factory=dict)
    lower_error: dict[str, Exception] = field(default_factory=dict)
    run_error: dict[str, Exception] = field(default_factory=dict)
    check_error: dict[str, Exception] = field(default_factory=dict)
    available: dict[str, Availability] = field(default_factory=dict)
    share: dict[str, float | None] = field(default_factory=dict)
    nodes: tuple[NodeReport, ...] = ()
    findings: tuple = ()
    covered: tuple = ()
    half: HalfRange | None = None
    activations: tuple[str, ...] = ()
    kept: SampleSet | None = None
    done: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def task(self, label, total=None):
        yield SimpleNamespace(advance=lambda *_: None, total=lambda *_: None)

    def note(self, text):
        self.notes.append(text)


def model_in(folder, text):
    """A file that stands for an ONNX model."""
    (folder / "model.onnx").write_text(text)
    return OnnxModel(
        path=folder / "model.onnx", sha256=sha256_bytes(text.encode()), opset=20, inputs=(X,), outputs=(Y,)
    )


class Work:
    """In the place of :class:`edgekit.pipeline.work.Work`."""

    def __init__(self, fake):
        self.fake = fake

    def _model(self, step, model, out, text=""):
        self.fake.done.append(step)
        before = model.path.read_text() if model is not None else "source"
        write_model(ModelRecord(model=model_in(out, f"{before} {step}{text}"), task="classification"), out)

    def export(self, source, out):
        self._model("export", None, out, source.spec.text)
        stored = write_arrays(out / "example", [{"x": np.ones((1, 4), np.float32)}])
        write_json(stored.names, out / "example.json")

    def optimize(self, model, example, out):
        self._model("optimize", model, out)

    def in_float32(self, model, keep, out):
        """Its models compute in float32: nothing is written."""

    def fix_shapes(self, model, shapes, out):
        self._model("fix-shapes", model, out)
        static = tuple(replace(s, shape=(1, 4)) for s in (X, Y))
        fixed = replace(
            model_in(out, model.path.read_text() + " fixed"), inputs=static[:1], outputs=static[1:]
        )
        write_model(ModelRecord(model=fixed), out)

    def calibrate(self, model, samples, out):
        self.fake.done.append("calibrate")
        (out / "calibration.npz").write_bytes(b"".join(s.inputs["x"].tobytes() for s in samples))

    def diagnose(self, samples, reference, example, calibration, out):
        write_json(self.fake.findings, out / "findings.json")

    def coverage(self, model, calibration, samples, out):
        write_json(self.fake.covered, out / "coverage.json")

    def half_range(self, model, calibration, out):
        write_json(
            self.fake.half or HalfRange(samples=1, largest=1, tensor="", left=1, left_tensor=""),
            out / "half.json",
        )

    def quantize(self, model, calibration, target, options, out):
        if calibration is not None:  # as a model that is kept for the next scheme does
            self.fake.kept = self.fake.kept or calibration[1]
            assert list(self.fake.kept)
        self._model("quantize", model, out, f" {target.name} {options}")
        report = QuantizeReport(method=options.method, corrections=(), nodes=self.fake.nodes)
        report = replace(report, activations=self.fake.activations)
        write_json(report, out / "report.json")

    def reference(self, source, record, samples, out):
        self.fake.done.append("reference")
        stored = write_arrays(out / "outputs", ({"y": s.inputs["x"]} for s in samples))
        sha256 = sha256_bytes(stored.path.read_bytes())
        write_json({"names": stored.names, "count": stored.count, "sha256": sha256}, out / "outputs.json")

    def modules(self, model, out):
        write_json({"node": "net.layer"}, out / "modules.json")


class Backend:
    """In the place of every backend."""

    def __init__(self, name, fake):
        self.NAME, self.fake = name, fake

    def available(self):
        usable = Availability(installed=True, usable=True, version="1")
        return self.fake.available.get(self.NAME, usable)

    def check(self, model, target, options):
        if target.name in self.fake.check_error:
            raise self.fake.check_error[target.name]

    def lower(self, model, target, options, out):
        self.fake.done.append(f"lower {target.name}")
        if target.name in self.fake.lower_error:
            raise self.fake.lower_error[target.name]
        (out / target.file).write_text(f"{target.name}\n{model.path.read_text()}")
        return Lowered(
            files=(target.file,), inputs=(X,), outputs=(Y,), notes=("lowered",), details={"codes": [1]}
        )

    def placement(self, model, target, lowered, raw):
        return Placement(precision="int8", share=self.fake.share.get(target.name, 1.0), operators=2)


def install(monkeypatch, fake, rows):
    """Put the fakes in their places; ``rows`` are the catalogue."""
    table = {row.name: row for row in rows}
    runner = Path(__file__).parent / "fake_runner.py"
    monkeypatch.setattr(stages, "work", lambda context: Work(fake))
    monkeypatch.setattr(plugins, "backend", lambda name: Backend(name, fake))
    monkeypatch.setattr(plugins, "runner", lambda name: runner)
    monkeypatch.setattr(
        plugins, "info", lambda name: SimpleNamespace(title=name, requirement=f"{name}-wheel")
    )
    monkeypatch.setattr(catalogue, "known", lambda: table)

    @contextmanager
    def run_artifact(runnable, inputs, *, device, placement, on_progress):
        name = runnable.main.read_text().partition("\n")[0]
        fake.done.append(f"run {name}")
        if name in fake.run_error:
            raise fake.run_error[name]
        outputs = [{"y": row["x"][:, ::-1] * 0 + row["x"] + fake.noise.get(name, 0.0)} for row in inputs]
        if fake.noise.get(name) == float("inf"):
            outputs = [{"y": row["y"] * np.nan} for row in outputs]
        yield SimpleNamespace(
            outputs=outputs,
            placement={"raw": 1},
            versions={"runtime": "1"},
            ports=Ports(inputs={}, outputs={}),
        )

    monkeypatch.setattr(verify, "run_artifact", run_artifact)


def request(tmp_path, rows, calibration=None, evaluation=None, **options):
    """A request and its context, with a cache and a folder for artifacts in ``tmp_path``."""
    chosen = Options(out=tmp_path / "out", **options)
    model = TorchModel(module=object(), example_inputs={})
    asked = Request(
        source=SourceSpec(text="net", kind="module"),
        targets=tuple(rows),
        options=chosen,
        calibration=calibration,
        evaluation=evaluation,
        module=model,
    )
    return asked, BuildContext(store=Store(tmp_path / "cache"), options=chosen, progress=Fake())
