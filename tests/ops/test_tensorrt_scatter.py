"""Scattering with a reduction, written for TensorRT's parser: ONNX Runtime says the same, and engines are built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from edgekit.backends.nvidia import infinities, plain, tensorrt_rtx
from edgekit.core import targets
from edgekit.graph import io

needs_rtx = pytest.mark.skipif(
    not tensorrt_rtx.available().installed, reason="the extra tensorrt-rtx is not installed"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """``updates``: the shape of the index, or of what it says where; ``repeat``: the axis along which it is the same;
    ``open_``: whether the first axis has no size."""

    op: str = "ScatterElements"
    shape: tuple[int, ...] = (5, 6, 7)
    updates: tuple[int, ...] = (5, 4, 7)
    axis: int = 1
    reduction: str = "add"
    dtype: Any = np.float32
    known: bool = False
    repeat: int | None = None
    open_: bool = False
    depth: int = 1


CASES = {
    **{f"{r}": Case(reduction=r) for r in ("add", "mul", "min", "max")},
    **{f"{r} of integers": Case(reduction=r, dtype=np.int64) for r in ("add", "mul", "min", "max")},
    **{f"{r} of 32 bits": Case(reduction=r, dtype=np.int32) for r in ("add", "max")},
    "last axis": Case(axis=-1, updates=(5, 6, 4), known=True),
    "first axis": Case(axis=0, updates=(9, 6, 7), reduction="max", known=True),
    "open batch": Case(open_=True, reduction="min"),
    "vector": Case(shape=(6,), updates=(9,), axis=0),
    "rows": Case(shape=(9, 8), updates=(30, 8), axis=0, repeat=1),
    "known rows": Case(shape=(9, 8), updates=(30, 8), axis=0, repeat=1, known=True),
    "columns": Case(shape=(8, 9), updates=(8, 30), axis=1, repeat=0),
    "rows of a batch": Case(updates=(5, 9, 7), axis=1, repeat=2),
    "the same in a batch": Case(updates=(5, 9, 7), axis=1, repeat=0, known=True),
    **{f"slices {r}": Case(op="ScatterND", updates=(11,), reduction=r) for r in ("add", "mul", "min", "max")},
    "slices of integers": Case(op="ScatterND", updates=(11,), dtype=np.int64),
    "slices of two axes": Case(op="ScatterND", updates=(3, 4), depth=2, known=True),
    "elements of three": Case(op="ScatterND", updates=(12,), depth=3, reduction="mul"),
    "many slices": Case(op="ScatterND", updates=(11,), open_=True),
    "slices of a vector": Case(op="ScatterND", shape=(7,), updates=(11,)),
}


def made(case: Case, path: Path) -> tuple[Path, dict[str, Any]]:
    """The model and what it is fed; some places are counted from the end, some are hit twice, some not."""
    random = np.random.default_rng(3)
    axis = case.axis % len(case.shape)
    before: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {}
    if case.op == "ScatterND":
        sizes = case.shape[: case.depth]
        index = np.stack([random.integers(-n, n, size=case.updates) for n in sizes], -1)
        shape, attributes = (*case.updates, *case.shape[case.depth :]), {}
    else:
        few = tuple(1 if i == case.repeat else n for i, n in enumerate(case.updates))
        index = random.integers(-case.shape[axis], case.shape[axis], size=few)
        shape, attributes = case.updates, {"axis": case.axis}
    fed = {"data": (random.normal(size=case.shape) * 3).astype(case.dtype), "index": index.astype(np.int64)}
    fed["updates"] = (random.normal(size=shape) * 3).astype(case.dtype)
    where = "index"
    if case.known:
        constants["index"] = (
            np.broadcast_to(fed.pop("index"), shape) if not case.depth > 1 else fed.pop("index")
        )
    elif case.repeat is not None:
        constants["sizes"], where = np.asarray(shape), "spread"
        before = [helper.make_node("Expand", ["index", "sizes"], [where], name="expand")]
    node = helper.make_node(
        case.op, ["data", where, "updates"], ["y"], name="scatter", reduction=case.reduction, **attributes
    )
    opened = ("updates", "index") if case.op == "ScatterND" else ("data", "updates", "index")
    graph = helper.make_graph(
        [*before, node],
        "g",
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(array.dtype),
                ["many" if case.open_ and not i and name in opened else n for i, n in enumerate(array.shape)],
            )
            for name, array in fed.items()
        ],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype)), None)],
        [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path, fed


def answers(path: Path, fed: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, fed)[0]


@pytest.mark.parametrize("name", CASES)
def test_it_scatters_the_same(name: str, tmp_path: Path) -> None:
    path, fed = made(CASES[name], tmp_path / "m.onnx")
    model = io.load(path)
    assert len(plain.write_plainly(model)) == 1
    assert not any(n.op_type.startswith("Scatter") for n in model.graph)
    ir.save(model, tmp_path / "plain.onnx")
    onnx.checker.check_model(str(tmp_path / "plain.onnx"), full_check=True)
    assert np.allclose(answers(tmp_path / "plain.onnx", fed), answers(path, fed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["rows", "rows of a batch", "slices add"])
def test_sums_of_rows_are_products(name: str, tmp_path: Path) -> None:
    """What would hold every update at every place is too large for graphs of any size."""
    path, _ = made(CASES[name], tmp_path / "m.onnx")
    model = io.load(path)
    plain.write_plainly(model)
    assert "MatMul" in {n.op_type for n in model.graph}


@needs_rtx
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_is_built_that_scatters(name: str, precision: str, tmp_path: Path) -> None:
    path, _ = made(CASES[name], tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    lowered = tensorrt_rtx.lower(
        io.describe(path), targets.find(f"tensorrt-rtx-{precision}"), {}, tmp_path / "out"
    )
    assert any("written in operators that TensorRT has" in note for note in lowered.notes)


@pytest.mark.parametrize(
    "case",
    [
        Case(reduction="none"),
        Case(shape=(3000, 3000), updates=(3000, 3000), axis=0),
        Case(shape=(5, 6, 7), updates=(5, 4, 3)),
    ],
    ids=["overwrites", "too large", "fewer columns"],
)
def test_what_is_scattered_otherwise_stays(case: Case, tmp_path: Path) -> None:
    path, _ = made(case, tmp_path / "m.onnx")
    assert plain.write_plainly(io.load(path)) == ()


def scattered(reduction: str, data: Any, index: Any, updates: Any, path: Path) -> Any:
    """What the model gives once it is written for TensorRT: ``updates`` scattered along the first axis, whole rows."""
    rows = np.broadcast_to(np.asarray(index)[:, None], updates.shape)
    graph = helper.make_graph(
        [
            helper.make_node("Expand", ["index", "sizes"], ["spread"]),
            helper.make_node(
                "ScatterElements", ["data", "spread", "updates"], ["y"], axis=0, reduction=reduction
            ),
        ],
        "g",
        [
            helper.make_tensor_value_info("data", 1, data.shape),
            helper.make_tensor_value_info("index", 7, [len(rows), 1]),
            helper.make_tensor_value_info("updates", 1, updates.shape),
        ],
        [helper.make_tensor_value_info("y", 1, data.shape)],
        [numpy_helper.from_array(np.asarray(updates.shape, np.int64), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    read = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    assert len(plain.write_plainly(read)) == 1
    ir.save(read, path)
    fed = {"data": data, "index": np.asarray(index, np.int64)[:, None], "updates": updates}
    return answers(path, fed)


@pytest.mark.parametrize(("reduction", "end"), [("max", -np.inf), ("min", np.inf)])
def test_places_without_updates_keep_their_infinity(reduction: str, end: float, tmp_path: Path) -> None:
    """A maximum over neighbours begins with -inf, and what has no neighbour is found by it afterwards."""
    data = np.full((4, 2), end, np.float32)
    found = scattered(
        reduction, data, [2, 0, 2], np.asarray([[1, 5], [7, 7], [3, 4]], np.float32), tmp_path / "m.onnx"
    )
    most = [3, 5] if reduction == "max" else [1, 4]
    assert found.tolist() == [[7, 7], [end, end], most, [end, end]]


def test_infinities_that_are_added_stay_where_they_are_put(tmp_path: Path) -> None:
    inf, nan = np.inf, np.nan
    updates = np.asarray([[-inf, 1], [2, inf], [inf, 3], [nan, 4], [5, -inf]], np.float32)
    found = scattered("add", np.ones((5, 2), np.float32), [3, 3, 0, 1, 3], updates, tmp_path / "m.onnx")
    wanted = np.asarray([[inf, 4], [nan, 5], [1, 1], [-inf, nan], [1, 1]], np.float32)
    assert np.array_equal(found, wanted, equal_nan=True)


def test_a_mask_of_columns_that_is_added_is_no_nan(tmp_path: Path) -> None:
    """-inf into named columns of zeros: a vector, of a constant."""
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["i", "last"], ["places"]),
            helper.make_node("ScatterND", ["zeros", "places", "never"], ["mask"], reduction="add"),
            helper.make_node("Add", ["x", "mask"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 6]), helper.make_tensor_value_info("i", 7, [2])],
        [helper.make_tensor_value_info("y", 1, [2, 6])],
        [
            numpy_helper.from_array(np.zeros(6, np.float32), "zeros"),
            numpy_helper.from_array(np.full(2, -np.inf, np.float32), "never"),
            numpy_helper.from_array(np.asarray([1]), "last"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    read = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    assert plain.write_plainly(read)
    ir.save(read, tmp_path / "m.onnx")
    found = answers(tmp_path / "m.onnx", {"x": np.zeros((2, 6), np.float32), "i": np.asarray([4, 1])})
    assert np.allclose(found, [[0.25, 0, 0.25, 0.25, 0, 0.25]] * 2)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("x", infinities.Known.UNKNOWN),
        ("MatMul", infinities.Known.FINITE),
        ("Log", infinities.Known.UNKNOWN),
        ("Where", infinities.Known.INFINITE),
    ],
    ids=["an input", "a product", "a logarithm", "a masked product"],
)
def test_what_is_known_of_infinities(name: str, known: infinities.Known) -> None:
    x = ir.Value(name="x", shape=ir.Shape([2, 2]), type=ir.TensorType(ir.DataType.FLOAT))
    values = {"x": x}
    product = ir.node("MatMul", [x, x])
    never = ir.Value(name="n", const_value=ir.tensor(np.float32([-np.inf])))
    flag = ir.Value(name="f", type=ir.TensorType(ir.DataType.BOOL))
    values["MatMul"] = product.outputs[0]
    values["Log"] = ir.node("Log", [product.outputs[0]]).outputs[0]
    values["Where"] = ir.node("Where", [flag, product.outputs[0], never]).outputs[0]
    assert infinities.known_of(values[name]) is known
