"""Results whose size only the run tells, and what may follow them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

pytest.importorskip("ai_edge_litert")

from tflite_support import check, compiled, graph

from edgekit.errors import UnsupportedOperatorsError

RNG = np.random.default_rng(23)
INTEGER = {"y": TensorProto.INT64}


def sparse(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape) * (RNG.random(shape) < 0.4), np.float32)


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_nonzero(shape, dtype):
    types = INTEGER | {"x": helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}
    model = graph([helper.make_node("NonZero", ["x"], ["y"])], {"x": shape}, ["y"], types=types)
    made, _ = check(model, {"x": (sparse(*shape) * 9).astype(dtype)})
    check(model, {"x": np.zeros(shape, dtype)})  # nothing found
    assert made.outputs[0].shape == (len(shape), "y_1")


def suppression(
    shape: tuple[int, int, int], limits: list[object], tail: list | None = None, *, kind: int = 0
):
    """Boxes [batch, count, 4] and scores [batch, classes, count] into NonMaxSuppression."""
    batch, classes, count = shape
    names = [f"l{i}" if v is not None else "" for i, v in enumerate(limits)]
    constants = {n: np.asarray(v) for n, v in zip(names, limits, strict=True) if n}
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *names], ["n"], center_point_box=kind)
    inputs = {"boxes": (batch, count, 4), "scores": (batch, classes, count)}
    nodes = [node, *(tail or [helper.make_node("Identity", ["n"], ["y"])])]
    return graph(nodes, inputs, ["y"], constants, types=INTEGER)


def candidates(shape: tuple[int, int, int], kind: int = 0) -> dict[str, np.ndarray]:
    batch, classes, count = shape
    corner, size = RNG.random((batch, count, 2)), RNG.random((batch, count, 2)) * 0.5 + 0.1
    second = size if kind else corner + size * np.where(RNG.random((batch, count, 1)) < 0.3, -1, 1)
    return {
        "boxes": np.concatenate([corner, second], -1).astype(np.float32),
        "scores": RNG.random((batch, classes, count)).astype(np.float32),
    }


@pytest.mark.parametrize("shape", [(1, 1, 20), (2, 3, 12)])
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(
    "limits",
    [
        [np.array([5]), np.float32([0.3]), np.float32([0.2])],
        [np.int64(100), np.float32(0.5), None],
        [np.array([4]), None, None],
        [np.array([100]), np.float32([0.99]), np.float32([0.5])],
        [np.array([3]), np.float32([0.5]), np.float32([2.0])],
    ],
)
def test_non_max_suppression(shape, kind, limits):
    check(suppression(shape, limits, kind=kind), candidates(shape, kind))


def test_the_boxes_that_are_left():
    """As detectors export it: the third column, without its axis, into the boxes."""
    shape = (1, 2, 15)
    tail = [
        helper.make_node("Gather", ["n", "two"], ["column"], axis=1),
        helper.make_node("Squeeze", ["boxes", "first"], ["table"]),
        helper.make_node("Gather", ["table", "column"], ["picked"], axis=0),
        helper.make_node("Mul", ["picked", "sizes"], ["y"]),
    ]
    model = suppression(shape, [np.array([6]), np.float32([0.4]), np.float32([0.1])], tail)
    for name, value in {
        "two": np.int64(2),
        "first": np.array([0]),
        "sizes": np.float32([640, 480, 640, 480]),
    }.items():
        model.graph.initializer.append(helper.make_tensor(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape, value.reshape(-1)
        ))  # fmt: skip
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    made, _ = check(model, candidates(shape))
    assert made.outputs[0].shape == ("y_0", 4)


@pytest.mark.parametrize(
    ("op", "inputs"), [("Shape", ["n"]), ("Concat", ["n", "n"]), ("ReduceSum", ["n"]), ("Add", ["n", "n"])]
)
def test_what_needs_the_size_is_refused(op, inputs):
    extra = {"axis": 0} if op == "Concat" else {}
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node(op, inputs, ["y"], **extra)]
    with pytest.raises(UnsupportedOperatorsError, match="depends on the data"):
        compiled(graph(nodes, {"x": (3, 4)}, ["y"], types=INTEGER))


def test_limits_of_run_time_are_refused():
    nodes = [helper.make_node("NonMaxSuppression", ["boxes", "scores", "k"], ["y"])]
    inputs = {"boxes": (1, 5, 4), "scores": (1, 1, 5), "k": (1,)}
    with pytest.raises(UnsupportedOperatorsError, match="computed at run time"):
        compiled(graph(nodes, inputs, ["y"], types=INTEGER | {"k": TensorProto.INT64}))
