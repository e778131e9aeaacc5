"""Recurrent layers whose sequences end apart, in 16 bits: the parser mixes the types, and takes them in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends.nvidia import tensorrt_rtx
from edgekit.core import targets
from edgekit.graph import io

pytestmark = pytest.mark.skipif(
    not tensorrt_rtx.available().installed, reason="the extra tensorrt-rtx is not installed"
)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, WIDTH, HIDDEN = 5, 2, 6, 8


def recurrent(path: Path, op: str, *, lengths: bool) -> Path:
    rng = np.random.default_rng(7)
    rows = GATES[op] * HIDDEN
    weights = {
        "w": rng.normal(0, 0.3, (1, rows, WIDTH)).astype(np.float32),
        "r": rng.normal(0, 0.3, (1, rows, HIDDEN)).astype(np.float32),
        "b": rng.normal(0, 0.1, (1, 2 * rows)).astype(np.float32),
    }
    names = ["x", *weights, *(["n"] if lengths else [])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, WIDTH])]
    if lengths:
        inputs.append(helper.make_tensor_value_info("n", TensorProto.INT32, [BATCH]))
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], name="cell", hidden_size=HIDDEN)],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 1, BATCH, HIDDEN])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    imports = [helper.make_opsetid("", 17)]
    onnx.save(
        onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=9)), path
    )
    return path


def cell(
    path: Path,
    op: str,
    *,
    direction: str = "forward",
    state: bool = False,
    peephole: bool = False,
    **how: int,
) -> Path:
    rng, ways = np.random.default_rng(8), 2 if direction == "bidirectional" else 1
    rows = GATES[op] * HIDDEN
    shapes = {"w": (ways, rows, WIDTH), "r": (ways, rows, HIDDEN), "b": (ways, 2 * rows)}
    if state:
        shapes["h"] = (ways, BATCH, HIDDEN)
    if peephole:
        shapes["p"] = (ways, 3 * HIDDEN)
    names = ["x", "w", "r", "b", "", *(["h"] if state else [""]), *(["", "p"] if peephole else [])]
    while not names[-1]:
        names.pop()
    made = helper.make_node(op, names, ["y"], name="cell", hidden_size=HIDDEN, direction=direction, **how)
    graph = helper.make_graph(
        [made],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, ways, BATCH, HIDDEN])],
        [numpy_helper.from_array(rng.normal(0, 0.3, s).astype(np.float32), n) for n, s in shapes.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("state", [False, True], ids=["from zeros", "from a state"])
@pytest.mark.parametrize(
    ("op", "more"),
    [
        ("GRU", {"linear_before_reset": 0}),
        ("GRU", {"linear_before_reset": 1}),
        ("RNN", {}),
        ("LSTM", {}),
        ("LSTM", {"peephole": True}),
    ],
)
def test_each_kind_of_cell_builds_in_16_bits(
    tmp_path: Path, op: str, more: dict[str, int], state: bool, direction: str
) -> None:
    source = cell(tmp_path / "source.onnx", op, direction=direction, state=state, **more)  # type: ignore[arg-type]
    for precision in ("fp16", "bf16"):
        out = tmp_path / precision
        out.mkdir()
        target = targets.find(f"tensorrt-rtx-{precision}")
        lowered = tensorrt_rtx.lower(io.describe(source), target, {}, out)
        kept = any("GRU layers" in note for note in lowered.notes)
        assert kept is (op == "GRU" and precision == "bf16")
        if kept:
            x = {"x": np.random.default_rng(2).normal(size=(STEPS, BATCH, WIDTH)).astype(np.float32)}
            np.testing.assert_allclose(run(out / "model.onnx", x), run(source, x), atol=1e-5)


def run(path: Path, fed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, fed)[0]


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("target", ["tensorrt-rtx-fp16", "tensorrt-rtx-bf16"])
def test_sequences_that_end_apart_build_and_end_where_they_should(
    tmp_path: Path, op: str, target: str
) -> None:
    source = recurrent(tmp_path / "source.onnx", op, lengths=True)
    lowered = tensorrt_rtx.lower(io.describe(source), targets.find(target), {}, tmp_path)
    assert any("sequence lengths" in note for note in lowered.notes)
    fed = {
        "x": np.random.default_rng(1).normal(size=(STEPS, BATCH, WIDTH)).astype(np.float32),
        "n": np.array([STEPS, 2], np.int32),
    }
    expected, found = run(source, fed), run(tmp_path / "model.onnx", fed)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert not found[2:, :, 1].any()


def test_those_of_one_length_are_in_16_bits_all_the_same(tmp_path: Path) -> None:
    source = recurrent(tmp_path / "source.onnx", "LSTM", lengths=False)
    lowered = tensorrt_rtx.lower(io.describe(source), targets.find("tensorrt-rtx-fp16"), {}, tmp_path)
    assert not any("sequence lengths" in note for note in lowered.notes)
    (cell,) = (n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "LSTM")
    weights = {w.name: w.data_type for w in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert weights[cell.input[1]] == TensorProto.FLOAT16
