"""Two small models that compute the same: ONNX, and a TFLite file written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

RNG = np.random.default_rng(0)
WEIGHT, DENSE = RNG.normal(size=(8, 3)).astype("f"), RNG.normal(size=(8, 5)).astype("f")


def reference(x):
    """Pointwise convolution, ReLU, mean over space, dense layer; x is NCHW."""
    return np.einsum("nchw,oc->nohw", x, WEIGHT).clip(0).mean((2, 3)) @ DENSE


def write_onnx(path: Path) -> Path:
    """Two outputs, a dynamic batch."""
    import onnx
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
        [nh.from_array(WEIGHT.reshape(8, 3, 1, 1), "w"), nh.from_array(DENSE, "d")],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def write_tflite(path: Path) -> Path:
    """CONV_2D with ReLU, MEAN, FULLY_CONNECTED; NHWC, a dynamic batch, a signature."""
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
    arrays = [None, WEIGHT, np.zeros(8, "f"), np.array([1, 2], np.int32), DENSE.T]
    model.buffers = [buffer(a) for a in arrays]
    signature = s.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = [_map(s, "x", 0)], [_map(s, "y", 7)]
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _map(schema, name, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
