"""Calibration against numpy: what the runtime computes inside is what was there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from quantize_support import Items, attention, residual

from edgekit.errors import DataError, SourceError
from edgekit.graph import io
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.types import OnnxModel


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, Items]:
    return residual(tmp_path_factory.mktemp("residual"))


@pytest.fixture(scope="module")
def calibrated(network: tuple[OnnxModel, Items], tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrate(*network, out=tmp_path_factory.mktemp("c") / "calibration")


def activations(model: OnnxModel, names: list[str], items: Items) -> dict[str, np.ndarray]:
    """Every tensor asked for, over all samples, fetched the slow way."""
    proto = onnx.load(model.path)
    have = {o.name for o in proto.graph.output}
    inputs = {i.name for i in proto.graph.input}
    asked = [n for n in names if n not in inputs]
    proto.graph.output.extend(helper.make_tensor_value_info(n, 1, None) for n in asked if n not in have)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    runs = [session.run(asked, dict(s.inputs)) for s in items]
    found = {
        n: np.concatenate([r[i].reshape(-1, *r[i].shape[1:]) for r in runs]) for i, n in enumerate(asked)
    }
    return found | {n: np.concatenate([s.inputs[n] for s in items]) for n in names if n in inputs}


def test_extremes_means_and_histograms_are_the_datas(network, calibrated: Calibration) -> None:
    model, items = network
    truth = activations(model, list(calibrated.tensors), items)
    for name, s in calibrated.tensors.items():
        array = truth[name]
        assert np.isclose(s.low, array.min(), rtol=1e-5, atol=1e-6), name
        assert np.isclose(s.high, array.max(), rtol=1e-5, atol=1e-6), name
        others = tuple(i for i in range(array.ndim) if i != array.ndim + s.channel_axis)
        np.testing.assert_allclose(s.channel_high, array.max(axis=others), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(s.channel_mean, array.mean(axis=others), rtol=1e-3, atol=1e-4)
        assert s.count == array.size  # all elements: these tensors are small
        edges, counts = s.histogram.bins()
        if counts.size:
            np.testing.assert_allclose(counts.sum(), array.size)
            assert (
                abs(np.average((edges[1:] + edges[:-1]) / 2, weights=counts) - array.mean())
                < 2 * s.histogram.width
            )


def test_order_of_samples_does_not_matter(network, calibrated: Calibration, tmp_path: Path) -> None:
    model, items = network
    again = calibrate(model, Items(items.inputs[::-1]), out=tmp_path / "c")
    for name, s in calibrated.tensors.items():
        other = again.tensors[name]
        assert (s.low, s.high, s.count) == (other.low, other.high, other.count)
        assert (s.histogram.counts == other.histogram.counts).all()
        assert np.isclose(s.average_high, other.average_high, rtol=1e-6)


def test_the_same_calibration_gives_the_same_bytes(network, tmp_path: Path) -> None:
    model, items = network
    for name in ("a", "b"):
        calibrate(model, items, out=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_large_tensors_are_sampled_evenly_over_channels(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model = onnx_model([node], {"x": [1, 64, 64, 96]}, {"y": [1, 64, 64, 96]}, tmp_path)
    x = np.zeros((1, 64, 64, 96), np.float32)
    x[..., 7] = 3.0  # one channel in 96, in every position
    c = calibrate(model, Items([{"x": x * (1 + i / 64)} for i in range(64)]), out=tmp_path / "c")
    s = c.tensors["x"]
    edges, counts = s.histogram.bins()
    assert s.count < x.size * 64 / 4
    assert np.isclose(counts[edges[:-1] >= 1.0].sum() / counts.sum(), 1 / 96, rtol=0.1)


def rectifier(op: str, shape: list[int | str], folder: Path) -> OnnxModel:
    """-x, clipped at zero; the limits in an initializer's or a Constant's place."""
    zero = helper.make_tensor("z", TensorProto.FLOAT, [], [0.0])
    nodes = [helper.make_node("Constant", [], ["zero"], value=zero), helper.make_node("Neg", ["x"], ["n"])]
    nodes.append(helper.make_node(op, ["n", "zero"] if op == "Clip" else ["n"], ["y"]))
    return onnx_model(nodes, {"x": shape}, {"y": shape}, folder)


@pytest.mark.parametrize("op", ["Relu", "Clip"])
@pytest.mark.parametrize("side", [64, 60, 66])
def test_large_rectified_images_have_exact_extremes_and_fair_samples(
    tmp_path: Path, op: str, side: int
) -> None:
    """A rare largest value, and patterns that a sample of every other or every third position would miss."""
    x = np.zeros((2, 32, side, side), np.float32)
    phase = 3 if side % 3 == 0 else 2
    x[:, :, 1::phase, 1::phase] = -1.0
    x[1, 5, 20, 30] = -9.0
    model = rectifier(op, [2, 32, side, side], tmp_path)
    c = calibrate(model, Items([{"x": x * (1 + i / 256)} for i in range(256)]), out=tmp_path / "c")
    s = c.tensors["y"]
    assert (s.low, s.channel_low.max()) == (0.0, 0.0)
    assert np.isclose(s.high, 9.0 * (1 + 255 / 256))
    assert np.isclose(s.channel_high[5], s.high)
    assert np.allclose(np.delete(s.channel_high, 5), 1 + 255 / 256)
    share = phase**-2
    assert np.allclose(np.delete(s.channel_mean, 5), share * (1 + 127.5 / 256), rtol=1e-4)
    assert s.count < x.size * 256 / 64
    edges, counts = s.histogram.bins()
    assert np.isclose(counts[edges[:-1] >= 0.9].sum() / counts.sum(), share, rtol=0.3)


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_images_are_thinned_where_enough_is_left(step: int) -> None:
    from edgekit.quantize.calibrate.taps import _thinning

    side = {1: 12, 3: 64, 5: 66, 7: 60}[step]
    assert _thinning((1, 64, side, side), 512) == step
    assert _thinning((1, 1, side, side), 512) == 1


def test_rectified_images_of_any_size_are_reduced_exactly(tmp_path: Path) -> None:
    """Dynamic axes, several images a sample; a Relu that is never zero, and one that always is."""
    model = rectifier("Relu", ["batch", 3, "height", "width"], tmp_path)
    items = [np.full((b, 3, h, 7), -1.0, np.float32) for b, h in ((1, 5), (3, 9))]
    for x in items:
        x[:, 1] = 2.0
        x[-1, 2, 0, 0] = -4.0 * len(x)
    s = calibrate(model, Items([{"x": x} for x in items]), out=tmp_path / "c").tensors["y"]
    means = np.mean([np.maximum(-x, 0).mean(axis=(0, 2, 3)) for x in items], axis=0)
    np.testing.assert_array_equal(s.channel_high, [1, 0, 12])
    np.testing.assert_array_equal(s.channel_low, [0, 0, 0])
    np.testing.assert_allclose(s.channel_mean, means, rtol=1e-6)
    assert s.count == sum(x.size for x in items)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_behind_a_relu_is_told(tmp_path: Path, value: float) -> None:
    nodes = [helper.make_node("Log", ["x"], ["l"]), helper.make_node("Relu", ["l"], ["y"])]
    model = onnx_model(nodes, {"x": [1, 2, 4, 4]}, {"y": [1, 2, 4, 4]}, tmp_path)
    x = np.ones((1, 2, 4, 4), np.float32)
    bad = x.copy()
    bad[0, 1, 2, 2] = -1.0 if np.isnan(value) else value
    with pytest.raises(DataError, match="sample 1 makes tensor"):
        calibrate(model, Items([{"x": x}, {"x": bad}]), out=tmp_path / "c")


def test_masks_are_marked_and_do_not_stretch_ranges(tmp_path: Path) -> None:
    model, items = attention(tmp_path)
    c = calibrate(model, items, out=tmp_path / "c")
    masked = [n for n, s in c.tensors.items() if s.masked]
    assert masked
    assert all(np.isfinite([s.low, s.high]).all() and abs(s.low) < 1e3 for s in c.tensors.values())


def test_nan_names_tensor_and_sample(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sqrt", ["x"], ["root"]), helper.make_node("Relu", ["root"], ["y"])]
    model = onnx_model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, tmp_path)
    good, bad = np.ones((1, 4), np.float32), np.array([[1, 1, -1, 1]], np.float32)
    with pytest.raises(DataError, match="sample 2 makes tensor 'root' NaN"):
        calibrate(model, Items([{"x": good}, {"x": good}, {"x": bad}]), out=tmp_path / "c")
    with pytest.raises(DataError, match="sample 0 makes tensor 'x' NaN or infinite"):
        calibrate(model, Items([{"x": good * np.inf}]), out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"z": np.ones((1, 4), np.float32)}, "input 'x' is missing"),
        ({"x": np.ones((1, 5), np.float32)}, r"sample 0.*shape \[1, 5\]"),
        ({"x": np.ones((1, 4), np.float64)}, "float64"),
    ],
)
def test_samples_that_do_not_fit_are_told(tmp_path: Path, inputs, message) -> None:
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]}, tmp_path)
    with pytest.raises(DataError, match=message):
        calibrate(model, Items([inputs]), out=tmp_path / "c")


def test_no_samples_and_nothing_to_calibrate_are_told(tmp_path: Path) -> None:
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]}, tmp_path)
    with pytest.raises(DataError, match="no calibration samples"):
        calibrate(model, Items([]), out=tmp_path / "c")
    proto = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2])],
    )
    onnx.save(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "i.onnx",
    )
    with pytest.raises(SourceError, match="no float32 activations"):
        calibrate(io.describe(tmp_path / "i.onnx"), Items([{"x": np.ones(2, np.int64)}]), out=tmp_path / "c")


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_old_and_new_opsets(tmp_path: Path, opset: int) -> None:
    node = helper.make_node("LeakyRelu", ["x"], ["y"])
    model = onnx_model([node], {"x": ["batch", 3, 4, 4]}, {"y": ["batch", 3, 4, 4]}, tmp_path, opset)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    c = calibrate(model, Items([{"x": x}, {"x": x[:1]}]), out=tmp_path / "c")
    np.testing.assert_array_equal(c.tensors["x"].channel_high, x.max(axis=(0, 2, 3)))
    assert c.tensors["x"].count == x.size * 3 // 2


def onnx_model(nodes, inputs, outputs, folder: Path, opset: int = 20) -> OnnxModel:
    infos = [[helper.make_tensor_value_info(n, 1, s) for n, s in d.items()] for d in (inputs, outputs)]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", *infos), opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )
    onnx.save(proto, folder / "m.onnx")
    return io.describe(folder / "m.onnx")


def test_nan_that_the_model_itself_replaces_is_left_out(tmp_path: Path) -> None:
    """As attention does with rows that are masked altogether."""
    nodes = [
        helper.make_node("Log", ["x"], ["log"]),
        helper.make_node("Sqrt", ["log"], ["root"]),
        helper.make_node("IsNaN", ["root"], ["bad"]),
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Where", ["bad", "zero", "root"], ["y"]),
    ]
    model = onnx_model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, tmp_path)
    rows = [np.array([row], np.float32) for row in ([1, 2, 3, 4], [0.5, 2, 9, 0.1], [0.2, 0.3, 5, 3])]
    c = calibrate(model, Items([{"x": r} for r in rows]), out=tmp_path / "c")
    root = c.statistics("root")
    assert root.low == 0.0
    assert root.high == pytest.approx(np.sqrt(np.log(9)))
    assert c.statistics("y").high == root.high


def test_minus_infinity_in_an_input_is_a_mask(tmp_path: Path) -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"])]
    model = onnx_model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, tmp_path)
    x = np.array([[1, 2, -np.inf, 3]], np.float32)
    c = calibrate(model, Items([{"x": x}, {"x": x + 1}]), out=tmp_path / "c")
    assert c.statistics("x").masked
    assert (c.statistics("x").low, c.statistics("x").high) == (0.0, 4.0)
