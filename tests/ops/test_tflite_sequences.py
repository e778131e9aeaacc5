"""Sequences of tensors, and loops that end when a counter says so: gone by the time the file is written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("ai_edge_litert")

from tflite_support import check, compiled, graph

from edgekit.errors import UnsupportedOperatorsError

RNG = np.random.default_rng(29)
AT = {"first": np.int64(0), "last": np.int64(-1)}


def values(*names: str, shape: tuple[int, ...] = (2, 3)) -> dict[str, np.ndarray]:
    return {n: RNG.standard_normal(shape).astype(np.float32) for n in names}


def node(op: str, inputs: list[str], output: str, **attributes: object):
    return helper.make_node(op, inputs, [output], **attributes)


@pytest.mark.parametrize("new_axis", [0, 1])
def test_a_sequence_is_made_changed_and_put_together(new_axis):
    nodes = [
        node("SequenceEmpty", [], "s0"),
        node("SequenceInsert", ["s0", "a"], "s1"),
        node("SequenceInsert", ["s1", "b", "first"], "s2"),
        node("SequenceInsert", ["s2", "c"], "s3"),
        node("SequenceErase", ["s3", "first"], "s4"),
        node("ConcatFromSequence", ["s4"], "y", axis=1, new_axis=new_axis),
        node("SequenceAt", ["s4", "last"], "z"),
    ]
    model = graph(nodes, dict.fromkeys("abc", (2, 3)), ["y", "z"], AT)
    check(model, values("a", "b", "c"))


def test_its_length_is_known():
    nodes = [
        node("SequenceConstruct", ["a", "b", "a"], "s"),
        node("SequenceLength", ["s"], "n"),
        node("Cast", ["n"], "f", to=TensorProto.FLOAT),
        node("Mul", ["a", "f"], "y"),
    ]
    check(graph(nodes, {"a": (2, 3), "b": (2, 3)}, ["y"]), values("a", "b"))


@pytest.mark.parametrize("how", ["output", "position", "empty"])
def test_what_cannot_be_known_is_refused(how):
    nodes = [node("SequenceConstruct", ["a", "b"], "s")]
    inputs, words = {"a": (2, 3), "b": (2, 3)}, "a sequence of tensors"
    types = {"i": TensorProto.INT64}
    if how == "output":
        nodes.append(node("Identity", ["s"], "y"))
    elif how == "position":
        nodes.append(node("SequenceAt", ["s", "i"], "y"))
        inputs, words = inputs | {"i": ()}, "computed at run time"
    else:
        nodes = [node("SequenceEmpty", [], "s"), node("ConcatFromSequence", ["s"], "y", axis=0)]
        words = "empty sequence"
    with pytest.raises(UnsupportedOperatorsError, match=words):
        compiled(graph(nodes, inputs, ["y"], types=types))


@pytest.mark.parametrize("bags", [1, 4])
def test_embedding_bags_are_rows_and_sums(bags, tmp_path):
    """PyTorch exports them as a loop over the bags that collects a sequence."""
    import torch

    from edgekit.graph import export, passes
    from edgekit.types import TorchModel

    torch.manual_seed(0)
    module = torch.nn.EmbeddingBag(20, 6, mode="mean").eval()
    picked = torch.randint(0, 20, (bags, 5))
    exported = export.export(TorchModel(module=module, example_inputs={"input": picked}), tmp_path / "m.onnx")
    model = passes.optimize(exported, tmp_path / "o.onnx")

    _, ran = check(onnx.load(model.path), {exported.input_names[0]: picked.numpy()})
    wanted = module(picked).detach().numpy()
    assert np.abs(next(iter(ran.outputs.values())) - wanted).max() < 1e-6


def test_a_counter_that_starts_as_a_constant_ends_a_loop_where_it_is_lowered():
    """The states: a counter, and a sum that depends on the data."""
    body = helper.make_graph(
        [
            node("Add", ["count", "one"], "next"),
            node("Less", ["next", "three"], "going"),
            node("Add", ["sum", "x"], "more"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("was", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [2, 3]),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, [2, 3]),
        ],
    )
    loop = helper.make_node("Loop", ["", "true", "zero", "x"], ["n", "y"], body=body)
    constants = {"one": np.int64(1), "three": np.int64(3), "zero": np.int64(0), "true": np.bool_(True)}
    made, _ = check(graph([loop], {"x": (2, 3)}, ["y"], constants), values("x"))
    assert "WHILE" not in made.report.operators
