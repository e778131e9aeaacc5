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

from edgekit.backends.nvidia import plain, tensorrt_rtx
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
