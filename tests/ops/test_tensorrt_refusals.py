"""What TensorRT's parser refuses: every node of a graph at once, by name and module, in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends.nvidia import call, portable, refusals, tensorrt, tensorrt_rtx, worker
from edgekit.core import targets
from edgekit.errors import RuntimeCrashError, UnsupportedNode, UnsupportedOperatorsError
from edgekit.graph import io
from edgekit.types import CHECKED

needs_rtx = pytest.mark.skipif(
    not tensorrt_rtx.available().installed, reason="the extra tensorrt-rtx is not installed"
)
TARGET = targets.find("tensorrt-rtx-fp32")
MODULES = {"first": "net.first", "foo": "net.foo", "second": "net.second", "inner": "net.branch"}


def graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    given: dict[str, tuple[int, list[int]]],
    result: tuple[int, list[int]] = (TensorProto.FLOAT, [3, 4]),
    constants: dict[str, Any] | None = None,
) -> Path:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, *kind) for n, kind in given.items()],
        [helper.make_tensor_value_info("y", *result)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def refused(path: Path) -> list[UnsupportedNode]:
    job = call.Job(module="tensorrt_rtx", onnx=path, profiles={})
    with pytest.raises(UnsupportedOperatorsError) as caught:
        refusals.run_worker(job, TARGET, MODULES)
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]  # nothing is left of the search
    return list(caught.value.nodes)


FLOAT, INT64 = (TensorProto.FLOAT, [3, 4]), (TensorProto.INT64, [2, 4])
UPDATES = (TensorProto.FLOAT, [2, 4])


def scatter(data: str, out: str, name: str) -> onnx.NodeProto:
    return helper.make_node("ScatterElements", [data, "i", "u"], [out], name=name, reduction="add", axis=0)


@needs_rtx
def test_what_the_parser_throws_is_named_and_hides_nothing(tmp_path: Path) -> None:
    """It says "Unsupported reduction type" of no node, and reads no further."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        scatter("a", "b", "first"),
        helper.make_node("Det", ["b"], ["unread"], name="foo"),
        scatter("b", "y", "second"),
    ]
    found = refused(graph(tmp_path / "m.onnx", nodes, {"x": FLOAT, "i": INT64, "u": UPDATES}))
    assert [(n.op, n.node, n.module_path) for n in found] == [
        ("ScatterElements", "first", "net.first"),
        ("Det", "foo", "net.foo"),
        ("ScatterElements", "second", "net.second"),
    ]
    assert "reduction" in found[0].reason


@needs_rtx
def test_attributes_that_it_does_not_take_are_all_named(tmp_path: Path) -> None:
    """Of such a node it goes no further, either."""
    nodes = [
        helper.make_node("Mod", ["x", "d"], ["a"], name="first"),
        helper.make_node("Mod", ["a", "d"], ["y"], name="second"),
    ]
    found = refused(graph(tmp_path / "m.onnx", nodes, {"x": FLOAT}, constants={"d": np.float32(3)}))
    assert [(n.node, n.module_path) for n in found] == [("first", "net.first"), ("second", "net.second")]
    assert not any(mark in n.reason for n in found for mark in ("Assertion", "&&", "kINT32"))


@needs_rtx
@pytest.mark.parametrize("kind", ["UINT16", "INT16", "UINT32", "UINT64", "STRING", "FLOAT8E5M2"])
def test_inputs_of_types_that_it_lacks_are_named(kind: str, tmp_path: Path) -> None:
    number = TensorProto.DataType.Value(kind)
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Det", ["a"], ["y"], name="foo"),
    ]
    found = refused(graph(tmp_path / "m.onnx", nodes, {"x": (number, [4, 4])}, (TensorProto.FLOAT, [])))
    assert (found[0].op, found[0].node) == ("input", "x")
    assert kind.lower() in found[0].reason
    assert [n.node for n in found] == ["x", "foo"]


