"""Padding with -inf: where every window of a maximum holds a number, nothing infinite comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends.nvidia import infinities, plain, portable, refusals, tensorrt
from edgekit.core import targets
from edgekit.errors import UnsupportedOperatorsError
from edgekit.graph import io

INFINITY = np.float32(-np.inf)
node = helper.make_node


def saved(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: dict[str, Any],
    *,
    rank: int = 4,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"d{i}" for i in range(rank)])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def answer(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


def weights() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(5, 3, 3, 2)).astype(np.float32)


DECONVOLUTION = {"strides": [2, 3], "dilations": [3, 2]}
FRONTS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "a dilated maximum of its own": (
        [node("MaxPool", ["x"], ["p"], kernel_shape=[3, 2], dilations=[2, 3], pads=[2, 1, 2, 1])],
        {},
    ),
    "two of them": (
        [
            node("MaxPool", ["x"], ["q"], kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["q"], ["r"]),
            node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], dilations=[3, 1], strides=[2, 2]),
        ],
        {},
    ),
    "what was padded with -inf before": (
        [
            node("Pad", ["x", "around", "never"], ["q"]),
            node("MaxPool", ["q"], ["p"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        ],
        {"around": np.asarray([0, 0, 0, 1, 0, 0, 1, 1]), "never": INFINITY},
    ),
    "a scattered maximum": (
        [node("ScatterElements", ["x", "i", "u"], ["p"], axis=2, reduction="max")],
        {"i": np.zeros((1, 5, 1, 7), np.int64), "u": np.ones((1, 5, 1, 7), np.float32)},
    ),
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "VALID"])
def test_a_transposed_convolution_behind_it_is_written(front: str, auto_pad: str, tmp_path: Path) -> None:
    nodes, constants = FRONTS[front]
    last = node("ConvTranspose", ["p", "w"], ["y"], auto_pad=auto_pad, **DECONVOLUTION)
    path = saved(tmp_path / "m.onnx", [*nodes, last], [1, 5, 8, 7], {**constants, "w": weights()})
    x = np.random.default_rng(4).normal(size=(1, 5, 8, 7)).astype(np.float32) - 9
    lowered = tensorrt.lower(io.describe(path), targets.find("tensorrt-fp32"), {}, tmp_path)
    assert any("ConvTranspose written in operators" in note for note in lowered.notes)
    assert np.allclose(answer(tmp_path / lowered.files[0], x), answer(path, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "size", "known"),
    [
        ({"kernel_shape": [3], "pads": [2, 2]}, 4, infinities.Known.FINITE),
        ({"kernel_shape": [2], "dilations": [2], "pads": [2, 2]}, 4, infinities.Known.FINITE),
        ({"kernel_shape": [2], "dilations": [3], "pads": [2, 2]}, 1, infinities.Known.INFINITE),
        ({"kernel_shape": [2], "dilations": [2], "pads": [3, 0]}, 9, infinities.Known.INFINITE),
        ({"kernel_shape": [2], "strides": [4], "pads": [0, 3]}, 5, infinities.Known.FINITE),
        ({"kernel_shape": [2], "strides": [3], "pads": [0, 5]}, 4, infinities.Known.INFINITE),
        ({"kernel_shape": [3], "strides": [2], "pads": [1, 1], "ceil_mode": 1}, 6, infinities.Known.FINITE),
        ({"kernel_shape": [3], "dilations": [2], "pads": [4, 4]}, "n", infinities.Known.FINITE),
        ({"kernel_shape": [3], "dilations": [2], "pads": [4, 5]}, "n", infinities.Known.INFINITE),
    ],
)
@pytest.mark.parametrize("outside", [False, True], ids=["its own padding", "a Pad before it"])
def test_a_window_in_the_padding_alone_gives_an_infinity(
    pool: dict[str, Any], size: int | str, known: infinities.Known, outside: bool, tmp_path: Path
) -> None:
    pads = pool["pads"]
    attributes = {k: v for k, v in pool.items() if k != "pads" or not outside}
    nodes = [
        node("Sin", ["x"], ["s"]),
        node("Pad", ["s", "around", "never"], ["q"]),
        node("MaxPool", ["q" if outside else "s"], ["y"], **attributes),
    ]
    around = np.asarray([0, 0, pads[0], 0, 0, pads[1]])
    constants = {"around": around, "never": INFINITY}
    path = saved(tmp_path / "m.onnx", nodes if outside else nodes[::2], [1, 1, size], constants, rank=3)
    graph = io.load(path).graph
    assert infinities.known_of(graph.outputs[0]) is known
    if outside and isinstance(size, int):  # ONNX Runtime begins with the least finite number
        nothing = bool((answer(path, np.ones((1, 1, size), np.float32)) < -1e30).any())
        assert nothing is (known is infinities.Known.INFINITE)


def test_what_cannot_be_written_is_refused_for_every_target(tmp_path: Path) -> None:
    """A parser takes it, and no builder: without a device nobody would know."""
    nodes = [
        node("Where", ["f", "x", "never"], ["m"]),
        node("ConvTranspose", ["m", "w"], ["y"], name="late", **DECONVOLUTION),
    ]
    constants = {"f": np.ones((1, 5, 8, 7), bool), "never": INFINITY, "w": weights()}
    path = saved(tmp_path / "m.onnx", nodes, [1, 5, 8, 7], constants)
    assert plain.write_plainly(io.load(path)) == ()
    for name in ("tensorrt-fp16", "tensorrt-fp32"):
        with pytest.raises(UnsupportedOperatorsError, match="both strides and dilations") as caught:
            tensorrt.lower(io.describe(path), targets.find(name), {}, tmp_path / "out")
        assert [(n.op, n.node) for n in caught.value.nodes] == [("ConvTranspose", "late")]


def test_one_of_strides_and_dilations_is_not_refused(tmp_path: Path) -> None:
    for number, kept in enumerate(({"strides": [2, 2]}, {"dilations": [2, 2]}, {})):
        path = saved(
            tmp_path / f"{number}.onnx",
            [node("ConvTranspose", ["x", "w"], ["y"], name="t", **kept)],
            [1, 5, 8, 7],
            {"w": weights()},
        )
        written = portable.write_portable(
            io.describe(path), targets.find("tensorrt-fp32"), tmp_path / f"{number}.plain.onnx", {}
        )
        assert refusals.static_problems(written.model.path, written.modules) == []
