"""Which runtime really computes in which float precision on this machine: the table in docs/quantization.md.

    python tools/precisions.py

One product of two matrices and one convolution are spelled in each precision (float8 as Q/DQ), loaded, run, and asked
of the runtime what its kernels compute in; the error is max |y - r| / max |r| against float64. For LiteRT only float16
weights are tried: edgekit writes neither bfloat16 nor float8 into TFLite files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
_TYPES = {
    "fp32": (TensorProto.FLOAT, np.float32),
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    "fp8 e4m3": (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    "fp8 e5m2": (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
}
_OPS = {
    "MatMul": ([16, 64], [64, 64], [16, 64]),
    "Conv": ([1, 8, 16, 16], [16, 8, 3, 3], [1, 16, 14, 14]),
}


def model(op: str, precision: str, weight: Array) -> bytes:
    """float32 in, one operator in ``precision``, float32 out."""
    kind, dtype = _TYPES[precision]
    source, _, result = _OPS[op]
    stored = helper.make_tensor("w", kind, weight.shape, weight.astype(dtype).tobytes(), raw=True)
    initializers = [stored]
    if precision.startswith("fp8"):
        initializers.append(numpy_helper.from_array(np.array(1.0, np.float32), "s"))
        initializers.append(helper.make_tensor("z", kind, [], b"\0", raw=True))
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]),
            helper.make_node(op, ["a", "v"], ["y"]),
        ]
    elif precision == "fp32":
        nodes = [helper.make_node(op, ["x", "w"], ["y"])]
    else:
        nodes = [
            helper.make_node("Cast", ["x"], ["a"], to=kind),
            helper.make_node(op, ["a", "w"], ["b"]),
            helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
        ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, source)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def onnxruntime_cpu(file: bytes, x: Array, op: str, folder: Path) -> tuple[Array, str]:
    """The types of the operator's inputs in the graph that ONNX Runtime runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    try:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        note = ""
    except Exception as error:  # noqa: BLE001 - whatever it says goes into the table
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        note = f", only without graph optimizations ({_short(error)})"
    y = session.run(None, {"x": x})[0]
    return y, _profiled(Path(session.end_profiling()), op) + note


def _profiled(profile: Path, op: str) -> str:
    import json

    events = json.loads(profile.read_text(encoding="utf-8"))
    for event in events:
        arguments = event.get("args", {})
        if event["name"].endswith("_kernel_time") and op in arguments.get("op_name", ""):
            kinds = [next(iter(t)) for t in arguments["input_type_shape"]]
            return "/".join(dict.fromkeys(kinds))
    return "?"


def openvino_cpu(hint: str | None) -> Callable[[bytes, Array, str, Path], tuple[Array, str]]:
    """The runtime precision of the fused operator; ``hint`` is INFERENCE_PRECISION_HINT."""

    def run(file: bytes, x: Array, _: str, folder: Path) -> tuple[Array, str]:
        import openvino

        path = folder / "model.onnx"
        path.write_bytes(file)
        properties = {"INFERENCE_PRECISION_HINT": hint} if hint else {}
        compiled = openvino.Core().compile_model(str(path), "CPU", properties)
        y = compiled({"x": x})[0]
        for node in compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            if info["layerType"].value in ("FullyConnected", "MatMul", "Convolution"):
                return y, str(info["runtimePrecision"].value)
        return y, "?"

    return run


def litert_cpu(file: bytes, x: Array, _: str, folder: Path) -> tuple[Array, str]:
    """edgekit's float16 file (float16 weights behind DEQUANTIZE): XNNPACK's kernels compute in float32."""
    from ai_edge_litert.interpreter import Interpreter

    from edgekit.backends import tflite
    from edgekit.core import targets
    from edgekit.graph import io

    (folder / "plain.onnx").write_bytes(file)
    row = targets.find("tflite-fp16")
    options = {o.name: o.default for o in row.options}
    lowered = tflite.lower(io.describe(folder / "plain.onnx"), row, options, folder)
    interpreter = Interpreter(str(folder / lowered.files[0]), num_threads=1)
    y = next(iter(interpreter.get_signature_runner()(x=x).values())).copy()
    kinds = {d["dtype"].__name__ for d in interpreter.get_tensor_details() if d["name"]}
    return y, f"float32 (tensors: {', '.join(sorted(kinds))})"


RUNTIMES: dict[str, tuple[Callable[[bytes, Array, str, Path], tuple[Array, str]], tuple[str, ...]]] = {
    "ONNX Runtime": (onnxruntime_cpu, tuple(_TYPES)),
    "OpenVINO, no hint": (openvino_cpu(None), tuple(_TYPES)),
    "OpenVINO, hint f32": (openvino_cpu("f32"), ("fp32", "fp16", "bf16")),
    "OpenVINO, hint f16": (openvino_cpu("f16"), ("fp32", "fp16")),
    "OpenVINO, hint bf16": (openvino_cpu("bf16"), ("fp32", "bf16")),
}


def main() -> None:
    """Print the table."""
    print("| runtime | asked for | MatMul computes in | error | Conv computes in | error |")
    print("|---|---|---|---|---|---|")
    for runtime, (run, precisions) in RUNTIMES.items():
        for precision in precisions:
            cells = [_cell(run, op, precision) for op in _OPS]
            print(f"| {runtime} | {precision} | {' | '.join(cells)} |", flush=True)
    cells = [_cell(litert_cpu, op, "fp32") for op in _OPS]
    print(f"| LiteRT, float16 weights | fp16 | {' | '.join(cells)} |", flush=True)


def _cell(run: Callable[[bytes, Array, str, Path], tuple[Array, str]], op: str, precision: str) -> str:
    source, shape, _ = _OPS[op]
    random = np.random.default_rng(0)
    weight = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    x = random.standard_normal(source).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        try:
            y, kind = run(model(op, precision, weight), x, op, Path(folder))
        except Exception as error:  # noqa: BLE001 - whatever it says goes into the table
            return f"does not load: {_short(error)} | -"
    r = _exact(op, x.astype(np.float64), weight.astype(np.float64))
    return f"{kind} | {np.abs(y - r).max() / np.abs(r).max():.0e}"


def _exact(op: str, x: Array, weight: Array) -> Array:
    if op == "MatMul":
        return x @ weight
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    return text.partition(" : ")[2].partition(" of input")[0].partition(" node with")[0][:100]


if __name__ == "__main__":
    main()
