"""ONNX Runtime: what is written, that it runs, and that the placement tells the truth."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from backend_models import (
    CONV_MACS,
    attention,
    conv_net,
    digests,
    quantized,
    reference,
    run,
    snr_db,
    unsupported,
    weights_only,
    weights_target,
)
from onnx import TensorProto, helper

from edgekit.backends import onnxruntime as backend
from edgekit.backends.onnxruntime.kernels import cpu_kernels, why_unsupported
from edgekit.backends.onnxruntime.ortformat import canonical
from edgekit.core import targets
from edgekit.errors import UnsupportedOperatorsError
from edgekit.graph import io

IMAGE = {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16), dtype=np.float32)}
TOKENS = {"x": np.random.default_rng(1).standard_normal((2, 5, 8), dtype=np.float32)}


def lowered(model, target, out, **options):
    out.mkdir(exist_ok=True)
    return backend.lower(model, targets.find(target), options, out)


@pytest.mark.parametrize(("target", "least"), [("ort-fp32", 100.0), ("ort-fp16", 50.0)])
@pytest.mark.parametrize(("make", "inputs"), [(conv_net, IMAGE), (attention, TOKENS)])
def test_float_artifacts_answer_like_the_graph(tmp_path, make, inputs, target, least):
    model = make(tmp_path / "m.onnx")
    result = lowered(model, target, tmp_path / "out")
    outputs, raw = run(targets.find(target), result, tmp_path / "out", inputs)
    assert snr_db(reference(model, inputs)["y"], outputs["y"]) > least
    placement = backend.placement(model, targets.find(target), result, raw)
    if target == "ort-fp32":
        assert placement.share == 1.0
        assert placement.fallbacks == ()


def test_float16_on_this_cpu_is_told_as_it_is(tmp_path):
    """Whatever the share is, the rest is accounted for, and where there are no float16 kernels it is zero."""
    model = conv_net(tmp_path / "m.onnx")
    target = targets.find("ort-fp16")
    result = lowered(model, "ort-fp16", tmp_path / "out")
    _, raw = run(target, result, tmp_path / "out", IMAGE)
    placement = backend.placement(model, target, result, raw)
    assert placement.share + sum(f.share for f in placement.fallbacks) == pytest.approx(1)
    if not any(n["inputs"][0]["dtype"] == "float16" for n in raw["nodes"] if n["op"] == "Conv"):
        assert placement.share < 0.01
        assert "no float16 kernel" in placement.fallbacks[0].reason


def test_int8_runs_in_int8(tmp_path):
    model = quantized(conv_net(tmp_path / "m.onnx"), tmp_path / "q.onnx", activation="uint8")
    target = targets.find("ort-int8")
    result = lowered(model, "ort-int8", tmp_path / "out")
    outputs, raw = run(target, result, tmp_path / "out", IMAGE)
    assert snr_db(reference(model, IMAGE)["y"], outputs["y"]) > 25
    placement = backend.placement(model, target, result, raw)
    assert placement.share == 1.0
    assert placement.kernels["QLinearConv"] == 3


def test_a_convolution_left_in_float_is_named_with_its_module_and_share(tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    target = targets.find("ort-int8")
    quantized(model, tmp_path / "q.onnx", activation="uint8")
    proto = _bypass(onnx.load(tmp_path / "q.onnx"), "depthwise", onnx.load(model.path))
    onnx.save(proto, tmp_path / "p.onnx")
    partial = io.describe(tmp_path / "p.onnx")
    result = lowered(partial, "ort-int8", tmp_path / "out")
    _, raw = run(target, result, tmp_path / "out", IMAGE)
    placement = backend.placement(partial, target, result, raw)
    total = sum(CONV_MACS.values())
    assert placement.share == pytest.approx(1 - CONV_MACS["depthwise"] / total)
    (fallback,) = placement.fallbacks
    assert (fallback.op, fallback.count) == ("Conv", 1)
    assert fallback.nodes == ("depthwise (features.block.depthwise)",)
    assert "not quantized" in fallback.reason


def _bypass(proto, name, original):
    """Give node ``name`` its float weight back."""
    node = next(n for n in proto.graph.node if n.name == name)
    source = next(n for n in original.graph.node if n.name == name)
    weight = next(w for w in original.graph.initializer if w.name == source.input[1])
    copy = onnx.TensorProto()
    copy.CopyFrom(weight)
    copy.name = f"{weight.name}_float"
    proto.graph.initializer.append(copy)
    node.input[1] = copy.name
    return proto


def test_without_a_profile_the_share_is_not_known(tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    result = lowered(model, "ort-fp32", tmp_path / "out")
    placement = backend.placement(model, targets.find("ort-fp32"), result, {"nodes": None})
    assert placement.share is None
    assert "profile" in placement.notes[0]


@pytest.mark.parametrize("target", ["ort-fp32", "ort-fp16", "ort-int8"])
def test_the_same_model_gives_the_same_bytes(tmp_path, target):
    model = conv_net(tmp_path / "m.onnx")
    if target == "ort-int8":
        model = quantized(model, tmp_path / "q.onnx", activation="uint8")
    first = digests(lowered(model, target, tmp_path / "a"), tmp_path / "a")
    assert first == digests(lowered(model, target, tmp_path / "b"), tmp_path / "b")


def test_what_ships_tells_nothing_about_the_author(tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    lowered(model, "ort-fp32", tmp_path / "out")
    shipped = (tmp_path / "out" / "model.onnx").read_bytes()
    assert b"somebody" in model.path.read_bytes()
    assert b"somebody" not in shipped
    assert b"name_scopes" not in shipped


def test_the_oldest_runtime_is_named_and_the_oldest_format_written(tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    result = lowered(model, "ort-fp32", tmp_path / "out")
    assert result.minimum_runtime == "1.17"
    assert onnx.load(tmp_path / "out" / "model.onnx").ir_version == 9


def test_every_unsupported_operator_is_named_at_once(tmp_path):
    with pytest.raises(UnsupportedOperatorsError) as caught:
        lowered(unsupported(tmp_path / "m.onnx"), "ort-fp32", tmp_path / "out")
    assert [(n.op, n.node) for n in caught.value.nodes] == [("acme.Foo", "foo"), ("acme.Bar", "bar")]
    assert list((tmp_path / "out").iterdir()) == []


def test_the_mobile_format_runs_and_answers_the_same(tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    result = lowered(model, "ort-fp32", tmp_path / "out", ort_format=True)
    assert result.files == ("model.onnx", "model.ort")
    answers = [
        io.run(io.session(tmp_path / "out" / name), IMAGE)["y"] for name in ("model.onnx", "model.ort")
    ]
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.onnx", "model.ort"]


@pytest.mark.parametrize("make", [conv_net, attention])
def test_the_mobile_format_has_the_same_bytes_though_the_runtime_writes_others(tmp_path, make):
    model = make(tmp_path / "m.onnx")
    first = digests(lowered(model, "ort-fp32", tmp_path / "a", ort_format=True), tmp_path / "a")
    assert first == digests(lowered(model, "ort-fp32", tmp_path / "b", ort_format=True), tmp_path / "b")
    assert canonical(first[1]) == first[1]


def test_what_is_not_in_the_mobile_format_is_refused():
    with pytest.raises(ValueError, match="ORT format"):
        canonical(b"\x00" * 64)


@pytest.mark.parametrize("bits", [8, 4])
def test_low_bit_weights_are_read_as_they_are(tmp_path, bits):
    model = weights_only(tmp_path / "m.onnx", bits=bits)
    target = weights_target(targets.find("ort-fp32"), bits)
    (tmp_path / "out").mkdir()
    result = backend.lower(model, target, {}, tmp_path / "out")
    inputs = {"x": np.random.default_rng(1).standard_normal((3, 64), dtype=np.float32)}
    outputs, raw = run(target, result, tmp_path / "out", inputs)
    assert snr_db(reference(model, inputs)["y"], outputs["y"]) > 30
    placement = backend.placement(model, target, result, raw)
    assert (placement.share, placement.fallbacks) == (1.0, ())


def test_weights_widened_at_load_are_told(tmp_path):
    """The same target over a graph whose weights are float: nothing is read in few bits."""
    model = conv_net(tmp_path / "m.onnx")
    target = weights_target(targets.find("ort-fp32"), 8)
    (tmp_path / "out").mkdir()
    result = backend.lower(model, target, {}, tmp_path / "out")
    _, raw = run(target, result, tmp_path / "out", IMAGE)
    placement = backend.placement(model, target, result, raw)
    assert placement.share == 0.0
    assert all("float in the graph" in f.reason for f in placement.fallbacks)


def test_a_type_without_a_kernel_is_refused_before_it_is_run(tmp_path):
    """A session would stop at the first bfloat16 node and say nothing of the others."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Neg", ["a"], ["y"], name="neg"),
    ]
    shape = [1, 1, 2, 2]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, shape)],
            [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, shape)],
            [helper.make_tensor("w", TensorProto.BFLOAT16, [1, 1, 1, 1], [1.0])],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOperatorsError) as caught:
        lowered(io.describe(tmp_path / "m.onnx"), "ort-fp32", tmp_path / "out")
    assert [n.node for n in caught.value.nodes] == ["conv", "neg"]
    assert "bfloat16" in caught.value.nodes[0].reason


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the test cases divide by zero while they are made
def test_the_table_of_kernels_agrees_with_the_runtime_on_onnx_own_node_tests():
    """Nothing that runs is refused: 1,500 of ONNX's own test models, each loaded by the runtime."""
    import onnx_ir
    import onnxruntime
    from onnx.backend.test.case.node import collect_testcases
    from onnx_ir.passes.common import ShapeInferencePass
    from onnx_ir.traversal import RecursiveGraphIterator

    known, wrong, ran = cpu_kernels(), [], 0
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for case in collect_testcases(None):
        model = onnx_ir.from_proto(case.model)
        with contextlib.suppress(Exception):
            ShapeInferencePass()(model)
        reasons = [why_unsupported(n, model, known) for n in RecursiveGraphIterator(model.graph)]
        try:
            onnxruntime.InferenceSession(
                case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # noqa: BLE001  (the runtime's exceptions share no other base)
            continue
        ran += 1
        if any(reasons):
            wrong.append((case.name, next(filter(None, reasons))))
    assert wrong == []
    assert ran > 1000


def test_a_pool_whose_last_window_would_begin_in_the_margin_is_loaded(tmp_path):
    """ONNX Runtime infers 5 x 5 where its kernel gives 4 x 4, and then refuses the product behind it."""
    rng = np.random.default_rng(3)
    pool = {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1] * 4, "dilations": [2, 2], "ceil_mode": 1}
    graph = helper.make_graph(
        [
            helper.make_node("MaxPool", ["x"], ["p"], **pool),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 11, 11])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [onnx.numpy_helper.from_array(rng.standard_normal((32, 3)).astype(np.float32), "w")],
        value_info=[helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 2, 4, 4])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(proto, tmp_path / "m.onnx")
    model = io.describe(tmp_path / "m.onnx")
    inputs = {"x": rng.standard_normal((1, 2, 11, 11)).astype(np.float32)}
    result = lowered(model, "ort-fp32", tmp_path / "out")
    outputs, _ = run(targets.find("ort-fp32"), result, tmp_path / "out", inputs)
    assert snr_db(reference(model, inputs)["y"], outputs["y"]) > 100
