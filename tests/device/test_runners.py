"""Every runtime that is installed here runs a model of ours, and tells what it executed."""

import numpy as np
import pytest

from edgekit.devices.execute import RunSettings, run_artifact
from edgekit.errors import BackendError, DataError, NotRunnableError
from edgekit.verify import compare

RNG = np.random.default_rng(0)


def _reference(x, weight, dense):
    """Pointwise convolution, ReLU, mean over space, dense layer; x is NCHW."""
    return np.einsum("nchw,oc->nohw", x, weight).clip(0).mean((2, 3)) @ dense


@pytest.fixture(scope="module")
def weights():
    return RNG.normal(size=(8, 3)).astype("f"), RNG.normal(size=(8, 5)).astype("f")


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory, weights):
    onnx = pytest.importorskip("onnx")
    from onnx import helper as h
    from onnx import numpy_helper as nh

    nodes = [
        h.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        h.make_node("Relu", ["c"], ["r"], name="relu"),
        h.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        h.make_node("Flatten", ["p"], ["f"], name="flatten"),
        h.make_node("MatMul", ["f", "d"], ["y"], name="dense"),
    ]
    value = h.make_tensor_value_info
    graph = h.make_graph(
        nodes,
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["batch", 3, 6, 6])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", 5]), value("r", onnx.TensorProto.FLOAT, None)],
        [nh.from_array(weights[0].reshape(8, 3, 1, 1), "w"), nh.from_array(weights[1], "d")],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def samples():
    return [{"x": RNG.normal(size=(n, 3, 6, 6)).astype("f")} for n in (1, 4, 1)]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_onnx_runtimes_run_dynamic_shapes(backend, onnx_model, weights, samples):
    pytest.importorskip(backend)
    with run_artifact(backend, onnx_model, inputs=samples, options={"threads": 1}) as result:
        assert [tuple(s["name"] for s in result.inputs)] == [("x",)]
        assert {s["name"] for s in result.output_specs} == {"y", "r"}
        reference = ({"y": _reference(s["x"], *weights)} for s in samples)
        parity = compare(reference, result.outputs)
    assert parity.relative_error < 1e-5
    assert parity.rows == 6


def test_onnxruntime_tells_what_it_executed(onnx_model, samples):
    settings = RunSettings(placement=True)
    with run_artifact("onnxruntime", onnx_model, inputs=samples, settings=settings) as result:
        raw = result.placement
    by_op = {n["op"]: n for n in raw["nodes"]}
    assert {"Conv", "MatMul"} <= set(by_op)
    assert "Relu" not in by_op  # fused, though r is an output: into the convolution
    assert by_op["MatMul"]["provider"] == "CPUExecutionProvider"
    assert by_op["MatMul"]["outputs"] == [{"dtype": "float32", "shape": [1, 5]}]
    assert all(n["us"] >= 0 for n in raw["nodes"])


def test_onnxruntime_optimization_is_an_option(onnx_model, samples):
    settings = RunSettings(placement=True)
    options = {"graph_optimization": "disabled", "threads": 1}
    with run_artifact(
        "onnxruntime", onnx_model, inputs=samples, options=options, settings=settings
    ) as result:
        ops = [n["op"] for n in result.placement["nodes"]]
    assert ops == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "MatMul"]


def test_openvino_tells_precision_and_origin(onnx_model, samples):
    pytest.importorskip("openvino")
    settings = RunSettings(placement=True)
    with run_artifact("openvino", onnx_model, inputs=samples, settings=settings) as result:
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
    with pytest.raises(BackendError, match="unknown option thread;"):
        run_artifact(backend, model, inputs=samples, options={"thread": 1})


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_a_damaged_model_is_a_typed_error(backend, tmp_path, samples):
    pytest.importorskip("ai_edge_litert" if backend == "tflite" else backend)
    path = tmp_path / ("m.tflite" if backend == "tflite" else "m.onnx")
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(BackendError, match="load"):
        run_artifact(backend, path, inputs=samples)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_a_wrong_shape_names_the_sample(backend, onnx_model, tflite_model, samples):
    pytest.importorskip("ai_edge_litert" if backend == "tflite" else backend)
    model = tflite_model if backend == "tflite" else onnx_model
    axes = (0, 2, 3, 1) if backend == "tflite" else (0, 1, 2, 3)
    wrong = [{"x": samples[0]["x"].transpose(axes)}, {"x": np.zeros((1, 2, 5), "f")}]
    with pytest.raises((DataError, BackendError), match="sample 1"):
        run_artifact(backend, model, inputs=wrong)


