"""Layout: how many transpositions stay, and how many delegate partitions there are."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

pytest.importorskip("ai_edge_litert")

from tflite_support import check, compiled, graph, in_litert, random_feeds, single

from edgekit.errors import UnsupportedOperatorsError

RNG = np.random.default_rng(5)


def weights(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape) * 0.3, np.float32)


def cnn():
    """Strided and depthwise convolutions, a squeeze-and-excite gate, a residual, a pool, two linear layers."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["m"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Conv", ["m", "wd", "bd"], ["d"], group=8, pads=[1] * 4),
        helper.make_node("Clip", ["d", "zero", "six"], ["d6"]),
        helper.make_node("ReduceMean", ["d6", "hw"], ["s"], keepdims=1),
        helper.make_node("Conv", ["s", "w1", "b1"], ["e"]),
        helper.make_node("Sigmoid", ["e"], ["g"]),
        helper.make_node("Mul", ["d6", "g"], ["f"]),
        helper.make_node("Add", ["f", "m"], ["h"]),
        helper.make_node("Concat", ["h", "m"], ["c"], axis=1),
        helper.make_node("AveragePool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["t"]),
        helper.make_node("Gemm", ["t", "w2", "b2"], ["u"], transB=1),
        helper.make_node("Relu", ["u"], ["v"]),
        helper.make_node("Gemm", ["v", "w3", "b3"], ["y"], transB=1),
    ]
    constants = {
        "w0": weights(8, 3, 3, 3), "b0": weights(8), "wd": weights(8, 1, 3, 3), "bd": weights(8), "zero": np.float32(0),
        "six": np.float32(6), "hw": np.asarray([2, 3]), "w1": weights(8, 8, 1, 1), "b1": weights(8),
        "w2": weights(12, 64), "b2": weights(12), "w3": weights(5, 12), "b3": weights(5),
    }  # fmt: skip
    return graph(nodes, {"x": (1, 3, 16, 16)}, ["y"], constants)


def test_a_cnn_keeps_one_transposition_and_one_partition():
    made, run = check(cnn())
    assert made.report.transposes == 1
    assert run.partitions == 1
    assert made.inputs[0].layout == "NCHW"
    assert made.report.fusions["activation"] == 3


def test_nhwc_at_the_boundary_leaves_none():
    model = cnn()
    made = compiled(model, io_layout="nhwc")
    assert made.report.transposes == 0
    assert made.inputs[0].layout == "NHWC"
    assert made.inputs[0].shape == (1, 16, 16, 3)
    x = random_feeds(model)["x"]
    given = in_litert(made, {"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1))}).outputs["y"]
    plain = in_litert(compiled(model), {"x": x}).outputs["y"]
    np.testing.assert_allclose(given, plain, rtol=1e-5, atol=1e-6)


def test_channel_shuffle_costs_one_transposition():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "split"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "join"], ["j"]),
        helper.make_node("Conv", ["j", "w"], ["y"]),
    ]
    constants = {
        "w": weights(6, 6, 1, 1),
        "split": np.asarray([1, 2, 3, 4, 4]),
        "join": np.asarray([1, 6, 4, 4]),
    }
    made, _ = check(graph(nodes, {"x": (1, 6, 4, 4)}, ["y"], constants))
    assert made.report.transposes == 3  # in, shuffle, out


def test_patch_embedding_costs_none_beyond_the_input():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[4, 4]),
        helper.make_node("Reshape", ["c", "s"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "m"], ["y"]),
    ]
    constants = {"w": weights(10, 3, 4, 4), "s": np.asarray([1, 10, 16]), "m": weights(10, 6)}
    made, _ = check(graph(nodes, {"x": (1, 3, 16, 16)}, ["y"], constants))
    assert made.report.transposes == 1


def test_shape_computations_vanish():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.asarray(0), "axis": np.asarray([0]), "rest": np.asarray([-1])}
    made, _ = check(graph(nodes, {"x": (2, 3, 4)}, ["y"], constants))
    assert made.report.operators == {"RESHAPE": 1}


