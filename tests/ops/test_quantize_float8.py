"""Float8 by Q/DQ: what is stored, how near it is to the float network, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from quantize_support import Items, Residual, exported, snr

from edgekit.backends.nvidia import tensorrt_rtx
from edgekit.core import targets
from edgekit.errors import UnsupportedError
from edgekit.quantize import params
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import OnnxModel

TARGET = targets.find("tensorrt-rtx-fp8")


class Attention(torch.nn.Module):
    """Products of two activations, too."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + self.out((q @ k.transpose(-1, -2) / 4).softmax(-1) @ v)


def images(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 3, 32, 32), dtype=np.float32)} for _ in range(count)]


def tokens(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 12, 16), dtype=np.float32)} for _ in range(count)]


def tensors(sample: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in sample.items()}


NETWORKS = {"convolutions": (Residual, images), "attention": (Attention, tokens)}


def made(name: str, folder: Path) -> tuple[OnnxModel, OnnxModel, list[dict[str, np.ndarray]]]:
    network, samples = NETWORKS[name]
    torch.manual_seed(0)
    inputs = samples()
    model = exported(network(), tensors(inputs[0]), folder)
    data = Items(inputs)
    calibration = calibrate(model, data, out=folder / "calibration")
    floats = FloatModel(model, calibration, data)
    result, _ = quantize(floats, TARGET, QuantizeOptions(), folder / "q.onnx")
    return model, result, inputs


def answers(model: OnnxModel, inputs: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """ONNX Runtime computes float8 Q/DQ in float32, where its optimizations are off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    return [session.run(None, i)[0] for i in inputs]


@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_in_float8_and_near_the_float_network(name: str, tmp_path: Path) -> None:
    model, result, inputs = made(name, tmp_path)
    graph = onnx.load(result.path).graph
    producers = {o: n for n in graph.node for o in n.output}
    products = [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert products
    for node in products:
        assert [producers[i].op_type for i in node.input[:2]] == ["DequantizeLinear"] * 2, node.name
    zeros = {i.name: i for i in graph.initializer}
    kinds = {zeros[n.input[2]].data_type for n in graph.node if n.op_type.endswith("quantizeLinear")}
    assert kinds == {TensorProto.FLOAT8E4M3FN}
    onnx.checker.check_model(onnx.load(result.path), full_check=True)
    right, found = answers(model, inputs), answers(result, inputs)
    assert all(
        20 < snr(r, f) < 45 for r, f in zip(right, found, strict=True)
    )  # 4 bits of precision, not more


def test_a_scale_brings_the_largest_number_to_the_types_largest(tmp_path: Path) -> None:
    model, result, _ = made("convolutions", tmp_path)
    floats = {i.name: numpy_helper.to_array(i) for i in onnx.load(model.path).graph.initializer}
    stored = onnx.load(result.path).graph
    arrays = {i.name: i for i in stored.initializer}
    name, weight = next((n, w) for n, w in floats.items() if w.ndim == 4)
    values = numpy_helper.to_array(arrays[f"{name}_quantized"]).astype(np.float32)
    scale = numpy_helper.to_array(arrays[f"{name}_scale"])
    assert np.array_equal(abs(values).max((1, 2, 3)), np.full(len(weight), 448.0))
    error = abs(values * scale[:, None, None, None] - weight)
    assert (error <= abs(weight) / 16 + scale[:, None, None, None] * 2.0**-10).all()  # half a step of 3 bits


def test_what_is_beyond_the_range_is_the_largest_number_and_not_nan() -> None:
    stored = params.float8_weight(np.asarray([[1.0, -3.0], [0.0, 0.0]], np.float32), axis=0)
    assert stored.values.dtype == ml_dtypes.float8_e4m3fn
    assert np.isfinite(stored.values.astype(np.float32)).all()
    assert stored.real == pytest.approx(np.asarray([[1.0, -3.0], [0.0, 0.0]]), rel=1 / 16)


@pytest.mark.skipif(not tensorrt_rtx.available().installed, reason="the extra tensorrt-rtx is not installed")
def test_an_engine_for_gpus_that_have_float8_is_built_here(tmp_path: Path) -> None:
    _, result, _ = made("attention", tmp_path)
    lowered = tensorrt_rtx.lower(result, TARGET, {"compute_capabilities": "SM89"}, tmp_path)
    assert (tmp_path / "model.engine").stat().st_size > 10_000
    assert "the graph asks for fp8 in 100.0% of the MACs" in lowered.notes
    with pytest.raises(UnsupportedError, match=r"needs compute capability 8\.9: SM86 has no fp8"):
        tensorrt_rtx.lower(result, TARGET, {"compute_capabilities": "8.6,8.9"}, tmp_path)


def test_a_network_that_was_trained_with_integers_is_refused(tmp_path: Path) -> None:
    model = exported(Residual(), tensors(images(1)[0]), tmp_path)
    trained = _with_trained_pair(model, tmp_path / "trained.onnx")
    data = Items(images())
    floats = FloatModel(trained, calibrate(trained, data, out=tmp_path / "calibration"), data)
    with pytest.raises(UnsupportedError, match="trained with integers"):
        quantize(floats, TARGET, QuantizeOptions(), tmp_path / "q.onnx")


def _with_trained_pair(model: OnnxModel, path: Path) -> OnnxModel:
    """An INT8 pair behind the input, as training with quantization leaves it."""
    proto = onnx.load(model.path)
    scale = numpy_helper.from_array(np.float32(0.05), "trained_scale")
    zero = numpy_helper.from_array(np.int8(0), "trained_zero")
    proto.graph.initializer.extend([scale, zero])
    for node in proto.graph.node:
        node.input[:] = ["x_trained" if i == "x" else i for i in node.input]
    names = ["trained_scale", "trained_zero"]
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["x", *names], ["x_stored"], name="x_q"),
        onnx.helper.make_node("DequantizeLinear", ["x_stored", *names], ["x_trained"], name="x_dq"),
    ]
    for node in reversed(pair):
        proto.graph.node.insert(0, node)
    onnx.save(proto, path)
    from edgekit.graph import io

    return io.describe(path)
