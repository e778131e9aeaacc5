"""Small ONNX graphs for the backends' tests, made with a fixed seed, and the way to run an artifact here."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.core import plugins
from edgekit.graph import io
from edgekit.types import Lowered, OnnxModel, Precision, Scheme, Target

SCOPES = {"stem": "features.stem", "depthwise": "features.block.depthwise", "head": "classifier"}


class _Maker:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, *shape: int) -> str:
        array = self.rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        return self.constant(name, array.astype(np.float32))

    def constant(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        node = helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes)
        if name in SCOPES:
            scopes = repr(["", SCOPES[name], name])
            node.metadata_props.append(onnx.StringStringEntryProto(key=io.SCOPES, value=scopes))
        node.doc_string = "from /home/somebody/secret.py"
        self.nodes.append(node)
        return f"{name}_out"

    def save(
        self, path: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any], opset: int = 20
    ) -> OnnxModel:
        self.nodes[-1].output[0] = next(iter(outputs))
        proto = helper.make_model(
            helper.make_graph(
                self.nodes,
                "g",
                [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()],
                [helper.make_tensor_value_info(n, *spec) for n, spec in outputs.items()],
                self.weights,
            ),
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=10,
        )
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, path)
        return io.describe(path)


def conv_net(path: Path) -> OnnxModel:
    """Stem, depthwise, pointwise with a residual, pooling, head: 4 nodes that multiply, 36,912 MACs."""
    m = _Maker()
    x = m.node(
        "Conv", "stem", ["x", m.weight("w0", 8, 3, 3, 3), m.weight("b0", 8)], pads=[1] * 4, strides=[2, 2]
    )
    x = m.node("Relu", "stem_relu", [x])
    y = m.node("Conv", "depthwise", [x, m.weight("w1", 8, 1, 3, 3), m.weight("b1", 8)], pads=[1] * 4, group=8)
    y = m.node("Relu", "depthwise_relu", [y])
    y = m.node("Conv", "pointwise", [y, m.weight("w2", 8, 8, 1, 1), m.weight("b2", 8)])
    x = m.node("Add", "residual", [x, y])
    x = m.node("GlobalAveragePool", "pool", [x])
    x = m.node("Flatten", "flatten", [x])
    m.node("Gemm", "head", [x, m.weight("w3", 10, 8), m.weight("b3", 10)], transB=1)
    return m.save(path, {"x": (TensorProto.FLOAT, [1, 3, 16, 16])}, {"y": (TensorProto.FLOAT, [1, 10])})


CONV_MACS = {
    "stem": 8 * 8 * 8 * 27,
    "depthwise": 8 * 8 * 8 * 9,
    "pointwise": 8 * 8 * 8 * 8,
    "head": 80,
}


def attention(path: Path) -> OnnxModel:
    """One attention block over dynamic ``batch`` and ``sequence``; width 8, RMS norm spelled out."""
    m = _Maker()
    square = m.node("Pow", "square", ["x", m.constant("two", np.float32(2))])
    mean = m.node("ReduceMean", "mean", [square, m.constant("last", np.array([-1], np.int64))], keepdims=1)
    shifted = m.node("Add", "shifted", [mean, m.constant("eps", np.float32(1e-12))])
    root = m.node("Sqrt", "root", [shifted])
    normed = m.node("Div", "normed", ["x", root])
    q = m.node("MatMul", "q", [normed, m.weight("wq", 8, 8)])
    k = m.node("MatMul", "k", [normed, m.weight("wk", 8, 8)])
    v = m.node("MatMul", "v", [normed, m.weight("wv", 8, 8)])
    kt = m.node("Transpose", "kt", [k], perm=[0, 2, 1])
    scores = m.node("MatMul", "scores", [q, kt])
    weights = m.node("Softmax", "weights", [scores], axis=-1)
    m.node("MatMul", "mixed", [weights, v])
    shape = ["batch", "sequence", 8]
    return m.save(path, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)})


def quantized(model: OnnxModel, path: Path, *, activation: str, bias: bool = True) -> OnnxModel:
    """Q/DQ as ONNX Runtime's own quantizer places it; ``activation`` is uint8 (asymmetric) or int8 (symmetric)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(3)
            shape = [d if isinstance(d, int) else 4 for d in model.inputs[0].shape]
            self.feeds = iter([{"x": rng.standard_normal(shape, dtype=np.float32)} for _ in range(4)])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    symmetric = activation == "int8"
    quantize_static(
        str(model.path),
        str(path),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": bias},
    )
    return io.describe(path)


