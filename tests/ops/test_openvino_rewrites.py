"""OpenVINO: operators that its reader refuses or reads wrongly give what ONNX Runtime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from backend_models import reference
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends import openvino as backend
from edgekit.backends.openvino.artifact import runtime
from edgekit.core import targets
from edgekit.errors import UnsupportedOperatorsError
from edgekit.graph import io

if not backend.available().installed:
    pytest.skip("the extra openvino is not installed", allow_module_level=True)

RNG = np.random.default_rng(2)
X = RNG.standard_normal((1, 2, 7, 9)).astype(np.float32)


def compare(
    folder,
    node: onnx.NodeProto | list[onnx.NodeProto],
    x: np.ndarray,
    constants: dict[str, Any],
    *,
    opset: int = 20,
) -> None:
    """One node, or a few, on OpenVINO and on ONNX Runtime, every output of the last."""
    nodes = node if isinstance(node, list) else [node]
    values = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64 if n == "i" else kind, None)
        for n in nodes[-1].output
    ]
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, x.shape)], outputs, values)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(proto, data_prop=True), folder / "m.onnx")
    model = io.describe(folder / "m.onnx")
    backend.lower(model, targets.find("openvino-fp32"), {}, folder)
    core = runtime().Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU")
    answers = compiled({"x": x})
    for name, expected in reference(model, {"x": x}).items():
        np.testing.assert_allclose(np.asarray(answers[name]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 2, 3, -2])
def test_normalized_as_before_opset_13(tmp_path, op, axis):
    given = {} if axis is None else {"axis": axis}
    if axis is not None and axis < 0:
        given = {"axis": 4 + axis}  # negative axes came with opset 11
    compare(tmp_path, helper.make_node(op, ["x"], ["y"], **given), X, {}, opset=9)


@pytest.mark.parametrize(
    "pads", [[0, 0, 1, 2, 0, 0, 3, 0], [0, 0, 7, 0, 0, 0, 0, 9], [0, 2, 0, 1, 1, 0, 0, 1]]
)
def test_margins_that_wrap(tmp_path, pads):
    node = helper.make_node("Pad", ["x", "pads"], ["y"], mode="wrap")
    compare(tmp_path, node, X, {"pads": np.array(pads)})


def test_margins_that_wrap_along_named_axes(tmp_path):
    node = helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"], mode="wrap")
    compare(tmp_path, node, X, {"pads": np.array([2, 1]), "axes": np.array([-1])})


POOLS = {
    "margins": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "uneven margins": {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 2, 1]},
    "a window in the margin": {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1]},
    "no margin": {"kernel_shape": [2, 4], "strides": [3, 3]},
}


@pytest.mark.parametrize("what", POOLS)
@pytest.mark.parametrize("counts", [0, 1])
def test_means_whose_number_is_rounded_up(tmp_path, what, counts):
    window = {**POOLS[what], "ceil_mode": 1, "count_include_pad": counts}
    compare(tmp_path, helper.make_node("AveragePool", ["x"], ["y"], **window), X, {})


@pytest.mark.parametrize("what", POOLS)
def test_maxima_whose_number_is_rounded_up(tmp_path, what):
    compare(tmp_path, helper.make_node("MaxPool", ["x"], ["y"], ceil_mode=1, **POOLS[what]), X, {})


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("length", "onesided"), [(12, 1), (13, 1), (None, 1), (7, 0), (None, 0)])
def test_inverse_transforms(tmp_path, axis, length, onesided):
    x = RNG.standard_normal((3, 7, 7, 2)).astype(np.float32)
    constants = {"axis": np.asarray(axis)} | ({} if length is None else {"n": np.asarray(length)})
    inputs = ["x", "" if length is None else "n", "axis"]
    node = helper.make_node("DFT", inputs, ["y"], inverse=1, onesided=onesided)
    compare(tmp_path, node, x, constants)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("parts", "onesided"), [(1, 1), (1, 0), (2, 0)])
def test_transforms(tmp_path, axis, parts, onesided):
    x = RNG.standard_normal((3, 6, 7, parts)).astype(np.float32)
    node = helper.make_node("DFT", ["x", "", "axis"], ["y"], onesided=onesided)
    compare(tmp_path, node, x, {"axis": np.asarray(axis)})


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("sizes", [(5, 4), (3, 9), (7, 20), (16, 2)])
def test_resizing_without_aliasing(tmp_path, mode, sizes):
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode=mode, antialias=1)
    compare(tmp_path, node, X, {"sizes": np.array([1, 2, *sizes])})


def test_resizing_by_factors_without_aliasing(tmp_path):
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=1)
    compare(tmp_path, node, X, {"scales": np.array([1, 1, 0.6, 0.45], np.float32)})


@pytest.mark.parametrize("largest", [0, 1])
def test_equals_keep_their_order(tmp_path, largest):
    x = RNG.integers(0, 3, (2, 60)).astype(np.float32)
    node = helper.make_node("TopK", ["x", "k"], ["y", "i"], largest=largest)
    compare(tmp_path, node, x, {"k": np.array([50])})


def test_what_it_knows_in_another_form_only_is_unsupported_and_named(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("GridSample", ["r", "g"], ["y"], name="volume"),
    ]
    shapes = {"x": (1, 2, 3, 4, 5), "g": (1, 3, 2, 2, 3)}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 3, 2, 2))]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(onnx.shape_inference.infer_shapes(proto), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOperatorsError) as error:
        backend.lower(io.describe(tmp_path / "m.onnx"), targets.find("openvino-fp32"), {}, tmp_path)
    assert [(n.op, n.node) for n in error.value.nodes] == [("GridSample", "volume")]


def on_openvino(model, folder, feeds):
    backend.lower(model, targets.find("openvino-int8"), {}, folder)
    core = runtime().Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU")
    return np.asarray(compiled(feeds)[0])


REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"),
    "ReduceSumSquare",
)


def quantized_graph(path, nodes, shape, constants):
    """Around ``nodes``, from ``a`` to ``b``: a layer in INT8 before, and one behind."""
    whole = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        *nodes,
        helper.make_node("QuantizeLinear", ["b", "bs", "z0"], ["bq"]),
        helper.make_node("DequantizeLinear", ["bq", "bs", "z0"], ["bd"]),
        helper.make_node("DequantizeLinear", ["w2", "ws"], ["wd2"]),
        helper.make_node("MatMul", ["bd", "wd2"], ["y"]),
    ]
    constants |= {"s": np.float32(0.02), "z": np.uint8(128), "z0": np.uint8(0), "ws": np.float32(0.01)}
    values = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(whole, "g", inputs, outputs, values)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return io.describe(path)


@pytest.mark.parametrize("length", [10, "length"])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("axis", [1, 2])
def test_an_extreme_in_front_of_a_quantized_layer(tmp_path, axis, op, length):
    width = 24 if axis == 1 else 10
    nodes = [
        helper.make_node("DequantizeLinear", ["w1", "ws"], ["wd1"]),
        helper.make_node("MatMul", ["d", "wd1"], ["m"]),
        helper.make_node(op, ["m", "axes"], ["e"], keepdims=0),
        helper.make_node("Abs", ["e"], ["b"]),
    ]
    constants = {
        "w1": RNG.integers(-63, 64, (16, 24)).astype(np.int8),
        "w2": RNG.integers(-63, 64, (width, 5)).astype(np.int8),
        "axes": np.array([axis]),
        "bs": np.float32(0.02),
    }
    model = quantized_graph(tmp_path / "m.onnx", nodes, (1, length, 16), constants)
    feeds = {"x": RNG.standard_normal((1, 10, 16)).astype(np.float32)}
    expected = reference(model, feeds)["y"]
    assert np.abs(on_openvino(model, tmp_path, feeds) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("op", [*REDUCTIONS, "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("between", [["Mul"], ["Add"], ["Mul", "Add"]], ids="-".join)
@pytest.mark.parametrize(
    ("shape", "axes"), [((1, 10, 16), [1]), ((1, 5, 4, 16), [1, 2]), ((1, 10, 16), [-2])]
)
def test_a_reduction_with_arithmetic_by_channel_in_front_of_a_rounding(tmp_path, op, between, shape, axes):
    """The mean over a text's tokens, smoothed by channel, before a quantized classifier: 7 dB were left of 52."""
    nodes = [helper.make_node("Abs", ["d"], ["p"]), helper.make_node(op, ["p", "axes"], ["r"], keepdims=0)]
    last = "r"
    for function in between:
        nodes.append(helper.make_node(function, [last, function], [f"after_{function}"]))
        last = f"after_{function}"
    nodes.append(helper.make_node("Relu", [last], ["b"]))
    constants = {
        "w2": RNG.integers(-63, 64, (16, 5)).astype(np.int8),
        "axes": np.array(axes),
        "Mul": RNG.uniform(0.2, 3, 16).astype(np.float32),
        "Add": RNG.uniform(-1, 1, 16).astype(np.float32),
        "bs": np.float32(0.08),
    }
    used = {k: v for k, v in constants.items() if k not in ("Mul", "Add") or k in between}
    model = quantized_graph(tmp_path / "m.onnx", nodes, shape, used)
    feeds = {"x": RNG.standard_normal(shape).astype(np.float32)}
    expected = reference(model, feeds)["y"]
    assert np.abs(on_openvino(model, tmp_path, feeds) - expected).max() <= 0.05 * np.abs(expected).max()


