"""float32 → float16 as a rewrite: what changes, what stays on purpose, and that the answer stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from backend_models import attention, conv_net, reference, snr_db
from onnx import TensorProto, helper, numpy_helper

from edgekit.graph import io
from edgekit.graph.passes.half import BFLOAT16, MAX, TINY, to_half


def small(
    path,
    nodes,
    weights=(),
    inputs=(("x", TensorProto.FLOAT, [2, 3]),),
    output=("y", TensorProto.FLOAT, [2, 3]),
):
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(*i) for i in inputs],
            [helper.make_tensor_value_info(*output)],
            [numpy_helper.from_array(array, name) for name, array in weights],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return io.describe(path)


def half(model, path, **options):
    loaded = io.load(model.path)
    report = to_half(loaded, **options)
    result = io.save(loaded, path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return result, report


def dtypes(model):
    """Type of every value, by name, as the checker infers it."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load(model.path))
    infos = (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)
    return {i.name: i.type.tensor_type.elem_type for i in infos}


def test_weights_and_activations_are_half_and_the_boundary_is_float(tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    result, report = half(model, tmp_path / "h.onnx")
    assert report.kept == ()
    assert {i.data_type for i in onnx.load(result.path).graph.initializer} == {TensorProto.FLOAT16}
    assert [(s.name, s.dtype) for s in (*result.inputs, *result.outputs)] == [
        ("x", "float32"),
        ("y", "float32"),
    ]
    casts = [n for n in onnx.load(result.path).graph.node if n.op_type == "Cast"]
    assert len(casts) == 2


def test_what_leaves_the_range_of_float16_stays_in_float32(tmp_path):
    """An RMS norm squares its input: 300² is beyond 65,504, and its epsilon of 1e-12 is below 2^-24."""
    model = attention(tmp_path / "m.onnx")
    result, report = half(model, tmp_path / "h.onnx")
    assert set(report.kept) == {"square", "mean", "shifted", "root"}
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 4, 8), dtype=np.float32) * 1000}
    inputs["x"][0, 0] = 0  # the epsilon decides
    assert snr_db(reference(model, inputs)["y"], reference(result, inputs)["y"]) > 40


def test_named_nodes_stay(tmp_path):
    result, report = half(conv_net(tmp_path / "m.onnx"), tmp_path / "h.onnx", keep=["head"])
    assert report.kept == ("head",)
    types = {i.name: i.data_type for i in onnx.load(result.path).graph.initializer}
    assert types["w3"] == TensorProto.FLOAT
    assert types["w0"] == TensorProto.FLOAT16


def test_constants_out_of_range_are_clamped_and_told(tmp_path):
    mask = np.array([-1e9, 0, -np.inf], np.float32)
    model = small(
        tmp_path / "m.onnx", [helper.make_node("Add", ["x", "mask"], ["y"], name="add")], [("mask", mask)]
    )
    result, report = half(model, tmp_path / "h.onnx")
    assert report.clamped == ("mask",)
    stored = numpy_helper.to_array(onnx.load(result.path).graph.initializer[0])
    assert stored.tolist() == [-MAX, 0, -np.inf]


def test_a_number_beyond_the_range_keeps_its_node(tmp_path):
    """A pressure of 101,325 Pa is no "never" of a mask: clamped, it would be another number."""
    pascal = np.array(101_325, np.float32)
    divide = helper.make_node("Div", ["x", "pascal"], ["y"], name="atmospheres")
    model = small(tmp_path / "m.onnx", [divide], [("pascal", pascal)])
    result, report = half(model, tmp_path / "h.onnx")
    assert report.kept == ("atmospheres",)
    assert report.clamped == ()
    assert [n.op_type for n in onnx.load(result.path).graph.node] == ["Div"]


def test_a_single_small_number_does_not_become_zero(tmp_path):
    eps = np.array(1e-12, np.float32)
    model = small(
        tmp_path / "m.onnx", [helper.make_node("Max", ["x", "eps"], ["y"], name="max")], [("eps", eps)]
    )
    result, report = half(model, tmp_path / "h.onnx")
    assert report.flushed == ("eps",)
    assert numpy_helper.to_array(onnx.load(result.path).graph.initializer[0]) == np.float16(TINY)


def test_a_weight_read_in_both_precisions_exists_in_both(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"], name="add"),
        helper.make_node("Pow", ["w", "two"], ["p"], name="pow"),
        helper.make_node("Pow", ["a", "w"], ["q"], name="wide"),
        helper.make_node("Sub", ["q", "p"], ["y"], name="sub"),
    ]
    weights = [("w", np.full((2, 3), 1.5, np.float32)), ("two", np.array(2, np.float32))]
    model = small(tmp_path / "m.onnx", nodes, weights)
    result, _ = half(model, tmp_path / "h.onnx")
    inputs = {"x": np.abs(np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32))}
    np.testing.assert_allclose(
        reference(model, inputs)["y"], reference(result, inputs)["y"], rtol=5e-3, atol=5e-3
    )


