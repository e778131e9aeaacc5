"""What is decided from a layer's inputs and weights together: smoothing, and ranges weighted by the weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from quantize_support import Items, exported, operators, snr, target
from torch import nn

from edgekit.errors import UsageError
from edgekit.graph import io
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.inputs import LayerInputs, LayerRanges, answers, probes
from edgekit.quantize.options import QuantizeOptions, QuantizeReport
from edgekit.quantize.sensitivity import sensitivity
from edgekit.quantize.smooth import smooth
from edgekit.types import OnnxModel, Sample


class Normalized(nn.Module):
    """A layer normalization some of whose channels are far larger than the rest, and what reads it.

    With ``residual`` the normalized tensor is read by an addition as well."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 96), nn.Linear(96, 64)
        with torch.no_grad():
            self.norm.weight[5::16] *= 60.0
            self.up.weight[:, 5::16] /= 60.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        y = self.down(torch.tanh(self.up(x)))
        return x + y if self.residual else y


def calibrated(module: nn.Module, inputs: torch.Tensor, folder: Path) -> tuple[OnnxModel, Items, Calibration]:
    folder.mkdir(exist_ok=True)
    items = Items([{"x": x[None].numpy()} for x in inputs])
    model = exported(module, {"x": inputs[:1]}, folder)
    return model, items, calibrate(model, items, out=folder / "calibration")


def run(path: Path, items: Items) -> np.ndarray:
    session = io.session(path, optimized=False)
    return np.concatenate([session.run(None, dict(s.inputs))[0] for s in items])


@pytest.mark.parametrize("residual", [False, True])
def test_outlier_channels_are_smoothed(residual: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, items, calibration = calibrated(Normalized(residual), torch.randn(24, 10, 64), tmp_path)
    ir_model = io.load(model.path)
    assert smooth(ir_model.graph, calibration, LayerInputs(model, probes(items))) >= 1
    smoothed = io.save(ir_model, tmp_path / "smooth.onnx")
    reference = run(model.path, items)
    assert snr(reference, run(smoothed.path, items)) > 100
    # A normalization that only the layer reads takes the factors; beside a residual a product is needed.
    assert operators(smoothed.path)["Mul"] - operators(model.path)["Mul"] == int(residual)
    figures = {}
    for corrections in ((), ("smooth",)):
        options = QuantizeOptions(method="minmax", corrections=corrections)
        made, report = quantize(
            FloatModel(model, calibration, items), target("ort"), options, tmp_path / "q.onnx"
        )
        figures[corrections] = snr(reference, run(made.path, items))
    # The residual carries the large channels, so that the noise of the layer is small beside it anyway.
    assert figures["smooth",] > figures[()] + (0.2 if residual else 6)
    assert any("smooth rescaled" in n for n in report.notes)


def test_balanced_channels_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Normalized(residual=False)
    nn.init.ones_(module.norm.weight)
    nn.init.normal_(module.up.weight)
    model, items, calibration = calibrated(module, torch.randn(16, 10, 64), tmp_path)
    assert smooth(io.load(model.path).graph, calibration, LayerInputs(model, probes(items))) == 0


class Convolved(nn.Module):
    """A classifier behind a convolution and pooling, with channels of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 64, 3), nn.Linear(64, 10)
        with torch.no_grad():
            self.conv.weight[5::16] *= 60.0
            self.head.weight[:, 5::16] /= 60.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.hardswish(self.conv(x)).mean((2, 3)))


def test_convolutional_networks_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, items, calibration = calibrated(Convolved(), torch.randn(16, 3, 12, 12), tmp_path)
    assert smooth(io.load(model.path).graph, calibration, LayerInputs(model, probes(items))) == 0


class Chain(nn.Sequential):
    """With a name for its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def test_a_product_takes_the_factors_of_the_next(tmp_path: Path) -> None:
    """Products one behind the other, a ReLU between them: the first one's weights and bias take the factors."""
    torch.manual_seed(0)
    module = Chain(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8))
    with torch.no_grad():
        for parameter in (module[0].weight, module[0].bias):
            parameter[5::16] *= 60.0
        module[2].weight[:, 5::16] /= 60.0
    model, items, calibration = calibrated(module, torch.randn(16, 10, 64), tmp_path)
    ir_model = io.load(model.path)
    assert smooth(ir_model.graph, calibration, LayerInputs(model, probes(items))) == 1
    smoothed = io.save(ir_model, tmp_path / "smooth.onnx")
    assert operators(smoothed.path) == operators(model.path)
    assert snr(run(model.path, items), run(smoothed.path, items)) > 100


def test_the_standard_corrections_do_without_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, items, calibration = calibrated(Normalized(residual=False), torch.randn(16, 10, 64), tmp_path)
    for samples, wanted in ((None, ("bias",)), (items, ("smooth", "bias"))):
        options = QuantizeOptions(method="minmax")
        _, report = quantize(
            FloatModel(model, calibration, samples), target("ort"), options, tmp_path / "q.onnx"
        )
        assert report.corrections == wanted
    with pytest.raises(UsageError, match="smooth"):
        quantize(
            FloatModel(model, calibration),
            target("ort"),
            QuantizeOptions(corrections=("smooth",)),
            tmp_path / "q.onnx",
        )