def test_an_extreme_in_front_of_a_rounding_with_a_zero_point(tmp_path):
    """Between convolutions along an axis of open length, where values of both signs are rounded."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w1", "ws"], ["wd1"]),
        helper.make_node("Conv", ["d", "wd1"], ["c"], pads=[1] * 4),
        helper.make_node("ReduceMax", ["c", "axes"], ["e"], keepdims=0),
        helper.make_node("QuantizeLinear", ["e", "es", "ez"], ["eq"]),
        helper.make_node("DequantizeLinear", ["eq", "es", "ez"], ["ed"]),
        helper.make_node("Transpose", ["ed"], ["b0"], perm=[0, 2, 1]),
        helper.make_node("Relu", ["b0"], ["b"]),
    ]
    constants = {
        "w1": RNG.integers(-63, 64, (4, 3, 3, 3)).astype(np.int8),
        "w2": RNG.integers(-63, 64, (4, 5)).astype(np.int8),
        "axes": np.array([2]),
        "es": np.float32(0.05),
        "ez": np.uint8(80),
        "bs": np.float32(0.05),
    }
    model = quantized_graph(tmp_path / "m.onnx", nodes, (1, 3, 12, "length"), constants)
    feeds = {"x": RNG.standard_normal((1, 3, 12, 20)).astype(np.float32)}
    expected = reference(model, feeds)["y"]
    assert np.abs(on_openvino(model, tmp_path, feeds) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("group", [1, 4])
def test_quantized_kernels_of_sixteen_taps(tmp_path, group):
    nodes = [
        helper.make_node("DequantizeLinear", ["w1", "ws"], ["wd1"]),
        helper.make_node("Conv", ["d", "wd1"], ["c"], pads=[8, 7], dilations=[1], group=group),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Transpose", ["r"], ["b"], perm=[0, 2, 1]),
    ]
    constants = {
        "w1": RNG.integers(-63, 64, (16, 16 // group, 16)).astype(np.int8),
        "w2": RNG.integers(-63, 64, (16, 5)).astype(np.int8),
        "bs": np.float32(0.05),
    }
    model = quantized_graph(tmp_path / "m.onnx", nodes, (1, 16, 40), constants)
    feeds = {"x": RNG.standard_normal((1, 16, 40)).astype(np.float32)}
    expected = reference(model, feeds)["y"]
    got = on_openvino(model, tmp_path, feeds)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"])
@pytest.mark.parametrize(("axes", "kept"), [([1], 0), ([1], 1), ([0, 2], 1), ([-2], 0)])
def test_reduced_integers_with_arithmetic_behind(tmp_path, op, axes, kept):
    x = RNG.integers(-4, 5, (2, 7, 5))
    function = helper.make_node(op, ["x", "axes"], ["r"], keepdims=kept)
    nodes = [function, helper.make_node("Mul", ["r", "two"], ["y"])]
    compare(tmp_path, nodes, x, {"axes": np.array(axes), "two": np.array(2)})


@pytest.mark.parametrize("op", ["TopK", "Split"])
def test_truth_values_of_one_of_several_outputs(tmp_path, op):
    make = helper.make_node
    first = make("TopK", ["x", "k"], ["v", "w"], axis=-1) if op == "TopK" else None
    nodes = [
        first or make("Split", ["x"], ["v", "w"], axis=1, num_outputs=2),
        make("Cast", ["v"], ["b"], to=TensorProto.BOOL),
        make("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    compare(tmp_path, nodes, np.round(X), {"k": np.asarray([9])} if first else {})