@needs_rtx
def test_an_output_of_a_type_that_it_lacks_hides_nothing(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="foo"),
        helper.make_node("Cast", ["x"], ["y"], name="second", to=TensorProto.INT16),
    ]
    path = graph(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, [4, 4])}, (TensorProto.INT16, [4, 4]))
    found = refused(path)
    assert {"y", "foo", "second"} == {n.node for n in found}


@needs_rtx
def test_constants_of_a_type_that_it_lacks_are_named_by_who_reads_them(tmp_path: Path) -> None:
    """Of these it says neither node nor more: it stops before the first node."""
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="foo"),
        helper.make_node("Cast", ["x"], ["b"], name="cast", to=TensorProto.UINT64),
        helper.make_node("BitShift", ["b", "one"], ["c"], name="first", direction="LEFT"),
        helper.make_node("Cast", ["c"], ["y"], name="second", to=TensorProto.FLOAT),
    ]
    square = (TensorProto.FLOAT, [4, 4])
    found = refused(graph(tmp_path / "m.onnx", nodes, {"x": square}, square, {"one": np.uint64(1)}))
    assert {"foo", "first", "cast"} <= {n.node for n in found}
    assert "uint64" in next(n.reason for n in found if n.node == "first")


@needs_rtx
def test_what_the_builder_refuses_is_named(tmp_path: Path) -> None:
    """The parser takes it, and the builder says of no node that it has no such convolution."""
    weights = np.ones((2, 2, 3, 3), np.float32)
    strange = {"strides": [2, 2], "dilations": [2, 2]}
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["a"], name="plain", strides=[2, 2]),
        helper.make_node("ConvTranspose", ["a", "w"], ["b"], name="first", **strange),
        helper.make_node("ConvTranspose", ["b", "w"], ["y"], name="second", **strange),
    ]
    image = (TensorProto.FLOAT, [1, 2, 4, 4])
    path = graph(
        tmp_path / "m.onnx", nodes, {"x": image}, (TensorProto.FLOAT, [1, 2, 45, 45]), {"w": weights}
    )
    job = call.Job(module="tensorrt_rtx", onnx=path, profiles={}, engine=tmp_path / "m.engine")
    with pytest.raises(UnsupportedOperatorsError) as caught:
        refusals.run_worker(job, TARGET, MODULES)
    assert [(n.node, n.module_path) for n in caught.value.nodes] == [
        ("first", "net.first"),
        ("second", "net.second"),
    ]
    assert "Strided & Dilated" in caught.value.nodes[0].reason
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]


@needs_rtx
def test_nodes_in_branches_are_named(tmp_path: Path) -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["x"], [f"{name}_y"], name="inner")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", *FLOAT)],
        )
        for name, op in (("then", "Foo"), ("else", "Relu"))
    }
    nodes = [
        helper.make_node("If", ["c"], ["a"], name="if", **branches),
        helper.make_node("Mod", ["a", "d"], ["y"], name="second"),
    ]
    given = {"x": FLOAT, "c": (TensorProto.BOOL, [])}
    path = tmp_path / "m.onnx"
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, *kind) for n, kind in given.items()],
        [helper.make_tensor_value_info("y", *FLOAT)],
        [numpy_helper.from_array(np.float32(3), "d")],
        value_info=[helper.make_tensor_value_info("a", *FLOAT)],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    assert {(n.node, n.module_path) for n in refused(path)} == {
        ("inner", "net.branch"),
        ("second", "net.second"),
    }


@needs_rtx
def test_nodes_without_names_get_some(tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["x"], ["a"]), helper.make_node("Det", ["x"], ["y"])]
    path = graph(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, [4, 4])}, (TensorProto.FLOAT, []))
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedOperatorsError) as caught:
        tensorrt_rtx.lower(io.describe(path), TARGET, {}, tmp_path / "out")
    assert {n.node for n in caught.value.nodes} == {"Det_0", "Det_1"}


