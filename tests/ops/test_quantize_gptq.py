"""INT4 weights rounded with regard to their inputs (GPTQ): the algorithm, and what it gives on the runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from quantize_support import Items, exported, snr, target
from torch import nn

from edgekit.core import targets
from edgekit.errors import UsageError
from edgekit.graph import io
from edgekit.quantize import rounding
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import OnnxModel


def correlated(rows: int, width: int) -> np.ndarray:
    """Activations of which a few directions hold most, as in trained networks."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((width, width)) * np.geomspace(1.0, 0.01, width)[:, None]
    return (rng.standard_normal((rows, width)) @ directions).astype(np.float32)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(64, 192), nn.Linear(192, 64), nn.Linear(64, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.down(nn.functional.gelu(self.up(x))))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, Items]:
    torch.manual_seed(0)
    tokens = correlated(32 * 16, 64).reshape(32, 1, 16, 64)
    folder = tmp_path_factory.mktemp("feed-forward")
    model = exported(FeedForward(), {"x": torch.from_numpy(tokens[0])}, folder)
    return model, Items([{"x": x} for x in tokens])


def run(path: Path, items: Items) -> np.ndarray:
    session = io.session(path)
    return np.concatenate([session.run(None, dict(s.inputs))[0] for s in items])


def one_by_one(weight: np.ndarray, moment: np.ndarray, scale: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Optimal brain surgeon, spelled out: after each weight H⁻¹ of those that are left is formed anew."""
    damped = moment + 0.01 * np.diag(moment).mean() * np.eye(len(moment))
    left, found = weight.astype(np.float64).copy(), np.zeros_like(weight, np.int64)
    for place, k in enumerate(order):
        rest = order[place:]
        inverse = np.linalg.inv(damped[np.ix_(rest, rest)])
        found[:, k] = np.clip(np.rint(left[:, k] / scale[:, k]), -8, 7)
        error = (left[:, k] - found[:, k] * scale[:, k]) / inverse[0, 0]
        left[:, rest[1:]] -= np.outer(error, inverse[0, 1:])
    return found


def test_batches_compute_what_one_weight_after_the_other_would() -> None:
    x = correlated(600, 160)  # more inputs than are carried on together
    moment = x.T.astype(np.float64) @ x
    weight = np.random.default_rng(1).standard_normal((5, 160)).astype(np.float32)
    scale = np.repeat(np.abs(weight).reshape(5, 5, 32).max(2) / 7, 32, axis=1).astype(np.float32)
    got = rounding.compensated(weight, moment, scale, (-8, 7))
    orders = np.argsort(-np.diag(moment), kind="stable"), np.arange(160)
    slow = np.stack([one_by_one(weight, moment, scale, order) for order in orders])
    errors = np.square((slow * scale - weight) @ x.T).sum(axis=2)
    expected = slow[errors.argmin(axis=0), np.arange(5)]
    assert (got != expected).mean() < 0.01  # ties may fall either way
    nearest = np.clip(np.rint(weight / scale), -8, 7)
    assert errors.min(axis=0).sum() < 0.5 * np.square((nearest * scale - weight) @ x.T).sum()


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    x = correlated(100, 64)
    x[:, 10:40] = 0.0
    weight = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    scale = np.full((4, 1), 0.5, np.float32)
    got = rounding.compensated(weight, x.T.astype(np.float64) @ x, scale, (-8, 7))
    np.testing.assert_array_equal(got[:, 10:40], np.clip(np.rint(weight / 0.5), -8, 7)[:, 10:40])


@pytest.mark.parametrize("block", [32, 64])
def test_outputs_are_nearer_than_rounded_to_nearest(network, block: int, tmp_path: Path) -> None:
    model, items = network
    reference, figures, sizes = run(model.path, items), {}, {}
    for corrections in ((), ("gptq",)):
        options = QuantizeOptions(corrections=corrections, block_size=block)
        made, report = quantize(
            FloatModel(model, None, items), target("int4-weights"), options, tmp_path / "q.onnx"
        )
        figures[corrections], sizes[corrections] = (
            snr(reference, run(made.path, items)),
            made.path.stat().st_size,
        )
        assert report.corrections == corrections
    assert figures["gptq",] > figures[()] + 3
    assert sizes["gptq",] == sizes[()]
    assert any("gptq rounded the weights of 3 products" in n for n in report.notes)


def test_memory_bounds_how_many_layers_are_gathered_at_once(network, tmp_path: Path, monkeypatch) -> None:
    model, items = network
    made = []
    for room in (1 << 26, 1):
        monkeypatch.setattr(rounding, "_ROOM", room)
        out = tmp_path / f"{room}.onnx"
        made.append(
            quantize(FloatModel(model, None, items), target("int4-weights"), QuantizeOptions(), out)[0].sha256
        )
    assert made[0] == made[1]


def test_products_of_constants_are_left_to_nearest(tmp_path: Path) -> None:
    """Learned queries times their projection: nothing to gather inputs of."""
    rng = np.random.default_rng(0)
    constants = {n: rng.standard_normal((64, 64)).astype(np.float32) for n in ("queries", "project", "read")}
    nodes = [
        onnx.helper.make_node("MatMul", ["queries", "project"], ["q"]),
        onnx.helper.make_node("MatMul", ["x", "read"], ["k"]),
        onnx.helper.make_node("Add", ["q", "k"], ["y"]),
    ]
    ends = [[onnx.helper.make_tensor_value_info(n, 1, [64, 64])] for n in "xy"]
    weights = [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", *ends, weights),
        opset_imports=[onnx.helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.save(proto, tmp_path / "m.onnx")
    items = Items([{"x": rng.standard_normal((64, 64)).astype(np.float32)} for _ in range(4)])
    model = io.describe(tmp_path / "m.onnx")
    _, report = quantize(
        FloatModel(model, None, items), target("int4-weights"), QuantizeOptions(), tmp_path / "q.onnx"
    )
    assert any("gptq rounded the weights of 1 products" in n for n in report.notes)


def test_it_is_standard_where_there_are_samples(network, tmp_path: Path) -> None:
    model, items = network
    row = target("int4-weights")
    _, report = quantize(FloatModel(model, None, items), row, QuantizeOptions(), tmp_path / "q.onnx")
    assert report.corrections == ("gptq",)
    _, report = quantize(FloatModel(model), row, QuantizeOptions(), tmp_path / "q.onnx")
    assert report.corrections == ()
    with pytest.raises(UsageError, match="gptq"):
        quantize(FloatModel(model), row, QuantizeOptions(corrections=("gptq",)), tmp_path / "q.onnx")


def test_auto_measures_and_says_so(network, tmp_path: Path) -> None:
    model, items = network
    options = QuantizeOptions(corrections=("auto",))
    _, report = quantize(FloatModel(model, None, items), target("int4-weights"), options, tmp_path / "q.onnx")
    assert report.corrections == ("gptq",)
    assert any("correction gptq" in n and "kept" in n for n in report.notes)
    _, report = quantize(FloatModel(model, None, items), target("int8-weights"), options, tmp_path / "q.onnx")
    assert report.corrections == ()


def test_what_does_not_suit_a_scheme_is_left_out_and_said(network, tmp_path: Path) -> None:
    model, items = network
    calibration = calibrate(model, items, out=tmp_path / "calibration")
    options = QuantizeOptions(method="minmax", corrections=("bias", "gptq"))
    _, report = quantize(FloatModel(model, calibration, items), target("ort"), options, tmp_path / "q.onnx")
    assert report.corrections == ("bias",)
    assert any("gptq is not for int8 weights" in n for n in report.notes)


class Dead(nn.Module):
    """A convolution one of whose channels has almost no weights, and a bias that matters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        with torch.no_grad():
            self.conv.weight[2] *= 1e-9
            self.conv.bias[2] = 3.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("per_channel", [True, False])
def test_rounded_int8_weights_leave_room_for_biases(per_channel: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 1, 3, 10, 10)
    model = exported(Dead(), {"x": inputs[0]}, tmp_path)
    items = Items([{"x": x.numpy()} for x in inputs])
    calibration = calibrate(model, items, out=tmp_path / "calibration")
    row = target("tflite", per_channel=per_channel)
    options = QuantizeOptions(method="minmax", corrections=("rounding",))
    made, _ = quantize(FloatModel(model, calibration, items), row, options, tmp_path / "q.onnx")
    assert snr(run(model.path, items), run(made.path, items)) > 25
    scales = [i for i in onnx.load(made.path).graph.initializer if i.name.startswith("conv.weight_scale")]
    assert [list(s.dims) for s in scales] == ([[8]] if per_channel else [[]])


def test_in_litert(network, tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    from edgekit.backends import tflite

    model, items = network
    row = targets.find("tflite-int4-weights")
    reference, figures = run(model.path, items), []
    for i, samples in enumerate((None, items)):
        made, _ = quantize(FloatModel(model, None, samples), row, QuantizeOptions(), tmp_path / f"{i}.onnx")
        (tmp_path / str(i)).mkdir()
        lowered = tflite.lower(made, row, {o.name: o.default for o in row.options}, tmp_path / str(i))
        lite = interpreter.Interpreter(str(tmp_path / str(i) / lowered.files[0]), num_threads=1)
        runner = lite.get_signature_runner()
        got = np.concatenate([next(iter(runner(**s.inputs).values())).copy() for s in items])
        figures.append(snr(reference, got))
    assert figures[1] > figures[0] + 2
