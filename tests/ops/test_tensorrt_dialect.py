"""Graphs as older TensorRT parsers read them: the same numbers, an older spelling, and a refusal for what has none."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends.nvidia import dialect
from edgekit.errors import UnsupportedError, UnsupportedOperatorsError
from edgekit.graph import io

X = np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype("f")


def graph(path, nodes, opset=20, **constants):
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def node(op, *inputs, output="y", **attributes):
    return helper.make_node(op, inputs, [output], name=f"n_{op}", **attributes)


def answer(path):
    return io.session(path).run(None, {"x": X})[0]


i64 = lambda *v: np.asarray(v, "int64")  # noqa: E731

SPELLED = {
    "mean": ([node("ReduceMean", "x", "a", keepdims=0)], {"a": i64(2, 3)}),
    "mean of all": ([node("ReduceMax", "x", keepdims=0)], {}),
    "pad of some axes": (
        [node("Pad", "x", "p", "v", "a")],
        {"p": i64(1, 2, 3, 0), "v": np.float32(2), "a": i64(-1, 2)},
    ),
    "pad": ([node("Pad", "x", "p", mode="reflect")], {"p": i64(0, 0, 1, 2, 0, 0, 3, 1)}),
    "gelu": ([node("Gelu", "x", approximate="tanh")], {}),
    "exact gelu": ([node("Gelu", "x")], {}),
    "mish": ([node("Mish", "x")], {}),
    "layer norm": (
        [node("LayerNormalization", "x", "s", "b")],
        {"s": np.full(6, 2, "f"), "b": np.full(6, 3, "f")},
    ),
    "group norm": (
        [node("GroupNormalization", "x", "s", "b", num_groups=2)],
        {"s": np.full(2, 2, "f"), "b": np.full(2, 3, "f")},
    ),
    "average pool": ([node("AveragePool", "x", kernel_shape=[2, 2], dilations=[1, 1])], {}),
    "resize": (
        [node("Resize", "x", "", "s", mode="linear", antialias=0, axes=[0, 1, 2, 3])],
        {"s": np.asarray([1, 1, 2, 2], "f")},
    ),
    "grid sample": ([node("GridSample", "x", "g", mode="linear")], {"g": np.zeros((1, 2, 2, 2), "f")}),
    "cast": ([node("Cast", "x", output="c", to=TensorProto.INT32, saturate=1), node("Abs", "c")], {}),
}


@pytest.mark.parametrize("version", ["8.5.2", "8.6.2"])
@pytest.mark.parametrize("case", SPELLED)
def test_the_same_numbers_in_opset_17(tmp_path, case, version):
    opset = 21 if case == "group norm" else 20
    nodes, constants = SPELLED[case]
    constants = {k: (np.full(4, v[0], "f") if opset == 21 else v) for k, v in constants.items()}
    source = graph(tmp_path / "m.onnx", nodes, opset, **constants)
    spelled, notes = dialect.spell(source, version, tmp_path / "old.onnx", "tensorrt-fp32")
    model = onnx.load(spelled)
    onnx.checker.check_model(model)
    assert [o.version for o in model.opset_import if not o.domain] == [17]
    assert notes[0].startswith(f"opset {opset} written as 17")
    np.testing.assert_allclose(answer(spelled), answer(source), rtol=1e-5, atol=1e-6)
    if case == "layer norm":
        assert ("LayerNormalization" in {n.op_type for n in model.graph.node}) is (version == "8.6.2")


def test_parts_become_sizes(tmp_path):
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b", "c"], axis=2, num_outputs=3, name="split"),
        node("Concat", "c", "b", "a", axis=2),
    ]
    source = graph(tmp_path / "m.onnx", nodes)
    spelled, _ = dialect.spell(source, "8.6.2", tmp_path / "old.onnx", "t")
    np.testing.assert_array_equal(answer(spelled), answer(source))
    onnx.checker.check_model(onnx.load(spelled))


@pytest.mark.parametrize(
    ("nodes", "constants", "reason"),
    [
        ([node("Pad", "x", "p", mode="wrap")], {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}, "wraps around"),
        (
            [node("Resize", "x", "", "s", mode="linear", antialias=1)],
            {"s": np.asarray([1, 1, 0.5, 0.5], "f")},
            "antialias",
        ),
        ([node("AveragePool", "x", kernel_shape=[2, 2], dilations=[2, 2])], {}, "dilations"),
    ],
)
def test_what_has_no_older_spelling_is_refused_by_name(tmp_path, nodes, constants, reason):
    source = graph(tmp_path / "m.onnx", nodes, **constants)
    with pytest.raises(UnsupportedOperatorsError, match=reason) as caught:
        dialect.spell(source, "8.6.2", tmp_path / "old.onnx", "tensorrt-fp32")
    assert caught.value.nodes[0].node == nodes[0].name
    assert dialect.spell(source, "10.3.0", tmp_path / "new.onnx", "t")[0] == source


def quantized(path):
    weights = np.random.default_rng(1).integers(-127, 128, (5, 4, 3, 3)).astype("int8")
    scales = np.random.default_rng(2).uniform(0.001, 0.1, 5).astype("f")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], axis=0, name="weights"),
        node("Conv", "x", "wd"),
    ]
    return graph(path, nodes, w=weights, s=scales, z=np.zeros(5, "int8"))


def test_weights_are_float_behind_a_pair_before_10(tmp_path):
    source = quantized(tmp_path / "m.onnx")
    spelled, notes = dialect.spell(source, "8.6.2", tmp_path / "old.onnx", "t")
    model = onnx.load(spelled)
    assert [n.op_type for n in model.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    np.testing.assert_array_equal(answer(spelled), answer(source))  # not near: the very same integers
    assert notes[-1].startswith("1 integer constants")
    assert dialect.spell(source, "10.3.0", tmp_path / "new.onnx", "t") == (source, ())


def test_a_parser_that_is_too_old_is_refused(tmp_path):
    source = quantized(tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=r"older than 8\.5"):
        dialect.spell(source, "8.2.1", tmp_path / "old.onnx", "t")
