"""Multiply-accumulates against numbers worked out by hand, and the assignment of kernels to nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from backend_models import CONV_MACS, attention, conv_net, quantized
from onnx import TensorProto, helper, numpy_helper

from edgekit.graph.macs import Kernel, MacNode, assign, axis_sizes, count_macs, summarize

F = TensorProto.FLOAT


def one(path, node, inputs, outputs, weights=()):
    proto = helper.make_model(
        helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
            [helper.make_tensor_value_info(n, F, s) for n, s in outputs],
            [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in weights],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )
    onnx.save(proto, path)
    (found,) = count_macs(path)
    return found.macs


CASES = {
    "grouped convolution": (
        helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 1], pads=[1, 0, 1, 0]),
        [("x", F, [2, 4, 9, 5])],
        [("w", (6, 2, 3, 1))],
        2 * 6 * 5 * 5 * (2 * 3),
    ),
    "1-D convolution": (
        helper.make_node("Conv", ["x", "w"], ["y"]),
        [("x", F, [1, 4, 10])],
        [("w", (8, 4, 3))],
        8 * 8 * 12,
    ),
    "transposed convolution": (
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=2),
        [("x", F, [1, 4, 5, 5])],
        [("w", (4, 3, 2, 2))],
        4 * 25 * (3 * 4),
    ),
    "batched product": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        [("x", F, [2, 3, 4, 5]), ("w", F, [2, 3, 5, 6])],
        [],
        2 * 3 * 4 * 6 * 5,
    ),
    "Gemm with transA": (
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
        [("x", F, [7, 3])],
        [("w", (7, 5))],
        3 * 5 * 7,
    ),
    "einsum": (
        helper.make_node("Einsum", ["x", "w"], ["y"], equation="bqhd, bkhd -> bhqk"),
        [("x", F, [2, 3, 4, 5]), ("w", F, [2, 6, 4, 5])],
        [],
        2 * 3 * 4 * 5 * 6,
    ),
    "einsum with an ellipsis": (
        helper.make_node("Einsum", ["x", "w"], ["y"], equation="...ij,jk->...ik"),
        [("x", F, [2, 3, 4, 5])],
        [("w", (5, 6))],
        2 * 3 * 4 * 5 * 6,
    ),
    "bidirectional LSTM": (
        helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=3, direction="bidirectional"),
        [("x", F, [5, 2, 4])],
        [("w", (2, 12, 4)), ("r", (2, 12, 3))],
        5 * 2 * (2 * 12 * 4 + 2 * 12 * 3),
    ),
    "attention": (
        helper.make_node("Attention", ["x", "k", "v"], ["y"]),
        [("x", F, [1, 2, 3, 4]), ("k", F, [1, 2, 5, 4]), ("v", F, [1, 2, 5, 4])],
        [],
        2 * 3 * 5 * (4 + 4),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_operator(tmp_path, name):
    node, inputs, weights, expected = CASES[name]
    assert one(tmp_path / "m.onnx", node, inputs, [("y", None)], weights) == expected


def test_a_network_node_by_node_with_module_paths(tmp_path):
    nodes = count_macs(conv_net(tmp_path / "m.onnx").path)
    assert {n.name: n.macs for n in nodes} == CONV_MACS
    assert {n.name: n.module_path for n in nodes}["head"] == "classifier"
    assert not any(n.quantized for n in nodes)
    assert {n.weight for n in nodes} == {"float"}


def test_quantizing_changes_no_count(tmp_path):
    model = quantized(conv_net(tmp_path / "m.onnx"), tmp_path / "q.onnx", activation="uint8")
    nodes = count_macs(model.path)
    assert {n.name: n.macs for n in nodes} == CONV_MACS
    assert all(n.quantized for n in nodes)
    assert {n.weight for n in nodes} == {"integer"}


@pytest.mark.parametrize(("between", "expected"), [("MaxPool", True), ("Relu", False)])
def test_integers_are_followed_through_what_moves_values(tmp_path, between, expected):
    attributes = {"kernel_shape": [2, 2]} if between == "MaxPool" else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s"], ["a"], name="dq"),
        helper.make_node(between, ["a"], ["b"], name="between", **attributes),
        helper.make_node("Transpose", ["b"], ["c"], name="moved", perm=[0, 1, 3, 2]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"], name="weight"),
        helper.make_node("Conv", ["c", "v"], ["y"], name="conv"),
    ]
    weights = [("s", np.float32(0.1)), ("w", np.ones((2, 2, 1, 1), np.int8))]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.INT8, [1, 2, 4, 4])],
            [helper.make_tensor_value_info("y", F, None)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in weights],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.save(proto, tmp_path / "m.onnx")
    (conv,) = count_macs(tmp_path / "m.onnx")
    assert conv.quantized is expected


def test_dynamic_axes_take_the_sizes_that_ran(tmp_path):
    path = attention(tmp_path / "m.onnx").path
    sizes = axis_sizes(path, {"x": (3, 5, 8)})
    assert sizes == {"batch": 3, "sequence": 5}
    macs = {n.name: n.macs for n in count_macs(path, sizes)}
    assert macs == {"q": 960, "k": 960, "v": 960, "scores": 600, "mixed": 600}
    assert {n.name: n.macs for n in count_macs(path)}["scores"] == 8  # every axis 1
    assert {n.name for n in count_macs(path) if not n.weight} == {"scores", "mixed"}


def test_a_shape_in_another_layout_binds_nothing(tmp_path):
    assert axis_sizes(attention(tmp_path / "m.onnx").path, {"y": (3, 8, 5)}) == {}


def node(name, *aliases, macs=10, quantized=True):
    return MacNode(
        name=name, op="Conv", macs=macs, module_path="", aliases=(name, *aliases), quantized=quantized
    )


def kernel(name, precision="int8"):
    return Kernel(names=(name,), op="QLinearConv", precision=precision)


def test_kernels_are_found_by_name_decorated_name_and_fused_follower():
    nodes = [node("a"), node("b", "b_out", "relu"), node("c", "c_out", "act", "add")]
    kernels = [kernel("a_token_12"), kernel("relu_nchwc", "fp32"), kernel("add")]
    assert [k.names[0] for k in assign(nodes, kernels).values()] == ["a_token_12", "relu_nchwc", "add"]


def test_one_kernel_is_given_to_one_node_only():
    """Two branches meet in one addition: the kernel named after it ran the branch that has no other."""
    nodes = [node("left", "sum"), node("right", "sum")]
    found = assign(nodes, [kernel("left"), kernel("sum", "fp32")])
    assert found["left"].precision == "int8"
    assert found["right"].precision == "fp32"


def test_what_the_report_does_not_name_is_told_as_unknown():
    found = assign([node("a"), node("b")], [kernel("x"), kernel("y", "fp32"), kernel("a")])
    assert found["b"] is None
    share, fallbacks = summarize(
        [node("a"), node("b")], found, "int8", lambda n, k: "unknown" if k is None else "?"
    )
    assert share == 0.5
    assert [(f.reason, f.nodes, f.share) for f in fallbacks] == [("unknown", ("b",), 0.5)]


def test_no_products_no_share():
    assert summarize([], {}, "int8", lambda n, k: "") == (1.0, ())