def test_names_that_two_nodes_have_are_told_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="same"),
        helper.make_node("Neg", ["a"], ["y"], name="same"),
    ]
    path = graph(tmp_path / "m.onnx", nodes, {"x": FLOAT})
    made = portable.write_portable(io.describe(path), TARGET, tmp_path / "out.onnx", {})
    assert sorted(made.modules) == ["same", "same_0"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("false", "TensorRT's parser has no conversion for it"),
        (
            '(dilations[i] == 1) && "This version of TensorRT does not support dilations other than 1."',
            "This version of TensorRT does not support dilations other than 1.",
        ),
        (
            "Assertion failed: (isInt32 || isInt64): This version of TensorRT only supports int32 for Range!",
            "This version of TensorRT only supports int32 for Range!",
        ),
        (
            "Assertion failed: creator && V(c) == CreatorVersion::kV3ONE: NonZero plugin was not found in registry.",
            "NonZero plugin was not found in registry.",
        ),
        (
            "ITensor::getDimensions: Error Code 4: Shape Error (squeeze axis is not a constant In makeAxesMask at "
            "/_src/optimizer/common/shape/shapeContext.cpp:3553)",
            "squeeze axis is not a constant",
        ),
        (
            "the builder made no engine: IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: "
            "attachExceptionMsgToGraph] MyelinCheckException: cudnn_impl.cpp:294: CHECK(false) failed. Strided & "
            "Dilated Deconv are currently not supported In compileGraph at /_src/optimizer/codeGenerator.cpp:2012)",
            "Strided & Dilated Deconv are currently not supported",
        ),
        (
            "the builder made no engine: [tacticSupply.cpp::getSupportedFormats::48] Error Code 2: Internal Error "
            "(Assertion !layerImpls.empty() failed. pick_0 has no runners that implement it In getSupportedFormats at "
            "/_src/optimizer/builder/tacticSupply.cpp:48)",
            "pick_0 has no runners that implement it",
        ),
        ("Unsupported reduction type", "it scatters without a reduction only"),
    ],
)
def test_assertions_are_written_in_words(message: str, words: str) -> None:
    assert call.readable(message) == words


def test_a_crash_says_which_node_was_read_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash.py"
    crash.write_text(
        "import os, signal, sys; sys.stderr.write('AT one\\nAT second\\nheap is broken\\n'); sys.stderr.flush(); "
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    monkeypatch.setattr(worker, "__file__", str(crash))
    path = graph(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], name="r")], {"x": FLOAT})
    job = call.Job(module="tensorrt_rtx", onnx=path, profiles={})
    with pytest.raises(RuntimeCrashError, match=r"second \(module net.second\): heap is broken"):
        refusals.run_worker(job, TARGET, MODULES)


def bodies(path: Path, then: list[onnx.NodeProto], other: list[onnx.NodeProto], last: str) -> Path:
    """``y = last(If(c, then, other))`` of squares; both branches give ``[3, 3]``."""
    square = (TensorProto.FLOAT, [3, 3])
    branches = {
        name: helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], *square)]
        )
        for name, nodes in (("then_branch", then), ("else_branch", other))
    }
    nodes = [
        helper.make_node("If", ["c"], ["a"], name="if", **branches),
        helper.make_node(last, ["a"], ["y"], name="second"),
    ]
    return graph(path, nodes, {"x": square, "c": (TensorProto.BOOL, [])}, square)


@needs_rtx
def test_every_refused_node_of_every_branch_is_named(tmp_path: Path) -> None:
    """The parser stops at the first one: that is taken out of its branch, and not the branch out of the graph."""
    then = [
        helper.make_node("Det", ["x"], ["d"], name="first"),
        helper.make_node("Add", ["x", "d"], ["s"], name="sum"),
        helper.make_node("Det", ["s"], ["e"], name="inner"),
        helper.make_node("Mul", ["s", "e"], ["t"], name="product"),
    ]
    other = [
        helper.make_node("Bernoulli", ["x"], ["r"], name="foo"),
        helper.make_node("Relu", ["r"], ["o"], name="relu"),
    ]
    found = refused(bodies(tmp_path / "m.onnx", then, other, "Bernoulli"))
    assert {(n.op, n.node) for n in found} == {
        ("Det", "first"),
        ("Det", "inner"),
        ("Bernoulli", "foo"),
        ("Bernoulli", "second"),
    }
    assert {n.module_path for n in found} == set(MODULES.values())


