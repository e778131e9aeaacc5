"""What TFLite computed on integers where these only round: each kind in small, within 6 dB of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
torch = pytest.importorskip("torch")

from ai_edge_litert.interpreter import Interpreter  # noqa: E402
from quantize_support import WEIGHT_BITS, Items  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgekit.backends.tflite.compiler import compile_onnx  # noqa: E402
from edgekit.core import targets  # noqa: E402
from edgekit.graph import export, io, passes  # noqa: E402
from edgekit.quantize.calibrate.collect import calibrate  # noqa: E402
from edgekit.quantize.driver import quantize  # noqa: E402
from edgekit.quantize.float_model import FloatModel  # noqa: E402
from edgekit.quantize.options import Cause, QuantizeOptions, QuantizeReport  # noqa: E402
from edgekit.types import OnnxModel, TorchModel  # noqa: E402

BEHIND_DB = 6.0


class Stream(nn.Module):
    """A residual stream whose norms are only scales and shifts, and feed-forward layers beside it."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(24, 48) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(48, 24) for _ in range(layers))
        self.scale = nn.ParameterList(torch.rand(24) + 0.5 for _ in range(layers))
        self.query, self.key = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = x @ torch.eye(24)
        for up, down, scale in zip(self.up, self.down, self.scale, strict=True):
            x = (x + down(torch.relu(up(x)))) * scale + 0.1
        return torch.softmax(self.query(x) @ self.key(x).transpose(1, 2), -1) @ x


