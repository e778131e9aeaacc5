"""Weights inside branches and loops: stored as integers by the schemes without ranges, refused by the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from backend_models import run, snr_db
from onnx import TensorProto, helper, numpy_helper
from quantize_support import Items

from edgekit.artifact.gates import Evidence, failed, gates
from edgekit.core import plugins, targets
from edgekit.graph import io
from edgekit.graph.weights import integer_share
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import OnnxModel, Placement

F = TensorProto.FLOAT
RNG = np.random.default_rng(0)
WITHOUT_RANGES = (
    "ort-int8-weights", "ort-int4-weights", "ort-int8-dynamic", "openvino-int8-weights", "tflite-int8-weights",
    "tflite-int8-dynamic",
)  # fmt: skip


def array(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def branch(name: str) -> onnx.GraphProto:
    """A network of its own, with its weights inside: as a voice detector has one for each sampling rate."""
    constants = {
        "w": array(1, 192, 48), "r": array(1, 192, 48), "m": array(48, 96), "last": np.array([-1]),
    }  # fmt: skip
    nodes = [
        helper.make_node(
            "LSTM", ["x", f"{name}w", f"{name}r"], [f"{name}s"], name=f"{name}cell", hidden_size=48
        ),
        helper.make_node("Reshape", [f"{name}s", f"{name}shape"], [f"{name}f"], name=f"{name}flat"),
        helper.make_node("MatMul", [f"{name}f", f"{name}m"], [f"{name}y"], name=f"{name}product"),
    ]
    initializers = [numpy_helper.from_array(a, f"{name}{n}") for n, a in constants.items() if n != "last"]
    initializers.append(numpy_helper.from_array(np.array([5, 48]), f"{name}shape"))
    return helper.make_graph(
        nodes, f"{name}body", [], [helper.make_tensor_value_info(f"{name}y", F, [5, 96])], initializers
    )


def branches(path: Path) -> OnnxModel:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], name="sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], name="compare"),
        helper.make_node(
            "If", ["positive"], ["y"], name="if", then_branch=branch("a_"), else_branch=branch("b_")
        ),
    ]
    return saved(path, nodes, [5, 1, 48], [5, 96], {"zero": np.zeros((), np.float32)})


def loop(path: Path) -> OnnxModel:
    """One product four times."""
    values = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("h", F, [5, 96])]
    results = [("on", TensorProto.BOOL, []), ("next", F, [5, 96])]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["p"], name="product"),
            helper.make_node("Tanh", ["p"], ["next"], name="tanh"),
            helper.make_node("Identity", ["go"], ["on"], name="same"),
        ],
        "body",
        [helper.make_tensor_value_info(*v) for v in values],
        [helper.make_tensor_value_info(*v) for v in results],
        [numpy_helper.from_array(array(96, 96), "w")],
    )
    node = helper.make_node("Loop", ["count", "true", "x"], ["y"], name="loop", body=body)
    return saved(path, [node], [5, 96], [5, 96], {"count": np.array(4), "true": np.array(True)})


def saved(path: Path, nodes, x, y, constants) -> OnnxModel:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, x)],
        [helper.make_tensor_value_info("y", F, y)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return io.save(io.ir.from_proto(made), path)


def built(model: OnnxModel, name: str, folder: Path) -> tuple[float, float, Placement]:
    """SNR in dB, the share of integer weights in the files, the placement."""
    target = targets.find(name)
    x = RNG.standard_normal(model.inputs[0].shape).astype(np.float32)
    samples = Items([{"x": x}, {"x": -x}])
    floats = FloatModel(model, calibrate(model, samples, out=folder / "calibration"), samples)
    options = QuantizeOptions(method="minmax", weight_bits=7)
    quantized, _ = quantize(floats, target, options, folder / "quantized.onnx")
    onnx.checker.check_model(str(quantized.path))
    out = folder / "out"
    out.mkdir()
    backend = plugins.backend(target.backend)
    lowered = backend.lower(quantized, target, {}, out)
    outputs, raw = run(target, lowered, out, {"x": x})
    right = io.run(io.session(model.path), {"x": x})
    share = integer_share(io.constants(quantized.path))
    assert share is not None
    return snr_db(right["y"], outputs["y"]), share, backend.placement(quantized, target, lowered, raw)


@pytest.mark.parametrize("name", WITHOUT_RANGES)
@pytest.mark.parametrize("make", [branches, loop])
def test_schemes_without_ranges_store_what_is_inside_as_integers(tmp_path, make, name):
    snr, share, placement = built(make(tmp_path / "m.onnx"), name, tmp_path)
    assert share > 0.9
    assert snr > (10 if "int4" in name else 25)
    if name.endswith("dynamic"):
        assert placement.share is not None
        assert placement.share > 0.9


@pytest.mark.parametrize("name", ["ort-int8", "openvino-int8", "tflite-int8"])
@pytest.mark.parametrize("make", [branches, loop])
def test_schemes_with_ranges_do_not_pass_for_integers(tmp_path, make, name):
    _, _, placement = built(make(tmp_path / "m.onnx"), name, tmp_path)
    tolerance = targets.find(name).tolerance
    assert "placement" in failed(gates(Evidence(placement=placement), tolerance))


def test_what_is_inside_can_be_excluded_by_its_name(tmp_path):
    model = branches(tmp_path / "m.onnx")
    options = QuantizeOptions(method="minmax", corrections=(), exclude=("a_product",))
    out = tmp_path / "q.onnx"
    _, report = quantize(FloatModel(model, None, None), targets.find("ort-int8-weights"), options, out)
    assert [n.node for n in report.floats if n.weights] == ["a_product"]
    assert sorted(t for size, t in io.constants(out) if size == 48 * 96) == ["float32", "int8"]