def test_masked_attention_is_one_partition_and_keeps_rows_that_are_masked_out():
    nodes = [
        helper.make_node("Where", ["mask", "zero", "minus"], ["bias"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Add", ["s", "bias"], ["m"]),
        helper.make_node("Softmax", ["m"], ["p"], axis=-1),
        helper.make_node("IsNaN", ["p"], ["n"]),
        helper.make_node("Where", ["n", "zero", "p"], ["c"]),
        helper.make_node("MatMul", ["c", "v"], ["y"]),
    ]
    shape = (1, 2, 4, 8)
    model = graph(
        nodes,
        {"q": shape, "k": shape, "v": shape, "mask": (1, 1, 4, 4)},
        ["y"],
        {"zero": np.float32(0), "minus": np.float32(-np.inf)},
        types={"mask": TensorProto.BOOL},
    )
    feeds = {n: weights(*shape) for n in "qkv"}
    mask = np.tri(4, dtype=np.bool_)[None, None].copy()
    mask[..., 2, :] = False
    _, run = check(model, feeds | {"mask": mask})
    assert run.partitions == 1
    assert not np.any(run.outputs["y"][:, :, 2])


@pytest.mark.parametrize("count", [6, 11, 30])
def test_long_concatenations_stay_in_the_delegate(count):
    names = [f"x{i}" for i in range(count)]
    nodes = [helper.make_node("Sigmoid", [n], [f"s{n}"]) for n in names]
    nodes += [helper.make_node("Concat", [f"s{n}" for n in names], ["y"], axis=1)]
    _, run = check(graph(nodes, {n: (1, 2 + i % 3, 4) for i, n in enumerate(names)}, ["y"]))
    assert run.partitions == 1
    assert "CONCATENATION" in run.ops


def test_focus_slices_stay_in_the_delegate():
    ends = np.iinfo(np.int64).max
    nodes, parts, constants = (
        [],
        [],
        {"axes": np.asarray([2, 3]), "ends": np.asarray([ends, ends]), "steps": np.asarray([2, 2])},
    )
    for i, start in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        constants[f"s{i}"] = np.asarray(start)
        nodes.append(helper.make_node("Slice", ["x", f"s{i}", "ends", "axes", "steps"], [f"p{i}"]))
        parts.append(f"p{i}")
    nodes += [helper.make_node("Concat", parts, ["c"], axis=1), helper.make_node("Conv", ["c", "w"], ["y"])]
    constants["w"] = weights(8, 12, 1, 1)
    _, run = check(graph(nodes, {"x": (1, 3, 8, 8)}, ["y"], constants))
    assert run.partitions == 1


def test_all_refusals_come_at_once():
    nodes = [
        helper.make_node("Unknowable", ["x"], ["a"], name="first", domain="custom"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Unthinkable", ["b"], ["y"], name="second", domain="custom"),
    ]
    model = graph(nodes, {"x": (2, 3)}, ["y"])
    model.opset_import.append(helper.make_opsetid("custom", 1))
    with pytest.raises(UnsupportedOperatorsError) as caught:
        compiled(model)
    assert [n.node for n in caught.value.nodes] == ["first", "second"]


def test_names_of_the_source_and_a_signature():
    from ai_edge_litert.interpreter import Interpreter

    made = compiled(cnn(), metadata={"edgekit.manifest": "abc"})
    interpreter = Interpreter(model_content=bytes(made.data))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["x"], "outputs": ["y"]}}
    assert interpreter.get_input_details()[0]["name"] == "x"
    assert b"edgekit.manifest" in bytes(made.data)
    assert b"abc" in bytes(made.data)


def test_same_graph_same_bytes():
    model = cnn()
    assert bytes(compiled(model).data) == bytes(compiled(model).data)


def test_an_input_that_is_an_output():
    model = single("Identity", [(2, 3)])
    check(model)


def test_equal_constants_share_a_buffer():
    w = weights(64, 64)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    shared = compiled(graph(nodes, {"x": (1, 64)}, ["y"], {"a": w, "b": w.copy()}))
    apart = compiled(graph(nodes, {"x": (1, 64)}, ["y"], {"a": w, "b": w + 1}))
    assert len(apart.data) - len(shared.data) >= w.nbytes - 64


@pytest.mark.parametrize("index", [np.arange(6).reshape(1, 6, 1), np.asarray([1, 3, 5]), np.asarray([2, 3])])
def test_gathering_a_run_is_a_slice(index):
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Gather", ["s", "i"], ["y"], axis=1)]
    made, run = check(graph(nodes, {"x": (2, 6, 4)}, ["y"], {"i": index}))
    assert "GATHER" not in made.report.operators
    assert run.partitions == 1


@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [3, 2, 0, 4]])
def test_reflection_stays_in_the_delegate(pads):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Pad", ["c", "pads"], ["p"], mode="reflect"),
        helper.make_node("Conv", ["p", "w"], ["y"]),
    ]
    constants = {"w": weights(3, 3, 1, 1), "pads": np.array([0, 0, *pads[:2], 0, 0, *pads[2:]])}
    _, run = check(graph(nodes, {"x": (1, 3, 7, 8)}, ["y"], constants))
    assert run.partitions == 1


@pytest.mark.parametrize(("scales", "partitions"), [((2, 2), 1), ((3, 1), 1), ((1.5, 2), 2)])
def test_nearest_resizing_by_whole_factors_stays_in_the_delegate(scales, partitions):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node(
            "Resize", ["c", "", "s"], ["r"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        ),
        helper.make_node("Conv", ["r", "w"], ["y"]),
    ]
    constants = {"w": weights(3, 3, 1, 1), "s": np.array([1, 1, *scales], np.float32)}
    _, run = check(graph(nodes, {"x": (2, 3, 6, 4)}, ["y"], constants))
    assert run.partitions == partitions