@pytest.mark.parametrize("condition", [True, False])
def test_branches_stay_and_read_what_they_read_before(tmp_path, condition):
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, [2, 3])
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["a", "a"], ["b"], name=f"in_{name}")], name, [], [value]
        )
        for name, op in (("then_branch", "Add"), ("else_branch", "Mul"))
    }
    nodes = [
        helper.make_node("Tanh", ["x"], ["a"], name="before"),
        helper.make_node("If", ["c"], ["i"], name="if", **branches),
        helper.make_node("Neg", ["i"], ["y"], name="after"),
    ]
    inputs = (("x", TensorProto.FLOAT, [2, 3]), ("c", TensorProto.BOOL, []))
    model = small(tmp_path / "m.onnx", nodes, inputs=inputs)
    result, report = half(model, tmp_path / "h.onnx")
    assert set(report.converted) == {"before", "after"}
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32), "c": np.array(condition)}
    np.testing.assert_allclose(
        reference(model, feed)["y"], reference(result, feed)["y"], rtol=2e-3, atol=2e-3
    )


def test_sizes_and_scales_of_resize_keep_their_types(tmp_path):
    nodes = [
        helper.make_node("Cast", ["n"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["m"], name="scaled"),
        helper.make_node("Resize", ["m", "", "scales"], ["y"], name="resize", mode="nearest"),
    ]
    weights = [("scales", np.array([1, 1, 2, 2], np.float32))]
    inputs = (("x", TensorProto.FLOAT, [1, 1, 2, 2]), ("n", TensorProto.INT64, [1]))
    model = small(tmp_path / "m.onnx", nodes, weights, inputs, ("y", TensorProto.FLOAT, [1, 1, 4, 4]))
    result, report = half(model, tmp_path / "h.onnx")
    assert set(report.converted) == {"cast", "scaled", "resize"}
    assert dtypes(result)["f"] == TensorProto.FLOAT16
    feed = {"x": np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2), "n": np.array([3])}
    np.testing.assert_array_equal(reference(model, feed)["y"], reference(result, feed)["y"])


def test_an_input_that_is_an_output_is_left_alone(tmp_path):
    model = small(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"], name="same")])
    result, _ = half(model, tmp_path / "h.onnx")
    assert isinstance(io.load(result.path), ir.Model)
    feed = {"x": np.full((2, 3), 2.5, np.float32)}
    np.testing.assert_array_equal(reference(result, feed)["y"], feed["x"])


def bfloat(model, path):
    loaded = io.load(model.path)
    report = to_half(loaded, BFLOAT16)
    return io.save(loaded, path), report


@pytest.mark.parametrize("network", [conv_net, attention])
def test_bfloat16_has_the_boundary_in_float_and_eight_bits_of_precision(tmp_path, network):
    model = network(tmp_path / "m.onnx")
    result, report = bfloat(model, tmp_path / "b.onnx")
    assert report.kept == ()
    proto = onnx.load(result.path)
    floats = {i.data_type for i in proto.graph.initializer} - {TensorProto.INT64}
    assert floats == {TensorProto.BFLOAT16}
    assert [(s.name, s.dtype) for s in (*result.inputs, *result.outputs)] == [
        ("x", "float32"),
        ("y", "float32"),
    ]
    shape = [d if isinstance(d, int) else 3 for d in model.inputs[0].shape]
    x = {"x": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    (found,) = onnx.reference.ReferenceEvaluator(proto).run(None, x)
    assert 25 < snr_db(reference(model, x)["y"], found) < 60


def test_bfloat16_has_the_range_of_float32(tmp_path):
    """What float16 keeps in float32, and clamps, is itself in bfloat16."""
    model = small(
        tmp_path / "m.onnx",
        [helper.make_node("Exp", ["x"], ["e"], "exp"), helper.make_node("Mul", ["e", "w"], ["y"], "mul")],
        [("w", np.full((2, 3), 1e6, np.float32))],
    )
    result, report = bfloat(model, tmp_path / "b.onnx")
    assert (report.kept, report.clamped, report.flushed) == ((), (), ())
    (weight,) = onnx.load(result.path).graph.initializer
    assert numpy_helper.to_array(weight).astype(np.float32) == pytest.approx(1e6, rel=2**-8)


def test_the_largest_float32_does_not_become_infinite(tmp_path):
    largest = float(np.finfo(np.float32).max)
    nodes = [helper.make_node("Min", ["x", "w"], ["y"], "min")]
    model = small(tmp_path / "m.onnx", nodes, [("w", np.full((2, 3), largest, np.float32))])
    result, report = bfloat(model, tmp_path / "b.onnx")
    (weight,) = onnx.load(result.path).graph.initializer
    assert np.isfinite(numpy_helper.to_array(weight).astype(np.float32)).all()
    assert report.clamped == ("w",)