class Cells(nn.Module):
    """An LSTM cell in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(12, 20), nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 20)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


class Located(nn.Module):
    """An affine map out of an averaged feature map, and the image sampled with it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.theta = nn.Conv2d(2, 8, 3, 2, 1), nn.Linear(32, 6)
        with torch.no_grad():
            self.theta.bias.copy_(torch.tensor([1.0, 0.1, 0.0, -0.1, 1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        seen = F.avg_pool2d(torch.relu(self.conv(x)), 6)
        grid = F.affine_grid(self.theta(seen.flatten(1)).view(-1, 2, 3), [1, 2, 24, 24], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class Upscaled(nn.Module):
    """A detail out of convolutions on an interpolated base."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1))
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        base = F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=False)
        return base + 0.2 * F.pixel_shuffle(self.net(x), 2)


class LinearAttention(nn.Module):
    """Attention without a softmax: a numerator and its divisor out of one product, as EfficientViT has it."""

    def __init__(self, values: float = 1.0) -> None:
        super().__init__()
        self.mix, self.out = nn.Conv2d(8, 48, 1), nn.Conv2d(16, 8, 1)
        with torch.no_grad():
            self.mix.weight[32:] *= values
            self.mix.bias[32:] *= values

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).flatten(2).chunk(3, 1)
        v = F.pad(v, (0, 0, 0, 1), value=1.0)
        y = (v @ torch.relu(k).transpose(1, 2)) @ torch.relu(q - 0.3)
        return self.out((y[:, :-1] / (y[:, -1:] + 0.01)).view(1, 16, *x.shape[2:]))


class Levelled(nn.Module):
    """A series around its own level, predicted and put back there."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, x: Tensor) -> Tensor:
        level = x.sum(-1, keepdim=True) / 32
        spread = ((x - level) ** 2).sum(-1, keepdim=True).sqrt()
        return 0.1 * self.net((x - level) / spread) + level


class Scores(nn.Module):
    """Scores that are small most of the time, as detectors give them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heat = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.heat.bias.fill_(-6.0)

    def forward(self, x: Tensor) -> Tensor:
        heat = torch.sigmoid(self.heat(torch.relu(self.body(x))))
        return heat * (F.max_pool2d(heat, 3, 1, 1) == heat)


class Attended(nn.Module):
    """Attention over so many tokens that every weight is small."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).chunk(3, -1)
        return torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v


class Interactions(nn.Module):
    """Every feature against every other, as recommenders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(25, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.normalize(self.first(x), dim=-1) * torch.tensor([1.0, 9.0, 0.1, 1.0, 0.5])[:, None]
        return self.last((y @ y.transpose(1, 2)).flatten(1))


class Similar(nn.Module):
    """A similarity of tokens, large enough for integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 128)

    def forward(self, x: Tensor) -> Tensor:
        y = F.normalize(self.first(x), dim=-1)
        return torch.exp(y @ y.transpose(1, 2))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual stream": (Stream, (1, 10, 24)),
    "cells": (Cells, (1, 8, 12)),
    "coordinates": (Located, (1, 2, 24, 24)),
    "bilinear base": (lambda: Upscaled("bilinear"), (1, 3, 16, 16)),
    "bicubic base": (lambda: Upscaled("bicubic"), (1, 3, 16, 16)),
    "quotient": (LinearAttention, (1, 8, 8, 8)),
    "level of a series": (Levelled, (1, 4, 32)),
    "scores": (Scores, (1, 3, 32, 32)),
    "interactions": (Interactions, (1, 5, 16)),
    "attention": (Attended, (1, 64, 16)),
}


class Case:
    """A network with its samples, quantized for any target."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...], folder: Path) -> None:
        example = {"x": torch.randn(*shape)}
        source = TorchModel(module=module.eval(), example_inputs=example)
        self.model = passes.optimize(export.export(source, folder / "raw.onnx"), folder / "model.onnx")
        random = np.random.default_rng(0)
        (name,) = self.model.input_names
        self.inputs = [{name: random.standard_normal(shape).astype(np.float32)} for _ in range(8)]
        samples = Items(self.inputs)
        self.floats = FloatModel(
            self.model, calibrate(self.model, samples, out=folder / "calibration"), samples
        )
        self.folder = folder
        session = io.session(self.model.path)
        self.right = [session.run(None, i)[0] for i in self.inputs]

    def quantized(self, target: str, **options: object) -> tuple[OnnxModel, QuantizeReport]:
        asked = {"method": "minmax", "weight_bits": WEIGHT_BITS} | options
        settings = QuantizeOptions(**asked)  # type: ignore[arg-type]
        return quantize(self.floats, targets.find(target), settings, self.folder / f"{target}.onnx")

    def file(self, **options: object) -> Interpreter:
        made, _ = self.quantized("tflite-int8", **options)
        return Interpreter(model_content=bytes(compile_onnx(io.load(made.path)).data), num_threads=1)

    def operators(self, **options: object) -> list[tuple[str, type]]:
        """The file's operators in order, each with the type of what it gives."""
        file = self.file(**options)
        kinds = {d["index"]: d["dtype"] for d in file.get_tensor_details()}
        return [
            (o["op_name"], kinds[o["outputs"][0]])
            for o in file._get_ops_details()
            if o["op_name"] != "DELEGATE"
        ]

    def in_litert(self) -> float:
        runner = self.file().get_signature_runner()
        return self.snr([next(iter(runner(**i).values())) for i in self.inputs])

    def in_onnxruntime(self) -> float:
        session = io.session(self.quantized("ort-int8")[0].path)
        return self.snr([session.run(None, i)[0] for i in self.inputs])

    def snr(self, outputs: list[np.ndarray]) -> float:
        noise = sum(float(np.square(r - o).sum()) for r, o in zip(self.right, outputs, strict=True))
        return float(10 * np.log10(sum(float(np.square(r).sum()) for r in self.right) / noise))


@pytest.mark.parametrize("name", CASES)
def test_no_more_than_6_db_behind_onnx_runtime(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape = CASES[name]
    case = Case(build(), shape, tmp_path)
    ours, best = case.in_litert(), case.in_onnxruntime()
    assert ours > best - BEHIND_DB, f"{ours:.1f} dB, ONNX Runtime {best:.1f} dB"


@pytest.mark.parametrize(
    ("build", "shape", "quantized"), [(Interactions, (1, 5, 16), False), (Similar, (1, 256, 128), True)]
)
def test_a_product_of_activations_is_worth_the_way_into_integers_from_a_size_on(
    build: Callable[[], nn.Module], shape: tuple[int, ...], quantized: bool, tmp_path: Path
) -> None:
    """What stays float for that does not count against the placement."""
    torch.manual_seed(0)
    _, report = Case(build(), shape, tmp_path).quantized("tflite-int8")
    (product,) = (n for n in report.nodes if n.op == "MatMul" and not n.weights)
    assert product.quantized is quantized
    assert (product.cause is Cause.ISLAND) is not quantized
    assert report.kept_out("int8") == (0.0 if quantized else pytest.approx(1 - report.share))


def test_sums_of_keys_and_of_keys_times_values_do_not_share_eight_bits(tmp_path: Path) -> None:
    """They are made in one product, which the divided one is made of; ONNX Runtime has both in integers."""
    torch.manual_seed(0)
    case = Case(LinearAttention(values=0.2), (1, 8, 14, 14), tmp_path)
    assert case.in_litert() > case.in_onnxruntime() + 2
    _, report = case.quantized("tflite-int8")
    assert [n.cause for n in report.nodes if n.op == "MatMul" and not n.weights] == [Cause.ISLAND] * 2


def test_a_model_that_is_one_small_product_gets_it_in_integers(tmp_path: Path) -> None:
    """Nothing else is there that the target's name could promise."""

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x @ x.transpose(1, 2))

    _, report = Case(Product(), (1, 5, 16), tmp_path).quantized("tflite-int8")
    assert [n.quantized for n in report.nodes if n.op == "MatMul"] == [True]


def test_what_no_layer_reads_or_makes_stays_float(tmp_path: Path) -> None:
    class Pools(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return F.max_pool2d(x, 2), F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear"), 4)

    assert {name for name, _ in Case(Pools(), (1, 3, 8, 8), tmp_path).operators()}.isdisjoint({"QUANTIZE"})


class Excited(nn.Module):
    """Convolutions with a residual and a squeeze-excite whose layers are fully connected, then an average."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.squeeze, self.excite, self.head = nn.Linear(16, 4), nn.Linear(4, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        x = x + self.second(x * gate[..., None, None])
        return self.head(torch.relu(self.first.weight.mean() + x).mean((2, 3)))


def test_feature_maps_stay_on_integers(tmp_path: Path) -> None:
    """One way into integers and one out, just before the classifier, which gives floats."""
    torch.manual_seed(0)
    operators = Case(Excited(), (1, 3, 16, 16), tmp_path).operators()
    names = [name for name, _ in operators]
    assert [names.count(n) for n in ("QUANTIZE", "DEQUANTIZE")] == [1, 1]
    assert names.index("DEQUANTIZE") > max(i for i, n in enumerate(names) if n in ("ADD", "MUL", "LOGISTIC"))


def test_whoever_asks_for_integers_outside_gets_them_inside(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(Stream(), (1, 10, 24), tmp_path)
    _, floats = case.quantized("tflite-int8")
    _, integers = case.quantized("tflite-int8", float_outputs=False)
    additions = [[n.quantized for n in r.nodes if n.op == "Add"] for r in (floats, integers)]
    assert additions[1]
    assert all(additions[1])
    assert not any(additions[0])


@pytest.mark.parametrize(("largest", "kept"), [(1.0, np.int8), (40.0, np.float32)])
def test_two_layers_in_a_row_stay_on_integers_where_eight_bits_hold_them(
    largest: float, kept: type, tmp_path: Path
) -> None:
    """The second of a feed-forward block gives integers, which is quicker, unless a few of its channels are far
    larger than the rest."""
    torch.manual_seed(0)
    stream = Stream(layers=3)
    with torch.no_grad():
        for down in stream.down:
            down.weight[3] *= largest
    products = [
        kind for name, kind in Case(stream, (1, 10, 24), tmp_path).operators() if name == "FULLY_CONNECTED"
    ]
    assert products[2] is kept  # behind the one that makes the stream, and the first of the block


def test_an_average_has_steps_of_its_own(tmp_path: Path) -> None:
    """Finer than those of what is averaged, where the average goes on as integers."""

    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.avg_pool2d(torch.relu(self.first(x)), 8))

    torch.manual_seed(0)
    file = Case(Averaged(), (1, 3, 16, 16), tmp_path).file()
    steps = {d["index"]: d["quantization"][0] for d in file.get_tensor_details()}
    operators = [o for o in file._get_ops_details() if o["op_name"] != "DELEGATE"]
    (pool,) = (o for o in operators if o["op_name"] == "DEPTHWISE_CONV_2D")
    assert 0 < steps[pool["outputs"][0]] < 0.7 * steps[pool["inputs"][0]]
    assert [o["op_name"] for o in operators].count("QUANTIZE") == 1
