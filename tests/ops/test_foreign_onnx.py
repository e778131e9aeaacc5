"""ONNX files of other exporters: operators on integers, sparse weights, what is no tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import load
from edgekit.errors import SourceError
from edgekit.graph import io, passes

pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(8)
FLOAT, U8 = TensorProto.FLOAT, TensorProto.UINT8


def save(
    path: Path, nodes: list[Any], shapes: Any, outputs: list[Any], constants: Any, opset: int = 17
) -> Path:
    inputs = [helper.make_tensor_value_info(n, FLOAT, s) for n, s in shapes.items()]
    values = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, values)
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def on_integers(path: Path) -> Path:
    """A convolution whose ReLU is its zero point, a sum, moves, and a product."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node(
            "QLinearConv", ["q", "s", "z", "w", "ws", "wz", "cs", "zero", "b"], ["c"], pads=[1] * 4
        ),
        helper.make_node(
            "QLinearAdd", ["c", "cs", "zero", "c", "cs", "zero", "as", "zero"], ["a"], domain="com.microsoft"
        ),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("QLinearMatMul", ["r", "as", "zero", "m", "ms", "mz", "ys", "z"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "ys", "z"], ["y"]),
    ]
    constants = {
        "s": np.float32(0.03),
        "z": np.uint8(128),
        "zero": np.uint8(0),
        "w": RNG.integers(-90, 90, (4, 2, 3, 3)).astype(np.int8),
        "ws": np.array([0.003, 0.004, 0.002, 0.005], np.float32),
        "wz": np.zeros(4, np.int8),
        "b": RNG.integers(-900, 900, 4).astype(np.int32),
        "cs": np.float32(0.01),
        "as": np.float32(0.02),
        "m": RNG.integers(-90, 90, (4, 3)).astype(np.int8),
        "ms": np.float32(0.01),
        "mz": np.int8(0),
        "ys": np.float32(0.06),
        "shape": np.array([-1, 4]),
    }
    return save(
        path, nodes, {"x": (1, 2, 5, 6)}, [helper.make_tensor_value_info("y", FLOAT, (30, 3))], constants
    )


def test_operators_on_integers_become_arithmetic_between_q_and_dq(tmp_path):
    model = io.describe(on_integers(tmp_path / "m.onnx"))
    optimized, report = passes.optimize_with_report(model, tmp_path / "o.onnx")
    kinds = [n.op_type for n in onnx.load(optimized.path).graph.node]
    assert not [k for k in kinds if k.startswith("QLinear")]
    assert {"Conv", "Relu", "Add", "Clip"} <= set(kinds)
    assert report.notes == ()
    x = {"x": RNG.standard_normal((1, 2, 5, 6)).astype(np.float32)}
    expected = io.run(io.session(model.path, optimized=False), x)["y"]
    got = io.run(io.session(optimized.path, optimized=False), x)["y"]
    assert np.abs(got - expected).max() <= 0.0601  # the last bit of an output
    assert np.mean(got == expected) > 0.9


def test_sparse_weights_are_read(tmp_path):
    weight = np.zeros((4, 3), np.float32)
    weight[[0, 2, 3], [1, 0, 2]] = [2.0, -1.0, 0.5]
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "v"], ["z"])],
        {"x": (2, 4)},
        [helper.make_tensor_value_info("z", FLOAT, (2, 3))],
        {},
    )
    proto = onnx.load(path)
    for name, array, flat in (("w", weight, True), ("v", weight[:2] + weight[2:], False)):
        places = np.flatnonzero(array) if flat else np.argwhere(array)
        values = numpy_helper.from_array(array[array != 0], name)
        indices = numpy_helper.from_array(places.astype(np.int64), f"{name}_places")
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(array.shape)))
    onnx.save(proto, path)
    written = io.save(io.load(path), tmp_path / "dense.onnx")
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    got = io.run(io.session(written.path), {"x": x})["z"]
    np.testing.assert_allclose(got, x @ weight + weight[:2] + weight[2:], rtol=1e-6)


def test_a_map_among_the_outputs_is_told_with_what_to_do(tmp_path):
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, None))
    )
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 2])],
        [helper.make_value_info("y", kind)],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(SourceError, match=r"'y' is a sequence that ZipMap makes.*") as error:
        load.load(load.parse(str(tmp_path / "m.onnx")))
    assert "zipmap=False" in error.value.hint


def test_texts_are_told(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [1])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [1])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    with pytest.raises(SourceError, match="holds texts"):
        load.load(load.parse(str(tmp_path / "m.onnx")))


@pytest.mark.parametrize(("opset", "least"), [(17, 10), (24, 12)])
def test_a_file_of_the_newest_version_is_written_as_old_as_it_may_be(tmp_path, opset, least):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    shape = helper.make_tensor_value_info("y", FLOAT, (2, 4))
    path = save(tmp_path / "m.onnx", nodes, {"x": (2, 4)}, [shape], {}, opset)
    proto = onnx.load(path)
    proto.ir_version = onnx.IR_VERSION
    onnx.save(proto, path)
    model = io.load(path)
    io.lower_ir_version(model)
    assert model.ir_version == max(least, onnx.helper.find_min_ir_version_for(proto.opset_import, True))
    assert model.ir_version < onnx.IR_VERSION
    io.session(io.save(model, tmp_path / "n.onnx").path)
