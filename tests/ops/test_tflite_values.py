"""Values that TFLite files once got wrong: indices that come twice, cubic samples at the border, guards against NaN."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from tflite_support import check, compiled, graph, single

from edgekit.errors import UnsupportedOperatorsError

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_of_indices_that_come_twice_the_last_one_is_written(dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shapes = {"x": (3, 5), "i": (3, 4), "u": (3, 4)}
    types = {"x": kind, "i": TensorProto.INT64, "u": kind, "y": kind}
    model = graph(
        [helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=1)], shapes, ["y"], types=types
    )
    index = np.array([[0, 0, 3, 0], [4, 4, 4, 4], [1, 2, 1, -1]])
    values = (RNG.standard_normal((3, 4)) * 9).astype(dtype)
    check(model, {"x": (RNG.standard_normal((3, 5)) * 9).astype(dtype), "i": index, "u": values})


def test_rows_that_come_twice_are_written_by_the_last_one():
    shapes = {"x": (4, 2, 3), "i": (5, 1), "u": (5, 2, 3)}
    model = graph(
        [helper.make_node("ScatterND", ["x", "i", "u"], ["y"])], shapes, ["y"], types={"i": TensorProto.INT64}
    )
    feeds = {n: RNG.standard_normal(shapes[n]).astype(np.float32) for n in "xu"}
    check(model, {**feeds, "i": np.array([[2], [0], [2], [-4], [2]])})


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_cubic_samples_bound_each_tap(padding, align):
    model = single(
        "GridSample", [(1, 2, 4, 6), (1, 7, 3, 2)], mode="cubic", padding_mode=padding, align_corners=align
    )
    grid = (RNG.random((1, 7, 3, 2)) * 6 - 3).astype(np.float32)
    check(model, {"x0": RNG.standard_normal((1, 2, 4, 6)).astype(np.float32), "x1": grid})


SOFTMAX_BEHIND = {
    "a selection": [helper.make_node("Where", ["keep", "x", "never"], ["s"])],
    "a selection and a bias": [
        helper.make_node("Where", ["keep", "x", "never"], ["w"]),
        helper.make_node("Add", ["w", "bias"], ["s"]),
    ],
    "a given tensor": [helper.make_node("Identity", ["masked"], ["s"])],
    "a given mask": [helper.make_node("Add", ["x", "masked"], ["s"])],
}


@pytest.mark.parametrize("what", SOFTMAX_BEHIND)
def test_a_guard_stays_where_a_row_may_be_empty(what):
    nodes = [
        *SOFTMAX_BEHIND[what],
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("IsNaN", ["p"], ["n"]),
        helper.make_node("Where", ["n", "zero", "p"], ["y"]),
    ]
    keep = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], np.bool_)
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    feeds = {"x": x, "keep": keep, "masked": np.where(keep, x, -np.inf).astype(np.float32)}
    read = {name for node in nodes for name in node.input}
    feeds = {name: value for name, value in feeds.items() if name in read}
    constants = {"never": np.float32(-np.inf), "zero": np.float32(0), "bias": x[:1] * 2}
    model = graph(
        nodes,
        {name: value.shape for name, value in feeds.items()},
        ["y"],
        {name: value for name, value in constants.items() if name in read},
        types={"keep": TensorProto.BOOL},
    )
    _, run = check(model, feeds)
    assert not run.outputs["y"][1].any()


@pytest.mark.parametrize(("op", "axes"), [("ReduceSum", 6), ("Softmax", 6), ("Transpose", 8), ("Add", 8)])
def test_more_axes_than_the_kernels_take_are_refused_by_node(op, axes):
    """Such a file was written, and no runtime loaded it."""
    attributes = {"Transpose": lambda rank: {"perm": [*range(1, rank), 0]}}.get(op, lambda rank: {})
    names = ["x", "x"] if op == "Add" else ["x"]
    for rank in (axes, axes + 1):
        model = graph(
            [helper.make_node(op, names, ["y"], name="it", **attributes(rank))], {"x": [2] * rank}, ["y"]
        )
        if rank == axes:
            check(model)
            continue
        with pytest.raises(UnsupportedOperatorsError) as error:
            compiled(model)
        assert [(n.op, n.node) for n in error.value.nodes] == [(op, "it")]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_old_hardmax_is_over_all_axes_from_one_on(axis):
    check(single("Hardmax", [(2, 3, 4)], opset=12, axis=axis))


WIDE = RNG.integers(-(1 << 62), 1 << 62, (4, 5))


@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bits_of_int64(op):
    types = dict.fromkeys("abcy", TensorProto.INT64)
    model = graph([helper.make_node(op, ["a", "b"], ["y"])], {"a": (4, 5), "b": (5,)}, ["y"], types=types)
    check(model, {"a": WIDE, "b": np.array([-1, 0, 1 << 61, 12345, -(1 << 62)])})


@pytest.mark.parametrize("power", [1, 2, 3, 7, 10])
def test_known_powers_of_int64(power):
    types = dict.fromkeys("xpy", TensorProto.INT64)
    model = graph(
        [helper.make_node("Pow", ["x", "p"], ["y"])],
        {"x": (3, 4)},
        ["y"],
        types=types,
        constants={"p": np.asarray(power)},
    )
    check(model, {"x": RNG.integers(-30, 30, (3, 4))})


def test_powers_of_a_known_even_number():
    types = dict.fromkeys("xby", TensorProto.INT64)
    for base, refused in ((2, False), (-6, False), (3, True)):
        model = graph(
            [helper.make_node("Pow", ["b", "x"], ["y"])],
            {"x": (2, 5)},
            ["y"],
            types=types,
            constants={"b": np.asarray(base)},
        )
        if refused:
            with pytest.raises(UnsupportedOperatorsError):
                compiled(model)
        else:
            check(model, {"x": np.arange(-2, 8).reshape(2, 5)})
