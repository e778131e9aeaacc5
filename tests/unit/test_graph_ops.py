"""The table of operator traits."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from edgekit.graph import ops
from edgekit.graph.ops import Trait

VALUES = np.arange(1.0, 33.0, dtype=np.float32).reshape(1, 8, 2, 2)
CONSTANTS = {
    "Reshape": [np.array([4, 8])],
    "Squeeze": [np.array([0])],
    "Unsqueeze": [np.array([0])],
    "Expand": [np.array([2, 8, 2, 2])],
    "Tile": [np.array([1, 2, 1, 1])],
    "Slice": [np.array([1]), np.array([5]), np.array([1])],
    "Gather": [np.array([0, 0])],
    "GatherElements": [np.zeros((1, 8, 2, 2), np.int64)],
    "Split": [],
    "Pad": [np.array([0, 0, 1, 1, 0, 0, 1, 1])],
}
ATTRIBUTES = {
    "DepthToSpace": {"blocksize": 2},
    "SpaceToDepth": {"blocksize": 2},
    "MaxPool": {"kernel_shape": [2, 2]},
    "Concat": {"axis": 0},
    "Split": {"num_outputs": 2, "axis": 1},
}


def test_onnx_has_every_operator_of_its_domain() -> None:
    every = Trait(0)
    for trait in Trait:
        every |= trait
    unknown = [op for op in ops.named(every) if not onnx.defs.has(op)]
    assert not unknown


@pytest.mark.parametrize("op", sorted(ops.named(Trait.CARRIES)))
def test_what_carries_values_computes_none(op: str) -> None:
    """Every value that comes out went in; views keep the order."""
    constants = {f"c{i}": a for i, a in enumerate(CONSTANTS.get(op, []))}
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = onnx.helper.make_node(op, ["x", *constants], outputs, **ATTRIBUTES.get(op, {}))
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, VALUES.shape)],
        [onnx.helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs],
        [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    result = onnx.reference.ReferenceEvaluator(model).run(None, {"x": VALUES})[0]
    added = {0.0} if op in ops.named(Trait.PADS) else set()
    assert set(result.ravel().tolist()) <= set(VALUES.ravel().tolist()) | added
    if op in ops.named(Trait.VIEW | Trait.PASSES):
        assert np.array_equal(result.ravel(), VALUES.ravel())
    if op in ops.named(Trait.PERMUTES):
        assert np.array_equal(np.sort(result.ravel()), VALUES.ravel())


def test_nodes_are_asked_by_domain() -> None:
    x = ir.Value(name="x")
    assert ops.is_op(ir.Node("", "Conv", [x]), "Gemm", "Conv")
    assert ops.has(ir.Node("ai.onnx", "Conv", [x]), Trait.WEIGHTED)
    assert not ops.is_op(ir.Node("acme", "Conv", [x]), "Conv")
    assert not ops.has(ir.Node("acme", "Conv", [x]), Trait.WEIGHTED)
    assert not ops.is_op(None, "Conv")
    assert ops.has(onnx.helper.make_node("QGemm", [], [], domain="com.microsoft"), Trait.INTEGER)
