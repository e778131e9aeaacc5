"""How the three runtimes run a file, and the median latency of one in a process of its own.

    python tools/time_artifact.py RUNTIME FILE INPUTS.npz COUNT

Prints the median of COUNT runs after a few that do not count, in milliseconds, one thread. INPUTS holds the inputs
by name. A process of its own, because where a runtime's buffers come to lie in memory decides up to half of the
latency of a small network, and stays as it is until the process ends.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], np.ndarray]
_WARM_UP = 5


def onnxruntime_run(path: Path) -> Run:
    """One thread of ONNX Runtime's CPU provider."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def openvino_run(path: Path) -> Run:
    """One thread of OpenVINO's CPU plug-in; float operators in float32."""
    import openvino

    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", properties)
    return lambda inputs: compiled(inputs)[0]


def litert_run(path: Path) -> Run:
    """One thread of LiteRT with XNNPACK; quantized inputs and outputs are converted."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()

    sources, results = runner.get_input_details(), runner.get_output_details()
    (output,) = results

    def run(inputs: Inputs) -> np.ndarray:
        fed = {n: stored(a, sources[n]) for n, a in inputs.items()}
        return real(runner(**fed)[output].copy(), results[output])

    return run


def stored(array: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """A float array as a quantized input takes it; others as they are."""
    if tensor["dtype"] == array.dtype.type:
        return array
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(tensor["dtype"])


def real(array: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """What a quantized output stands for."""
    scale, zero = tensor["quantization"]
    return (array.astype(np.float32) - zero) * np.float32(scale) if scale else array


RUNS: dict[str, Callable[[Path], Run]] = {
    "onnxruntime": onnxruntime_run,
    "openvino": openvino_run,
    "litert": litert_run,
}


def main() -> None:
    """Time one file."""
    runtime, file, inputs, count = sys.argv[1:]
    run = RUNS[runtime](Path(file))
    fed = dict(np.load(inputs))
    taken = []
    for _ in range(_WARM_UP + int(count)):
        start = time.perf_counter()
        run(fed)
        taken.append((time.perf_counter() - start) * 1e3)
    print(statistics.median(taken[_WARM_UP:]))


if __name__ == "__main__":
    main()
