"""Runs one ONNX graph in ONNX Runtime and, compiled, in LiteRT."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends.tflite.compiler import Compiled, CompileOptions, compile_onnx

Arrays = Mapping[str, np.ndarray]


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    constants: Arrays | None = None,
    *,
    opset: int = 21,
    types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model; inputs are float32 unless ``types`` says otherwise."""
    kinds = types or {}
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), s) for n, s in inputs.items()],
        [
            helper.make_value_info(n, helper.make_tensor_type_proto(kinds.get(n, TensorProto.FLOAT), None))
            for n in outputs
        ],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def single(
    op: str,
    shapes: Sequence[Sequence[int]],
    constants: Sequence[np.ndarray | None] = (),
    *,
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    """One node: activations first, then constants (None: an omitted input)."""
    names = [f"x{i}" for i in range(len(shapes))]
    fixed = {f"c{i}": c for i, c in enumerate(constants) if c is not None}
    given = names + ["" if c is None else f"c{i}" for i, c in enumerate(constants)]
    node = helper.make_node(op, given, ["y"], name="node", **attributes)
    return graph([node], dict(zip(names, shapes, strict=True)), ["y"], fixed, opset=opset)


def in_onnxruntime(model: onnx.ModelProto, feeds: Arrays) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


@dataclass(frozen=True)
class Run:
    """What LiteRT gave, and the interpreter's plan."""

    outputs: dict[str, np.ndarray]
    partitions: int
    ops: tuple[str, ...]


def in_litert(compiled: Compiled, feeds: Arrays) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=bytes(compiled.data), num_threads=1)
    interpreter.allocate_tensors()
    details = interpreter._get_ops_details()
    names = tuple(d["op_name"] for d in details)
    outputs = interpreter.get_signature_runner("serving_default")(**feeds)
    return Run(outputs, names.count("DELEGATE"), tuple(n for n in names if n != "DELEGATE"))


def compiled(model: onnx.ModelProto, **options: Any) -> Compiled:
    return compile_onnx(ir.from_proto(model), options=CompileOptions(**options))


def random_feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    initial = {i.name for i in model.graph.initializer}
    return {
        i.name: rng.standard_normal([d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in model.graph.input
        if i.name not in initial
    }


def check(
    model: onnx.ModelProto, feeds: Arrays | None = None, *, tolerance: float = 1e-5, **options: Any
) -> tuple[Compiled, Run]:
    """Compile, run both, compare every output: shape, and the largest error relative to the largest value."""
    given = random_feeds(model) if feeds is None else feeds
    made = compiled(model, **options)
    run = in_litert(made, given)
    for name, expected in in_onnxruntime(model, given).items():
        got = run.outputs[name]
        assert got.shape == expected.shape, (name, got.shape, expected.shape)
        if expected.dtype.kind == "f":
            scale = max(float(np.max(np.abs(expected), initial=0.0)), 1e-6)
            error = float(np.max(np.abs(got - expected), initial=0.0)) / scale
            assert error <= tolerance, (name, error)
        else:
            np.testing.assert_array_equal(got, expected)
    return made, run
