"""ONNX files whose answers are others each time: comparisons agree by one runtime's seed, and that is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit.core.progress import Event, EventKind

node = helper.make_node


def saved(path: Path, nodes: Sequence[onnx.NodeProto]) -> Path:
    constants = {
        "yes": np.asarray(True),
        "no": np.asarray(False),
        "half": np.asarray(0.5, np.float32),
        "w": np.eye(4, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [2, 4])
    return helper.make_graph(nodes, "b", [], [out])


FIRST = node("MatMul", ["x", "w"], ["h"])
LAST = node("Add", ["h", "n"], ["y"])
BRANCHES = {
    "then_branch": branch(node("Bernoulli", ["s"], ["t"], name="coin", seed=1.0)),
    "else_branch": branch(node("Neg", ["h"], ["e"])),
}
GRAPHS = {
    "noise": (
        [FIRST, node("RandomNormalLike", ["h"], ["n"], name="noise", seed=2.0), LAST],
        "RandomNormalLike at noise",
    ),
    "in a branch": (
        [
            FIRST,
            node("Sigmoid", ["h"], ["s"]),
            node("ReduceMax", ["h"], ["m"], keepdims=0),
            node("Less", ["m", "half"], ["c"]),
            node("If", ["c"], ["n"], **BRANCHES),  # type: ignore[arg-type]
            LAST,
        ],
        "Bernoulli at coin",
    ),
    "dropout as in training": (
        [FIRST, node("Dropout", ["h", "half", "yes"], ["n"], name="drop", seed=3), LAST],
        "Dropout at drop",
    ),
    "dropout": ([FIRST, node("Dropout", ["h", "half", "no"], ["n"], name="drop"), LAST], ""),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_each_build_says_so_and_the_manifest_does(case: str, tmp_path: Path) -> None:
    nodes, named = GRAPHS[case]
    source = saved(tmp_path / "m.onnx", nodes)
    options = edgekit.Options(speed_gate=False, allow_not_run=True, out=str(tmp_path / "out"))
    for _ in range(2):  # the second from the cache
        heard: list[Event] = []
        result = edgekit.build(source, targets="tensorrt-fp32", options=options, progress=heard.append)
        notes = [event.text for event in heard if event.kind is EventKind.NOTE]
        said = [note for note in notes if "draws random numbers" in note]
        assert len(said) == bool(named)
        assert all(named in note for note in said)
        for artifact in result.artifacts:
            notes = [note for step in artifact.manifest.steps for note in step.notes]
            assert any("draws random numbers" in note for note in notes) is bool(named)
    assert result.artifacts or named
