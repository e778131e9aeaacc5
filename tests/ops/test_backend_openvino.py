"""OpenVINO: what is written, that it runs, and that the placement tells the truth."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from backend_models import (
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

from edgekit.backends import openvino as backend
from edgekit.backends.openvino.artifact import runtime
from edgekit.core import targets
from edgekit.errors import UnsupportedOperatorsError

if not backend.available().installed:
    pytest.skip("the extra openvino is not installed", allow_module_level=True)

runtime()  # before the runner imports it: without its telemetry

IMAGE = {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16), dtype=np.float32)}
TOKENS = {"x": np.random.default_rng(1).standard_normal((2, 5, 8), dtype=np.float32)}


def lowered(model, target, out, **options):
    out.mkdir(exist_ok=True)
    return backend.lower(model, targets.find(target), options, out)


def placed(model, target, result, folder, inputs):
    outputs, raw = run(targets.find(target), result, folder, inputs)
    return outputs, backend.placement(model, targets.find(target), result, raw)


@pytest.mark.parametrize(
    ("target", "least"), [("openvino-fp32", 100), ("openvino-fp16", 50), ("openvino-bf16", 25)]
)
@pytest.mark.parametrize(("make", "inputs"), [(conv_net, IMAGE), (attention, TOKENS)])
def test_float_artifacts_answer_like_the_graph(tmp_path, make, inputs, target, least):
    model = make(tmp_path / "m.onnx")
    result = lowered(model, target, tmp_path / "out")
    outputs, placement = placed(model, target, result, tmp_path / "out", inputs)
    assert snr_db(reference(model, inputs)["y"], outputs["y"]) > least
    if target == "openvino-fp32":
        assert placement.share == 1.0


def test_float16_weights_computed_in_float32_are_told_as_float32(tmp_path):
    """The runtime model's own ``runtimePrecision`` says f16 here: it looks at the weights, not at the kernel."""
    model = conv_net(tmp_path / "m.onnx")
    result = lowered(model, "openvino-fp16", tmp_path / "out")
    _, placement = placed(model, "openvino-fp16", result, tmp_path / "out", IMAGE)
    assert placement.share == 0.0
    assert sum(f.share for f in placement.fallbacks) == pytest.approx(1)
    assert {f.reason for f in placement.fallbacks} == {"executed in fp32: inference precision is f32"}


def test_silent_bf16_is_seen(tmp_path):
    """A float32 artifact compiled with the plug-in's own choice of precision."""
    model = conv_net(tmp_path / "m.onnx")
    target = targets.find("openvino-fp32")
    result = lowered(model, "openvino-fp32", tmp_path / "out")
    loose = dataclasses.replace(result, runtime={"inference_precision": "default"})
    _, raw = run(target, loose, tmp_path / "out", IMAGE)
    if raw["inference_precision"] != "bf16":
        pytest.skip(f"this CPU's default is {raw['inference_precision']}")
    placement = backend.placement(model, target, loose, raw)
    assert placement.share == 0.0
    assert any("bf16, which nobody asked for" in note for note in placement.notes)


@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_int8_runs_in_int8(tmp_path, activation):
    model = quantized(conv_net(tmp_path / "m.onnx"), tmp_path / "q.onnx", activation=activation, bias=False)
    result = lowered(model, "openvino-int8", tmp_path / "out")
    outputs, placement = placed(model, "openvino-int8", result, tmp_path / "out", IMAGE)
    assert snr_db(reference(model, IMAGE)["y"], outputs["y"]) > 20
    assert placement.share == 1.0


@pytest.mark.parametrize("target", ["openvino-fp32", "openvino-fp16", "openvino-int8"])
def test_the_same_model_gives_the_same_bytes_in_any_process(tmp_path, target):
    """OpenVINO numbers what it names itself by a counter of the process: a used-up counter must not show."""
    model = attention(tmp_path / "m.onnx")
    if target == "openvino-int8":
        model = quantized(conv_net(tmp_path / "c.onnx"), tmp_path / "q.onnx", activation="uint8")
    first = digests(lowered(model, target, tmp_path / "a"), tmp_path / "a")
    lowered(conv_net(tmp_path / "other.onnx"), target, tmp_path / "between")
    assert first == digests(lowered(model, target, tmp_path / "b"), tmp_path / "b")


def test_what_ships_tells_nothing_about_the_author(tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    lowered(model, "openvino-fp32", tmp_path / "out")
    shipped = (tmp_path / "out" / "model.xml").read_bytes()
    assert b"somebody" not in shipped
    assert str(tmp_path).encode() not in shipped


def test_names_of_inputs_and_outputs_stay(tmp_path):
    model = attention(tmp_path / "m.onnx")
    result = lowered(model, "openvino-fp32", tmp_path / "out")
    outputs, _ = run(targets.find("openvino-fp32"), result, tmp_path / "out", TOKENS)
    assert list(outputs) == ["y"]
    assert outputs["y"].shape == TOKENS["x"].shape


def test_every_unsupported_operator_is_named_at_once(tmp_path):
    with pytest.raises(UnsupportedOperatorsError) as caught:
        lowered(unsupported(tmp_path / "m.onnx"), "openvino-fp32", tmp_path / "out")
    assert [(n.op, n.node) for n in caught.value.nodes] == [("acme.Foo", "foo"), ("acme.Bar", "bar")]
    assert list((tmp_path / "out").iterdir()) == []


def test_half_the_weights(tmp_path):
    model = conv_net(tmp_path / "m.onnx")
    lowered(model, "openvino-fp32", tmp_path / "a")
    lowered(model, "openvino-fp16", tmp_path / "b")
    whole, half = ((tmp_path / folder / "model.bin").stat().st_size for folder in "ab")
    assert half < 0.6 * whole


def test_importing_it_leaves_no_trace_in_the_home_directory(tmp_path):
    code = "from edgekit.backends.openvino.artifact import runtime; runtime().Core()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [8, 4])
def test_low_bit_weights_are_read_as_they_are(tmp_path, bits):
    model = weights_only(tmp_path / "m.onnx", bits=bits)
    target = weights_target(targets.find("openvino-fp32"), bits)
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
    target = weights_target(targets.find("openvino-fp32"), 8)
    (tmp_path / "out").mkdir()
    result = backend.lower(model, target, {}, tmp_path / "out")
    _, raw = run(target, result, tmp_path / "out", IMAGE)
    placement = backend.placement(model, target, result, raw)
    assert placement.share == 0.0
    assert all("float in the graph" in f.reason for f in placement.fallbacks)
