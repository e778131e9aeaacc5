"""Fully connected layers that only float operators read: integer weights, floats out, in LiteRT."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
torch = pytest.importorskip("torch")

from ai_edge_litert.interpreter import Interpreter  # noqa: E402

from edgekit.backends.tflite.compiler import compile_onnx  # noqa: E402
from edgekit.backends.tflite.rules import RULES  # noqa: E402
from edgekit.core import targets  # noqa: E402
from edgekit.graph import export, io, passes  # noqa: E402
from edgekit.load.samples import from_iterable  # noqa: E402
from edgekit.quantize.calibrate.collect import calibrate  # noqa: E402
from edgekit.quantize.driver import quantize  # noqa: E402
from edgekit.quantize.float_model import FloatModel  # noqa: E402
from edgekit.quantize.options import QuantizeOptions  # noqa: E402
from edgekit.types import OnnxModel, TorchModel  # noqa: E402


class FeedForward(torch.nn.Module):
    """Two transformer feed-forward blocks; one channel of the residual stream is far larger than the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.ModuleList(torch.nn.Linear(32, 64) for _ in range(2))
        self.down = torch.nn.ModuleList(torch.nn.Linear(64, 32) for _ in range(2))
        self.norm = torch.nn.ModuleList(torch.nn.LayerNorm(32) for _ in range(2))
        self.first, self.head = torch.nn.LayerNorm(32), torch.nn.Linear(32, 5)
        with torch.no_grad():
            for down in self.down:
                down.weight[3] *= 30
                down.bias[3] += 20
            for norm in self.norm:  # what counts is in the other channels
                norm.weight[3] = 0.01

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.first(tokens)
        for up, down, norm in zip(self.up, self.down, self.norm, strict=True):
            tokens = norm(tokens + down(torch.nn.functional.gelu(up(tokens))))
        return self.head(tokens)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, list[np.ndarray]]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("feed-forward")
    source = TorchModel(module=FeedForward().eval(), example_inputs={"tokens": torch.randn(1, 6, 32)})
    model = passes.optimize(export.export(source, folder / "raw.onnx"), folder / "model.onnx")
    random = np.random.default_rng(0)
    return model, [random.standard_normal((1, 6, 32)).astype(np.float32) for _ in range(24)]


def in_litert(network: tuple[OnnxModel, list[np.ndarray]], folder: Path) -> tuple[float, list[str]]:
    """SNR against the float model in dB, and the file's operators."""
    model, inputs = network
    samples = from_iterable([{"tokens": x} for x in inputs], model.inputs)
    calibration = calibrate(model, samples, out=folder / "calibration")
    options = QuantizeOptions(method="minmax", corrections=())
    target = targets.find("tflite-int8")
    made, _ = quantize(FloatModel(model, calibration), target, options, folder / "int8.onnx")
    interpreter = Interpreter(model_content=bytes(compile_onnx(io.load(made.path)).data), num_threads=1)
    runner = interpreter.get_signature_runner()
    session = io.session(model.path)
    real = np.concatenate([session.run(None, {"tokens": x})[0] for x in inputs])
    got = np.concatenate([next(iter(runner(tokens=x).values())) for x in inputs])
    noise = np.square(real - got).sum()
    return float(10 * np.log10(np.square(real).sum() / noise)), [
        op["op_name"] for op in interpreter._get_ops_details()
    ]


def test_floats_out_keep_what_a_scale_for_the_whole_tensor_loses(
    network: tuple[OnnxModel, list[np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, operators = in_litert(network, tmp_path / "hybrid")
    assert kept > 30
    assert "FULLY_CONNECTED" in operators
    assert operators.count("DELEGATE") == 1
    table = RULES["tflite"]
    monkeypatch.setitem(RULES, "tflite", dataclasses.replace(table, hybrid=False))
    static, _ = in_litert(network, tmp_path / "static")
    assert kept > static + 6


def test_only_where_floats_read_it(network: tuple[OnnxModel, list[np.ndarray]], tmp_path: Path) -> None:
    """The head's result is the model's: float where outputs are float, static for whoever asks for integers outside."""
    model, inputs = network
    samples = from_iterable([{"tokens": x} for x in inputs], model.inputs)
    calibration = calibrate(model, samples, out=tmp_path / "calibration")
    target = targets.find("tflite-int8")
    options = QuantizeOptions(method="minmax", corrections=(), float_outputs=False)
    made, report = quantize(FloatModel(model, calibration), target, options, tmp_path / "q.onnx")
    nodes = list(io.load(made.path).graph)
    written = {n.inputs[0].name for n in nodes if n.op_type == "QuantizeLinear" and n.inputs[0] is not None}
    products = {io.module_path(n): n for n in nodes if n.op_type in ("Gemm", "MatMul")}
    assert all(products[n].outputs[0].name not in written for n in ("up.0", "down.0", "up.1", "down.1"))
    assert all(r.quantized for r in report.nodes if r.op in ("Gemm", "MatMul"))
    assert products["head"].outputs[0].name in written
    fine, _ = quantize(
        FloatModel(model, calibration), target, replace(options, float_outputs=True), tmp_path / "f.onnx"
    )
    ends = {v.name for v in io.load(fine.path).graph.outputs}
    writers = [
        n for n in io.load(fine.path).graph if n.op_type == "DequantizeLinear" and n.outputs[0].name in ends
    ]
    assert not writers
