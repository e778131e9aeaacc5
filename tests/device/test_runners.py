"""Every runtime that is installed here runs a model of ours, and tells what it executed."""

import numpy as np
import pytest
from device_models import reference, write_onnx, write_tflite

from edgekit.artifact.parity import compare
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import BackendError, DataError, EngineMismatchError
from edgekit.types import Device

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    pytest.importorskip("onnx")
    return write_onnx(tmp_path_factory.mktemp("onnx") / "m.onnx")


@pytest.fixture
def samples():
    return [{"x": RNG.normal(size=(n, 3, 6, 6)).astype("f")} for n in (1, 4, 1)]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_onnx_runtimes_run_dynamic_shapes(backend, onnx_model, samples):
    pytest.importorskip(backend)
    with run_artifact(Runnable(backend=backend, main=onnx_model, options={"threads": 1}), samples) as result:
        assert set(result.outputs.names) == {"y", "r"}
        expected = ({"y": reference(s["x"])} for s in samples)
        parity = compare(expected, result.outputs)
    assert parity.relative_error < 1e-5
    assert parity.rows == 6


def test_onnxruntime_tells_what_it_executed(onnx_model, samples):
    with run_artifact(Runnable(backend="onnxruntime", main=onnx_model), samples, placement=True) as result:
        raw = result.placement
    by_op = {n["op"]: n for n in raw["nodes"]}
    assert {"Conv", "MatMul"} <= set(by_op)
    assert "Relu" not in by_op  # fused, though r is an output: into the convolution
    assert by_op["MatMul"]["provider"] == "CPUExecutionProvider"
    assert by_op["MatMul"]["outputs"] == [{"dtype": "float32", "shape": [1, 5]}]
    assert all(n["us"] >= 0 for n in raw["nodes"])


def test_onnxruntime_optimization_is_an_option(onnx_model, samples):
    options = {"graph_optimization": "disabled", "threads": 1}
    runnable = Runnable(backend="onnxruntime", main=onnx_model, options=options)
    with run_artifact(runnable, samples, placement=True) as result:
        ops = [n["op"] for n in result.placement["nodes"]]
    assert ops == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "MatMul"]


def test_openvino_tells_precision_and_origin(onnx_model, samples):
    pytest.importorskip("openvino")
    with run_artifact(Runnable(backend="openvino", main=onnx_model), samples, placement=True) as result:
        raw = result.placement
    assert raw["inference_precision"] == "f32"
    convolution = next(n for n in raw["nodes"] if n["type"] == "Convolution")
    assert convolution["precision"] == "f32"
    assert any("conv" in name for name in convolution["original"])
    assert convolution["us"] is not None


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_unknown_options_are_refused(backend, onnx_model, tflite_model, samples):
    pytest.importorskip("ai_edge_litert" if backend == "tflite" else backend)
    model = tflite_model if backend == "tflite" else onnx_model
    runnable = Runnable(backend=backend, main=model, options={"thread": 1})
    with pytest.raises(BackendError, match="unknown option thread;"):
        run_artifact(runnable, samples)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_a_damaged_model_is_a_typed_error(backend, tmp_path, samples):
    pytest.importorskip("ai_edge_litert" if backend == "tflite" else backend)
    path = tmp_path / ("m.tflite" if backend == "tflite" else "m.onnx")
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(BackendError, match="load"):
        run_artifact(Runnable(backend=backend, main=path), samples)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_a_wrong_shape_names_the_sample(backend, onnx_model, tflite_model, samples):
    pytest.importorskip("ai_edge_litert" if backend == "tflite" else backend)
    model = tflite_model if backend == "tflite" else onnx_model
    axes = (0, 2, 3, 1) if backend == "tflite" else (0, 1, 2, 3)
    wrong = [{"x": samples[0]["x"].transpose(axes)}, {"x": np.zeros((1, 2, 5), "f")}]
    with pytest.raises((DataError, BackendError), match="sample 1"):
        run_artifact(Runnable(backend=backend, main=model), wrong)


@pytest.fixture(scope="module")
def tflite_model(tmp_path_factory):
    pytest.importorskip("ai_edge_litert")
    return write_tflite(tmp_path_factory.mktemp("tflite") / "m.tflite")


@pytest.mark.parametrize("xnnpack", [True, False])
def test_litert_runs_resizes_and_tells_its_partitions(xnnpack, tflite_model, samples):
    inputs = [{"x_nhwc": s["x"].transpose(0, 2, 3, 1)} for s in samples]  # its name in the signature
    options = {"threads": 1, "xnnpack": xnnpack}
    runnable = Runnable(backend="tflite", main=tflite_model, options=options)
    with run_artifact(runnable, inputs, placement=True) as result:
        expected = ({"y": reference(s["x"])} for s in samples)
        assert compare(expected, result.outputs).relative_error < 1e-5
        raw = result.placement
    assert [n["op"] for n in raw["nodes"]] == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert [n["delegate"] for n in raw["nodes"]] == ([0, 0, 0] if xnnpack else [None] * 3)
    assert raw["delegates"] == int(xnnpack)
    assert raw["tensors"]["7"] == {"name": "out", "dtype": "float32", "shape": [1, 5]}


@pytest.mark.parametrize("backend", ["tensorrt_rtx"])
def test_an_engine_that_nothing_is_known_of_is_refused_before_a_gpu_is_asked_for(backend, tmp_path):
    pytest.importorskip(backend)
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"no engine")
    with pytest.raises(EngineMismatchError, match=r"engine\.json beside it is missing"):
        run_artifact(Runnable(backend=backend, main=engine, trusted=True), [{"x": np.zeros(1, "f")}])


def test_the_old_board_runs_tflite_runtime(tflite_model, samples):
    from testbed import oldboard

    if oldboard.problem():
        pytest.skip(oldboard.problem())
    inputs = [{"x": s["x"].transpose(0, 2, 3, 1)} for s in samples]
    device = Device(name="old", options={"python": str(oldboard.python())})
    runnable = Runnable(backend="tflite", main=tflite_model)
    with run_artifact(runnable, inputs, device=device, placement=True) as result:
        assert result.versions["tflite_runtime"] == "2.14.0"
        assert result.versions["numpy"].startswith("1.")
        assert compare(({"y": reference(s["x"])} for s in samples), result.outputs).relative_error < 1e-5
        assert result.placement["package"] == "tflite_runtime"