@pytest.fixture(scope="module")
def tflite_model(tmp_path_factory, weights):
    pytest.importorskip("ai_edge_litert")
    path = tmp_path_factory.mktemp("tflite") / "m.tflite"
    path.write_bytes(_tflite(*weights))
    return path


def _tflite(weight, dense):
    """CONV_2D with ReLU, EXP (a built-in kernel that XNNPACK may lack), FULLY_CONNECTED per pixel; NHWC."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    def tensor(name, shape, kind, buffer=0, signature=None):
        t = s.TensorT()
        t.name, t.shape, t.type, t.buffer = name, shape, kind, buffer
        t.shapeSignature = signature
        return t

    def buffer(array):
        b = s.BufferT()
        b.data = None if array is None else np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        return b

    def op(code, inputs, outputs, kind=0, options=None):
        o = s.OperatorT()
        o.opcodeIndex, o.inputs, o.outputs, o.builtinOptionsType, o.builtinOptions = (
            code,
            inputs,
            outputs,
            kind,
            options,
        )
        return o

    def code(builtin):
        c = s.OperatorCodeT()
        c.builtinCode = c.deprecatedBuiltinCode = builtin
        c.version = 1
        return c

    f32 = s.TensorType.FLOAT32
    graph = s.SubGraphT()
    graph.tensors = [
        tensor("x_nhwc", [1, 6, 6, 3], f32, signature=[-1, 6, 6, 3]),
        tensor("w", [8, 1, 1, 3], f32, 1),
        tensor("b", [8], f32, 2),
        tensor("c", [1, 6, 6, 8], f32, signature=[-1, 6, 6, 8]),
        tensor("axes", [2], s.TensorType.INT32, 3),
        tensor("m", [1, 8], f32, signature=[-1, 8]),
        tensor("d", [5, 8], f32, 4),
        tensor("out", [1, 5], f32, signature=[-1, 5]),
    ]
    convolution = s.Conv2DOptionsT()
    convolution.padding, convolution.strideH, convolution.strideW = s.Padding.VALID, 1, 1
    convolution.dilationHFactor = convolution.dilationWFactor = 1
    convolution.fusedActivationFunction = s.ActivationFunctionType.RELU
    mean = s.ReducerOptionsT()
    graph.operators = [
        op(0, [0, 1, 2], [3], s.BuiltinOptions.Conv2DOptions, convolution),
        op(1, [3, 4], [5], s.BuiltinOptions.ReducerOptions, mean),
        op(2, [5, 6, -1], [7], s.BuiltinOptions.FullyConnectedOptions, s.FullyConnectedOptionsT()),
    ]
    graph.inputs, graph.outputs = [0], [7]
    model = s.ModelT()
    model.version = 3
    builtin = s.BuiltinOperator
    model.operatorCodes = [code(builtin.CONV_2D), code(builtin.MEAN), code(builtin.FULLY_CONNECTED)]
    model.subgraphs = [graph]
    arrays = [None, weight, np.zeros(8, "f"), np.array([1, 2], np.int32), dense.T]
    model.buffers = [buffer(a) for a in arrays]
    signature = s.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = [_map(s, "x", 0)], [_map(s, "y", 7)]
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _map(schema, name, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


@pytest.mark.parametrize("xnnpack", [True, False])
def test_litert_runs_resizes_and_tells_its_partitions(xnnpack, tflite_model, weights, samples):
    inputs = [{"x": s["x"].transpose(0, 2, 3, 1)} for s in samples]
    options = {"threads": 1, "xnnpack": xnnpack}
    settings = RunSettings(placement=True)
    with run_artifact("tflite", tflite_model, inputs=inputs, options=options, settings=settings) as result:
        assert result.inputs[0]["name"] == "x"
        assert result.inputs[0]["aliases"] == ["x_nhwc"]
        reference = ({"y": _reference(s["x"], *weights)} for s in samples)
        assert compare(reference, result.outputs).relative_error < 1e-5
        raw = result.placement
    assert [n["op"] for n in raw["nodes"]] == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert [n["delegate"] for n in raw["nodes"]] == ([0, 0, 0] if xnnpack else [None] * 3)
    assert raw["delegates"] == int(xnnpack)
    assert raw["tensors"]["7"] == {"name": "out", "dtype": "float32", "shape": [1, 5]}


@pytest.mark.parametrize("backend", ["tensorrt_rtx"])
def test_an_engine_without_a_gpu_is_not_run(backend, tmp_path):
    pytest.importorskip(backend)
    import ctypes.util

    if ctypes.util.find_library("cuda"):
        pytest.skip("this machine may have an NVIDIA GPU")
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"no engine")
    with pytest.raises(NotRunnableError, match="NVIDIA"):
        run_artifact(backend, engine, inputs=[{"x": np.zeros(1, "f")}])