def weights_only(path: Path, *, bits: int) -> OnnxModel:
    """Two products with a bias, their weights behind DequantizeLinear: INT8 by column, or INT4 in blocks of 32."""
    m = _Maker()
    x = "x"
    for layer, width in (("first", 64), ("second", 32)):
        weight = m.rng.integers(-7, 8, (64, width))
        if bits == 8:
            m.constant(f"{layer}_w", weight.astype(np.int8))
            m.constant(f"{layer}_s", np.full(width, 0.02, np.float32))
            d = m.node("DequantizeLinear", f"{layer}_dq", [f"{layer}_w", f"{layer}_s"], axis=1)
        else:
            m.weights.append(
                helper.make_tensor(f"{layer}_w", TensorProto.INT4, weight.shape, weight.flatten())
            )
            m.constant(f"{layer}_s", np.full((2, width), 0.02, np.float32))
            d = m.node("DequantizeLinear", f"{layer}_dq", [f"{layer}_w", f"{layer}_s"], axis=0, block_size=32)
        x = m.node("MatMul", layer, [x, d])
        x = m.node("Add", f"{layer}_bias", [x, m.weight(f"{layer}_b", width)])
    specs = {"x": (TensorProto.FLOAT, [3, 64])}, {"y": (TensorProto.FLOAT, [3, 32])}
    return m.save(path, *specs, opset=21)


def weights_target(float_target: Target, bits: int) -> Target:
    """The row that asks for low-bit weights where ``float_target`` asks for float32."""
    return dataclasses.replace(
        float_target,
        name=float_target.name.replace("fp32", f"int{bits}-weights"),
        precision=Precision(f"int{bits}-weights"),
        scheme=Scheme(weight=f"int{bits}", quantizer="weights"),
    )


def unsupported(path: Path) -> OnnxModel:
    """Two nodes of an unknown domain around one that everybody has."""
    proto = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Foo", ["x"], ["a"], name="foo", domain="acme"),
                helper.make_node("Relu", ["a"], ["b"], name="relu"),
                helper.make_node("Bar", ["b"], ["y"], name="bar", domain="acme"),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        ),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)],
        ir_version=9,
    )
    onnx.save(proto, path)
    return io.describe(path)


def runner(backend: str) -> ModuleType:
    """The module that runs this backend's artifacts, loaded from its file as on a device."""
    spec = importlib.util.spec_from_file_location(f"runner_{backend}", plugins.runner(backend))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(target: Target, lowered: Lowered, folder: Path, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Outputs and the raw placement record of an artifact in ``folder``."""
    options = {"threads": 1, "placement": True, **lowered.runtime}
    session = runner(target.backend).load(str(folder / lowered.files[0]), options)
    session.prepare(inputs)
    session.invoke()
    return session.results(), session.placement()


def reference(model: OnnxModel, inputs: Mapping[str, Any]) -> Any:
    """What the ONNX graph answers as written."""
    return io.run(io.session(model.path, optimized=False), inputs)


def snr_db(expected: Any, found: Any) -> float:
    """10 log10 of signal over error power."""
    error = float(np.sum((expected - found) ** 2))
    return 200.0 if error == 0 else 10 * float(np.log10(np.sum(expected**2) / error))


def digests(lowered: Lowered, folder: Path) -> list[bytes]:
    """The bytes of every file."""
    return [(folder / name).read_bytes() for name in lowered.files]
