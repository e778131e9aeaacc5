"""ONNX files that compute in float16, bfloat16 or float64: quantized as their float32 form would be; what calibration
cannot look into costs the targets that need it, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit.artifact.manifest import Status
from edgekit.errors import NotCalibratableError
from edgekit.graph import io, widen
from edgekit.quantize.calibrate.codes import CODES

node = helper.make_node
TYPES = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


def saved(
    path: Path, nodes: Sequence[onnx.NodeProto], kind: int, constants: dict[str, np.ndarray], *, out: int = 0
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["batch", 6, 12])],
        [helper.make_tensor_value_info("y", out or kind, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def network(path: Path, kind: int) -> Path:
    """Products, a constant of its own, a cast to its type and a branch that reads a value from outside."""
    typed = helper.tensor_dtype_to_np_dtype(kind)
    random = np.random.default_rng(5)

    def weights(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(shape[0])).astype(typed)

    def branch(op: str) -> onnx.GraphProto:
        return helper.make_graph(
            [node(op, ["a"], [f"{op}_y"], name=op)], op, [], [helper.make_empty_tensor_value_info(f"{op}_y")]
        )

    half = numpy_helper.from_array(np.asarray(0.5, typed))
    nodes = [
        node("MatMul", ["x", "w"], ["m"], name="first"),
        node("Constant", [], ["half"], value=half),
        node("Mul", ["m", "half"], ["n"]),
        node("Relu", ["n"], ["a"]),
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Cast", ["s"], ["s32"], to=TensorProto.FLOAT),
        node("Less", ["s32", "far"], ["c"]),
        node("If", ["c"], ["b"], then_branch=branch("Tanh"), else_branch=branch("Sigmoid")),
        node("Cast", ["b"], ["d"], to=kind),
        node("MatMul", ["d", "v"], ["y"], name="second"),
    ]
    constants = {"w": weights(12, 16), "v": weights(16, 8), "far": np.float32(1e4)}
    return saved(path, nodes, kind, constants)


def samples(kind: int, count: int = 32) -> list[dict[str, np.ndarray]]:
    typed = helper.tensor_dtype_to_np_dtype(kind)
    random = np.random.default_rng(6)
    return [{"x": random.normal(size=(1, 6, 12)).astype(typed)} for _ in range(count)]


def answer(path: Path, fed: dict[str, np.ndarray]) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, fed)[0]


@pytest.mark.parametrize("name", TYPES)
def test_inside_it_is_float32_and_outside_as_it_was(name: str, tmp_path: Path) -> None:
    source = network(tmp_path / "m.onnx", TYPES[name])
    wide = widen.in_float32(io.describe(source), tmp_path / "wide.onnx")
    assert wide is not None
    assert [s.dtype for s in (*wide.inputs, *wide.outputs)] == [name, name]
    model = onnx.load(wide.path)
    onnx.checker.check_model(model, full_check=True)
    types = {t.data_type for t in model.graph.initializer if t.name in ("w", "v")}
    assert types == {TensorProto.FLOAT}
    (fed,) = samples(TYPES[name], 1)
    np.testing.assert_allclose(answer(wide.path, fed), answer(source, fed), rtol=1e-2, atol=5e-3)
    assert widen.in_float32(wide, tmp_path / "again.onnx") is None


def test_what_computes_in_float32_is_left_alone(tmp_path: Path) -> None:
    """Positions in float64 beside products in float32."""
    nodes = [
        node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        node("Mul", ["d", "k"], ["e"]),
        node("Cast", ["e"], ["f"], to=TensorProto.FLOAT),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    constants = {"k": np.asarray(1.0000000001), "w": np.eye(12, dtype=np.float32)}
    source = saved(tmp_path / "m.onnx", nodes, TensorProto.FLOAT, constants)
    assert widen.in_float32(io.describe(source), tmp_path / "wide.onnx") is None
    assert not (tmp_path / "wide.onnx").exists()


@pytest.mark.parametrize("name", TYPES)
def test_such_a_file_is_quantized(name: str, tmp_path: Path) -> None:
    source = network(tmp_path / "m.onnx", TYPES[name])
    # ONNX Runtime fuses the product behind a branch neither here nor in the float32 form of the network.
    options = edgekit.Options(
        accept_data=CODES, speed_gate=False, limit={"placement": "30%"}, out=str(tmp_path / "out")
    )
    result = edgekit.build(
        source, targets="ort-int8,ort-fp32", calibration=samples(TYPES[name]), options=options
    )
    integers, floats = result.raise_for_failures().artifacts
    assert integers.manifest.status in (Status.PASSED, Status.UNPROVEN)
    assert integers.manifest.parity.snr_db > 25
    assert any("written in float32 first" in note for step in integers.manifest.steps for note in step.notes)
    assert not any(
        "written in float32 first" in note for step in floats.manifest.steps for note in step.notes
    )
    weights = {t.data_type for t in onnx.load(integers.model).graph.initializer}
    assert {TensorProto.INT8, TensorProto.UINT8} & weights


def test_what_cannot_be_calibrated_costs_the_targets_that_need_it(tmp_path: Path) -> None:
    source = saved(
        tmp_path / "m.onnx",
        [node("Add", ["x", "k"], ["y"])],
        TensorProto.INT64,
        {"k": np.asarray(3, np.int64)},
    )
    rows = [{"x": np.full((1, 6, 12), i, np.int64)} for i in range(8)]
    options = edgekit.Options(accept_data=CODES, speed_gate=False, out=str(tmp_path / "out"))
    result = edgekit.build(source, targets="ort-int8,ort-fp32", calibration=rows, options=options)
    (artifact,) = result.artifacts
    assert artifact.target == "ort-fp32"
    (failure,) = result.failures
    assert isinstance(failure.error, NotCalibratableError)


@pytest.mark.parametrize(
    ("name", "target", "stored"),
    [
        ("float64", "ort-fp16", TensorProto.FLOAT16),
        ("float16", "ort-fp16", TensorProto.FLOAT16),
        ("float64", "tensorrt-fp16", TensorProto.FLOAT16),
        ("float64", "tensorrt-bf16", TensorProto.BFLOAT16),
        ("float16", "tensorrt-bf16", TensorProto.BFLOAT16),
    ],
)
def test_a_target_of_16_bits_computes_in_them(name: str, target: str, stored: int, tmp_path: Path) -> None:
    source = network(tmp_path / "m.onnx", TYPES[name])
    options = edgekit.Options(speed_gate=False, allow_not_run=True, out=str(tmp_path / "out"))
    (artifact,) = edgekit.build(source, targets=target, options=options).raise_for_failures().artifacts
    model = onnx.load(artifact.directory / "model.onnx")
    types = {t.name: t.data_type for t in model.graph.initializer}
    weights = {types[n.input[1]] for n in model.graph.node if n.op_type == "MatMul"}
    assert weights == {stored}
    assert [s.dtype for s in artifact.manifest.inputs] == [name]
