"""From what a runtime tells of its operators to a table with PyTorch modules."""

import importlib.util
from pathlib import Path

import pytest

from edgekit.artifact.profile import Profile, middle, module_of, read_operators
from edgekit.devices.wire import ProfiledOperator

MODULES = {"node_conv2d": "stem.conv", "relu": "stem.conv", "node_conv2d_1": "body.0", "node_add": "body"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["node_conv2d"], "stem.conv"),
        (["node_conv2d_quant"], "stem.conv"),
        (["node_conv2d_1_token_4"], "body.0"),
        (["node_conv2d/Convolution#24"], "stem.conv"),
        (["relu_nchwc"], "stem.conv"),
        (["node_add_1"], ""),  # another node, not a form of node_add
        (["Reorder", "node_conv2d_1"], "body.0"),
        (["body.0/relu;x"], "body.0"),
        (["body.0/relu:3"], "body.0"),
        (["elsewhere/relu"], ""),
        ([], ""),
    ],
)
def test_modules_by_the_names_that_runtimes_give(names, expected):
    assert module_of(names, MODULES) == expected


def test_a_hiccup_does_not_count_and_whole_microseconds_do():
    assert middle([1, 1, 2, 2, 1, 2, 900, 0]) == 1.5
    assert middle([3.0]) == 3.0


def operator(name, us, source):
    return ProfiledOperator(name=name, op="Conv", us=us, placed="x", precision="f32", origin=source)


def test_shares_and_sums_by_module():
    found = read_operators(
        [
            operator("a", [2.0, 2.0], ["node_conv2d"]),
            operator("b", [1.0, 1.0], ["relu"]),
            operator("c", [1.0, 1.0], ["Reorder"]),
            operator("d", None, ["node_conv2d_1"]),
        ],
        MODULES,
    )
    assert [o.share for o in found] == [0.5, 0.25, 0.25, None]
    result = Profile(
        device="local", backend="x", runs=2, threads=1, operators=found, whole_us=5.0, notes=("n",)
    )
    assert result.by_module() == {"stem.conv": 3.0, "": 1.0, "body.0": 0.0}


@pytest.fixture(scope="module")
def litert():
    path = Path(__file__).parents[2] / "targets/tflite/runner.py"
    spec = importlib.util.spec_from_file_location("litert_runner", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_delegates_operators_are_matched_with_the_files_in_order(litert):
    tags = [
        "Convolution (NHWC, QC8) IGEMM",
        "Convolution (NHWC, QC8) DWConv",
        "Fully Connected (NC, QS8, QC8W) GEMM",
        "Add (ND)",
        "Static Reshape (NC)",
        "Mean (ND) Reduce",
        "Softmax (NC, F32)",
    ]
    ops = ["PAD", "CONV_2D", "PAD", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "MEAN", "SOFTMAX"]
    assert litert.align(tags, ops) == [(0, 1), (1, 3), (2, 4), (3, 5), (5, 6), (6, 7)]
    assert litert.align([], ops) == litert.align(tags, []) == []


def test_events_by_operator(litert):
    """Two runs of: a delegate of two operators, a built-in kernel, a delegate of one."""
    run = [
        ("Invoke", 1, 9, 0),
        ("Conv", 8, 5, 0),
        ("Add", 8, 1, 1),
        ("SIN", 2, 3, 7),
        ("Conv", 8, 4, 0),
        ("LiteRT::Run", 1, 9, 0),
    ]
    found = litert._by_operator(run + run, 2)
    assert [(f["partition"], f["tag"], f["us"]) for f in found] == [
        (0, "Conv", [5, 5]),
        (0, "Add", [1, 1]),
        (None, "SIN", [3, 3]),
        (1, "Conv", [4, 4]),
    ]
    assert litert._by_operator(run, 2) == []  # an event that was dropped: no half truths


def test_a_litert_whose_interface_is_another_tells_the_placement_and_why(litert, monkeypatch):
    session = litert.Session.__new__(litert.Session)
    session.inputs, session._path, session._threads, session._xnnpack = [], "m", 1, True
    session._package, session._interpreter = "ai_edge_litert", None
    tensor = {"name": "body.0/relu", "dtype": "float32"}
    node = {"index": 0, "op": "CONV_2D", "outputs": [7], "delegate": 0}
    monkeypatch.setattr(
        session, "placement", lambda: {"nodes": [node], "tensors": {"7": tensor}, "delegates": 1}
    )
    monkeypatch.setattr(session, "invoke", lambda: None)
    monkeypatch.setattr(litert, "_library", lambda package: object())
    found = session.profile(3)
    assert [(o["name"], o["us"], o["placed"]) for o in found["operators"]] == [
        ("body.0/relu", None, "XNNPACK")
    ]
    assert len(found["whole_us"]) == 3
    assert "only where each runs" in found["notes"][0]
