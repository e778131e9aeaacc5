"""Placement of what no kernel's name tells: branches, loops, three dimensions, float64, transforms, no products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from backend_models import run, weights_only
from onnx import TensorProto, helper, numpy_helper

from edgekit.core import plugins, targets
from edgekit.graph import io
from edgekit.types import OnnxModel, Placement

F, D = TensorProto.FLOAT, TensorProto.DOUBLE
RNG = np.random.default_rng(0)


def array(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def model(path: Path, nodes, x, y, constants, kind=F) -> OnnxModel:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", kind, y)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return io.save(io.ir.from_proto(made), path)


def placed(made: OnnxModel, name: str, folder: Path, x: np.ndarray) -> Placement:
    target = targets.find(name)
    folder.mkdir()
    backend = plugins.backend(target.backend)
    lowered = backend.lower(made, target, {}, folder)
    _, raw = run(target, lowered, folder, {"x": x})
    return backend.placement(made, target, lowered, raw)


def branches(path: Path) -> OnnxModel:
    """One product if the sum is positive, else another."""

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", name], [f"{name}_y"], name=f"product_{name}")
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_y", F, [2, 4])])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    constants = {"a": array(4, 4), "b": array(4, 4), "zero": np.zeros((), np.float32)}
    return model(path, nodes, [2, 4], [2, 4], constants)


def recurrent(path: Path) -> OnnxModel:
    """An LSTM whose sequences have lengths: a loop in OpenVINO."""
    constants = {"w": array(1, 12, 4), "r": array(1, 12, 3), "lengths": np.array([5, 2], np.int32)}
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "", "lengths"], ["h"], name="cell", hidden_size=3),
        helper.make_node("Squeeze", ["h", "one"], ["y"]),
    ]
    return model(path, nodes, [5, 2, 4], [5, 2, 3], constants | {"one": np.array([1])})


def volume(path: Path) -> OnnxModel:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="volume")
    return model(path, [node], [1, 2, 4, 5, 6], [1, 3, 2, 3, 4], {"w": array(3, 2, 3, 3, 3)})


def doubles(path: Path) -> OnnxModel:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return model(path, [node], [2, 4], [2, 5], {"w": array(4, 5, dtype=np.float64)}, kind=D)


@pytest.mark.parametrize("name", ["ort-fp32", "openvino-fp32", "tflite-fp32"])
@pytest.mark.parametrize("make", [branches, recurrent, volume, doubles])
def test_float32_is_float32_wherever_it_is(tmp_path, make, name):
    made = make(tmp_path / "m.onnx")
    (spec,) = made.inputs
    x = array(*spec.shape, dtype=np.dtype(spec.dtype).type)
    found = placed(made, name, tmp_path / "out", x)
    assert found.share == 1.0
    assert sum(f.share for f in found.fallbacks) == 0


@pytest.mark.parametrize("name", ["ort-int8", "openvino-int8", "tflite-int8"])
@pytest.mark.parametrize("make", [branches, recurrent, volume])
def test_the_same_in_an_integer_target_is_nothing_of_it(tmp_path, make, name):
    made = make(tmp_path / "m.onnx")
    found = placed(made, name, tmp_path / "out", array(*made.inputs[0].shape))
    assert found.share == 0.0
    assert found.fallbacks


@pytest.mark.parametrize("name", ["ort-int8", "openvino-int8", "tflite-int8"])
def test_a_model_without_products_has_integers_only_where_there_are_some(tmp_path, name):
    node = helper.make_node("Sigmoid", ["x"], ["y"], name="squash")
    made = model(tmp_path / "m.onnx", [node], [1, 8], [1, 8], {})
    assert placed(made, name, tmp_path / "float", array(1, 8)).share == 0.0


def test_a_fourier_transform_is_none_of_the_networks_products(tmp_path):
    constants = {"step": np.array(8), "window": np.hanning(16).astype(np.float32), "length": np.array(16)}
    nodes = [
        helper.make_node("STFT", ["x", "step", "window", "length"], ["s"], name="transform"),
        helper.make_node("MatMul", ["s", "w"], ["y"], name="product"),
    ]
    made = model(tmp_path / "m.onnx", nodes, [1, 64, 1], [1, 7, 9, 3], constants | {"w": array(2, 3)})
    target = targets.find("tflite-int8")
    lowered = plugins.backend("tflite").lower(made, target, {}, tmp_path)
    assert sum(lowered.details["macs"]) == 7 * 9 * 2 * 3


@pytest.mark.parametrize("name", ["ort-int8-weights", "openvino-int8-weights", "tflite-int8-weights"])
def test_how_weights_are_stored_is_counted_in_the_file(tmp_path, name):
    target = targets.find(name)
    backend = plugins.backend(target.backend)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    stored = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], name="stored"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    integers = {"q": np.ones((128, 128), np.int8), "scale": np.float32(0.1).reshape(())}
    for folder, nodes, constants, share in (
        ("float", [node], {"w": array(128, 128)}, 0.0),
        ("integers", stored, integers, 1.0),
    ):
        made = model(tmp_path / f"{folder}.onnx", nodes, [2, 128], [2, 128], constants)
        (tmp_path / folder).mkdir()
        assert backend.lower(made, target, {}, tmp_path / folder).integer_weights == share


def test_four_bits_count_as_values_not_as_bytes(tmp_path):
    made = weights_only(tmp_path / "m.onnx", bits=4)
    target = targets.find("ort-int4-weights")
    lowered = plugins.backend(target.backend).lower(made, target, {}, tmp_path)
    assert lowered.integer_weights > 0.9