def boxes(path: Path, batch: int | str = 1) -> Path:
    """What it gives has as many rows as there are boxes left: no static shape."""
    constants = {"most": np.int64([5]), "overlap": np.float32([0.5]), "least": np.float32([0.1])}
    nodes = [helper.make_node("NonMaxSuppression", ["b", "s", *constants], ["y"], name="first")]
    given = {"b": (TensorProto.FLOAT, [batch, 20, 4]), "s": (TensorProto.FLOAT, [batch, 3, 20])}
    return graph(path, nodes, given, (TensorProto.INT64, ["n", 3]), constants)


@needs_rtx
@pytest.mark.parametrize("capabilities", [(), ("SM86",)])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_the_builder_refuses_by_name_what_has_sizes_of_its_own(
    capabilities: tuple[str, ...], batch: int | str, tmp_path: Path
) -> None:
    sizes = {n: ((1, *s), (2, *s), (4, *s)) for n, s in (("b", (20, 4)), ("s", (3, 20)))}
    job = call.Job(
        module="tensorrt_rtx",
        onnx=boxes(tmp_path / "m.onnx", batch),
        engine=tmp_path / "m.engine",
        profiles=sizes if batch == "batch" else {},
        compute_capabilities=capabilities,
    )
    with pytest.raises(UnsupportedOperatorsError) as caught:
        refusals.run_worker(job, TARGET, MODULES)
    (node,) = caught.value.nodes
    assert (node.op, node.node, node.module_path) == ("NonMaxSuppression", "first", "net.first")
    assert "no runners" in node.reason


def regions(path: Path) -> Path:
    nodes = [
        helper.make_node("RoiAlign", ["x", "r", "i"], ["a"], name="first", output_height=2, output_width=2),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    given = {"x": (1, [1, 2, 8, 8]), "r": (1, [3, 4]), "i": (TensorProto.INT64, [3])}
    return graph(path, nodes, given, (TensorProto.FLOAT, [3, 2, 2, 2]))


@needs_rtx
def test_what_tensorrt_has_a_plugin_for_is_left_to_the_device(tmp_path: Path) -> None:
    """TensorRT for RTX, which is asked in its place here, ships no plugins, and says nothing of TensorRT by that."""
    job = call.Job(module="tensorrt_rtx", onnx=regions(tmp_path / "m.onnx"), profiles={})
    taken = refusals.run_worker(job, targets.find("tensorrt-fp32"), MODULES)
    assert [(n.op, n.node, n.module_path) for n in taken.unchecked] == [("RoiAlign", "first", "net.first")]
    with pytest.raises(UnsupportedOperatorsError, match="RoiAlign at first"):
        refusals.run_worker(job, TARGET, MODULES)


@needs_rtx
def test_beside_such_a_plugin_the_others_are_still_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"], name="first"),
        helper.make_node("Bernoulli", ["x"], ["y"], name="second"),
        helper.make_node("Cast", ["places"], ["unread"], name="cast", to=1),
    ]
    job = call.Job(module="tensorrt_rtx", onnx=graph(tmp_path / "m.onnx", nodes, {"x": FLOAT}), profiles={})
    with pytest.raises(UnsupportedOperatorsError) as caught:
        refusals.run_worker(job, targets.find("tensorrt-fp16"), MODULES)
    assert [n.node for n in caught.value.nodes] == ["second"]


@needs_rtx
def test_what_was_left_to_the_device_is_said_where_the_artifact_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    made = tensorrt.lower(
        io.describe(regions(tmp_path / "m.onnx")), targets.find("tensorrt-fp16"), {}, tmp_path / "out"
    )
    said = "RoiAlign at first, which it has no plugin for: the device decides"
    assert said in str(made.details[CHECKED])
    assert any(said in note for note in made.notes)
