"""Operators that came after what an older TensorRT reads: written in others, with the same numbers, or named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends.base import EngineHost
from edgekit.backends.nvidia import call, dialect, refusals, request, tensorrt_rtx
from edgekit.core import targets
from edgekit.errors import UnsupportedOperatorsError

needs_rtx = pytest.mark.skipif(
    not tensorrt_rtx.available().installed, reason="the extra tensorrt-rtx is not installed"
)
RANDOM = np.random.default_rng(11)
HALF = TensorProto.FLOAT16


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def saved(
    path: Path,
    node: onnx.NodeProto,
    inputs: dict[str, Sequence[int | str]],
    constants: dict[str, np.ndarray],
    opset: int,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """The node between a product of its first input and a sum with its first output."""
    node.input[0], node.output[0] = "h", "n"
    node.name = "new"
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["h"], name="before"),
        node,
        helper.make_node("Add", ["n", "k"], ["y"], name="after"),
    ]
    typed = helper.tensor_dtype_to_np_dtype(kind)
    given = {n: a.astype(typed) if a.dtype.kind == "f" else a for n, a in constants.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(a, n) for n, a in {**given, "k": np.asarray(1.5, typed)}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def answer(path: Path, fed: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, fed)[0]


node = helper.make_node
Case = tuple[int, onnx.NodeProto, dict[str, list[Any]], dict[str, np.ndarray]]
FLAT = {"x": ["batch", 6, 16]}
HEADS = {"x": ["batch", 4, 6, 8]}

CASES: dict[str, Case] = {
    "root mean square": (
        23,
        node("RMSNormalization", ["x", "s"], ["y"], epsilon=1e-3),
        FLAT,
        {"s": normal(16)},
    ),
    "root mean square of two axes": (
        23,
        node("RMSNormalization", ["x", "s"], ["y"], axis=-2),
        HEADS,
        {"s": normal(6, 8)},
    ),
    "attention": (
        23,
        node("Attention", ["x", "kv", "kv"], ["y"], q_num_heads=4, kv_num_heads=4, is_causal=1),
        FLAT,
        {"kv": normal(2, 6, 16)},
    ),
    "attention of groups, with a mask": (
        23,
        node("Attention", ["x", "kv", "kv", "m"], ["y"], scale=0.3, softcap=2.0),
        HEADS,
        {"kv": normal(2, 2, 5, 8), "m": RANDOM.random((6, 5)) < 0.7},
    ),
    "attention of opset 24": (
        24,
        node("Attention", ["x", "kv", "kv"], ["y"]),
        HEADS,
        {"kv": normal(2, 4, 6, 8)},
    ),
    "rotations": (
        23,
        node("RotaryEmbedding", ["x", "c", "s"], ["y"]),
        HEADS,
        {"c": normal(2, 6, 4), "s": normal(2, 6, 4)},
    ),
    "interleaved rotations": (
        23,
        node("RotaryEmbedding", ["x", "c", "s"], ["y"], interleaved=1, num_heads=2),
        FLAT,
        {"c": normal(2, 6, 4), "s": normal(2, 6, 4)},
    ),
    "swish": (24, node("Swish", ["x"], ["y"], alpha=0.7), FLAT, {}),
    "swish as the standard has it": (24, node("Swish", ["x"], ["y"]), FLAT, {}),
    "a norm along the last axis": (
        22,
        node("LayerNormalization", ["x", "s"], ["y"]),
        FLAT,
        {"s": normal(16)},
    ),
    "mish": (22, node("Mish", ["x"], ["y"]), FLAT, {}),
    "hard swish": (22, node("HardSwish", ["x"], ["y"]), FLAT, {}),
    "groups of opset 21": (
        21,
        node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2),
        HEADS,
        {"s": normal(4), "b": normal(4)},
    ),
    "gelu": (23, node("Gelu", ["x"], ["y"]), FLAT, {}),
    "a mean": (23, node("ReduceMean", ["x", "a"], ["y"], keepdims=1), FLAT, {"a": np.asarray([-1])}),
}


@pytest.mark.parametrize("version", ["8.5.2", "8.6.2", "9.3.0", "10.3.0", "10.13.3"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, HALF], ids=["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers_without_it(case: str, kind: int, version: str, tmp_path: Path) -> None:
    opset, made, inputs, constants = CASES[case]
    copy = onnx.NodeProto()
    copy.CopyFrom(made)
    source = saved(tmp_path / "m.onnx", copy, inputs, constants, opset, kind)
    spelled, _ = dialect.spell(source, version, tmp_path / "old.onnx", "tensorrt-fp16")
    model = onnx.load(spelled)
    onnx.checker.check_model(model, full_check=True)
    assert {o.version for o in model.opset_import} == {dialect.opset_of(version)}
    x = {"x": normal(2, *inputs["x"][1:]).astype(helper.tensor_dtype_to_np_dtype(kind))}
    close = {"rtol": 1e-4, "atol": 1e-5} if kind != HALF else {"rtol": 2e-2, "atol": 1e-2}
    np.testing.assert_allclose(answer(spelled, x), answer(source, x), **close)
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)
    assert {n.name.partition("//")[0] for n in model.graph.node} <= {"before", "new", "after"}


@needs_rtx
@pytest.mark.parametrize("version", ["8.5.2", "10.3.0"])
@pytest.mark.parametrize("case", CASES)
def test_a_parser_takes_what_was_written(case: str, version: str, tmp_path: Path) -> None:
    """That of TensorRT for RTX stands for the older ones, whose operators it has, too."""
    opset, made, inputs, constants = CASES[case]
    copy = onnx.NodeProto()
    copy.CopyFrom(made)
    source = saved(tmp_path / "m.onnx", copy, inputs, constants, opset)
    spelled, _ = dialect.spell(source, version, tmp_path / "old.onnx", "tensorrt-fp32")
    low = (2, *inputs["x"][1:])
    job = call.Job(module="tensorrt_rtx", onnx=spelled, profiles={"x": (low, low, low)})
    assert refusals.run_worker(job, targets.find("tensorrt-fp32"), {}).layers > 0


@pytest.mark.parametrize(
    ("made", "constants", "opset", "version", "reason"),
    [
        (
            node("TensorScatter", ["x", "u"], ["y"]),
            {"u": normal(2, 1, 16)},
            24,
            "10.3.0",
            "TensorScatter is newer than the opset 20",
        ),
        (
            node("ScatterElements", ["x", "i", "u"], ["y"], reduction="max"),
            {"i": np.zeros((2, 6, 16), np.int64), "u": normal(2, 6, 16)},
            18,
            "8.6.2",
            "opset 17 has no ScatterElements with reduction=max",
        ),
        (
            node("Pad", ["x", "p"], ["y"], mode="wrap"),
            {"p": np.asarray([0, 0, 1, 0, 0, 1])},
            23,
            "8.6.2",
            "wraps around",
        ),
        (
            node("QuantizeLinear", ["x", "s"], ["y"], block_size=8, axis=-1),
            {"s": np.ones((2, 6, 2), np.float32)},
            21,
            "10.3.0",
            "opset 20 has no QuantizeLinear with block_size=8",
        ),
    ],
)
def test_what_no_older_operators_say_is_named(
    made: onnx.NodeProto,
    constants: dict[str, np.ndarray],
    opset: int,
    version: str,
    reason: str,
    tmp_path: Path,
) -> None:
    copy = onnx.NodeProto()
    copy.CopyFrom(made)
    source = saved(tmp_path / "m.onnx", copy, {"x": [2, 6, 16]}, constants, opset)
    with pytest.raises(UnsupportedOperatorsError) as caught:
        dialect.spell(source, version, tmp_path / "old.onnx", "tensorrt-fp32")
    (problem,) = caught.value.nodes
    assert (problem.op, problem.node) == (made.op_type, "new")
    assert reason in problem.reason


def test_what_an_attribute_says_by_default_is_left_out(tmp_path: Path) -> None:
    """The type that a quantizer gives is its zero point's."""
    made = node(
        "QuantizeLinear", ["x", "s", "z"], ["q"], block_size=0, saturate=1, output_dtype=TensorProto.INT8
    )
    graph = helper.make_graph(
        [
            made,
            node("DequantizeLinear", ["q", "s", "z"], ["y"], block_size=0, output_dtype=TensorProto.FLOAT),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6])],
        [
            numpy_helper.from_array(np.float32(0.1), "s"),
            numpy_helper.from_array(np.int8(0), "z"),
        ],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), path)
    spelled, _ = dialect.spell(path, "8.6.2", tmp_path / "old.onnx", "tensorrt-int8")
    onnx.checker.check_model(onnx.load(spelled), full_check=True)
    x = {"x": normal(2, 6)}
    np.testing.assert_array_equal(answer(spelled, x), answer(path, x))


