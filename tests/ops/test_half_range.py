"""Activations beyond float16's range: found on real data, and kept in float32 by every backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
from backend_models import run
from onnx import TensorProto, helper, numpy_helper
from quantize_support import Items

from edgekit.core import plugins, targets
from edgekit.graph import io
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.half import half_range
from edgekit.types import KEEP_FLOAT32, HalfRange, OnnxModel

F = TensorProto.FLOAT
LOUD = 40_000.0
"""Twice as much is beyond 65,504."""


def network(folder: Path) -> OnnxModel:
    """Two convolutions with a Relu between; the first sums up what it reads, the second divides it by thousands."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": np.full((4, 3, 3, 3), 1 / 9, np.float32),
        "b1": np.zeros(4, np.float32),
        "w2": (rng.standard_normal((64, 4, 3, 3)) / 3e4).astype(np.float32),
        "w3": rng.standard_normal((64, 64, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="rectified"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second"),
        helper.make_node("Conv", ["c", "w3"], ["y"], name="third"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", F, [1, 64, 4, 4])],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return io.save(io.ir.from_proto(made), folder / "m.onnx")


def inputs(scale: float) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, scale, (1, 3, 8, 8)).astype(np.float32)


def measured(model: OnnxModel, folder: Path, *scales: float) -> HalfRange:
    calibrate(model, Items([{"x": inputs(s)} for s in scales]), out=folder / "c")
    return half_range(model, Calibration.load(folder / "c"))


def test_what_writes_and_what_reads_a_large_value_is_named(tmp_path):
    model = network(tmp_path)
    found = measured(model, tmp_path, 1.0, LOUD)
    assert found.tensor == "b"
    assert found.largest > 65_504
    assert found.kept == ("first", "rectified", "second")
    assert found.left_tensor in ("c", "y")
    assert (found.left, found.samples) == (pytest.approx(found.left), 2)
    assert found.left < 65_504 / 2


def test_nothing_stays_where_nothing_is_large(tmp_path):
    found = measured(network(tmp_path), tmp_path, 1.0, 2.0)
    assert found.kept == ()
    assert found.left == found.largest


def test_masks_are_no_large_values(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "m"], ["a"], name="add"),
        helper.make_node("Softmax", ["a"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, [1, 4])],
        [helper.make_tensor_value_info("y", F, [1, 4])],
        [numpy_helper.from_array(np.array([0, 0, np.finfo(np.float32).min, -np.inf], np.float32), "m")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model = io.save(io.ir.from_proto(made), tmp_path / "m.onnx")
    calibrate(model, Items([{"x": np.ones((1, 4), np.float32)}]), out=tmp_path / "c")
    assert half_range(model, Calibration.load(tmp_path / "c")).kept == ()


def test_a_constant_beyond_the_range_keeps_its_node_however_small_the_result(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Div", ["x", "pascal"], ["y"], name="atmospheres")],
        "g",
        [helper.make_tensor_value_info("x", F, [1, 4])],
        [helper.make_tensor_value_info("y", F, [1, 4])],
        [numpy_helper.from_array(np.array(101_325, np.float32), "pascal")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model = io.save(io.ir.from_proto(made), tmp_path / "m.onnx")
    calibrate(model, Items([{"x": np.ones((1, 4), np.float32)}]), out=tmp_path / "c")
    assert half_range(model, Calibration.load(tmp_path / "c")).kept == ("atmospheres",)


def lowered(model: OnnxModel, name: str, folder: Path, kept: tuple[str, ...]):
    folder.mkdir()
    target = targets.find(name)
    options = {KEEP_FLOAT32: "\n".join(kept)} if kept else {}
    return target, plugins.backend(target.backend).lower(model, target, options, folder)


@pytest.mark.parametrize("name", ["ort-fp16", "tensorrt-fp16"])
def test_a_machine_that_computes_in_float16_gets_the_right_numbers(tmp_path, name):
    """ONNX's reference evaluator does: numpy's float16."""
    model = network(tmp_path)
    kept = measured(model, tmp_path, LOUD).kept
    x = inputs(LOUD)
    right = io.run(io.session(model.path), {"x": x})["y"]
    answers = {}
    for how, nodes in (("plain", ()), ("kept", kept)):
        lowered(model, name, tmp_path / how, nodes)
        evaluator = onnx.reference.ReferenceEvaluator(str(tmp_path / how / "model.onnx"))
        with np.errstate(all="ignore"):
            answers[how] = evaluator.run(None, {"x": x})[0]
    assert not np.isfinite(answers["plain"]).all()
    assert np.abs(answers["kept"] - right).max() < 0.01 * np.abs(right).max()


@pytest.mark.parametrize("name", ["ort-fp16", "openvino-fp16", "tflite-fp16"])
def test_the_layers_that_stay_are_float32_in_the_file_and_the_file_runs(tmp_path, name):
    model = network(tmp_path)
    kept = measured(model, tmp_path, LOUD).kept
    sizes = {}
    for how, nodes in (("plain", ()), ("kept", kept), ("all", ("first", "rectified", "second", "third"))):
        target, made = lowered(model, name, tmp_path / how, nodes)
        assert any("stay in float32" in note for note in made.notes) == bool(nodes)
        sizes[how] = sum((tmp_path / how / f).stat().st_size for f in made.files if not f.endswith(".xml"))
        outputs, _ = run(target, made, tmp_path / how, {"x": inputs(1.0)})
        right = io.run(io.session(model.path), {"x": inputs(1.0)})["y"]
        assert np.abs(outputs["y"] - right).max() < 0.01 * np.abs(right).max()
    assert sizes["plain"] + 4000 < sizes["kept"] < sizes["all"] - 6000
