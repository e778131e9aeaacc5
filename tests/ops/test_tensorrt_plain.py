"""Operators written for TensorRT's parser in others: ONNX Runtime says the same of both, and the parser takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends.nvidia import plain, tensorrt_rtx
from edgekit.core import targets
from edgekit.graph import io

needs_rtx = pytest.mark.skipif(
    not tensorrt_rtx.available().installed, reason="the extra tensorrt-rtx is not installed"
)
RANDOM = np.random.default_rng(0)


def made(
    path: Path,
    node: onnx.NodeProto,
    given: dict[str, list[int]],
    constants: dict[str, Any],
    shape: list[int] | None = None,
) -> Path:
    types = {"indices": TensorProto.INT64}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), s) for n, s in given.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(plain.MICROSOFT, 1)]
    onnx.save(
        onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=9)), path
    )
    return path


def answers(path: Path, fed: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, fed)[0]


def pool(path: Path, **attributes: Any) -> tuple[Path, dict[str, Any]]:
    rank = len(attributes["kernel_shape"])
    shape = [2, 3, 11, 9, 8][: 2 + rank]
    node = helper.make_node("MaxPool", ["x"], ["y"], name="pool", **attributes)
    return made(path, node, {"x": shape}, {}), {"x": RANDOM.normal(size=shape).astype(np.float32) - 5}


def scatter(path: Path, *, known: bool, rank: int = 2) -> tuple[Path, dict[str, Any]]:
    indices = np.array([[3], [0], [3], [-1], [5], [3]], np.int64)
    fed = {
        "data": RANDOM.normal(size=(7, 4)[:rank]).astype(np.float32),
        "updates": RANDOM.normal(size=(6, 4)[:rank]).astype(np.float32),
    }
    given = {n: list(v.shape) for n, v in fed.items()} | ({} if known else {"indices": [6, 1]})
    node = helper.make_node("ScatterND", ["data", "indices", "updates"], ["y"], name="s", reduction="add")
    return made(path, node, given, {"indices": indices} if known else {}), fed | (
        {} if known else {"indices": indices}
    )


def attention(path: Path, **attributes: Any) -> tuple[Path, dict[str, Any]]:
    constants = {"w": RANDOM.normal(size=(16, 48)).astype(np.float32), "b": np.ones(48, np.float32) * 0.1}
    node = helper.make_node(
        "Attention", ["x", "w", "b"], ["y"], name="a", domain=plain.MICROSOFT, num_heads=4, **attributes
    )
    model = made(path, node, {"x": [2, 5, 16]}, constants, [2, 5, 16])
    return model, {"x": RANDOM.normal(size=(2, 5, 16)).astype(np.float32)}


CASES = {
    "pool": lambda p: pool(p, kernel_shape=[3, 2], dilations=[2, 3]),
    "pool with strides and pads": lambda p: pool(
        p, kernel_shape=[3, 3], dilations=[2, 1], strides=[2, 3], pads=[2, 1, 1, 0]
    ),
    "pool of one axis": lambda p: pool(p, kernel_shape=[4], dilations=[2], pads=[3, 0]),
    "pool of three axes": lambda p: pool(p, kernel_shape=[2, 2, 2], dilations=[3, 2, 1]),
    "scatter": lambda p: scatter(p, known=True),
    "scatter to where an input says": lambda p: scatter(p, known=False),
    "scatter of a vector": lambda p: scatter(p, known=True, rank=1),
    "attention": attention,
    # ONNX Runtime 1.31 crashes on one without a bias.
    "attention with a scale": lambda p: attention(p, scale=0.3),
}


@pytest.mark.parametrize("case", CASES)
def test_it_says_the_same(case: str, tmp_path: Path) -> None:
    path, fed = CASES[case](tmp_path / "m.onnx")
    model = io.load(path)
    assert len(plain.write_plainly(model)) == 1
    assert not {("", "ScatterND"), ("", "MaxPool"), (plain.MICROSOFT, "Attention")} & {
        (n.domain, n.op_type) for n in model.graph
    }
    ir.save(model, tmp_path / "plain.onnx")
    onnx.checker.check_model(str(tmp_path / "plain.onnx"))
    assert np.allclose(answers(tmp_path / "plain.onnx", fed), answers(path, fed), rtol=1e-5, atol=1e-5)


@needs_rtx
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_is_built_of_it(case: str, precision: str, tmp_path: Path) -> None:
    path, _ = CASES[case](tmp_path / "m.onnx")
    target = targets.find(f"tensorrt-rtx-{precision}")
    (tmp_path / "out").mkdir()
    lowered = tensorrt_rtx.lower(io.describe(path), target, {}, tmp_path / "out")
    assert any("written in operators that TensorRT has" in note for note in lowered.notes)


@pytest.mark.parametrize(
    "model",
    [
        lambda p: pool(p, kernel_shape=[3, 3]),
        lambda p: pool(p, kernel_shape=[2, 2], dilations=[2, 2], ceil_mode=1, strides=[2, 2]),
        lambda p: attention(p, unidirectional=1),
    ],
    ids=["no dilation", "rounded up", "causal"],
)
def test_what_has_another_form_stays(model: Any, tmp_path: Path) -> None:
    path, _ = model(tmp_path / "m.onnx")
    assert plain.write_plainly(io.load(path)) == ()