class Heavy(nn.Module):
    """Channel 0 of what the layer reads has rare outliers, and meets weights of the given size."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.read = nn.Linear(64, 32)
        with torch.no_grad():
            self.read.weight[:, 0] = size * torch.randn(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(torch.tanh(x) * x.abs())


def rare(count: int) -> torch.Tensor:
    x = torch.randn(count, 16, 64)
    x[::6, 3, 0] = 40.0
    return x


def weighted(module: nn.Module, folder: Path) -> tuple[float, float]:
    """Upper ends of the range of what the layer reads: by mse, and by what the layer makes of it."""
    torch.manual_seed(0)
    model, items, calibration = calibrated(module, rare(48), folder)
    ir_model = io.load(model.path)
    (product,) = [n for n in ir_model.graph if n.op_type in ("Gemm", "MatMul")]
    name = product.inputs[0].name
    ranges = LayerRanges(ir_model.graph, LayerInputs(model, probes(items)), calibration)
    found = ranges.range(name, bits=8, symmetric=False)
    assert found is not None
    return calibration.range(name, "mse")[1], found[1]


def test_ranges_regard_the_weights(tmp_path: Path) -> None:
    _, heavy = weighted(Heavy(3.0), tmp_path / "heavy")
    plain, light = weighted(Heavy(1e-4), tmp_path / "light")
    assert heavy > 35, "outliers that meet large weights are kept"
    assert light < 8 < plain, "outliers that meet none are clipped"


def test_weighted_ranges_serve_the_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, items, calibration = calibrated(Heavy(1e-4), rare(48), tmp_path)
    figures = {}
    for method in ("mse", "weighted-mse"):
        options = QuantizeOptions(method=method, corrections=())
        made, _ = quantize(FloatModel(model, calibration, items), target("ort"), options, tmp_path / "q.onnx")
        figures[method] = snr(run(model.path, items), run(made.path, items))
    assert figures["weighted-mse"] > figures["mse"] + 3


def test_weighted_ranges_need_samples(tmp_path: Path) -> None:
    model, _, calibration = calibrated(Heavy(1.0), rare(4), tmp_path)
    with pytest.raises(UsageError, match="weighted-mse"):
        quantize(
            FloatModel(model, calibration),
            target("ort"),
            QuantizeOptions(method="weighted-mse"),
            tmp_path / "q.onnx",
        )


def test_schemes_side_by_side_share_what_they_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal bytes to schemes one after the other with nothing shared, and each measurement made once."""
    model, items, calibration = calibrated(Heavy(1.0), rare(4), tmp_path)
    names = ("ort", "openvino", "tflite", "tensorrt")
    alone = {
        n: quantize(
            FloatModel(model, calibration, items), target(n), QuantizeOptions(), tmp_path / f"alone-{n}.onnx"
        )
        for n in names
    }
    sessions: list[Path] = []
    original = io.session
    monkeypatch.setattr(io, "session", lambda path, **how: sessions.append(path) or original(path, **how))
    floats = FloatModel(model, calibration, items)

    def one(name: str) -> tuple[OnnxModel, QuantizeReport]:
        return quantize(floats, target(name), QuantizeOptions(), tmp_path / f"{name}.onnx")

    with ThreadPoolExecutor(len(names)) as pool:
        together = dict(zip(names, pool.map(one, names), strict=True))
    for name in names:
        assert together[name][0].path.read_bytes() == alone[name][0].path.read_bytes()
        assert together[name][1] == alone[name][1]
    of_float = [p for p in sessions if p.name == model.path.name]
    assert len(of_float) <= 3  # the reference, smoothing, weighted ranges


def test_layers_are_ranked_with_ranges_that_need_samples(tmp_path: Path) -> None:
    model, items, calibration = calibrated(Heavy(1.0), rare(4), tmp_path)
    options = QuantizeOptions(method="weighted-mse", corrections=())
    assert sensitivity(FloatModel(model, calibration, items), target("ort"), options, tmp_path)


def test_what_is_measured_does_not_saturate(tmp_path):
    """On x86 without VNNI the kernel for integers adds 255 x 127 twice in 16 bits."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "low"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "low"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "step", "zero"], ["e"]),
        helper.make_node("MatMul", ["d", "e"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "large", "low"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "large", "low"], ["y"]),
    ]
    constants = {
        "step": np.float32(1), "low": np.uint8(0), "zero": np.int8(0), "large": np.float32(8 * 255 * 127 / 250),
        "w": np.full((8, 4), 127, np.int8),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (outputs,) = answers(path, [Sample(inputs={"x": np.full((1, 8), 255, np.float32)})])
    np.testing.assert_allclose(outputs["y"], 8 * 255 * 127, rtol=1e-5)
