"""Q/DQ graphs become integer graphs: within a step or two of ONNX Runtime computing the same Q/DQ graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("ai_edge_litert")

from ai_edge_litert import interpreter, schema_py_generated
from tflite_support import check, compiled, graph, in_litert, in_onnxruntime

RNG = np.random.default_rng(11)


def weights(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape) * 0.3, np.float32)


class Quantized:
    """Collects nodes; values and weights pass through Q/DQ pairs on the way."""

    def __init__(self, dtype: type = np.int8) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def activation(self, name: str, scale: float, zero: int = 0) -> str:
        """Q/DQ on an activation; returns the dequantized name."""
        self.constants |= {f"{name}_s": np.float32(scale), f"{name}_z": np.asarray(zero, self.dtype)}
        parameters = [f"{name}_s", f"{name}_z"]
        self.nodes += [
            helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_dq"]),
        ]
        return f"{name}_dq"

    def weight(self, name: str, data: np.ndarray, axis: int | None = 0) -> str:
        """An int8 initializer behind DQ; ``axis`` None: per tensor."""
        others = tuple(i for i in range(data.ndim) if i != axis)
        reach = np.max(np.abs(data)) if axis is None else np.max(np.abs(data), axis=others)
        scale = np.asarray(reach / 127, np.float32)
        shape = [1] * data.ndim
        if axis is not None:
            shape[axis] = -1
        stored = np.clip(np.rint(data / scale.reshape(shape)), -127, 127).astype(np.int8)
        zero = np.zeros(scale.shape, np.int8)
        self.constants |= {f"{name}_i": stored, f"{name}_s": scale, f"{name}_z": zero}
        extra = {} if axis is None else {"axis": axis}
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}_i", f"{name}_s", f"{name}_z"], [f"{name}_dq"], **extra
            )
        )
        return f"{name}_dq"

    def bias(self, name: str, data: np.ndarray, input_scale: float, weight: str) -> str:
        """An int32 initializer with scale input * weight."""
        scale = np.asarray(self.constants[f"{weight}_s"] * np.float32(input_scale), np.float32)
        self.constants |= {f"{name}_i": np.rint(data / scale).astype(np.int32), f"{name}_s": scale}
        extra = {"axis": 0} if scale.ndim else {}
        self.nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_i", f"{name}_s"], [f"{name}_dq"], **extra)
        )
        return f"{name}_dq"

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output


def agree(
    q: Quantized, shapes: dict[str, Sequence[int]], output: str, step: float, steps: float = 1.01, **options
):
    """Compile, run both; nothing may differ by more than ``steps`` steps."""
    model = graph(q.nodes, shapes, [output], q.constants)
    feeds = {n: np.asarray(RNG.standard_normal(s), np.float32) for n, s in shapes.items()}
    made = compiled(model, **options)
    run = in_litert(made, feeds)
    got, expected = run.outputs[output], in_onnxruntime(model, feeds)[output]
    assert got.shape == expected.shape
    assert float(np.max(np.abs(got - expected))) <= steps * step, np.max(np.abs(got - expected)) / step
    assert float(np.std(expected)) > step, "the test would not notice a constant"
    return made, run


def integer(made) -> bool:
    return not made.report.left_in_float


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("activation", [None, "Relu", "Clip"])
def test_convolution(groups, activation):
    q = Quantized()
    x = q.activation("x", 0.03, 5)
    w = q.weight("w", weights(8, 4 // groups, 3, 3))
    b = q.bias("b", weights(8), 0.03, "w")
    last = q.op("Conv", [x, w, b], "c", pads=[1] * 4, group=groups)
    low = -128 if activation else -3
    if activation == "Relu":
        last = q.op("Relu", [last], "r")
    if activation == "Clip":
        q.constants |= {"zero": np.float32(0), "six": np.float32(6)}
        last = q.op("Clip", [last, "zero", "six"], "r")
    y = q.activation(last, 0.02, low)
    made, run = agree(q, {"x": (1, 4, 7, 8)}, y, 0.02)
    assert integer(made)
    assert run.partitions == 1
    assert sum(made.report.operators.get(c, 0) for c in ("CONV_2D", "DEPTHWISE_CONV_2D")) == 1
    assert "RELU" not in made.report.operators


def test_float_bias_is_quantized():
    q = Quantized()
    x, w = q.activation("x", 0.03), q.weight("w", weights(8, 4, 1, 1))
    q.constants["b"] = weights(8)
    y = q.activation(q.op("Conv", [x, w, "b"], "c"), 0.02)
    made, _ = agree(q, {"x": (1, 4, 5, 5)}, y, 0.02)
    assert integer(made)


@pytest.mark.parametrize("per_channel", [True, False])
def test_gemm_and_matmul(per_channel):
    q = Quantized()
    x = q.activation("x", 0.03, -4)
    w = q.weight("w", weights(6, 12), 0 if per_channel else None)
    b = q.bias("b", weights(6), 0.03, "w")
    h = q.activation(q.op("Gemm", [x, w, b], "h", transB=1), 0.02, 3)
    m = q.weight("m", weights(6, 5), 1 if per_channel else None)
    y = q.activation(q.op("MatMul", [h, m], "y0"), 0.015)
    made, run = agree(q, {"x": (3, 12)}, y, 0.015, 1.5)
    assert integer(made)
    assert run.partitions == 1
    assert made.report.operators["FULLY_CONNECTED"] == 2


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul"])
def test_binary(kind):
    q = Quantized()
    a, b = q.activation("a", 0.03, 5), q.activation("b", 0.02, -7)
    y = q.activation(q.op(kind, [a, b], "y0"), 0.04, 1)
    made, run = agree(q, {"a": (2, 3, 4), "b": (3, 1)}, y, 0.04)
    assert integer(made)
    assert run.partitions == 1


@pytest.mark.parametrize("kind", ["Add", "Mul", "Div"])
def test_binary_with_a_float_constant(kind):
    q = Quantized()
    q.constants["k"] = np.asarray(np.abs(weights(3, 1)) + 0.5, np.float32)
    y = q.activation(q.op(kind, [q.activation("a", 0.03, 5), "k"], "y0"), 0.04, 1)
    made, _ = agree(q, {"a": (2, 3, 4)}, y, 0.04)
    assert integer(made) == (kind != "Div")


FIXED = {"Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0), "HardSigmoid": (1 / 255, -128)}


@pytest.mark.parametrize("kind", FIXED)
def test_fixed_output_parameters(kind):
    scale, zero = FIXED[kind]
    q = Quantized()
    y = q.activation(q.op(kind, [q.activation("x", 0.03, 5)], "y0"), scale, zero)
    made, run = agree(q, {"x": (2, 3, 4)}, y, scale, 1.5)
    assert integer(made)
    assert run.partitions == 1


def test_other_parameters_behind_sigmoid_are_not_converted_to():
    q = Quantized()
    gate = q.activation(q.op("Sigmoid", [q.activation("x", 0.03, 5)], "s"), 1 / 200, -128)
    y = q.activation(q.op("Mul", [gate, "x_dq"], "y0"), 0.03, 2)
    made, _ = agree(q, {"x": (2, 3, 4)}, y, 0.03)
    assert integer(made)
    assert made.report.operators["QUANTIZE"] == 1  # the input


def test_softmax_is_float_for_xnnpack_and_integer_otherwise():
    q = Quantized()
    y = q.activation(q.op("Softmax", [q.activation("x", 0.03, 5)], "y0", axis=-1), 1 / 256, -128)
    made, run = agree(q, {"x": (2, 3, 6)}, y, 1 / 256)
    assert run.partitions == 1
    assert [f.op for f in made.report.left_in_float] == ["Softmax"]
    made, _ = agree(q, {"x": (2, 3, 6)}, y, 1 / 256, 2.01, kernels="builtin")
    assert integer(made)


@pytest.mark.parametrize("zero", [5, -128])
def test_max_pool_with_a_margin(zero):
    q = Quantized()
    x = q.activation("x", 0.03, zero)
    y = q.activation(
        q.op("MaxPool", [x], "y0", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 0.03, zero
    )
    made, run = agree(q, {"x": (1, 4, 8, 8)}, y, 0.03)
    assert integer(made)
    assert run.partitions == 1


def test_average_pool_and_mean():
    q = Quantized()
    x = q.activation("x", 0.03, 5)
    p = q.activation(q.op("AveragePool", [x], "p", kernel_shape=[2, 2], strides=[2, 2]), 0.03, 5)
    q.constants["hw"] = np.asarray([2, 3])
    y = q.activation(q.op("ReduceMean", [p, "hw"], "y0", keepdims=0), 0.01, 2)
    made, run = agree(q, {"x": (1, 4, 8, 8)}, y, 0.01, 2.5)
    assert integer(made)
    assert run.partitions == 1


def test_moves_keep_parameters():
    q = Quantized()
    q.constants |= {
        "shape": np.asarray([1, 4, 64]),
        "starts": np.asarray([1]),
        "ends": np.asarray([3]),
        "axes": np.asarray([1]),
    }
    q.constants |= {"pads": np.asarray([0, 0, 1, 0, 0, 2])}
    last = q.activation("x", 0.03, 5)
    for kind, more, attributes in (
        ("Reshape", ["shape"], {}),
        ("Transpose", [], {"perm": [0, 2, 1]}),
        ("Slice", ["starts", "ends", "axes"], {}),
        ("Pad", ["pads"], {}),
    ):
        last = q.activation(q.op(kind, [last, *more], f"v{kind}", **attributes), 0.03, 5)
    made, run = agree(q, {"x": (1, 4, 8, 8)}, last, 0.03)
    assert integer(made)
    assert made.report.operators["QUANTIZE"] == 1
    assert run.partitions == 1


def test_concatenation_brings_inputs_to_the_outputs_parameters():
    q = Quantized()
    a, b = q.activation("a", 0.03, 5), q.activation("b", 0.01, -7)
    y = q.activation(q.op("Concat", [a, b], "y0", axis=1), 0.03, 5)
    made, run = agree(q, {"a": (2, 3, 4), "b": (2, 2, 4)}, y, 0.03)
    assert integer(made)
    assert made.report.operators["QUANTIZE"] == 3
    assert run.partitions == 1


def test_other_parameters_behind_a_move_are_converted_to():
    q = Quantized()
    y = q.activation(q.op("Transpose", [q.activation("x", 0.02, 5)], "y0", perm=[1, 0]), 0.03, -1)
    made, _ = agree(q, {"x": (3, 4)}, y, 0.03)
    assert integer(made)
    assert made.report.operators["QUANTIZE"] == 2


@pytest.mark.parametrize("zero", [0, 9])
def test_products_of_activations(zero):
    q = Quantized()
    a, b = q.activation("a", 0.02, -3), q.activation("b", 0.02, zero)
    y = q.activation(q.op("MatMul", [a, b], "y0"), 0.05, 1)
    made, run = agree(q, {"a": (1, 2, 5, 8), "b": (1, 2, 8, 6)}, y, 0.05, 2.5)
    assert integer(made)
    assert run.partitions == 1


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
def test_hard_swish(kernels):
    q = Quantized()
    y = q.activation(q.op("HardSwish", [q.activation("x", 0.03, 5)], "y0"), 0.02, -110)
    made, run = agree(q, {"x": (2, 3, 8)}, y, 0.02, 1.5, kernels=kernels)
    assert integer(made)
    assert ("HARD_SWISH" in run.ops) == (kernels == "builtin")
    assert run.partitions == (1 if kernels == "xnnpack" else 2)


@pytest.mark.parametrize("zero", [-128, 0])
def test_relu_on_its_own(zero):
    q = Quantized()
    first = q.activation(q.op("Transpose", [q.activation("x", 0.03, 5)], "t", perm=[1, 0]), 0.03, 5)
    y = q.activation(q.op("Relu", [first], "y0"), 0.02, zero)
    made, run = agree(q, {"x": (12, 4)}, y, 0.02)
    assert integer(made)
    assert run.partitions == 1


def test_transposed_convolution():
    q = Quantized()
    x = q.activation("x", 0.03, 5)
    w = q.weight("w", weights(4, 6, 3, 3), 1)
    b = q.bias("b", weights(6), 0.03, "w")
    y = q.activation(q.op("ConvTranspose", [x, w, b], "c", strides=[2, 2], pads=[1] * 4), 0.02)
    made, _ = agree(q, {"x": (1, 4, 5, 5)}, y, 0.02, 1.5)
    assert integer(made)


def test_uint8_activations_are_shifted():
    q = Quantized(np.uint8)
    x, w = q.activation("x", 0.03, 120), q.weight("w", weights(8, 4, 1, 1))
    b = q.bias("b", weights(8), 0.03, "w")
    y = q.activation(q.op("Conv", [x, w, b], "c"), 0.02, 100)
    made, _ = agree(q, {"x": (1, 4, 5, 5)}, y, 0.02)
    assert integer(made)


def test_what_stays_in_float_is_told():
    q = Quantized()
    x = q.activation("x", 0.03, 5)
    q.constants |= {"scale": weights(8) + 1, "shift": weights(8)}
    n = q.activation(q.op("LayerNormalization", [x, "scale", "shift"], "ln"), 0.03, 3)
    y = q.activation(q.op("Mul", [n, x], "y0"), 0.05)
    made, run = agree(q, {"x": (2, 3, 8)}, y, 0.05, 2.5)
    assert [(f.op, f.count) for f in made.report.left_in_float] == [("LayerNormalization", 1)]
    assert run.partitions == 1


def test_integer_boundary():
    q = Quantized()
    x, w = q.activation("x", 0.03, 5), q.weight("w", weights(8, 4, 1, 1))
    b = q.bias("b", weights(8), 0.03, "w")
    y = q.activation(q.op("Conv", [x, w, b], "c"), 0.02, -2)
    model = graph(q.nodes, {"x": (1, 4, 5, 5)}, [y], q.constants)
    real = np.asarray(RNG.standard_normal((1, 4, 5, 5)), np.float32)
    expected = in_litert(compiled(model), {"x": real}).outputs[y]
    for dtype, offset in (("int8", 0), ("uint8", 128)):
        made = compiled(model, io_dtype=dtype)
        source, result = made.inputs[0], made.outputs[0]
        assert (source.dtype, source.zero_point, result.dtype, result.zero_point) == (
            dtype,
            5 + offset,
            dtype,
            -2 + offset,
        )
        stored = np.clip(np.rint(real / 0.03) + 5 + offset, -128 + offset, 127 + offset).astype(dtype)
        got = in_litert(made, {"x": stored}).outputs[y]
        np.testing.assert_allclose(
            (got.astype(np.float32) - result.zero_point) * result.scale, expected, atol=1e-6
        )


def test_int16_activations():
    q = Quantized(np.int16)
    x, w = q.activation("x", 3 / 32767), q.weight("w", weights(8, 4, 3, 3))
    q.constants["b"] = weights(8)
    c = q.activation(q.op("Conv", [x, w, "b"], "c", pads=[1] * 4), 5 / 32767)
    s = q.activation(q.op("Sigmoid", [c], "s"), 1 / 32768)
    y = q.activation(q.op("Mul", [c, s], "y0"), 5 / 32767)
    made, _ = agree(q, {"x": (1, 4, 7, 8)}, y, 5 / 32767, 12.0)
    assert integer(made)
    assert "int16" in made.report.types


INT16 = [
    ("ReduceMean", [np.array([2, 3])], {}, 1.0),
    ("ReduceSum", [np.array([2, 3])], {}, 20.0),
    ("ReduceMax", [np.array([2, 3])], {}, 4.0),
    ("Clip", [np.float32(0), np.float32(6)], {}, 4.0),
    ("Clip", [np.float32(-0.5), np.float32(0.7)], {}, 4.0),
    ("LeakyRelu", [], {"alpha": 0.2}, 4.0),
    ("MaxPool", [], {"kernel_shape": [2, 2]}, 4.0),
    ("AveragePool", [], {"kernel_shape": [2, 2]}, 4.0),
    ("GlobalAveragePool", [], {}, 4.0),
    ("GlobalMaxPool", [], {}, 4.0),
    ("Softmax", [], {}, 32767 / 32768),
    ("Pad", [np.array([0, 0, 1, 1, 0, 0, 1, 1])], {"mode": "reflect"}, 4.0),
    ("Resize", [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, 4.0),
    ("Resize", [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}, 4.0),
]


@pytest.mark.parametrize(("kind", "constants", "attributes", "reach"), INT16)
def test_int16_operators(kind, constants, attributes, reach):
    q = Quantized(np.int16)
    x = q.activation("x", 4 / 32767)
    names = [f"k{i}" for i in range(len(constants))]
    q.constants |= dict(zip(names, constants, strict=True))
    y = q.activation(q.op(kind, [x, *names], "o", **attributes), reach / 32767)
    made, _ = agree(q, {"x": (1, 4, 6, 6)}, y, reach / 32767, 3)
    assert integer(made)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Max", "Min", "MatMul", "Concat"])
def test_int16_operators_of_two(kind):
    q = Quantized(np.int16)
    a, b = q.activation("a", 4 / 32767), q.activation("b", 4 / 32767)
    y = q.activation(q.op(kind, [a, b], "o", **({"axis": 1} if kind == "Concat" else {})), 20 / 32767)
    made, _ = agree(q, {"a": (1, 4, 6, 6), "b": (1, 4, 6, 6)}, y, 20 / 32767, 3)
    assert integer(made)


def test_what_has_no_int16_kernel_is_float():
    q = Quantized(np.int16)
    x = q.activation("x", 4 / 32767)
    y = q.activation(q.op("DepthToSpace", [x], "o", blocksize=2), 4 / 32767)
    made, _ = agree(q, {"x": (1, 4, 6, 6)}, y, 4 / 32767)
    assert [f.op for f in made.report.left_in_float] == ["DepthToSpace"]


def in_blocks(block: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """x @ w with INT4 weights ``[96, 16]``, a scale for ``block`` inputs of an output."""
    scale = np.exp(RNG.standard_normal((96 // block, 16))).astype(np.float16).astype(np.float32)
    stored = RNG.integers(-8, 8, (96, 16)).astype(np.int8)
    model = graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=0, block_size=block),
            helper.make_node("MatMul", ["x", "f"], ["y"]),
        ],
        {"x": (4, 96)},
        ["y"],
        {"s": scale},
    )
    model.graph.initializer.append(
        helper.make_tensor("w", onnx.TensorProto.INT4, (96, 16), stored.reshape(-1).tolist())
    )
    return model, stored * np.repeat(scale, block, 0)


@pytest.mark.parametrize("kernels", ["delegate", "builtin"])
def test_int4_in_blocks_is_packed_and_read_as_it_is(kernels):
    model, real = in_blocks(32)
    made = compiled(model)
    assert made.report.weights == ("int4",)
    # LiteRT 1.4 and 2.0 compute blocks wrongly in XNNPACK; version 14 is the first that they refuse.
    model_in_file = schema_py_generated.ModelT.InitFromPackedBuf(bytes(made.data))
    assert [c.version for c in model_in_file.operatorCodes] == [14]
    assert len(made.data) < 96 * 16 // 2 + 3 * 16 * 2 + 2500
    x = np.asarray(RNG.standard_normal((4, 96)), np.float32)
    resolver = interpreter.OpResolverType
    kind = resolver.AUTO if kernels == "delegate" else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    session = interpreter.Interpreter(
        model_content=bytes(made.data), num_threads=1, experimental_op_resolver_type=kind
    )
    got = session.get_signature_runner("serving_default")(x=x)["y"]
    names = [d["op_name"] for d in session._get_ops_details()]
    assert names == ["FULLY_CONNECTED", "DELEGATE"][: 2 if kernels == "delegate" else 1]
    assert np.max(np.abs(got - x @ real)) < 0.03 * np.max(np.abs(x @ real))


@pytest.mark.parametrize(("block", "scale"), [(16, 0.1), (32, 1.1e-7)])
def test_blocks_that_no_kernel_reads_are_expanded(block, scale):
    """Blocks of 16; scales that float16 would round."""
    model, _ = in_blocks(block)
    scales = np.full((96 // block, 16), scale, np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(scales, "s"))
    made = compiled(model)
    assert made.report.weights == ("float32",)
    x = np.asarray(RNG.standard_normal((4, 96)), np.float32)
    expected = in_onnxruntime(model, {"x": x})["y"]
    np.testing.assert_allclose(in_litert(made, {"x": x}).outputs["y"], expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (8, 1, 3, 3)])
def test_int4_convolutions_become_int8(shape):
    """XNNPACK has no INT4 convolution: read as INT8, or expanded from INT8, in one partition."""
    data = weights(*shape)
    scale = (np.abs(data).max(axis=(1, 2, 3)) / 7).astype(np.float32)
    stored = np.clip(np.rint(data / scale[:, None, None, None]), -7, 7).astype(np.int8)
    model = graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=0),
            helper.make_node("Conv", ["x", "f"], ["y"], group=8 // shape[1]),
        ],
        {"x": (1, 8, 9, 9)},
        ["y"],
        {"s": scale},
    )
    model.graph.initializer.append(
        helper.make_tensor("w", onnx.TensorProto.INT4, shape, stored.reshape(-1).tolist())
    )
    made, run = check(model, tolerance=0.02)
    assert run.partitions == 1
    assert made.report.weights.count("int8") + made.report.weights.count("int8 expanded") == 1


@pytest.mark.parametrize("mode", ["dynamic", "float"])
def test_quantized_weights_under_float_activations(mode):
    q = Quantized()
    w = q.weight("w", weights(16, 32), 0)
    q.constants["b"] = weights(16)
    q.op("Gemm", ["x", w, "b"], "h", transB=1)
    y = q.op("Relu", ["h"], "y")
    model = graph(q.nodes, {"x": (4, 32)}, [y], q.constants)
    x = np.asarray(RNG.standard_normal((4, 32)), np.float32)
    made = compiled(model, quantized_weights=mode)
    run = in_litert(made, {"x": x})
    expected = in_onnxruntime(model, {"x": x})[y]
    error = np.max(np.abs(run.outputs[y] - expected)) / np.max(np.abs(expected))
    assert error < (1e-5 if mode == "float" else 0.02)
    assert (made.report.operators.get("DEQUANTIZE", 0) == 1) == (mode == "float")
    assert len(made.data) < 32 * 16 * 2 + 2500


def test_float16_weights_halve_the_file():
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (2, 256)}, ["y"], {"w": weights(256, 128)}
    )
    full, half = compiled(model), compiled(model, weights="float16")
    assert len(half.data) < 0.55 * len(full.data)
    x = np.asarray(RNG.standard_normal((2, 256)), np.float32)
    a, b = (in_litert(c, {"x": x}).outputs["y"] for c in (full, half))
    assert 0 < np.max(np.abs(a - b)) < 2e-3 * np.max(np.abs(a))