def test_a_function_in_a_branch_is_written_out(tmp_path: Path) -> None:
    def branch(op: str, **attributes: float) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 6])
        return helper.make_graph([node(op, ["x"], ["o"], name=op, **attributes)], op, [], [out])

    graph = helper.make_graph(
        [
            node(
                "If",
                ["c"],
                ["y"],
                name="if",
                then_branch=branch("Swish", alpha=2.0),
                else_branch=branch("Relu"),
            )
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)
    spelled, _ = dialect.spell(path, "8.6.2", tmp_path / "old.onnx", "tensorrt-fp32")
    for flag in (False, True):
        fed = {"x": normal(2, 6), "c": np.asarray(flag)}
        x = fed["x"]
        wanted = x / (1 + np.exp(-2.0 * x)) if flag else np.maximum(x, 0)
        np.testing.assert_allclose(answer(spelled, fed), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("version", "weak"), [("8.6.2", True), ("10.3.0", False)])
def test_what_stays_in_float32_does_so_in_all_that_it_is_written_in(
    version: str, weak: bool, tmp_path: Path
) -> None:
    """Where the builder chooses precisions it is told of each layer."""
    opset, made, inputs, constants = CASES["root mean square"]
    copy = onnx.NodeProto()
    copy.CopyFrom(made)
    source = saved(tmp_path / "model.onnx", copy, inputs, constants, opset)
    (tmp_path / "recipe.json").write_text('{"precision": "fp16", "float32": ["new", "after"]}')
    host = EngineHost(gpu="Orin", compute_capability="8.7", version=version, driver="R35", dla_cores=0)
    (tmp_path / "out").mkdir()
    order = request.order(source, host, tmp_path / "out")
    written = {n.name for n in onnx.load(order.onnx).graph.node}
    kept = set(order.spec["float32"])  # type: ignore[arg-type]
    assert kept == (written - {"before"} if weak else set())
    assert not weak or len(kept) > 4
    told = " ".join(map(str, order.spec["trtexec"]))  # type: ignore[arg-type]
    assert all((f"{name}:fp32" in told) is weak for name in written - {"before"})
    assert order.record.flags["float32"] == (["new", "after"] if weak else [])  # as its recipe has it


def test_weights_in_a_file_of_their_own_come_along(tmp_path: Path) -> None:
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    nodes = [node("MatMul", ["x", "w"], ["m"], name="m"), node("Swish", ["m"], ["y"], name="s")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 64])],
        [numpy_helper.from_array(normal(64, 64), "w")],
    )
    source = tmp_path / "in" / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.save(model, source, save_as_external_data=True, location="m.onnx.data", size_threshold=100)
    spelled, _ = dialect.spell(source, "8.6.2", tmp_path / "out" / "m.onnx", "tensorrt-fp32")
    x = {"x": normal(2, 64)}
    np.testing.assert_allclose(answer(spelled, x), answer(source, x), rtol=1e-5, atol=1e-6)
