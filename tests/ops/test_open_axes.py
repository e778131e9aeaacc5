"""Axes that exporters leave open: without a name, without the size that a runtime works out, or before a branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit.graph import io, passes

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("ai_edge_litert")
FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(5)
TARGETS = ["ort-fp32", "openvino-fp32", "tflite-fp32"]


def saved(
    path: Path, nodes: list[Any], inputs: Any, outputs: Any, constants: dict[str, Any], opset: int = 16
) -> Path:
    values = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs.items()],
        values,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def built(path: Path, out: Path, shape: dict[str, str], samples: list[Any]) -> dict[str, edgekit.Artifact]:
    options = edgekit.Options(shape=shape, speed_gate=False)
    result = edgekit.build(path, targets=TARGETS, out=out, options=options, evaluation=samples)
    return {a.target: a for a in result.raise_for_failures().artifacts}


def convolution(shape: tuple[int, ...]) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32) / 3


def test_two_axes_called_by_a_question_mark_have_two_sizes(tmp_path):
    path = saved(
        tmp_path / "m.onnx",
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("ReduceMean", ["c"], ["y"], axes=[2, 3]),
        ],
        {"x": [-1, 3, "?", "?"]},
        {"y": ["?", 4, 1, 1]},
        {"w": convolution((4, 3, 3, 3))},
    )
    samples = [{"x": RNG.standard_normal((1, 3, 8, 12)).astype(np.float32)} for _ in range(8)]
    artifacts = built(path, tmp_path / "out", {"x": "1x3x8x12"}, samples)
    (spec,) = artifacts["ort-fp32"].manifest.inputs
    assert spec.shape == ("x_axis0", 3, "x_axis2", "x_axis3")


def test_an_output_has_the_size_that_the_runtime_works_out(tmp_path):
    """An exporter's name for an axis that is always one: the manifest says what the file has."""
    path = saved(
        tmp_path / "m.onnx",
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], kernel_shape=[2, 2], strides=[2, 2])],
        {"x": ["batch", 3, "height", "width"]},
        {"y": ["o0", "o1", "o2", "o3"]},
        {"w": convolution((3, 1, 2, 2))},
    )
    samples = [{"x": RNG.standard_normal((1, 3, 6, 8)).astype(np.float32)} for _ in range(8)]
    artifacts = built(path, tmp_path / "out", {"x": "1x3x6x8"}, samples)
    (spec,) = artifacts["openvino-fp32"].manifest.outputs
    assert spec.shape == ("o0", 1, "o2", "o3")
    for artifact in artifacts.values():
        assert artifact.verify().status == "passed"


def test_an_old_operator_set_is_raised_where_that_works_a_size_out(tmp_path):
    """The converter knows a size that the exporter left open: calibration refused such models as too old."""
    path = saved(
        tmp_path / "m.onnx",
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        {"x": ["batch", 3, "height", "width"]},
        {"y": ["o0", "o1", "o2", "o3"]},
        {"w": convolution((4, 3, 3, 3))},
        opset=11,
    )
    optimized, report = passes.optimize_with_report(io.describe(path), tmp_path / "o.onnx")
    assert optimized.opset == passes.OPSET
    assert optimized.outputs[0].shape[1:] == (4, "o2", "o3")
    assert report.notes == ()


def test_an_output_that_is_declared_with_another_rank(tmp_path):
    """Runtimes pass over a declaration that the graph contradicts; the manifest says what the file gives."""
    path = saved(
        tmp_path / "m.onnx",
        [
            helper.make_node("Concat", ["rows", "columns"], ["shape"], axis=0),
            helper.make_node("Reshape", ["x", "shape"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
        ],
        {"x": ["batch", 4, "length"]},
        {"y": [1, "steps"]},
        {"w": convolution((4, 5)), "rows": np.array([-1, 1]), "columns": np.array([4])},
    )
    samples = [{"x": RNG.standard_normal((1, 4, 6)).astype(np.float32)} for _ in range(8)]
    for artifact in built(path, tmp_path / "out", {"x": "1x4x6"}, samples).values():
        assert [d if isinstance(d, int) else "open" for d in artifact.manifest.outputs[0].shape][1:] == [1, 5]
        assert artifact.verify().status == "passed"


def branch(name: str, node: Any, output: str) -> Any:
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(output, FLOAT, None)])


def test_a_branch_that_gives_another_rank_is_fixed_for_openvino(tmp_path):
    """What PyTorch's exporter writes for ``squeeze`` of an axis whose size it does not know."""
    path = saved(
        tmp_path / "m.onnx",
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1]),
            helper.make_node("Shape", ["c"], ["s"]),
            helper.make_node("Gather", ["s", "last"], ["length"]),
            helper.make_node("Equal", ["length", "one"], ["alone"]),
            helper.make_node(
                "If",
                ["alone"],
                ["f"],
                then_branch=branch("then", helper.make_node("Squeeze", ["c", "axis"], ["t"]), "t"),
                else_branch=branch("else", helper.make_node("Identity", ["c"], ["e"]), "e"),
            ),
            helper.make_node("Conv", ["f", "v"], ["d"]),
            helper.make_node("Relu", ["d"], ["y"]),
        ],
        {"x": ["batch", 3, "length"]},
        {"y": ["batch", 2, "length"]},
        {
            "w": convolution((4, 3, 3)),
            "v": convolution((2, 4, 1)),
            "last": np.int64(2),
            "one": np.int64(1),
            "axis": np.array([2]),
        },
    )
    samples = [{"x": RNG.standard_normal((1, 3, 16)).astype(np.float32)} for _ in range(8)]
    artifacts = built(path, tmp_path / "out", {"x": "1x3x16"}, samples)
    manifest = artifacts["openvino-fp32"].manifest
    assert manifest.target.fixed_shapes
    assert [spec.shape for spec in manifest.inputs] == [(1, 3, 16)]
    assert any("open axes" in note for note in manifest.notes)
    assert artifacts["ort-fp32"].manifest.inputs[0].shape == ("batch", 3, "length")
