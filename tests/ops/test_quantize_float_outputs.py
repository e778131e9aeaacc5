"""INT8 in LiteRT with float outputs: what an app reads keeps its own steps, whatever is concatenated or offset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
torch = pytest.importorskip("torch")

from ai_edge_litert.interpreter import Interpreter  # noqa: E402

from edgekit.artifact.parity import compare  # noqa: E402
from edgekit.backends.tflite.compiler import compile_onnx  # noqa: E402
from edgekit.core import targets  # noqa: E402
from edgekit.graph import export, io, passes  # noqa: E402
from edgekit.load.samples import from_iterable  # noqa: E402
from edgekit.quantize.calibrate.collect import calibrate  # noqa: E402
from edgekit.quantize.driver import quantize  # noqa: E402
from edgekit.quantize.float_model import FloatModel  # noqa: E402
from edgekit.quantize.options import QuantizeOptions  # noqa: E402
from edgekit.types import Parity, TorchModel  # noqa: E402


class Detector(torch.nn.Module):
    """Boxes in pixels and scores from 0 to 1 in one tensor, as YOLO's heads leave their exporters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, 2, 1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 24, 3, 2, 1),
            torch.nn.ReLU(),
        )
        self.boxes, self.scores = torch.nn.Conv2d(24, 4, 1), torch.nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x)
        boxes = torch.sigmoid(self.boxes(features).flatten(2)) * 640.0
        return torch.cat([boxes, torch.sigmoid(3 * self.scores(features).flatten(2))], 1)


class Weather(torch.nn.Module):
    """Temperature in kelvin, pressure in pascal, humidity as a share: far from zero, and units apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
        self.register_buffer("scale", torch.tensor([5.0, 500.0, 0.2]))
        self.register_buffer("offset", torch.tensor([288.0, 101325.0, 0.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * self.scale + self.offset


class Barometer(torch.nn.Module):
    """The offset is the last layer's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
        with torch.no_grad():
            self.layers[2].bias.fill_(1013.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def parity_in_litert(module: torch.nn.Module, shape: tuple[int, ...], folder: Path) -> Parity:
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5)
    source = TorchModel(module=module.eval(), example_inputs={"x": torch.randn(shape)})
    model = passes.optimize(export.export(source, folder / "raw.onnx"), folder / "model.onnx")
    random = np.random.default_rng(0)
    inputs = [random.standard_normal(shape).astype(np.float32) for _ in range(48)]
    samples = from_iterable([{model.inputs[0].name: x} for x in inputs[:24]], model.inputs)
    floats = FloatModel(model, calibrate(model, samples, out=folder / "calibration"))
    made, _ = quantize(floats, targets.find("tflite-int8"), QuantizeOptions(), folder / "q.onnx")
    runner = Interpreter(
        model_content=bytes(compile_onnx(io.load(made.path)).data), num_threads=1
    ).get_signature_runner()
    session = io.session(model.path)
    name = model.outputs[0].name

    def answers(x: np.ndarray) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        feed = {model.inputs[0].name: x}
        return {name: session.run(None, feed)[0]}, {name: runner(**feed)[name].copy()}

    pairs = [answers(x) for x in inputs[24:]]
    return compare([r for r, _ in pairs], [o for _, o in pairs])


@pytest.mark.parametrize(
    ("module", "shape"),
    [(Detector, (1, 3, 32, 32)), (Weather, (1, 8)), (Barometer, (1, 8))],
    ids=["boxes and scores", "three units", "an offset"],
)
def test_every_channel_keeps_its_meaning(
    module: type[torch.nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    parity = parity_in_litert(module(), shape, tmp_path)
    assert parity.explained is not None
    assert parity.explained > 0.97, parity.explained_at
